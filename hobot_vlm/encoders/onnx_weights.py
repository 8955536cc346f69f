"""
Which other files an ONNX file takes its weights from.

ONNX Runtime up to 1.23, the newest for Python 3.10, opens whatever path stands there, so a model
from a stranger could read any file of the robot. This file knows just as much of protobuf, the
format of ONNX files, as finding those paths takes.
"""

from __future__ import annotations

from collections.abc import Iterator
import mmap
from pathlib import Path, PurePosixPath

#: For each kind of message, the numbers of the fields that lead to paths, and what is in them.
FIELDS = {
    'model': {7: 'graph', 20: 'training', 25: 'function'},
    'training': {1: 'graph', 2: 'graph'},
    'function': {7: 'node', 11: 'attribute'},
    'graph': {1: 'node', 5: 'tensor', 15: 'sparse tensor'},
    'node': {5: 'attribute'},
    'attribute': {
        5: 'tensor',
        6: 'graph',
        10: 'tensor',
        11: 'graph',
        22: 'sparse tensor',
        23: 'sparse tensor',
    },
    'sparse tensor': {1: 'tensor', 2: 'tensor'},
    'tensor': {13: 'external data'},
}


def outside_paths(path: Path) -> list[str]:
    """
    Give the paths of weights that lead out of the file's folder.

    :raises ValueError: it is no ONNX file, or cut short
    """
    return [
        text
        for text in external_paths(path)
        if PurePosixPath(text).is_absolute() or '..' in PurePosixPath(text).parts
    ]


def weights_beside(path: Path) -> list[Path]:
    """
    Give the files beside a model file that it takes weights from; of an ONNX file alone.

    :raises ValueError: it is a damaged ONNX file
    """
    if path.suffix.lower() != '.onnx':
        return []
    return [path.parent / name for name in external_paths(path)]


def external_paths(path: Path) -> list[str]:
    """
    Give the paths of weights that lie outside the file, each once, relative to its folder.

    :raises ValueError: it is no ONNX file, or cut short
    """
    with path.open('rb') as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    found = []
    messages = [('model', data)]
    while messages:
        kind, message = messages.pop()
        if kind == 'external data':  # a key and its value
            entry = dict(_fields(message))
            if bytes(entry.get(1, b'')) == b'location':
                found.append(bytes(entry.get(2, b'')).decode('utf-8', 'replace'))
            continue
        for number, content in _fields(message):
            inside = FIELDS[kind].get(number)
            if inside:
                messages.append((inside, content))
    return list(dict.fromkeys(found))


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Give number and content of the fields that have a length; the others are single numbers."""
    at = 0
    while at < len(message):
        tag, at = _number(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            _, at = _number(message, at)
        elif kind == 1:
            at += 8
        elif kind == 5:
            at += 4
        elif kind == 2:
            size, at = _number(message, at)
            if at + size <= len(message):
                yield number, message[at : at + size]
            at += size
        else:
            raise ValueError(f'a field of kind {kind}')
    if at > len(message):
        raise ValueError('a field that is longer than its message')


def _number(message: memoryview, at: int) -> tuple[int, int]:
    """Read a number of seven bits to the byte, and give where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError('a number that does not end')
