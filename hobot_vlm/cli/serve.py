"""
``vlm serve``: OpenAI's API and a page, until a signal comes.

Knows how the server is started and stopped; what it answers stands in ``server/``.
"""

from __future__ import annotations

import argparse
import logging
import signal
import threading
from typing import Any

from . import options
from .terminal import say
from ..errors import ConfigError
from ..server import check_libraries

#: seconds between two checks whether the server is to end
TICK = 0.2

#: the options, as argparse has them
OPTIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (('--host',), {
        'default': '127.0.0.1',
        'help': 'address to listen on (127.0.0.1: this machine alone)',
    }),
    (('--port',), {
        'type': int, 'default': 8000, 'help': 'port to listen on (8000); 0: one that is free',
    }),
    (('--api-key',), {'metavar': 'KEY', 'help': 'what clients must send as their API key'}),
    (('--no-api-key',), {
        'action': 'store_true', 'help': 'let everybody in who reaches the address',
    }),
    (('--cors',), {
        'action': 'append', 'default': [], 'metavar': 'ORIGIN',
        'help': 'let pages of this origin call the API from a browser; * for all; repeatable',
    }),
    (('--allow-urls',), {
        'action': 'store_true', 'help': 'fetch pictures that are named by http(s) URLs',
    }),
    (('--media-path',), {
        'default': '', 'metavar': 'FOLDER',
        'help': 'read pictures that are named by file: URLs, below this folder',
    }),
    (('--max-body',), {
        'type': int, 'default': 32, 'metavar': 'MIB', 'help': 'largest request in MiB (32)',
    }),
    (('-v', '--verbose'), {'action': 'store_true', 'help': 'say what happens'}),
)  # fmt: skip


def add_parser(commands: Any) -> None:
    """Add the command to those of ``vlm``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        'serve',
        help="answer OpenAI's API over HTTP, and show a page",
        description="Answer OpenAI's API over HTTP, and show a page for the browser.",
        epilog='The key may also stand in the environment as HOBOT_VLM_API_KEY. More: '
        'docs/serving.md.',
        usage='vlm serve [OPTION ...]',
    )
    for flags, more in OPTIONS:
        parser.add_argument(*flags, **more)
    options.add_config(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """
    Serve until SIGINT or SIGTERM.

    :raises VlmError: an option is wrong, or the model cannot be loaded
    """
    check_libraries()
    from ..server.http import create_app, HttpServer
    from ..vlm import VLM

    config = options.config_of(args)
    settings = _settings(args)

    logging.getLogger('hobot_vlm').setLevel(logging.INFO if args.verbose else logging.WARNING)
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    app, service = create_app(lambda: VLM(config), settings)
    try:
        with HttpServer(app, service, args.host, args.port) as server:
            say(f'listening on {server.url}')
            while not service.loaded.wait(TICK) and not over.is_set():
                pass
            if service.failure is not None:
                raise service.failure
            if service.vlm is not None:
                say(f'the model {service.vlm.name} answers; Ctrl-C ends')
            while not over.wait(TICK) and server.running:
                pass
    finally:
        if service.vlm is not None:
            service.vlm.close()
    return 0


def _settings(args: argparse.Namespace) -> Any:
    """Read how the server is reached."""
    from ..server.guard import Settings

    if args.max_body < 1:
        raise ConfigError(f'--max-body is {args.max_body}: expected 1 MiB or more', 'max_body')
    return Settings.of(
        args.host,
        args.api_key or '',
        args.no_api_key,
        origins=tuple(origin.rstrip('/') for origin in args.cors),
        max_body=args.max_body << 20,
        allow_urls=args.allow_urls,
        media_path=args.media_path,
    )
