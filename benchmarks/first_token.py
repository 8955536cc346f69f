"""
What somebody waits for who shows a new picture: encoder and decoder of true shape, together.

``VLM`` with the runtime that it chooses by itself is compared with libmtmd and llama.cpp on the
same files, one after the other, as a program has it that does no more than call both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

from bench_encoders import BUILD, make, own_cache
from hobot_vlm import VLM
from hobot_vlm.encoders import EncoderOptions, open_encoder
from hobot_vlm.encoders.runtimes import available
from hobot_vlm.llama.context import Run
from hobot_vlm.machine import usable_cores
from hobot_vlm.values import ImageTiles
from llama_cpp import llama_cpp as lib
import numpy as np
from report import BOUNDS, frame, Report

ROUNDS = 5
SHARE = 'first token about a new picture, share of libmtmd and llama.cpp in a row'
CHANGED = 'a frame of which one of twelve tiles changed, share of a new one'

BOUNDS |= {
    f'auto: {SHARE}': (0.6, False),
    f'openvino: {SHARE}': (0.5, False),
    CHANGED: (0.2, False),
}


def bench_first_token(report: Report, decoder: Path) -> None:
    """Time the first token about a new picture, and what is encoded of a changed one."""
    encoder = make(BUILD, 'internvit-300m', 'q8_0')
    section = f"First token, InternVL3-1B's shape, mmproj Q8_0, {usable_cores()} threads"
    files = {'model_file_name': str(encoder), 'llm_model_name': str(decoder)}
    with own_cache():
        for name in ('auto', 'openvino'):
            if name != 'auto' and available()[name]:
                continue  # it is not installed
            # one model at a time: OpenMP keeps threads for each thread that llama.cpp is called
            # from, and with more of them than cores all wait less eagerly
            with VLM.load(**files, encoder_device=name) as vlm:
                print(f'\n{name} runs {vlm.runtime}')
                times = in_turn(vlm, encoder)
                for part, values in times.items():
                    report.add(section, f'{name}: {part}, ms', median(values))
                rows = zip(*times.values(), strict=True)
                shares = [ours / (encode + prefill) for ours, encode, prefill in rows]
                report.add(section, f'{name}: {SHARE}', median(shares))
                if name == 'auto':
                    bench_changed(report, section, vlm)


def in_turn(vlm: VLM, encoder: Path) -> dict[str, list[float]]:
    """
    Ask about new pictures, and have libmtmd and llama.cpp do the same, in turn.

    :return: milliseconds of each
    """
    times: dict[str, list[float]] = {'first token': [], 'libmtmd': [], 'llama.cpp': []}
    # on the thread that calls llama.cpp, as in a program of one thread
    call = vlm.engine.call
    with call(lambda: open_encoder(encoder, EncoderOptions(device='libmtmd'))) as libmtmd:
        for number in range(ROUNDS + 1):  # the first one warms up
            picture = frame(500 + number)[:448, :448]
            reply = vlm.ask('Describe the picture.', picture, max_tiles=1, n_predict=1)
            times['first token'].append(reply.timings.ttft_ms)
            half = (0.5, 0.5, 0.5)
            tiles = ImageTiles(np.ascontiguousarray(picture[None]), 0, 0, True, half, half)
            times['libmtmd'].append(call(partial(timed_once, libmtmd.encode, tiles)))
            new = reply.prompt_tokens - reply.reused_tokens
            times['llama.cpp'].append(prefill_alone(vlm, new))
    return {part: values[1:] for part, values in times.items()}


def bench_changed(report: Report, section: str, vlm: VLM) -> None:
    """
    Show a picture of four by three tiles, and then one that differs within one of them.

    The overview differs, too, so that two of thirteen are encoded. A camera's noise would change
    all: frames are known again where their pixels are equal, as those of a screen or a video are.
    """
    before = frame(600)[:, :1440]
    after = before.copy()
    after[400:500, 500:600] = 255
    whole, changed = (
        vlm.ask('Describe the picture.', picture, max_tiles=12, n_predict=1)
        for picture in (before, after)
    )
    tiles = whole.image_tokens // 256
    report.add(section, f'{tiles} tiles, ms', whole.timings.encode_ms)
    report.add(section, CHANGED, changed.timings.encode_ms / whole.timings.encode_ms)


def bench_fewer_tokens(
    report: Report, section: str, vlm: VLM, pictures: Sequence[np.ndarray]
) -> None:
    """Time the prefill of half the embeddings against that of all, in turn."""
    shares = []
    for picture in pictures:
        whole, half = (
            vlm.ask('Describe the picture.', picture, n_predict=1, keep_image_tokens=share)
            for share in (1.0, 0.5)
        )
        shares.append(half.timings.prefill_ms / whole.timings.prefill_ms)
    report.add(section, 'prefill with keep_image_tokens 0.5, share of all', median(shares))


def prefill_alone(vlm: VLM, tokens: int) -> float:
    """Time llama.cpp alone on so many tokens, in the context of a model, in milliseconds."""
    context = vlm.parts.context
    n_batch = context.n_batch
    ids = list(np.random.default_rng(tokens).integers(100, 10000, tokens))

    def alone() -> float:
        while vlm._cache.evict():
            pass
        lib.llama_memory_clear(context.memory, True)
        took = 0.0
        for at in range(0, tokens, n_batch):
            run = Run(0, at, ids[at : at + n_batch], logits=at + n_batch >= tokens)
            took += timed_once(context.run, [run])
        lib.llama_memory_clear(context.memory, True)
        return took

    return vlm.engine.call(alone)


def timed_once(work: Callable[..., object], *arguments: object) -> float:
    """Give the time that something takes, in milliseconds."""
    began = perf_counter()
    work(*arguments)
    return 1000 * (perf_counter() - began)
