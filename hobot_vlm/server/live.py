"""
The picture that the robot sees now, and the questions that stand about it.

Whoever has a camera, the ROS node for example, gives two functions; both are called from threads
of the server. Knows no ROS.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
import io
import json
from typing import Any

from ..values import Box, Pixels

#: separates the pictures of a stream; any text that no JPEG holds
BOUNDARY = 'hobot_vlm_picture'
#: longest side of the pictures that are sent: what a page shows, and a robot's Wi-Fi carries
LONGEST = 1280
#: quality of JPEG: no blocks to be seen, a tenth of the size of PNG
QUALITY = 80


@dataclass(frozen=True, eq=False)
class LivePicture:
    """
    The newest picture.

    :param image: RGB uint8 (height, width, 3); not written to any more
    :param boxes: regions that were found in it, in its pixels
    :param points: label, x and y of points that were found in it, in its pixels
    :param topic: where it comes from
    """

    image: Pixels
    boxes: tuple[Box, ...] = ()
    points: tuple[tuple[str, float, float], ...] = ()
    topic: str = ''


@dataclass(frozen=True)
class StandingQuestion:
    """
    A question that is asked again and again.

    :param answer: the newest one; empty: none yet, or none any more
    :param stamp: when it was made, in seconds since 1970
    :param probability: of the answer that means yes, where that is known
    :param stale: there was an answer, and there is none any more
    :param error: why there is none; empty where nothing is wrong
    """

    name: str
    question: str
    answer: str
    stamp: float
    probability: float | None = None
    stale: bool = False
    error: str = ''


@dataclass(frozen=True)
class Live:
    """
    What the server shows of a robot.

    :param picture: gives the newest picture, None while there is none
    :param questions: gives the standing questions with their newest answers
    :param change: gives the question of a name another text, adds it, or, where the text is
        empty, removes it; raises ConfigError where that cannot be
    """

    picture: Callable[[], LivePicture | None] | None = None
    questions: Callable[[], Sequence[StandingQuestion]] | None = None
    change: Callable[[str, str], None] | None = None

    def state(self) -> dict[str, Any]:
        """Say what there is, for the page."""
        found = self.questions() if self.questions else ()
        return {
            'picture': self.picture is not None,
            'questions': [asdict(question) for question in found],
            'changeable': self.change is not None,
        }


def jpeg(picture: LivePicture) -> tuple[bytes, str]:
    """Give a picture as JPEG, and what was found in it as JSON."""
    from PIL import Image

    height, width = picture.image.shape[:2]
    image = Image.fromarray(picture.image)
    image.thumbnail((LONGEST, LONGEST))
    file = io.BytesIO()
    image.save(file, 'JPEG', quality=QUALITY)
    found = {
        'width': width,
        'height': height,
        'topic': picture.topic,
        'boxes': [asdict(box) for box in picture.boxes],
        'points': [{'label': label, 'x': x, 'y': y} for label, x, y in picture.points],
    }
    return file.getvalue(), json.dumps(found)  # ASCII, as a header has to be


async def pictures(
    live: Live, rate: float, run: Callable[..., Awaitable[Any]], stopped: Callable[[], bool]
) -> AsyncIterator[bytes]:
    """
    Give the parts of a stream of pictures (multipart/x-mixed-replace), each when it is new.

    :param rate: most pictures a second
    :param run: runs a function in a thread
    """
    clock = asyncio.get_running_loop().time
    last: LivePicture | None = None
    while not stopped():
        began = clock()
        picture = await run(live.picture) if live.picture else None
        if picture is not None and picture is not last:
            last = picture
            data, found = await run(jpeg, picture)
            head = (
                f'--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n'
                f'X-Found: {found}\r\n\r\n'
            )
            yield head.encode() + data + b'\r\n'
        await asyncio.sleep(max(0.0, began + 1 / rate - clock()))
