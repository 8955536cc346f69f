"""
The header of a GGUF file: its metadata, and where its tensors lie.

Plain reading with checks, so that a damaged file becomes an error and never a crash in C. Nothing
here knows what a model is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
import struct
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..errors import ModelFileError

MAGIC = b'GGUF'
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9

#: number of a value type -> struct format
SCALARS = {
    0: '<B',
    1: '<b',
    2: '<H',
    3: '<h',
    4: '<I',
    5: '<i',
    6: '<f',
    7: '<?',
    10: '<Q',
    11: '<q',
    12: '<d',
}

#: number of a tensor type -> (elements, bytes) of a block; those that encoders come in
BLOCKS = {
    0: (1, 4),
    1: (1, 2),
    2: (32, 18),
    3: (32, 20),
    6: (32, 22),
    7: (32, 24),
    8: (32, 34),
    10: (256, 84),
    11: (256, 110),
    12: (256, 144),
    13: (256, 176),
    14: (256, 210),
    30: (1, 2),
}
F32, F16 = 0, 1


@dataclass(frozen=True)
class TensorInfo:
    """
    Where a tensor lies.

    :param shape: as numpy has it, the fastest axis last
    :param offset: from the start of the file, in bytes
    """

    shape: tuple[int, ...]
    kind: int
    offset: int

    @property
    def size(self) -> int:
        """Bytes that it takes; 0 where its type is not known here."""
        elements, size = BLOCKS.get(self.kind, (1, 0))
        return int(np.prod(self.shape, dtype=object)) // elements * size


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says about itself."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """
        Read a tensor of plain numbers.

        :raises ModelFileError: it is quantised
        """
        info = self.tensors[name]
        if info.kind not in (F32, F16):
            raise ModelFileError(
                self.path,
                f'{name} is quantised (type {info.kind}); expected '
                'float32 or float16: convert the model anew',
            )
        with self.path.open('rb') as file:
            file.seek(info.offset)
            data = file.read(info.size)
        dtype = '<f4' if info.kind == F32 else '<f2'
        return np.frombuffer(data, dtype).astype(np.float32).reshape(info.shape)


class _Damaged(Exception):
    """The file says something that cannot be."""


def read_gguf(path: Path) -> GgufHeader:
    """
    Read the header and check that the file holds all of its tensors.

    :raises ModelFileError: no GGUF file, an unknown version, damaged or cut short
    """
    try:
        size = path.stat().st_size
        with path.open('rb') as file:
            magic = file.read(4)
            if magic != MAGIC:
                raise ModelFileError(
                    path, f'it starts with {magic!r} instead of GGUF; expected a file of llama.cpp'
                )
            metadata, tensors = _Reader(file, size).header()
    except OSError as exc:
        raise ModelFileError(path, f'it cannot be read ({exc.strerror})') from exc
    except (_Damaged, struct.error, UnicodeDecodeError, KeyError) as exc:
        raise ModelFileError(path, f'it is damaged or cut short ({exc}); fetch it again') from exc
    end = max((info.offset + info.size for info in tensors.values()), default=0)
    if end > size:
        raise ModelFileError(
            path, f'it is cut short: {size} of at least {end} bytes are there; fetch it again'
        )
    return GgufHeader(path, metadata, tensors)


class _Reader:
    def __init__(self, file: BinaryIO, size: int):
        self.file = file
        self.size = size

    def header(self) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
        version = self.number('<I')
        if version not in VERSIONS:
            raise _Damaged(f'version {version}, expected 2 or 3')
        n_tensors, n_values = self.count(), self.count()
        metadata: dict[str, Any] = {}
        for _ in range(n_values):
            key = self.text()
            metadata[key] = self.value(self.number('<I'))
        found = []
        for _ in range(n_tensors):
            name = self.text()
            shape = tuple(self.number('<Q') for _ in range(self.number('<I')))[::-1]
            found.append((name, shape, self.number('<I'), self.number('<Q')))
        alignment = int(metadata.get('general.alignment', 32)) or 32
        start = -(-self.file.tell() // alignment) * alignment
        return metadata, {
            name: TensorInfo(shape, kind, start + offset) for name, shape, kind, offset in found
        }

    def take(self, n: int) -> bytes:
        data = self.file.read(n) if n <= self.size else b''
        if len(data) != n:
            raise _Damaged(f'it ends before byte {self.file.tell() + n}')
        return data

    def number(self, kind: str) -> Any:
        return struct.unpack(kind, self.take(struct.calcsize(kind)))[0]

    def count(self) -> int:
        n: int = self.number('<Q')
        if n > self.size:  # each thing counted takes a byte or more
            raise _Damaged(f'it claims to hold {n} things')
        return n

    def text(self) -> str:
        return self.take(self.count()).decode()

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.number(SCALARS[kind])
        item, n = self.number('<I'), self.count()
        if item in SCALARS:
            form = SCALARS[item]
            return list(struct.unpack(f'<{n}{form[1]}', self.take(n * struct.calcsize(form))))
        return [self.value(item) for _ in range(n)]
