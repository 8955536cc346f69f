"""
The thread that asks the standing questions (``watch``) of the newest picture, again and again.

Knows the model's public face and when to ask; what is believed of an answer, ``standing`` knows.
All questions are asked of one picture, side by side, and of the next one only when that is over:
no picture waits here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
import json
import logging
import math
import threading
from time import perf_counter, time
from typing import Any, TYPE_CHECKING

from .frames import FrameReader, Pictures
from .inbox import Frames, Inbox, Stamp
from .publishers import WatchPublishers
from .similar import similar, Thumbnails, thumbnails
from .standing import Belief, MOST, read_questions, StandingQuestion
from ..errors import ConfigError, VlmError
from ..node_config import NodeConfig
from ..values import Reply

if TYPE_CHECKING:
    from .. import Stream, VLM

log = logging.getLogger('hobot_vlm.node')

#: below that of prompts and requests, which is 0 unless they say otherwise
PRIORITY = -1
#: no form but that of the choices, whatever prompts follow
FREE = {'thinking': False, 'json_schema': '', 'grammar': '', 'regex': ''}
#: seconds without an answer after which the last one is stale, where ``max_image_age`` says
#: nothing: as long as a camera may show nothing before it is reported
STALE = 10.0
#: seconds between two looks at the settings and at what has become stale
TICK = 0.25


@dataclass
class Watched:
    """
    A standing question, and what became of it.

    :param stamp: of the newest picture that tells
    :param changed: when ``value`` became what it is, in seconds since 1970
    :param stale: there was an answer, and there is none any more
    :param error: why the newest picture does not tell; empty where it does
    """

    asked: StandingQuestion
    belief: Belief = field(default_factory=Belief)
    stamp: Stamp = Stamp(0, 0)
    frame_id: str = ''
    changed: float = 0.0
    stale: bool = False
    error: str = ''

    @property
    def answer(self) -> str:
        """Give the answer in words; empty while there is none."""
        value = self.belief.value
        return '' if value is None else self.asked.answers[0 if value else 1]

    def event(self) -> str:
        """Write what became of it as JSON."""
        belief = self.belief
        sure = None if belief.probability is None else round(belief.probability, 4)
        return json.dumps(
            {
                'name': self.asked.name,
                'value': belief.value,
                'probability': sure,
                'stamp': self.stamp._asdict(),
                'frame_id': self.frame_id,
            }
        )

    def describe(self) -> str:
        """Say what became of it, for people."""
        belief = self.belief
        if belief.value is None or belief.probability is None or belief.seen is None:
            return 'stale' if self.stale else 'not known yet'
        age = perf_counter() - belief.seen
        return f'{self.answer} (probability of {self.asked.answers[0]}: ' + (
            f'{belief.probability:.3f}, {age:.1f} s ago)'
        )


class Watch:
    """
    Asks the standing questions while its inbox is open.

    :param settings: gives the configuration as it is now
    :param store: given the questions as they are to stand in the parameter; raises ConfigError
        where they cannot
    """

    def __init__(
        self,
        vlm: VLM,
        inbox: Inbox,
        reader: FrameReader,
        publishers: WatchPublishers,
        *,
        settings: Callable[[], NodeConfig],
        store: Callable[[Sequence[str]], None],
    ):
        self._vlm = vlm
        self._inbox = inbox
        self._reader = reader
        self._publishers = publishers
        self._settings = settings
        self._store = store
        self._changing = threading.Lock()
        self._loaded = settings()
        self._watched: tuple[Watched, ...] = ()
        self._frames: Frames = ()  # that were looked at last
        self._began = 0.0  # when that was, and how long it took
        self._seconds = 0.0
        self._failed = False
        #: what the model was asked last: what the picture looked like, and what it said
        self._thumbnails: Thumbnails | None = None
        self._answers: dict[StandingQuestion, float] = {}
        self._thread: threading.Thread | None = None

    @property
    def watched(self) -> Sequence[Watched]:
        """Give every question, in the order of the parameter."""
        return self._watched

    def start(self) -> None:
        """Begin to ask."""
        self._thread = threading.Thread(target=self._run, name='watch', daemon=True)
        self._thread.start()

    def stop(self, seconds: float | None = None) -> bool:
        """Wait for the end, which comes once the inbox is closed; False when that takes longer."""
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                return False
            self._thread = None
        return True

    def change(self, name: str, question: str) -> None:
        """
        Give the question of a name another text, add it or, where the text is empty, remove it.

        :raises ConfigError: it cannot be
        """
        with self._changing:
            texts = self._settings().watch
            others = [text for text in texts if text.partition(':')[0].strip() != name]
            if not question and len(others) == len(texts):
                raise ConfigError(f'there is no standing question {name[:80]!r}', 'watch')
            self._store([*others, f'{name}: {question}'] if question else others)

    # -- what there is to do -----------------------------------------------------------------

    def _run(self) -> None:
        with ThreadPoolExecutor(MOST, 'watch') as pool:
            while not self._inbox.closed:
                try:
                    settings = self._settings()
                    self._adopt(settings)
                    self._expire(settings)
                    due = self._due(settings)
                    frames = self._inbox.next_frames(self._frames, due, TICK)
                    if frames:
                        self._look(frames, settings, pool)
                except Exception:  # of ROS, on the way out; the next picture is looked at
                    log.exception('a standing question was not dealt with')
        for item in self._watched:
            self._end(item)

    def _adopt(self, settings: NodeConfig) -> None:
        """Follow the parameter: questions that stand on are not asked anew."""
        wanted = read_questions(settings.watch)
        if wanted == [item.asked for item in self._watched]:
            return
        before = {item.asked: item for item in self._watched}
        for gone in set(before) - set(wanted):
            self._publishers.close(gone.name)
        for come in wanted:
            if come not in before:
                self._publishers.open(come.name)
        self._watched = tuple(before.get(asked) or Watched(asked) for asked in wanted)

    def _due(self, settings: NodeConfig) -> float:
        """Say when to look again: after a period, or when a new value has held long enough."""
        if not self._watched:
            return math.inf
        due = self._began + 1 / settings.watch_rate
        if not self._failed:
            for item in self._watched:
                held = item.belief.due(settings.watch_hold)
                due = due if held is None else min(due, held)
        return due

    def _expire(self, settings: NodeConfig) -> None:
        """Forget answers that no picture has borne out for too long."""
        period = 1 / settings.watch_rate
        limit = settings.max_image_age or max(STALE, 2 * (period + self._seconds))
        now = perf_counter()
        for item in self._watched:
            seen = item.belief.seen
            if seen is not None and now - seen > limit and self._end(item):
                log.warning(
                    'watch %s: the answer is stale, the last picture that tells came %.1f s ago',
                    item.asked.name,
                    now - seen,
                )

    def _end(self, item: Watched) -> bool:
        """Let an answer go, so that who comes late does not hear it; whether there was one."""
        if not item.belief.forget():
            return False
        item.changed, item.stale = time(), True
        self._publishers.close(item.asked.name)
        self._publishers.open(item.asked.name)
        self._publishers.event(item.event())
        return True

    # -- one picture -------------------------------------------------------------------------

    def _look(self, frames: Frames, settings: NodeConfig, pool: ThreadPoolExecutor) -> None:
        """
        Ask about one picture of each camera.

        1. Read it. One that is too old tells nothing.
        2. Ask the model, unless it looks like the one before.
        3. Believe the answers, and publish what is another one now.
        """
        self._frames, self._began, self._failed = frames, perf_counter(), True
        pictures = Pictures()
        try:
            # 1. read
            self._reader.read(frames, pictures)
            limit = settings.max_image_age
            if limit and any(image.age > limit for image in pictures.info):
                return
            # 2. ask
            seen = thumbnails(pictures.rgb)
            if not similar(seen, self._thumbnails):
                self._thumbnails, self._answers = seen, {}
            self._ask(pictures, settings, pool)
        except VlmError as exc:
            for item in self._watched:
                item.error = str(exc)
            return
        self._failed = any(item.asked not in self._answers for item in self._watched)
        # 3. believe
        at = min(frame.received for frame in frames)
        for item in self._watched:
            probability = self._answers.get(item.asked)
            if probability is None or self._inbox.closed:
                continue
            item.stamp, item.frame_id = pictures.info[0].stamp, pictures.info[0].frame_id
            if item.belief.observe(probability, at, settings.watch_hold):
                item.changed, item.stale = time(), False
                self._publishers.value(item.asked.name, bool(item.belief.value))
                self._publishers.event(item.event())

    def _ask(self, pictures: Pictures, settings: NodeConfig, pool: ThreadPoolExecutor) -> None:
        """Have every question answered that is not answered yet, side by side."""
        options: dict[str, Any] = {'priority': PRIORITY, **FREE}
        if settings.system_prompt != self._loaded.system_prompt:
            options['system_prompt'] = settings.system_prompt
        began: dict[Future[Reply], tuple[Watched, Stream]] = {}
        for item in self._watched:
            asked = item.asked
            if asked not in self._answers:
                about = {'images': pictures.rgb, 'choices': asked.answers, **options}
                stream = self._vlm.stream(asked.question, **about)
                began[pool.submit(stream.wait)] = item, stream
        left = set(began)
        while left:
            done, left = wait(left, TICK)
            self._expire(settings)
            for future in done:
                self._note(began[future][0], future)
            if self._inbox.closed:
                for future in left:
                    began[future][1].cancel()
        if began:
            self._seconds = perf_counter() - self._began

    def _note(self, item: Watched, answered: Future[Reply]) -> None:
        """Note what the model said to one question."""
        try:
            choices = answered.result().choices
        except VlmError as exc:
            item.error = str(exc)
            return
        if choices:  # it was not cancelled
            self._answers[item.asked] = choices[item.asked.answers[0]]
            item.error = ''

    # -- what there is to say ----------------------------------------------------------------

    def troubles(self) -> list[str]:
        """Say what keeps questions from being answered."""
        return [
            f'watch {item.asked.name}: {item.error or "the answer is stale"}'
            for item in self._watched
            if item.error or item.stale
        ]

    def values(self) -> dict[str, object]:
        """Give the state of each question, by name."""
        return {f'watch {item.asked.name}': item.describe() for item in self._watched}
