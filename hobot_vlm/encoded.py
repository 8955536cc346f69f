"""
An encoded picture: the embeddings that a language model reads, and their form between machines.

What comes from another machine may be anything, so it is checked before it is used: it is JSON and
numbers, and nothing in it is run. Knows no encoder, no decoder and no ROS.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
import hashlib
import json
import reprlib
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ModelMismatch, PictureError

#: version of the form; another one is refused
VERSION = 1

#: number formats on the way; float16 has more digits, bfloat16 the range of float32
DTYPES = ('float16', 'bfloat16')

#: characters of a header: 65 tiles take a quarter of it
MOST_HEADER = 4096
#: tiles of a picture: the most of ``max_tiles``, and the overview
MOST_TILES = 65
#: embeddings of a tile, and their width; powers of two above what any model has
MOST_TOKENS = MOST_EMBD = 1 << 16
#: the side of the largest picture that is read, as a JPEG has it
MOST_PIXELS = 65535
#: characters of a name
MOST_NAME = 200

Array = npt.NDArray[np.float32]

quote = reprlib.Repr()  # a message is not to carry all that somebody sent
quote.maxstring = quote.maxother = 60


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """
    A picture as a language model reads it; two are equal where their embeddings are.

    :param family: of the model, as in ``families.FAMILIES``
    :param encoder: what made it: name and hash of the file
    :param tiles: float32 (tokens, n_embd) of each tile, C order, the overview last
    :param rows: rows of the grid of tiles; 0 where the overview is the only tile
    :param columns: columns of the grid
    :param overview: whether the last tile shows the whole picture
    :param tile_size: width and height of a tile in pixels
    :param fit: how the picture was brought to the shape of a tile
    :param size: (width, height) of the picture in pixels, before it was cut
    :param key: 16 bytes, hash of the picture and of how it was cut
    """

    family: str
    encoder: str
    tiles: tuple[Array, ...]
    rows: int
    columns: int
    overview: bool
    tile_size: int
    fit: str
    size: tuple[int, int]
    key: bytes

    @property
    def n_embd(self) -> int:
        """Give the width of its embeddings."""
        return int(self.tiles[0].shape[1])

    @cached_property
    def digest(self) -> bytes:
        """Hash all that the language model sees of it."""
        layout = f'{self.family} {self.rows} {self.columns} {self.overview} {self.size}'
        digest = hashlib.sha256(layout.encode())
        for tile in self.tiles:
            digest.update(np.ascontiguousarray(tile).data)
        return digest.digest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EncodedImage) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    # -- between machines --------------------------------------------------------------------

    def pack(self, dtype: str = 'float16') -> tuple[str, bytes]:
        """
        Give it in two parts: a header in JSON, and the numbers, little endian.

        :param dtype: one of ``DTYPES``
        :raises PictureError: an embedding is beyond the range of float16
        """
        numbers = np.concatenate(self.tiles)
        if dtype == 'float16':
            with np.errstate(over='ignore'):
                packed = numbers.astype('<f2')
            if not np.isfinite(packed).all():
                raise PictureError(
                    f'{self.encoder} gives embeddings up to {np.abs(numbers).max():g}, and '
                    'float16 ends at 65504: set embedding_dtype to bfloat16'
                )
        else:
            packed = _to_bfloat16(numbers)
        header = {
            'hobot_vlm': VERSION,
            'family': self.family,
            'encoder': self.encoder,
            'rows': self.rows,
            'columns': self.columns,
            'overview': self.overview,
            'tokens': [len(tile) for tile in self.tiles],
            'n_embd': self.n_embd,
            'dtype': dtype,
            'tile_size': self.tile_size,
            'fit': self.fit,
            'size': list(self.size),
            'hash': self.key.hex(),
        }
        return json.dumps(header, separators=(',', ':')), packed.tobytes()

    @classmethod
    def unpack(cls, header: str, data: bytes | bytearray | memoryview | Any) -> EncodedImage:
        """
        Read what :meth:`pack` gave.

        :param data: anything with the buffer interface
        :raises PictureError: it is none, contradicts itself, or holds numbers that are not finite
        :raises ModelMismatch: it has another version of the form
        """
        fields = _read(header)
        tokens = fields['tokens']
        if not isinstance(tokens, list) or not 1 <= len(tokens) <= MOST_TILES:
            raise _wrong('tokens', tokens, f'those of 1 to {MOST_TILES} tiles')
        for each in tokens:
            _whole('tokens', each, 1, MOST_TOKENS)
        n_embd = _whole('n_embd', fields['n_embd'], 1, MOST_EMBD)
        rows = _whole('rows', fields['rows'], 0, MOST_TILES)
        columns = _whole('columns', fields['columns'], 0, MOST_TILES)
        overview = fields['overview']
        if not isinstance(overview, bool) or rows * columns + overview != len(tokens):
            raise PictureError(
                f'an embedding says that it is a grid of {rows} x {columns} '
                f'{"with" if overview else "without"} overview, of {len(tokens)} tiles: these '
                'contradict each other'
            )
        size = fields['size']
        if not isinstance(size, list) or len(size) != 2:
            raise _wrong('size', size, 'width and height')
        width, height = (_whole('size', each, 1, MOST_PIXELS) for each in size)
        dtype = fields['dtype']
        if dtype not in DTYPES:
            raise _wrong('dtype', dtype, ' or '.join(DTYPES))
        raw = np.frombuffer(data, np.uint8)
        if raw.size != 2 * n_embd * sum(tokens):
            raise PictureError(
                f'an embedding has {raw.size} bytes of numbers, and says that it is '
                f'{sum(tokens)} x {n_embd} {dtype}, which are {2 * n_embd * sum(tokens)}: it was '
                'cut on the way, or is something else'
            )
        if dtype == 'float16':
            numbers = raw.view('<f2').astype(np.float32)
        else:
            numbers = _from_bfloat16(raw.view('<u2'))
        if not np.isfinite(numbers).all():
            raise PictureError(
                'an embedding holds numbers that are not finite: encode the picture anew'
            )
        ends = np.cumsum(tokens)[:-1]
        return cls(
            _name('family', fields['family']),
            _name('encoder', fields['encoder']),
            tuple(np.split(numbers.reshape(-1, n_embd), ends)),
            rows,
            columns,
            overview,
            _whole('tile_size', fields['tile_size'], 1, MOST_PIXELS),
            _name('fit', fields['fit']),
            (width, height),
            _key(fields['hash']),
        )


def is_encoded(header: str) -> bool:
    """Whether this is the header of an encoded picture, and not the name of an image format."""
    return header.startswith('{"hobot_vlm":')


def _read(header: str) -> dict[str, Any]:
    """Read the JSON of a header, and see that it has each field."""
    if not is_encoded(header) or len(header) > MOST_HEADER:
        raise PictureError(
            f'a message of format {quote.repr(header)} is no embedding: expected what '
            '`ros2 run hobot_vlm encode` publishes'
        )
    try:
        fields = json.loads(header)
    except (ValueError, RecursionError) as exc:
        raise PictureError(f'the header of an embedding is no JSON: {str(exc)[:100]}') from exc
    version = fields['hobot_vlm']
    if version != VERSION:
        raise ModelMismatch(
            f'the embedding is of version {quote.repr(version)}, and this hobot_vlm reads version '
            f'{VERSION}: install the same hobot_vlm on both machines'
        )
    missing = [name for name in _FIELDS if name not in fields]
    if missing:
        raise PictureError(f'the header of an embedding lacks {", ".join(missing)}')
    return dict(fields)


_FIELDS = (
    *('family', 'encoder', 'rows', 'columns', 'overview', 'tokens', 'n_embd', 'dtype'),
    *('tile_size', 'fit', 'size', 'hash'),
)


def _whole(name: str, value: object, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _wrong(name, value, f'a whole number from {low} to {high}')
    return value


def _name(name: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > MOST_NAME or not value.isprintable():
        raise _wrong(name, value, f'a name of at most {MOST_NAME} characters')
    return value


def _key(value: object) -> bytes:
    try:
        key = bytes.fromhex(value) if isinstance(value, str) else b''
    except ValueError:
        key = b''
    if len(key) != 16:
        raise _wrong('hash', value, '32 hexadecimal digits')
    return key


def _wrong(name: str, value: object, expected: str) -> PictureError:
    return PictureError(
        f'the header of an embedding says that {name} is {quote.repr(value)}: expected {expected}'
    )


def _to_bfloat16(numbers: Array) -> npt.NDArray[np.uint16]:
    """Round to the nearest, ties to even; NumPy has no such type."""
    bits = np.ascontiguousarray(numbers).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype('<u2')


def _from_bfloat16(packed: npt.NDArray[np.uint16]) -> Array:
    return (packed.astype(np.uint32) << 16).view(np.float32)
