"""
Everything that can go wrong, as one tree.

VlmError
├── ConfigError        an option that does not exist, or a value that it cannot have
├── ModelFileError     a model file that is missing, cut short or of the wrong kind
├── ModelMismatch      files that do not belong together, or to no known family
├── BackendMissing     a library or a chip that this machine does not have
├── DownloadError      a model that could not be fetched
├── StateError         a saved conversation that cannot be written or read
├── PictureError       a picture or image message that cannot be read
├── PromptError        a prompt, or messages, that cannot be read
│   └── PromptTooLong  a prompt that does not fit the context
├── GrammarError       a grammar, schema or option of an answer that cannot be used
├── AnswerCut          an answer that ended before it had the form that was asked for
└── InferenceError     the encoder or llama.cpp failed on good input
    └── RemoteError    a server is away, refuses, breaks off, or cannot be understood

A message names the thing, says what was expected, and how to mend it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .values import Reply


class VlmError(Exception):
    """Base of all errors that hobot_vlm raises."""


class ConfigError(VlmError):
    """An option that does not exist, or a value that it cannot have."""

    def __init__(self, message: str, name: str = ''):
        super().__init__(message)
        self.name = name


class ModelFileError(VlmError):
    """A model file that is missing, cut short or of the wrong kind."""

    def __init__(self, path: object, reason: str):
        super().__init__(f'model file {path}: {reason}')
        self.path = str(path)


class ModelMismatch(VlmError):
    """Files that do not belong together, or that belong to no known family."""


class BackendMissing(VlmError):
    """A library or a chip that this machine does not have."""

    def __init__(self, what: str, cure: str):
        super().__init__(f'{what}; {cure}')
        self.cure = cure


class DownloadError(VlmError):
    """A model that could not be fetched."""


class StateError(VlmError):
    """A saved conversation that cannot be written or read."""


class PictureError(VlmError):
    """A picture or an image message that cannot be read."""


class PromptError(VlmError):
    """A prompt, or a list of messages, that cannot be read."""


class PromptTooLong(PromptError):
    """A prompt that does not fit the context."""

    def __init__(self, tokens: int, capacity: int):
        super().__init__(
            f'the prompt takes {tokens} tokens and n_ctx is {capacity}: '
            'shorten the prompt, show fewer pictures or tiles (max_tiles), or raise n_ctx'
        )
        self.tokens = tokens
        self.capacity = capacity


class GrammarError(VlmError):
    """A grammar, schema or option of an answer that cannot be used."""


class AnswerCut(VlmError):
    """
    An answer that ended before it had the form that was asked for.

    :param reply: what there is of it, with ``finish_reason`` ``length``
    :param form: the option that asked for the form
    :param cure: the option that allows a longer answer
    """

    def __init__(self, reply: Reply, form: str, cure: str):
        super().__init__(
            f'the answer was cut off after {reply.completion_tokens} tokens, so it does not '
            f'follow {form}: raise {cure}'
        )
        self.reply = reply


class InferenceError(VlmError):
    """The encoder or llama.cpp failed on good input."""


class RemoteError(InferenceError):
    """A server is away, refuses, breaks off its answer, or cannot be understood."""
