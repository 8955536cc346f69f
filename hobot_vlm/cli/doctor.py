"""
``vlm doctor``: what this machine is, and what would keep a model from running well.

Each finding comes with its cure. What is checked stands in ``checks.py`` and ``libraries.py``;
this file runs it and says it.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
import json
import os
from pathlib import Path
from typing import Any

from .checks import CHECKS, Finding, Machine
from .servers import check_servers
from ..errors import ConfigError

#: exit status where something keeps a model from running
EXIT_BAD = 1
#: status -> the word before a finding
WORDS = {'ok': 'ok', 'info': '-', 'warn': 'warn', 'bad': 'BAD'}


def add_parser(commands: Any) -> None:
    """Add the command to those of ``vlm``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        'doctor',
        help='say what would keep a model from running well here, and the cure',
        description='Say what this machine is and what would keep a model from running well on '
        'it, each with its cure. Nothing is changed.',
    )
    parser.add_argument('-m', '--model', help='check this model alone, by name or address')
    parser.add_argument('--json', action='store_true', help='print a JSON object')
    parser.add_argument(
        '--root', default='/', metavar='FOLDER', help='check the file system below this folder'
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """
    Check, and print what was found.

    :raises ConfigError: no such folder, or no such model
    """
    root = Path(args.root)
    if not root.is_dir():
        raise ConfigError(f'--root {args.root}: expected a folder', 'root')
    machine = Machine(root, os.environ, args.model or '')
    if '://' in machine.model:  # this machine only sends it pictures
        found = check_servers(machine.model)
    else:
        found = [finding for check in CHECKS for finding in check(machine)]
    bad = [finding for finding in found if finding.status == 'bad']
    if args.json:
        report = {
            'ok': not bad,
            'root': str(root),
            'board': machine.board,
            'findings': [asdict(finding) for finding in found],
        }
        print(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        print('\n'.join(_lines(found)))
    return EXIT_BAD if bad else 0


def _lines(found: list[Finding]) -> list[str]:
    width = max(len(finding.topic) for finding in found)
    lines = []
    for finding in found:
        lines.append(f'{WORDS[finding.status]:5} {finding.topic.ljust(width)}  {finding.text}')
        if finding.cure:
            lines.append(f'{"":5} {"":{width}}  -> {finding.cure}')
    warnings = sum(finding.status == 'warn' for finding in found)
    bad = sum(finding.status == 'bad' for finding in found)
    if bad:
        end = 'What is marked BAD keeps a model from running.'
    elif warnings:
        end = f'A model runs here; {warnings} of these would make it run better.'
    else:
        end = 'A model runs here, as well as it can.'
    return [*lines, '', end]
