"""
The same answers as transformers gives with the same weights.

The expected values were stored by ``tools/make_test_models.py``, which made the models too.
"""

from __future__ import annotations

from collections.abc import Iterator
import json
from pathlib import Path

from core import embed, empty, parts, prompt
from folders import MODELS
from hobot_vlm import VLM
from hobot_vlm.families import family as family_of
from hobot_vlm.llama.context import Context, Outcome
from hobot_vlm.llama.kv_cache import KvCache, SlotRun
from hobot_vlm.llama.model import Model
from hobot_vlm.llama.sampler import Sampler
from hobot_vlm.values import TileSpan
import numpy as np
from pictures import picture
import pytest

DATA = Path(__file__).parents[1] / 'data'
CASES = json.loads((DATA / 'parity_vlm.json').read_text('utf-8'))['cases']
LOGITS = np.load(DATA / 'parity_vlm.npz')
DECODER = np.load(DATA / 'parity_decoder.npz')
#: what the processors write in place of each embedding
PLACEHOLDER = {'internvl': '<IMG_CONTEXT>', 'smolvlm': '<image>'}


def relative(got, expected):
    """Give the largest difference as a share of the largest expected value."""
    return np.abs(got - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize('mixed', [False, True])
@pytest.mark.parametrize('name', ['plain', 'internvl', 'smolvlm'])
def test_embeddings_between_tokens(name, mixed):
    """A Llama (plain, smolvlm) and a Qwen2 (internvl) read [text, embeddings, text]."""
    case = {
        key: DECODER[f'{name}/{key}']
        for key in ('before', 'embeddings', 'after', 'logits', 'greedy')
    }
    embeddings = np.ascontiguousarray(case['embeddings'], np.float32)
    before, after = case['before'].tolist(), case['after'].tolist()
    ids = [*before, *(-1 - i for i in range(len(embeddings))), *after]
    model = Model(MODELS / name / 'decoder.gguf')
    context = Context(model, n_ctx=128, threads=1)
    if mixed:
        assert context.mix()
    cache = KvCache(context)
    slot = cache.acquire(None, ids)
    for entries in [[before, embeddings, after]] if mixed else [[before], [embeddings], [after]]:
        done = len(slot.ids)
        run = SlotRun(slot, ids[done : done + sum(map(len, entries))], entries, logits=True)
        assert cache.run([run]) is Outcome.DONE
    assert slot.ids == ids
    assert relative(context.logits(run.entry), case['logits']) < 5e-3
    tokens = []
    for _ in case['greedy']:
        tokens.append(int(context.logits(run.entry).argmax()))
        run = SlotRun(slot, tokens[-1:], [tokens[-1:]], logits=True)
        assert cache.run([run]) is Outcome.DONE
    assert tokens == case['greedy'].tolist()
    context.close()
    model.close()


@pytest.fixture(scope='module', params=['onnx', 'mmproj'])
def models(request) -> Iterator[dict[str, VLM]]:
    """Load both families, with either encoder."""
    encoder = {'onnx': 'vision.onnx', 'mmproj': 'mmproj.gguf'}[request.param]
    opened = {
        family: VLM.load(
            model_file_name=MODELS / family / encoder,
            llm_model_name=MODELS / family / 'decoder.gguf',
            llm_threads=1,
            encoder_threads=1,
            n_ctx=1024,
        )
        for family in ('internvl', 'smolvlm')
    }
    yield opened
    for vlm in opened.values():
        vlm.close()


@pytest.mark.parametrize('name', CASES)
def test_prompt_logits_and_tokens(models, name, monkeypatch):
    case, family = CASES[name], name.split('/')[0]
    vlm = models[family]
    options = {'max_tiles': case['max_tiles']}
    if case['system_prompt']:
        options['system_prompt'] = case['system_prompt']
    shown = [picture(*spec) for spec in case['pictures']]
    # 1. the prompt, token by token
    made = prompt(vlm, case['question'], shown, **options).prompt
    placeholder = parts(vlm).model.controls[PLACEHOLDER[family]]
    assert [placeholder if i < 0 else i for i in made.ids] == case['ids']
    assert made.image_tokens == case['ids'].count(placeholder)
    # 2. the first step, and the answer
    empty(vlm)
    chosen = []
    with monkeypatch.context() as patch:
        sample = Sampler.sample

        def noting(sampler, entry=-1):
            logits = parts(vlm).context.logits(entry).copy()
            chosen.append((sample(sampler, entry), logits))
            return chosen[-1][0]

        patch.setattr(Sampler, 'sample', noting)
        reply = vlm.ask(case['question'], shown, n_predict=32, **options)
    assert reply.prompt_tokens == len(case['ids']) and reply.reused_tokens == 0
    assert relative(chosen[0][1], LOGITS[name]) < 1e-2
    tokens = [token for token, _ in chosen][: reply.completion_tokens]
    assert tokens == case['greedy'][: len(tokens)]
    assert len(tokens) == 32 or reply.finish_reason == 'stop'


@pytest.mark.parametrize('model_type', [0, 1])
def test_a_family_that_does_not_fit_is_refused(model_type):
    from hobot_vlm import ModelMismatch

    family = ('smolvlm', 'internvl')[model_type]
    with pytest.raises(ModelMismatch, match='Looked for'):
        VLM.load(
            model_file_name=MODELS / family / 'vision.onnx',
            llm_model_name=MODELS / family / 'decoder.gguf',
            model_type=model_type,
        )


def test_a_language_model_without_marks_reads_no_pictures():
    from hobot_vlm import ModelMismatch

    with pytest.raises(ModelMismatch, match='internvl.*smolvlm'):
        VLM.load(
            model_file_name=MODELS / 'internvl' / 'vision.onnx',
            llm_model_name=MODELS / 'plain' / 'decoder.gguf',
        )
    with VLM.load(llm_model_name=MODELS / 'plain' / 'decoder.gguf') as vlm:
        with pytest.raises(ModelMismatch, match='reads no pictures'):
            vlm.ask('Describe the picture.', picture(20, 20, 0))
        chat = vlm.conversation()
        first = chat.ask('Hello', n_predict=8)
        second = chat.ask('And now?', n_predict=8)
        assert second.reused_tokens >= first.prompt_tokens


def test_an_encoder_of_another_width_is_refused():
    from hobot_vlm import ModelMismatch

    with pytest.raises(ModelMismatch, match='width'):
        VLM.load(
            model_file_name=MODELS.parents[1] / 'hobot_vlm' / 'demo' / 'vision.onnx',
            llm_model_name=MODELS / 'smolvlm' / 'decoder.gguf',
        )


def test_an_encoder_may_prefer_fewer_tiles(monkeypatch):
    """As the BPU's does: each tile takes it seconds."""
    from hobot_vlm.encoders.bpu import BpuEncoder
    from hobot_vlm.encoders.onnx import OnnxEncoder

    monkeypatch.setattr(OnnxEncoder, 'usual_tiles', BpuEncoder.usual_tiles)
    files = {
        'model_file_name': MODELS / 'internvl' / 'vision.onnx',
        'llm_model_name': MODELS / 'internvl' / 'decoder.gguf',
    }
    shown = picture(200, 150, 40)
    with VLM.load(**files) as vlm:
        one = vlm.ask('Describe the picture.', shown, n_predict=1).image_tokens
        assert one == parts(vlm).encoder.tokens
        assert (
            vlm.ask('Describe the picture.', shown, n_predict=1, max_tiles=12).image_tokens
            == 13 * one
        )


def test_pictures_of_a_grid_stand_row_by_row(models):
    """The embeddings of tiles are the rows that their markers name."""
    vlm = models['smolvlm']
    (image,) = embed(vlm, picture(200, 150, 340))
    spans = family_of('smolvlm').spans(image, parts(vlm).model.controls)
    tiles = [span.index for span in spans if isinstance(span, TileSpan)]
    assert tiles == list(range(image.rows * image.columns + 1)) and len(tiles) > 1
