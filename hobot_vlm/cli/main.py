"""
The ``vlm`` command: ask, chat, list and fetch models, without ROS.

Knows the terminal and nothing of models; the engine is imported when a question is asked.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
import io
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from typing import Any, TYPE_CHECKING

from . import __version__, catalogue
from .config import Config
from .errors import BackendMissing, ConfigError, VlmError
from .values import Reply
from .video import is_video, read_frames

if TYPE_CHECKING:
    from .engine import Answer, VLM

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # as shells have it: 128 + SIGINT
EXIT_PIPE = 141  # 128 + SIGPIPE

#: what a ROS installation may lack, where pip has another name for it
PIP_NAMES = {'llama_cpp': 'llama-cpp-python'}

CHAT_HELP = """\
/image FILE     show a picture or a video; the next question is about it
/reset          forget the conversation; the picture is shown again
/system TEXT    give the model another system prompt, and start afresh
/save FILE      keep the conversation; `vlm chat --restore FILE` goes on with it
/stats          say how long the last answer took
/help           this list
/quit           leave; so does Ctrl-D. Ctrl-C stops an answer"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the result is the exit status."""
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='replace')
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    # argparse hands back files that stand behind an option
    if rest and ('images' not in args or any(arg.startswith('-') for arg in rest)):
        parser.error(f'unknown arguments: {" ".join(rest)}')
    if rest:
        args.images += rest
    _log(args.verbose)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except VlmError as exc:
        _complain(exc)
        return EXIT_ERROR
    except ModuleNotFoundError as exc:
        name = (exc.name or '').split('.')[0]
        if name == 'hobot_vlm':
            raise
        name = PIP_NAMES.get(name, name)
        _complain(BackendMissing(f'{name} is not installed', f'run `pip install {name}`'))
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone; spare Python's own flush at the end the same error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE


def _log(verbose: bool) -> None:
    """Show what our own code has to say; libraries have their own ways."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter('vlm: %(message)s'))
    logger = logging.getLogger('hobot_vlm')
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if verbose else logging.WARNING)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='vlm', description='Ask a vision-language model about pictures, on this machine.'
    )
    parser.add_argument('--version', action='version', version=f'vlm {__version__}')
    commands = parser.add_subparsers(metavar='COMMAND', required=True)

    ask = _asking(commands, 'ask', 'answer one question')
    ask.add_argument('prompt', metavar='PROMPT', help='the question; - reads it from stdin')
    ask.add_argument('images', nargs='*', metavar='IMAGE', help='picture or video files')
    ask.set_defaults(run=_ask)

    chat = _asking(commands, 'chat', 'talk with the model; /help lists what can be typed')
    chat.add_argument(
        'images', nargs='*', metavar='IMAGE', help='what the first question is about'
    )
    chat.add_argument('--restore', metavar='FILE', help='go on with a conversation of /save')
    chat.set_defaults(run=_chat)

    models = commands.add_parser('models', help='list the models that are known by name')
    models.add_argument('--json', action='store_true', help='print a JSON array')
    models.set_defaults(run=_models)

    download = commands.add_parser('download', help='bring a model onto this machine')
    download.add_argument('name', metavar='NAME', help='as `vlm models` lists it')
    download.set_defaults(run=_download)

    for command in (ask, chat, models, download):
        command.add_argument('-v', '--verbose', action='store_true', help='say what happens')
    return parser


def _asking(commands: Any, name: str, about: str) -> argparse.ArgumentParser:
    """Make a command that runs a model."""
    options = '\n'.join(
        f'  {item.name} ({item.default!r}): {item.metadata["doc"]}' for item in fields(Config)
    )
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=about,
        description=f'{about[0].upper()}{about[1:]}.',
        epilog=f'options of --set, with their defaults:\n{options}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument('-m', '--model', help='model by name; the same as --set model=NAME')
    command.add_argument(
        '--set',
        action='append',
        default=[],
        metavar='NAME=VALUE',
        help='set an option (see below); repeatable',
    )
    command.add_argument('--json-schema', metavar='FILE', help='make every answer fit a schema')
    command.add_argument(
        '--stop', action='append', default=[], metavar='TEXT', help='end an answer there'
    )
    command.add_argument(
        '--logprobs',
        type=int,
        default=0,
        metavar='N',
        help='with --json: the N likeliest tokens in each place',
    )
    command.add_argument('--params-file', metavar='FILE', help='options from a ROS parameter file')
    command.add_argument('--frames', type=int, default=8, help='frames taken from a video (8)')
    command.add_argument('--json', action='store_true', help='print one JSON object per answer')
    command.add_argument('--stats', action='store_true', help='print timings to stderr')
    return command


def _config(args: argparse.Namespace) -> Config:
    values: dict[str, Any] = {}
    for setting in args.set:
        name, equals, value = setting.partition('=')
        if not equals:
            raise ConfigError(f'--set {setting}: expected NAME=VALUE')
        values[name.strip()] = value
    if args.model:
        values['model'] = args.model
    if args.json_schema:
        values['json_schema'] = args.json_schema
    if args.params_file:
        return Config.from_yaml(args.params_file, **values)
    return Config.from_flat(values)


# -- ask --------------------------------------------------------------------------------------


def _ask(args: argparse.Namespace) -> int:
    prompt = sys.stdin.read() if args.prompt == '-' else args.prompt
    if not prompt.strip():
        raise ConfigError('the prompt is empty: expected a question')
    config = _config(args)
    shown = _pictures(args.images, args.frames)

    from .engine import VLM

    with VLM(config) as vlm:
        answer = vlm.stream(prompt.strip(), stop=args.stop, logprobs=args.logprobs, **shown)
        reply, interrupted = _answer(vlm, answer, args, bool(shown))
    if args.stats:
        _say(_timings(reply))
    return EXIT_INTERRUPTED if interrupted else 0


def _pictures(paths: Sequence[str], frames: int) -> dict[str, Any]:
    """Give files as the engine wants to see them: a video is a row of labelled pictures."""
    if frames < 1:
        raise ConfigError(f'--frames is {frames}: expected 1 or more')
    if not paths:
        return {}
    if not any(is_video(path) for path in paths):
        return {'images': list(paths)}
    images: list[Any] = []
    labels: list[str] = []
    counts = {'Image-': 0, 'Frame': 0}
    for path in paths:
        kind = 'Frame' if is_video(path) else 'Image-'
        for image in read_frames(path, frames) if kind == 'Frame' else [path]:
            counts[kind] += 1
            images.append(image)
            labels.append(f'{kind}{counts[kind]}')
    return {'images': images, 'labels': labels, 'max_tiles': 1}


def _answer(
    vlm: VLM, answer: Answer, args: argparse.Namespace, pictures: bool
) -> tuple[Reply, bool]:
    """Print an answer as it comes; also tell whether Ctrl-C stopped it."""
    begun = False
    with _Waiting() as waiting, _stopped_by_ctrl_c(vlm) as hits:
        if pictures:
            waiting.show('looking at the picture')
        try:
            for chunk in answer:
                if chunk.thinking:
                    waiting.show('thinking')
                    continue
                waiting.hide()
                text = chunk.text if begun else chunk.text.lstrip()
                begun = begun or bool(text)
                if not args.json:
                    print(text, end='', flush=True)
        finally:
            answer.close()
    reply: Reply = answer.reply
    print(json.dumps(reply.as_dict(), ensure_ascii=False) if args.json else '', flush=True)
    return reply, bool(hits)


@contextmanager
def _stopped_by_ctrl_c(vlm: VLM) -> Iterator[list[int]]:
    """
    Let Ctrl-C stop the answer instead of the program; a second one stops the program.

    Python runs signal handlers only between its own instructions, and llama.cpp may be at work
    for seconds; so a thread waits for the byte that Python writes when the signal arrives.
    """
    hits: list[int] = []
    over = threading.Event()

    def count(number: int, _frame: Any) -> None:
        hits.append(number)
        if len(hits) > 1:
            raise KeyboardInterrupt

    def watch() -> None:
        if signal.SIGINT in inbox.recv(1):
            while not over.wait(0.05):  # the answer may only be about to start
                vlm.cancel()

    inbox, outbox = socket.socketpair()
    outbox.setblocking(False)
    watcher = threading.Thread(target=watch, daemon=True)
    handler = signal.signal(signal.SIGINT, count)
    wakeup = signal.set_wakeup_fd(outbox.fileno(), warn_on_full_buffer=False)
    watcher.start()
    try:
        yield hits
    finally:
        over.set()
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGINT, handler)
        outbox.close()
        watcher.join()
        inbox.close()


class _Waiting:
    """A line on the terminal that says what takes so long; none where stderr is no terminal."""

    def __init__(self) -> None:
        self._text = ''
        self._since = 0.0
        self._width = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> _Waiting:
        if sys.stderr.isatty():
            self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.hide()
        self._over.set()

    def show(self, text: str) -> None:
        with self._lock:
            if text != self._text:
                self._text, self._since = text, time.monotonic()

    def hide(self) -> None:
        with self._lock:
            self._text = ''
            self._draw('')

    def _tick(self) -> None:
        while not self._over.wait(0.2):
            with self._lock:
                if self._text:
                    self._draw(f'{self._text} … {time.monotonic() - self._since:.1f} s')

    def _draw(self, line: str) -> None:
        if line or self._width:
            # spaces instead of an escape sequence: right on every terminal
            sys.stderr.write('\r' + line.ljust(self._width) + ('' if line else '\r'))
            sys.stderr.flush()
        self._width = len(line)


def _timings(reply: Reply) -> str:
    t = reply.timings
    return (
        f'{reply.prompt_tokens} prompt tokens ({reply.image_tokens} of pictures, '
        f'{reply.reused_tokens} reused), {reply.completion_tokens} answered, '
        f'{reply.finish_reason}; picture {t.preprocess_ms:.0f} + {t.encode_ms:.0f} ms, '
        f'prefill {t.prefill_ms:.0f} ms, first token after {t.ttft_ms:.0f} ms, '
        f'{t.tokens_per_second:.1f} tokens/s'
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _complain(exc: VlmError) -> None:
    _say(f'vlm: {" ".join(str(exc).split())}')


# -- chat -------------------------------------------------------------------------------------


def _chat(args: argparse.Namespace) -> int:
    config = _config(args)
    shown = _pictures(args.images, args.frames)

    from .engine import VLM

    with VLM(config) as vlm:
        return _Chat(vlm, args, shown).run()


class _Chat:
    """A conversation at the terminal, or from a pipe, where each line is a question."""

    def __init__(self, vlm: VLM, args: argparse.Namespace, shown: dict[str, Any]):
        self._vlm = vlm
        self._args = args
        self._talk = vlm.restore(args.restore) if args.restore else vlm.conversation()
        self._shown = shown
        self._unseen = bool(shown)
        self._last: Reply | None = None
        self._status = 0

    def run(self) -> int:
        """Answer until the input ends."""
        for line in _lines():
            if line in ('/quit', '/exit'):
                break
            try:
                if line.startswith('/'):
                    self._command(*line[1:].split(None, 1))
                elif line:
                    self._question(line)
            except VlmError as exc:
                _complain(exc)
                if not sys.stdin.isatty():
                    self._status = EXIT_ERROR
        return self._status

    def _question(self, prompt: str) -> None:
        shown = self._shown if self._unseen else {}
        answer = self._talk.stream(
            prompt, stop=self._args.stop, logprobs=self._args.logprobs, **shown
        )
        self._last, _ = _answer(self._vlm, answer, self._args, bool(shown))
        self._unseen = False
        if self._args.stats:
            _say(_timings(self._last))

    def _command(self, name: str = '', rest: str = '') -> None:
        if name == 'image' and rest:
            self._shown = _loaded(_pictures([os.path.expanduser(rest)], self._args.frames))
            self._unseen = True
        elif name == 'reset':
            self._talk.reset()
            self._unseen = bool(self._shown)
        elif name == 'system' and rest:
            self._talk.reset()
            self._talk = self._vlm.conversation(system_prompt=rest)
            self._unseen = bool(self._shown)
        elif name == 'save' and rest:
            self._talk.save(os.path.expanduser(rest))
        elif name == 'stats':
            _say(_timings(self._last) if self._last else 'no answer yet')
        elif name == 'help':
            _say(CHAT_HELP)
        elif name in ('image', 'save', 'system'):
            raise ConfigError(
                f'/{name} wants {"a text" if name == "system" else "a file"} behind it'
            )
        else:
            raise ConfigError(f'there is no /{name}; /help lists what there is')


def _loaded(shown: dict[str, Any]) -> dict[str, Any]:
    """Read pictures now, so that a wrong name is heard of at once."""
    from .image import load_rgb

    return {**shown, 'images': [load_rgb(image) for image in shown['images']]}


def _lines() -> Iterator[str]:
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin)
        return
    try:
        import readline  # noqa: F401  gives input() its line editing and history
    except ImportError:
        pass
    _say('/help lists what can be typed; Ctrl-D leaves.')
    while True:
        try:
            yield input('> ').strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()  # drops what was typed, as a shell does


# -- models and download ----------------------------------------------------------------------


def _models(args: argparse.Namespace) -> int:
    rows = [_model_row(model) for model in catalogue.load().values()]
    if args.json:
        print(json.dumps(rows, ensure_ascii=False, indent=2))
        return 0
    table = [('NAME', 'SIZE', 'LANGUAGES', 'HERE', 'TITLE')]
    for row in rows:
        size = f'{row["size_mb"]:.0f} MB' if row['size_mb'] else '-'
        here = 'yes' if row['local'] else 'no' if row['runs_here'] else 'other board'
        table.append((row['name'], size, ' '.join(row['languages']), here, row['title']))
    widths = [max(len(row[i]) for row in table) for i in range(5)]
    for cells in table:
        print('  '.join(cell.ljust(w) for cell, w in zip(cells, widths, strict=True)).rstrip())
    _say(f'`vlm download NAME` fetches a model; your own go into {catalogue.user_file()}')
    return 0


def _model_row(model: catalogue.Model) -> dict[str, Any]:
    row: dict[str, Any] = {
        'name': model.name,
        'title': model.title,
        'family': model.family,
        'languages': model.languages,
        'size_mb': model.size_mb,
        'runs_here': True,
        'local': False,
        'encoder': None,
        'decoder': None,
    }
    try:
        variant = model.variant()
    except ConfigError:
        return {**row, 'runs_here': False}
    wanted = {'encoder': variant.encoder, 'decoder': variant.decoder}
    paths = {role: file.local() for role, file in wanted.items() if file}
    row |= {role: str(paths[role] or file) for role, file in wanted.items() if file}
    found = [path.stat().st_size for path in paths.values() if path]
    if len(found) == len(paths):
        row |= {'local': True, 'size_mb': round(sum(found) / 1e6, 1)}
    return row


def _download(args: argparse.Namespace) -> int:
    files = catalogue.download(args.name)
    for role, path in (('encoder', files.encoder), ('decoder', files.decoder)):
        if path:
            print(role, path)
    return 0


if __name__ == '__main__':
    sys.exit(main())
