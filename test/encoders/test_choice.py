"""The runtime of a file is measured once and kept; it must give the same embeddings."""

from __future__ import annotations

from dataclasses import replace
import json
import logging
from pathlib import Path
from time import sleep

from hobot_vlm.encoders import choice, EncoderOptions, open_encoder, VisionEncoder
from hobot_vlm.encoders.runtimes import Candidate
from hobot_vlm.errors import BackendMissing, InferenceError, ModelFileError
from mmproj_files import internvl_shape, made, MODELS
import numpy as np
import pytest

PATH = MODELS / 'internvl' / 'vision.onnx'
OTHER = MODELS / 'internvl' / 'mmproj.gguf'


class Delayed(VisionEncoder):
    """A real encoder that takes its time, or turns what it gives."""

    def __init__(self, device: str, delay: float, turned: float) -> None:
        self.inner = open_encoder(PATH, EncoderOptions(threads=1, device='cpu'))
        self.tile_size, self.tokens, self.n_embd = 56, 4, self.inner.n_embd
        self.runtime, self.delay, self.turned = device, delay, turned
        self.closed = False

    def encode(self, tiles):
        sleep(self.delay)
        found = self.inner.encode(tiles)
        return found + self.turned * np.abs(found).mean()

    def close(self):
        self.closed = True
        self.inner.close()


class Machine:
    """Some runtimes, and who of them was opened."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.encoders: list[Delayed] = []

    def runtime(
        self, device: str, delay: float = 0.0, turned: float = 0.0, error=None
    ) -> Candidate:
        def load() -> VisionEncoder:
            self.opened.append(device)
            if error:
                raise error
            self.encoders.append(Delayed(device, delay, turned))
            return self.encoders[-1]

        return Candidate(device, device, '1', load)


@pytest.fixture
def machine(monkeypatch) -> Machine:
    monkeypatch.setattr(choice, 'QUICK', 0.0)
    return Machine()


def test_the_fastest_is_chosen_kept_and_told(machine, own_cache, caplog):
    found = [machine.runtime('first', 0.2), machine.runtime('fast'), machine.runtime('slow', 0.3)]
    with caplog.at_level(logging.INFO, 'hobot_vlm.encoders'):
        encoder = choice.fastest(PATH, found, 1)
    assert encoder.runtime == 'fast' and not encoder.closed
    assert [each.closed for each in machine.encoders] == [True, False, True]
    assert 'first' in caplog.text and 'slow' in caplog.text and 'it runs on fast' in caplog.text
    (kept,) = json.loads((own_cache / 'hobot_vlm' / 'encoders.json').read_text()).values()
    assert kept['device'] == 'fast' and set(kept['measured']) == {'first', 'fast', 'slow'}
    # the next time nobody else is asked
    machine.opened.clear()
    assert choice.fastest(PATH, found, 1).runtime == 'fast'
    assert machine.opened == ['fast']


def test_another_file_version_number_of_threads_or_runtime_is_measured_anew(machine):
    found = [machine.runtime('first'), machine.runtime('second', 0.2)]
    choice.fastest(PATH, found, 1)
    others = [
        (OTHER, found, 1),
        (PATH, found, 2),
        (PATH, [replace(found[0], version='2'), found[1]], 1),
        (PATH, [*found, machine.runtime('third', 0.2)], 1),
    ]
    for path, candidates, threads in others:
        machine.opened.clear()
        choice.fastest(path, candidates, threads)
        assert len(machine.opened) == len(candidates)


def test_a_runtime_that_gives_something_else_is_not_chosen(machine, caplog):
    found = [machine.runtime('right', 0.2), machine.runtime('wrong', turned=0.1)]
    with caplog.at_level(logging.INFO, 'hobot_vlm.encoders'):
        assert choice.fastest(PATH, found, 1).runtime == 'right'
    assert 'wrong' in caplog.text and 'differs (cosine 0.9' in caplog.text


def test_only_one_runtime_is_not_measured(machine, own_cache):
    encoder = choice.fastest(PATH, [machine.runtime('only', 5.0)], 1)
    assert encoder.runtime == 'only' and not own_cache.exists()


def test_where_nothing_is_to_be_gained_nothing_is_measured(own_cache):
    machine = Machine()
    found = [machine.runtime('first'), machine.runtime('second')]
    assert choice.fastest(PATH, found, 1).runtime == 'first'
    assert machine.opened == ['first'] and not own_cache.exists()


def test_a_runtime_that_fails_is_left_out(machine, caplog):
    missing = BackendMissing('no such chip', 'buy one')
    found = [machine.runtime('broken', error=missing), machine.runtime('good', 0.01)]
    with caplog.at_level(logging.INFO, 'hobot_vlm.encoders'):
        assert choice.fastest(PATH, found, 1).runtime == 'good'
    assert 'broken cannot run vision.onnx: no such chip' in caplog.text


def test_when_all_fail_the_first_reason_is_told(machine):
    errors = [BackendMissing('no such chip', 'buy one'), InferenceError('something else')]
    found = [machine.runtime(str(i), error=error) for i, error in enumerate(errors)]
    with pytest.raises(BackendMissing, match='no such chip'):
        choice.fastest(PATH, found, 1)


def test_a_file_that_the_first_finds_damaged_is_given_to_nobody_else(machine):
    found = [
        machine.runtime('careful', error=ModelFileError(PATH, 'it is damaged')),
        machine.runtime('crashes'),
    ]
    with pytest.raises(ModelFileError, match='damaged'):
        choice.fastest(PATH, found, 1)
    assert machine.opened == ['careful']


def test_a_choice_that_no_longer_opens_is_measured_anew(machine):
    good = [machine.runtime('first', 0.2), machine.runtime('fast')]
    assert choice.fastest(PATH, good, 1).runtime == 'fast'
    gone = [good[0], machine.runtime('fast', error=BackendMissing('gone', 'get it'))]
    assert choice.fastest(PATH, gone, 1).runtime == 'first'


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'{',
        b'[]',
        b'null',
        b'\xff\xfe',
        b'[' * 100000,
        b'{"KEY": 5}',
        b'{"KEY": {"device": []}}',
    ],
)
def test_a_damaged_file_of_choices_is_no_error_and_is_mended(machine, own_cache, content):
    found = [machine.runtime('first', 0.1), machine.runtime('fast')]
    key = choice.identity(PATH, found, 1)
    path = choice.cache_file()
    assert path == own_cache / 'hobot_vlm' / 'encoders.json'
    path.parent.mkdir(parents=True)
    path.write_bytes(content.replace(b'KEY', key.encode()))
    assert choice.fastest(PATH, found, 1).runtime == 'fast'
    assert json.loads(path.read_text())[key]['device'] == 'fast'
    assert [each.name for each in path.parent.iterdir()] == ['encoders.json']


def test_a_folder_that_cannot_be_written_is_no_error(machine, own_cache):
    own_cache.write_text('a file, not a folder')
    found = [machine.runtime('first', 0.1), machine.runtime('fast')]
    for _ in range(2):
        assert choice.fastest(PATH, found, 1).runtime == 'fast'


def test_the_file_of_choices_does_not_grow_for_ever(machine, monkeypatch):
    monkeypatch.setattr(choice, 'MOST_CHOICES', 3)
    for threads in range(5):
        found = [machine.runtime('first'), machine.runtime('second', 0.01)]
        choice.fastest(PATH, found, threads)
    keys = [choice.identity(PATH, found, threads) for threads in (2, 3, 4)]
    assert list(json.loads(choice.cache_file().read_text())) == keys


def test_an_mmproj_file_is_measured_on_the_runtimes_that_are_there(monkeypatch, tmp_path):
    monkeypatch.setattr(choice, 'QUICK', 0.0)
    path: Path = made(tmp_path / 'mmproj.gguf', internvl_shape(width=128, inner=256))
    with open_encoder(path, EncoderOptions(threads=1)) as encoder:
        told = encoder.runtime
    (kept,) = json.loads(choice.cache_file().read_text()).values()
    assert {'onnxruntime CPU', 'onnxruntime CPU, 8-bit rows', 'libmtmd'} <= set(kept['measured'])
    with open_encoder(path, EncoderOptions(threads=1)) as encoder:
        assert encoder.runtime == told
