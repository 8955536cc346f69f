"""
Where things are, in the forms in which models write it: boxes and points of an answer.

Knows the forms of InternVL, LocateAnything, Qwen-VL and Molmo, and what their numbers count:

* thousandths of the tile that shows the whole picture, as InternVL and newer Qwen models write
* hundredths, in ``<point>`` and ``<points>``, where no number of an answer is above 100
* pixels of the picture, where a number of the answer is above 1000

A model may write anything, so nothing here is an error: what is neither is passed over. Every
pattern is read in time that grows no faster than the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
import json
import math
import re
from typing import Any

from . import boxes
from ..image.resize import placed
from ..values import Box, Point

_NUMBER = r'\s{0,9}(-?[0-9]{1,9}(?:\.[0-9]{1,9})?)\s{0,9}'
#: (x1,y1),(x2,y2), as Qwen2-VL has it
_PAIRS = re.compile(rf'\({_NUMBER},{_NUMBER}\)\s{{0,9}},\s{{0,9}}\({_NUMBER},{_NUMBER}\)')
#: <box><1><2><3><4></box>, and of a point <box><1><2></box>, as LocateAnything has it
_ANGLED = re.compile(r'<box>((?:<[0-9]{1,4}>){2}(?:(?:<[0-9]{1,4}>){2})?)</box>')
#: an object of JSON that holds no other
_OBJECT = re.compile(r'\{[^{}]*\}')
_POINTS = re.compile(r'<points?\s([^<>]*)>(?:([^<>]*)</points?>)?')
_ATTRIBUTE = re.compile(r'\b([a-z]{1,9})([0-9]{0,4})\s{0,9}=\s{0,9}"([^"]*)"')
_MARK = re.compile(r'<\|?/?[a-z_]{1,20}\|?>')
_BOX_KEYS, _POINT_KEYS = ('bbox_2d', 'bbox'), ('point_2d', 'point')
_LABEL_KEYS = ('label', 'text_content', 'text', 'name')

THOUSAND, HUNDRED = 1000.0, 100.0


@dataclass(frozen=True)
class Frame:
    """
    The picture that an answer is about.

    :param width: of the original picture
    :param height: of the original picture
    :param tile_size: of the tile that shows it, in pixels
    :param fit: how it was brought to the shape of that tile
    """

    width: int
    height: int
    tile_size: int
    fit: str

    def place(self, x: float, y: float, scale: float) -> tuple[float, float]:
        """
        Give a place in pixels of the original picture, and not beyond it.

        :param scale: what the width of the tile is; 0: the numbers are pixels of the picture
        """
        if not scale:
            return (
                round(min(max(x, 0.0), float(self.width)), 2),
                round(min(max(y, 0.0), float(self.height)), 2),
            )
        side = self.tile_size
        left, top, across, down = placed(self.width, self.height, side, side, self.fit)
        x, y = (min(max(n, 0.0), scale) * boxes.SCALE / scale for n in (x, y))
        return (
            boxes.pixels(x, side, left, across, self.width),
            boxes.pixels(y, side, top, down, self.height),
        )


@dataclass(frozen=True)
class _Raw:
    """A box (four numbers) or a point (two), as it is written."""

    label: str
    numbers: tuple[float, ...]
    percent: bool = False


def read(
    answer: str, thing: str, frame: Frame, bare: bool
) -> tuple[tuple[Box, ...], tuple[Point, ...]]:
    """
    Read the boxes and the points of an answer; boxes without any area are left out.

    :param thing: what was asked for, the label of what has none
    :param bare: boxes were asked for, so numbers in brackets are such even without marks, which
        are control tokens and stand in no text
    """
    raw = [*_json(answer), *_points(answer), *_angled(answer), *_pairs(answer, bare)]
    largest = max((n for item in raw for n in item.numbers), default=0.0)
    pixels = largest > THOUSAND
    found: list[Box] = []
    points: list[Point] = []
    if bare or '<box>' in answer:
        sides = frame.width, frame.height, frame.tile_size, frame.fit
        text = _POINTS.sub('', _OBJECT.sub('', answer))  # read already
        found += boxes.find(text, thing, *sides)
    for item in raw:
        scale = 0.0 if pixels else THOUSAND
        if item.percent and largest <= HUNDRED:
            scale = HUNDRED
        n = item.numbers
        x, y = frame.place(n[0], n[1], scale)
        if len(n) == 2:
            points.append(Point(item.label or thing, x, y))
            continue
        other_x, other_y = frame.place(n[2], n[3], scale)
        x1, x2 = sorted((x, other_x))
        y1, y2 = sorted((y, other_y))
        if x1 < x2 and y1 < y2:
            found.append(Box(item.label or thing, x1, y1, x2, y2))
    return tuple(found), tuple(points)


def _json(answer: str) -> Iterator[_Raw]:
    """Read objects such as {"bbox_2d": [1, 2, 3, 4], "label": "dog"}."""
    for match in _OBJECT.finditer(answer):
        try:
            fields = json.loads(match[0])
        except (ValueError, RecursionError):
            continue
        label = next((fields[k] for k in _LABEL_KEYS if isinstance(fields.get(k), str)), '')
        for keys, count in ((_BOX_KEYS, 4), (_POINT_KEYS, 2)):
            for numbers in (fields[k] for k in keys if k in fields):
                if isinstance(numbers, list) and len(numbers) == count:
                    checked = [_finite(n) for n in numbers]
                    if None not in checked:
                        yield _Raw(label.strip(), tuple(n for n in checked if n is not None))


def _finite(value: Any) -> float | None:
    """Give a number of JSON that is one and of a size that pictures have."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) and abs(value) < 1e9 else None


def _points(answer: str) -> Iterator[_Raw]:
    """Read <point x="1" y="2" alt="dog">dog</point> and <points x1="1" y1="2" x2=...>."""
    for match in _POINTS.finditer(answer):
        values: dict[tuple[str, str], str] = {}
        for attribute in _ATTRIBUTE.finditer(match[1]):
            values[attribute[1], attribute[2]] = attribute[3]
        label = (match[2] or values.get(('alt', ''), '')).strip()
        for (name, number), text in values.items():
            if name == 'x' and ('y', number) in values:
                try:
                    numbers = float(text), float(values['y', number])
                except ValueError:
                    continue
                if all(math.isfinite(n) and abs(n) < 1e9 for n in numbers):
                    yield _Raw(label, numbers, percent=True)


def _angled(answer: str) -> Iterator[_Raw]:
    label, end = '', 0
    for match in _ANGLED.finditer(answer):
        label = _label(answer[end : match.start()]) or label
        end = match.end()
        yield _Raw(label, tuple(map(float, match[1][1:-1].split('><'))))


def _pairs(answer: str, bare: bool) -> Iterator[_Raw]:
    if not bare and '<|box_start|>' not in answer:
        return
    label, end = '', 0
    for match in _PAIRS.finditer(answer):
        label = _label(answer[end : match.start()]) or label
        end = match.end()
        yield _Raw(label, tuple(map(float, match.groups())))


def _label(text: str) -> str:
    """Find the label in what stands before numbers: what is nearest to them."""
    return _MARK.sub(' ', text).strip(boxes.JOINTS).rpartition('\n')[2].strip(boxes.JOINTS)
