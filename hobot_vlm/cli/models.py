"""
``vlm models`` and ``vlm download``: which models there are, and what suits this machine.

Reaches the catalogue through ``vlm.py`` alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, TYPE_CHECKING

from .terminal import columns, cut, say, width_of
from ..errors import ConfigError
from ..machine import memory_bytes

if TYPE_CHECKING:
    from ..vlm import Model

#: Memory beyond the files, in bytes: KV cache of 4096 tokens, encoder at work, the program;
#: measured with SmolVLM2-500M's and InternVL3-1B's shapes.
BESIDES_FILES = 900e6
#: Share of a machine's memory that a model may take. The rest is for the system and the robot's
#: other programs.
SHARE = 0.6
#: Largest files of a model that is recommended: a CPU reads them once a token, and at the 10 GB/s
#: of a laptop that makes seven tokens a second.
COMFORTABLE_MB = 1400

STATES = {
    'here': 'on this machine',
    'fits': '`vlm download NAME` fetches it',
    'too big': 'wants more memory than this machine has',
    'other board': 'has no files for this machine',
}


def add_parser(commands: Any) -> None:
    """Add the commands to those of ``vlm``."""
    models = commands.add_parser('models', help='list the models that are known by name')
    models.add_argument('--json', action='store_true', help='print a JSON array')
    models.set_defaults(run=run_models)
    download = commands.add_parser('download', help='bring a model onto this machine')
    download.add_argument('name', metavar='NAME', help='as `vlm models` lists it')
    download.set_defaults(run=run_download)
    for command in (models, download):
        command.add_argument('-v', '--verbose', action='store_true', help='say what happens')


def run_models(args: argparse.Namespace) -> int:
    """List the models."""
    from ..vlm import user_file, VLM

    rows = [describe(model) for model in VLM.models().values()]
    best = _best(rows)
    if args.json:
        rows = [{**row, 'recommended': row['name'] == best} for row in rows]
        print(json.dumps(rows, ensure_ascii=False, indent=2))
        return 0
    table: list[tuple[str, ...]] = [('NAME', 'SIZE', 'LANGUAGES', 'STATE', 'TITLE')]
    for row in rows:
        size = f'{row["size_mb"]:.0f} MB' if row['size_mb'] else '-'
        languages = ' '.join(row['languages'])
        table.append((row['name'], size, languages, row['state'], row['title']))
    width = columns() if sys.stdout.isatty() else 0
    print('\n'.join(_fitted(table, width)))
    seen = [state for state in STATES if any(row['state'] == state for row in rows)]
    for state in seen:
        say(f'{state}: {STATES[state]}')
    if best:
        say(f'For this machine with {memory_bytes()[0] / 1e9:.0f} GB: `vlm download {best}`')
    say(f'Your own models go into {user_file()}')
    return 0


def _fitted(table: list[tuple[str, ...]], width: int) -> list[str]:
    """Lay a table out as lines; its last column gives way where the terminal is narrow."""
    widths = [max(width_of(row[i]) for row in table) for i in range(len(table[0]))]
    lines = []
    for row in table:
        cells = [cell + ' ' * (w - width_of(cell)) for cell, w in zip(row, widths, strict=True)]
        line = '  '.join(cells).rstrip()
        lines.append(cut(line, width) if width else line)
    return lines


def describe(model: Model) -> dict[str, Any]:
    """Say of a model what it is, whether it runs here and where its files are."""
    row: dict[str, Any] = {
        'name': model.name,
        'title': model.title,
        'family': model.family,
        'languages': model.languages,
        'size_mb': model.size_mb,
        'state': 'other board',
        'runs_here': True,
        'for_board': False,
        'local': False,
        'encoder': None,
        'decoder': None,
    }
    try:
        variant = model.variant()
    except ConfigError:
        return {**row, 'runs_here': False}
    row['for_board'] = variant is not model.variants.get('any')
    wanted = {'encoder': variant.encoder, 'decoder': variant.decoder}
    paths = {role: file.local() for role, file in wanted.items() if file}
    row |= {role: str(paths[role] or file) for role, file in wanted.items() if file}
    found = [path.stat().st_size for path in paths.values() if path]
    if len(found) == len(paths):
        row |= {'local': True, 'size_mb': round(sum(found) / 1e6, 1)}
    small = row['size_mb'] * 1e6 + BESIDES_FILES <= SHARE * memory_bytes()[0]
    row['state'] = 'here' if row['local'] else 'fits' if small else 'too big'
    return row


def _best(rows: list[dict[str, Any]]) -> str:
    """Give the largest model that is comfortable here, of those made for this board if any is."""
    fitting = [
        row
        for row in reversed(rows)  # of equals the newest, which stands last
        if row['state'] in ('here', 'fits')
        and row['name'] != 'demo'
        and row['size_mb'] <= COMFORTABLE_MB
    ]
    best = max(fitting, key=lambda row: (row['for_board'], row['size_mb']), default={'name': ''})
    return str(best['name'])


def recommended() -> str:
    """Give the name of the model that suits this machine best; empty where none does."""
    from ..vlm import VLM

    return _best([describe(model) for model in VLM.models().values()])


def run_download(args: argparse.Namespace) -> int:
    """Fetch a model."""
    from ..vlm import VLM

    files = VLM.download(args.name)
    for role, path in (('encoder', files.encoder), ('decoder', files.decoder)):
        if path:
            print(role, path)
    return 0
