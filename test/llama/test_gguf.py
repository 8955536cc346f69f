"""What the headers of model files say: of splits, of halves that belong together, of damage."""

from __future__ import annotations

from pathlib import Path
import struct

import gguf
from hobot_vlm import VLM
from hobot_vlm.errors import ModelFileError, ModelMismatch
from hobot_vlm.families.pairing import check_pair
from hobot_vlm.llama import probe
from hobot_vlm.llama.gguf import identity, part_name, parts, read_gguf
from hobot_vlm.llama.model import Model
from hobot_vlm.llama.probe import check_loads
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

MODELS = Path(__file__).parents[1] / 'models'
DECODER, MMPROJ = MODELS / 'internvl' / 'decoder.gguf', MODELS / 'internvl' / 'mmproj.gguf'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


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


@pytest.mark.parametrize('name', ['internvl', 'smolvlm'])
@pytest.mark.parametrize('encoder_of', ['internvl', 'smolvlm'])
def test_halves_are_told_apart_by_what_they_say(name, encoder_of):
    model = Model(MODELS / name / 'decoder.gguf')
    try:
        if name == encoder_of:
            check_pair(model, MODELS / encoder_of / 'mmproj.gguf')
            check_pair(model, MODELS / encoder_of / 'vision.onnx')
        else:
            with pytest.raises(ModelMismatch, match=f'family {encoder_of}.* of the family {name}'):
                check_pair(model, MODELS / encoder_of / 'mmproj.gguf')
    finally:
        model.close()


def split(folder, source=DECODER):
    """Split a decoder into three files, as llama-gguf-split does."""
    reader = gguf.GGUFReader(source)
    third = -(-len(reader.tensors) // 3)
    for number in range(3):
        path = folder / part_name('decoder', number + 1, 3)
        writer = gguf.GGUFWriter(path, 'qwen2')
        for field in reader.fields.values() if number == 0 else ():
            if not field.name.startswith('GGUF.') and field.name != 'general.architecture':
                inner = field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(field.name, field.contents(), field.types[0], inner)
        writer.add_uint16('split.no', number)
        writer.add_uint16('split.count', 3)
        writer.add_int32('split.tensors.count', len(reader.tensors))
        for tensor in reader.tensors[number * third : (number + 1) * third]:
            writer.add_tensor(tensor.name, tensor.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return sorted(folder.glob('decoder-*.gguf'))


def test_a_split_is_one_model(tmp_path, children):
    files = split(tmp_path)
    assert [file.name for file in files] == [f'decoder-0000{i}-of-00003.gguf' for i in (1, 2, 3)]
    assert parts(files[0]) == parts(files[2]) == files
    whole, header = read_gguf(DECODER), read_gguf(files[1])
    assert set(header.tensors) == set(whole.tensors)
    for name in ('token_embd.weight', 'output_norm.weight'):
        assert np.array_equal(header.read(name), whole.read(name))
    check_loads(files[0])
    model = Model(files[0])
    assert model.n_vocab == len(whole.metadata['tokenizer.ggml.tokens'])
    model.close()
    # each part counts for what the model is
    before = identity(files[0])
    assert before == identity(files[2]) != identity(DECODER)
    data = bytearray(files[2].read_bytes())
    data[-1] ^= 1
    files[2].write_bytes(data)
    assert identity(files[0]) != before
    check_loads(files[0])
    assert len(children) == 2


def test_a_part_that_is_missing_is_named(tmp_path):
    files = split(tmp_path)
    files[1].unlink()
    for call in (parts, read_gguf, identity, check_loads):
        with pytest.raises(ModelFileError, match='decoder-00002-of-00003.gguf is missing'):
            call(files[0])
    renamed = files[0].rename(tmp_path / 'alone.gguf')
    with pytest.raises(ModelFileError, match='one of 3 parts.*rename it as it was'):
        read_gguf(renamed)


@pytest.mark.parametrize('order', [(0, 2, 1), (0, 1, 1), (0, 1, 0)])
def test_parts_that_are_others_are_named(tmp_path, order):
    """Exchanged, or one of them twice: llama.cpp says which, and nothing crashes."""
    files = split(tmp_path)
    data = [file.read_bytes() for file in files]
    for file, number in zip(files, order, strict=True):
        file.write_bytes(data[number])
    with pytest.raises(ModelFileError, match='decoder-0000[23]-of-00003.gguf'):
        VLM.load(llm_model_name=str(files[0]))


def test_any_part_stands_for_the_model(tmp_path):
    files = split(tmp_path)
    for file in files:
        with VLM.load(llm_model_name=str(file), llm_threads=1, n_ctx=256) as vlm:
            assert vlm.ask('Why?', n_predict=1).completion_tokens == 1


# -- damage ---------------------------------------------------------------------------------------


def header(*values, tensors=b'', n_tensors=0):
    """Write a GGUF header: keys with what follows them."""
    return (
        b'GGUF'
        + struct.pack('<IQQ', 3, n_tensors, len(values))
        + b''.join(struct.pack('<Q', len(key)) + key + value for key, value in values)
        + tensors
    )


def number(kind, form, value):
    return struct.pack('<I' + form, kind, value)


NAME = struct.pack('<Q', 1) + b'a'


@pytest.mark.parametrize(
    ('data', 'told'),
    [
        (b'', 'instead of GGUF'),
        (b'GGUF', 'cut short'),
        (b'GGUF' + struct.pack('<IQQ', 3, 2**63, 0), 'claims to hold .* tensors'),
        (b'GGUF' + struct.pack('<IQQ', 3, 0, 2**40), 'claims to hold .* values'),
        (header((b'general.alignment', number(8, 'Q', 0))), "its alignment is ''"),
        (header((b'general.alignment', number(4, 'I', 0))), 'its alignment is 0'),
        (header((b'general.alignment', number(6, 'f', float('inf')))), 'its alignment is inf'),
        (header((b'general.alignment', number(7, '?', True))), 'its alignment is True'),
        (header((b'general.alignment', number(10, 'Q', 2**60))), 'its alignment is 11'),
        (header((b'a', number(9, 'I', 9) + bytes(8))), 'unknown type 9'),
        (header((b'a', number(9, 'I', 77) + bytes(8))), 'unknown type 77'),
        (header((b'a', number(77, 'I', 0))), 'unknown type 77'),
        (header((b'a', number(9, 'I', 8) + struct.pack('<Q', 2**40))), 'claims to hold .* items'),
        (header((b'a', number(8, 'Q', 2**50))), 'bytes of text'),
        (header((b'\xff\xfe', number(4, 'I', 0))), 'damaged'),
        (header(n_tensors=1, tensors=NAME + struct.pack('<I', 2**32 - 1)), '4294967295 axes'),
        (
            header(n_tensors=1, tensors=NAME + struct.pack('<IQIQ', 1, 2**63, 0, 0)),
            'cut short: .* of at least 36893',
        ),
        (
            header(n_tensors=1, tensors=NAME + struct.pack('<IQIQ', 1, 1, 0, 2**63)),
            'cut short: .* of at least 9223',
        ),
    ],
)
def test_a_damaged_header_is_an_error_soon(data, told, tmp_path):
    path = tmp_path / 'model.gguf'
    path.write_bytes(data)
    with path.open('r+b') as file:
        file.truncate(max(len(data), 70))  # a sparse tail, so that counts are not refused by size
    if len(data) < 8:
        path.write_bytes(data)
    with pytest.raises(ModelFileError, match=told) as caught:
        read_gguf(path)
    assert len(str(caught.value)) < 400


def test_a_tensor_that_is_not_there():
    with pytest.raises(ModelFileError, match='it has no tensor nothing'):
        read_gguf(MMPROJ).read('nothing')


WHOLE = MMPROJ.read_bytes()
START = min(tensor.offset for tensor in read_gguf(MMPROJ).tensors.values())


@given(
    st.integers(4, START - 8),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([0, 1, 255, 2**31 - 1, 2**32 - 1, 2**63, 2**64 - 1])
    | st.integers(0, 2**64 - 1),
)
@settings(max_examples=400)
def test_one_changed_value_is_a_header_or_an_error(tmp_path_factory, at, width, value):
    changed = bytearray(WHOLE)
    changed[at : at + width] = value.to_bytes(8, 'little')[:width]
    path = tmp_path_factory.getbasetemp() / 'changed.gguf'
    path.write_bytes(changed)
    try:
        read_gguf(path)
    except ModelFileError as error:
        assert len(str(error)) < 600
