"""What the benchmarks share: figures and their bounds, clocks, pictures."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

from llama_cpp import llama_cpp as lib
import numpy as np

FRAME = (1080, 1920, 3)

#: name -> (bound, whether a larger figure is better)
BOUNDS = {
    'one tile of 448, ms': (12, False),
    'InternVL, 12 tiles at most, ms': (60, False),
    'SmolVLM, 12 tiles and the global picture, ms': (120, False),
    'share of decoding spent in llama.cpp': (0.97, True),
    'repeated question, share of first time to first token': (1 / 8, False),
    '8 answers side by side, share of the time in a row': (0.5, False),
    'pictures encoded elsewhere meanwhile, times faster': (1.7, True),
    '8 threads at once, share of the time one after the other': (0.5, False),
    'first token of a short question behind a long prompt, share of its own': (0.2, False),
    'longest silence of an answer while a long prompt comes, share of its prefill': (0.2, False),
    'prefill of text and a picture, share of one llama_decode': (0.98, True),
    'prefilled while a picture is encoded elsewhere, share of the shorter': (0.9, True),
    'answers of which most is forced, share of a free token': (0.75, False),
    'added to a free token by a schema, share': (0.05, False),
    'prefill with keep_image_tokens 0.5, share of all': (0.6, False),
    'node overhead, ms': (15, False),
    'two processes, times faster': (1.7, True),
    'image callback, 99th percentile, ms': (2, False),
    'vlm --help, s': (0.3, False),
    'vlm ask on the demo model, s': (0.8, False),
}


class Report:
    """Collects figures, prints them, and knows which are out of bounds."""

    def __init__(self) -> None:
        self.sections: dict[str, dict[str, float]] = {}
        self.missed: list[str] = []

    def add(self, section: str, name: str, value: float) -> None:
        """Keep and print a figure."""
        if section not in self.sections:
            self.sections[section] = {}
            print(f'\n{section}')
        self.sections[section][name] = value
        bound, larger = BOUNDS.get(name, (None, False))
        verdict = ''
        if bound is not None:
            kept = value >= bound if larger else value <= bound
            verdict = (
                f'   {"ok" if kept else "MISSED"}: {"at least" if larger else "at most"} {bound:g}'
            )
            if not kept:
                self.missed.append(f'{section}: {name} is {value:g}, bound {bound:g}')
        print(f'  {name:58}{value:12.5g}{verdict}', flush=True)


def timed(work: Callable[[], Any], runs: int) -> float:
    """Give the median time of some runs after one that is not counted, in milliseconds."""
    work()
    times = []
    for _ in range(runs):
        began = perf_counter()
        work()
        times.append(1000 * (perf_counter() - began))
    return median(times)


def frame(seed: int) -> np.ndarray:
    """Make a 1920 x 1080 picture with structure at every scale: RGB uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: FRAME[0], : FRAME[1]].astype(np.float32)
    waves = np.stack([np.sin(x / 37 + c) * np.cos(y / 23 - c) for c in range(3)], axis=2)
    noise = rng.integers(-20, 20, FRAME, np.int16)
    return np.clip(128 + 90 * waves + noise, 0, 255).astype(np.uint8)


class InsideLlama:
    """Notes when llama_decode and sampling run."""

    def __init__(self) -> None:
        self._calls: list[tuple[float, float]] = []

    def __enter__(self) -> InsideLlama:
        self._kept = lib.llama_decode, lib.llama_sampler_sample
        lib.llama_decode, lib.llama_sampler_sample = map(self._wrapped, self._kept)
        return self

    def __exit__(self, *exc: object) -> None:
        lib.llama_decode, lib.llama_sampler_sample = self._kept

    def share(self, began: float, end: float) -> float:
        """Give the share of a time, from one ``perf_counter`` to another, that was spent there."""
        spent = sum(max(0.0, min(end, after) - max(began, at)) for at, after in self._calls)
        return spent / (end - began)

    def _wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            began = perf_counter()
            try:
                return function(*args)
            finally:
                self._calls.append((began, perf_counter()))

        return call
