"""
``vlm ask``: one question; and how any answer is shown on a terminal.

Knows streams and pictures as ``vlm.py`` gives them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import json
import sys
from typing import Any, TYPE_CHECKING

from . import files, options
from .interrupt import EXIT_INTERRUPTED, leave, OnCtrlC
from .terminal import beside, complain, EXIT_ERROR, Lines, say, Waiting
from ..config import Config
from ..errors import AnswerCut, ConfigError, PictureError

if TYPE_CHECKING:
    from .. import Reply, Stream
    from ..vlm import Camera, VLM


def add_parser(commands: Any) -> None:
    """Add the command to those of ``vlm``."""
    usage = 'vlm ask [OPTION ...] PROMPT [FILE ...]'
    ask = add_asking(commands, 'ask', 'answer one question', usage)
    ask.add_argument(
        'words',
        nargs='*',
        metavar='PROMPT|FILE',
        help='the question, and pictures or videos, in any order; - reads the question from stdin',
    )
    ask.add_argument(
        '--choose',
        action='append',
        default=[],
        metavar='A,B',
        help='say how likely each of these answers is; repeatable, for answers with commas',
    )
    ask.set_defaults(run=run)


def add_asking(commands: Any, name: str, about: str, usage: str) -> argparse.ArgumentParser:
    """Add a command that runs a model."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=about, description=f'{about[0].upper()}{about[1:]}.', usage=usage
    )
    command.add_argument('--camera', metavar='N|FILE', help='show a picture of this camera')
    command.add_argument(
        '--frames', type=int, default=8, metavar='N', help='frames of a video (default 8)'
    )
    command.add_argument(
        '--start', type=float, default=0.0, metavar='S', help='seconds at which they begin'
    )
    command.add_argument(
        '--end', type=float, metavar='S', help='seconds at which they end (default: with it)'
    )
    command.add_argument(
        '--stop', action='append', default=[], metavar='TEXT', help='end an answer there'
    )
    command.add_argument('--json', action='store_true', help='print one JSON object per answer')
    command.add_argument(
        '--logprobs',
        type=int,
        default=0,
        metavar='N',
        help='with --json: the N likeliest tokens in each place',
    )
    command.add_argument('--stats', action='store_true', help='print timings to stderr')
    command.add_argument('-v', '--verbose', action='store_true', help='say what happens')
    options.add_config(command)
    return command


def run(args: argparse.Namespace) -> int:
    """Answer a question."""
    prompt, paths = _sorted(args.words)
    if prompt == '-':
        prompt = sys.stdin.read()
    if not prompt.strip():
        raise ConfigError('the prompt is empty: expected a question')
    config = options.config_of(args)
    pictures = Pictures(args)
    pictures.show(paths)
    with load(config) as vlm:
        note_demo(vlm)
        shown = pictures.take()
        asked = {'stop': args.stop, 'logprobs': args.logprobs, 'choices': choices(args.choose)}
        stream = vlm.stream(prompt.strip(), **asked, **shown)
        reply, interrupted = answer(stream, args, bool(shown), whole=bool(args.choose))
    if args.stats:
        say(timings(reply))
    if interrupted:
        return EXIT_INTERRUPTED
    return note_end(reply, vlm.config, args.json)


def choices(given: Sequence[str]) -> list[str]:
    """Give what is to be chosen between; several options hold one choice each."""
    parts = given if len(given) != 1 else given[0].split(',')
    return [part.strip() for part in parts]


def _sorted(words: Sequence[str]) -> tuple[str, list[str]]:
    """Tell the question from the files."""
    questions = [word for word in words if not files.seems_file(word)]
    if not questions and len(words) == 1 and not files.has_picture_name(words[0]):
        questions = list(words)
    if not questions:
        raise ConfigError(
            'there is no question: expected one, as in `vlm ask "Describe the picture." dog.jpg`'
        )
    if len(questions) > 1:
        raise ConfigError(
            f'{questions[1][:80]!r} is no file: put a question of several words into quotes, and '
            'give paths of pictures that exist'
        )
    rest = list(words)
    rest.remove(questions[0])
    return questions[0], [files.to_path(word) for word in rest]


def load(config: Config) -> VLM:
    """
    Load a model, and say so on a terminal.

    :raises VlmError: it cannot be loaded
    """

    def work() -> VLM:
        from ..vlm import VLM

        return VLM(config)

    # a download shows its own progress in that line
    text = '' if config.auto_download else f'loading {config.llm_model_name or config.model}'
    with Waiting(text):
        return beside(work)


def note_demo(vlm: VLM) -> None:
    """Say on a terminal that the demo model is a toy."""
    from .models import recommended

    if sys.stderr.isatty() and vlm.name == 'demo':
        name = recommended()
        say(
            'The demo model is a toy: it knows emoji, no photographs. '
            + (
                f'`vlm download {name}` brings a real one, `-m {name}` uses it.'
                if name
                else '`vlm models` lists real ones.'
            )
        )


# -- pictures ---------------------------------------------------------------------------------


class Pictures:
    """What the next question is about: files, or what a camera sees at that moment."""

    def __init__(self, args: argparse.Namespace):
        """
        Open the camera, if there is one.

        :raises ConfigError: an option that cannot be
        :raises PictureError: there is no such camera
        """
        if args.frames < 1:
            raise ConfigError(f'--frames is {args.frames}: expected 1 or more')
        self._part = args.frames, args.start, args.end
        self._shown: dict[str, Any] = {}
        self._camera: Camera | None = None
        if args.camera is not None:
            from ..vlm import Camera

            self._camera = Camera(args.camera)

    def show(self, paths: Sequence[str], now: bool = False) -> None:
        """
        Show files, pictures and videos.

        :param now: read them, so that a wrong name is heard of at once
        :raises ConfigError: there is a camera to show, too
        :raises PictureError: there is no such file, or it cannot be read
        """
        if not paths:
            return
        if self.live and not now:
            raise ConfigError('--camera and files are given: choose one')
        absent = next(filter(files.missing, paths), None)
        if absent is not None:
            raise PictureError(
                f'{absent[:200]!r}: there is no such file; give the path of a picture or a video'
            )
        from ..values import Video

        videos = [path.lower().endswith(files.VIDEOS) for path in paths]
        images: list[Any] = []
        for path, video in zip(paths, videos, strict=True):
            if video:
                images.append(Video(path, *self._part))
            elif now:
                from ..vlm import read_image

                images.append(read_image(path))
            else:
                images.append(path)
        self._shown = {'images': images}

    def take(self) -> dict[str, Any]:
        """
        Give what to show now, as arguments of ``VLM.stream``.

        :raises PictureError: the camera gives no picture
        """
        if self._camera is None:
            return self._shown
        shown, self._shown = self._shown, {}  # files are shown once, and then the camera again
        return shown or {'images': self._camera.frame()}

    @property
    def live(self) -> bool:
        """Whether each question is about a fresh picture."""
        return self._camera is not None

    def __bool__(self) -> bool:
        return self.live or bool(self._shown)


# -- answers ----------------------------------------------------------------------------------


def answer(
    stream: Stream, args: argparse.Namespace, pictures: bool, whole: bool = False
) -> tuple[Reply, bool]:
    """
    Print an answer as it comes.

    :param whole: print it at its end alone
    :return: the reply, and whether Ctrl-C stopped it; a second one ends the program
    """
    interrupted = False

    def stop(*_: Any) -> None:
        nonlocal interrupted
        if interrupted:
            leave()
        interrupted = True
        stream.cancel()

    terminal = sys.stdout.isatty()
    lines = Lines()
    begun = False
    cut: Reply | None = None
    looking = Waiting('looking at the picture' if pictures else '', lambda: encoding(stream))
    with OnCtrlC(stop), looking as waiting:
        try:
            for chunk in stream:
                if chunk.thinking:
                    waiting.show('thinking')
                    continue
                text = chunk.text if begun else chunk.text.lstrip()
                begun = begun or bool(text)
                if args.json or whole:
                    waiting.show('answering')
                    continue
                if terminal:
                    text = lines.feed(text)
                if text:
                    waiting.hide()
                    print(text, end='', flush=True)
        except AnswerCut as exc:  # ``note_end`` says it
            cut = exc.reply
        finally:
            stream.close()
    reply: Reply = cut or stream.wait()
    waiting.hide()
    last = lines.end()
    if args.json:
        last = json.dumps(reply.as_dict(), ensure_ascii=False)
    elif reply.choices:
        last = '\n'.join(f'{share:.3f}  {choice}' for choice, share in reply.choices.items())
    print(last, flush=True)
    return reply, interrupted


def encoding(stream: Stream) -> str:
    """Say which tile of the pictures is being encoded; nothing where that is soon over."""
    now = stream.progress
    if now.done == now.total or (now.total == 1 and not now.seconds_left):
        return ''
    left = f', about {now.seconds_left:.0f} s left' if now.seconds_left >= 0.5 else ''
    return f'encoding tile {now.done + 1} of {now.total}{left}'


def note_end(reply: Reply, config: Config, as_json: bool) -> int:
    """
    Say that an answer was cut off, where it was.

    :return: the exit status; a part of an answer with a given form is an error
    """
    if reply.finish_reason != 'length':
        return 0
    end = (
        f'cut off after {reply.completion_tokens} tokens; --n-predict allows more'
        if reply.completion_tokens >= config.n_predict
        else 'cut off by the server'
        if config.is_remote
        else f'cut off where the context of {config.n_ctx} is full; --n-ctx makes it larger'
    )
    if options.is_constrained(config):
        complain(f'the answer was {end}. So it has not the form that was asked for')
        return EXIT_ERROR
    if not as_json:
        say(f'[{end}]')
    return 0


def timings(reply: Reply) -> str:
    """Sum up where the time went."""
    t = reply.timings
    return (
        f'{reply.prompt_tokens} prompt tokens ({reply.image_tokens} of pictures, '
        f'{reply.reused_tokens} reused), {reply.completion_tokens} answered, '
        f'{reply.finish_reason}; picture {t.preprocess_ms:.0f} + {t.encode_ms:.0f} ms, '
        f'prefill {t.prefill_ms:.0f} ms, first token after {t.ttft_ms:.0f} ms, '
        f'{t.tokens_per_second:.1f} tokens/s' + (f', by {reply.model}' if reply.model else '')
    )
