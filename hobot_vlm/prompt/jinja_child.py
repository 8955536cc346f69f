"""
Renders a chat template: conversations in, texts out.

A template is a program from a file that nobody vouches for. Those of this package are rendered in
this process; others by this file as a program of its own, which may be stopped: a template can ask
for more memory than there is in one step, so that nothing within the process can. It imports
nothing of this package.
"""

from __future__ import annotations

from datetime import datetime
import json
import resource
import sys
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

#: Seconds of processor time, and bytes of memory, for a template and all of its conversations.
#: Published ones take milliseconds, and Python with Jinja 30 MB.
MAX_SECONDS, MAX_MEMORY = 2, 300 << 20
#: Characters of a rendered conversation: the texts of people are not in it yet, and few templates
#: write more than some thousand of their own.
MAX_TEXT = 200_000
MAX_MESSAGE = 300


class _Generation(Extension):
    """The tag ``generation`` of transformers, which marks answers for training."""

    tags = {'generation'}  # noqa: RUF012

    def parse(self, parser: Parser) -> Any:
        parser.stream.skip(1)
        return parser.parse_statements(('name:endgeneration',), drop_needle=True)


def _raise(message: object) -> None:
    raise ValueError(message)


def _tojson(value: Any, **options: Any) -> str:
    return json.dumps(value, **{'ensure_ascii': False, **options})


def render(source: str, bos: str, eos: str, conversations: list[Any]) -> dict[str, Any]:
    """
    Render each conversation up to where the answer begins.

    :return: ``error`` for a template that cannot be read; else ``results``, with ``text`` or
        ``error`` for each conversation
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters['tojson'] = _tojson
    environment.globals['raise_exception'] = _raise
    environment.globals['strftime_now'] = lambda form: datetime.now().strftime(form)
    try:
        template = environment.from_string(source)
    except Exception as exc:  # whatever Jinja makes of an untrusted text
        return {'error': _short(exc)}
    return {'results': [_rendered(template, bos, eos, one) for one in conversations]}


def _rendered(template: jinja2.Template, bos: str, eos: str, messages: Any) -> dict[str, str]:
    pieces: list[str] = []
    size = 0
    try:
        for piece in template.generate(
            messages=messages,
            bos_token=bos,
            eos_token=eos,
            add_generation_prompt=True,
            tools=None,
            functions=None,
            documents=None,
        ):
            size += len(piece)
            if size > MAX_TEXT:
                return {'error': f'it writes more than {MAX_TEXT} characters'}
            pieces.append(piece)
    except MemoryError:
        return {'error': f'it takes more than {MAX_MEMORY >> 20} MB of memory'}
    except Exception as exc:  # whatever an untrusted program does
        return {'error': _short(exc)}
    return {'text': ''.join(pieces)}


def _short(exc: Exception) -> str:
    return (str(exc)[:MAX_MESSAGE] or type(exc).__name__).split('\n')[0]


def main() -> None:
    """Render what stdin asks for, to stdout, within bounds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + MAX_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    json.dump(render(**json.load(sys.stdin)), sys.stdout)


if __name__ == '__main__':
    main()
