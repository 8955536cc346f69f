"""Callers that share a model: what each waits for, against what the work alone takes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from time import perf_counter, sleep
from typing import Any

from hobot_vlm import Stream, VLM
from hobot_vlm.llama.context import Context, Run
from hobot_vlm.values import ImageTiles
from llama_cpp import llama_cpp as lib
import numpy as np
from report import frame, Report

CALLERS = 8
#: tokens of a long prompt, and of a short question
LONG, SHORT = 900, 20
PAIRS = 5


def words(vlm: VLM, tokens: int, seed: int) -> str:
    """Give a text of about so many tokens that no other seed begins like."""
    rng = np.random.default_rng(seed)
    text = ''
    while len(vlm.tokenize(text)) < tokens:
        text += ' ' + ''.join(rng.choice(list('abcdefghijklmnop'), 5))
    return text


def slow_down(vlm: VLM, seconds: float) -> Callable[[], None]:
    """Let the encoder take longer, as if elsewhere: it takes none of this machine's time."""
    encoder = vlm.parts.encoder
    encode = encoder.encode

    def later(tiles: ImageTiles) -> Any:
        end = perf_counter() + seconds
        data = encode(tiles)
        sleep(max(end - perf_counter(), 0))
        return data

    def undo() -> None:
        del encoder.encode, encoder.elsewhere

    encoder.encode, encoder.elsewhere = later, True
    return undo


def bench_scheduler(report: Report, section: str, vlm: VLM) -> None:
    """Run all of this file."""
    bench_threads(report, section, vlm)
    bench_behind(report, section, vlm)
    bench_silence(report, section, vlm)
    bench_prefill(report, section, vlm)
    bench_overlap(report, section, vlm)


def bench_threads(report: Report, section: str, vlm: VLM) -> None:
    """Time callers that know nothing of each other: all at once, and one after the other."""
    shares = []
    for pair in range(3):
        questions = [words(vlm, SHORT, 100 * pair + i) for i in range(CALLERS)]
        began = perf_counter()
        alone = [vlm.ask(q, n_predict=64).text for q in questions]
        middle = perf_counter()
        with ThreadPoolExecutor(CALLERS) as pool:
            together = list(pool.map(lambda q: vlm.ask(q, n_predict=64).text, questions))
        shares.append((perf_counter() - middle) / (middle - began))
        if alone != together:
            report.missed.append(f'{section}: threads at once do not get the same texts')
    report.add(section, '8 threads at once, share of the time one after the other', median(shares))


def bench_behind(report: Report, section: str, vlm: VLM) -> None:
    """Time a short question that arrives just behind a long prompt."""
    shares = []
    for pair in range(PAIRS):
        long = vlm.stream(words(vlm, LONG, 1000 + pair), n_predict=1)
        sleep(0.1 + 0.1 * pair)  # at different places of the long prefill
        short = vlm.ask(words(vlm, SHORT, 2000 + pair), n_predict=1)
        shares.append(short.timings.ttft_ms / long.wait().timings.ttft_ms)
    name = 'first token of a short question behind a long prompt, share of its own'
    report.add(section, name, median(shares))


def bench_silence(report: Report, section: str, vlm: VLM) -> None:
    """Find the longest silence of a running answer while a long prompt is prefilled."""
    shares = []
    for pair in range(PAIRS):
        alone = vlm.ask(words(vlm, LONG, 3000 + pair), n_predict=1).timings.prefill_ms
        answer = vlm.stream(
            words(vlm, SHORT, 4000 + pair),
            n_predict=200,
            logit_bias=dict.fromkeys(range(9), -100.0),
        )
        next(answer)
        with ThreadPoolExecutor(1) as pool:
            times = pool.submit(arrivals, answer)
            vlm.ask(words(vlm, LONG, 5000 + pair), n_predict=1)
            seen = times.result()
        shares.append(1000 * max(np.diff(seen)) / alone)
    name = 'longest silence of an answer while a long prompt comes, share of its prefill'
    report.add(section, name, median(shares))


def arrivals(stream: Stream) -> list[float]:
    """Give the times at which the chunks of a stream come."""
    return [perf_counter() for _ in stream]


def bench_prefill(report: Report, section: str, vlm: VLM) -> None:
    """Compare prefilling text, a picture and text with one llama_decode of as many tokens."""
    call, kind = vlm.engine.call, vlm.config.cache_type
    context = call(lambda: Context(vlm.parts.model, n_ctx=1024, n_batch=1024, cache_type=kind))
    shares = []
    for pair in range(PAIRS):
        reply = vlm.ask(words(vlm, SHORT, 6000 + pair), frame(300 + pair), n_predict=1)
        new = reply.prompt_tokens - reply.reused_tokens
        tokens = list(np.random.default_rng(pair).integers(100, 10000, reply.prompt_tokens))

        def alone(tokens: list[int] = tokens, new: int = new) -> float:
            lib.llama_memory_clear(context.memory, True)
            if len(tokens) > new:
                context.run([Run(0, 0, tokens[:-new])])
            began = perf_counter()
            context.run([Run(0, len(tokens) - new, tokens[-new:], logits=True)])
            return 1000 * (perf_counter() - began)

        shares.append(call(alone) / reply.timings.prefill_ms)
    call(context.close)
    name = 'prefill of text and a picture, share of one llama_decode'
    report.add(section, name, median(shares))


def bench_overlap(report: Report, section: str, vlm: VLM) -> None:
    """See how much of a system prompt is prefilled while a picture is encoded elsewhere."""
    system = words(vlm, 300, 7)
    vlm.ask('a', system_prompt=system, n_predict=1)
    prefill = vlm.ask(words(vlm, 300, 8), n_predict=1).timings.prefill_ms
    for share, kind in ((1.0, 'as long'), (2.0, 'twice as long')):
        seconds = share * prefill / 1000
        saved = []
        for pair in range(PAIRS):
            # 1. the same work in a row: the system prompt, then the picture and the question
            system = words(vlm, 300, 8000 + 10 * pair + int(share))
            before = vlm.ask('.', system_prompt=system, n_predict=1).timings.prefill_ms
            picture = frame(400 + 50 * int(share) + pair)[:448, :448]
            undo = slow_down(vlm, seconds)
            after = vlm.ask('?', picture, system_prompt=system, n_predict=1).timings.ttft_ms
            # 2. at once: another system prompt of the same length, and another picture
            other = words(vlm, 300, 9000 + 10 * pair + int(share))
            both = vlm.ask('?', picture[::-1], system_prompt=other, n_predict=1).timings.ttft_ms
            undo()
            saved.append((before + after - both) / min(before, 1000 * seconds))
        name = 'prefilled while a picture is encoded elsewhere, share of the shorter'
        report.add(f'{section}: encoding takes {kind}', name, median(saved))
