"""
The body of an answer -> its JSON objects: server-sent events, or one object that is not streamed.

Bounded in memory whatever comes. Knows bytes and JSON; nothing of what the objects mean.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
import json
from typing import Any

from .trouble import shortened, Trouble

Event = dict[str, Any]

#: bytes of one event, or of an answer that is not streamed: twenty likeliest tokens in each of a
#: thousand places fit
MOST_EVENT = 4 << 20
#: bytes after the last event that are read, so that the connection can be used again
MOST_REST = 1 << 16

#: what stands for ``[DONE]`` among the objects; compared by identity
END: Event = {}


async def events(pieces: AsyncIterator[bytes], streamed: bool) -> AsyncGenerator[Event, None]:
    """
    Give the objects of a body as they come, and ``END`` where a server says so.

    :param streamed: it is server-sent events; else one object
    :raises Trouble: it is no JSON, or larger than ``MOST_EVENT``
    """
    if not streamed:
        body = bytearray()
        async for piece in pieces:
            body += piece
            _check(len(body))
        yield _parsed(bytes(body))
        yield END
        return
    async with aclosing(_streamed(pieces)) as found:
        async for event in found:
            yield event
            if event is END:
                break
    rest = 0
    async for piece in pieces:
        rest += len(piece)
        if rest > MOST_REST:
            break


async def _streamed(pieces: AsyncIterator[bytes]) -> AsyncGenerator[Event, None]:
    buffer = bytearray()
    begun: list[bytes] = []  # data of an event that no line held whole
    size = 0
    async for piece in pieces:
        buffer += piece
        if b'\n' in piece:
            *lines, rest = bytes(buffer).replace(b'\r\n', b'\n').split(b'\n')
            buffer = bytearray(rest)
        else:
            lines = []
        _check(len(buffer))
        for line in lines:
            if not line and begun:
                yield _parsed(b'\n'.join(begun))
                begun, size = [], 0
            data = _data(line)
            if not data:
                continue
            whole = None if begun else _event(data)
            if whole is not None:
                yield whole
            else:
                begun.append(data)
                size += len(data)
                _check(size)
    last = _event(_data(bytes(buffer)))  # the line end may be missing; what is cut is no event
    if last is not None and not begun:
        yield last


def _data(line: bytes) -> bytes:
    """Give what a line says; empty for a comment, and for fields that say nothing here."""
    if line.startswith(b'data:'):
        return line[5:].strip()
    return line.strip() if line.lstrip().startswith(b'{') else b''  # LMDeploy names errors so


def _event(data: bytes) -> Event | None:
    """Give what stands in one line; None where it is not whole."""
    if data == b'[DONE]':
        return END
    try:
        found = json.loads(data.decode('utf-8', 'replace'))
    except (ValueError, RecursionError):
        return None
    return _object(found)


def _parsed(data: bytes) -> Event:
    try:
        found = json.loads(data.decode('utf-8', 'replace'))
    except (ValueError, RecursionError) as exc:
        what = shortened(data[:80].decode('utf-8', 'replace'))
        raise Trouble(f'sends what is no JSON: {what!r}', again=True) from exc
    return _object(found)


def _object(found: Any) -> Event:
    if not isinstance(found, dict):
        raise Trouble(f'sends {type(found).__name__} where an object belongs', again=True)
    return found


def _check(size: int) -> None:
    if size > MOST_EVENT:
        raise Trouble(f'sends an event of more than {MOST_EVENT >> 20} MB', again=True)
