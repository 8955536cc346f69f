"""
Named models: which files they are made of, on which machine, and how to come by them.

The names stand in ``catalogue.yaml`` beside this file and in the user's own ``models.yaml``. Files
from the Hugging Face hub lie in the cache of huggingface_hub, where its other users find them too.
Nothing here opens a model; fetching is the business of ``hub.py``, which is asked when
``download`` is called or ``auto_download`` is set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
import difflib
from functools import cache
import os
from pathlib import Path
import re
import shlex
from typing import Any

from . import hub
from .catalogue_file import ANY, Entry, File, read, Variant
from .config import Config, ELSEWHERE, FAMILY_NUMBERS
from .errors import ConfigError, DownloadError

DEFAULT = 'demo'

#: machine -> what it says of itself, in lower case
BOARDS = {
    'rdkx5': re.compile(r'(^|rdk )x5[uhm]?\b'),
    'rdks100': re.compile(r'(^|rdk |drobot,)s100p?\b'),
}
BOARD_FILES = (
    'sys/class/boardinfo/soc_name',
    'sys/class/socinfo/soc_name',
    'proc/device-tree/model',
    'proc/device-tree/compatible',
)


@dataclass(frozen=True)
class Model(Entry):
    """An entry of the catalogue."""

    def variant(self, board: str = '') -> Variant:
        """
        Give the files for a machine, by default this one.

        :raises ConfigError: the model does not run there
        """
        board = board or machine()
        for kind in (board, ANY):
            if kind in self.variants:
                return self.variants[kind]
        raise ConfigError(
            f'the model {self.name} has no files for this machine ({board}), only '
            f'for {", ".join(self.variants)}',
            'model',
        )


@dataclass(frozen=True)
class Files:
    """
    What a configuration comes down to.

    :param encoder: None for a language model without pictures
    :param options: values for options that the user left at their defaults
    """

    encoder: Path | None
    decoder: Path
    options: Mapping[str, Any] = field(default_factory=dict)


def machine(root: str | Path = '/') -> str:
    """Say which machine this is: ``rdkx5``, ``rdks100`` or ``any``."""
    for name in BOARD_FILES:
        try:
            text = (Path(root) / name).read_text(errors='replace').replace('\0', ' ').lower()
        except OSError:
            continue
        for board, words in BOARDS.items():
            if words.search(text.strip()):
                return board
    return ANY


# -- choosing ---------------------------------------------------------------------------------


def resolve(config: Config) -> Files:
    """
    Find the files that a configuration asks for.

    A file that is named wins over the one of the catalogue's ``model``. A decoder alone is a
    language model without pictures; the decoder for an encoder alone is the one that the
    catalogue pairs with an encoder of that name.

    :raises ConfigError: no such model
    :raises DownloadError: the files are not on this machine, or could not be fetched
    """
    encoder, decoder = (
        Path(os.path.expanduser(name)) if name else None
        for name in (config.model_file_name, config.llm_model_name)
    )
    if encoder and decoder:
        return Files(encoder, decoder)
    if decoder and config.model == DEFAULT:
        return Files(None, decoder)
    if encoder and config.model == DEFAULT:
        model, variant = _by_encoder(encoder)
        beside = encoder.with_name(Path(variant.decoder.path).name)
        decoder = beside if beside.is_file() else None
    else:
        model = find(config.model)
        variant = model.variant()
    if encoder is None and variant.encoder is not None and config.encoder_device != ELSEWHERE:
        encoder = obtain(model, variant.encoder, config.auto_download)
    if decoder is None:
        decoder = obtain(model, variant.decoder, config.auto_download)
    return Files(encoder, decoder, options_of(model, variant))


def find(name: str) -> Model:
    """
    Look a model up.

    :raises ConfigError: there is none of that name
    """
    models = load()
    if name not in models:
        near = _nearest(name, models)
        raise ConfigError(
            f'there is no model {name[:80]!r}'
            f'{f"; did you mean {near}?" if near else "."} `vlm models` lists '
            f'those of the catalogue; add your own in {user_file()}, or give files '
            'in model_file_name and llm_model_name',
            'model',
        )
    return models[name]


def _nearest(name: str, models: Mapping[str, Model]) -> str:
    """Give the model that a name may mean: misspelt, cut short, or as a hub writes it."""

    def plain(text: str) -> str:  # OpenGVLab/InternVL2_5-1B is internvl2.5-1b
        return re.sub('[^a-z0-9]', '', text.rpartition('/')[2].lower())

    known = {plain(one): one for one in models}
    wanted = plain(name)
    longer = [one for one in known if one.startswith(wanted)] if wanted else []
    shorter = [one for one in known if wanted.startswith(one)]
    near = shorter[-1:] or longer[:1] or difflib.get_close_matches(wanted, known, 1)
    return known[near[0]] if near else ''


def _by_encoder(encoder: Path) -> tuple[Model, Variant]:
    for model in load().values():
        for variant in model.variants.values():
            if variant.encoder and Path(variant.encoder.path).name == encoder.name:
                return model, variant
    raise ConfigError(
        f'model_file_name is {encoder}, and no language model is named with it: '
        'give its .gguf file in llm_model_name',
        'llm_model_name',
    )


def options_of(model: Model, variant: Variant) -> dict[str, Any]:
    """Give the options that a model has where the user set none."""
    family = {'model_type': FAMILY_NUMBERS[model.family]} if model.family else {}
    return {**family, **variant.options}


def obtain(model: Model, file: File, may_download: bool) -> Path:
    path = file.local()
    if path is not None:
        return path
    if model.checkpoint and not file.repo:
        raise DownloadError(_how_to_make(model))
    if not file.repo:
        raise DownloadError(
            f'the model {model.name} needs the file {file.path}, which is not '
            f'there; put it there, or correct {model.source}'
        )
    if not may_download:
        raise DownloadError(
            f'the model {model.name} is not on this machine ({file} is missing): run '
            f'`vlm download {model.name}`, or set auto_download to true (`-p auto_download:=true` '
            'for the node), or give your own files in model_file_name and llm_model_name'
        )
    return hub.fetch(file.repo, file.path)


def _how_to_make(model: Model) -> str:
    """Say how both files of a model are made from its checkpoint, with tools of llama.cpp."""
    variant = model.variant()
    assert variant.encoder is not None
    encoder, decoder = (shlex.quote(file.path) for file in (variant.encoder, variant.decoder))
    name, quant = model.name, Path(variant.decoder.path).stem.partition('-')[2]
    flash = model.checkpoint.endswith('-Flash')  # a router, which the converter does not know
    source = f'{name}-decoder' if flash else name
    convert = f'python convert_hf_to_gguf.py {source}'
    lines = [
        f'hf download {model.checkpoint} --local-dir {name}',
        f'mkdir -p {Path(decoder).parent}',
        f'{convert} --mmproj --outtype q8_0 --outfile {encoder}'
        if encoder.endswith('.gguf')
        else f'python tools/export_encoder.py --bits 8 {name} {encoder}',
        *([f'python tools/without_router.py {name} {source}'] if flash else []),
        f'{convert} --outtype q8_0 --outfile {decoder}'
        if quant == 'Q8_0'
        else f'{convert} --outtype bf16 --outfile {name}.gguf '
        f'&& llama-quantize {name}.gguf {decoder} {quant}',
    ]
    return (
        f'the model {name} is not published as files that run here; make them once from its '
        'checkpoint, with tools/export_encoder.py of hobot_vlm and convert_hf_to_gguf.py and '
        f'llama-quantize of llama.cpp (docs/models.md): {" && ".join(lines)}'
    )


# -- the catalogue ----------------------------------------------------------------------------


def user_file() -> Path:
    """Give the place of the user's own catalogue."""
    home = os.environ.get('XDG_CONFIG_HOME') or '~/.config'
    return Path(os.path.expanduser(home)) / 'hobot_vlm' / 'models.yaml'


def load() -> dict[str, Model]:
    """
    Read the catalogue, the user's entries last.

    :raises ConfigError: a file that cannot be understood
    """
    own = user_file()
    return {**bundled(), **(read(own, Model) if os.path.exists(own) else {})}


@cache
def bundled() -> dict[str, Model]:
    """Read the catalogue that comes with this package."""
    return read(Path(__file__).with_name('catalogue.yaml'), Model)


# -- downloading ------------------------------------------------------------------------------


def download(name: str) -> Files:
    """
    Bring the files of a model for this machine onto it; those that are here are only checked.

    :raises ConfigError: no such model
    :raises DownloadError: a file could not be fetched, or is not what the hub says it is
    """
    model = find(name)
    variant = model.variant()
    paths = []
    for file in (variant.encoder, variant.decoder):
        path = file.local() if file else None
        if file and path and file.repo and not hub.all_intact(path):
            path = None  # what was damaged is gone
        paths.append(path or (obtain(model, file, True) if file else None))
    encoder, decoder = paths
    assert decoder is not None
    return Files(encoder, decoder, options_of(model, variant))


def remove(name: str) -> int:
    """
    Take the files of a model off this machine; those that another model here needs stay.

    :return: how many bytes that frees
    :raises ConfigError: no such model, or one whose files did not come from the hub
    """
    model = find(name)
    variant = model.variant()
    files = _files(variant)
    if not any(file.repo for file in files):
        raise ConfigError(
            f'the files of the model {name} were not downloaded: '
            f'{", ".join(file.path for file in files)}; delete them yourself if they are yours',
            'model',
        )
    needed = set()
    for other in load().values():
        kinds = {machine(), ANY} & set(other.variants)
        theirs = _files(other.variant()) if kinds and other.name != name else []
        if all(file.local() for file in theirs):
            needed |= set(theirs)
    return sum(
        hub.remove(file.repo, file.path) for file in files if file.repo and file not in needed
    )


def _files(variant: Variant) -> list[File]:
    return [file for file in (variant.encoder, variant.decoder) if file]
