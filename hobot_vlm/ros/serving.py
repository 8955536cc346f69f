"""
The HTTP API and page of an active node: the same model, and the picture that its camera sees.

Knows how the server is started and stopped; what it answers stands in ``server/``.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
import logging
import threading
from time import monotonic
from typing import TYPE_CHECKING

from .frames import FrameReader, Pictures
from .inbox import Frames, Inbox
from .outcome import Outcome
from .watch import Watch
from ..config import NodeConfig
from ..errors import ConfigError, VlmError
from ..server import check_libraries
from ..values import Box, Pixels

if TYPE_CHECKING:
    from ..server.live import LivePicture, StandingQuestion
    from ..vlm import VLM

#: seconds that boxes stay on the picture of a camera, which does not wait
SHOWN_SECONDS = 5.0

log = logging.getLogger('hobot_vlm.node')


def check_serving(config: NodeConfig) -> None:
    """
    See whether what is asked for can be served.

    :raises BackendMissing: a library is not here
    :raises ConfigError: other machines would be let in by mistake
    """
    check_libraries()
    from ..server.guard import KEY_VARIABLE, Settings

    try:
        Settings.of(config.serve_host)
    except ConfigError as exc:
        raise ConfigError(
            f'serve_host is {config.serve_host[:100]!r}, and that lets other machines in: set the '
            f'environment variable {KEY_VARIABLE} to the key that they send, or serve_host to '
            '127.0.0.1',
            'serve_host',
        ) from exc


class Serving:
    """A server, from its construction to ``close``."""

    def __init__(
        self,
        vlm: VLM,
        config: NodeConfig,
        inbox: Inbox,
        reader: FrameReader,
        picture: Pixels | None = None,
        watch: Watch | None = None,
    ):
        """
        Begin to serve.

        :param picture: the local picture; None: the newest of the first camera
        :param watch: who asks the standing questions; None: nobody
        :raises ConfigError: it cannot listen where it is to
        """
        from ..server.guard import Settings
        from ..server.http import create_app, HttpServer
        from ..server.live import Live

        self._inbox = inbox
        self._reader = reader
        self._picture = picture
        self._last: tuple[Frames, LivePicture | None] = ((), None)
        #: boxes and points of the newest answer about a picture, and when it came
        self._found: tuple[tuple[Box, ...], tuple[tuple[str, float, float], ...], float]
        self._found = (), (), 0.0
        settings = Settings.of(config.serve_host, allow_urls=config.allow_urls)
        live = Live(self._newest)
        if watch is not None:
            live = Live(self._newest, partial(standing_questions, watch), watch.change)
        app, service = create_app(vlm, settings, live)
        try:
            self._server = HttpServer(app, service, config.serve_host, config.serve)
        except ConfigError as exc:
            raise ConfigError(
                f'serve is {config.serve}, and {config.serve_host} cannot be listened on there '
                f'({exc.__cause__}): set serve to another port, or serve_host to another address',
                'serve',
            ) from exc
        log.info('listening on %s', self._server.url)

    def note(self, outcome: Outcome) -> None:
        """Show where an answer says that things are, on the live picture."""
        reply = outcome.reply
        if outcome.picture is not None:
            points = tuple((point.label, point.x, point.y) for point in reply.points)
            self._found = reply.boxes, points, monotonic()

    def _newest(self) -> LivePicture | None:
        """Give the newest picture; the same object as long as it is the same."""
        from ..server.live import LivePicture

        frames = self._inbox.newest()
        boxes, points, since = self._found
        if self._picture is None and monotonic() - since > SHOWN_SECONDS:
            boxes, points = (), ()  # the robot has moved on
        last = self._last[1]
        if self._picture is not None and last is None:
            last = LivePicture(self._picture)
        elif frames and frames != self._last[0]:
            pictures = Pictures()
            try:
                self._reader.read(frames, pictures)
                shown = pictures.first
                topic = pictures.info[0].topic
                last = None if shown is None else LivePicture(shown, topic=topic)
            except VlmError as exc:
                last = None
                log.debug('%s', exc)
        if last is not None and (last.boxes, last.points) != (boxes, points):
            last = replace(last, boxes=boxes, points=points)
        self._last = frames, last
        return last

    def close(self, seconds: float | None = None) -> bool:
        """End all answers, and the server; False when that takes longer."""
        closing = threading.Thread(target=self._server.close, daemon=True)
        closing.start()
        closing.join(seconds)
        return not closing.is_alive()


def standing_questions(watch: Watch) -> list[StandingQuestion]:
    """Give the standing questions as the page has them."""
    from ..server.live import StandingQuestion

    return [
        StandingQuestion(
            item.asked.name,
            item.asked.question,
            item.answer,
            item.changed,
            item.belief.probability,
            item.stale,
            item.error,
        )
        for item in watch.watched
    ]
