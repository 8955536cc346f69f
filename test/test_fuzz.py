"""A short run of ``make fuzz``, and that it finds what is planted."""

from __future__ import annotations

from collections import Counter
import json
from pathlib import Path
from random import Random
import re
import signal
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
kinds.Pictures.together = {together}
fuzz.HANG = 1.5
sys.argv = ['fuzz', '--kind', 'pictures', *sys.argv[1:]]
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


@pytest.mark.parametrize('together', [1, 6])
def test_what_is_bad_is_found_and_can_be_made_again(together, tmp_path):
    """Whatever its process did before: each case ends as it does by itself."""
    ends = ['clear errors', 'plain exceptions', 'signals', 'hangs', 'answers']
    wanted = Counter(ends[Random(f'1 pictures {n}').randrange(5)] for n in range(16))
    assert len(wanted) == 5
    planted = PLANTED.format(tools=str(TOOLS), together=together)

    def run(*words):
        command = [sys.executable, '-c', planted, *words]
        return subprocess.run(command, capture_output=True, text=True)

    result = run('--cases', '16', '--json', str(tmp_path / 'counts'))
    assert result.returncode == 1
    found = json.loads((tmp_path / 'counts').read_text())
    assert (found['seed'], found['cases']) == (1, 16)
    assert found['kinds'] == {'pictures': {'cases': 16, **wanted}}
    reported = re.findall(
        r'(?m)^(\w.*): tools/fuzz.py --kind pictures --seed 1 --only (.*)', result.stdout
    )
    assert Counter(outcome for outcome, _ in reported) == {
        end: wanted[end] for end in ('plain exceptions', 'signals', 'hangs')
    }
    for outcome, number in reported:
        assert ends[Random(f'1 pictures {number}').randrange(5)] == outcome
    number = next(number for outcome, number in reported if outcome == 'signals')
    assert run('--only', number).returncode == -signal.SIGABRT
