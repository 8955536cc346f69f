"""
The child that tries model files: it loads and runs them once, and how it ends is the verdict.

Does what an engine does with a model, each kind of call once, since each may end the process. Run
by ``probe.py``; must start quickly, and knows nothing of caches and messages.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import logging
import os
from pathlib import Path
import re
import sys
from typing import Any

from .gguf import parts, read_gguf

#: Memory that an ONNX file may take: the tiles and the runtime, and some copies of its weights.
ONNX_MEMORY, ONNX_COPIES = 2 << 30, 4

#: Seconds that pass at most while an ONNX file runs: an hour, as what it computes ends it before.
LONGEST = 3600.0
#: How the child says that this was too little, so that its parent does not try.
NO_MEMORY = 3
#: How it says that a decoder gives numbers that are none.
NOT_FINITE = 4
#: Height and width of the pictures that libmtmd is given: a wide one, and a square.
TRIED = ((120, 640), (300, 300))
NO_MEMORY_WORDS = re.compile('bad_alloc|[Ff]ailed to allocate|[Oo]ut of memory|MemoryError')


def model_files(path: Path) -> list[Path]:
    """Give all files that a model file stands for."""
    if path.suffix.lower() != '.onnx':
        return parts(path)
    from ..encoders.onnx_weights import weights_beside

    return [path, *weights_beside(path)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Load and run the files that are named; how it ends is the verdict."""
    parser = argparse.ArgumentParser()
    for role in ('decoder', 'lora', 'mmproj', 'pictures', 'vocabulary', 'onnx'):
        parser.add_argument(f'--{role}', type=Path)
    parser.add_argument('settings', nargs='*')
    options = parser.parse_args(arguments)
    _be_first_to_go()
    from . import backend

    backend.logger.setLevel(logging.DEBUG)
    backend.logger.addHandler(logging.StreamHandler())  # stderr: the last lines are the last words
    if options.decoder:
        _run_decoder(options.decoder, options.lora, *options.settings)
    if options.mmproj:
        _run_encoder(options.mmproj)
    if options.pictures:
        _run_libmtmd(options.pictures, options.vocabulary)
    if options.onnx:
        _run_onnx(options.onnx)


def _be_first_to_go() -> None:
    """Where memory runs out, the kernel shall end this process and no other."""
    try:
        Path('/proc/self/oom_score_adj').write_text('1000')
    except OSError:
        pass


def _begin(role: str) -> None:
    print(f'PROBE {role}', file=sys.stderr, flush=True)


def _run_decoder(
    path: Path,
    lora: Path | None,
    n_gpu_layers: str,
    cache_type: str,
    flash_attention: str,
    images: str,
) -> None:
    """Do once whatever an engine does with a decoder: each kind of call may end the process."""
    import ctypes

    from llama_cpp import llama_cpp as lib
    import numpy as np

    from .context import CACHE_TYPES, FLASH_ATTENTION
    from .gpu import Sharing
    from .model import Model

    # 1. weights and vocabulary
    _begin('decoder')
    model = Model(parts(path)[0], gpus=Sharing(int(n_gpu_layers)))
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
    settings.type_k, settings.type_v = CACHE_TYPES[cache_type]
    settings.flash_attn_type = FLASH_ATTENTION[flash_attention]
    adapter = None
    if lora:
        _begin('lora')
        adapter = lib.llama_adapter_lora_init(model.handle, os.fsencode(lora))
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
        if not lib.llama_decode(context, batch):
            logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (model.n_vocab,))
            if not np.isfinite(logits).all():
                sys.exit(NOT_FINITE)

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
    if images != 'True' or model.has_several_positions:  # those are tried with their encoder
        return
    embeddings = lib.llama_batch_init(64, model.n_embd, 1)
    ctypes.memset(embeddings.embd, 0, 4 * 4 * model.n_embd)
    lib.llama_memory_clear(memory, True)
    decode(embeddings, 4, 0, 0)


def _run_encoder(path: Path) -> None:
    import numpy as np

    from ..encoders import EncoderOptions, open_encoder
    from ..values import ImageTiles

    _begin(path.suffix.lower())
    with open_encoder(path, EncoderOptions()) as encoder:
        pixels = np.zeros((2, encoder.tile_size, encoder.tile_size, 3), np.uint8)
        half = (0.5, 0.5, 0.5)
        encoder.encode(ImageTiles(pixels, 1, 1, True, half, half))


def _run_libmtmd(path: Path, decoder: Path) -> None:
    """Let libmtmd cut and encode pictures, and the decoder read one of them as it says."""
    import numpy as np

    from .context import Context, MAX_SEQUENCES, Placed, Run
    from .model import Model
    from ..encoders import EncoderOptions, PicturePart
    from ..encoders.mtmd import MtmdEncoder
    from ..families.pairing import projector_of

    _begin('pictures')
    projector = projector_of(read_gguf(path).metadata)
    model = Model(parts(decoder)[0])
    with MtmdEncoder(path, projector, model, EncoderOptions()) as encoder:
        for height, width in TRIED:
            found = encoder.cut(np.full((height, width, 3), 128, np.uint8))
        part = next(part for part in found if isinstance(part, PicturePart))
        data, placing = part.encode(), part.placing
    places = (None, True) if placing is None else (placing.parts, placing.causal)
    room = max(len(data), MAX_SEQUENCES)
    context = Context(model, n_ctx=room, n_batch=room, whole_pictures=True)
    context.run([Run(0, 0, Placed(data, *places))])


def _run_onnx(path: Path) -> None:
    """Run a graph within its memory, and say apart where that is too little."""
    import resource

    import onnxruntime  # noqa: F401  # its own memory does not count

    from ..encoders import onnx

    onnx.RUN_SECONDS = LONGEST
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    size = sum(file.stat().st_size for file in model_files(path))
    most = pages * os.sysconf('SC_PAGESIZE') + ONNX_MEMORY + ONNX_COPIES * size
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    try:
        _run_encoder(path)
    except Exception as exc:
        print(str(exc)[-300:], file=sys.stderr, flush=True)
        if isinstance(exc, MemoryError) or NO_MEMORY_WORDS.search(str(exc)):
            sys.exit(NO_MEMORY)
        raise


if __name__ == '__main__':
    main()
