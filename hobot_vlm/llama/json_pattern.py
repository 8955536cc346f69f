"""
Regular expressions of JSON schemas, from the notation of the standard to llguidance's.

The standard means those of ECMAScript, llguidance reads those of Rust. They differ within
brackets; and llguidance lets quotes and backslashes through where brackets allow every control
character but not them, which is why none may allow all 32: the zero character is left out.
Knows nothing of schemas.
"""

from __future__ import annotations

import re

#: \\p{Greek}, \\PL: a class of its own
_PROPERTY = re.compile(r'\\[pP](?:\{[^}]*\}|.)', re.DOTALL)
#: the zero character, written in one of the ways of either notation
_ZERO = re.compile(r'\0|\\0|\\x00|\\u0000|\\[xu]\{0+\}')
#: what Rust reads as an operation between classes, and as the name of one
_OPERATION = re.compile(r'&&|--|~~|\[:')
_ESCAPED_OR_BRACKET = re.compile(r'\\.|\[', re.DOTALL)
_NOT_ZERO = r'[^\x00]'


def llguidance_pattern(pattern: str) -> str:
    """
    Give a pattern in Rust's notation, without the zero character.

    :raises ValueError: it cannot mean the same there
    """
    pieces: list[str] = []
    at = 0
    while at < len(pattern):
        if found := _PROPERTY.match(pattern, at):
            pieces.append(f'[{found.group()}&&{_NOT_ZERO}]')
            at = found.end()
        elif pattern[at] == '[':
            end = _end_of_class(pattern, at)
            pieces.append(_class(pattern[at + 1 : end]))
            at = end + 1
        elif found := _ZERO.match(pattern, at):
            raise ValueError('the zero character cannot be asked for')
        else:
            width = 2 if pattern[at] == '\\' else 1
            pieces.append(pattern[at : at + width])
            at += width
    return ''.join(pieces)


def _end_of_class(pattern: str, start: int) -> int:
    at = start + 1
    while at < len(pattern) and pattern[at] != ']':
        at += 2 if pattern[at] == '\\' else 1
    if at >= len(pattern):
        raise ValueError('a bracket is not closed')
    return at


def _class(inside: str) -> str:
    """Give a class in Rust's notation; ``inside`` is what stands between its brackets."""
    if _OPERATION.search(inside):
        raise ValueError(
            'within brackets, &&, --, ~~ and [: mean one thing to some and another to others: '
            'put a backslash in front of their characters'
        )
    negated = inside.startswith('^')
    members = inside[negated:]
    if not members:
        raise ValueError('to some [] and [^] are whole, to others ] is a member: write [\\s\\S]')
    # ECMAScript knows no class within a class; a backslash is followed by what it escapes
    members = _ESCAPED_OR_BRACKET.sub(lambda m: r'\[' if m.group() == '[' else m.group(), members)
    if negated:
        return rf'[^\x00{members}]'
    return f'[{members}&&{_NOT_ZERO}]'
