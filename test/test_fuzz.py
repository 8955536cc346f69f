"""A short run of ``make fuzz``, and that it finds what is planted."""

from __future__ import annotations

from pathlib import Path
import subprocess
import sys

import pytest

TOOLS = Path(__file__).parents[1] / 'tools'

PLANTED = """
import os, sys, time
sys.path[:0] = [{tools!r}]
import fuzz
from fuzzing import kinds
from hobot_vlm.errors import PictureError

def run(self, random, place):
    what = random.randrange(5)
    if what == 0:
        raise PictureError('a picture that cannot be read')
    if what == 1:
        raise PictureError('x' * 5000)
    if what == 2:
        os.abort()
    if what == 3:
        time.sleep(60)

kinds.Pictures.run = run
fuzz.HANG = 0.5
sys.argv = ['fuzz', '--seconds', '4', '--kind', 'pictures']
sys.exit(fuzz.main())
"""


def counts(output, kind):
    line = next(line for line in output.splitlines() if line.startswith(kind))
    return dict(
        zip(
            ('cases', 'answers', 'clear', 'plain', 'signals', 'hangs'),
            map(int, line.split()[1:]),
            strict=True,
        )
    )


@pytest.mark.parametrize(
    'kinds', [('pictures', 'videos', 'onnx'), ('decoder', 'mmproj', 'saved', 'requests')]
)
def test_nothing_ends_the_process_or_hangs(kinds):
    result = subprocess.run(
        [sys.executable, str(TOOLS / 'fuzz.py'), '--seconds', '10', '--kind', *kinds],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for kind in kinds:
        found = counts(result.stdout, kind)
        assert found['cases'] > 3 and found['clear'] and found['cases'] > found['clear']


def test_what_is_bad_is_found_and_can_be_made_again():
    result = subprocess.run(
        [sys.executable, '-c', PLANTED.format(tools=str(TOOLS))], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert all(counts(result.stdout, 'pictures').values())
    assert 'tools/fuzz.py --kind pictures --seed 1 --only ' in result.stdout
