"""
hobot_vlm lets a robot talk about what it sees, on the robot.

The public API is what this module exports; it needs no ROS.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, TYPE_CHECKING

from .errors import (
    BackendMissing,
    ConfigError,
    DownloadError,
    GrammarError,
    InferenceError,
    ModelFileError,
    ModelMismatch,
    PictureError,
    PromptError,
    PromptTooLong,
    StateError,
    VlmError,
)

if TYPE_CHECKING:
    from .conversation import Conversation
    from .engine.stream import Stream
    from .values import Box, Reply, Status, TextChunk, Timings
    from .vlm import VLM

__version__ = '0.1.0'
__all__ = [
    'BackendMissing',
    'Box',
    'ConfigError',
    'Conversation',
    'DownloadError',
    'GrammarError',
    'InferenceError',
    'ModelFileError',
    'ModelMismatch',
    'PictureError',
    'PromptError',
    'PromptTooLong',
    'Reply',
    'StateError',
    'Status',
    'Stream',
    'TextChunk',
    'Timings',
    'VLM',
    'VlmError',
]


#: what is loaded, and NumPy or llama.cpp with it, when it is first asked for -> where it stands
_LATE = {
    'Conversation': 'conversation',
    'Stream': 'engine.stream',
    'VLM': 'vlm',
    **dict.fromkeys(('Box', 'Reply', 'Status', 'TextChunk', 'Timings'), 'values'),
}


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(import_module(f'.{_LATE[name]}', __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})
