"""LoRA adapters, made here for the small models: their scale says how much they change."""

from __future__ import annotations

from folders import MODELS
import gguf
from hobot_vlm import ModelFileError, ModelMismatch, VLM
import numpy as np
import pytest

QUESTION = 'What is on the left?'


def adapter(path, model, rank=4, width=None, architecture=None):
    """Write a random adapter for the query projection of each layer of a model."""
    reader = gguf.GGUFReader(MODELS / model / 'decoder.gguf')
    field = reader.fields['general.architecture']
    name = bytes(field.parts[field.data[0]]).decode()
    writer = gguf.GGUFWriter(path, architecture or name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, 'lora')
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
    rng = np.random.default_rng(7)
    for tensor in reader.tensors:
        if tensor.name.endswith('attn_q.weight'):
            columns, rows = (int(n) for n in tensor.shape)
            for part, shape in (('a', (rank, width or columns)), ('b', (rows, rank))):
                writer.add_tensor(
                    f'{tensor.name}.lora_{part}', rng.normal(0, 1, shape).astype(np.float32)
                )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def load(model, **options):
    return VLM.load(
        llm_model_name=str(MODELS / model / 'decoder.gguf'),
        llm_threads=1,
        model_file_name=str(MODELS / model / 'vision.onnx'),
        n_predict=16,
        n_ctx=512,
        **options,
    )


def first_logprobs(vlm):
    return [p.logprob for p in vlm.ask(QUESTION, logprobs=1).logprobs[:1]]


@pytest.mark.parametrize('model', ['internvl', 'smolvlm'])
def test_scale_is_the_strength_of_an_adapter(model, tmp_path):
    path = adapter(tmp_path / 'adapter.gguf', model)
    with load(model) as vlm:
        plain, sure = vlm.ask(QUESTION).text, first_logprobs(vlm)
    with load(model, lora=path, lora_scale=0.0) as vlm:
        assert vlm.ask(QUESTION).text == plain
        assert first_logprobs(vlm) == sure
    with load(model, lora=path) as vlm:
        changed = vlm.ask(QUESTION).text
        assert changed != plain
        assert vlm.ask(QUESTION).text == changed  # the next question has it as well
    with load(model, lora=path, lora_scale=0.001) as vlm:
        little = abs(first_logprobs(vlm)[0] - sure[0])
        assert 0 < little < 0.1
    with load(model, lora=path, lora_scale=-1.0) as vlm:
        assert vlm.ask(QUESTION).text not in (plain, changed)


def test_an_adapter_of_another_model_is_refused(tmp_path, sample):
    wrong = adapter(tmp_path / 'wrong.gguf', 'smolvlm')
    for options, match in (
        ({'lora': wrong}, r'wrong\.gguf.*expected a LoRA adapter made for .*decoder\.gguf'),
        ({'lora': adapter(tmp_path / 'wide.gguf', 'internvl', width=96)}, r'wide\.gguf'),
        ({'lora': str(MODELS / 'internvl' / 'decoder.gguf')}, 'cannot load it'),
        ({'lora': str(tmp_path / 'nowhere.gguf')}, 'no such file'),
        ({'lora': sample}, 'instead of GGUF'),
    ):
        with pytest.raises(ModelFileError, match=match):
            load('internvl', **options)


def test_a_conversation_belongs_to_its_adapter(tmp_path):
    path = adapter(tmp_path / 'adapter.gguf', 'internvl')
    state = tmp_path / 'chat.state'
    with load('internvl', lora=path) as vlm:
        chat = vlm.conversation()
        chat.ask(QUESTION)
        chat.save(state)
        expected = chat.ask('Why?').text
    with load('internvl', lora=path) as vlm:
        assert vlm.restore(state).ask('Why?').text == expected
    for options in ({}, {'lora': path, 'lora_scale': 0.5}):
        with (
            load('internvl', **options) as vlm,
            pytest.raises(ModelMismatch, match='another LoRA adapter.*adapter.gguf at 1.0'),
        ):
            vlm.restore(state)
