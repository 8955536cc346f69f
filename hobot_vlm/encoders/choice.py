"""
The fastest runtime for an encoder file on this machine: measured once, kept in a file.

Speed cannot be told from names: the same file is fastest in one runtime on one CPU and in another
on the next. So at the first load each runtime encodes one tile some times; the fastest one whose
embeddings agree with those of the first runtime is kept, by the file, the runtimes' versions and
the machine. Nothing here knows a runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
import hashlib
import json
import logging
import os
from pathlib import Path
import platform
from statistics import median
import tempfile
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from . import VisionEncoder
from .runtimes import Candidate
from ..errors import ModelFileError, VlmError
from ..machine import usable_cores
from ..values import ImageTiles

log = logging.getLogger('hobot_vlm.encoders')

#: The least cosine, over the embeddings of a tile, between a faster runtime and the first one.
#: 0.9995 is promised against float32. What the two lose is independent and adds up, so that each
#: is nearer to float32 than to the other.
AGREEMENT = 0.9995

#: seconds; where a tile takes less, nothing is to be gained that anybody would notice
QUICK = 0.01

#: Times that two runtimes encode in turn, so that a machine that is busy for a while does not
#: decide; one round is enough where one takes ``CLEAR`` times as long as the other.
ROUNDS, CLEAR = 5, 2.0

#: choices that the file keeps, newest last; some runs of a test of many files must not fill disks
MOST_CHOICES = 64

#: bytes of a file that go into its identity, at both ends
SAMPLED = 1 << 20


def fastest(path: Path, candidates: Sequence[Candidate], threads: int) -> VisionEncoder:
    """
    Open a file in the runtime that is fastest here.

    :param candidates: the first is the one that the others have to agree with
    :raises VlmError: the first one fails because of the file, or all fail
    """
    if len(candidates) == 1:
        return candidates[0].open()
    key = identity(path, candidates, threads)
    kept = _read().get(key)
    device = kept.get('device') if isinstance(kept, dict) else None
    for candidate in candidates:
        if candidate.device == device:
            try:
                encoder = candidate.open()
            except VlmError as exc:
                log.warning('%s no longer runs %s: %s', candidate.runtime, path.name, exc)
                break
            log.info('%s runs on %s, as measured before', path.name, encoder.runtime)
            return encoder
    encoder, device, measured = _measure(path, candidates)
    if measured:
        log.info(
            'measured for one tile of %s: %s; it runs on %s',
            path.name,
            ', '.join(f'{name} {what}' for name, what in measured.items()),
            encoder.runtime,
        )
        _keep(key, {'file': path.name, 'device': device, 'measured': measured})
    return encoder


def cache_file() -> Path:
    """Give the file that keeps the choices."""
    folder = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
    return Path(folder) / 'hobot_vlm' / 'encoders.json'


def identity(path: Path, candidates: Sequence[Candidate], threads: int) -> str:
    """Name a file together with all that its speed depends on."""
    mark = hashlib.sha256()
    size = path.stat().st_size
    with path.open('rb') as file:
        mark.update(file.read(SAMPLED))
        file.seek(max(size - SAMPLED, 0))
        mark.update(file.read(SAMPLED))
    told = [size, threads, usable_cores(), platform.machine(), _processor()]
    told += [(candidate.device, candidate.version) for candidate in candidates]
    mark.update(json.dumps(told).encode())
    return mark.hexdigest()


def sample(side: int) -> ImageTiles:
    """Make a tile with structure at every scale, which is what pictures have."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    waves = np.stack([np.sin(x / 37 + c) * np.cos(y / 23 - c) for c in range(3)], axis=2)
    waves[(x // 64 + y // 48) % 3 == 0] *= -0.7  # edges
    noise = rng.integers(-20, 20, (side, side, 3))
    pixels = np.clip(128 + 90 * waves + noise, 0, 255).astype(np.uint8)
    half = (0.5, 0.5, 0.5)
    return ImageTiles(pixels[None], 0, 0, True, half, half)


def agreement(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """Give the least cosine between embeddings; -1 for another number of them."""
    if found.shape != expected.shape:
        return -1.0
    lengths = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    return float(((found * expected).sum(-1) / np.maximum(lengths, 1e-30)).min())


def _measure(
    path: Path, candidates: Sequence[Candidate]
) -> tuple[VisionEncoder, str, dict[str, str]]:
    """
    Let each runtime encode one tile.

    :return: the fastest, open; its name; and what was measured, in words
    """
    best: VisionEncoder | None = None
    chosen = candidates[0]
    expected: npt.NDArray[np.float32] | None = None
    measured: dict[str, str] = {}
    failure: VlmError | None = None
    for candidate in candidates:
        try:
            encoder = candidate.open()
        except VlmError as exc:
            if candidate is candidates[0] and isinstance(exc, ModelFileError):
                raise  # the others include one that such a file can crash
            failure = failure or exc
            log.info('%s cannot run %s: %s', candidate.runtime, path.name, exc)
            continue
        tiles = sample(encoder.tile_size)
        try:
            found = encoder.encode(tiles)  # the first run also warms up
            seconds, share = _in_turn(encoder, best, tiles)
        except VlmError as exc:
            encoder.close()
            failure = failure or exc
            log.info('%s fails on %s: %s', candidate.runtime, path.name, exc)
            continue
        if best is None and seconds < QUICK:
            return encoder, candidate.device, {}
        cosine = 1.0 if expected is None else agreement(found, expected)
        expected = found if expected is None else expected
        agrees = cosine >= AGREEMENT
        measured[candidate.runtime] = f'{1000 * seconds:.0f} ms' + (
            '' if agrees else f' but differs (cosine {cosine:.5f})'
        )
        if best is not None and not (agrees and share < 1):
            encoder.close()
            continue
        if best is not None:
            best.close()
        best, chosen = encoder, candidate
    if best is None:
        assert failure is not None
        raise failure
    return best, chosen.device, measured


def _in_turn(
    encoder: VisionEncoder, best: VisionEncoder | None, tiles: ImageTiles
) -> tuple[float, float]:
    """
    Let an encoder and the best one so far encode a tile in turn.

    :return: the shortest time of the encoder in seconds; and the median of its shares in the time
        of the best one, 0 where there is none
    """
    times, shares = [], []
    for _ in range(ROUNDS):
        times.append(_time(encoder, tiles))
        if best is None:
            return times[0], 0.0
        shares.append(times[-1] / _time(best, tiles))
        if shares[0] > CLEAR:
            break
    return min(times), median(shares)


def _time(encoder: VisionEncoder, tiles: ImageTiles) -> float:
    began = perf_counter()
    encoder.encode(tiles)
    return perf_counter() - began


def _processor() -> str:
    """Give the name of the CPU, as far as the system tells."""
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError:  # not Linux
        return platform.processor()
    # x86 gives a name and what the CPU can do, Arm gives a part number
    wanted = ('model name', 'flags', 'Features', 'CPU part')
    return ' '.join(sorted({line for line in lines if line.startswith(wanted)}))


def _read() -> dict[str, Any]:
    """Read the choices; none where the file is missing or damaged."""
    try:
        kept = json.loads(cache_file().read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _keep(key: str, choice: dict[str, Any]) -> None:
    """Add a choice; where that is not possible, it is measured again next time."""
    path = cache_file()
    kept = {k: v for k, v in _read().items() if k != key}
    kept = dict([*kept.items(), (key, choice)][-MOST_CHOICES:])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            'w', encoding='utf-8', dir=path.parent, suffix='.part', delete=False
        ) as file:
            json.dump(kept, file, indent=1)
        os.replace(file.name, path)  # whoever reads meanwhile reads a whole file
    except OSError as exc:
        log.info('cannot keep the choice of runtime in %s: %s', path, exc.strerror)
