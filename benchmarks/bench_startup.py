"""
Time the start of the ``vlm`` command: its help, and a question to the demo model.

Each time is the shortest of several whole processes, because anything else that runs on the
machine only adds to it. Nothing is warm but the disk's cache.
"""

from __future__ import annotations

from pathlib import Path
import subprocess
import sys
from time import perf_counter

from report import Report

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / 'hobot_vlm' / 'demo' / 'sample.png'
RUNS = 7


def bench_startup(report: Report) -> None:
    """Time whole processes."""
    section = 'Start of the command'
    report.add(section, 'vlm --help, s', shortest('--help'))
    report.add(section, 'vlm models, s', shortest('models'))
    question = ('ask', 'Describe the picture.', str(SAMPLE))
    report.add(section, 'vlm ask on the demo model, s', shortest(*question))


def shortest(*words: str) -> float:
    """Give the shortest time that a command took, in seconds."""
    times = []
    for _ in range(RUNS):
        began = perf_counter()
        subprocess.run(
            [sys.executable, '-m', 'hobot_vlm', *words], cwd=ROOT, check=True, capture_output=True
        )
        times.append(perf_counter() - began)
    return min(times)


if __name__ == '__main__':
    bench_startup(Report())
