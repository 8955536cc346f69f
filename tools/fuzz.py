"""
Damaged and hostile input, case by case, in processes of their own.

    tools/fuzz.py [--seconds 600 | --cases 20000] [--kind pictures ...] [--seed 1] [--jobs 2]
                  [--json FILE] [--only NUMBER | --only FIRST-LAST]

A case is made from the seed, the kind and its number alone, so that it can be made again. It is
good when it ends in an answer or in an error of ``hobot_vlm.errors`` with a bounded message; it is
bad when it ends in another exception, by a signal, or not in time. What went wrong is printed with
the words that make the same case again.

Every process is a fork of this one, which has imported everything and has no threads. Cases of a
kind that needs a loaded model share a process, a few of them one after the other: where one of
them ends it, that one is bad, and those behind it have another process.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
import gc
import json
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
OF_CODE = {ANSWER: 'answers', CLEAR: 'clear errors'}


@dataclass
class Running:
    """A process on its way, with the cases that it runs."""

    kind: str
    numbers: range
    end: float  # of the time of the case that runs
    folder: Path
    begun: float
    codes: bytes = b''  # of the cases that have ended

    @property
    def outcomes(self) -> list[str]:
        """Name how the cases ended until now."""
        return [OF_CODE.get(code, OUTCOMES[2]) for code in self.codes]


def main() -> int:
    """Run cases until the time is up; give 1 where one was bad."""
    from fuzzing.engine_kinds import ENGINE_KINDS
    from fuzzing.kinds import KINDS as FILE_KINDS

    kinds_by_name = {**FILE_KINDS, **ENGINE_KINDS}
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[1])
    parser.add_argument('--seconds', type=float, default=600.0)
    parser.add_argument('--cases', type=int, help='so many in all, as many of each kind')
    parser.add_argument('--json', type=Path, help='write the counts to this file, too')
    parser.add_argument(
        '--kind', nargs='+', choices=sorted(kinds_by_name), default=sorted(kinds_by_name)
    )
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--jobs', type=int, default=os.cpu_count() or 1)
    parser.add_argument('--only', type=numbers, help='one case, or a range, with all it says')
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix='hobot_vlm-fuzz-'))
    os.environ.update(XDG_CACHE_HOME=str(folder / 'cache'), GGML_NO_BACKTRACE='1')
    try:
        kinds = {name: kinds_by_name[name]() for name in options.kind}
        for kind in kinds.values():
            kind.prepare(folder)
        if options.only is not None:
            name = options.kind[0]
            for number in options.only:
                code = run_case(kinds[name], case_random(options.seed, name, number), folder)
                print(number, OF_CODE.get(code, OUTCOMES[2]), flush=True)
            return 0
        gc.freeze()  # a fork that tidies up would copy all memory
        return fuzz(kinds, options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def numbers(text: str) -> range:
    """Read a number, or the first and the last one."""
    first, _, last = text.partition('-')
    return range(int(first), int(last or first) + 1)


def case_random(seed: int, kind: str, number: int) -> Random:
    """Give the source of all that is random in a case."""
    return Random(f'{seed} {kind} {number}')


def fuzz(kinds, options, folder: Path) -> int:
    """Run cases, some at once, and count how they end; each kind has its share of the time."""
    ends: dict[str, Counter[str]] = {name: Counter() for name in kinds}
    spent = dict.fromkeys(kinds, 0.0)
    left = {name: waiting(options.cases, i, len(kinds)) for i, name in enumerate(kinds)}
    running: dict[int, Running] = {}
    began = time.monotonic()
    end = began + (options.seconds if options.cases is None else float('inf'))
    while True:
        while len(running) < options.jobs and any(left.values()) and time.monotonic() < end:
            name = min((kind for kind in kinds if left[kind]), key=lambda kind: spent[kind])
            spent[name] += 0.001  # so that another is next while this one runs
            first = left[name].pop()
            some = range(first.start, min(first.stop, first.start + kinds[name].together))
            if some.stop < first.stop:
                left[name].append(range(some.stop, first.stop))
            place = folder / f'case-{name}-{some.start}'
            place.mkdir()
            pid = start(kinds[name], options.seed, name, some, place)
            now = time.monotonic()
            running[pid] = Running(name, some, now + HANG, place, now)
        if not running:
            break
        wait_a_little(running)
        for pid in list(running):
            last = how_it_ended(pid, running[pid])
            if last is None:
                continue
            case = running.pop(pid)
            spent[case.kind] += time.monotonic() - case.begun
            outcomes = case.outcomes + ([last] if last else [])
            ends[case.kind].update(outcomes)
            if len(outcomes) < len(case.numbers):
                left[case.kind].append(case.numbers[len(outcomes) :])
            for i, outcome in enumerate(outcomes):
                if outcome not in OUTCOMES[:2]:
                    report(case, i, outcome, options.seed)
            shutil.rmtree(case.folder, ignore_errors=True)
    return summary(ends, options, time.monotonic() - began)


def waiting(cases: int | None, index: int, kinds: int) -> list[range]:
    """Give the numbers of a kind's cases; without a number of cases there is no end to them."""
    return [range(sys.maxsize if cases is None else cases // kinds + (index < cases % kinds))]


def start(kind, seed: int, name: str, some: range, place: Path) -> int:
    """Fork a process that runs some cases; give its number."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        words = os.open(place / 'words', os.O_WRONLY | os.O_CREAT)
        codes = os.open(place / 'codes', os.O_WRONLY | os.O_CREAT)
        os.dup2(words, 1)
        os.dup2(words, 2)
        for number in some:
            folder = place / str(number)
            folder.mkdir()
            print(f'case {number}', flush=True)
            code = run_case(kind, case_random(seed, name, number), folder)
            os.write(codes, bytes([code]))
    finally:
        os._exit(0)


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


def how_it_ended(pid: int, case: Running) -> str | None:
    """
    Name the outcome of the case that ended a process.

    :return: None while it runs; empty where all its cases ended by themselves
    """
    done, status = os.waitpid(pid, os.WNOHANG)
    codes = read(case.folder / 'codes')
    if len(codes) > len(case.codes):
        case.codes, case.end = codes, time.monotonic() + HANG
    if not done:
        if time.monotonic() < case.end:
            return None
        kill_group(pid)
        os.waitpid(pid, 0)
        return 'hangs'
    kill_group(pid)  # whatever it started
    if os.WIFSIGNALED(status):
        return 'signals'
    return '' if len(codes) == len(case.numbers) else 'plain exceptions'


def read(path: Path) -> bytes:
    """Read a file that may not be there yet."""
    try:
        return path.read_bytes()
    except OSError:
        return b''


def kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def report(case: Running, index: int, outcome: str, seed: int) -> None:
    """Print a bad case, and how to see it again."""
    number = case.numbers[index]
    again = f'tools/fuzz.py --kind {case.kind} --seed {seed} --only'
    print(f'{outcome}: {again} {number}')
    if index:
        print(f'    or, with those before it in its process: {again} {case.numbers[0]}-{number}')
    said = read(case.folder / 'words').decode(errors='replace')
    own = said.partition(f'case {number}\n')[2].partition(f'\ncase {number + 1}\n')[0]
    for line in own.splitlines()[-12:]:
        print('    ' + line[:300])
    sys.stdout.flush()


def summary(ends: dict[str, Counter[str]], options, seconds: float) -> int:
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
    print(f'seed {options.seed}, {60 * sum(total.values()) / seconds:.0f} cases a minute')
    if options.json is not None:
        found = {
            'seed': options.seed,
            'seconds': round(seconds, 1),
            'cases': sum(total.values()),
            'kinds': {
                name: {'cases': sum(counts.values()), **{o: counts[o] for o in OUTCOMES}}
                for name, counts in ends.items()
            },
        }
        options.json.write_text(json.dumps(found, indent=1) + '\n')
    return int(any(total[outcome] for outcome in OUTCOMES[2:]))


if __name__ == '__main__':
    sys.exit(main())
