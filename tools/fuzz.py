"""
Damaged and hostile input, case by case, each in a process of its own.

    tools/fuzz.py [--seconds 600] [--kind pictures ...] [--seed 1] [--jobs 2] [--only NUMBER]

A case is made from the seed, the kind and its number alone, so that it can be made again. It is
good when it ends in an answer or in an error of ``hobot_vlm.errors`` with a bounded message; it is
bad when it ends in another exception, by a signal, or not in time. What went wrong is printed with
the words that make the same case again.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
import os
from pathlib import Path
from random import Random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools')]

#: seconds after which a case hangs; the longest bound of the project for one small input is 20
HANG = 45.0

#: bytes of address space; what needs more fails, and a failure that is not clear is bad
MEMORY = 12 << 30

#: characters of an error's message; longer ones carry the data
LONGEST_MESSAGE = 2000

ANSWER, CLEAR, PLAIN = 0, 10, 11
OUTCOMES = ('answers', 'clear errors', 'plain exceptions', 'signals', 'hangs')


@dataclass
class Running:
    """A case on its way."""

    kind: str
    number: int
    end: float
    folder: Path


def main() -> int:
    """Run cases until the time is up; give 1 where one was bad."""
    from fuzzing.engine_kinds import ENGINE_KINDS
    from fuzzing.kinds import KINDS as FILE_KINDS

    kinds_by_name = {**FILE_KINDS, **ENGINE_KINDS}
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[1])
    parser.add_argument('--seconds', type=float, default=600.0)
    parser.add_argument(
        '--kind', nargs='+', choices=sorted(kinds_by_name), default=sorted(kinds_by_name)
    )
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--jobs', type=int, default=os.cpu_count() or 1)
    parser.add_argument('--only', type=int, help='one case, with all it says')
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix='hobot_vlm-fuzz-'))
    os.environ.update(XDG_CACHE_HOME=str(folder / 'cache'), GGML_NO_BACKTRACE='1')
    try:
        kinds = {name: kinds_by_name[name]() for name in options.kind}
        for kind in kinds.values():
            kind.prepare(folder)
        if options.only is not None:
            name = options.kind[0]
            print(run_case(kinds[name], case_random(options.seed, name, options.only), folder))
            return 0
        return fuzz(kinds, options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def case_random(seed: int, kind: str, number: int) -> Random:
    """Give the source of all that is random in a case."""
    return Random(f'{seed} {kind} {number}')


def fuzz(kinds, options, folder: Path) -> int:
    """Run cases, some at once, and count how they end; each kind has its share of the time."""
    ends: dict[str, Counter[str]] = {name: Counter() for name in kinds}
    spent = dict.fromkeys(kinds, 0.0)
    running: dict[int, Running] = {}
    end = time.monotonic() + options.seconds
    number = 0
    while time.monotonic() < end or running:
        while len(running) < options.jobs and time.monotonic() < end:
            name = min(spent, key=lambda kind: spent[kind])
            spent[name] += 0.001  # so that another is next while this one runs
            place = folder / f'case-{number}'
            place.mkdir()
            pid = start(kinds[name], case_random(options.seed, name, number), place)
            running[pid] = Running(name, number, time.monotonic() + HANG, place)
            number += 1
        wait_a_little(running)
        for pid in list(running):
            outcome = how_it_ended(pid, running[pid])
            if outcome:
                case = running.pop(pid)
                spent[case.kind] += time.monotonic() - (case.end - HANG)
                ends[case.kind][outcome] += 1
                if outcome not in OUTCOMES[:2]:
                    report(case, outcome, options.seed)
                shutil.rmtree(case.folder, ignore_errors=True)
    return summary(ends)


def start(kind, random: Random, place: Path) -> int:
    """Fork a process that runs one case; give its number."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = PLAIN
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        words = os.open(place / 'words', os.O_WRONLY | os.O_CREAT)
        os.dup2(words, 1)
        os.dup2(words, 2)
        code = run_case(kind, random, place)
    finally:
        os._exit(code)


def run_case(kind, random: Random, place: Path) -> int:
    """Run one case in this process, and say how it ended."""
    from hobot_vlm.errors import VlmError

    try:
        kind.run(random, place)
        return ANSWER
    except VlmError as error:
        print(type(error).__name__, str(error)[:LONGEST_MESSAGE], flush=True)
        return CLEAR if 10 < len(str(error)) < LONGEST_MESSAGE else PLAIN
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return PLAIN


def wait_a_little(running: dict[int, Running]) -> None:
    """Wait until a case ends, or for a tenth of a second."""
    handles = []
    try:
        for pid in running:
            handles.append(os.pidfd_open(pid))
        select.select(handles, [], [], 0.1)
    finally:
        for handle in handles:
            os.close(handle)


def how_it_ended(pid: int, case: Running) -> str:
    """Name the outcome of a case; empty while it runs."""
    done, status = os.waitpid(pid, os.WNOHANG)
    if not done:
        if time.monotonic() < case.end:
            return ''
        kill_group(pid)
        os.waitpid(pid, 0)
        return 'hangs'
    kill_group(pid)  # whatever it started
    if os.WIFSIGNALED(status):
        return 'signals'
    code = os.WEXITSTATUS(status)
    return {ANSWER: 'answers', CLEAR: 'clear errors'}.get(code, 'plain exceptions')


def kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def report(case: Running, outcome: str, seed: int) -> None:
    """Print a bad case, and how to see it again."""
    try:
        words = (case.folder / 'words').read_text(errors='replace').splitlines()[-12:]
    except OSError:
        words = []
    print(f'{outcome}: tools/fuzz.py --kind {case.kind} --seed {seed} --only {case.number}')
    for line in words:
        print('    ' + line[:300])
    sys.stdout.flush()


def summary(ends: dict[str, Counter[str]]) -> int:
    """Print the counts; give 1 where a case was bad."""
    print(f'{"":14}{"cases":>9}' + ''.join(f'{name:>18}' for name in OUTCOMES))
    total: Counter[str] = Counter()
    for name, counts in [*ends.items(), ('all', total)]:
        print(
            f'{name:14}{sum(counts.values()):>9}'
            + ''.join(f'{counts[outcome]:>18}' for outcome in OUTCOMES)
        )
        if name != 'all':
            total.update(counts)
    return int(any(total[outcome] for outcome in OUTCOMES[2:]))


if __name__ == '__main__':
    sys.exit(main())
