"""
Choosing: shares are those of whole answers, as a fresh context and as transformers weigh them.

``test/data/parity_choices.json`` was stored by ``tools/make_test_models.py``.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
import subprocess
import sys
import threading
import time

from core import batches, parts, prompt
from folders import DEMO, MODELS
from hobot_vlm import ConfigError, InferenceError, PromptTooLong, VLM
from hobot_vlm.choosing import spellings
from hobot_vlm.llama.context import Context, Run
from hobot_vlm.llama.model import Model
import numpy as np
from pictures import picture
import pytest

CHOICES = ['yes', 'no', 'a very long choice of several tokens', '红色']


@pytest.fixture(scope='module')
def vlm():
    """Without fused attention, which rounds queries to 16 bits: these logits are large."""
    folder = MODELS / 'internvl'
    with VLM.load(
        model_file_name=str(folder / 'vision.onnx'),
        llm_model_name=str(folder / 'decoder.gguf'),
        llm_threads=1,
        max_tiles=1,
        n_ctx=512,
        flash_attention='off',
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
    shares = vlm.choose('Is it open?', shown, CHOICES, exact=True)
    assert list(shares) == CHOICES and sum(shares.values()) == pytest.approx(1)
    expected = weighed(vlm, 'Is it open?', shown, CHOICES)
    np.testing.assert_allclose(list(shares.values()), expected, atol=1e-3)


EMOJI = Path('/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf')
STORED = json.loads((Path(__file__).parent / 'data' / 'parity_choices.json').read_text('utf-8'))
CASES = json.loads((Path(__file__).parent / 'data' / 'parity_vlm.json').read_text('utf-8'))


@pytest.fixture(scope='module')
def smolvlm():
    folder = MODELS / 'smolvlm'
    with VLM.load(
        model_file_name=str(folder / 'vision.onnx'),
        llm_model_name=str(folder / 'decoder.gguf'),
        llm_threads=1,
        n_ctx=512,
        flash_attention='off',
    ) as opened:
        yield opened


@pytest.mark.parametrize('case', STORED)
def test_shares_are_those_of_transformers(vlm, smolvlm, case):
    """Of single tokens and of several, exact and in all spellings."""
    asked = CASES['cases'][case]
    shown = [picture(*recipe) for recipe in asked['pictures']] or None
    more = {'system_prompt': asked['system_prompt'], 'max_tiles': 1}
    model = vlm if case.startswith('internvl') else smolvlm
    for choices in (['yes', 'no'], ['a cat', 'a dog', 'the cat'], ['红色', '红色的', 'no']):
        for exact in (True, False):
            weights = []
            for choice in choices:
                forms = [choice] if exact else spellings(choice)
                weights.append(np.exp([STORED[case][form] for form in forms]).sum())
            # where nothing can be said before, spellings are weighed at the beginning as well
            found = model.choose(
                asked['question'], shown, choices, exact=exact, **more, n_predict=1
            )
            assert list(found) == choices
            expected = np.array(weights) / sum(weights)
            np.testing.assert_allclose(list(found.values()), expected, atol=1e-3)


def test_what_choices_begin_with_is_decoded_once(vlm):
    shown = picture(60, 40, 9)
    total = len(prompt(vlm, 'And where?', shown).prompt.ids)
    with batches(vlm) as seen:
        vlm.choose('And where?', shown, CHOICES, exact=True)
    decoded = sum(len(run.entries) for runs in seen for run in runs)
    tokens = sum(len(vlm.tokenize(choice)) for choice in CHOICES)
    assert decoded <= total + tokens
    assert any(len({run.seq for run in runs}) > 1 for runs in seen)
    # choices of one token each need no more than the question does
    single = [choice for choice in 'abcdef' if len(vlm.tokenize(choice)) == 1]
    with batches(vlm) as seen:
        vlm.choose('And when?', None, single, exact=True)
    total = len(prompt(vlm, 'And when?').prompt.ids)
    assert len(single) > 1 and sum(len(run.entries) for runs in seen for run in runs) <= total


def test_choices_that_are_alike_share_what_they_have(vlm):
    assert spellings(' yes ') == ['yes', 'Yes', ' yes', ' Yes']
    assert spellings('No.') == ['No.', 'no.', ' No.', ' no.']
    with pytest.raises(ConfigError, match='different ones'):
        vlm.choose('Is it open?', None, ['yes', 'Yes'])
    assert sum(vlm.choose('Is it open?', None, ['yes', 'Yes'], exact=True).values()) > 0.999


@pytest.fixture(scope='module')
def demo():
    with VLM.load('demo', llm_threads=1) as opened:
        yield opened


def test_a_choice_is_weighed_where_the_model_says_it(demo):
    """The demo model says what it sees before it says yes or no."""
    sample = DEMO / 'sample.png'
    shown = demo.ask('Describe the picture.', sample).text
    for thing, there in (('dog', 'dog' in shown), ('banana', 'banana' in shown)):
        reply = demo.ask(f'Is there a {thing}?', sample, choices=['yes', 'no'])
        assert reply.text == ('yes' if there else 'no') and reply.finish_reason == 'stop'
        assert reply.choices[reply.text] > 0.9
        said = demo.ask(f'Is there a {thing}?', sample)
        assert 0 < reply.completion_tokens < said.completion_tokens
        assert reply.prompt_tokens == said.prompt_tokens
    # in the middle of a sentence, and a beginning that others share
    found = demo.choose('What colour is the background?', sample, ['the dog', 'blue', 'red'])
    assert found['blue'] > 0.9
    found = demo.choose('有狗吗？', sample, ['有，', '没有，'])
    assert found['有，' if 'dog' in shown else '没有，'] > 0.9


@pytest.mark.skipif(not EMOJI.exists(), reason='apt install fonts-noto-color-emoji')
def test_fresh_scenes():
    """The tool that measures it on many finds the bounds kept on a few."""
    tool = Path(__file__).parents[1] / 'tools' / 'demo_model' / 'eval_demo.py'
    done = subprocess.run(
        [sys.executable, tool, '--choose', '--scenes', '6', '--seed', '8', '--json'],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for row in json.loads(done.stdout)['choose'].values():
        assert row['right'] == 100 and row['calibration_error'] < 0.05 and row['tokens'] < 0.9


def test_many_at_once_and_as_streams(demo):
    sample = DEMO / 'sample.png'
    asked = [(f'Is there a {thing}?', sample) for thing in ('dog', 'cat', 'bus', 'banana')]
    alone = [demo.ask(*question, choices=['yes', 'no']).choices for question in asked]
    together = demo.ask_many(asked, choices=['yes', 'no'])
    for one, other in zip(alone, together, strict=True):
        assert other.choices == pytest.approx(one, abs=0.02)

    async def awaited():
        stream = demo.stream(*asked[0], choices=['yes', 'no'])
        pieces = [chunk.text async for chunk in stream]
        return pieces, await stream

    pieces, reply = asyncio.run(awaited())
    assert pieces == [reply.text] and reply.as_dict()['choices'] == reply.choices
    assert 'choices' not in demo.ask('Hello', n_predict=1).as_dict()


def test_choosing_can_be_stopped(vlm):
    """At any moment: nothing is left, and the next question is answered."""
    many = [f'{number} red cups and a spoon' for number in range(30)]
    for wait in (0.0, 0.002, 0.01, 0.03):
        stream = vlm.stream('Why?', picture(60, 40, 5), choices=many)
        threading.Timer(wait, stream.cancel).start()
        reply = stream.wait()
        assert (reply.finish_reason == 'cancelled') == (not reply.choices)
    stream = vlm.stream('Why?', picture(60, 40, 6), choices=many)
    del stream  # nobody has it any more
    reply = vlm.ask('Why not?', choices=many, timeout=0.001)
    assert (reply.finish_reason, reply.choices, reply.text) == ('timeout', {}, '')
    deadline = time.monotonic() + 10
    while vlm.status().running or vlm.status().waiting:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert vlm.ask('Why?', n_predict=1).completion_tokens


@pytest.mark.parametrize('question', ['Why not?', 'Why?', 'And where?'])
def test_shares_that_are_not_there_are_an_error(vlm, question):
    many = [f'{number} red cups and a spoon' for number in range(30)]
    with pytest.raises(InferenceError, match='timeout was over before all choices'):
        vlm.choose(question, picture(60, 40, 7), many, timeout=1e-6)


@pytest.mark.parametrize('step', [1, 2])
@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize('exact', [False, True])
def test_chances_that_are_no_numbers_are_an_error(vlm, step, value, exact):
    context, logits_of = parts(vlm).context, parts(vlm).context.logits
    count = 0

    def logits(entry=-1):
        nonlocal count
        count += 1
        found = logits_of(entry)
        if count >= step:
            found[1:] = value
        return found

    context.logits = logits
    try:
        with pytest.raises(InferenceError, match='not finite|choices possible'):
            vlm.choose('Where?', None, ['a cat', 'some dogs'], exact=exact, n_predict=4)
    finally:
        del context.logits


def test_closing_ends_a_choice():
    opened = VLM.load(
        llm_model_name=str(MODELS / 'plain' / 'decoder.gguf'), llm_threads=1, n_ctx=512
    )
    stream = opened.stream('Why?', choices=[f'{number} red cups' for number in range(30)])
    opened.close()
    try:
        assert stream.wait().finish_reason in ('cancelled', 'stop')
    except InferenceError:
        pass


@pytest.mark.parametrize(
    'more',
    [
        {'regex': 'a'},
        {'json_schema': '{}'},
        {'grammar': 'root ::= "a"'},
        {'stop': ['a']},
        {'logprobs': 1},
        {'find': True},
        {'logit_bias': {1: 2.0}},
    ],
    ids=lambda more: next(iter(more)),
)
def test_what_choices_exclude(vlm, more):
    with pytest.raises(ConfigError, match='one of the choices is the whole answer'):
        vlm.choose('Why?', None, ['yes', 'no'], **more)


def test_choices_have_no_conversation(vlm):
    with pytest.raises(ConfigError, match='choices stand in a conversation'):
        vlm.conversation().ask('Why?', choices=['yes', 'no'])
    with pytest.raises(ConfigError, match='exact'):
        vlm.ask('Why?', exact=True)


@pytest.mark.parametrize('choices', ['yes', [], ['yes'], ['yes', 'yes'], ['yes', ''], ['a', 3]])
def test_choices_that_cannot_be(vlm, choices):
    with pytest.raises(ConfigError, match='choices'):
        vlm.choose('Is it open?', None, choices)
    assert vlm.ask('Why?', n_predict=1).completion_tokens


@pytest.mark.parametrize('exact', [False, True])
def test_a_choice_that_does_not_fit_is_not_weighed_by_its_beginning(vlm, exact):
    with pytest.raises(PromptTooLong):
        vlm.choose('Is it open?', None, ['ab ' * 1000, 'cd ' * 1000], exact=exact)
