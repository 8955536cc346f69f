"""
Parameter files of ROS, as YAML.

Knows their form; what a parameter means stands in ``config.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import ConfigError

#: of a file; those of the package have two thousand, and a device has no end
MOST_CHARACTERS = 1_000_000


def read_parameter_file(path: str | Path) -> dict[str, Any]:
    """
    Read the parameters of a ROS YAML file: ``NODE: {ros__parameters: {name: value}}``.

    :raises ConfigError: unreadable, or of another layout
    """
    import yaml

    try:
        with Path(path).open(encoding='utf-8') as file:
            text = file.read(MOST_CHARACTERS + 1)
        if len(text) > MOST_CHARACTERS:
            raise ValueError(f'it has more than {MOST_CHARACTERS} characters')
        content = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as exc:  # no UTF-8, odd dates
        why = ' '.join(str(exc).split())[:300]
        raise ConfigError(f'cannot read the parameter file {str(path)[:200]}: {why}') from exc
    values: dict[str, Any] = {}
    if not isinstance(content, dict):
        raise ConfigError(f'{path}: expected `/**:` with `ros__parameters:` below it')
    for node, body in content.items():
        if not isinstance(body, dict) or not isinstance(body.get('ros__parameters'), dict):
            raise ConfigError(f'{path}: expected `ros__parameters:` below {str(node)[:80]!r}')
        values.update(body['ros__parameters'])
    return values
