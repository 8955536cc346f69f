"""
hobot_vlm lets a robot talk about what it sees, on the robot.

The public API is what this module exports; it needs no ROS. Names are imported when they are first
used, so that ``import hobot_vlm`` costs next to nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing itself would be an import
    from typing import Any

    from .conversation import Conversation
    from .encoded import EncodedImage
    from .engine.stream import Stream
    from .errors import (
        AnswerCut,
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
        RemoteError,
        StateError,
        VlmError,
    )
    from .values import Box, Progress, Reply, Status, TextChunk, Timings
    from .vision import Vision
    from .vlm import VLM

__version__ = '0.1.0'
__all__ = [
    'AnswerCut',
    'BackendMissing',
    'Box',
    'ConfigError',
    'Conversation',
    'DownloadError',
    'EncodedImage',
    'GrammarError',
    'InferenceError',
    'ModelFileError',
    'ModelMismatch',
    'PictureError',
    'PromptError',
    'PromptTooLong',
    'Progress',
    'RemoteError',
    'Reply',
    'StateError',
    'Status',
    'Stream',
    'TextChunk',
    'Timings',
    'VLM',
    'Vision',
    'VlmError',
]

#: where the public names stand; those that are not listed are errors
_PLACES = {
    'Box': 'values',
    'Conversation': 'conversation',
    'EncodedImage': 'encoded',
    'Progress': 'values',
    'Reply': 'values',
    'Status': 'values',
    'Stream': 'engine.stream',
    'TextChunk': 'values',
    'Timings': 'values',
    'VLM': 'vlm',
    'Vision': 'vision',
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module

    value = getattr(import_module(f'.{_PLACES.get(name, "errors")}', __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
