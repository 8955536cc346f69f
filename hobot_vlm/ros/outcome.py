"""
What became of a prompt, before it is a message.

Knows the schema of the reply, which docs/reply.md describes, and no ROS.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
import json
import math
from typing import Any

from .inbox import Prompt, Stamp
from ..values import Pixels, Reply

#: characters of a prompt that its reply repeats: enough to know it by, and no second copy of a
#: prompt of megabytes
ECHO = 1000


@dataclass(frozen=True)
class ImageInfo:
    """
    Where a picture came from that a question was asked about.

    :param age: seconds from when it was taken to when the question's turn came
    :param width: in pixels; 0 where it could not be read
    :param arrived: seconds from when it came, by a clock that nobody sets
    :param frames: where several of its camera were shown as a video: all, the oldest first
    """

    topic: str
    stamp: Stamp
    frame_id: str
    age: float
    width: int = 0
    height: int = 0
    frames: tuple[ImageInfo, ...] = ()
    arrived: float = math.inf

    def older(self, seconds: float) -> ImageInfo:
        """Give the same some time later."""
        frames = tuple(frame.older(seconds) for frame in self.frames)
        return replace(self, age=self.age + seconds, arrived=self.arrived + seconds, frames=frames)

    def as_dict(self) -> dict[str, Any]:
        """Give the fields by name, for JSON."""
        several = [
            {'stamp': frame.stamp._asdict(), 'age': round(frame.age, 3)} for frame in self.frames
        ]
        return {
            'topic': self.topic,
            'stamp': self.stamp._asdict(),
            'frame_id': self.frame_id,
            'width': self.width,
            'height': self.height,
            'age': round(self.age, 3),
            **({'frames': several} if several else {}),
        }


@dataclass(frozen=True)
class Outcome:
    """
    What became of a prompt.

    :param images: the pictures it was about
    :param picture: the first of them
    :param error: why there is no whole answer; empty where there is
    :param started: when the model was asked
    """

    prompt: Prompt
    reply: Reply
    images: tuple[ImageInfo, ...] = ()
    error: str = ''
    started: Stamp = Stamp(0, 0)
    picture: Pixels | None = field(default=None, compare=False, repr=False)

    @property
    def stamp(self) -> Stamp:
        """When the first picture was taken; without one, when the prompt came."""
        return self.images[0].stamp if self.images else self.prompt.stamp

    @property
    def frame_id(self) -> str:
        """Of the first picture; empty without one."""
        return self.images[0].frame_id if self.images else ''

    def as_json(self) -> str:
        """Write the reply as it is published."""
        return json.dumps(
            {
                **({'id': self.prompt.id} if self.prompt.id is not None else {}),
                **self.reply.as_dict(),
                'prompt': shortened(self.prompt.text),
                'stamp': self.stamp._asdict(),
                'frame_id': self.frame_id,
                'pictures': [image.as_dict() for image in self.images],
                'error': self.error,
            },
            ensure_ascii=False,
        )


def shortened(text: str, length: int = ECHO) -> str:
    """Give a text, or the beginning of a long one."""
    return text if len(text) <= length else f'{text[: length - 1]}…'
