"""
``vlm chat``: a conversation at the terminal, or from a pipe, where each line is a question.

Knows the commands that can be typed; how lines are edited stands in ``lines.py``, how answers are
shown in ``ask.py``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
import os
import shlex
import signal
import sys
from typing import Any, TYPE_CHECKING

from . import ask, files, options
from .interrupt import EXIT_INTERRUPTED, leave, OnCtrlC
from .lines import Editor
from .terminal import complain, EXIT_ERROR, say
from ..errors import ConfigError, VlmError

if TYPE_CHECKING:
    from .. import Conversation, Reply, VLM


def add_parser(commands: Any) -> None:
    """Add the command to those of ``vlm``."""
    about = 'talk with the model; /help lists what can be typed'
    chat = ask.add_asking(commands, 'chat', about, 'vlm chat [OPTION ...] [FILE ...]')
    chat.add_argument(
        'words', nargs='*', metavar='FILE', help='pictures or videos for the first question'
    )
    chat.add_argument('--restore', metavar='FILE', help='go on with a conversation of /save')
    chat.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Talk until the input ends."""
    config = options.config_of(args)
    pictures = ask.Pictures(args)
    pictures.show([files.to_path(word) for word in args.words])
    with ask.load(config) as vlm:
        return Chat(vlm, args, pictures).run()


#: name -> what stands behind it, and what it does
COMMANDS = {
    'image': ('FILE …', 'show pictures or videos with the next question'),
    'reset': ('', 'forget the conversation; the picture is shown again'),
    'system': ('TEXT', 'another system prompt; forgets the conversation'),
    'save': ('FILE', 'keep the conversation; `vlm chat --restore FILE` goes on with it'),
    'stats': ('', 'say how long the last answer took'),
    'help': ('', 'this list; so does ?'),
    'quit': ('', 'leave; so do exit, /bye and Ctrl-D. Ctrl-C stops an answer'),
}
LEAVING = ('exit', 'quit', 'bye', '/exit', '/quit', '/bye')


class Chat:
    """A conversation, and the pictures of its next question."""

    def __init__(self, vlm: VLM, args: argparse.Namespace, pictures: ask.Pictures):
        self._vlm = vlm
        self._args = args
        self._talk: Conversation = (
            vlm.restore(args.restore) if args.restore else vlm.conversation()
        )
        self._pictures = pictures
        self._unseen = bool(pictures)
        self._last: Reply | None = None
        self._status = 0
        self._interactive = sys.stdin.isatty()
        self._runs: dict[str, Callable[[str], None]] = {
            'image': self._image, 'reset': self._reset, 'system': self._system,
            'save': self._save, 'stats': self._stats, 'help': self._help,
        }  # fmt: skip

    def run(self) -> int:
        """Answer until the input ends."""
        self._banner()
        for line in self._lines():
            if not line:
                continue
            try:
                with OnCtrlC(signal.default_int_handler if self._interactive else leave):
                    if self._obey(line):
                        break
            except KeyboardInterrupt:
                self._tell('')
            except VlmError as exc:
                complain(exc)
                if not self._interactive:
                    self._status = EXIT_ERROR
        return self._status

    def _lines(self) -> Iterator[str]:
        if not self._interactive:
            yield from (line.strip() for line in sys.stdin)
            return
        editor = Editor([f'/{name}' for name in COMMANDS], files_behind=('/image', '/save'))
        while (line := editor.read('> ')) is not None:
            yield line.strip()

    def _banner(self) -> None:
        if not self._interactive:
            return
        vlm = self._vlm
        model = vlm.models().get(vlm.config.model)
        title = model.title if model and vlm.name == vlm.config.model else ''
        say(f'{vlm.name}{f": {title}" if title else ""}')
        ask.note_demo(vlm)
        say('/help lists what can be typed; Ctrl-D leaves.')

    def _obey(self, line: str) -> bool:
        """
        Do what a line says.

        :return: whether it ends the conversation
        """
        name, _, rest = line.removeprefix('/').partition(' ')
        name, rest = name.lower(), rest.strip()
        if line.lower() in LEAVING:
            return True
        if line in ('?', '/?'):
            name = 'help'
        if line in ('?', '/?') or (line.startswith('/') and name in self._runs):
            self._command(name, rest)
            return False
        shown, question = files.dropped(line)
        if line.startswith('/') and not shown:
            raise ConfigError(f'there is no /{name[:80]}; /help lists what there is')
        if shown:
            self._show(shown)
        if question:
            self._question(question)
        return False

    def _question(self, prompt: str) -> None:
        show = self._unseen or self._pictures.live
        shown = self._pictures.take() if show else {}
        stream = self._talk.stream(
            prompt, stop=self._args.stop, logprobs=self._args.logprobs, **shown
        )
        self._last, interrupted = ask.answer(stream, self._args, bool(shown))
        # A question that was stopped before its answer began is not remembered, nor its picture.
        if not interrupted or self._last.completion_tokens:
            self._unseen = False
        elif show:
            self._tell('The picture is shown again with the next question.')
        if self._args.stats:
            say(ask.timings(self._last))
        status = ask.note_end(self._last, self._vlm.config, self._args.json)
        if interrupted and not self._interactive:
            status = EXIT_INTERRUPTED
        if not self._interactive:
            self._status = status or self._status

    def _command(self, name: str, rest: str) -> None:
        wants, _ = COMMANDS[name]
        if wants and not rest:
            raise ConfigError(
                f'/{name} wants {"a text" if wants == "TEXT" else "a file"} behind it'
            )
        self._runs[name](rest)

    def _tell(self, text: str) -> None:
        """Confirm something, where somebody sits at the terminal."""
        if self._interactive:
            say(text)

    # -- commands ------------------------------------------------------------------------------

    def _image(self, rest: str) -> None:
        self._show(files.paths_of(rest))

    def _show(self, paths: list[str]) -> None:
        self._pictures.show(paths, now=True)
        self._unseen = True
        names = ', '.join(os.path.basename(path) for path in paths)
        self._tell(f'The next question is about {names}.')

    def _reset(self, _: str) -> None:
        self._talk.reset()
        self._unseen = bool(self._pictures)
        self._tell('The conversation is forgotten.')

    def _system(self, rest: str) -> None:
        talk = self._vlm.conversation(system_prompt=rest)
        self._talk.reset()
        self._talk, self._unseen = talk, bool(self._pictures)
        self._tell('The model has another system prompt; the conversation is forgotten.')

    def _save(self, rest: str) -> None:
        path = files.path_of(rest)
        self._talk.save(path)
        self._tell(f'Saved; `vlm chat --restore {shlex.quote(path)}` goes on.')

    def _stats(self, _: str) -> None:
        say(ask.timings(self._last) if self._last else 'no answer yet')

    def _help(self, _: str) -> None:
        heads = {f'/{name} {wants}': about for name, (wants, about) in COMMANDS.items()}
        heads['a file'] = 'dropped here is shown, alone or with a question'
        width = max(map(len, heads))
        for head, about in heads.items():
            say(f'{head:{width}}  {about}')
