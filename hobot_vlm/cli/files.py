"""
Files as people give them: typed, quoted, or dropped onto the terminal.

Knows how terminals and file managers write paths; reads no file.
"""

from __future__ import annotations

import os
import re
import shlex
from urllib.parse import unquote, urlsplit

PICTURES = (
    '.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.ppm', '.pgm', '.jp2',
    '.avif',
)  # fmt: skip
VIDEOS = (
    '.mp4', '.m4v', '.mov', '.avi', '.mkv', '.webm', '.mpg', '.mpeg', '.ts', '.flv', '.wmv',
    '.3gp',
)  # fmt: skip


def to_path(word: str) -> str:
    """Give the path that a word stands for: ``~`` is the home, ``file://`` what it says."""
    if word.startswith('file://'):
        return unquote(urlsplit(word).path)
    return os.path.expanduser(word)


def is_picture(word: str) -> bool:
    """Tell whether a word is an existing picture or video file, by its name."""
    return has_picture_name(word) and os.path.isfile(to_path(word))


def has_picture_name(word: str) -> bool:
    """Tell whether a word ends as names of picture and video files do."""
    return to_path(word).lower().endswith(PICTURES + VIDEOS)


def missing(path: str) -> bool:
    """Tell whether a path leads nowhere; addresses are for others to follow."""
    return not path.startswith('data:') and '://' not in path and not os.path.exists(path)


def seems_file(word: str) -> bool:
    """Tell whether a word is a file or an address, or is meant to be one, and no question."""
    if word.startswith('data:image/') or os.path.isfile(to_path(word)):
        return True
    if re.search(r'\s', word):
        return False
    return word.lower().endswith(PICTURES + VIDEOS) or bool(
        re.match(r'~?/|\.\.?/|file://|https?://', word)
    )


def words_of(line: str) -> list[str]:
    """Give the words of a line; quotes and backslashes keep one together."""
    try:
        return shlex.split(line)
    except ValueError:  # a quote without its other one
        return line.split()


def paths_of(text: str) -> list[str]:
    """
    Give the paths in a text that holds nothing else.

    A path with blanks is one also without quotes, where it exists.
    """
    whole = to_path(text.strip())
    if os.path.exists(whole):
        return [whole]
    return [to_path(word) for word in words_of(text)]


def path_of(text: str) -> str:
    """Give the one path that a text is, quoted or not."""
    words = words_of(text)
    return to_path(words[0] if len(words) == 1 else text.strip())


def dropped(line: str) -> tuple[list[str], str]:
    """
    Give the pictures that were dropped before or behind a question, and the question.

    :return: no pictures, and the line as it is, where there are none
    """
    if os.path.isfile(to_path(line)) and is_picture(line):
        return [to_path(line)], ''
    pieces = _pieces(line)
    first, last = 0, len(pieces)
    while first < last and is_picture(_plain(pieces[first])):
        first += 1
    while first < last and is_picture(_plain(pieces[last - 1])):
        last -= 1
    found = [to_path(_plain(piece)) for piece in pieces[:first] + pieces[last:]]
    return (found, ' '.join(pieces[first:last])) if found else ([], line)


def _pieces(line: str) -> list[str]:
    """Cut a line at blanks that are neither quoted nor escaped; keep quotes and backslashes."""
    return re.findall(r"""(?:'[^']*'|"[^"]*"|\\.|[^\s\\])+""", line)


def _plain(piece: str) -> str:
    words = words_of(piece)
    return words[0] if len(words) == 1 else piece
