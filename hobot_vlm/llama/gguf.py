"""
The header of a GGUF model: its metadata, and where its tensors lie.

A model may be split into several files (``NAME-00001-of-00003.gguf``), which are one model
everywhere. Plain reading with checks and bounds, so that a damaged file becomes an error soon, and
never a crash in C. Nothing here knows what a model is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import hashlib
import math
import os
from pathlib import Path
import re
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

# What a header may hold, far above what any model has: the format's own limit for names, ggml's
# for axes, and a vocabulary of ten times the largest known.
MOST_NAME = 65535
MOST_AXES = 4
MOST_VALUES = 1 << 16
MOST_TENSORS = 1 << 17
MOST_ITEMS = 1 << 22
MOST_TEXT = 1 << 24
MOST_ALIGNMENT = 1 << 16
MOST_PARTS = 1000

PART = re.compile(r'(.*)-(\d{5})-of-(\d{5})\.gguf')

#: read of a large file to know it again: its head, and blocks that lie evenly in the rest
HEAD, SAMPLES, SAMPLE = 1 << 20, 256, 1 << 14


def parts(path: Path) -> list[Path]:
    """
    Give all files of a model, in order: one, or those of a split; llama.cpp is given the first.

    :param path: any of them
    :raises ModelFileError: one of them is missing
    """
    found = PART.fullmatch(path.name)
    if not found:
        return [path]
    stem, count = found[1], int(found[3])
    if not 1 <= int(found[2]) <= count <= MOST_PARTS:
        raise ModelFileError(
            path, f'its name says part {int(found[2])} of {count}; expected 1 to {MOST_PARTS}'
        )
    files = [path.with_name(part_name(stem, i + 1, count)) for i in range(count)]
    for file in files:
        if not file.is_file():
            raise ModelFileError(
                path, f'it is one of {count} parts, and {file.name} is missing: put it beside it'
            )
    return files


def part_name(stem: str, number: int, count: int) -> str:
    """Name a part of a split as llama.cpp does; numbers count from 1."""
    return f'{stem}-{number:05}-of-{count:05}.gguf'


def identity(path: Path, beside: Sequence[Path] = ()) -> str:
    """
    Hash the sizes of a model's files, their heads and a sample of the rest: quick for gigabytes.

    Any file will do; those of a split count together.

    :param beside: files that it takes weights from
    :raises ModelFileError: a part of a split is missing
    :raises OSError: it cannot be read
    """
    files = [*parts(path), *beside]
    if len(files) == 1:
        return _sampled(path)
    return hashlib.sha256(' '.join(map(_sampled, files)).encode()).hexdigest()


def _sampled(path: Path) -> str:
    with path.open('rb') as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(str(size).encode())
        if size <= HEAD + SAMPLES * SAMPLE:
            digest.update(file.read())
            return digest.hexdigest()
        digest.update(file.read(HEAD))
        for i in range(SAMPLES):
            file.seek(HEAD + (size - HEAD - SAMPLE) * i // (SAMPLES - 1))
            digest.update(file.read(SAMPLE))
    return digest.hexdigest()


@dataclass(frozen=True)
class TensorInfo:
    """
    Where a tensor lies.

    :param shape: as numpy has it, the fastest axis last
    :param offset: from the start of the file, in bytes
    :param path: of the file
    """

    shape: tuple[int, ...]
    kind: int
    offset: int
    path: Path

    @property
    def size(self) -> int:
        """Bytes that it takes; 0 where its type is not known here."""
        elements, size = BLOCKS.get(self.kind, (1, 0))
        return math.prod(self.shape) // elements * size


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF model says about itself."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """
        Read a tensor of plain numbers.

        :raises ModelFileError: there is none, or it is quantised
        """
        info = self.tensors.get(name)
        if info is None:
            raise ModelFileError(
                self.path, f'it has no tensor {name}: fetch it again, or convert the model anew'
            )
        if info.kind not in (F32, F16):
            raise ModelFileError(
                self.path,
                f'{name} is quantised (type {info.kind}); expected '
                'float32 or float16: convert the model anew',
            )
        with info.path.open('rb') as file:
            file.seek(info.offset)
            data = file.read(info.size)
        dtype = '<f4' if info.kind == F32 else '<f2'
        return np.frombuffer(data, dtype).astype(np.float32).reshape(info.shape)


class _Damaged(Exception):
    """The file says something that cannot be."""


def read_gguf(path: Path) -> GgufHeader:
    """
    Read the header, or those of all parts, and check that the files hold all of their tensors.

    :raises ModelFileError: no GGUF file, an unknown version, damaged or cut short
    """
    files = parts(path)
    metadata: dict[str, Any] = {}
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        own_metadata, own_tensors = _read_one(file)
        count = own_metadata.get('split.count', 1)
        if count not in (0, 1, len(files)):
            raise ModelFileError(
                file,
                f'it is one of {count!r:.20} parts, which are found by their names: expected '
                f'{part_name("NAME", 1, 3)} and so on; rename it as it was',
            )
        metadata = {**own_metadata, **metadata}  # the first part speaks for all
        tensors.update(own_tensors)
    return GgufHeader(path, metadata, tensors)


def _read_one(path: Path) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    try:
        size = path.stat().st_size
        with path.open('rb') as file:
            magic = file.read(4)
            if magic != MAGIC:
                raise ModelFileError(
                    path, f'it starts with {magic!r} instead of GGUF; expected a file of llama.cpp'
                )
            metadata, tensors = _Reader(file, size, path).header()
    except OSError as exc:
        raise ModelFileError(path, f'it cannot be read ({exc.strerror})') from exc
    except (_Damaged, struct.error, UnicodeDecodeError) as exc:
        raise ModelFileError(
            path, f'it is damaged or cut short ({str(exc)[:200]}); fetch it again'
        ) from exc
    end = max((info.offset + info.size for info in tensors.values()), default=0)
    if end > size:
        raise ModelFileError(
            path, f'it is cut short: {size} of at least {end} bytes are there; fetch it again'
        )
    return metadata, tensors


class _Reader:
    def __init__(self, file: BinaryIO, size: int, path: Path):
        self.file = file
        self.size = size
        self.path = path

    def header(self) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
        version = self.number('<I')
        if version not in VERSIONS:
            raise _Damaged(f'version {version}, expected 2 or 3')
        n_tensors = self.count(MOST_TENSORS, 'tensors')
        n_values = self.count(MOST_VALUES, 'values')
        metadata: dict[str, Any] = {}
        for _ in range(n_values):
            key = self.text(MOST_NAME)
            metadata[key] = self.value(self.number('<I'))
        found = []
        for _ in range(n_tensors):
            name = self.text(MOST_NAME)
            axes = self.number('<I')
            if axes > MOST_AXES:
                raise _Damaged(f'a tensor of {axes} axes')
            shape = tuple(self.number('<Q') for _ in range(axes))[::-1]
            found.append((name, shape, self.number('<I'), self.number('<Q')))
        alignment = metadata.get('general.alignment', 32)
        if type(alignment) is not int or not 0 < alignment <= MOST_ALIGNMENT:
            raise _Damaged(f'its alignment is {alignment!r:.20}')
        start = -(-self.file.tell() // alignment) * alignment
        return metadata, {
            name: TensorInfo(shape, kind, start + offset, self.path)
            for name, shape, kind, offset in found
        }

    def bytes(self, n: int) -> bytes:
        data = self.file.read(n) if n <= self.size else b''
        if len(data) != n:
            raise _Damaged(f'it ends before byte {self.file.tell() + n}')
        return data

    def number(self, kind: str) -> Any:
        return struct.unpack(kind, self.bytes(struct.calcsize(kind)))[0]

    def count(self, most: int, things: str) -> int:
        n: int = self.number('<Q')
        if n > min(self.size, most):  # each thing counted takes a byte or more
            raise _Damaged(f'it claims to hold {n} {things}')
        return n

    def text(self, most: int = MOST_TEXT) -> str:
        return self.bytes(self.count(most, 'bytes of text')).decode()

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind != ARRAY:
            raise _Damaged(f'a value of the unknown type {kind}')
        item, n = self.number('<I'), self.count(MOST_ITEMS, 'items')
        if item in SCALARS:
            form = SCALARS[item]
            return list(struct.unpack(f'<{n}{form[1]}', self.bytes(n * struct.calcsize(form))))
        if item != STRING:  # llama.cpp knows no arrays of arrays either
            raise _Damaged(f'an array of the unknown type {item}')
        return [self.text() for _ in range(n)]
