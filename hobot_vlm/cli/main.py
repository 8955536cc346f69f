"""
The ``vlm`` command: which commands there are, and how each of them ends.

Knows the terminal and nothing of models; what costs time to import is imported by the command
that needs it.
"""

from __future__ import annotations

import os
import sys

from .interrupt import EXIT_INTERRUPTED, leave, OnCtrlC

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself would be an import
    import argparse
    from collections.abc import Sequence

#: what a ROS installation may lack, where pip has another name for it
PIP_NAMES = {'llama_cpp': 'llama-cpp-python'}


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run the command line; the result is the exit status.

    :param argv: None: the words of this process, which then belongs to the command, and which
        Ctrl-C ends at any moment without a word
    """
    with OnCtrlC(leave, for_good=argv is None):
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    import io

    from .terminal import complain, EXIT_ERROR, EXIT_PIPE
    from ..errors import BackendMissing, VlmError

    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='replace')
    args = parse(sys.argv[1:] if argv is None else argv)
    _log(args.verbose)
    try:
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except VlmError as exc:
        complain(exc)
        return EXIT_ERROR
    except ModuleNotFoundError as exc:
        name = (exc.name or '').split('.')[0]
        if name == 'hobot_vlm':
            raise
        name = PIP_NAMES.get(name, name)
        complain(BackendMissing(f'{name} is not installed', f'run `pip install {name}`'))
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone; spare Python's own flush at the end the same error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """
    Read a command line.

    Files may stand behind options, where argparse loses them; ``--n_ctx`` is ``--n-ctx``.
    """
    parser, commands = make_parser()
    if not argv or argv[0] == 'help':
        parser.parse_args([*argv[1:2], '--help'])
    command = next((word for word in argv if not word.startswith('-')), None)
    if command is not None and command not in commands:
        hint = _hint(command, list(commands))
        parser.error(
            f'there is no command {command[:60]!r}{hint} Expected one of {", ".join(commands)}'
        )
    args, rest = parser.parse_known_args([_dashed(word) for word in argv])
    wrong = next((word for word in rest if word.startswith('-') and word != '-'), '')
    if rest and (wrong or 'words' not in args):
        from .completion import flags_of

        word, wanted = wrong or rest[0], commands[str(command)]
        hint = _hint(word.partition('=')[0], flags_of(wanted))
        wanted.error(f'unknown argument: {word[:60]}{hint}')
    if rest:
        args.words += rest
    return args


def _dashed(word: str) -> str:
    name, equals, value = word.partition('=')
    return name.replace('_', '-') + equals + value if word.startswith('--') else word


def _hint(word: str, known: Sequence[str]) -> str:
    import difflib

    near = difflib.get_close_matches(word, known, 1)
    return f'; did you mean {near[0]}?' if near else '.'


def make_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Make the parser, and give those of its commands by name."""
    import argparse

    from . import ask, chat, completion, doctor, models, serve
    from .. import __version__

    parser = argparse.ArgumentParser(
        prog='vlm',
        description='Ask a vision-language model about pictures, on this machine.',
        epilog='`vlm COMMAND --help` says more.',
        allow_abbrev=False,
    )
    parser.add_argument('--version', action='version', version=f'vlm {__version__}')
    parser.set_defaults(verbose=False)
    commands = parser.add_subparsers(metavar='COMMAND', required=True)
    for module in (ask, chat, serve, models, doctor, completion):
        module.add_parser(commands)
    for command in commands.choices.values():
        command.allow_abbrev = False
    return parser, commands.choices


def _log(verbose: bool) -> None:
    """Show what our own code has to say; libraries have their own ways."""
    import logging

    from .terminal import say

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(self.format(record))

    handler = Handler()
    handler.setFormatter(logging.Formatter('vlm: %(message)s'))
    logger = logging.getLogger('hobot_vlm')
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if verbose else logging.WARNING)


if __name__ == '__main__':
    sys.exit(main())
