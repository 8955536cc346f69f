"""
InternVL on each of its makers' decoders gives the answers of transformers.

The expected values were stored by ``tools/make_decoder_models.py``, which made the models too.
"""

from __future__ import annotations

import json
from pathlib import Path

from core import empty, parts, prompt
from folders import MODELS
from hobot_vlm import VLM
from hobot_vlm.llama.sampler import Sampler
import numpy as np
from pictures import picture
import pytest

DATA = Path(__file__).parents[1] / 'data'
TOLD = json.loads((DATA / 'parity_decoders.json').read_text('utf-8'))
CASES = TOLD['cases']
LOGITS = np.load(DATA / 'parity_decoders.npz')
KINDS = sorted(TOLD['ends'])


@pytest.fixture(scope='module', params=KINDS)
def model(request):
    with VLM.load(
        model_file_name=MODELS / 'internvl' / 'vision.onnx',
        llm_model_name=MODELS / 'decoders' / f'{request.param}.gguf',
        llm_threads=1,
        encoder_threads=1,
        encoder_device='cpu',
        n_ctx=1024,
        warm_up=False,
    ) as vlm:
        yield request.param, vlm


@pytest.mark.parametrize('case', ['tiles', 'two'])
def test_prompt_logits_and_tokens(model, case, monkeypatch):
    kind, vlm = model
    told, logits = CASES[f'{kind}/{case}'], LOGITS[f'{kind}/{case}']
    shown = [picture(*recipe) for recipe in told['pictures']]
    made = prompt(vlm, told['question'], shown).prompt
    assert [told['placeholder'] if i < 0 else i for i in made.ids] == told['ids']
    empty(vlm)
    chosen = []
    sample = Sampler.sample

    def noting(sampler, entry=-1):
        chosen.append((sample(sampler, entry), parts(vlm).context.logits(entry).copy()))
        return chosen[-1][0]

    monkeypatch.setattr(Sampler, 'sample', noting)
    reply = vlm.ask(told['question'], shown, n_predict=32)
    assert reply.prompt_tokens == len(told['ids'])
    assert np.abs(chosen[0][1] - logits).max() < 1e-2 * np.abs(logits).max()
    tokens = [token for token, _ in chosen][: reply.completion_tokens]
    assert tokens == told['greedy'][: len(tokens)]
    assert len(tokens) == 32 or reply.finish_reason == 'stop'
    # the same again is in the KV cache, whatever kind of attention it is for
    chosen.clear()
    again = vlm.ask(told['question'], shown, n_predict=8)
    assert again.reused_tokens >= len(told['ids']) - 1
    assert [token for token, _ in chosen][:8] == told['greedy'][:8]


def test_answers_end_where_the_makers_end_them(model):
    kind, vlm = model
    ends = {i for i in range(parts(vlm).model.n_vocab) if parts(vlm).model.is_end(i)}
    assert set(TOLD['ends'][kind]) <= ends
    controls = parts(vlm).model.controls
    assert not ends & {controls['<img>'], controls['</img>'], controls['<IMG_CONTEXT>']}


def test_later_turns(model):
    kind, vlm = model
    chat = vlm.conversation()
    first = chat.ask('What is it?', picture(60, 40, 1), n_predict=6)
    second = chat.ask('Where?', n_predict=6)
    assert second.reused_tokens >= first.prompt_tokens
    turn = {'phi3': '<|end|>', 'gptoss': '<|return|>'}.get(kind, '<|im_end|>')
    spans = parts(vlm).template.following(['Where?'])
    assert spans[0].token == turn


def test_sentencepiece_vocabularies(model):
    kind, vlm = model
    for text, ids in TOLD['texts'].get(kind, ()):
        assert vlm.tokenize(text) == ids, text
