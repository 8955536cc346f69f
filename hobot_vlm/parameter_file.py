"""
Parameter files of ROS, as YAML.

Knows their form; what a parameter means stands in ``config.py``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .errors import ConfigError


def read_parameter_file(path: str | Path) -> dict[str, Any]:
    """
    Read the parameters of a ROS YAML file: ``NODE: {ros__parameters: {name: value}}``.

    :raises ConfigError: unreadable, or of another layout
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError, yaml.YAMLError) as exc:  # ValueError: no UTF-8, odd dates
        raise ConfigError(f'cannot read the parameter file {path}: {exc}') from exc
    values: dict[str, Any] = {}
    if not isinstance(content, dict):
        raise ConfigError(f'{path}: expected `/**:` with `ros__parameters:` below it')
    for node, body in content.items():
        if not isinstance(body, dict) or not isinstance(body.get('ros__parameters'), dict):
            raise ConfigError(f'{path}: expected `ros__parameters:` below {node!r}')
        values.update(body['ros__parameters'])
    return values
