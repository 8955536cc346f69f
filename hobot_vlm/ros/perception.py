"""
Answers as messages of packages that only some installations have: ai_msgs and vision_msgs.

Knows their fields, and imports them when they are wanted. Publishes nothing.
"""

from __future__ import annotations

from importlib import import_module
import math
from typing import Any

from builtin_interfaces.msg import Time
from sensor_msgs.msg import RegionOfInterest
from std_msgs.msg import Header

from .outcome import Outcome
from ..values import Box, Timings

#: models do not say how sure they are; hobot_llamacpp gives this too
CONFIDENCE = 1.0


def perception_targets(outcome: Outcome, detection: bool) -> Any:
    """
    Make an ai_msgs/PerceptionTargets.

    :param detection: whether the targets are the boxes and points; otherwise there is one, and
        its type is the text of the answer
    """
    msg = import_module('ai_msgs.msg')
    if detection:
        geometry = import_module('geometry_msgs.msg')
        targets = [
            msg.Target(
                type=box.label,
                rois=[msg.Roi(type=box.label, rect=region(box), confidence=CONFIDENCE)],
            )
            for box in outcome.reply.boxes
        ]
        targets += [
            msg.Target(
                type=point.label,
                points=[
                    msg.Point(
                        type=point.label,
                        point=[geometry.Point32(x=float(point.x), y=float(point.y))],
                        confidence=[CONFIDENCE],
                    )
                ],
            )
            for point in outcome.reply.points
        ]
    else:
        targets = [msg.Target(type=outcome.reply.text)]
    took = sum(phases(outcome.reply.timings).values())
    return msg.PerceptionTargets(
        header=header(outcome),
        fps=min(round(1000 / took), 32767) if took else 0,
        perfs=perfs(outcome),
        targets=targets,
    )


def perfs(outcome: Outcome) -> list[Any]:
    """Say what each phase took; the stamps put one after the other, without the gaps."""
    msg = import_module('ai_msgs.msg')
    made = []
    begin = outcome.started.sec * 1_000_000_000 + outcome.started.nanosec
    for name, duration in phases(outcome.reply.timings).items():
        end = begin + round(duration * 1e6)
        made.append(
            msg.Perf(
                type=name, stamp_start=time(begin), stamp_end=time(end), time_ms_duration=duration
            )
        )
        begin = end
    return made


def phases(timings: Timings) -> dict[str, float]:
    """Give the milliseconds of the phases, under their names on a robot."""
    return {
        'preprocess': float(timings.preprocess_ms),  # the generated code aborts on an int
        'vision': float(timings.encode_ms),
        'prefill': float(timings.prefill_ms),
        'decode': float(timings.decode_ms),
    }


def detections(outcome: Outcome) -> Any:
    """Make a vision_msgs/Detection2DArray of the boxes and points of an answer."""
    msg = import_module('vision_msgs.msg')
    found = []
    reply = outcome.reply
    #: a point is a box without any size
    spots = [Box(point.label, point.x, point.y, point.x, point.y) for point in reply.points]
    for box in (*reply.boxes, *spots):
        detection = msg.Detection2D(header=header(outcome))
        hypothesis = msg.ObjectHypothesis(class_id=box.label, score=CONFIDENCE)
        detection.results = [msg.ObjectHypothesisWithPose(hypothesis=hypothesis)]
        detection.bbox.center.position.x = (box.x1 + box.x2) / 2
        detection.bbox.center.position.y = (box.y1 + box.y2) / 2
        detection.bbox.size_x = box.x2 - box.x1
        detection.bbox.size_y = box.y2 - box.y1
        found.append(detection)
    return msg.Detection2DArray(header=header(outcome), detections=found)


def header(outcome: Outcome) -> Header:
    """Give the header of the first picture; without one, when the prompt came."""
    frame_id = outcome.frame_id
    return Header(
        stamp=Time(sec=outcome.stamp.sec, nanosec=outcome.stamp.nanosec), frame_id=frame_id
    )


def region(box: Box) -> RegionOfInterest:
    """Give the whole pixels that a box touches."""
    left, top = int(box.x1), int(box.y1)
    return RegionOfInterest(
        x_offset=left, y_offset=top, width=math.ceil(box.x2) - left, height=math.ceil(box.y2) - top
    )


def time(nanoseconds: int) -> Time:
    """Give a count of nanoseconds as a message."""
    return Time(sec=nanoseconds // 1_000_000_000, nanosec=nanoseconds % 1_000_000_000)
