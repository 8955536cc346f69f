"""The whole way from picture and question to text, on the bundled model."""

from __future__ import annotations

import json
import re
import threading

from core import at_once, batches, embed, empty, parts, sizes, slots, stepping, unfinished
from folders import MODELS
from hobot_vlm import (
    AnswerCut,
    ConfigError,
    GrammarError,
    PictureError,
    PromptTooLong,
    VLM,
    VlmError,
)
import numpy as np
import pytest

QUESTION = 'Describe the picture.'


def no_end(vlm):
    """Give a bias that keeps a model from ending its answer."""
    model = parts(vlm).model
    return {token: -100.0 for token in range(model.n_vocab) if model.is_end(token)}


def plain(colour, size=(60, 80)):
    """Draw an empty picture."""
    return np.full((*size, 3), colour, np.uint8)


def test_an_answer_and_its_numbers(fresh, sample):
    reply = fresh.ask(QUESTION, sample)
    assert reply.text.startswith('There is ')
    assert reply.finish_reason == 'stop'
    assert reply.image_tokens == parts(fresh).encoder.tokens
    assert reply.prompt_tokens > reply.image_tokens
    assert reply.completion_tokens > 3
    assert reply.reused_tokens == 0
    times = reply.timings
    assert min(times.preprocess_ms, times.encode_ms, times.prefill_ms, times.decode_ms) > 0
    assert times.ttft_ms >= times.preprocess_ms + times.encode_ms
    assert times.tokens_per_second == pytest.approx(
        (reply.completion_tokens - 1) / times.decode_ms * 1000, rel=0.01
    )
    assert json.loads(json.dumps(reply.as_dict()))['timings']['ttft_ms'] == times.ttft_ms


def test_chunks_join_to_the_answer(demo, sample):
    for prompt in (QUESTION, '描述一下这张图片.'):
        stream = demo.stream(prompt, sample)
        chunks = list(stream)
        assert len(chunks) > 3
        text = stream.result().text
        assert ''.join(c.text for c in chunks) == text == demo.ask(prompt, sample).text
        assert '\ufffd' not in stream.result().text


def test_every_kind_of_picture_source(demo, sample):
    from PIL import Image

    array = np.asarray(Image.open(sample).convert('RGB'))
    expected = demo.ask(QUESTION, sample).text
    with open(sample, 'rb') as file:
        assert demo.ask(QUESTION, file.read()).text == expected
    assert demo.ask(QUESTION, array).text == expected
    assert demo.ask(QUESTION, [array]).text == expected


def test_a_second_question_decodes_only_its_own_text(fresh, sample):
    first = fresh.ask(QUESTION, sample)
    again = 'What colour is the background?'
    second = fresh.ask(again, sample)
    assert second.timings.encode_ms == 0
    assert second.reused_tokens >= first.image_tokens + 3
    with VLM.load('demo') as other:
        alone = other.ask(again, sample)
    assert alone.reused_tokens == 0
    assert second.text == alone.text
    third = fresh.ask(again, sample)
    assert third.reused_tokens == third.prompt_tokens - 1
    assert third.text == alone.text


def test_the_same_prompt_after_another_picture(fresh, sample):
    expected = fresh.ask(QUESTION, sample).text
    assert fresh.ask(QUESTION, plain((0, 0, 255))).text != expected
    reply = fresh.ask(QUESTION, sample)
    assert reply.text == expected
    assert reply.timings.encode_ms == 0  # the embedding was kept
    assert reply.reused_tokens < reply.image_tokens  # the cells were not


def test_a_system_prompt_is_part_of_the_prompt(demo, sample):
    without = demo.ask(QUESTION, sample)
    with_one = demo.ask(QUESTION, sample, system_prompt='You are a helpful assistant.')
    assert with_one.prompt_tokens > without.prompt_tokens
    assert demo.ask(QUESTION, sample).prompt_tokens == without.prompt_tokens


def test_n_predict_ends_an_answer(demo, sample):
    reply = demo.ask(QUESTION, sample, n_predict=4)
    assert (reply.finish_reason, reply.completion_tokens) == ('length', 4)


def test_a_seed_repeats_an_answer(demo, sample):
    def answers(seed):
        return [
            demo.ask(
                QUESTION,
                sample,
                temperature=8.0,
                top_k=0,
                top_p=1.0,
                min_p=0.0,
                seed=seed,
                n_predict=24,
            ).text
            for _ in range(2)
        ]

    assert answers(7)[0] == answers(7)[1]
    assert answers(7)[0] != answers(8)[0]
    free = answers(-1)
    assert free[0] != free[1]


def test_a_prompt_that_does_not_fit_is_refused_before_decoding(fresh):
    fresh.ask('Hello')
    before = [list(slot.ids) for slot in slots(fresh)]
    with pytest.raises(PromptTooLong) as caught:
        fresh.ask('dog ' * 20_000)
    assert caught.value.tokens > 20_000 - 1
    assert caught.value.capacity == parts(fresh).context.n_ctx
    assert str(caught.value.tokens) in str(caught.value) and 'n_ctx' in str(caught.value)
    assert [slot.ids for slot in slots(fresh)] == before
    assert fresh.ask('Hello').finish_reason == 'stop'


def test_an_answer_ends_where_the_context_does(sample):
    with VLM.load('demo', n_ctx=72) as vlm:
        reply = vlm.ask(QUESTION, sample, n_predict=1000, system_prompt='Be short.')
        assert reply.finish_reason == 'length'
        assert reply.prompt_tokens + reply.completion_tokens == 72 + 1
        assert vlm.ask('Hello').finish_reason == 'stop'


def test_closing_the_stream_stops_the_model(fresh, sample):
    expected = fresh.ask(QUESTION, sample).text
    with unfinished(fresh):
        stream = fresh.stream(QUESTION, sample, n_predict=4000, logit_bias=no_end(fresh))
        next(stream)
        stream.close()
    assert stream.result().finish_reason == 'cancelled'
    assert stream.result().completion_tokens < 4000
    assert list(stream) == []
    assert fresh.ask(QUESTION, sample).text == expected


def test_cancel_from_another_thread(fresh, sample):
    with unfinished(fresh):
        stream = fresh.stream(QUESTION, sample, n_predict=4000, logit_bias=no_end(fresh))
        next(stream)
        thread = threading.Thread(target=fresh.cancel)
        thread.start()
        thread.join()
        assert stream.result().finish_reason == 'cancelled'
    fresh.cancel()  # nothing runs: nothing to cancel
    assert fresh.ask(QUESTION, sample).finish_reason == 'stop'


def test_cancel_stops_a_long_prefill(fresh):
    """Within the batch that is running: what it was to decode is not in the cache."""
    text = 'dog ' * 3500
    fresh.ask('Hello')
    left = 3

    def may_step():
        nonlocal left
        left -= 1
        if not left:
            fresh.cancel()
        return True

    with batches(fresh) as seen, stepping(fresh, may_step):
        reply = fresh.ask(text, n_predict=1)
    assert (reply.finish_reason, reply.completion_tokens) == ('cancelled', 0)
    assert left <= 0 < len(seen)
    assert sum(sizes(seen)) < reply.prompt_tokens
    assert fresh.ask('Hello').text == fresh.ask('Hello').text


def test_a_conversation_decodes_only_what_is_new(fresh, sample):
    chat = fresh.conversation()
    first = chat.ask(QUESTION, sample)
    second = chat.ask('背景是什么颜色？')
    assert second.image_tokens == first.image_tokens
    # all but the last sampled token of the first answer stands in the cache
    assert second.reused_tokens == first.prompt_tokens + first.completion_tokens
    assert '背景是' in second.text
    chat.reset()
    assert chat.ask('Hello').prompt_tokens < first.prompt_tokens


def test_several_turns_equal_a_fresh_context(fresh, sample):
    chat = fresh.conversation()
    questions = [
        (QUESTION, sample),
        ('How many dogs are there?', None),
        ('描述一下这张图片.', plain((0, 0, 255))),
        ('What is on the left?', None),
    ]
    answers = [chat.ask(q, i).text for q, i in questions]
    empty(fresh)
    chat.turns.pop()
    last = chat.ask(*questions[-1])
    assert last.reused_tokens == 0
    assert last.text == answers[-1]


def test_a_full_conversation_drops_its_oldest_turns(sample):
    with VLM.load('demo', n_ctx=256) as vlm:
        chat = vlm.conversation()
        chat.ask(QUESTION, sample)
        replies = [chat.ask('What colour is the background?') for _ in range(20)]
        assert all(r.finish_reason == 'stop' and r.image_tokens for r in replies)
        assert len(chat.turns) < 20
        refusing = vlm.conversation(overflow='refuse')
        refusing.ask(QUESTION, sample)
        with pytest.raises(PromptTooLong):
            for _ in range(20):
                refusing.ask('What colour is the background?')
        with pytest.raises(ConfigError, match='drop_oldest'):
            vlm.conversation(overflow='explode')


def test_a_changed_picture_is_a_new_picture_in_the_conversation(fresh, sample):
    chat = fresh.conversation()
    first = chat.ask(QUESTION, sample)
    second = chat.ask('What colour is the background?', plain((255, 0, 0)))
    assert second.image_tokens == 2 * first.image_tokens
    assert 'red' in second.text


@pytest.mark.parametrize(
    ('options', 'match'),
    [
        ({'n_ctx': 5}, 'n_ctx cannot differ'),
        ({'nonsense': 1}, 'nonsense'),
        ({'temperature': -1}, 'temperature is -1'),
        ({'top_p': 'x'}, 'top_p'),
        ({'thinking': True}, 'InternVL'),
    ],
)
def test_bad_options_of_a_request(demo, options, match):
    with pytest.raises(ConfigError, match=match):
        demo.ask('Hello', **options)


@pytest.mark.parametrize(
    'picture',
    [
        '/nowhere/dog.jpg',
        b'GIF89a but not really',
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((4, 4, 3)),
    ],
)
def test_a_bad_picture_is_named_and_the_next_question_answered(demo, sample, picture):
    with pytest.raises(PictureError):
        demo.ask(QUESTION, picture)
    assert demo.ask(QUESTION, sample).finish_reason == 'stop'


def test_labels_must_fit_the_pictures(demo, sample):
    with pytest.raises(PictureError, match='2 labels for 1'):
        demo.ask(QUESTION, sample, labels=['a', 'b'])
    labelled = demo.ask(QUESTION, [sample, sample], labels=['Frame1', 'Frame2'])
    assert labelled.prompt_tokens > demo.ask(QUESTION, [sample, sample]).prompt_tokens


def test_closing_twice_and_errors_have_one_root(sample):
    vlm = VLM.load('demo')
    stream = vlm.stream(QUESTION, sample)
    next(stream)
    vlm.close()
    vlm.close()
    assert issubclass(PictureError, VlmError) and issubclass(PromptTooLong, VlmError)


def test_stop_texts_end_an_answer(demo, sample):
    whole = demo.ask(QUESTION, sample).text
    stream = demo.stream(QUESTION, sample, stop=[' background', 'never said'])
    text = ''.join(c.text for c in stream)
    assert whole.startswith(text) and text.endswith('The')
    assert stream.result().finish_reason == 'stop'
    assert demo.ask(QUESTION, sample, stop='There').text == ''


def test_logprobs_and_bias(demo, sample):
    reply = demo.ask(QUESTION, sample, logprobs=3)
    assert len(reply.logprobs) >= reply.completion_tokens
    for token in reply.logprobs:
        assert token.logprob <= 0 and len(token.top) == 3
        assert token.logprob == pytest.approx(token.top[0][1])  # greedy takes the likeliest
    first = demo.tokenize(' There')[0]
    biased = demo.ask(QUESTION, sample, logit_bias={first: -100.0})
    assert not biased.text.startswith('There')
    with pytest.raises(GrammarError, match='vocabulary'):
        demo.ask(QUESTION, sample, logit_bias={10**7: 1.0})
    assert demo.ask(QUESTION, sample).text == reply.text


@pytest.mark.parametrize('temperature', [0.0, 3.0])
def test_an_answer_follows_a_grammar(demo, sample, temperature):
    for seed in range(5):
        reply = demo.ask(
            QUESTION,
            sample,
            grammar='root ::= ("yes" | "no") " " [0-9] "!"',
            temperature=temperature,
            seed=seed,
        )
        assert re.fullmatch('(yes|no) [0-9]!', reply.text)
        assert reply.finish_reason == 'stop'


def test_an_answer_follows_a_schema(demo, sample, tmp_path):
    schema = {
        'type': 'object',
        'required': ['colour', 'count'],
        'additionalProperties': False,
        'properties': {
            'colour': {'enum': ['red', 'blue']},
            'count': {'type': 'integer', 'minimum': 17, 'maximum': 203},
            'sure': {'type': 'number', 'minimum': -1, 'maximum': 1},
        },
    }
    path = tmp_path / 'schema.json'
    path.write_text(json.dumps(schema))
    for seed in range(20):
        given = str(path) if seed % 2 else json.dumps(schema)
        reply = demo.ask(QUESTION, sample, json_schema=given, temperature=5.0, seed=seed)
        answer = json.loads(reply.text)
        assert set(answer) - {'sure'} == {'colour', 'count'} and answer['colour'] in (
            'red',
            'blue',
        )
        assert 17 <= answer['count'] <= 203 and abs(answer.get('sure', 0)) <= 1


@pytest.mark.parametrize(
    ('options', 'match'),
    [
        ({'grammar': 'root ::= ('}, 'GBNF'),
        ({'grammar': 'top ::= "a"'}, 'root'),
        ({'grammar': 'root ::= root "a"'}, 'recursion'),
        ({'json_schema': '{'}, 'nor JSON'),
        ({'json_schema': '{"type": "colour"}'}, 'cannot be followed'),
        ({'json_schema': '{}', 'grammar': 'root ::= "a"'}, 'both'),
    ],
)
def test_a_bad_grammar_is_refused_with_its_reason(demo, sample, options, match):
    with pytest.raises(GrammarError, match=match):
        demo.ask(QUESTION, sample, **options)
    assert demo.ask(QUESTION, sample).finish_reason == 'stop'


FORMS = [
    {'json_schema': {'enum': ['a long answer', 'a longer answer']}},
    {'grammar': 'root ::= "a long answer" | "a longer answer"'},
    {'regex': 'a long answer|a longer answer'},
]
EACH_FORM = pytest.mark.parametrize('form', FORMS, ids=lambda form: next(iter(form)))


@EACH_FORM
def test_a_part_of_an_answer_with_a_form_is_an_error(demo, form):
    whole = demo.ask('Hello', **form)
    assert whole.finish_reason == 'stop'
    name, n = next(iter(form)), whole.completion_tokens - 1
    chunks = []
    with pytest.raises(AnswerCut, match=f'after {n} tokens.*follow {name}: raise n_pred') as cut:
        for chunk in demo.stream('Hello', n_predict=n, **form):
            chunks.append(chunk.text)
    reply = cut.value.reply
    assert (reply.finish_reason, reply.completion_tokens) == ('length', n)
    assert reply.text == ''.join(chunks) and whole.text.startswith(reply.text) and chunks
    free, bound = demo.ask_many([('Hello', None)] * 2, n_predict=n, **form, parallel=1)
    assert isinstance(free, AnswerCut) and isinstance(bound, AnswerCut)
    chat = demo.conversation()
    with pytest.raises(AnswerCut):
        chat.ask('Hello', n_predict=n, **form)
    assert len(chat.turns) == 1  # what was said is remembered


@EACH_FORM
@pytest.mark.parametrize('logprobs', [0, 1])
def test_a_whole_answer_of_just_as_many_tokens_is_none(demo, form, logprobs):
    whole = demo.ask('Hello', **form)
    reply = demo.ask('Hello', n_predict=whole.completion_tokens, logprobs=logprobs, **form)
    assert (reply.text, reply.finish_reason) == (whole.text, 'stop')


def test_a_context_that_ends_before_the_form_does():
    with VLM.load(llm_model_name=MODELS / 'plain' / 'decoder.gguf', n_ctx=64) as vlm:
        with pytest.raises(AnswerCut, match='raise n_ctx'):
            vlm.ask('Hello', regex='[a-z]{900}', n_predict=2000)


def test_choosing_has_no_form():
    with VLM.load('demo', grammar='root ::= "a very long answer"', n_predict=1) as vlm:
        assert sum(vlm.choose('Hello', choices=['yes', 'no']).values()) == pytest.approx(1)


def test_many_answers_at_once_are_the_same_as_alone(fresh, sample):
    pictures = [sample, plain((255, 0, 0)), plain((0, 0, 255)), plain((250, 250, 250)), None]
    questions = [(q, p) for p in pictures for q in (QUESTION, '背景是什么颜色？', 'Hello')]
    alone = [fresh.ask(*q) for q in questions]
    for parallel in (1, 3, 8):
        with VLM.load('demo') as vlm:
            many = vlm.ask_many(questions, parallel=parallel)
        assert [r.text for r in many] == [r.text for r in alone]
        assert [r.prompt_tokens for r in many] == [r.prompt_tokens for r in alone]
    assert fresh.ask_many([]) == []


def test_many_answers_share_a_small_context(sample):
    with VLM.load('demo', n_ctx=256) as vlm:
        replies = vlm.ask_many([(QUESTION, sample)] * 12, parallel=8, n_predict=40)
        assert len({r.text for r in replies}) == 1
        assert all(r.finish_reason == 'stop' for r in replies)


def test_what_questions_have_in_common_is_decoded_once(sample, monkeypatch):
    """Also where the context is far too small for a copy each."""
    system = 'You are a robot that looks for dogs and names what it sees in few words. ' * 5
    questions = [(f'{word} colour is it?', sample) for word in 'What Which A The One Any'.split()]
    options = {'system_prompt': system, 'n_predict': 4}
    with VLM.load('demo') as vlm:
        alone = [vlm.ask(*question, **options) for question in questions]
    longest = max(reply.prompt_tokens for reply in alone)
    with VLM.load('demo', n_ctx=longest + 100) as vlm, batches(vlm) as seen:
        with at_once(vlm, len(questions)):
            many = vlm.ask_many(questions, parallel=len(questions), **options)
    assert [r.text for r in many] == [r.text for r in alone]
    assert [r.prompt_tokens for r in many] == [r.prompt_tokens for r in alone]
    assert any(len({run.seq for run in runs}) == len(questions) for runs in seen)  # side by side
    own = [r.prompt_tokens - r.reused_tokens for r in alone[1:]]
    decoded = sum(r.prompt_tokens - r.reused_tokens for r in many)
    assert decoded == alone[0].prompt_tokens + sum(own)
    assert sum(sizes(seen)) == decoded + sum(max(r.completion_tokens - 1, 0) for r in many)


def test_cancelling_one_of_many_leaves_the_others_alone(sample):
    """Whenever it comes: while another one is read, or between two tokens."""
    questions = [(QUESTION, sample), ('What colour is the background?', sample), ('Hello', None)]
    with VLM.load('demo', n_batch=32) as vlm:
        alone = [vlm.ask(*question).text for question in questions]
    for when in range(1, 9):
        with VLM.load('demo', n_batch=32) as vlm:
            embed(vlm, sample)
            context = parts(vlm).context
            run, left = context.run, [when]

            def stopping(runs, vlm=vlm, run=run, left=left):
                left[0] -= 1
                if not left[0]:
                    vlm.cancel()  # the first one
                return run(runs)

            context.run = stopping
            replies = vlm.ask_many(questions, parallel=3)
        assert replies[0].finish_reason == 'cancelled', when
        assert alone[0].startswith(replies[0].text)
        assert [r.text for r in replies[1:]] == alone[1:], when


def test_conversations_keep_their_cells_side_by_side(fresh, sample):
    chats = [fresh.conversation('Be short.') for _ in range(3)]
    firsts = [chat.ask(QUESTION, plain((60 * i, 0, 0))) for i, chat in enumerate(chats)]
    assert firsts[0].reused_tokens == 0
    shared = firsts[1].reused_tokens  # the system prompt, held once
    assert shared >= len(fresh.tokenize('System: Be short.'))
    assert fresh.ask('Hello').finish_reason == 'stop'
    for chat, first in zip(chats, firsts, strict=True):
        reply = chat.ask('What colour is the background?')
        assert reply.reused_tokens == first.prompt_tokens + first.completion_tokens


def test_conversations_that_are_gone_free_their_cells(fresh, sample):
    for _ in range(100):
        fresh.conversation().ask(QUESTION, sample, n_predict=2)
    assert sum(bool(slot.ids) for slot in slots(fresh)) <= 2


def test_the_next_picture_is_encoded_while_an_answer_is_made(fresh, monkeypatch):
    """Each of the two waits for the other to have begun: in a row they would wait for ever."""
    encoder, context = parts(fresh).encoder, parts(fresh).context
    encode, run = encoder.encode, context.run
    answering, encoding, first = threading.Event(), threading.Event(), threading.Event()

    def watched_encode(tiles):
        if first.is_set():  # pictures are cut side by side: another may come before it
            encoding.set()
            assert answering.wait(20)
        if not tiles.pixels.any():
            first.set()
        return encode(tiles)

    def watched_run(runs):
        answering.set()
        assert encoding.wait(20)
        return run(runs)

    monkeypatch.setattr(encoder, 'encode', watched_encode)
    monkeypatch.setattr(context, 'run', watched_run)
    replies = fresh.ask_many([(QUESTION, plain((i, i, i))) for i in range(3)], parallel=1)
    assert [r.finish_reason for r in replies] == ['stop'] * 3


@pytest.mark.parametrize(
    'options',
    [
        {'cache_type': 'q8_0', 'flash_attention': 'on'},
        {'flash_attention': 'off'},
        {'mmap': False},
        {'warm_up': False},
        {'n_batch': 32},
        {'llm_threads': 2},
    ],
)
def test_options_of_the_runtime(demo, sample, options):
    with VLM.load('demo', **options) as vlm:
        assert (
            vlm.ask('What colour is the background?', sample).text
            == demo.ask('What colour is the background?', sample).text
        )
