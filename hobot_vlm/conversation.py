"""
The turns of one conversation.

Knows what was said, and asks ``VLM`` to answer; nothing of slots or tokens. Turns are answered one
after the other, in the order in which they were asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TYPE_CHECKING

from . import conversation_file
from .config import Config
from .errors import ConfigError
from .prompt.history import Turn
from .values import Images, Reply, Tokens

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .engine.stream import Stream
    from .option_types import AskOptions
    from .vlm import VLM

#: times that the history is brought into the KV cache to be saved, while others push it out
SAVE_ATTEMPTS = 3


class Conversation:
    """
    Several turns with one model.

    History and pictures stay in the KV cache: a turn decodes only its own text.
    """

    def __init__(
        self,
        vlm: VLM,
        system_prompt: str = '',
        overflow: str = 'drop_oldest',
        turns: Sequence[Turn] = (),
    ):
        if overflow not in ('drop_oldest', 'refuse'):
            raise ConfigError(
                f'overflow is {overflow!r}: expected drop_oldest or refuse', 'overflow'
            )
        Config(system_prompt=system_prompt)  # checks it
        self.system_prompt = system_prompt
        self.overflow = overflow
        self.turns = list(turns)
        #: number of times that the turns were forgotten; an answer of before is not remembered
        self.era = 0
        self._vlm = vlm
        self._last: Future[None] | None = None

    def ask(self, prompt: Any, images: Images = None, **more: Unpack[AskOptions]) -> Reply:
        """Ask the next question; as :meth:`VLM.ask`."""
        return self.stream(prompt, images, **more).wait()

    def stream(self, prompt: Any, images: Images = None, **more: Unpack[AskOptions]) -> Stream:
        """Ask the next question; as :meth:`VLM.stream`."""
        from .vlm import make_request

        request = make_request(prompt, images, **more)
        if request.choices:
            raise ConfigError('choices stand in a conversation: ask VLM itself', 'choices')
        return self._vlm.submit(request, self)

    def prefill(self) -> None:
        """Decode now what any next question begins with: the system prompt, or the history."""
        self._vlm.prefill(self).wait()

    def save(self, path: str | Path, cells: bool = True) -> None:
        """
        Write the conversation to a file, with its pictures and its cells of the KV cache.

        Before the first turn that is the system prompt, decoded. :meth:`VLM.restore` reads it.

        :param cells: False: leave them out, which is quick; the next question after ``restore``
            then decodes the history, but encodes no picture
        :raises StateError: it cannot be written
        """
        target, found = conversation_file.as_path(path), None
        for _ in range(SAVE_ATTEMPTS if cells else 0):
            self.prefill()
            found = self._vlm.cells_of(self)
            if found:
                break
        ids, kv = found or ([], bytearray())
        conversation_file.write(
            target,
            conversation_file.Saved(self.system_prompt, self.overflow, list(self.turns), ids, kv),
            self._vlm.identity,
        )

    def reset(self) -> None:
        """Forget all turns."""
        self.era += 1
        self.turns = []

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *exc: object) -> None:
        self.reset()

    # -- for ``VLM`` ---------------------------------------------------------------------------

    def queue(self, finished: Future[None]) -> list[Future[None]]:
        """Note the newest turn by its end; give the end of the one that it waits for."""
        before, self._last = self._last, finished
        return [before] if before is not None else []

    def remember(self, turns: list[Turn], era: int, tokens: list[int]) -> None:
        """Make turns the history; ``tokens`` answered the last one."""
        if era == self.era:
            turns[-1].answer = Tokens(tuple(tokens))
            self.turns = turns
