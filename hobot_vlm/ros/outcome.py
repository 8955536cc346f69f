"""
What became of a prompt, before it is a message.

Knows the schema of the reply, which docs/reply.md describes, and no ROS.
"""

from __future__ import annotations

from dataclasses import dataclass
import json
from typing import Any

from .inbox import Prompt, Stamp
from ..values import Reply


@dataclass(frozen=True)
class Shown:
    """
    A picture that a question was asked about.

    :param age: seconds from when it was taken to when the question's turn came
    :param width: in pixels; 0 where it could not be read
    """

    topic: str
    stamp: Stamp
    frame_id: str
    age: float
    width: int = 0
    height: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Give the fields by name, for JSON."""
        return {
            'topic': self.topic,
            'stamp': self.stamp._asdict(),
            'frame_id': self.frame_id,
            'width': self.width,
            'height': self.height,
            'age': round(self.age, 3),
        }


@dataclass(frozen=True)
class Outcome:
    """
    What became of a prompt.

    :param shown: the pictures it was about
    :param error: why there is no whole answer; empty where there is
    :param started: when the model was asked
    """

    prompt: Prompt
    reply: Reply
    shown: tuple[Shown, ...] = ()
    error: str = ''
    started: Stamp = Stamp(0, 0)

    @property
    def stamp(self) -> Stamp:
        """When the first picture was taken; without one, when the prompt came."""
        return self.shown[0].stamp if self.shown else self.prompt.stamp

    def as_json(self) -> str:
        """Write the reply as it is published."""
        return json.dumps(
            {
                **self.reply.as_dict(),
                'prompt': self.prompt.text,
                'stamp': self.stamp._asdict(),
                'frame_id': self.shown[0].frame_id if self.shown else '',
                'pictures': [shown.as_dict() for shown in self.shown],
                'error': self.error,
            },
            ensure_ascii=False,
        )
