"""
What the user chose: frozen, checked once, one door for ROS, YAML, the command line and Python.

``Config`` holds what the engine needs; what only the nodes need stands in ``node_config.py``. Each
option stands once, with its description and range; the node's parameter descriptors, ``vlm --set``
and the tables in docs are made from these fields. Nothing here opens a file of a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
import os
from pathlib import Path
from typing import Any, TypeVar

from .errors import ConfigError
from .option import checked, option, unknown_option
from .parameter_file import read_parameter_file

#: ``encoder_device`` of a model whose pictures come encoded
ELSEWHERE = 'elsewhere'

#: model families in the order of ``model_type``: the name in the catalogue, and the class
FAMILIES = {
    'internvl': 'hobot_vlm.families.internvl:InternVL',
    'smolvlm': 'hobot_vlm.families.smolvlm:SmolVLM',
    'mtmd': 'hobot_vlm.families.mtmd:Libmtmd',
}
FAMILY_NUMBERS = {name: number for number, name in enumerate(FAMILIES)}

C = TypeVar('C', bound='Config')


def family_words(link: str) -> list[str]:
    """Give the families for people: the number, a link, and the name of the class."""
    return [
        f'{FAMILY_NUMBERS[name]}{link}{cls.partition(":")[2]}' for name, cls in FAMILIES.items()
    ]


@dataclass(frozen=True)
class Config:
    """Options of the engine; all have defaults, and all are checked on construction."""

    model: str = option(
        'demo',
        'model of the catalogue (see `vlm models`), or the address of a server, as in '
        'http://host:8000/v1; explicit file names win over the catalogue',
    )
    remote_model: str = option(
        '', 'name of the model on the server of an address; empty: the first that it lists'
    )
    # the slowest first token that a person waits for; an 8B model behind a queue stays below it
    remote_timeout: float = option(
        20.0,
        'seconds without a piece of the answer after which a server counts as silent',
        0.1,
        3600.0,
    )
    # three tiles of InternVL, and what a camera of 1080 lines has after that is 0.2 MB
    remote_image_side: int = option(
        1344, 'longest side of a picture that goes to a server, in pixels', 28, 8192
    )
    remote_jpeg_quality: int = option(
        85, 'quality of the JPEG pictures that go to a server', 1, 95
    )
    fallback: str = option(
        '', 'model of the catalogue that answers while the servers do not; empty: none'
    )
    model_file_name: str = option('', 'vision encoder: .onnx, .bin, .hbm or mmproj .gguf')
    llm_model_name: str = option('', 'language model: .gguf of llama.cpp')
    model_type: int = option(
        -1,
        f'family: {", ".join(family_words(" "))}, -1 detect from the files',
        choices=(-1, *FAMILY_NUMBERS.values()),
    )
    auto_download: bool = option(False, 'fetch a catalogue model that is not on this machine')
    system_prompt: str = option(
        '', "system prompt: text, or the path of a text file; empty: the family's own", live=True
    )
    thinking: bool = option(
        False,
        'let InternVL3.5 reason before it answers; the reasoning is kept out of speech and result',
    )
    fit: str = option(
        '',
        'how a picture fills a tile; empty: as the family was trained',
        choices=('', 'contain', 'cover', 'fill', 'topleft'),
    )
    max_tiles: int = option(
        0,
        'most tiles per picture, the overview not counted; 0: what the '
        'model was made for, and 1 on a BPU',
        0,
        64,
    )
    keep_image_tokens: float = option(
        1.0,
        'share of the embeddings of a picture that the language model reads: less is faster and '
        'approximate, and not for boxes',
        0.1,
        1.0,
    )
    n_ctx: int = option(4096, 'cells of the KV cache', 64, 1048576)
    n_predict: int = option(256, 'most tokens of an answer', 1, 1048576, live=True)
    # on two CPU cores llama.cpp read 267 to 900 tokens 1 to 3 % faster in steps of 256 than of 512
    n_batch: int = option(
        256,
        'most tokens decoded at once while a prompt is read; a GPU is faster with more',
        1,
        16384,
    )
    n_gpu_layers: int = option(
        0, 'layers of the language model on the GPU, and an mmproj too; -1: all', -1, 1000
    )
    split_mode: str = option(
        'layer',
        'how several GPUs share the language model: by layers, by rows of its matrices, or none: '
        'main_gpu has it all',
        choices=('layer', 'row', 'none'),
    )
    main_gpu: int = option(
        0, 'the GPU of split_mode none, and of what row cannot split; counted from 0', 0, 15
    )
    tensor_split: str = option('', 'share of each GPU, as in 3,1; empty: as each has free memory')
    llm_threads: int = option(0, 'threads of the language model; 0: one per core', 0, 512)
    encoder_threads: int = option(0, 'threads of a CPU encoder; 0: one per core', 0, 512)
    encoder_device: str = option(
        'auto',
        'what runs the vision encoder: cpu, cpu-int8, openvino, libmtmd, bpu, or a provider of '
        'ONNX Runtime such as cuda; auto: the fastest, measured at the first load of a file; '
        'elsewhere: none here, pictures come encoded',
    )
    bpu_priority: int = option(0, 'scheduling priority of the BPU encoder', 0, 255)
    bpu_cores: str = option('', 'BPU cores of the encoder, as in 0 or 0,1; empty: any')
    temperature: float = option(
        0.0, 'randomness of an answer; 0: always the likeliest token', 0.0, 10.0, live=True
    )
    top_k: int = option(40, 'choose among the k likeliest tokens; 0: all', 0, 1000000, live=True)
    top_p: float = option(
        0.95, 'choose among the likeliest tokens that hold this share', 0.0, 1.0, live=True
    )
    min_p: float = option(
        0.05, 'drop tokens less likely than this share of the likeliest', 0.0, 1.0, live=True
    )
    repeat_penalty: float = option(
        1.0, 'penalty for repeated tokens; 1: none', 0.1, 10.0, live=True
    )
    seed: int = option(
        -1, 'seed of the random choice; -1: another one each time', -1, 4294967294, live=True
    )
    grammar: str = option(
        '', 'GBNF grammar that every answer follows: text, or the path of a file', live=True
    )
    json_schema: str = option(
        '',
        'JSON schema that every answer follows: text, the path of a file or, in Python, a dict or '
        'pydantic class',
        live=True,
    )
    regex: str = option(
        '',
        'regular expression that every answer matches from its first to its last character',
        live=True,
    )
    lora: str = option('', 'LoRA adapter for the language model: .gguf')
    lora_scale: float = option(1.0, 'strength of the LoRA adapter', -100.0, 100.0)
    cache_type: str = option(
        'f16',
        'number format of the KV cache; q8_0/f16: keys in q8_0, values in f16',
        choices=('f16', 'q8_0/f16', 'q8_0', 'q4_0'),
    )
    flash_attention: str = option(
        'auto', 'fused attention; a quantised KV cache needs it', choices=('auto', 'on', 'off')
    )
    mmap: bool = option(True, 'map the language model instead of reading it into memory')
    warm_up: bool = option(True, 'run once at start, so that the first answer is not slower')

    def __post_init__(self) -> None:
        for item in fields(self):
            object.__setattr__(self, item.name, checked(item, getattr(self, item.name)))
        for part in filter(None, self.bpu_cores.split(',')):
            if not part.strip().isdecimal():
                raise ConfigError(
                    f'bpu_cores is {self.bpu_cores!r}: expected numbers with commas '
                    'between them, as in 0,1',
                    'bpu_cores',
                )
        self.gpu_shares()

    @property
    def is_remote(self) -> bool:
        """Whether the model is on another machine: ``model`` is an address."""
        return '://' in self.model

    @classmethod
    def from_flat(cls: type[C], values: Mapping[str, Any]) -> C:
        """
        Build from names and values; values may be text, as on a command line.

        :raises ConfigError: an unknown name or a value out of range
        """
        known = {item.name for item in fields(cls)}
        for name in values:
            if name not in known:
                raise unknown_option(name, known)
        return cls(**dict(values))

    @classmethod
    def from_yaml(cls: type[C], path: str | Path, **overrides: Any) -> C:
        """Build from a ROS parameter file; options of the node alone are left out."""
        from .node_config import NodeConfig  # which is made of this one

        values = read_parameter_file(path)
        own = {item.name for item in fields(cls)}
        unknown = set(values) - {item.name for item in fields(NodeConfig)}
        if unknown:
            raise ConfigError(f'{path}: there is no option {sorted(unknown, key=str)[0]!r}')
        return cls.from_flat({k: v for k, v in values.items() if k in own} | overrides)

    def system_text(self) -> str:
        """Give the system prompt, read from its file where it is one."""
        return self._text('system_prompt', '.txt')

    def grammar_text(self) -> str:
        """Give the grammar, read from its file where it is one."""
        return self._text('grammar', '.gbnf')

    def schema_text(self) -> str:
        """Give the JSON schema, read from its file where it is one."""
        return self._text('json_schema', '.json')

    def _text(self, name: str, suffix: str) -> str:
        """Give an option that is text or the path of a text file."""
        text = str(getattr(self, name))
        if not text or len(text) > 4095 or '\n' in text:
            return text
        path = Path(os.path.expanduser(text))
        try:
            if os.path.isfile(path):  # unlike Path.is_file, no error for long or odd text
                return path.read_text(encoding='utf-8').strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f'{name}: cannot read the text file {path}: {exc}', name) from exc
        if path.suffix == suffix and ' ' not in text:
            raise ConfigError(
                f'{name}: there is no file {path}; give a file, or the text itself', name
            )
        return text

    def cores(self) -> tuple[int, ...]:
        """Give ``bpu_cores`` as numbers."""
        return tuple(int(part) for part in self.bpu_cores.split(',') if part.strip())

    def gpu_shares(self) -> tuple[float, ...]:
        """
        Give ``tensor_split`` as numbers.

        :raises ConfigError: it is none, or all are 0
        """
        parts = self.tensor_split.split(',') if self.tensor_split.strip() else []
        try:
            shares = tuple(float(part) for part in parts)
        except ValueError:
            shares = (-1.0,)
        if not all(0 <= share <= 1e6 for share in shares) or (shares and not any(shares)):
            raise ConfigError(
                f'tensor_split is {self.tensor_split[:80]!r}: expected a number for each GPU with '
                'commas between them, as in 3,1',
                'tensor_split',
            )
        return shares


#: options that the node may change while it runs
LIVE = tuple(item.name for item in fields(Config) if item.metadata['live'])

#: options that may differ from request to request
PER_REQUEST = (*LIVE, 'thinking', 'max_tiles', 'fit', 'keep_image_tokens')
