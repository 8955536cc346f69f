"""
Time the hot path: prepare, encode, prefill, decode. ``make bench`` runs it.

Times are medians. What must hold is checked as a ratio within one run, or as a bound on time that
the project promises, and the run fails if it does not hold.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
import itertools
import json
import os
from pathlib import Path
from statistics import median
import subprocess
import sys
from time import perf_counter, sleep
from typing import Any

from hobot_vlm import Reply, VLM
from hobot_vlm.encoders import VisionEncoder
from hobot_vlm.families import family
from hobot_vlm.machine import usable_cores
from hobot_vlm.values import ImageTiles
from llama_cpp import llama_cpp as lib
import numpy as np

ROOT = Path(__file__).parents[1]
BUILD = ROOT / 'build' / 'bench'
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
    'node overhead, ms': (15, False),
    'image callback, 99th percentile, ms': (2, False),
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
        print(f'  {name:58}{value:12.3f}{verdict}', flush=True)


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


def bench_pictures(report: Report, runs: int) -> None:
    """Time the cutting of one 1920 x 1080 picture."""
    section = 'Preparing a 1920 x 1080 picture'
    picture = frame(0)
    for name, key, side, most in (
        ('one tile of 448, ms', 'internvl', 448, 1),
        ('InternVL, 12 tiles at most, ms', 'internvl', 448, 12),
        ('SmolVLM, 12 tiles and the global picture, ms', 'smolvlm', 512, 0),
    ):
        made = family(key)
        report.add(section, name, timed(partial(made.tiles, picture, side, most), runs))


class InsideLlama:
    """Adds up the time spent in llama_decode and in sampling."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> InsideLlama:
        self._kept = lib.llama_decode, lib.llama_sampler_sample
        lib.llama_decode, lib.llama_sampler_sample = map(self._wrapped, self._kept)
        return self

    def __exit__(self, *exc: object) -> None:
        lib.llama_decode, lib.llama_sampler_sample = self._kept

    def _wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            began = perf_counter()
            try:
                return function(*args)
            finally:
                self.seconds += perf_counter() - began

        return call


def bench_model(
    report: Report, section: str, vlm: VLM, pictures: list[np.ndarray], n_predict: int, check: bool
) -> None:
    """Time first and repeated questions about some pictures."""
    first: list[Reply] = []
    again: list[Reply] = []
    vlm.ask('Hello', n_predict=4)
    for picture in pictures:
        first.append(vlm.ask('Describe the picture.', picture, n_predict=4))
        again.append(vlm.ask('What colour is the background?', picture, n_predict=4))
    for name in ('preprocess', 'encode', 'prefill'):
        report.add(section, f'{name}, ms', median(getattr(r.timings, f'{name}_ms') for r in first))
    fresh = median(r.timings.ttft_ms for r in first)
    repeated = median(r.timings.ttft_ms for r in again)
    report.add(section, 'time to first token, first question, ms', fresh)
    report.add(section, 'time to first token, repeated question, ms', repeated)
    name = 'repeated question, share of first time to first token'
    report.add(section, name if check else 'share of first', repeated / fresh)
    speeds, shares = [], []
    for picture in pictures[:3]:
        stream = vlm.stream('Describe the picture.', picture, n_predict=n_predict)
        next(stream)  # from here on only decoding is left
        with InsideLlama() as inside:
            began = perf_counter()
            reply = stream.finish()
            wall = perf_counter() - began
        shares.append(inside.seconds / wall)
        speeds.append(reply.timings.tokens_per_second)
    report.add(section, 'decode, tokens/s', median(speeds))
    name = 'share of decoding spent in llama.cpp'
    report.add(section, name if check else 'share in llama.cpp', median(shares))


class Elsewhere:
    """An encoder that takes as long as it is told to, and none of this machine's time."""

    def __init__(self, encoder: VisionEncoder, seconds: float):
        self._encoder, self._seconds = encoder, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode(self, tiles: ImageTiles) -> np.ndarray:
        """Give what the real one gives, later."""
        end = perf_counter() + self._seconds
        embeddings = self._encoder.encode(tiles)
        sleep(max(end - perf_counter(), 0))
        return embeddings


def bench_many(report: Report, section: str, vlm: VLM) -> None:
    """Time several answers at once, against one after the other, in turn."""
    picture = frame(99)
    questions = [f'What is in row {i} of the picture?' for i in range(8)]
    vlm.ask(questions[0], picture, n_predict=4)
    times, shares = [], []
    for _ in range(3):
        began = perf_counter()
        alone = [vlm.ask(q, picture, n_predict=64) for q in questions]
        middle = perf_counter()
        together = vlm.ask_many([(q, picture) for q in questions], parallel=8, n_predict=64)
        end = perf_counter()
        times.append(1000 * (middle - began))
        shares.append((end - middle) / (middle - began))
        if [r.text for r in alone] != [r.text for r in together]:
            report.missed.append(f'{section}: answers side by side are not those in a row')
    report.add(section, '8 answers in a row, ms', median(times))
    report.add(section, '8 answers side by side, share of the time in a row', median(shares))


def bench_pipeline(report: Report, section: str, vlm: VLM, runs: int) -> None:
    """Time answers about new pictures, encoded elsewhere, against one after the other, in turn."""
    assert vlm.encoder is not None
    pictures = (frame(200 + i)[:448, :448] for i in itertools.count())
    options = {'n_predict': 16}
    timings = vlm.ask('What is this?', next(pictures), **options).timings
    elsewhere = (timings.prefill_ms + timings.decode_ms) / 1000
    vlm.encoder = Elsewhere(vlm.encoder, elsewhere)  # type: ignore[assignment]
    faster = []
    for _ in range(3):
        questions = [('What is this?', next(pictures)) for _ in range(2 * runs)]
        began = perf_counter()
        for question in questions[:runs]:
            vlm.ask(*question, **options)
        middle = perf_counter()
        vlm.ask_many(questions[runs:], parallel=1, **options)
        faster.append((middle - began) / (perf_counter() - middle))
    report.add(section, 'pictures encoded elsewhere meanwhile, times faster', median(faster))


def big_files(weights: str) -> tuple[Path, Path]:
    """Make, once, a decoder of Qwen2.5-0.5B's shape and an encoder of 256 embeddings for it."""
    decoder, encoder = BUILD / f'qwen2.5-0.5b-{weights}.gguf', BUILD / 'encoder-256x896.onnx'
    if not decoder.exists():
        print('making a random-weight decoder of the shape of Qwen2.5-0.5B ...', flush=True)
        subprocess.run(
            [
                *(sys.executable, ROOT / 'tools' / 'make_bench_model.py'),
                *('--weights', weights, '--out', decoder),
            ],
            check=True,
        )
    if not encoder.exists():
        write_encoder(encoder)
    return encoder, decoder


def write_encoder(path: Path) -> None:
    """Write an encoder that projects patches of 28 x 28 pixels: 448 x 448 -> 256 x 896."""
    from onnx import helper, numpy_helper, save, TensorProto

    weights = np.random.default_rng(0).standard_normal((896, 3, 28, 28), np.float32) * 0.004
    nodes = [
        helper.make_node('Conv', ['pixel_values', 'weights'], ['grid'], strides=[28, 28]),
        helper.make_node('Reshape', ['grid', 'shape'], ['rows']),
        helper.make_node('Transpose', ['rows'], ['image_features'], perm=[0, 2, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        'patches',
        [helper.make_tensor_value_info('pixel_values', TensorProto.FLOAT, ['n', 3, 448, 448])],
        [helper.make_tensor_value_info('image_features', TensorProto.FLOAT, ['n', 256, 896])],
        [
            numpy_helper.from_array(weights, 'weights'),
            numpy_helper.from_array(np.array([0, 896, 256]), 'shape'),
        ],
    )
    save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=9),
        str(path),
    )


def bench_node(report: Report) -> None:
    """Time what the ROS node adds to an answer, for a 1920 x 1080 rgb8 message."""
    done = subprocess.run(
        [sys.executable, ROOT / 'benchmarks' / 'node_overhead.py'],
        check=True,
        capture_output=True,
        text=True,
    )
    figures = json.loads(done.stdout.splitlines()[-1])
    section = 'ROS node, 1920 x 1080 rgb8'
    report.add(section, 'node overhead, ms', figures['overhead_ms'])
    report.add(section, 'image callback, 99th percentile, ms', figures['callback_p99_ms'])


def main() -> None:
    """Run all, or the sections named."""
    sections = ('pictures', 'demo', '0.5b', 'node')
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument(
        'sections', nargs='*', default=sections, help=f'some of {", ".join(sections)}'
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the figures there too')
    parser.add_argument('--runs', type=int, default=9)
    parser.add_argument(
        '--weights', choices=('q4_0', 'q8_0'), default='q4_0', help='of the large decoder'
    )
    args = parser.parse_args()
    report = Report()
    BUILD.mkdir(parents=True, exist_ok=True)
    print(f'{usable_cores()} cores, load {os.getloadavg()[0]:.1f}')
    if 'pictures' in args.sections:
        bench_pictures(report, args.runs)
    if 'demo' in args.sections:
        with VLM.load('demo') as vlm:
            pictures = [np.roll(frame(0), 97 * i, axis=1) for i in range(args.runs)]
            bench_model(report, 'Demo model', vlm, pictures, 40, check=False)
    if '0.5b' in args.sections:
        encoder, decoder = big_files(args.weights)
        files = {'model_file_name': str(encoder), 'llm_model_name': str(decoder)}
        with VLM.load(**files, max_tiles=1) as vlm:
            name = f'Decoder of the shape of Qwen2.5-0.5B, {args.weights.upper()}'
            bench_model(report, name, vlm, [frame(i) for i in range(3)], 32, check=True)
        # many questions: the KV cache is one in which answers do not touch each other
        with VLM.load(**files, max_tiles=1, cache_type='q8_0/f16') as vlm:
            name = 'Many questions, the same decoder, KV cache q8_0/f16'
            bench_many(report, name, vlm)
            bench_pipeline(report, name, vlm, args.runs)
    if 'node' in args.sections:
        bench_node(report)
    if args.json:
        args.json.write_text(json.dumps(report.sections, indent=1))
    for line in report.missed:
        print(f'missed: {line}', file=sys.stderr)
    sys.exit(bool(report.missed))


if __name__ == '__main__':
    main()
