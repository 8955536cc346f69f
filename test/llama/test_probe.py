"""Model files are tried in a child first, and what went well is remembered."""

from __future__ import annotations

from dataclasses import replace
import os
from pathlib import Path
import shutil
import subprocess
import sys
import threading

import gguf
from hobot_vlm.encoders import EncoderOptions, open_encoder
from hobot_vlm.errors import ModelFileError
from hobot_vlm.llama import probe
from hobot_vlm.llama.probe import check_loads
from hobot_vlm.values import ImageTiles
import numpy as np
import pytest

MODELS = Path(__file__).parents[1] / 'models'
DEMO = Path(probe.__file__).parents[1] / 'demo'
DECODER, MMPROJ = MODELS / 'internvl' / 'decoder.gguf', MODELS / 'internvl' / 'mmproj.gguf'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'hobot_vlm' / 'loads'


@pytest.fixture
def children(monkeypatch):
    """List the children that are started."""
    started = []
    run = probe.run_apart

    def count(arguments, seconds):
        started.append(arguments)
        return run(arguments, seconds)

    monkeypatch.setattr(probe, 'run_apart', count)
    return started


def rewritten(source, path, values=(), tensors=(), strings=()):
    """
    Copy a GGUF file with changes.

    :param values: key -> new number
    :param strings: key -> index -> new text, for arrays of texts
    :param tensors: name -> new array
    """
    values, strings, tensors = dict(values), dict(strings), dict(tensors)
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, bytes(reader.fields['general.architecture'].parts[-1]).decode())
    for field in reader.fields.values():
        if field.name.startswith('GGUF.') or field.name == 'general.architecture':
            continue
        value = values.get(field.name, field.contents())
        for index, text in strings.get(field.name, {}).items():
            value[index] = text
        kind = field.types[0]
        writer.add_key_value(
            field.name, value, kind, field.types[-1] if len(field.types) > 1 else None
        )
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensors.get(tensor.name, tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensor_of(source, name):
    return next(t.data for t in gguf.GGUFReader(source).tensors if t.name == name)


# -- good files -------------------------------------------------------------------------------


def test_a_good_file_is_tried_once(children, cache):
    for _ in range(2):
        check_loads(DECODER, mmproj=MMPROJ)
        assert len(children) == 2  # the decoder, and the encoder
    assert len(list(cache.iterdir())) == 2
    check_loads(DECODER, mmproj=MMPROJ, cache_type='q8_0')  # may fail where f16 does not
    assert len(children) == 3


def test_the_bundled_model_is_known(children):
    check_loads(DEMO / 'decoder.gguf', onnx=DEMO / 'vision.onnx')
    assert not children


def test_a_file_is_known_by_its_content(children, tmp_path):
    copy = shutil.copy(DECODER, tmp_path / 'copy.gguf')
    check_loads(DECODER)
    check_loads(copy)
    assert len(children) == 1
    data = bytearray(copy.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)
    os.utime(copy, ns=(DECODER.stat().st_atime_ns, DECODER.stat().st_mtime_ns))
    check_loads(copy)
    assert len(children) == 2


@pytest.mark.parametrize('junk', [b'', b'\xff' * 64, b'{', b'x' * 10**6])
def test_a_damaged_cache_is_made_anew(children, cache, junk):
    check_loads(DECODER)
    for path in [*cache.iterdir(), *(cache.parent / 'content').iterdir()]:
        path.write_bytes(junk)
    check_loads(DECODER)
    check_loads(DECODER)
    assert len(children) == 2


def test_without_a_cache_it_works_all_the_same(children, tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    check_loads(DECODER)
    check_loads(DECODER)
    assert len(children) == 2


def test_many_at_once(cache):
    threads = [threading.Thread(target=check_loads, args=(DECODER,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(cache.iterdir())) == 1


def test_what_llama_cpp_refuses_is_left_to_loading(children, tmp_path, cache):
    (tmp_path / 'text.gguf').write_text('no model')
    check_loads(tmp_path / 'text.gguf')
    check_loads(tmp_path / 'absent.gguf')
    assert len(children) == 1 and not cache.exists()


def test_the_child_loads_no_ros():
    code = 'import hobot_vlm.llama.trial, hobot_vlm.llama.probe, sys; print(*sys.modules)'
    result = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True
    )
    loaded = set(result.stdout.split())
    assert not loaded & {'rclpy', 'llama_cpp', 'cv2', 'huggingface_hub', 'onnxruntime'}


# -- files that end the process -----------------------------------------------------------------


def equal_tokens(path):
    return rewritten(DECODER, path, strings={'tokenizer.ggml.tokens': {300: 'same', 301: 'same'}})


def no_layers(path):
    return rewritten(DECODER, path, {'qwen2.block_count': 0})


def billions_of_layers(path):
    return rewritten(DECODER, path, {'qwen2.block_count': 2**31 - 1})


@pytest.mark.parametrize('make', [equal_tokens, no_layers, billions_of_layers])
def test_a_decoder_that_ends_the_process(make, tmp_path, cache):
    path = make(tmp_path / 'decoder.gguf')
    with pytest.raises(ModelFileError) as caught:
        check_loads(path)
    message = str(caught.value)
    assert str(path) in message and 'SIGABRT' in message and 'Fetch the file again' in message
    assert 'GGML_ASSERT' in message or 'exception' in message or 'what()' in message
    assert len(message) < 700 and not cache.exists()


def test_an_adapter_that_ends_the_process_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / 'adapter.gguf', 'qwen2')
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, 'lora')
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 4.0)
    for part, shape in (('a', (4, 64)), ('b', (64, 4))):
        writer.add_tensor(f'blk.0.attn_q.weight.lora_{part}', np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check_loads(DECODER, lora=tmp_path / 'adapter.gguf')  # a width that fits, or a clear refusal


@pytest.mark.parametrize('name', ['v.position_embd.weight', 'v.class_embd'])
def test_an_mmproj_that_libmtmd_would_end_the_process_over(name, tmp_path):
    """It adds no float16 to float32, and is not asked to: another runtime reads the same file."""
    half = tensor_of(MMPROJ, name).astype(np.float16)
    path = rewritten(MMPROJ, tmp_path / 'mmproj.gguf', tensors={name: half})
    check_loads(DECODER, mmproj=path)
    tiles = ImageTiles(np.zeros((1, 56, 56, 3), np.uint8), 0, 0, True, (0.5,) * 3, (0.5,) * 3)
    with open_encoder(path) as encoder:
        tiles = replace(tiles, pixels=np.zeros((1, *2 * (encoder.tile_size,), 3), np.uint8))
        assert np.isfinite(encoder.encode(tiles)).all()
    with pytest.raises(ModelFileError, match='libmtmd needs float32'):
        open_encoder(path, EncoderOptions(device='libmtmd'))


def test_weights_that_are_no_numbers(tmp_path):
    name = 'blk.0.ffn_up.weight'
    weights = tensor_of(DECODER, name).copy()
    weights.reshape(-1)[7] = np.nan
    path = rewritten(DECODER, tmp_path / 'decoder.gguf', tensors={name: weights})
    with pytest.raises(
        ModelFileError, match='decoder.gguf: running it gives numbers that are not'
    ):
        check_loads(path)


def test_a_child_that_does_not_end(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, 'SECONDS', 0.05)
    with pytest.raises(ModelFileError, match='had not ended after 0 s'):
        check_loads(DECODER)
