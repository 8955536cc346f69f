"""Choosing tokens: what each option does, what must be followed, and what comes without choice."""

from __future__ import annotations

from collections import Counter
import json
import math

from decoding import Decoder, MODELS
from hobot_vlm.config import Config
from hobot_vlm.errors import GrammarError, InferenceError
from hobot_vlm.llama.constraint import open_constraint
from hobot_vlm.llama.sampler import Sampler
import numpy as np
import pytest

SCHEMA = json.dumps(
    {
        'type': 'object',
        'properties': {
            'name': {'type': 'string', 'maxLength': 5},
            'colour': {'enum': ['red', 'reddish brown', 'blue']},
            'count': {'type': 'integer', 'minimum': 1, 'maximum': 99},
        },
        'required': ['name', 'colour', 'count'],
        'additionalProperties': False,
    }
)


@pytest.fixture(scope='module', params=['plain', 'internvl', 'smolvlm'])
def decoder(request):
    decoder = Decoder(MODELS / request.param / 'decoder.gguf')
    yield decoder
    decoder.close()


@pytest.fixture(scope='module')
def plain():
    decoder = Decoder()
    yield decoder
    decoder.close()


def test_a_schema_is_followed_greedily_and_at_random(decoder):
    for options in ({}, {'temperature': 3.0, 'seed': 1, 'top_k': 0}):
        tokens, _ = decoder.answer(json_schema=SCHEMA, **options)
        value = json.loads(decoder.text(tokens))
        assert list(value) == ['name', 'colour', 'count']
        assert len(value['name']) <= 5 and 1 <= value['count'] <= 99
        assert value['colour'] in ('red', 'reddish brown', 'blue')
        assert decoder.model.is_end(tokens[-1])


def test_tokens_without_a_choice_come_in_one_batch_and_change_nothing(decoder):
    for prompt in ('hello', 'the colour of the dog is', 'a'):
        together, batches = decoder.answer(prompt, json_schema=SCHEMA)
        alone, batches_alone = decoder.answer(prompt, json_schema=SCHEMA, logprobs=1)
        assert decoder.text(together) == decoder.text(alone)
        assert together == alone
        assert batches_alone == len(alone)
        assert batches < 0.6 * len(together)


def test_forced_text_has_the_tokens_of_the_model_itself(decoder):
    text = 'the dog is there, and "quoted"'
    tokens, batches = decoder.answer(json_schema=json.dumps({'const': text}))
    assert decoder.text(tokens) == json.dumps(text)
    assert tokens[:-1] == decoder.model.tokenize(json.dumps(text))
    assert batches == 1


def test_an_answer_with_a_single_value_is_decoded_once(plain):
    tokens, batches = plain.answer(regex='yes', temperature=1.0)
    assert plain.text(tokens) == 'yes' and plain.model.is_end(tokens[-1])
    assert batches == 1


def test_a_mask_leaves_the_shares_of_what_it_allows(plain):
    """The choice follows the model's own distribution over what a regular expression allows."""
    options = {'regex': '[a-f]', 'temperature': 1.0, 'top_k': 0, 'top_p': 1.0, 'min_p': 0.0}
    tokens, logits = {}, None
    for letter in 'abcdef':
        tokens[plain.model.tokenize(letter)[0]] = letter
    plain.answer(n=1)
    logits = plain.context.logits()[list(tokens)].astype(float)
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    n = 600
    seen = Counter(plain.answer(n=1, seed=seed, **options)[0][0] for seed in range(n))
    assert set(seen) <= set(tokens)
    for token, share in zip(tokens, shares, strict=True):
        assert abs(seen[token] / n - share) < 5 * math.sqrt(share * (1 - share) / n) + 0.005


def test_a_penalty_makes_other_tokens_likelier(plain):
    free, _ = plain.answer(n=40)
    punished, _ = plain.answer(n=40, repeat_penalty=3.0)
    assert len(set(punished)) > len(set(free))


def test_a_bias_makes_a_token_certain_or_impossible(plain):
    token = plain.model.tokenize('!')[0]
    assert plain.answer(n=5, logit_bias={token: 1e30})[0] == [token] * 5
    first = plain.answer(n=1)[0][0]
    assert plain.answer(n=1, logit_bias={first: -1e300})[0] != [first]
    with pytest.raises(GrammarError, match='token 100000'):
        plain.answer(logit_bias={100000: 1.0})


def test_a_bias_against_all_that_a_schema_allows_changes_only_what_is_chosen(plain):
    everything = dict.fromkeys(range(plain.model.n_vocab), -1e300)
    tokens, _ = plain.answer(regex='[ab]c?', logit_bias=everything)
    assert plain.text(tokens) in ('a', 'b', 'ac', 'bc')


def test_reported_are_the_probabilities_before_the_mask(plain):
    plain.answer(n=1)
    logits = plain.context.logits().astype(float)
    expected = logits - logits.max() - math.log(np.exp(logits - logits.max()).sum())
    config = Config(regex='[ab]+')
    sampler = Sampler(plain.context, config, logprobs=3)
    token = sampler.sample()
    sampler.close()
    entry = sampler.reported[0]
    assert entry.logprob == pytest.approx(expected[token], abs=1e-4)
    assert [p for _, p in entry.top] == pytest.approx(sorted(expected)[:-4:-1], abs=1e-4)


@pytest.mark.parametrize('options', [{}, {'regex': 'a+'}, {'grammar': 'root ::= "a"'}])
@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_logits_that_are_not_finite_name_the_file(plain, options, value):
    plain.answer(n=1)
    sampler = Sampler(plain.context, Config(**options))
    plain.context.logits()[17] = value
    with pytest.raises(InferenceError, match='decoder.gguf.*not finite'):
        sampler.sample()
    sampler.close()


def test_nothing_left_to_choose_is_an_error(plain):
    plain.answer(n=1)
    sampler = Sampler(plain.context, Config())
    plain.context.logits()[:] = -np.inf
    with pytest.raises(InferenceError, match='not finite'):
        sampler.sample()
    sampler.close()


# -- reasoning -------------------------------------------------------------------------------

RULES = [
    {'json_schema': json.dumps({'enum': [17, 'x']})},
    {'regex': '17|"x"'},
    {'grammar': r'root ::= "17" | "\"x\""'},
]


@pytest.mark.parametrize('rule', RULES)
def test_reasoning_that_the_template_opened_ends_before_the_answer(decoder, rule):
    tokens, _ = decoder.answer(reasoned=True, **rule)
    thought, _, answer = decoder.text(tokens).partition('</think>')
    assert not thought.strip()
    assert answer.strip() in ('17', '"x"')


@pytest.mark.parametrize('rule', RULES)
def test_reasoning_that_was_asked_for_leaves_room_for_the_answer(decoder, rule):
    tokens, _ = decoder.answer(reasoned=True, thinking=True, n_predict=60, **rule)
    thought, _, answer = decoder.text(tokens).partition('</think>')
    assert thought.strip() and len(decoder.model.tokenize(thought)) >= 20
    assert answer.strip() in ('17', '"x"')


@pytest.mark.parametrize('rule', RULES)
def test_reasoning_that_the_model_opens_itself_is_opened_for_it(plain, rule):
    tokens, _ = plain.answer(thinking=True, n_predict=60, **rule)
    thought, _, answer = plain.text(tokens).partition('</think>')
    assert thought.startswith('<think>\n') and len(plain.model.tokenize(thought)) >= 20
    assert answer.strip() in ('17', '"x"')


def test_reasoning_that_ends_by_itself_is_followed_by_the_answer(plain):
    """The model is made to say </think> by a bias, one byte-level token after the other."""
    plain.answer(n=1)
    sampler = Sampler(plain.context, Config(thinking=True, regex='yes|no'), None, 0, True)
    for token in plain.model.tokenize('so</think>'):
        logits = plain.context.logits()
        logits[token] = logits.max() + 1
        assert sampler.sample() == token
        logits[token] = 0
    rest = plain.model.piece(sampler.sample())
    assert rest in (b'y', b'ye', b'yes', b'n', b'no')
    sampler.close()


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize('step', [0, 2])
@pytest.mark.parametrize(
    'options',
    [
        {},
        {'temperature': 1.0},
        {'json_schema': SCHEMA},
        {'regex': '[ab]+'},
        {'grammar': 'root ::= [ab]+'},
    ],
    ids=str,
)
def test_logits_that_are_no_numbers_are_an_error(plain, value, step, options):
    """One that is no number or infinite, or none that is a number; at once, and later on."""
    plain.answer(n=1)
    sampler = Sampler(plain.context, Config(**options))
    good = plain.context.logits().copy()
    for _ in range(step):
        plain.context.logits()[:] = good
        sampler.sample()
    spoilt = slice(None) if value == -np.inf else 5
    plain.context.logits()[:] = good
    plain.context.logits()[spoilt] = value
    with pytest.raises(InferenceError, match='not finite'):
        sampler.sample()
    sampler.close()


def test_tokens_that_cannot_come_have_a_probability_in_json(plain):
    """JSON knows no infinity."""
    plain.answer(n=1)
    sampler = Sampler(plain.context, Config(), None, 3)
    plain.context.logits()[1:] = -np.inf
    assert sampler.sample() == 0
    (said,) = sampler.reported
    assert said.logprob == 0 and [chance for _, chance in said.top] == [0, -9999, -9999]
    sampler.close()


def test_without_a_rule_reasoning_is_free(plain):
    assert plain.answer(n=20)[0] == plain.answer(n=20, reasoned=True)[0]


def test_two_rules_at_once_are_refused(plain):
    with pytest.raises(GrammarError, match='json_schema and regex'):
        plain.answer(json_schema='{}', regex='a')
    with pytest.raises(GrammarError, match='grammar and json_schema'):
        plain.answer(json_schema='{}', grammar='root ::= "a"')


def test_a_constraint_is_compiled_once_and_used_by_many(plain):
    first = open_constraint(plain.model, regex='ab')
    second = open_constraint(plain.model, regex='ab')
    assert first.fits(plain.model.tokenize('ab')) and first.complete
    assert not second.complete and second.fits(plain.model.tokenize('ab'))
