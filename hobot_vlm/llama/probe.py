"""
First openings of model files, in a child process.

llama.cpp ends the process on some files that are damaged or made to do so. So files that this
installation has not yet loaded are loaded and run once by a child; if that dies, it is an error
here. What went well is remembered by content, so a known file costs next to nothing. A file that
the child could not load for a reason that llama.cpp gives is left to the caller's own attempt,
which says it better.

Knows files, the child and its verdicts; nothing of what is asked of a model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import hashlib
import json
import logging
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import tempfile
from typing import Any

from .gguf import parts
from ..errors import ModelFileError

logger = logging.getLogger('hobot_vlm.llama')

#: Files that come with this package are as well known as its code.
BUNDLED = Path(__file__).resolve().parents[1] / 'demo'

#: How long a child may take: so many seconds to start and run once on a busy board, and as long as
#: an SD card needs to read the files, at so many bytes per second.
SECONDS, BYTES_PER_SECOND = 60.0, 20e6

#: Verdicts of another version of this file are forgotten.
FORMAT = 1

#: llama.cpp's own words of a crash that say nothing to a user
NOISE = re.compile(r'^(\[|#\d|warning: |ptrace|\d+\s|0x|libggml|/lib|.*\.so|No such process|$)')


def check_loads(
    decoder: Path,
    *,
    lora: Path | None = None,
    mmproj: Path | None = None,
    n_gpu_layers: int = 0,
    cache_type: str = 'f16',
    flash_attention: str = 'auto',
) -> None:
    """
    See that model files do not end the process that loads them.

    :param lora: adapter for the decoder
    :param mmproj: encoder of llama.cpp
    :param n_gpu_layers: and the two below it, as the model will be loaded
    :raises ModelFileError: they do, or loading them takes longer than it can
    """
    files = {'decoder': decoder, 'lora': lora, 'mmproj': mmproj}
    paths = {role: path for role, path in files.items() if path is not None}
    if all(path.resolve().parent == BUNDLED for path in paths.values()):
        return
    options = [str(n_gpu_layers), cache_type, flash_attention]
    try:
        content = {role: _content(path) for role, path in paths.items()}
    except OSError:
        return  # a file that is not there or cannot be read: loading says so
    key = _hash(json.dumps([FORMAT, _version(), options, content]))
    verdict = _folder() / 'loads' / key
    if _read(verdict) == key:
        return
    if _run_child(paths, options):
        _write(verdict, key)


# -- what is known ----------------------------------------------------------------------------


def _version() -> str:
    """Name the llama.cpp that is installed, without loading it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version('llama-cpp-python')
    except PackageNotFoundError:
        return 'unknown'


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
    for file in parts(path):
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


def _run_child(paths: dict[str, Path], options: Sequence[str]) -> bool:
    """Say whether a child got through; no, where it ended with an error that loading repeats."""
    size = sum(file.stat().st_size for path in paths.values() for file in parts(path))
    seconds = SECONDS + size / BYTES_PER_SECOND
    arguments = [*options, *(f'--{role}={path}' for role, path in paths.items())]
    try:
        status, words = run_apart(arguments, seconds)
    except OSError as exc:
        logger.warning('cannot start a process that tries the model files: %s', exc)
        return False
    if status is not None and status >= 0:
        return status == 0
    if status is None:
        what = f'loading it had not ended after {seconds:.0f} s'
    else:
        what = f'loading it ends the process ({_signal_name(-status)})'
    role, last = _last_words(words.decode('utf-8', 'replace'))
    path = paths.get(role, paths['decoder'])
    beside = ', '.join(file.name for file in paths.values() if file != path)
    raise ModelFileError(
        path,
        f'{what}{f", tried together with {beside}" if beside else ""}; llama.cpp last said: '
        f'{last or "nothing"}. Fetch the file again, or convert the model anew',
    )


def run_apart(arguments: Sequence[str], seconds: float) -> tuple[int | None, bytes]:
    """
    Run ``main`` in a process of its own.

    :return: how it ended, as ``subprocess`` says it, or None after that many seconds; and what it
        wrote to stderr
    """
    root = str(Path(__file__).resolve().parents[2])
    environment = {
        **os.environ,
        'PYTHONPATH': os.pathsep.join(filter(None, (root, os.environ.get('PYTHONPATH')))),
        'GGML_NO_BACKTRACE': '1',  # it would start a debugger
    }
    try:
        result = subprocess.run(
            [sys.executable, '-m', 'hobot_vlm.llama.probe', *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as exc:
        return None, exc.stderr or b''
    return result.returncode, result.stderr


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
    return role, last[:300]


# -- the child --------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Load and run the files that are named; how it ends is the verdict."""
    parser = argparse.ArgumentParser()
    for name in ('n_gpu_layers', 'cache_type', 'flash_attention'):
        parser.add_argument(name)
    for role in ('decoder', 'lora', 'mmproj'):
        parser.add_argument(f'--{role}', type=Path)
    options = parser.parse_args(arguments)
    _be_first_to_go()
    _run(options)


def _be_first_to_go() -> None:
    """Where memory runs out, the kernel shall end this process and no other."""
    try:
        Path('/proc/self/oom_score_adj').write_text('1000')
    except OSError:
        pass


def _run(options: Any) -> None:
    from . import backend

    backend.logger.setLevel(logging.DEBUG)
    backend.logger.addHandler(logging.StreamHandler())  # stderr: the last lines are the last words
    _begin('decoder')
    _run_decoder(options)
    if options.mmproj:
        _begin('mmproj')
        _run_mmproj(options.mmproj)


def _begin(role: str) -> None:
    print(f'PROBE {role}', file=sys.stderr, flush=True)


def _run_decoder(options: Any) -> None:
    """Do once whatever an engine does with a decoder: each kind of call may end the process."""
    import ctypes

    from llama_cpp import llama_cpp as lib

    from .context import CACHE_TYPES, FLASH_ATTENTION
    from .model import Model

    # 1. weights and vocabulary
    model = Model(parts(options.decoder)[0], n_gpu_layers=int(options.n_gpu_layers))
    model.chat_template()
    for token in range(model.n_vocab):
        model.piece(token)
        model.is_end(token)
    tokens = model.tokenize('Hello, 你好 123\n')[:8] or [0]
    # 2. the adapter
    settings = lib.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = 256, 64, 64
    settings.n_seq_max = 2
    settings.kv_unified = True
    settings.type_k, settings.type_v = CACHE_TYPES[options.cache_type]
    settings.flash_attn_type = FLASH_ATTENTION[options.flash_attention]
    adapter = None
    if options.lora:
        _begin('lora')
        adapter = lib.llama_adapter_lora_init(model.handle, os.fsencode(options.lora))
        if not adapter:
            return
    # 3. the context: a prompt, a token, embeddings, a copied and a moved sequence
    context = lib.llama_init_from_model(model.handle, settings)
    if not context:
        return
    if adapter:
        pointers, scales = (ctypes.c_void_p * 1)(adapter), (ctypes.c_float * 1)(1.0)
        lib.llama_set_adapters_lora(context, pointers, 1, scales)
    batch = lib.llama_batch_init(64, 0, 1)

    def decode(batch: Any, count: int, start: int, sequence: int) -> None:
        batch.n_tokens = count
        for i in range(count):
            batch.pos[i], batch.n_seq_id[i], batch.logits[i] = start + i, 1, i == count - 1
            batch.seq_id[i][0] = sequence
        lib.llama_decode(context, batch)

    for i, token in enumerate(tokens):
        batch.token[i] = token
    decode(batch, len(tokens), 0, 0)
    decode(batch, 1, len(tokens), 0)
    memory = lib.llama_get_memory(context)
    if not memory:
        return
    lib.llama_memory_seq_cp(memory, 0, 1, 0, 4)
    lib.llama_memory_seq_rm(memory, 0, 0, 1)
    if lib.llama_memory_can_shift(memory):
        lib.llama_memory_seq_add(memory, 0, 1, -1, -1)
    decode(batch, 1, len(tokens) + 1, 0)
    if not options.mmproj:
        return
    embeddings = lib.llama_batch_init(64, model.n_embd, 1)
    ctypes.memset(embeddings.embd, 0, 4 * 4 * model.n_embd)
    lib.llama_memory_clear(memory, True)
    decode(embeddings, 4, 0, 0)


def _run_mmproj(path: Path) -> None:
    import numpy as np

    from ..encoders import EncoderOptions
    from ..encoders.mmproj import MmprojEncoder
    from ..values import ImageTiles

    with MmprojEncoder(path, EncoderOptions()) as encoder:
        pixels = np.zeros((1, encoder.tile_size, encoder.tile_size, 3), np.uint8)
        half = (0.5, 0.5, 0.5)
        encoder.encode(ImageTiles(pixels, 0, 0, True, half, half))


if __name__ == '__main__':
    main()
