"""MaixPy's log over Python's ``logging``: what this package says, and what the program says."""

from __future__ import annotations

from enum import IntEnum
import logging
from typing import Any

logger = logging.getLogger('hobot_vlm')


class LogLevel(IntEnum):
    """What is worth a line; each level holds those before it."""

    LEVEL_NONE = 0
    LEVEL_ERROR = 1
    LEVEL_WARN = 2
    LEVEL_INFO = 3
    LEVEL_DEBUG = 4
    LEVEL_MAX = 5


LEVELS = {
    LogLevel.LEVEL_NONE: logging.CRITICAL + 1,
    LogLevel.LEVEL_ERROR: logging.ERROR,
    LogLevel.LEVEL_WARN: logging.WARNING,
    LogLevel.LEVEL_INFO: logging.INFO,
    LogLevel.LEVEL_DEBUG: logging.DEBUG,
    LogLevel.LEVEL_MAX: logging.DEBUG,
}
#: colours of a terminal: red, yellow, green, blue
COLOURS = {logging.ERROR: 31, logging.WARNING: 33, logging.INFO: 32, logging.DEBUG: 34}


class _Coloured(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f'\x1b[{COLOURS.get(record.levelno, 0)}m{super().format(record)}\x1b[0m'


def set_log_level(level: LogLevel, color: bool = True) -> None:
    """Choose what is written to stderr from now on, and whether in colours."""
    handler = logging.StreamHandler()
    shape = '-- [%(levelname).1s] %(message)s'
    handler.setFormatter(_Coloured(shape) if color else logging.Formatter(shape))
    logger.handlers = [handler]
    logger.setLevel(LEVELS[LogLevel(level)])


def get_log_level() -> LogLevel:
    """Give the level that was set."""
    level = logger.getEffectiveLevel()
    return next((name for name, number in LEVELS.items() if number == level), LogLevel.LEVEL_WARN)


def error(*args: Any) -> None:
    """Say that something failed."""
    logger.error(_joined(args))


def warn(*args: Any) -> None:
    """Say that something is odd."""
    logger.warning(_joined(args))


def info(*args: Any) -> None:
    """Say what happens."""
    logger.info(_joined(args))


def debug(*args: Any) -> None:
    """Say what only its maker wants to know."""
    logger.debug(_joined(args))


def _joined(args: tuple[Any, ...]) -> str:
    return ' '.join(map(str, args))
