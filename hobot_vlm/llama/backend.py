"""
llama.cpp as a library: starting it, its log, and the first look at its files.

Knows nothing of what a model is for.
"""

from __future__ import annotations

import ctypes
from functools import cache
import logging
from pathlib import Path
import struct
from typing import Any

from llama_cpp import llama_cpp as lib

from ..errors import ModelFileError

logger = logging.getLogger('hobot_vlm.llama')

#: what llama.cpp last complained of, newest last
last_errors: list[str] = []


def _log(level: int, text: bytes, _: Any) -> None:
    """Pass llama.cpp's words to logging; keep its errors for our own messages."""
    line = text.decode('utf-8', 'replace').strip()
    if level == 4 and line:
        last_errors.append(line)
        del last_errors[:-3]
    if line:
        # an error of llama.cpp ends in an exception of ours, which says it better
        logger.debug('%s', line)


on_log = lib.llama_log_callback(_log)  # kept: llama.cpp calls it as long as it runs


@cache
def start_backend() -> None:
    lib.llama_log_set(on_log, ctypes.c_void_p(0))
    lib.llama_backend_init()


def offloads() -> bool:
    """Say whether this build of llama.cpp can use a GPU."""
    return bool(lib.llama_supports_gpu_offload())


def check_gguf(path: Path, option: str = 'llm_model_name') -> None:
    """
    Check that a file is there and starts like a GGUF file.

    :param option: that names the file, for messages
    :raises ModelFileError: it is not
    """
    if not path.is_file():
        cure = (
            'give the path of the language model (.gguf) in llm_model_name, or a name that '
            '`vlm models` lists in model'
            if option == 'llm_model_name'
            else f'give the path of a .gguf file in {option}'
        )
        what = 'it is no file' if path.exists() else 'there is no such file'
        raise ModelFileError(path, f'{what}; {cure}')
    with path.open('rb') as file:
        head = file.read(8)
    if head[:4] != b'GGUF':
        raise ModelFileError(
            path,
            f'it starts with {head[:4]!r} instead of GGUF, so it is no '
            'model of llama.cpp; give a .gguf file',
        )
    if len(head) < 8 or not 2 <= struct.unpack('<I', head[4:])[0] <= 16:
        raise ModelFileError(
            path,
            'its GGUF version is unknown; expected 2 or 3. Fetch the file '
            'again or convert the model anew',
        )
