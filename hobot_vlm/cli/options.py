"""
Options of the configuration on the command line, each as a flag of its own.

Names, descriptions and ranges come from ``config.py``; here stands only how they are grouped.
"""

from __future__ import annotations

import argparse
from dataclasses import Field, fields
from typing import Any

from ..config import Config
from ..errors import ConfigError
from ..option import default_of

#: heading -> options below it; what is in none of them comes last
GROUPS = {
    'model': (
        'model', 'model_file_name', 'llm_model_name', 'model_type', 'auto_download', 'lora',
        'lora_scale',
    ),
    'model on another machine': (
        'remote_model', 'remote_timeout', 'remote_image_side', 'remote_jpeg_quality', 'fallback',
    ),
    'pictures': ('fit', 'max_tiles'),
    'answer': (
        'system_prompt', 'n_predict', 'temperature', 'top_k', 'top_p', 'min_p', 'repeat_penalty',
        'seed', 'thinking',
    ),
    'form of the answer': ('json_schema', 'grammar', 'regex'),
}  # fmt: skip
REST = 'machine'

#: options with which an answer that was cut off is worth nothing
CONSTRAINTS = GROUPS['form of the answer']


def add_config(command: argparse.ArgumentParser) -> None:
    """Add a flag for each option of the configuration."""
    known = {item.name: item for item in fields(Config)}
    grouped = {name for names in GROUPS.values() for name in names}
    rest = tuple(name for name in known if name not in grouped)
    for heading, names in (*GROUPS.items(), (REST, rest)):
        group = command.add_argument_group(heading)
        for name in names:
            if name in known:
                _add(group, known[name])
    command.add_argument(
        '--set',
        action='append',
        default=[],
        metavar='NAME=VALUE',
        help='set an option by its name in parameter files; repeatable',
    )
    command.add_argument('--params-file', metavar='FILE', help='options from a ROS parameter file')


def _add(group: Any, item: Field[Any]) -> None:
    flag = '--' + item.name.replace('_', '-')
    more: dict[str, Any] = {'dest': item.name, 'default': None, 'help': _help(item)}
    kind = type(default_of(item))
    if kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **more)
        return
    if item.name == 'model':
        group.add_argument('-m', flag, metavar='NAME', **more)
        return
    choices = [str(choice) for choice in item.metadata['choices'] if choice != '']
    metavar = {int: 'N', float: 'X'}.get(kind, 'TEXT')
    group.add_argument(flag, metavar='|'.join(choices) or metavar, **more)


def _help(item: Field[Any]) -> str:
    default, low, high = default_of(item), item.metadata['low'], item.metadata['high']
    notes = [] if low is None else [f'{low:g} to {high:.10g}']
    if default != '':
        notes.append(f'default {str(default).lower() if isinstance(default, bool) else default}')
    words: str = item.metadata['doc'] + (f' ({"; ".join(notes)})' if notes else '')
    return words.replace('%', '%%')


def config_of(args: argparse.Namespace) -> Config:
    """
    Give the configuration that a command line asks for.

    A flag wins over ``--set``, and that over the parameter file.

    :raises ConfigError: an unknown option, or a value that it cannot have
    """
    values: dict[str, Any] = {}
    for setting in args.set:
        name, equals, value = setting.partition('=')
        if not equals:
            raise ConfigError(f'--set {setting[:60]}: expected NAME=VALUE')
        values[name.strip()] = value
    for item in fields(Config):
        given = getattr(args, item.name, None)
        if given is not None:
            values[item.name] = given
    if args.params_file:
        return Config.from_yaml(args.params_file, **values)
    return Config.from_flat(values)


def is_constrained(config: Config) -> bool:
    """Tell whether answers have a form that a part of one does not have."""
    return any(getattr(config, name, '') for name in CONSTRAINTS)
