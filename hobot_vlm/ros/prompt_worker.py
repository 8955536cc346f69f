"""
The thread that answers: it takes what waits in the inbox, asks the model, hands out the answer.

Knows the engine and the order of things. ROS comes in only through what it is given: who listens,
and functions that read a picture and the clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
import logging
import math
from pathlib import Path
import random
import threading
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from .diagnostics import Statistics
from .images import rgb_of
from .inbox import Frame, Frames, Inbox, Prompt, Reset, Stamp, Work
from .outcome import Outcome, Shown
from .. import boxes
from ..config import FEED_TOPICS, LIVE, NodeConfig
from ..engine import Answer, Conversation, VLM
from ..errors import PictureError, VlmError
from ..image import Pixels
from ..prompt import Part
from ..text import SentenceSplitter
from ..values import Box, Reply

log = logging.getLogger('hobot_vlm.node')

#: the wake word on which ``pre_infer`` 1 begins to encode
WAKE_WORD = '你好'

#: side of the thumbnails that tell similar pictures, and the mean difference, of 255, up to
#: which they look the same
THUMBNAIL = 16
SIMILAR = 3.0
#: by number: the Pillow of Ubuntu 22.04 has no Image.Resampling
BOX = 4


class Listener(Protocol):
    """What an answer is handed to."""

    def speak(self, text: str) -> None:
        """Say a finished sentence."""

    def finish(self, outcome: Outcome) -> None:
        """Take the whole, or why there is none."""


@dataclass
class Pictures:
    """
    What a question is about.

    :param shown: where they come from; also of the one that could not be read
    :param arrived: when the newest of them came
    :param read: when they were read
    """

    rgb: list[Pixels] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)
    arrived: float = 0.0
    read: float = 0.0


class Worker:
    """
    Answers prompts one after the other, until it is stopped.

    :param settings: gives the configuration as it is now
    :param unpack: gives the message of a frame, and where it comes from
    :param now: the node's clock
    :param on_wait: told which cameras have shown nothing yet, when a prompt waits for them
    :param on_text: given each piece of an answer as it is made
    :param picture: the local picture; None: those of the cameras
    """

    def __init__(
        self,
        vlm: VLM,
        inbox: Inbox,
        out: Listener,
        statistics: Statistics,
        *,
        settings: Callable[[], NodeConfig],
        unpack: Callable[[Frame], tuple[Any, Shown]],
        now: Callable[[], Stamp],
        on_wait: Callable[[list[int]], None],
        on_text: Callable[[str], None],
        picture: Pixels | None = None,
    ):
        self._vlm = vlm
        self._inbox = inbox
        self._out = out
        self._statistics = statistics
        self._settings = settings
        self._unpack = unpack
        self._now = now
        self._on_wait = on_wait
        self._on_text = on_text
        self._picture = picture
        self._loaded = settings()
        self._chat = self._begin_chat()
        self._told: list[Pixels] = []  # the pictures of the conversation's newest turn with any
        self._stream: Answer | None = None
        self._prepared: Pictures | None = None
        self._last_look: npt.NDArray[np.float32] | None = None
        self._last_trigger = -math.inf
        self._thread: threading.Thread | None = None

    def _begin_chat(self) -> Conversation:
        """Go on with the conversation of the run before, where it was kept."""
        path = Path(self._loaded.state_file).expanduser()
        if self._loaded.state_file and path.exists():
            try:
                return self._vlm.restore(path)
            except VlmError as exc:
                log.warning('the conversation begins anew: %s', exc)
        return self._vlm.conversation(overflow=self._loaded.overflow)

    def start(self) -> None:
        """Begin to answer what waits in the inbox."""
        self._inbox.open()
        self._thread = threading.Thread(target=self._run, name='worker', daemon=True)
        self._thread.start()

    def cancel(self) -> bool:
        """Stop the running answer; False when there is none."""
        return self._inbox.cancel(self._stop_model)

    def stop(self, seconds: float | None = None) -> bool:
        """
        Stop the running answer, end the thread, and keep the conversation.

        :return: False when it takes longer than that
        """
        self._inbox.close()
        self.cancel()
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return False
            self._thread = None
            self._keep_chat(cells=True)
        return True

    def _keep_chat(self, cells: bool) -> None:
        """
        Write the conversation to its file.

        :param cells: with the KV cache, which takes longer, and less time when it is read again
        """
        if self._loaded.state_file:
            try:
                self._chat.save(Path(self._loaded.state_file).expanduser(), cells)
            except VlmError as exc:
                log.error('the conversation is not kept: %s', exc)

    def _stop_model(self) -> None:
        if self._stream is not None:
            self._stream.cancel()

    # -- what there is to do -----------------------------------------------------------------

    def _run(self) -> None:
        while True:
            work = self._inbox.take(self._due)
            if work is None:
                return
            try:
                self._do(work, self._settings())
            except Exception:  # of ROS, on the way out; the next prompt is answered
                log.exception('an answer was not handed out')

    def _do(self, work: Work, settings: NodeConfig) -> None:
        """Do the next thing."""
        if isinstance(work, Reset):
            self._chat.reset()
            self._told = []
            self._keep_chat(cells=False)
        elif isinstance(work, Prompt):
            if self._is_wake_word(work, settings):
                log.info('%s: encoding the picture ahead of the prompt', WAKE_WORD)
                self._prepare(self._inbox.pictures(work, self._on_wait))
            else:
                self._answer(work, settings)
        elif settings.trigger == 'image':
            self._look(work, settings)
        else:
            self._prepare(work)

    def _due(self) -> float:
        """Seconds until fresh pictures are wanted although no prompt waits."""
        settings = self._settings()
        if settings.feed_type != FEED_TOPICS:
            return math.inf
        if settings.trigger == 'image':
            gap = 1 / settings.max_rate if settings.max_rate else 0.0
            return max(0.0, self._last_trigger + gap - perf_counter())
        return 0.0 if settings.pre_infer == 2 else math.inf

    def _is_wake_word(self, prompt: Prompt, settings: NodeConfig) -> bool:
        return (
            settings.pre_infer == 1
            and settings.feed_type == FEED_TOPICS
            and prompt.text.strip(' \t\n。，！,.!') == WAKE_WORD
        )

    def _look(self, frames: Frames, settings: NodeConfig) -> None:
        """Answer ``user_prompt`` about fresh pictures."""
        if settings.skip_similar and self._looks_as_before(frames):
            self._statistics.similar += 1
            return
        self._last_trigger = perf_counter()
        prompt = Prompt(settings.user_prompt, self._now(), frames)
        if self._inbox.begin(prompt):
            self._answer(prompt, settings)

    def _looks_as_before(self, frames: Frames) -> bool:
        """Compare pictures with those last answered; what cannot be read is like nothing."""
        try:
            look = np.stack([thumbnail(rgb_of(self._unpack(frame)[0])) for frame in frames])
        except VlmError:
            return False
        before = self._last_look
        if before is not None and float(np.abs(look - before).mean()) <= SIMILAR:
            return True  # ``before`` stays: many small steps add up to a change
        self._last_look = look
        return False

    def _prepare(self, frames: Frames) -> None:
        """Encode pictures ahead of the prompt about them."""
        pictures = Pictures()
        try:
            self._read(frames, pictures)
            if pictures.rgb:
                # leaves everything up to the question in the KV cache
                self._vlm.ask('', pictures.rgb, n_predict=1)
                self._prepared = pictures
        except Exception as exc:  # the prompt about them will meet it too, and report it
            self._prepared = None
            log.warning('the pictures cannot be encoded ahead: %s', exc)

    # -- one answer --------------------------------------------------------------------------

    def _answer(self, prompt: Prompt, settings: NodeConfig) -> None:
        """
        Answer one prompt.

        1. Get the pictures.
        2. Say something to bridge the time.
        3. Ask the model; hand out sentences as they are finished.
        4. Hand out the whole.
        """
        pictures, error, started = Pictures(), '', self._now()
        sentences = SentenceSplitter()
        self._stream = None
        try:
            # 1. pictures
            self._show(pictures, prompt, settings)
            if not prompt.cancelled.is_set():
                # 2. bridge
                phrases = [p.strip() for p in settings.cute_words.split(';') if p.strip()]
                if phrases:
                    self._out.speak(random.choice(phrases))
                # 3. ask
                arrived = max(prompt.received, pictures.arrived)
                self._statistics.input_ms = 1e3 * (perf_counter() - arrived)
                started = self._now()
                self._stream = self._ask(prompt, pictures, settings)
                if prompt.cancelled.is_set():  # before there was something to stop
                    self._stream.cancel()
                self._hand_out(self._stream, sentences)
        except VlmError as exc:
            error = str(exc)
            log.error('no answer to %.60r: %s', prompt.text, exc)
        except Exception as exc:  # whatever happens, the next prompt is answered
            error = f'{type(exc).__name__}: {exc}'
            log.exception('no answer to %.60r', prompt.text)
        # 4. the whole
        last = perf_counter()
        self._inbox.done()
        for piece in sentences.finish():
            self._out.speak(piece)
        reply = self._stream.reply if self._stream else Reply('', 'cancelled')
        if pictures.rgb and reply.completion_tokens:  # else the turn may not be remembered
            self._told = pictures.rgb
        if error:
            reply = replace(reply, finish_reason='error')
        elif settings.parser_mode and pictures.rgb:
            reply = replace(reply, boxes=self._boxes(reply.text, prompt, pictures))
        outcome = Outcome(prompt, reply, tuple(pictures.shown), error, started)
        if settings.in_turns:
            self._keep_chat(cells=False)  # a process that is killed remembers what it said
        self._out.finish(outcome)
        self._statistics.publish_ms = 1e3 * (perf_counter() - last)
        self._statistics.count(outcome)

    def _hand_out(self, stream: Answer, sentences: SentenceSplitter) -> None:
        """Speak an answer while it is made."""
        for chunk in stream:
            if not chunk.thinking:
                self._on_text(chunk.text)
                for piece in sentences.feed(chunk.text):
                    self._out.speak(piece)

    def _ask(self, prompt: Prompt, pictures: Pictures, settings: NodeConfig) -> Answer:
        """Ask the model; options that changed since it was loaded go with the question."""
        options: dict[str, Any] = {
            name: getattr(settings, name)
            for name in LIVE
            if getattr(settings, name) != getattr(self._loaded, name)
        }
        rgb = pictures.rgb
        ask = self._vlm.stream
        if settings.in_turns:
            ask = self._chat.stream
            if len(rgb) == len(self._told) and all(map(np.array_equal, rgb, self._told)):
                rgb = []  # a picture that is as it was is not shown again
        question: Part = prompt.text
        if settings.parser_mode and pictures.rgb:
            question = boxes.question(prompt.text, self._vlm.decoder.controls)
        return ask(question, rgb or None, **options)

    def _boxes(self, text: str, prompt: Prompt, pictures: Pictures) -> tuple[Box, ...]:
        """Read the boxes of an answer, which are those in the first picture."""
        assert self._vlm.encoder is not None and self._vlm.family is not None
        height, width = pictures.rgb[0].shape[:2]
        fit = self._vlm.config.fit or self._vlm.family.default_fit
        return boxes.find(text, prompt.text, width, height, self._vlm.encoder.side, fit)

    def _show(self, pictures: Pictures, prompt: Prompt, settings: NodeConfig) -> None:
        """
        Fill in the pictures that a prompt is about.

        :raises PictureError: one cannot be read, or is too old
        """
        if self._picture is not None:
            pictures.rgb.append(self._picture)
        if settings.feed_type != FEED_TOPICS:
            return
        prepared, self._prepared = self._prepared, None
        if prepared is not None and not prompt.frames:
            waited = perf_counter() - prepared.read
            pictures.rgb, pictures.arrived = prepared.rgb, prepared.arrived
            pictures.shown = [replace(shown, age=shown.age + waited) for shown in prepared.shown]
        else:
            self._read(prompt.frames or self._inbox.pictures(prompt, self._on_wait), pictures)
        limit = settings.max_image_age
        for shown in pictures.shown if limit else ():
            if shown.age > limit:
                what = (
                    f'the picture of {shown.topic} is {shown.age:.1f} s old, and max_image_age '
                    f'is {limit:g}'
                )
                if settings.old_images == 'refuse':
                    raise PictureError(
                        f'{what}: see whether its camera runs, or raise max_image_age'
                    )
                log.warning('%s', what)

    def _read(self, frames: Frames, pictures: Pictures) -> None:
        """Add what frames show."""
        for frame in frames:
            message, shown = self._unpack(frame)
            pictures.shown.append(shown)
            rgb = rgb_of(message)
            height, width = rgb.shape[:2]
            pictures.shown[-1] = replace(shown, width=width, height=height)
            pictures.rgb.append(rgb)
            pictures.arrived = max(pictures.arrived, frame.received)
        pictures.read = perf_counter()


def thumbnail(rgb: Pixels) -> npt.NDArray[np.float32]:
    """Give a very small picture, to compare by."""
    small = Image.fromarray(rgb).resize((THUMBNAIL, THUMBNAIL), BOX)
    return np.asarray(small, np.float32)
