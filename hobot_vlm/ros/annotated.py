"""
The picture of an answer with what the answer says drawn on it, for RViz and Foxglove.

Drawn and encoded only while somebody listens. Knows the reply and no model.
"""

from __future__ import annotations

from array import array
from functools import lru_cache
import io
from pathlib import Path
from typing import Any, TYPE_CHECKING

from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image

from . import topics
from .outcome import Outcome
from .perception import header
from ..values import Pixels, Reply

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

#: the newest is what somebody wants to see
NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
#: quality of JPEG: no blocks to be seen, a tenth of the size of PNG
QUALITY = 80
#: where Debian and Ubuntu put fonts; the first that has a character draws it
FONTS = (
    'opentype/noto/NotoSansCJK-Regular.ttc',
    'truetype/noto/NotoSansCJK-Regular.ttc',
    'truetype/wqy/wqy-microhei.ttc',
    'truetype/wqy/wqy-zenhei.ttc',
    'truetype/droid/DroidSansFallbackFull.ttf',
    'truetype/arphic/uming.ttc',
    'truetype/dejavu/DejaVuSans.ttf',
    'truetype/freefont/FreeSans.ttf',
    'truetype/liberation/LiberationSans-Regular.ttf',
)
FOLDER = Path('/usr/share/fonts')
#: colours that people with any eyes tell apart (Okabe and Ito), one for each label
COLOURS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167),
)  # fmt: skip
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
#: lines of an answer that are drawn: a third of the picture at most
LINES = 5
#: a character that no font has: what fonts draw in its place tells what else they lack
NO_CHARACTER = '\uffff'


class Annotated:
    """The publishers of annotated pictures: plain, and compressed under image_transport's name."""

    def __init__(self, node: Node):
        self._node = node
        self._plain = self._publisher(Image, topics.ANNOTATED.name)
        self._compressed = self._publisher(CompressedImage, topics.ANNOTATED_COMPRESSED.name)

    def _publisher(self, kind: type, topic: str) -> Publisher:
        return self._node.create_publisher(
            kind,
            topic,
            NEWEST,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    def publish(self, outcome: Outcome) -> None:
        """Publish the first picture of an answer, if there is one and somebody listens."""
        rgb = outcome.picture
        plain, compressed = (
            publisher.get_subscription_count() > 0 for publisher in (self._plain, self._compressed)
        )
        if rgb is None or outcome.error or not (plain or compressed):
            return
        drawn = draw(rgb, outcome.reply)
        if plain:
            self._plain.publish(
                Image(
                    header=header(outcome),
                    height=drawn.height,
                    width=drawn.width,
                    encoding='rgb8',
                    step=3 * drawn.width,
                    data=array('B', drawn.tobytes()),
                )
            )
        if compressed:
            file = io.BytesIO()
            drawn.save(file, 'JPEG', quality=QUALITY)
            data = array('B', file.getvalue())
            self._compressed.publish(
                CompressedImage(header=header(outcome), format='rgb8; jpeg compressed', data=data)
            )

    def close(self) -> None:
        """Stop publishing."""
        for publisher in (self._plain, self._compressed):
            self._node.destroy_publisher(publisher)


# -- drawing --------------------------------------------------------------------------------------


def draw(rgb: Pixels, reply: Reply) -> Pillow.Image:
    """Draw boxes, points and the answer on a copy of a picture."""
    picture = Pillow.fromarray(rgb).convert('RGB')
    pen = ImageDraw.Draw(picture, 'RGBA')
    size = max(12, min(picture.size) // 24)
    line = max(2, min(picture.size) // 200)
    labels = [box.label for box in reply.boxes] + [point.label for point in reply.points]
    colours = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(dict.fromkeys(labels))}
    _band(pen, picture.size, answer_of(reply), size)  # below what lies at the lower edge
    for box in reply.boxes:
        colour = colours[box.label]
        # the last pixel that it holds, not the first behind it
        corners = [box.x1, box.y1, max(box.x1, box.x2 - 1), max(box.y1, box.y2 - 1)]
        pen.rectangle(corners, outline=colour, width=line)
        _tab(pen, box.x1, box.y1, box.label, size, colour)
    for point in reply.points:
        colour, r = colours[point.label], 3 * line
        around = [point.x - r, point.y - r, point.x + r, point.y + r]
        pen.ellipse(around, fill=colour, outline=BLACK, width=max(1, line // 2))
        _tab(pen, point.x + r, point.y - r, point.label, size, colour)
    return picture


def answer_of(reply: Reply) -> str:
    """Give what is written on a picture: the answer and, of a choice, how likely it is."""
    if reply.choices:
        return f'{reply.text} ({reply.choices[reply.text]:.2f})'
    return ' '.join(reply.text.split())


def _tab(
    pen: ImageDraw.ImageDraw, x: float, y: float, text: str, size: int, colour: tuple[int, ...]
) -> None:
    """Write a label above a place, or below where it would leave the picture."""
    if not text:
        return
    width, height = pen.im.size
    text = wrapped(text, size, width - 8, 1)[0]
    across, down = length(text, size) + 8, 1.4 * size
    x = max(0.0, min(x, width - across))
    y = y - down if y >= down else y
    y = max(0.0, min(y, height - down))
    pen.rectangle([x, y, x + across, y + down], fill=colour)
    bright = sum(colour) > 380
    _write(pen, x + 4, y + 0.1 * size, text, size, BLACK if bright else WHITE)


def _band(pen: ImageDraw.ImageDraw, picture: tuple[int, int], text: str, size: int) -> None:
    """Write the answer at the lower edge, on a dark band that lets the picture through."""
    if not text:
        return
    width, height = picture
    lines = wrapped(text, size, width - size, max(1, min(LINES, int(height / 3 / (1.4 * size)))))
    top = height - 1.4 * size * len(lines) - size / 2
    pen.rectangle([0, top, width, height], fill=(0, 0, 0, 160))
    for number, part in enumerate(lines):
        _write(pen, size / 2, top + size / 4 + 1.4 * size * number, part, size, WHITE)


def wrapped(text: str, size: int, width: float, most: int) -> list[str]:
    """Cut a text into lines, between words where it has any; … stands for what does not fit."""
    lines = ['']
    for word in _words(' '.join(text.split())):
        if length(lines[-1] + word.rstrip(), size) <= width:
            lines[-1] += word
            continue
        if lines[-1]:
            lines.append('')
        for character in word if length(word, size) > width else [word]:
            if lines[-1] and length(lines[-1] + character, size) > width:
                lines.append('')
            lines[-1] += character
        if len(lines) > most:
            break
    lines = [line.strip() for line in lines]
    if len(lines) > most:
        last = lines[most - 1]
        while last and length(f'{last}…', size) > width:
            last = last[:-1]
        lines = [*lines[: most - 1], f'{last}…']
    return lines


def _words(text: str) -> list[str]:
    """Cut behind spaces and behind each character of a script that has none."""
    words, begun = [], ''
    for character in text:
        begun += character
        if character == ' ' or '\u2e80' <= character <= '\uffef':
            words.append(begun)
            begun = ''
    return [*words, begun] if begun else words


def _write(
    pen: ImageDraw.ImageDraw, x: float, y: float, text: str, size: int, colour: tuple[int, ...]
) -> None:
    for font, part in runs(text, size):
        pen.text((x, y + size), part, fill=colour, font=font, anchor=_anchor(font))
        x += font.getlength(part)


def length(text: str, size: int) -> float:
    """Give the width of a text in pixels."""
    return float(sum(font.getlength(part) for font, part in runs(text, size)))


def _anchor(font: Any) -> str | None:
    """Let all fonts stand on one line; the one without outlines knows no lines."""
    return 'ls' if isinstance(font, ImageFont.FreeTypeFont) else None


def runs(text: str, size: int) -> list[tuple[Any, str]]:
    """Cut a text into parts, each with a font that has all its characters where there is one."""
    fonts = _fonts(size)
    if not fonts:
        return [(ImageFont.load_default(), text.encode('latin-1', 'replace').decode('latin-1'))]
    parts: list[tuple[FreeTypeFont, str]] = []
    for character in text:
        font = fonts[_index(character, size)]
        if parts and parts[-1][0] is font:
            parts[-1] = font, parts[-1][1] + character
        else:
            parts.append((font, character))
    return parts


@lru_cache(4096)
def _index(character: str, size: int) -> int:
    """Find the first font that has a character; 0 where none has."""
    for index, font in enumerate(_fonts(size)):
        none = font.getmask(NO_CHARACTER)
        mask = font.getmask(character)
        if character.isspace() or (mask.size, bytes(mask)) != (none.size, bytes(none)):
            return index
    return 0


@lru_cache(16)
def _fonts(size: int) -> tuple[FreeTypeFont, ...]:
    """Open the fonts of this machine."""
    found = []
    for name in FONTS:
        try:
            found.append(ImageFont.truetype(str(FOLDER / name), size))
        except OSError:  # it has none of that name, or Pillow no FreeType
            continue
    return tuple(found)
