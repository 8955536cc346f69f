"""
From frames, as cameras sent them, to the pictures that a question is about.

Knows where they come from and how old they are, by the node's clock; no model, no topics.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
import logging
import threading
from time import perf_counter

from rclpy.clock import Clock

from .images import picture_of
from .inbox import Frames, Stamp
from .outcome import ImageInfo
from ..encoded import EncodedImage
from ..errors import PictureError
from ..node_config import NodeConfig
from ..values import Clip, Pixels

log = logging.getLogger('hobot_vlm.node')


@dataclass
class Pictures:
    """
    What a question is about.

    :param rgb: their pixels, or what another machine encoded them to
    :param info: where they come from; also of the one that could not be read
    :param arrived: when the newest of them came
    :param read: when they were read
    :param clips: the pictures with those before them, where several are wanted
    """

    rgb: list[Pixels | EncodedImage] = field(default_factory=list)
    info: list[ImageInfo] = field(default_factory=list)
    arrived: float = 0.0
    read: float = 0.0
    clips: list[Clip] = field(default_factory=list)

    @property
    def shown(self) -> list[Clip] | list[Pixels | EncodedImage]:
        """Give what the model is to see."""
        return self.clips or self.rgb

    @property
    def first(self) -> Pixels | None:
        """Give the first; None where there is none, or there are no pixels of it."""
        shown = self.rgb[0] if self.rgb else None
        return None if isinstance(shown, EncodedImage) else shown

    def copy_from(self, other: Pictures) -> None:
        """Become what others were; they are older by the time since they were read."""
        now = perf_counter()
        self.rgb = list(other.rgb)
        self.info = [image.older(now - other.read) for image in other.info]
        self.arrived, self.read = other.arrived, now
        self.clips = list(other.clips)

    def check_age(self, settings: NodeConfig) -> None:
        """
        Refuse or report what is older than ``max_image_age``.

        :raises PictureError: it is, and ``old_images`` says refuse
        """
        limit = settings.max_image_age
        for image in self.info if limit else ():
            if image.age > limit:
                what = (
                    f'the picture of {image.topic} is {image.age:.1f} s old, and max_image_age '
                    f'is {limit:g}'
                )
                cure = 'see whether its camera runs, or raise max_image_age'
                if image.arrived <= limit:
                    what += f', by its stamp; it came {image.arrived:.1f} s ago'
                    cure = 'set the clock of its camera or of this machine, or raise max_image_age'
                if settings.old_images == 'refuse':
                    raise PictureError(f'{what}: {cure}')
                log.warning('%s', what)


class FrameReader:
    """Reads frames; those that several questions are about, once."""

    def __init__(self, clock: Clock):
        self._clock = clock
        self._lock = threading.Lock()
        self._last: tuple[Frames, Pictures] = ((), Pictures())

    def now(self) -> Stamp:
        """Give the time by the node's clock."""
        return Stamp(*self._clock.now().seconds_nanoseconds())

    def read(self, frames: Frames, pictures: Pictures) -> None:
        """
        Fill in what frames show.

        :raises PictureError: one cannot be read; ``pictures.info`` then ends with it
        :raises ModelMismatch: the same, of one that another version of hobot_vlm encoded
        """
        with self._lock:
            if frames and frames == self._last[0]:
                pictures.copy_from(self._last[1])
                return
            for frame in frames:
                message = frame.parse(frame.data)
                pictures.info.append(self._info(frame.topic, message, frame.received))
                shown = picture_of(message)
                if isinstance(shown, EncodedImage):
                    width, height = shown.size
                else:
                    height, width = shown.shape[:2]
                pictures.info[-1] = replace(pictures.info[-1], width=width, height=height)
                pictures.rgb.append(shown)
                pictures.arrived = max(pictures.arrived, frame.received)
            pictures.read = perf_counter()
            self._last = (frames, replace(pictures))

    def read_clips(self, frames: Frames, pictures: Pictures) -> None:
        """
        Fill in what frames show, and what those before them do, where these are kept.

        :raises PictureError: one cannot be read
        """
        self.read(frames, pictures)
        pictures.info, pictures.clips = list(pictures.info), []  # others have these lists too
        if not any(frame.earlier for frame in frames):
            return
        for number, frame in enumerate(frames):
            images, infos, seconds = [], [], []
            for one in frame.earlier:
                message = one.parse(one.data)
                images.append(picture_of(message))
                infos.append(self._info(one.topic, message, one.received))
                seconds.append(one.received - frame.earlier[0].received)
            newest = pictures.info[number]
            first = frame.earlier[0] if frame.earlier else frame
            seconds.append(frame.received - first.received)
            pictures.clips.append(Clip([*images, pictures.rgb[number]], seconds))
            pictures.info[number] = replace(newest, frames=(*infos, newest))

    def _info(self, topic: str, message: object, received: float) -> ImageInfo:
        """
        Say where a picture comes from, and how old it is.

        Its age is counted from its stamp and from its arrival, and the greater one holds: clocks
        of cameras are often wrong.
        """
        header = getattr(message, 'header', None)  # HbmMsg1080P has none
        time = header.stamp if header else getattr(message, 'time_stamp', None)
        stamp = Stamp(time.sec, time.nanosec) if time else Stamp(0, 0)
        age = arrived = perf_counter() - received
        if any(stamp):
            now = self._clock.now().nanoseconds / 1e9
            age = max(age, now - (stamp.sec + stamp.nanosec / 1e9))
        # as hobot_llamacpp has it
        frame_id = header.frame_id if header else str(getattr(message, 'index', ''))
        return ImageInfo(topic, stamp, frame_id, age, arrived=arrived)
