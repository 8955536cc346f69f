"""
Vision encoders of true shape: time of a tile, exactness and memory, in each runtime that is here.

``python benchmarks/bench_encoders.py`` runs this section alone; ``bench.py`` calls
``bench_encoders``. Weights are random, see tools/make_bench_encoders.py. Runtimes
encode in turn, and times are compared round by round, since a busy machine slows all of a round.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing, contextmanager, ExitStack
import os
from pathlib import Path
from statistics import median
import subprocess
import sys
import tempfile
from time import perf_counter
from typing import Any

from hobot_vlm.encoders import EncoderOptions, mmproj_graph, open_encoder, VisionEncoder
from hobot_vlm.encoders.choice import agreement, sample
from hobot_vlm.encoders.mmproj_file import MmprojFile
from hobot_vlm.encoders.onnx import OnnxEncoder
from hobot_vlm.encoders.onnx_session import open_session
from hobot_vlm.encoders.runtimes import available
from hobot_vlm.machine import usable_cores
from hobot_vlm.values import ImageTiles
import numpy as np
import numpy.typing as npt
from report import BOUNDS, Report

ROOT = Path(__file__).parents[1]
BUILD = ROOT / 'build' / 'bench'
sys.path.insert(0, str(ROOT / 'tools'))

from make_bench_encoders import make  # noqa: E402

#: shape -> most that a tile may take, of libmtmd's time on the same file
SHAPES = {'internvit-300m': 0.55, 'siglip-b16-512': 0.6}

BOUNDS |= {
    **{f'{shape}: auto, share of libmtmd': (most, False) for shape, most in SHAPES.items()},
    'internvit-300m: openvino, share of libmtmd': (0.42, False),
    **{f'{shape}: auto, least cosine to float32': (0.9995, True) for shape in SHAPES},
    # what auto takes on a PC with the packages that the project requires
    **{f'{shape}: cpu-int8, memory, share of the file': (1.15, False) for shape in SHAPES},
}

MEASURE_MEMORY = """
import sys
from pathlib import Path
import llama_cpp, onnxruntime
from hobot_vlm.encoders import EncoderOptions, mmproj_graph, open_encoder, runtimes
from hobot_vlm.encoders.choice import sample
from hobot_vlm.machine import resident_bytes

path, device, threads = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
small = open_encoder(sys.argv[4], EncoderOptions(threads, device='cpu'))
small.encode(sample(small.tile_size))
small.close()
before = resident_bytes()
encoder = open_encoder(path, EncoderOptions(threads, device=device))
encoder.encode(sample(encoder.tile_size))
print((resident_bytes() - before) / path.stat().st_size)
"""


def bench_encoders(report: Report, rounds: int = 5, threads: int = 0) -> None:
    """
    Measure every runtime on every shape.

    :param rounds: tiles that each runtime encodes, after one that is not counted
    :param threads: of each runtime; 0: one per core
    """
    threads = threads or usable_cores()
    here = [name for name, cure in available().items() if not cure and name != 'bpu']
    for shape in SHAPES:
        path = make(BUILD, shape, 'q8_0')
        section = f'Encoding one tile, {shape}, mmproj Q8_0, {threads} threads'
        expected = float32(path, threads)
        with own_cache(), open_encoder(path, EncoderOptions(threads)) as encoder:
            chosen = encoder.runtime
        with ExitStack() as stack:
            encoders = {
                device: stack.enter_context(
                    open_encoder(path, EncoderOptions(threads, device=device))
                )
                for device in here
            }
            tiles = sample(encoders['libmtmd'].tile_size)
            cosines = {
                device: agreement(encoder.encode(tiles), expected)
                for device, encoder in encoders.items()
            }
            times = in_turn(encoders, tiles, rounds)
        for device in here:
            names = [device]
            if encoders[device].runtime == chosen:
                print(f'\n{shape}: auto chose {chosen}')
                names.append('auto')
            shares = [
                ours / theirs for ours, theirs in zip(times[device], times['libmtmd'], strict=True)
            ]
            share_of_file = memory(path, device, threads)
            for name in names:
                report.add(section, f'{shape}: {name}, ms', median(times[device]))
                report.add(section, f'{shape}: {name}, share of libmtmd', median(shares))
                report.add(section, f'{shape}: {name}, least cosine to float32', cosines[device])
                report.add(section, f'{shape}: {name}, memory, share of the file', share_of_file)


def float32(path: Path, threads: int) -> npt.NDArray[np.float32]:
    """Encode the sample tile with all weights widened and all arithmetic in float32."""
    graph = mmproj_graph.build(MmprojFile(path), mmproj_graph.EXACT)
    session = open_session(path, graph, 'cpu', threads, '')
    with closing(OnnxEncoder(path, session, 'float32')) as encoder:
        return encoder.encode(sample(encoder.tile_size))


def in_turn(
    encoders: dict[str, VisionEncoder], tiles: ImageTiles, rounds: int
) -> dict[str, list[float]]:
    """Let encoders encode a tile in turn; give the times of each, in milliseconds."""
    times: dict[str, list[float]] = {device: [] for device in encoders}
    for _ in range(rounds):
        for device, encoder in encoders.items():
            began = perf_counter()
            encoder.encode(tiles)
            times[device].append(1000 * (perf_counter() - began))
    return times


def memory(path: Path, device: str, threads: int) -> float:
    """Measure what an encoder adds to a process of its own, in sizes of its file."""
    small = ROOT / 'test' / 'models' / 'internvl' / 'vision.onnx'
    command = [sys.executable, '-c', MEASURE_MEMORY, str(path), device, str(threads), str(small)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return float(done.stdout)


@contextmanager
def own_cache() -> Iterator[None]:
    """Let `auto` measure anew, and leave the user's choices alone."""
    kept = os.environ.get('XDG_CACHE_HOME')
    with tempfile.TemporaryDirectory() as folder:
        os.environ['XDG_CACHE_HOME'] = folder
        try:
            yield
        finally:
            if kept is None:
                del os.environ['XDG_CACHE_HOME']
            else:
                os.environ['XDG_CACHE_HOME'] = kept


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--threads', type=int, default=0, help='0: one per core')
    args: Any = parser.parse_args()
    report = Report()
    bench_encoders(report, args.rounds, args.threads)
    if report.missed:
        sys.exit('out of bounds: ' + '; '.join(report.missed))


if __name__ == '__main__':
    main()
