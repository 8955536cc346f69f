"""
hobot_vlm lets a robot talk about what it sees, on the robot.

The public API is what this module exports; it needs no ROS.
"""

from __future__ import annotations

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
    PromptTooLong,
    StateError,
    VlmError,
)
from .values import Box, Reply, TextChunk, Timings

if TYPE_CHECKING:
    from .engine import Answer, Conversation, VLM

__version__ = '0.1.0'
__all__ = [
    'Answer',
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
    'PromptTooLong',
    'Reply',
    'StateError',
    'TextChunk',
    'Timings',
    'VLM',
    'VlmError',
]


def __getattr__(name: str) -> Any:
    """Load the engine, and llama.cpp with it, when it is first asked for."""
    if name in ('Answer', 'Conversation', 'VLM'):
        from . import engine

        return getattr(engine, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
