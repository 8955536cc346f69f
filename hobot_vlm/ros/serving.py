"""
OpenAI's API and a page, on the model that the topics use.

Knows which picture is the newest and what was found in it last; what is answered over HTTP stands
in ``server/``, and none of it is imported unless ``serve`` asks for it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .frames import FrameReader, Pictures
from .inbox import Frames, Inbox
from .outcome import Outcome
from .. import VLM
from ..config import NodeConfig
from ..errors import PictureError
from ..server import check_libraries
from ..values import Box, Pixels

if TYPE_CHECKING:
    from ..server.live import LivePicture


class Web:
    """
    The node's HTTP server.

    :param picture: what is shown where there is no camera
    """

    def __init__(
        self,
        vlm: VLM,
        config: NodeConfig,
        inbox: Inbox,
        reader: FrameReader,
        picture: Pixels | None,
    ) -> None:
        """
        Listen.

        :raises BackendMissing: a library is not installed
        :raises ConfigError: it cannot listen there
        """
        check_libraries()
        from ..server.guard import KEY_VARIABLE, Settings
        from ..server.http import create_app, HttpServer
        from ..server.live import Live

        self._inbox = inbox
        self._reader = reader
        self._picture = picture
        self._boxes: tuple[Box, ...] = ()
        self._frames: Frames = ()
        self._last: LivePicture | None = None
        live = Live(self._newest) if picture is not None or inbox.cameras else None
        host = '0.0.0.0' if os.environ.get(KEY_VARIABLE) else '127.0.0.1'
        app, service = create_app(vlm, Settings.of(host), live)
        self._server = HttpServer(app, service, host, config.serve)
        self.url = self._server.url

    def note(self, outcome: Outcome) -> None:
        """Draw from now on what an answer found."""
        self._boxes = outcome.reply.boxes
        self._frames, self._last = (), None

    def close(self) -> None:
        """End all answers of clients, and then the server."""
        self._server.close()

    def _newest(self) -> LivePicture | None:
        """Give the newest picture; of several cameras that of the first."""
        from ..server.live import LivePicture

        frames = self._inbox.newest()
        if self._last is not None and frames == self._frames:
            return self._last
        if self._picture is not None:
            self._last = LivePicture(self._picture, self._boxes)
            return self._last
        pictures = Pictures()
        try:
            self._reader.read(frames[:1], pictures)
        except PictureError:  # said in the reply of whoever asks about it
            return None
        if not pictures.rgb:
            return None
        self._frames = frames
        self._last = LivePicture(pictures.rgb[0], self._boxes, topic=frames[0].topic)
        return self._last
