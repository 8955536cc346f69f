"""
A conversation in a file: its turns, its pictures and its cells of the KV cache.

Knows the file; nothing of how a turn comes about or how cells are made. A file may come from
anywhere: it is checked before it is used, and nothing in it is run. It is a zip without
compression that holds

* ``state.json``: which model it belongs to, the turns, and what each cell holds,
* ``image_N``: embeddings of its tiles, float32 little endian,
* ``kv``: the cells, as llama.cpp writes a sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
import hashlib
import json
import os
from pathlib import Path
import tempfile
from typing import Any, IO
import zipfile

from llama_cpp import llama_cpp as lib
import numpy as np

from .config import Config
from .encoders.onnx_weights import weights_beside
from .errors import ModelMismatch, StateError
from .llama import gguf
from .llama.model import Model
from .prompt.history import Turn
from .prompt.tokens import ids_of, positions
from .values import Control, ImageEmbedding, Part, Placing, Span, Text, Tile, TileSpan, Tokens

FORMAT = 2

#: embeddings of a tile at most; a power of two above what any encoder gives
MOST_TOKENS = 1 << 16

#: (its name for people, what must be the same) of each thing that cells depend on
Identity = Mapping[str, tuple[str, str]]


@dataclass
class Saved:
    """
    What a file holds.

    :param ids: what its cells of the KV cache hold, as in ``prompt.tokens.Prompt``
    :param kv: these cells as llama.cpp writes them; empty where there are none
    """

    system_prompt: str
    overflow: str
    turns: list[Turn]
    ids: list[int]
    kv: bytes | bytearray

    @property
    def positions(self) -> list[int]:
        """Give where each id stands, and where what follows will."""
        return positions(self.ids, (tile for image in self.images() for tile in image.tiles))

    def images(self) -> list[ImageEmbedding]:
        """Give the pictures of all turns, each once."""
        found = {
            span.image.key: span.image
            for turn in self.turns
            for part in turn.user
            if not isinstance(part, str)
            for span in part
            if isinstance(span, TileSpan)
        }
        return list(found.values())


def identity(decoder: Path, encoder: Path | None, config: Config) -> Identity:
    """Describe all that the cells of a conversation depend on."""

    def of_file(path: str | Path | None) -> tuple[str, str]:
        if not path:
            return 'none', ''
        return Path(path).name, gguf.identity(Path(path), weights_beside(Path(path)))

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
        'attention (flash_attention)': (config.flash_attention, config.flash_attention),
        'layout of llama.cpp': (
            f'version {lib.LLAMA_STATE_SEQ_VERSION}',
            str(lib.LLAMA_STATE_SEQ_VERSION),
        ),
    }


# -- writing ---------------------------------------------------------------------------------


def write(path: Path, saved: Saved, belongs_to: Identity) -> None:
    """
    Write a file; one that stood there before is replaced at once or not at all.

    :raises StateError: it cannot be written
    """
    images = {image.key: (i, image) for i, image in enumerate(saved.images())}
    tiles = [tile for _, image in images.values() for tile in image.tiles]
    content = {
        'format': FORMAT,
        'belongs_to': belongs_to,
        'system_prompt': saved.system_prompt,
        'overflow': saved.overflow,
        'cells': _flat_ids(saved.ids, tiles),
        'turns': [
            {
                'user': [_flat(part, images) for part in turn.user],
                'image_parts': len(turn.images),
                'answer': _flat([turn.answer], images),
            }
            for turn in saved.turns
        ],
        'images': [
            {
                'tokens': [tile.tokens for tile in image.tiles],
                'placing': [_flat_placing(tile.placing) for tile in image.tiles],
                'rows': image.rows,
                'columns': image.columns,
                'overview': image.overview,
                'size': image.size,
            }
            for _, image in images.values()
        ],
    }
    with replacing(path) as file, zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:
        archive.writestr('state.json', json.dumps(content))
        for i, image in images.values():
            data = np.concatenate([tile.data for tile in image.tiles])
            archive.writestr(f'image_{i}', data.astype('<f4').tobytes())
        with archive.open('kv', 'w', force_zip64=True) as member:
            member.write(saved.kv)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """
    Give a file to write; at the end it replaces what stood there before, or does not at all.

    :raises StateError: it cannot be written
    """
    path = target(path)
    try:
        handle, part = tempfile.mkstemp('.part', f'.{path.name}.', path.parent)
        try:
            with os.fdopen(handle, 'wb') as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise
    except OSError as exc:
        raise StateError(f'cannot save the conversation in {path}: {exc.strerror or exc}') from exc


def as_path(path: Any) -> Path:
    """
    Give the path that a caller means; ``~`` is the home.

    :raises StateError: it is none
    """
    if not isinstance(path, (str, os.PathLike)) or '\0' in os.fsdecode(path):
        raise StateError(
            f'the path of a saved conversation is {repr(path)[:80]}: expected text without zero '
            'bytes, or a Path'
        )
    return Path(os.path.expanduser(os.fsdecode(path)))


def target(path: Path) -> Path:
    """
    Give the file behind a path; one that a link names stays where the link points.

    :raises StateError: it is a folder, a pipe or a device
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise StateError(f'{path} is no file: give the path of one for the conversation')
    return path


def _flat_ids(ids: Sequence[int], tiles: Sequence[Tile]) -> list[int]:
    """Write ids so that they name tiles by their place in the file: -1, -2, ... for the first."""
    places = {}
    for number, tile in enumerate(tiles):
        for i, name in enumerate(ids_of(tile)):
            places[name] = -1 - (number * MOST_TOKENS + i)
    return [places.get(value, value) for value in ids]


def _flat_placing(placing: Placing | None) -> Any:
    if placing is None:
        return None
    parts = None if placing.parts is None else placing.parts.tolist()
    return {'parts': parts, 'length': placing.length, 'causal': placing.causal}


def _flat(part: Part, images: Mapping[bytes, tuple[int, ImageEmbedding]]) -> Any:
    if isinstance(part, str):
        return part
    return [
        {'text': span.text}
        if isinstance(span, Text)
        else {'control': span.token}
        if isinstance(span, Control)
        else {'tokens': span.ids}
        if isinstance(span, Tokens)
        else {'image': images[span.image.key][0], 'tile': span.index}
        for span in part
    ]


# -- reading ---------------------------------------------------------------------------------


def read(path: Path, belongs_to: Identity, model: Model) -> Saved:
    """
    Read a file.

    :raises StateError: it cannot be read, was cut short, or is something else
    :raises ModelMismatch: it was saved with another model
    """
    path = target(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if any(m.compress_type != zipfile.ZIP_STORED for m in archive.infolist()):
                raise ValueError('it is compressed')  # and could grow without limit
            content = json.loads(archive.read('state.json'))
            if content['format'] != FORMAT:
                raise ValueError(f'it has format {content["format"]!r}, and {FORMAT} is known')
            _check_identity(path, content['belongs_to'], belongs_to)
            return _saved(content, archive, model)
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
        RecursionError,
    ) as exc:
        raise StateError(
            f'{path} is no saved conversation, or is damaged ({str(exc)[:200]}): save it anew'
        ) from exc


def _check_identity(path: Path, then: Any, now: Identity) -> None:
    for what, (name, exact) in now.items():
        name_then, exact_then = then[what]
        if exact_then != exact:
            raise ModelMismatch(
                f'{path} was saved with another {what}: {str(name_then)[:200]}, and here it is '
                f'{name}. Load the model that it was saved with, or save the conversation anew'
            )


def _saved(content: Any, archive: zipfile.ZipFile, model: Model) -> Saved:
    images = [
        _image(item, archive.read(f'image_{i}'), model) for i, item in enumerate(content['images'])
    ]
    turns = []
    for item in content['turns']:
        user = [_part(part, images, model) for part in item['user']]
        (answer,) = list(_part(item['answer'], images, model))
        if not isinstance(answer, (Tokens, Text)):
            raise ValueError('an answer is neither tokens nor text')
        turns.append(Turn(user, user[: _whole(item['image_parts'], 0, len(user) + 1)], answer))
    tiles = [tile for image in images for tile in image.tiles]
    names = [ids_of(tile) for tile in tiles]
    ids = []
    for value in content['cells']:
        place = _whole(value, -1 - len(tiles) * MOST_TOKENS, model.n_vocab)
        if place < 0:
            number, i = divmod(-1 - place, MOST_TOKENS)
            place = names[number][i]
        ids.append(place)
    overflow, system_prompt = content['overflow'], content['system_prompt']
    if overflow not in ('drop_oldest', 'refuse') or not isinstance(system_prompt, str):
        raise ValueError(f'overflow is {str(overflow)[:40]!r}')
    kv = archive.read('kv')
    if bool(kv) != bool(ids):
        raise ValueError(f'it has {len(ids)} cells of {len(kv)} bytes')
    return Saved(system_prompt, overflow, turns, ids, kv)


def _image(item: Any, raw: bytes, model: Model) -> ImageEmbedding:
    """
    Read a picture.

    Its tiles are named after the embeddings in the file: a file may claim that they are of any
    picture, and others who ask about that one must not be given these.
    """
    counts = [_whole(count, 1, MOST_TOKENS + 1) for count in item['tokens']]
    data = np.frombuffer(raw, '<f4').astype(np.float32, copy=False)
    data = data.reshape(sum(counts), model.n_embd)
    if not counts or not np.isfinite(data).all():
        raise ValueError('a picture holds no embeddings, or such as are not finite')
    tiles = []
    flat = item.get('placing', [None] * len(counts))
    for embeddings, places in zip(np.split(data, np.cumsum(counts)[:-1]), flat, strict=True):
        named = b'embeddings' + json.dumps(places).encode() * (places is not None)
        key = hashlib.sha256(named + embeddings.tobytes()).digest()[:16]
        tile = Tile(key, len(embeddings), _placing(places, len(embeddings)))
        tile.encoded.set_result(np.ascontiguousarray(embeddings))
        tiles.append(tile)
    rows, columns = (_whole(item[name], 0, 1 << 16) for name in ('rows', 'columns'))
    width, height = (_whole(length, 1, 1 << 24) for length in item['size'])
    whole = hashlib.sha256(b''.join(tile.key for tile in tiles)).digest()[:16]
    overview = bool(item['overview'])
    if rows * columns + overview not in (0, len(tiles)):  # 0: libmtmd has cut it
        raise ValueError(f'a picture of {rows} x {columns} tiles has {len(tiles)}')
    return ImageEmbedding(tuple(tiles), rows, columns, overview, whole, (width, height))


def _placing(item: Any, tokens: int) -> Placing | None:
    if item is None:
        return None
    length, parts = _whole(item['length'], 1, MOST_TOKENS + 1), None
    if item['parts'] is not None:
        parts = np.array(item['parts'], np.int32).reshape(-1, tokens)
        time = parts[0]
        if len(parts) not in (3, 4):
            raise ValueError(f'a position has {len(parts)} parts')
        if time[0] or parts.min() < 0 or parts.max() >= MOST_TOKENS or (np.diff(time) < 0).any():
            raise ValueError('positions of a picture are not in order')
        if time[-1] >= length:
            raise ValueError(f'a picture of {length} positions has one at {time[-1]}')
    elif length != tokens:
        raise ValueError(f'a picture of {tokens} embeddings has {length} positions')
    return Placing(parts, length, bool(item['causal']))


def _part(part: Any, images: Sequence[ImageEmbedding], model: Model) -> Part:
    if isinstance(part, str):
        return part
    spans: list[Span] = []
    for item in part:
        if 'image' in item:
            image = images[_whole(item['image'], 0, len(images))]
            spans.append(TileSpan(image, _whole(item['tile'], 0, len(image.tiles))))
        elif 'tokens' in item:
            spans.append(Tokens(tuple(_whole(v, 0, model.n_vocab) for v in item['tokens'])))
        elif 'control' in item:
            if item['control'] not in model.controls:
                raise ValueError(f'there is no control token {str(item["control"])[:40]!r}')
            spans.append(Control(item['control']))
        else:
            spans.append(Text('' + item['text']))
    return spans


def _whole(value: Any, low: int, end: int) -> int:
    if type(value) is not int or not low <= value < end:
        raise ValueError(f'{str(value)[:50]} is not a whole number from {low} to {end - 1}')
    return value
