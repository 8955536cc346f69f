"""Every installed runtime gives the same embeddings; any other one says how to get it."""

from __future__ import annotations

from pathlib import Path
import sys

from hobot_vlm.config import Config
from hobot_vlm.encoders import EncoderOptions, open_encoder, runtimes
from hobot_vlm.encoders.choice import agreement, sample
from hobot_vlm.errors import BackendMissing, ConfigError, InferenceError, ModelFileError
from mmproj_files import internvl_shape, made, MODELS, smolvlm_shape
import pytest

FILES = [
    MODELS / name / file
    for name in ('internvl', 'smolvlm')
    for file in ('vision.onnx', 'mmproj.gguf')
]
HERE = [name for name, cure in runtimes.available().items() if not cure and name != 'bpu']


def on(device: str) -> EncoderOptions:
    return EncoderOptions(threads=1, device=device)


def test_the_runtimes_that_the_package_requires_are_there():
    assert {'cpu', 'cpu-int8', 'libmtmd'} <= set(HERE)


def test_whoever_is_not_there_has_a_cure():
    told = runtimes.available()
    assert set(told) >= set(runtimes.CURES)
    assert all(told[name] == '' for name in HERE)
    assert 'bpu' in HERE or 'RDK' in told['bpu']


@pytest.mark.parametrize('device', HERE)
@pytest.mark.parametrize('path', FILES, ids=lambda path: f'{path.parent.name}-{path.suffix}')
def test_every_runtime_gives_the_same_embeddings(path, device):
    if device == 'cpu-int8' or (device == 'libmtmd' and path.suffix == '.onnx'):
        with pytest.raises(ConfigError, match=f'{device}.*expected.*one of auto, cpu') as raised:
            open_encoder(path, on(device))
        assert raised.value.name == 'encoder_device'
        return
    with open_encoder(path, on('cpu')) as reference, open_encoder(path, on(device)) as encoder:
        tiles = sample(reference.tile_size)
        expected, found = reference.encode(tiles), encoder.encode(tiles)
        assert encoder.n_embd == reference.n_embd and encoder.tokens == reference.tokens
        assert encoder.runtime
    if path.suffix == '.onnx' or device != 'libmtmd':
        assert agreement(found, expected) > 0.999
        encoder.close()  # and once more: harmless
        with pytest.raises(InferenceError, match='closed'):
            encoder.encode(tiles)


@pytest.mark.parametrize('device', HERE)
@pytest.mark.parametrize('shape', (internvl_shape, smolvlm_shape))
def test_every_runtime_reads_8_bit_files(tmp_path, shape, device):
    path = made(tmp_path / 'mmproj.gguf', shape(width=128, inner=256))
    with open_encoder(path, on('cpu')) as reference, open_encoder(path, on(device)) as encoder:
        tiles = sample(reference.tile_size)
        assert agreement(encoder.encode(tiles), reference.encode(tiles)) > 0.999


@pytest.mark.parametrize(
    'device, words',
    [
        ('cpu', 'onnxruntime CPU'),
        ('cpu-int8', 'onnxruntime CPU, 8-bit rows'),
        ('libmtmd', 'libmtmd'),
    ],
)
def test_an_encoder_tells_its_runtime(tmp_path, device, words):
    path = made(tmp_path / 'mmproj.gguf', internvl_shape(layers=1))
    with open_encoder(path, on(device)) as encoder:
        assert encoder.runtime == words


@pytest.mark.parametrize('path', FILES[:2], ids=lambda path: path.suffix)
@pytest.mark.parametrize('device', [name for name in runtimes.CURES if name not in HERE])
def test_a_runtime_that_is_not_installed_says_how_to_get_it(path, device):
    with pytest.raises((BackendMissing, ConfigError), match=f'{device!r}') as raised:
        open_encoder(path, on(device))
    assert runtimes.CURES[device] in str(raised.value)


def test_openvino_that_is_not_installed_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.raises(BackendMissing, match=r"'openvino'.*hobot_vlm\[openvino\]"):
        open_encoder(FILES[0], on('openvino'))


@pytest.mark.parametrize('path', FILES[:2], ids=lambda path: path.suffix)
@pytest.mark.parametrize('device', ('gpu', '', 'CPU', 'x' * 9000))
def test_a_name_that_is_none_is_an_error_that_tells_the_names(path, device):
    with pytest.raises(ConfigError, match='not known.*one of auto, cpu') as raised:
        open_encoder(path, on(device))
    assert len(str(raised.value)) < 300


def test_without_onnx_runtime_an_mmproj_file_still_runs(monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with open_encoder(MODELS / 'smolvlm' / 'mmproj.gguf', on('auto')) as encoder:
        assert encoder.runtime == 'libmtmd'


@pytest.mark.parametrize('device', [name for name in HERE if name != 'libmtmd'])
def test_a_damaged_file_is_an_error_in_every_runtime(tmp_path, device):
    suffix = '.gguf' if device == 'cpu-int8' else '.onnx'
    source = next(path for path in FILES if path.suffix == suffix)
    path = tmp_path / f'vision{suffix}'
    path.write_bytes(source.read_bytes()[:-500])
    with pytest.raises(ModelFileError, match=path.name):
        open_encoder(path, on(device))


def test_the_option_has_the_name_and_default_of_the_configuration():
    assert Config().encoder_device == EncoderOptions().device == 'auto'


def test_files_of_the_bpu_run_on_the_bpu_alone(tmp_path):
    path: Path = tmp_path / 'vision.bin'
    path.write_bytes(b'0')
    with pytest.raises(ConfigError, match='expected for this file one of auto, bpu'):
        open_encoder(path, on('cpu'))
