"""
Detection: how to ask where a thing is, and how to read the boxes of the answer.

InternVL answers with ``<ref>label</ref><box>[[x1, y1, x2, y2], ...]</box>`` in thousandths of the
tile that shows the whole picture. Its marks are control tokens, so they stand in no text: what is
left is a label and numbers in brackets. A model may write anything, so nothing here is an error:
what is no box is passed over.
"""

from __future__ import annotations

from collections.abc import Collection
import re

from ..image.resize import placed
from ..values import Box, Control, Part, Span, Text

QUESTION = 'Please provide the bounding box coordinate of the region this sentence describes: '
MARKS = ('<ref>', '</ref>')
#: coordinates run from 0 to this
SCALE = 1000

_NUMBER = r'\s*(-?[0-9]+(?:\.[0-9]+)?)\s*'
_BOX = re.compile(r'\[' + ','.join([_NUMBER] * 4) + r'\]')
_MARK = re.compile(r'</?(?:ref|box)>')
_REF = re.compile(r'<ref>([^<]*)</ref>')
#: what may stand between a label and its boxes
JOINTS = ' \t\r\n,.;:、，。；：[]'


#: task -> what is asked, where it is not InternVL's question for boxes. The names are those of
#: hobot_locateanything, the form of points is the one that Qwen-VL was taught
TASKS = {
    '/detect': '',
    '/ground': '',
    '/point': 'Point to every {} in the picture. Answer with a JSON list of objects such as '
    '{{"point_2d": [x, y], "label": "..."}}, with coordinates from 0 to 1000.',
    '/text': 'Read all the text in the picture.',
}


def task(prompt: str) -> tuple[str, str]:
    """Tell a task from what it is about: ``/point dog``; without one, it is to detect a thing."""
    name, _, rest = prompt.strip().partition(' ')
    return (name, rest.strip()) if name in TASKS else ('/detect', prompt)


def question(prompt: str, controls: Collection[str]) -> Part:
    """
    Ask where a thing is, in the words that InternVL was taught; or what else a task says.

    :param prompt: a thing, or a task and the thing: several, with commas between them, for detect
    :param controls: control tokens of the model; marks that it lacks are written as text
    """
    name, thing = task(prompt)
    if TASKS[name]:
        return TASKS[name].format(thing)
    opening, closing = (Control(mark) if mark in controls else Text(mark) for mark in MARKS)
    several = prompt.startswith(name) and name == '/detect'
    things = [part.strip() for part in thing.split(',')] if several else [thing]
    spans: list[Span] = [Text(QUESTION)]
    for number, part in enumerate(things):
        spans += [*([Text(', ')] if number else []), opening, Text(part), closing]
    return spans


def find(
    answer: str, thing: str, width: int, height: int, tile_size: int, fit: str
) -> tuple[Box, ...]:
    """
    Read the boxes of an answer; those without any area in the picture are left out.

    :param thing: what was asked for, the label of boxes that have none
    :param width: of the original picture
    :param height: of the original picture
    :param tile_size: of a tile, in pixels
    :param fit: how the picture was brought to the shape of a tile
    """
    left, top, placed_width, placed_height = placed(width, height, tile_size, tile_size, fit)

    def across(thousandths: float) -> float:
        return pixels(thousandths, tile_size, left, placed_width, width)

    def down(thousandths: float) -> float:
        return pixels(thousandths, tile_size, top, placed_height, height)

    boxes = []
    label, end = thing, 0
    for match in _BOX.finditer(answer):
        label = label_in(answer[end : match.start()], thing) or label  # one may have several boxes
        end = match.end()
        x1, y1, x2, y2 = (min(max(float(n), 0.0), SCALE) for n in match.groups())
        x1, x2 = sorted((across(x1), across(x2)))
        y1, y2 = sorted((down(y1), down(y2)))
        if x1 < x2 and y1 < y2:
            boxes.append(Box(label, x1, y1, x2, y2))
    return tuple(boxes)


def pixels(
    thousandths: float, tile_size: int, start: float, placed_length: float, length: int
) -> float:
    """
    Give a coordinate in the original picture and not beyond it, in hundredths of a pixel.

    :param start: where on the tile the picture begins
    :param placed_length: of the whole picture on the tile
    :param length: of the original picture
    """
    at = (thousandths * tile_size / SCALE - start) / placed_length * length
    return round(min(max(at, 0.0), float(length)), 2)


def label_in(text: str, thing: str) -> str:
    """Find the label in what stands before a box; empty where there is none."""
    marked = _REF.findall(text)
    if marked:
        return str(marked[-1]).strip()
    label = _MARK.sub('', text).strip(JOINTS)
    return thing if thing and label.endswith(thing) else label
