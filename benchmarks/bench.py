"""
Time the hot path: prepare, encode, prefill, decode. ``make bench`` runs it.

Times are medians. What must hold is checked as a ratio within one run, or as a bound on time that
the project promises, and the run fails if it does not hold.
"""

from __future__ import annotations

import argparse
from functools import partial
import itertools
import json
import os
from pathlib import Path
from statistics import median
import subprocess
import sys
from time import perf_counter

from bench_encoders import bench_encoders
from bench_server import bench_server
from bench_startup import bench_startup
from first_token import bench_fewer_tokens, bench_first_token
from hobot_vlm import Reply, VLM
from hobot_vlm.families import family
from hobot_vlm.machine import usable_cores
import numpy as np
from report import frame, InsideLlama, Report, timed
from scheduling import bench_scheduler, slow_down
from schemas import bench_schemas
from split import bench_split

ROOT = Path(__file__).parents[1]
BUILD = ROOT / 'build' / 'bench'


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
        with InsideLlama() as inside:
            stream = vlm.stream('Describe the picture.', picture, n_predict=n_predict)
            next(stream)  # from here on only decoding is left; it goes on already
            began = perf_counter()
            reply = stream.wait()
            shares.append(inside.share(began, perf_counter()))
        speeds.append(reply.timings.tokens_per_second)
    report.add(section, 'decode, tokens/s', median(speeds))
    name = 'share of decoding spent in llama.cpp'
    report.add(section, name if check else 'share in llama.cpp', median(shares))


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
    pictures = (frame(200 + i)[:448, :448] for i in itertools.count())
    options = {'n_predict': 16}
    vlm.ask('What is this?', next(pictures), **options)  # what all prompts begin with is kept
    timings = vlm.ask('What is this?', next(pictures), **options).timings
    elsewhere = (timings.prefill_ms + timings.decode_ms) / 1000
    slow_down(vlm, elsewhere)
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
    sections = ('startup', 'pictures', 'demo', '0.5b', 'encoders', 'node', 'split')
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
    if 'startup' in args.sections:
        bench_startup(report)
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
            bench_fewer_tokens(report, name, vlm, [frame(i) for i in range(20, 26)])
        # many questions: the KV cache is one in which answers do not touch each other
        with VLM.load(**files, max_tiles=1, cache_type='q8_0/f16') as vlm:
            name = 'Many questions, the same decoder, KV cache q8_0/f16'
            bench_many(report, name, vlm)
            bench_scheduler(report, f'Callers at once, {name}', vlm)
            bench_schemas(report, f'Forms, {name}', vlm)
            bench_server(report, vlm, 32, args.runs)
            bench_pipeline(report, name, vlm, args.runs)
    if 'encoders' in args.sections:
        bench_encoders(report)
        bench_first_token(report, big_files(args.weights)[1])
    if 'node' in args.sections:
        bench_node(report)
    if 'split' in args.sections:
        bench_split(report, *big_files(args.weights))
    if args.json:
        args.json.write_text(json.dumps(report.sections, indent=1))
    for line in report.missed:
        print(f'missed: {line}', file=sys.stderr)
    sys.exit(bool(report.missed))


if __name__ == '__main__':
    main()
