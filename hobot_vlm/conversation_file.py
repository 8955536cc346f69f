"""
A conversation in a file: its turns, its pictures and its cells of the KV cache.

Knows the file; nothing of how a turn comes about or how cells are made. A file may come from
anywhere: it is checked before it is used, and nothing in it is run. It is a zip without
compression that holds

* ``state.json``: which model it belongs to, the turns, and what each cell holds,
* ``picture_N``: embeddings, float32 little endian,
* ``kv``: the cells, as llama.cpp writes a sequence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import hashlib
import json
import os
from pathlib import Path
import tempfile
from typing import Any
import zipfile

from llama_cpp import llama_cpp as lib
import numpy as np

from .config import Config
from .errors import ModelMismatch, StateError
from .llama.model import Decoder
from .prompt import Part, Turn
from .values import Control, ImageEmbedding, Picture, Span, Text, Tokens

FORMAT = 1

#: read of a large file to know it again: its head, and blocks that lie evenly in the rest
HEAD, BLOCKS, BLOCK = 1 << 20, 256, 1 << 14

#: (its name for people, what must be the same) of each thing that cells depend on
Identity = Mapping[str, tuple[str, str]]


@dataclass
class Saved:
    """
    What a file holds.

    :param cells: as in ``llama.session.Prompt``
    :param kv: the same cells as llama.cpp writes them; empty where there are none
    """

    system_prompt: str
    overflow: str
    turns: list[Turn]
    cells: list[int]
    kv: bytes | memoryview

    def pictures(self) -> list[ImageEmbedding]:
        """Give the pictures of all turns, each once."""
        found = {
            span.embedding.key: span.embedding
            for turn in self.turns
            for part in turn.user
            if not isinstance(part, str)
            for span in part
            if isinstance(span, Picture)
        }
        return list(found.values())


def identity(decoder: Path, encoder: Path | None, config: Config) -> Identity:
    """Describe all that the cells of a conversation depend on."""

    def of_file(path: str | Path | None) -> tuple[str, str]:
        return (Path(path).name, fingerprint(Path(path))) if path else ('none', '')

    lora, adapter = of_file(config.lora)
    return {
        'language model (llm_model_name)': of_file(decoder),
        'vision encoder (model_file_name)': of_file(encoder),
        'LoRA adapter (lora, lora_scale)': (
            f'{lora} at {config.lora_scale}',
            f'{adapter} {config.lora_scale}',
        )
        if adapter
        else (lora, adapter),
        'KV cache type (cache_type)': (config.cache_type, config.cache_type),
        'layout of llama.cpp': (
            f'version {lib.LLAMA_STATE_SEQ_VERSION}',
            str(lib.LLAMA_STATE_SEQ_VERSION),
        ),
    }


def fingerprint(path: Path) -> str:
    """Hash the size of a file, its head and a sample of the rest: quick even for gigabytes."""
    with path.open('rb') as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(str(size).encode())
        if size <= HEAD + BLOCKS * BLOCK:
            digest.update(file.read())
            return digest.hexdigest()
        digest.update(file.read(HEAD))
        for i in range(BLOCKS):
            file.seek(HEAD + (size - HEAD - BLOCK) * i // (BLOCKS - 1))
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


# -- writing ---------------------------------------------------------------------------------


def write(path: Path, saved: Saved, belongs_to: Identity) -> None:
    """
    Write a file; one that stood there before is replaced at once or not at all.

    :raises StateError: it cannot be written
    """
    pictures = {picture.key: (i, picture) for i, picture in enumerate(saved.pictures())}
    content = {
        'format': FORMAT,
        'belongs_to': belongs_to,
        'system_prompt': saved.system_prompt,
        'overflow': saved.overflow,
        'cells': saved.cells,
        'turns': [
            {
                'user': [_flat(part, pictures) for part in turn.user],
                'picture_parts': len(turn.pictures),
                'answer': turn.answer.ids,
            }
            for turn in saved.turns
        ],
        'pictures': [
            {
                'shape': p.data.shape,
                'rows': p.rows,
                'columns': p.columns,
                'overview': p.overview,
                'key': p.key.hex(),
                'size': p.size,
            }
            for _, p in pictures.values()
        ],
    }
    try:
        handle, beside = tempfile.mkstemp('.part', f'.{path.name}.', path.parent)
        try:
            with os.fdopen(handle, 'wb') as file:
                with zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:
                    archive.writestr('state.json', json.dumps(content))
                    for i, picture in pictures.values():
                        archive.writestr(f'picture_{i}', picture.data.astype('<f4').tobytes())
                    with archive.open('kv', 'w', force_zip64=True) as member:
                        member.write(saved.kv)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            os.unlink(beside)
            raise
    except OSError as exc:
        raise StateError(f'cannot save the conversation in {path}: {exc.strerror or exc}') from exc


def _flat(part: Part, pictures: Mapping[bytes, tuple[int, ImageEmbedding]]) -> Any:
    if isinstance(part, str):
        return part
    return [
        {'text': span.text}
        if isinstance(span, Text)
        else {'control': span.token}
        if isinstance(span, Control)
        else {'tokens': span.ids}
        if isinstance(span, Tokens)
        else {'picture': pictures[span.embedding.key][0], 'tile': span.tile}
        for span in part
    ]


# -- reading ---------------------------------------------------------------------------------


def read(path: Path, belongs_to: Identity, decoder: Decoder) -> Saved:
    """
    Read a file.

    :raises StateError: it cannot be read, was cut short, or is something else
    :raises ModelMismatch: it was saved with another model
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(m.compress_type != zipfile.ZIP_STORED for m in archive.infolist()):
                raise ValueError('it is compressed')  # and could grow without limit
            content = json.loads(archive.read('state.json'))
            if content['format'] != FORMAT:
                raise ValueError(f'it has format {content["format"]!r}, and {FORMAT} is known')
            _check_identity(path, content['belongs_to'], belongs_to)
            return _saved(content, archive, decoder)
    except OSError as exc:
        raise StateError(
            f'cannot read the saved conversation {path}: {exc.strerror or exc}'
        ) from exc
    except (
        zipfile.BadZipFile,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        OverflowError,
    ) as exc:
        raise StateError(
            f'{path} is no saved conversation, or is damaged ({exc}): save it anew'
        ) from exc


def _check_identity(path: Path, then: Any, now: Identity) -> None:
    for what, (name, exact) in now.items():
        name_then, exact_then = then[what]
        if exact_then != exact:
            raise ModelMismatch(
                f'{path} was saved with another {what}: {str(name_then)[:200]}, and here it is '
                f'{name}. Load the model that it was saved with, or save the conversation anew'
            )


def _saved(content: Any, archive: zipfile.ZipFile, decoder: Decoder) -> Saved:
    pictures = []
    for i, item in enumerate(content['pictures']):
        data = np.frombuffer(archive.read(f'picture_{i}'), '<f4').reshape(item['shape'])
        key, (width, height) = bytes.fromhex(item['key']), item['size']
        if data.ndim != 3 or data.shape[2] != decoder.n_embd or not data.size or len(key) != 16:
            raise ValueError(f'picture {i} has the shape {data.shape}')
        if not np.isfinite(data).all():
            raise ValueError(f'picture {i} holds numbers that are not finite')
        pictures.append(
            ImageEmbedding(
                data.astype(np.float32, copy=False),
                int(item['rows']),
                int(item['columns']),
                bool(item['overview']),
                key,
                (int(width), int(height)),
            )
        )
    turns = []
    for item in content['turns']:
        user = [_part(part, pictures, decoder) for part in item['user']]
        turns.append(
            Turn(
                user,
                user[: _whole(item['picture_parts'], 0, len(user) + 1)],
                Tokens(tuple(_ids(item['answer'], 0, decoder))),
            )
        )
    cells = _ids(content['cells'], -1 << 200, decoder)
    overflow, system_prompt = content['overflow'], content['system_prompt']
    if overflow not in ('drop_oldest', 'refuse') or not isinstance(system_prompt, str):
        raise ValueError(f'overflow is {overflow!r}')
    kv = archive.read('kv')
    if bool(kv) != bool(cells):
        raise ValueError(f'it has {len(cells)} cells of {len(kv)} bytes')
    return Saved(system_prompt, overflow, turns, cells, kv)


def _part(part: Any, pictures: Sequence[ImageEmbedding], decoder: Decoder) -> Part:
    if isinstance(part, str):
        return part
    spans: list[Span] = []
    for item in part:
        if 'picture' in item:
            picture = pictures[_whole(item['picture'], 0, len(pictures))]
            spans.append(Picture(picture, _whole(item['tile'], 0, len(picture.data))))
        elif 'tokens' in item:
            spans.append(Tokens(tuple(_ids(item['tokens'], 0, decoder))))
        elif 'control' in item:
            if item['control'] not in decoder.controls:
                raise ValueError(f'there is no control token {item["control"]!r}')
            spans.append(Control(item['control']))
        else:
            spans.append(Text('' + item['text']))
    return spans


def _ids(values: Any, low: int, decoder: Decoder) -> list[int]:
    return [_whole(value, low, decoder.n_vocab) for value in values]


def _whole(value: Any, low: int, end: int) -> int:
    if type(value) is not int or not low <= value < end:
        raise ValueError(f'{str(value)[:50]} is not a whole number from {low} to {end - 1}')
    return value
