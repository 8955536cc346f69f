"""Choosing: shares are those of whole answers, as a fresh context weighs them."""

from __future__ import annotations

from core import batches, parts, prompt
from folders import MODELS
from hobot_vlm import ConfigError, PromptTooLong, VLM
from hobot_vlm.llama.context import Context, Run
from hobot_vlm.llama.model import Model
import numpy as np
from pictures import picture
import pytest

CHOICES = ['yes', 'no', 'a very long choice of several tokens', '红色']


@pytest.fixture(scope='module')
def vlm():
    folder = MODELS / 'internvl'
    with VLM.load(
        model_file_name=str(folder / 'vision.onnx'),
        llm_model_name=str(folder / 'decoder.gguf'),
        llm_threads=1,
        max_tiles=1,
        n_ctx=512,
    ) as opened:
        yield opened


def weighed(vlm, question, shown, choices):
    """Weigh choices token by token in a context that knows nothing else."""
    made = prompt(vlm, question, shown).prompt
    model = Model(MODELS / 'internvl' / 'decoder.gguf')
    scores = []
    for choice in choices:
        context = Context(model, n_ctx=512, threads=1)
        at = 0
        for entries in made.entries(0, len(made.ids)):
            context.run([Run(0, at, entries, logits=True)])
            at += len(entries)
        score = 0.0
        for token in vlm.tokenize(choice):
            logits = context.logits().astype(np.float64)
            score += logits[token] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
            context.run([Run(0, at, [token], logits=True)])
            at += 1
        scores.append(score)
        context.close()
    model.close()
    weights = np.exp(np.array(scores) - max(scores))
    return weights / weights.sum()


@pytest.mark.parametrize('shown', [None, picture(60, 40, 3)], ids=['text', 'picture'])
def test_shares_are_those_of_whole_answers(vlm, shown):
    shares = vlm.choose('Is it open?', shown, CHOICES)
    assert list(shares) == CHOICES and sum(shares.values()) == pytest.approx(1)
    expected = weighed(vlm, 'Is it open?', shown, CHOICES)
    np.testing.assert_allclose(list(shares.values()), expected, atol=1e-3)


def test_what_choices_begin_with_is_decoded_once(vlm):
    shown = picture(60, 40, 9)
    total = len(prompt(vlm, 'And where?', shown).prompt.ids)
    with batches(vlm) as seen:
        vlm.choose('And where?', shown, CHOICES)
    decoded = sum(len(run.entries) for runs in seen for run in runs)
    tokens = sum(len(vlm.tokenize(choice)) for choice in CHOICES)
    assert decoded <= total + tokens + len(CHOICES)
    assert any(len({run.seq for run in runs}) > 1 for runs in seen)
    assert parts(vlm).model.n_vocab


@pytest.mark.parametrize('choices', ['yes', [], ['yes'], ['yes', 'yes'], ['yes', ''], ['a', 3]])
def test_choices_that_cannot_be(vlm, choices):
    with pytest.raises(ConfigError, match='choices'):
        vlm.choose('Is it open?', None, choices)
    with pytest.raises(PromptTooLong):  # else it was weighed by its beginning
        vlm.choose('Is it open?', None, ['yes', 'no ' * 5000])
    assert vlm.ask('Why?', n_predict=1).completion_tokens
