"""
Write ``hobot_vlm/option_types.py``: the options as keyword arguments that editors know.

Names and descriptions come from ``Config`` and ``Request``. A test compares.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from hobot_vlm.config import Config, PER_REQUEST
from hobot_vlm.engine.request import Request
from hobot_vlm.option import default_of

PLACE = Path(__file__).parents[1] / 'hobot_vlm' / 'option_types.py'
#: options that take more than the type of their default; ``config.checked`` brings it to that
WIDER = {
    'json_schema': 'str | Path | Mapping[str, Any] | type',
    **dict.fromkeys(('grammar', 'system_prompt'), 'str | Path'),
    **dict.fromkeys(('model_file_name', 'llm_model_name', 'lora'), 'str | Path'),
}
HEAD = '''"""
The options of ``VLM.load``, ``ask`` and ``stream`` as types, for editors and type checkers.

Written by tools/make_option_types.py from ``Config`` and ``Request``, which say more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict
'''


def make() -> str:
    """Give the text of the file."""
    asked = {
        item.name: str(item.type)
        for item in fields(Request)
        if item.init and item.name not in ('prompt', 'images', 'options')
    }
    per_request = {name: kind for name, kind in config_types().items() if name in PER_REQUEST}
    loading = {
        name: kind
        for name, kind in config_types().items()
        if name not in PER_REQUEST and name != 'model'
    }
    return '\n\n'.join(
        (
            HEAD,
            a_class('RequestOptions', 'TypedDict', 'Options of the configuration that may differ '
                    'from request to request.', per_request),
            a_class('AskOptions', 'RequestOptions', 'What ``ask`` and ``stream`` take.', asked),
            a_class('LoadOptions', 'RequestOptions', 'What ``VLM.load`` takes.', loading),
        )
    )  # fmt: skip


def config_types() -> dict[str, str]:
    """Give the type of each option of the configuration."""
    return {
        item.name: WIDER.get(item.name, type(default_of(item)).__name__) for item in fields(Config)
    }


def a_class(name: str, base: str, about: str, types: dict[str, str]) -> str:
    """Give the source of one class."""
    lines = [f'class {name}({base}, total=False):', f'    """{about}"""', '']
    lines += [f'    {field}: {kind}' for field, kind in types.items()]
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    PLACE.write_text(make(), encoding='utf-8')
