"""Codes for how a call ended, as MaixPy has them; knows nothing of why."""

from __future__ import annotations

from enum import IntEnum

from ..errors import VlmError


class Err(IntEnum):
    """How a call ended."""

    ERR_NONE = 0
    ERR_ARGS = 1  # what was given cannot be used
    ERR_RUNTIME = 2  # it could, and the model failed


def check_raise(code: Err, msg: str = '') -> None:
    """
    Raise an error for a code that is one.

    :raises VlmError: it is not ``ERR_NONE``
    """
    if code != Err.ERR_NONE:
        raise VlmError(msg or Err(code).name)
