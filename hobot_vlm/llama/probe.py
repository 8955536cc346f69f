"""
First openings of model files, in a child process.

llama.cpp ends the process on some files that are damaged or made to do so. So files that this
installation has not yet loaded are loaded and run once by a child; if that dies, it is an error
here. What went well is remembered by content, so a known file costs next to nothing. A file that
the child could not load for a reason that llama.cpp gives is left to the caller's own attempt,
which says it better.

Knows files, the child (``trial.py``) and its verdicts; nothing of what is asked of a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import hashlib
import json
import logging
import os
from pathlib import Path
import re
import signal
import sys
import tempfile

from . import child
from .trial import model_files, NO_MEMORY, NOT_FINITE
from ..errors import ModelFileError

logger = logging.getLogger('hobot_vlm.llama')

#: Files that come with this package are as well known as its code.
BUNDLED = Path(__file__).resolve().parents[1] / 'demo'

#: How long a child may compute with files of llama.cpp, in processor time (``child.py``): so many
#: seconds to start and run once on a board, and to read the files so many bytes per second. A PC
#: takes 2 s for a model of 1 GB.
SECONDS, BYTES_PER_SECOND = 60.0, 20e6

#: The same for ONNX, whose work grows with the weights (``encoders.onnx``).
ONNX_SECONDS, ONNX_BYTES_PER_SECOND = 10.0, 2e6

#: Verdicts of another version of this file are forgotten.
FORMAT = 1

#: llama.cpp's own words of a crash that say nothing to a user
NOISE = re.compile(r'^(\[|#\d|warning: |ptrace|\d+\s|0x|libggml|/lib|.*\.so|No such process|$)')


def check_loads(
    decoder: Path,
    *,
    lora: Path | None = None,
    mmproj: Path | None = None,
    by_libmtmd: bool = False,
    onnx: Path | None = None,
    n_gpu_layers: int = 0,
    cache_type: str = 'f16',
    flash_attention: str = 'auto',
) -> None:
    """
    See that model files do not end the process that loads them.

    :param lora: adapter for the decoder
    :param mmproj: encoder of llama.cpp
    :param by_libmtmd: which cuts pictures, too, and for that is given the decoder
    :param onnx: encoder of ONNX Runtime, whose graph may run for ever or take any memory
    :param n_gpu_layers: and the two below it, as the model will be loaded
    :raises ModelFileError: they do, or loading them takes longer than it can
    """
    images = str(mmproj is not None or onnx is not None)
    _check({'decoder': decoder, 'lora': lora}, n_gpu_layers, cache_type, flash_attention, images)
    if by_libmtmd:
        _check({'pictures': mmproj, 'vocabulary': decoder})
    else:
        _check({'mmproj': mmproj})
    _check({'onnx': onnx})


def check_encoder_loads(encoder: Path) -> None:
    """
    See that the file of an encoder does not end the process that loads it.

    :raises ModelFileError: it does, or loading it takes longer than it can
    """
    role = {'.gguf': 'mmproj', '.onnx': 'onnx'}.get(encoder.suffix.lower())
    if role is not None:
        _check({role: encoder})


def _check(files: Mapping[str, Path | None], *settings: object) -> None:
    """Try files that belong together, unless that went well before."""
    paths = {role: path for role, path in files.items() if path is not None}
    if all(path.resolve().parent == BUNDLED for path in paths.values()):
        return
    if not all(path.is_file() for path in paths.values()):
        return  # a device or a pipe may have no end: loading says that it is no file
    options = [str(setting) for setting in settings]
    try:
        content = {role: _content(path) for role, path in paths.items()}
    except (OSError, ValueError):
        return  # a file that is not there or cannot be read: loading says so
    key = _hash(json.dumps([FORMAT, _versions(), options, content]))
    verdict = _folder() / 'loads' / key
    if _read(verdict) != key and _try(paths, options):
        _write(verdict, key)


# -- what is known ----------------------------------------------------------------------------


def _versions() -> list[str]:
    """Name the libraries that load the files, without loading them."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in ('llama-cpp-python', 'onnxruntime'):
        try:
            found.append(version(package))
        except PackageNotFoundError:
            found.append('unknown')
    return found


def _folder() -> Path:
    home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    return Path(os.path.expanduser(home)) / 'hobot_vlm'


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _content(path: Path) -> str:
    """
    Hash the content of a model's files.

    The hash of a file is remembered with what changes whenever the file does: its inode, its size
    and the time of its last change, which nobody can set.
    """
    found = []
    for file in model_files(path):
        about = file.stat()
        stamp = f'{about.st_dev} {about.st_ino} {about.st_size} {about.st_mtime_ns} '
        known = _folder() / 'content' / _hash(stamp + str(about.st_ctime_ns))
        digest = _read(known)
        if not re.fullmatch('[0-9a-f]{64}', digest):
            whole = hashlib.sha256()
            with file.open('rb') as data:
                while block := data.read(1 << 20):
                    whole.update(block)
            digest = whole.hexdigest()
            _write(known, digest)
        found.append(digest)
    return ' '.join(found)


def _read(path: Path) -> str:
    """Read a short text that was kept; empty where there is none."""
    try:
        with path.open(encoding='ascii') as file:
            return file.read(100)
    except (OSError, ValueError):
        return ''


def _write(path: Path, text: str) -> None:
    """Keep a short text; several processes may do so at once, and it may fail unheard."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, 'w', encoding='ascii') as file:
            file.write(text)
        os.replace(name, path)
    except OSError as exc:
        logger.debug('cannot keep %s: %s', path, exc)


# -- the child, seen from here ----------------------------------------------------------------


def _try(paths: Mapping[str, Path], options: Sequence[str]) -> bool:
    """Say whether a child got through; no, where it ended with an error that loading repeats."""
    size = sum(file.stat().st_size for path in paths.values() for file in model_files(path))
    seconds = SECONDS + size / BYTES_PER_SECOND
    if 'onnx' in paths:
        seconds = ONNX_SECONDS + size / ONNX_BYTES_PER_SECOND
    arguments = [*(f'--{role}={path}' for role, path in paths.items()), *options]
    try:
        status, words = run_apart(arguments, seconds)
    except OSError as exc:
        logger.warning('cannot start a process that tries the model files: %s', exc)
        return False
    if status is None:
        what = f'loading and running it had not ended after {seconds:.0f} s of computing'
    elif status == NO_MEMORY:
        what = 'running it takes more memory than its weights explain'
    elif status == NOT_FINITE:
        what = 'running it gives numbers that are not finite'
    elif status < 0:
        what = f'loading and running it ends the process ({_signal_name(-status)})'
    else:
        return status == 0
    role, last = _last_words(words.decode('utf-8', 'replace'))
    path = paths.get(role) or next(iter(paths.values()))
    beside = ', '.join(file.name for file in paths.values() if file != path)
    raise ModelFileError(
        path,
        f'{what}{f", tried together with {beside}" if beside else ""}; the last that was said: '
        f'{last or "nothing"}. Fetch the file again, or convert the model anew',
    )


def run_apart(arguments: Sequence[str], seconds: float) -> tuple[int | None, bytes]:
    """Run ``trial.main`` in a process of its own; as :func:`child.run`."""
    root = str(Path(__file__).resolve().parents[2])
    environment = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join(filter(None, (root, os.environ.get('PYTHONPATH')))),
        'GGML_NO_BACKTRACE': '1',  # it would start a debugger
    }
    command = [sys.executable, '-m', 'hobot_vlm.llama.trial', *arguments]
    return child.run(command, environment, seconds)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f'signal {number}'


def _last_words(text: str) -> tuple[str, str]:
    """Give the file that the child had begun with, and the last line of llama.cpp's that tells."""
    role, last = '', ''
    for line in text.splitlines():
        line = line.strip()
        if line.startswith('PROBE '):
            role = line[6:]
        elif not NOISE.match(line):
            last = line
    return role, re.sub(r'^/\S*/', '', last)[:300]  # where llama.cpp was compiled tells nothing
