"""
``vlm models`` and ``vlm download``: which models there are, fetching and removing them.

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

#: in the order of what a narrow terminal should still show
COLUMNS = ('NAME', 'STATE', 'SIZE', 'MEMORY', 'LANGUAGES', 'BPU OF', 'LICENCE', 'TITLE')

STATES = {
    'here': 'on this machine',
    'best': 'suits this machine best',
    'fits': '`vlm download NAME` fetches it',
    'to make': 'is published as a checkpoint only; `vlm download NAME` says how to make its files',
    'too big': 'wants more memory than this machine has',
    'other board': 'has no files for this machine',
}


def add_parser(commands: Any) -> None:
    """Add the commands to those of ``vlm``."""
    models = commands.add_parser('models', help='list the models that are known by name')
    models.add_argument('--json', action='store_true', help='print a JSON array')
    models.add_argument('--remove', metavar='NAME', help="take a model's files off this machine")
    models.set_defaults(run=run_models)
    download = commands.add_parser('download', help='bring a model onto this machine')
    download.add_argument('name', metavar='NAME', help='as `vlm models` lists it')
    download.set_defaults(run=run_download)
    for command in (models, download):
        command.add_argument('-v', '--verbose', action='store_true', help='say what happens')


def run_models(args: argparse.Namespace) -> int:
    """List the models, or remove one."""
    from ..vlm import remove, user_file, VLM

    if args.remove is not None:
        freed = remove(args.remove)
        print(json.dumps({'freed_bytes': freed}) if args.json else f'freed {freed / 1e6:.0f} MB')
        return 0
    rows = [describe(model) for model in VLM.models().values()]
    best = _best(rows)
    if args.json:
        rows = [{**row, 'recommended': row['name'] == best} for row in rows]
        print(json.dumps(rows, ensure_ascii=False, indent=2))
        return 0
    for row in rows:
        if row['name'] == best and row['state'] == 'fits':
            row['state'] = 'best'
    width = columns() if sys.stdout.isatty() else 0
    print('\n'.join(_fitted([COLUMNS, *map(_cells, rows)], width)))
    for state in STATES:
        if any(row['state'] == state for row in rows):
            say(f'{state}: {STATES[state]}')
    if best:
        say(f'For this machine with {memory_bytes()[0] / 1e9:.0f} GB: `vlm download {best}`')
    say(f'Your own models go into {user_file()}')
    return 0


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Write a model as the table shows it."""
    size = f'{row["size_mb"]:.0f} MB' if row['size_mb'] else '-'
    memory = f'{row["memory_mb"] / 1e3:.1f} GB' if row['size_mb'] else '-'
    lists = (' '.join(row[name]) or '-' for name in ('languages', 'boards'))
    return (row['name'], row['state'], size, memory, *lists, row['license'] or '-', row['title'])


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
        'memory_mb': _memory_mb(model.size_mb),
        'license': model.license,
        'boards': [board.removeprefix('rdk') for board in model.variants if board != 'any'],
        'checkpoint': model.checkpoint or None,
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
        size = round(sum(found) / 1e6, 1)
        row |= {'local': True, 'size_mb': size, 'memory_mb': _memory_mb(size)}
    small = row['memory_mb'] * 1e6 <= SHARE * memory_bytes()[0]
    fitting = 'to make' if model.checkpoint else 'fits'
    row['state'] = 'here' if row['local'] else fitting if small else 'too big'
    return row


def _memory_mb(size_mb: float) -> float:
    """Give the memory that a model takes while it runs, from the size of its files."""
    return round(size_mb + BESIDES_FILES / 1e6, 1)


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
