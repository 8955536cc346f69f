"""
What stands on the command line, as it was typed.

Knows the spelling of ROS arguments, and reads what ROS does not hand on: the words behind a value
that YAML took for more than text, and the argument that made ROS fail.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import json
from pathlib import Path
import shlex
from typing import Any

import yaml

PARAM = ('-p', '--param')
#: characters read of a parameter file: a device has no end
MOST_CHARACTERS = 1_000_000
#: scalars read of a parameter file; one of more is no parameter file of a person
MOST_SCALARS = 10_000


def usage(program: str, example: str) -> str:
    """Say how a program is called."""
    return (
        f'usage: {program} --ros-args -p NAME:=VALUE ... [--params-file FILE] '
        f'[--log-level LEVEL] [-r FROM:=TO]\n'
        f'for example: {program} --ros-args {example}\n'
        'docs/parameters.md lists the parameters; `ros2 param describe` shows them while the '
        'program runs.'
    )


def before_ros(arguments: Sequence[str]) -> list[str]:
    """Give the arguments that are not for ROS."""
    left, of_ros = [], False
    for argument in arguments:
        if argument == '--ros-args':
            of_ros = True
        elif argument == '--' and of_ros:
            of_ros = False
        elif not of_ros:
            left.append(argument)
    return left


def complaint(arguments: Sequence[str]) -> str:
    """Say what is wrong with arguments that are not for ROS; empty where there are none."""
    left = before_ros(arguments)
    if not left:
        return ''
    if any(argument in PARAM or ':=' in argument for argument in left):
        cure = f'did you mean --ros-args {" ".join(left)}?'
    else:
        cure = 'expected none before --ros-args (see --help)'
    return f'unknown arguments {" ".join(left)[:200]!r}: {cure}'


def rules(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Give name and value of each parameter on the command line, as they were typed."""
    for before, argument in zip(arguments, arguments[1:], strict=False):
        if before in PARAM and ':=' in argument:
            name, _, value = argument.partition(':=')
            yield name.rpartition(':')[2], value


def as_typed(arguments: Sequence[str]) -> dict[str, list[str]]:
    """
    Give what was typed for each parameter, on the command line and in parameter files.

    Several values of one name are in the order of the arguments.
    """
    typed: dict[str, list[str]] = {}
    for before, argument in zip(arguments, arguments[1:], strict=False):
        if before in PARAM:
            found: Iterator[tuple[str, str]] = rules((before, argument))
        elif before == '--params-file':
            found = scalars(argument)
        else:
            continue
        for name, value in found:
            typed.setdefault(name, []).append(value)
    return typed


def scalars(path: str) -> Iterator[tuple[str, str]]:
    """Give the plain values of a parameter file, as they stand in it."""
    try:
        with Path(path).open(encoding='utf-8') as file:
            tree = yaml.compose(file.read(MOST_CHARACTERS))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return  # ROS says so
    todo = [tree]
    for _ in range(MOST_SCALARS):  # an alias of an alias would go on for ever
        if not todo:
            return
        node = todo.pop(0)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if isinstance(value, yaml.ScalarNode):
                    yield str(key.value), value.value
                else:
                    todo.append(value)


def same(typed: str, value: Any) -> bool:
    """Whether this is what ROS read as that value."""
    word = typed.strip()
    if isinstance(value, bool):
        names = ('y', 'yes', 'true', 'on') if value else ('n', 'no', 'false', 'off')
        return word.lower() in names
    try:
        if isinstance(value, int):
            return int(word, 0) == value
        return float(word) == value or (value != value and 'nan' in word.lower())
    except ValueError:
        return word.lower().lstrip('+-.').startswith(('inf', 'nan')) and value in (
            float('inf'),
            float('-inf'),
        )


def explained(arguments: Sequence[str], error: Exception) -> str:
    """Say in one line why ROS does not take the arguments."""
    for name, value in rules(arguments):
        if not _is_parameter_value(value):
            brief = value if len(value) <= 100 else f'{value[:99]}…'
            quoted = json.dumps(brief or 'text', ensure_ascii=False)  # as YAML has it, too
            return (
                f'{name[:100]} is {brief!r}, which ROS reads as YAML and cannot: for text, quote '
                f'it twice, as in -p {shlex.quote(f"{name[:100]}:={quoted}")}'
            )
    text = ' '.join(str(error).split()).removeprefix('failed to initialize rcl: ')
    text = text.partition(', at /')[0]
    kind = 'unknown ROS arguments: ' if type(error).__name__ == 'UnknownROSArgsError' else ''
    return f'{kind}{text[:500]} (see --help)'


def _is_parameter_value(text: str) -> bool:
    """Whether a parameter may have this value: a scalar, or a list of some of one kind."""
    try:
        node = yaml.compose(text)
    except (yaml.YAMLError, RecursionError):
        return False
    if isinstance(node, yaml.ScalarNode):
        return node.style is not None or bool(node.value)
    if isinstance(node, yaml.SequenceNode):
        return len({item.tag for item in node.value}) == 1
    return False
