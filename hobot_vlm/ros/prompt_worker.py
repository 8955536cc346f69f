"""
The thread that answers ``/prompt_text``: one prompt after the other, in order.

Knows the model's public face and the order of things; nothing of subscriptions and executors.
"""

from __future__ import annotations

from collections.abc import Callable
import logging
import math
from pathlib import Path
import random
import threading
from time import perf_counter
from typing import Any, TYPE_CHECKING

import numpy as np

from .diagnostics import Statistics
from .frames import FrameReader, Pictures
from .inbox import Frames, Inbox, Prompt, Reset, Work
from .outcome import Outcome
from .publishers import Publishers
from .sentences import SentenceSplitter
from .similar import similar, Thumbnails, thumbnails
from ..config import FEED_TEXT, FEED_TOPICS, LIVE, NodeConfig
from ..encoded import EncodedImage
from ..errors import AnswerCut, VlmError
from ..values import Pixels, Reply

if TYPE_CHECKING:
    from .. import Conversation, Stream, VLM

log = logging.getLogger('hobot_vlm.node')

#: the wake word on which ``pre_infer`` 1 begins to encode
WAKE_WORD = '你好'

#: options of a question that is asked for its pictures alone
FREE = {'n_predict': 1, 'json_schema': '', 'grammar': '', 'regex': ''}


class PromptWorker:
    """
    Answers prompts until it is stopped.

    :param settings: gives the configuration as it is now
    :param on_text: given each piece of an answer as it is made
    :param on_answer: given what became of a prompt, once that is published
    :param picture: the local picture; None: those of the cameras
    """

    def __init__(
        self,
        vlm: VLM,
        inbox: Inbox,
        reader: FrameReader,
        publishers: Publishers,
        statistics: Statistics,
        *,
        settings: Callable[[], NodeConfig],
        on_text: Callable[[str], None],
        on_answer: Callable[[Outcome], None],
        picture: Pixels | None = None,
    ):
        self._vlm = vlm
        self._inbox = inbox
        self._reader = reader
        self._publishers = publishers
        self._statistics = statistics
        self._settings = settings
        self._on_text = on_text
        self._on_answer = on_answer
        self._picture = picture
        self._loaded = settings()
        self._chat = self._begin_chat()
        #: the pictures of the conversation's newest turn with any
        self._in_chat: list[Pixels | EncodedImage] = []
        self._prepared: Pictures | None = None
        self._preparing: Stream | None = None
        self._last_thumbnails: Thumbnails | None = None
        self._last_trigger = -math.inf
        self._thread: threading.Thread | None = None

    def _begin_chat(self) -> Conversation:
        """Go on with the conversation of the run before, where it was kept."""
        path = self._state_file
        if path is not None and path.exists():
            try:
                return self._vlm.restore(path)
            except VlmError as exc:
                log.warning('the conversation begins anew: %s', exc)
        return self._vlm.conversation(overflow=self._loaded.overflow)

    @property
    def _state_file(self) -> Path | None:
        """Where the conversation is kept; a link is followed, so that it stays one."""
        if not self._loaded.state_file:
            return None
        return Path(self._loaded.state_file).expanduser().resolve()

    def start(self) -> None:
        """Begin to answer what waits in the inbox."""
        self._thread = threading.Thread(target=self._run, name='prompts', daemon=True)
        self._thread.start()

    def stop(self, seconds: float | None = None) -> bool:
        """
        Stop the running answer, end the thread, and keep the conversation.

        :return: False when it takes longer than that
        """
        self._inbox.close()
        self._inbox.cancel()
        preparing = self._preparing
        if preparing is not None:
            preparing.cancel()
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
        if self._state_file is not None:
            try:
                self._chat.save(self._state_file, cells)
            except VlmError as exc:
                log.error('the conversation is not kept: %s', exc)

    # -- what there is to do -----------------------------------------------------------------

    def _run(self) -> None:
        while True:
            work = self._inbox.get(self._due)
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
            self._in_chat = []
            self._keep_chat(cells=False)
        elif isinstance(work, Prompt):
            if self._is_wake_word(work, settings):
                log.info('%s: encoding the picture ahead of the prompt', WAKE_WORD)
                self._prepare(self._inbox.frames_for(work), settings)
            else:
                self._answer(work, settings)
        elif settings.trigger == 'image':
            self._answer_about(work, settings)
        else:
            self._prepare(work, settings)

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

    def _answer_about(self, frames: Frames, settings: NodeConfig) -> None:
        """Answer ``user_prompt`` about fresh pictures."""
        if settings.skip_similar and self._are_similar(frames):
            self._statistics.similar += 1
            return
        self._last_trigger = perf_counter()
        prompt = Prompt(settings.user_prompt, self._reader.now(), frames)
        if self._inbox.begin(prompt):
            self._answer(prompt, settings)

    def _are_similar(self, frames: Frames) -> bool:
        """Compare pictures with those last answered; what cannot be read is like nothing."""
        pictures = Pictures()
        try:
            self._reader.read(frames, pictures)
        except VlmError:
            return False
        seen = thumbnails(pictures.rgb)
        if similar(seen, self._last_thumbnails):
            return True  # the last ones stay: many small steps add up to a change
        self._last_thumbnails = seen
        return False

    def _prepare(self, frames: Frames, settings: NodeConfig) -> None:
        """Encode pictures ahead of the prompt about them."""
        pictures = Pictures()
        try:
            self._reader.read_clips(frames, pictures)
            if pictures.rgb:
                # leaves everything up to the question in the KV cache
                options = {**self._options(settings), **FREE}
                self._preparing = self._vlm.stream('.', pictures.shown, **options)
                if not self._inbox.closed:
                    self._preparing.wait()
                    self._prepared = pictures
        except Exception as exc:  # the prompt about them will meet it too, and report it
            self._prepared = None
            log.warning('the pictures cannot be encoded ahead: %s', exc)
        self._preparing = None  # the model stops where that was its end

    # -- one answer --------------------------------------------------------------------------

    def _answer(self, prompt: Prompt, settings: NodeConfig) -> None:
        """
        Answer one prompt.

        1. Get the pictures.
        2. Say something to bridge the time.
        3. Ask the model; hand out sentences as they are finished.
        4. Hand out the whole.
        """
        pictures, error, started = Pictures(), '', self._reader.now()
        sentences, pieces = SentenceSplitter(), list[str]()
        reply = Reply('', 'cancelled')
        try:
            # 1. pictures
            self._read_pictures(prompt, settings, pictures)
            if not prompt.cancelled.is_set():
                # 2. bridge
                if settings.feed_type != FEED_TEXT:
                    self.say_phrase(settings)
                # 3. ask
                arrived = max(prompt.received, pictures.arrived)
                self._statistics.input_ms = 1e3 * (perf_counter() - arrived)
                started = self._reader.now()
                stream = self._ask(prompt, pictures, settings)
                prompt.stop = stream.cancel
                if prompt.cancelled.is_set():  # before there was something to stop
                    stream.cancel()
                self._hand_out(stream, sentences, pieces)
                reply = stream.wait()
        except AnswerCut as exc:
            reply, error = exc.reply, str(exc)
            log.error('no whole answer to %.60r: %s', prompt.text, exc)
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
            self._publishers.speak(piece)
        if error and reply.finish_reason != 'length':
            reply = Reply(''.join(pieces), 'error')
        elif pictures.rgb and reply.completion_tokens:  # else the turn may not be remembered
            self._in_chat = pictures.rgb
        picture = pictures.first
        outcome = Outcome(prompt, reply, tuple(pictures.info), error, started, picture)
        if settings.in_turns:
            self._keep_chat(cells=False)  # a process that is killed remembers what it said
        self._publishers.finish(outcome)
        self._statistics.publish_ms = 1e3 * (perf_counter() - last)
        self._statistics.count(outcome)
        self._on_answer(outcome)

    def say_phrase(self, settings: NodeConfig) -> None:
        """Speak one of ``cute_words``."""
        phrases = [p.strip() for p in settings.cute_words.split(';') if p.strip()]
        if phrases:
            self._publishers.speak(random.choice(phrases))

    def _hand_out(self, stream: Stream, sentences: SentenceSplitter, pieces: list[str]) -> None:
        """Speak an answer while it is made; ``pieces`` gets what there was of it."""
        for chunk in stream:
            if not chunk.thinking:
                pieces.append(chunk.text)
                self._on_text(chunk.text)
                for piece in sentences.feed(chunk.text):
                    self._publishers.speak(piece)

    def _options(self, settings: NodeConfig) -> dict[str, Any]:
        """Give the options that changed since the model was loaded."""
        return {
            name: getattr(settings, name)
            for name in LIVE
            if getattr(settings, name) != getattr(self._loaded, name)
        }

    def _ask(self, prompt: Prompt, pictures: Pictures, settings: NodeConfig) -> Stream:
        """Ask the model."""
        rgb, shown = pictures.rgb, pictures.shown
        find = bool(settings.parser_mode and rgb)
        ask = self._vlm.stream
        if settings.in_turns:
            ask = self._chat.stream
            if (
                not find
                and not pictures.clips
                and len(rgb) == len(self._in_chat)
                and all(map(same, rgb, self._in_chat))
            ):
                shown = []  # a picture that is as it was is not given again
        return ask(prompt.text, shown or None, find=find, **self._options(settings))

    def _read_pictures(self, prompt: Prompt, settings: NodeConfig, pictures: Pictures) -> None:
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
            pictures.copy_from(prepared)
        else:
            self._reader.read_clips(prompt.frames or self._inbox.frames_for(prompt), pictures)
        pictures.check_age(settings)


def same(one: Pixels | EncodedImage, other: Pixels | EncodedImage) -> bool:
    """Whether two pictures are equal."""
    if isinstance(one, EncodedImage) or isinstance(other, EncodedImage):
        return isinstance(one, EncodedImage) and one == other
    return np.array_equal(one, other)
