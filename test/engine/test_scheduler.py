"""Many callers at once: each is answered as if it were alone, and nobody waits for anybody."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
import gc
import os
import random
import threading

from core import at_once, batches, cache, embed, empty, parts, sequence_of, slots, unfinished
from folders import MODELS
from hobot_vlm import ConfigError, InferenceError, PictureError, PromptError, VLM, VlmError
from hobot_vlm.engine import image_encoder, scheduler
from hobot_vlm.llama.context import Outcome
from hobot_vlm.machine import resident_bytes
from hobot_vlm.values import Video
import numpy as np
from pictures import picture
import pytest

PLAIN = str(MODELS / 'plain' / 'decoder.gguf')

#: requests of the random test. By hand: HOBOT_VLM_REQUESTS=20000
REQUESTS = int(os.environ.get('HOBOT_VLM_REQUESTS', '2000'))
CALLERS = 24


def small(**options):
    """Load a small model with float weights, whose answers have no near ties."""
    folder = MODELS / 'internvl'
    return VLM.load(
        model_file_name=str(folder / 'vision.onnx'),
        llm_model_name=str(folder / 'decoder.gguf'),
        **{'llm_threads': 1, 'encoder_threads': 1, 'n_ctx': 1024, 'n_predict': 8, **options},
    )


@pytest.fixture(scope='module')
def vlm():
    with small() as opened:
        yield opened


def no_end(vlm):
    """Give a bias that keeps a model from ending its answer."""
    model = parts(vlm).model
    return {token: -100.0 for token in range(model.n_vocab) if model.is_end(token)}


def long_prompt(vlm, tokens, seed=0):
    """Give a text of at least so many tokens that no other seed begins like."""
    chooser = random.Random(seed)
    text = ''
    while len(vlm.tokenize(text)) < tokens:
        text += f' {chooser.randrange(10**6)}'
    return text


# -- nobody waits for anybody ------------------------------------------------------------------


def test_a_stream_that_nobody_reads_holds_up_nobody(vlm):
    unread = vlm.stream('Tell me.', n_predict=200, logit_bias=no_end(vlm))
    assert vlm.ask('Why?').completion_tokens
    unread.close()


@pytest.mark.parametrize(
    'meanwhile',
    [
        lambda vlm, talk, path: talk.ask('And now?'),
        lambda vlm, talk, path: talk.save(path),
        lambda vlm, talk, path: talk.reset(),
        lambda vlm, talk, path: talk.prefill(),
        lambda vlm, talk, path: vlm.choose('Why?', None, ['a cat', 'some dogs']),
        lambda vlm, talk, path: vlm.encode(picture(60, 40, 2)),
        lambda vlm, talk, path: vlm.tokenize('Why?') and vlm.status(),
        lambda vlm, talk, path: vlm.ask_many([('Why?', None)] * 20, parallel=20),
    ],
    ids=['ask', 'save', 'reset', 'prefill', 'choose', 'encode', 'status', 'many'],
)
def test_between_two_pieces_everything_goes_on(vlm, tmp_path, meanwhile):
    """Within the loop over an answer, whose stream is not read on meanwhile."""
    talk = vlm.conversation()
    stream = talk.stream('Hello', n_predict=20, logit_bias=no_end(vlm))
    pieces = iter(stream)
    next(pieces)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(meanwhile, vlm, talk, tmp_path / 'talk').result(60)
    assert stream.result().completion_tokens == 20


def test_two_streams_in_one_thread_go_on_side_by_side(vlm):
    alone = [vlm.ask(question).text for question in ('Why?', 'And where?')]
    one, other = vlm.stream('Why?'), vlm.stream('And where?')
    next(other)
    assert [one.result().text, other.result().text] == alone


def test_a_lost_stream_stops_the_model(vlm):
    with unfinished(vlm):
        stream = vlm.stream('Tell me.', n_predict=900, logit_bias=no_end(vlm))
        next(stream)
        del stream
        gc.collect()
        while vlm.status().running:  # by the time-out of the test
            pass


def test_leaving_a_loop_stops_the_model(vlm):
    with unfinished(vlm):
        stream = vlm.stream('Tell me.', n_predict=900, logit_bias=no_end(vlm))
        for _ in stream:
            break
        assert stream.result().finish_reason == 'cancelled'
    with unfinished(vlm):
        with vlm.stream('Tell me.', n_predict=900, logit_bias=no_end(vlm)) as stream:
            next(stream)
        assert stream.result().finish_reason == 'cancelled'


def test_coroutines_share_a_model_with_threads(vlm):
    expected = vlm.ask('Why?').text

    async def ask():
        stream = vlm.stream('Why?')
        text = ''.join([chunk.text async for chunk in stream])
        assert (await stream.result()).text == text
        return text

    async def main():
        with unfinished(vlm):
            left = vlm.stream('Tell me.', n_predict=900, logit_bias=no_end(vlm))
            async for _ in left:
                break
            with pytest.raises(PictureError):
                await vlm.stream('Why?', 'nowhere.png')
            left_reply = await left
        answers = await asyncio.gather(*(ask() for _ in range(CALLERS)))
        return answers, left_reply

    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(vlm.ask, 'Why?') for _ in range(4)]
        answers, left = asyncio.run(main())
    assert answers == [expected] * CALLERS
    assert [other.result().text for other in others] == [expected] * 4
    assert left.finish_reason == 'cancelled'


def test_a_short_question_overtakes_a_long_prompt(vlm):
    """It stops the step of the long one, which then goes on in small ones."""
    empty(vlm)
    short = vlm.ask('Why?', n_predict=1).text
    long = long_prompt(vlm, 800)
    expected = vlm.ask(long, n_predict=1).text
    empty(vlm)
    context, run = parts(vlm).context, parts(vlm).context.run
    stream = []

    def waiting(runs):
        if not stream and sum(len(r.entries) for r in runs) > scheduler.STEP:
            stream.append(vlm.stream('Why?', n_predict=1))
            while not cache(vlm) or not context._stop[0] == b'\x01':  # until it wants to be first
                pass
        return run(runs)

    context.run = waiting
    try:
        with batches(vlm) as seen:
            first = vlm.stream(long, n_predict=1)
            assert first.result().text == expected
    finally:
        context.__dict__.pop('run', None)
    assert stream[0].result().text == short
    sizes = [sum(len(run.entries) for run in runs) for runs in seen]
    assert sizes[0] > scheduler.STEP and max(sizes[1:]) <= scheduler.STEP


def test_a_running_answer_never_waits_for_a_whole_prompt(vlm):
    empty(vlm)
    long = long_prompt(vlm, 500, 1)
    with batches(vlm) as seen:
        with unfinished(vlm):
            answer = vlm.stream('Tell me.', n_predict=300, logit_bias=no_end(vlm))
            next(answer)
            question = vlm.stream(long, n_predict=1, priority=1)
            while vlm.status().running < 2:
                pass
        question.result()
    shared = [runs for runs in seen if len({run.seq for run in runs}) > 1]
    assert len(shared) > 500 // scheduler.STEP - 1
    assert all(sum(len(run.entries) for run in runs) <= scheduler.STEP for runs in shared)
    answer.close()


def test_short_prompts_do_not_starve_a_long_one():
    """Each prompt waits for at most as many tokens of shorter ones as it has itself."""
    with small(n_batch=32, n_ctx=1024) as vlm:
        long = vlm.stream(long_prompt(vlm, 300), n_predict=1)
        done = threading.Event()
        asked = []

        def keep_asking(seed):
            while not done.is_set() and len(asked) < 1000:
                asked.append(vlm.ask(long_prompt(vlm, 40, seed + len(asked)), n_predict=1))

        with ThreadPoolExecutor(4) as pool:
            for seed in range(4):
                pool.submit(keep_asking, 10_000 * seed)
            long.result()
            done.set()
        assert len(asked) < 1000


def test_priority_goes_first(vlm):
    """While the model is busy three questions come; the most urgent one is answered first."""
    order = []
    with at_once(vlm, 4):
        first = vlm.stream('First', n_predict=1)
        while not vlm.status().running:
            pass
        streams = {p: vlm.stream(f'Question {p}', n_predict=1, priority=p) for p in (-1, 0, 5)}
        for priority, stream in streams.items():
            sequence_of(stream).finished.add_done_callback(lambda _, p=priority: order.append(p))
        for stream in (first, *streams.values()):
            stream.result()
    assert order == [5, 0, -1]


def test_a_timeout_ends_an_answer_as_it_is(vlm):
    stream = vlm.stream('Tell me.', n_predict=900, timeout=0.05, logit_bias=no_end(vlm))
    text = ''.join(chunk.text for chunk in stream)
    reply = stream.result()
    assert reply.finish_reason == 'timeout' and reply.text == text
    encoder, encode, go = parts(vlm).encoder, parts(vlm).encoder.encode, threading.Event()
    encoder.encode = lambda tiles: (go.wait(20), encode(tiles))[1]
    try:
        reply = vlm.ask('Why?', picture(40, 40, 1234), timeout=0.05)  # it waits for its picture
        assert (reply.finish_reason, reply.completion_tokens) == ('timeout', 0)
    finally:
        go.set()
        del encoder.encode
    with pytest.raises(ConfigError, match='timeout is -1'):
        vlm.ask('Why?', timeout=-1)


@pytest.mark.parametrize('which', [0, 2, 4])
@pytest.mark.parametrize('kind', ['streams', 'turns'])
def test_one_of_many_is_cancelled(vlm, kind, which):
    """Of five side by side, or of one conversation, whose turns wait for each other."""
    ask = vlm.conversation().stream if kind == 'turns' else vlm.stream
    with unfinished(vlm, tokens=6):
        streams = [ask(f'Tell me {i}', n_predict=40, logit_bias=no_end(vlm)) for i in range(5)]
        streams[which].cancel()
    replies = [stream.result() for stream in streams]
    found = [reply.finish_reason for reply in replies]
    assert found == ['cancelled' if i == which else 'length' for i in range(5)]


def test_cancel_means_the_oldest_that_is_open(vlm):
    with unfinished(vlm):
        bias = no_end(vlm)
        streams = [vlm.stream(f'Tell me {i}', n_predict=200, logit_bias=bias) for i in range(3)]
        for stream in streams:  # one after the other, and then none
            vlm.cancel()
            assert stream.result().finish_reason == 'cancelled'
    vlm.cancel()
    assert vlm.ask('Why?', n_predict=1).completion_tokens == 1


# -- room --------------------------------------------------------------------------------------


def test_answers_that_outgrow_the_cache_give_way_and_go_on():
    """The youngest gives its place to the others, and has the same text in the end."""
    with small(n_ctx=256, n_predict=100) as vlm:
        bias = no_end(vlm)
        questions = [f'Question {i}' for i in range(4)]
        alone = [vlm.ask(q, logit_bias=bias) for q in questions]
        streams = [vlm.stream(q, logit_bias=bias) for q in questions]
        together = [stream.result() for stream in streams]
    assert [r.text for r in together] == [r.text for r in alone]
    assert all(r.finish_reason == 'length' and r.completion_tokens == 100 for r in together)
    assert sum(r.prompt_tokens + r.completion_tokens for r in alone) > 256


def test_a_prefix_is_shared_by_callers_that_run_at_once(vlm):
    empty(vlm)
    shown = picture(80, 60, 77)
    alone = vlm.ask('Why?', shown)
    empty(vlm)
    with batches(vlm) as seen, ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: vlm.ask('Why?', shown), range(8)))
    assert [r.text for r in replies] == [alone.text] * 8
    decoded = sum(len(run.entries) for runs in seen for run in runs)
    answers = sum(max(r.completion_tokens - 1, 0) for r in replies)
    assert decoded <= alone.prompt_tokens + 7 * 1 + answers


# -- errors stay with whom they belong to --------------------------------------------------------


def test_an_error_in_a_step_ends_the_request_that_caused_it(vlm):
    expected = vlm.ask('Why?').text
    context, run = parts(vlm).context, parts(vlm).context.run
    poison = vlm.tokenize('poison')[0]

    def failing(runs):
        if any(poison in list(r.entries) for r in runs if not r.embedded):
            raise InferenceError('llama.cpp failed on a batch: status -1')
        return run(runs)

    context.run = failing
    try:
        with ThreadPoolExecutor(8) as pool:
            good = [pool.submit(vlm.ask, 'Why?') for _ in range(4)]
            bad = pool.submit(vlm.ask, 'poison')
            assert [g.result().text for g in good] == [expected] * 4
            with pytest.raises(InferenceError, match='status -1'):
                bad.result()
    finally:
        del context.run
    assert vlm.ask('Why?').text == expected


def test_an_error_between_steps_ends_the_request_that_caused_it(vlm, monkeypatch):
    from hobot_vlm.engine.sequence import Sequence

    feed = Sequence._emit

    def failing(sequence, chunks):
        if sequence.request.prompt == 'fail':
            raise RuntimeError('a fault')
        return feed(sequence, chunks)

    monkeypatch.setattr(Sequence, '_emit', failing)
    expected = vlm.ask('Why?').text
    stream = vlm.stream('Why?')
    with pytest.raises(RuntimeError, match='a fault'):
        vlm.ask('fail')
    assert stream.result().text == expected == vlm.ask('Why?').text


def test_when_llama_cpp_fails_for_good_everybody_hears_of_it():
    with small() as vlm, unfinished(vlm):
        bias = no_end(vlm)
        streams = [vlm.stream(f'Tell me {i}.', n_predict=500, logit_bias=bias) for i in range(3)]
        next(streams[0])

        def broken(runs):
            raise InferenceError('the device is lost')

        parts(vlm).context.run = broken
        for stream in streams:
            with pytest.raises(InferenceError, match='the device is lost'):
                stream.result()
        with pytest.raises(InferenceError, match='the device is lost'):
            vlm.ask('Why?')


def test_one_of_many_that_fails_spoils_no_other(vlm):
    good = vlm.ask('Why?').text
    questions = [('Why?', None), ('Why?', 'nowhere.png'), ('', b'no picture'), ('Why?', None)]
    first, second, third, fourth = vlm.ask_many([*questions[:3], questions[3]])
    assert first.text == fourth.text == good
    assert isinstance(second, PictureError) and isinstance(third, VlmError)


@pytest.mark.parametrize(
    ('prompt', 'more', 'error', 'match'),
    [
        (None, {}, PromptError, 'NoneType'),
        (3.5, {}, PromptError, 'float'),
        ([], {}, PromptError, 'list'),
        ([{'content': 'x'}], {}, PromptError, 'role'),
        ([{'role': 'user', 'content': 3}], {}, PromptError, 'message 1'),
        ([{'role': 'user', 'content': [{'type': 'audio'}]}], {}, PromptError, "'audio'"),
        ([{'role': 'assistant', 'content': 'x'}], {}, PromptError, 'the last message'),
        ('Why?', {'stop': 5}, ConfigError, 'stop is 5'),
        ('Why?', {'stop': [5]}, ConfigError, 'stop'),
        ('Why?', {'logprobs': 1.5}, ConfigError, 'logprobs is 1.5'),
        ('Why?', {'logprobs': 99}, ConfigError, 'logprobs is 99'),
        ('Why?', {'logit_bias': ['x']}, ConfigError, 'logit_bias'),
        ('Why?', {'logit_bias': {1: float('nan')}}, ConfigError, 'logit_bias'),
        ('Why?', {'priority': 'high'}, ConfigError, 'priority'),
        ('Why?', {'labels': 3}, ConfigError, 'labels'),
        (['Why?'], {}, PromptError, 'list'),
        ([1, 2], {}, PromptError, 'list'),
        ('Why?', {'find': 'yes'}, ConfigError, 'find'),
        ('Why?', {'timeout': True}, ConfigError, 'timeout'),
        ('Why?', {'stop': ['x'] * 10000}, ConfigError, 'stop'),
        ('Why?', {'images': Video('a.mp4', 'all')}, PictureError, 'a video is given as'),
        ('Why?', {'images': Video(None)}, PictureError, 'a video is given as'),
        ('Why?', {'images': Video('a.mp4', 2, 'start')}, PictureError, 'a video is given as'),
    ],
)
def test_wrong_types_are_met_at_the_door(vlm, prompt, more, error, match):
    with pytest.raises(error, match=match) as caught:
        vlm.ask(prompt, **more)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    'call',
    [
        lambda vlm: vlm.ask_many(None),
        lambda vlm: vlm.ask_many('Why?'),
        lambda vlm: vlm.ask_many([('Why?', None)], parallel='all'),
        lambda vlm: vlm.choose('Why?', choices=None),
        lambda vlm: vlm.choose('Why?', choices=(c for c in 'ab')),
        lambda vlm: vlm.choose('Why?', choices=['a', 'b'], stop=['c']),
        lambda vlm: vlm.conversation(5),
        lambda vlm: vlm.conversation().save(5),
        lambda vlm: vlm.conversation().save('a\0b'),
        lambda vlm: vlm.restore(None),
        lambda vlm: vlm.restore('a\0b'),
        lambda vlm: vlm.tokenize(None),
        lambda vlm: vlm.tokenize(b'Why?'),
        lambda vlm: vlm.encode(5),
        lambda vlm: VLM(None),
        lambda vlm: VLM({'model': 'demo'}),
        lambda vlm: VLM.load(llm_model_name='/dev/zero'),
        lambda vlm: VLM.load(model_file_name='/dev/zero', llm_model_name=PLAIN),
        lambda vlm: VLM.load(llm_model_name=PLAIN, lora='/dev/zero'),
    ],
)
def test_each_door_refuses_what_it_cannot_take(vlm, call):
    with pytest.raises(VlmError) as caught:
        call(vlm)
    assert 10 < len(str(caught.value)) < 300


def test_a_question_that_is_none_spoils_no_other(vlm):
    first, *wrong, last = vlm.ask_many(
        [('Why?', None), 'Why?', ('Why?',), ('Why?', None, 1), 7, ('Why?', None)], n_predict=2
    )
    assert first.text == last.text
    assert all(isinstance(one, PromptError) for one in wrong)


def test_numbers_of_numpy_are_numbers(vlm):
    plain = vlm.ask('Why?', n_predict=3, temperature=2.0, seed=3, logit_bias={5: 2.0}, logprobs=1)
    same = vlm.ask(
        'Why?',
        n_predict=np.int64(3),
        temperature=np.float32(2.0),
        seed=np.uint32(3),
        logit_bias={np.int32(5): np.float32(2.0)},
        logprobs=np.int8(1),
    )
    assert (same.text, same.logprobs) == (plain.text, plain.logprobs)


def test_a_long_stop_costs_next_to_nothing(vlm):
    """Each token was compared with every beginning of it, while everybody waited."""
    answer = vlm.ask('Why?', n_predict=20).text
    assert vlm.ask('Why?', n_predict=20, stop=['a' * 10**7, answer + 'x' * 10**7]).text == answer


def test_a_closed_model_says_so_whatever_it_is_asked():
    with VLM.load(llm_model_name=PLAIN) as vlm:
        chat = vlm.conversation()
    for call in (
        lambda: vlm.ask('Why?'),
        lambda: vlm.tokenize('Why?'),  # llama.cpp would read what was freed
        lambda: vlm.choose('Why?', choices=['a', 'b']),
        lambda: chat.ask('Why?'),
        lambda: chat.prefill(),
        lambda: chat.save('nowhere'),
    ):
        with pytest.raises(InferenceError, match='the model is closed'):
            call()
    assert isinstance(vlm.ask_many([('Why?', None)])[0], InferenceError)


# -- pictures ----------------------------------------------------------------------------------


def test_text_before_a_picture_is_prefilled_while_it_is_encoded(vlm):
    """The encoder waits for the prefill: one after the other would wait for ever."""
    empty(vlm)
    encoder, encode = parts(vlm).encoder, parts(vlm).encoder.encode
    context, run = parts(vlm).context, parts(vlm).context.run
    prefilled = threading.Event()

    def waiting(tiles):
        assert prefilled.wait(20)
        return encode(tiles)

    def noting(runs):
        outcome = run(runs)
        if outcome is Outcome.DONE and not any(r.embedded for r in runs):
            prefilled.set()
        return outcome

    encoder.elsewhere = True
    encoder.encode, context.run = waiting, noting
    try:
        system = long_prompt(vlm, 100, 2)
        reply = vlm.ask('Why?', picture(50, 50, 4321), system_prompt=system)
    finally:
        encoder.elsewhere = False
        del encoder.encode, context.run
    assert reply.image_tokens and reply.finish_reason in ('stop', 'length')
    empty(vlm)
    assert vlm.ask('Why?', picture(50, 50, 4321), system_prompt=system).text == reply.text


def test_nothing_is_prefilled_while_the_same_cpu_encodes(vlm):
    empty(vlm)
    encoder, encode = parts(vlm).encoder, parts(vlm).encoder.encode
    assert not encoder.elsewhere
    steps = []
    with batches(vlm) as seen:

        def noting(tiles):
            steps.append(len(seen))
            return encode(tiles)

        encoder.encode = noting
        try:
            reply = vlm.ask('Why?', picture(200, 150, 56), max_tiles=4)
        finally:
            del encoder.encode
    assert len(steps) > 3 and not any(steps)
    assert reply.image_tokens and seen


def test_a_picture_that_cannot_be_encoded_ends_its_request_alone(vlm):
    encoder = parts(vlm).encoder

    def failing(tiles):
        raise InferenceError('out of order')

    encoder.encode = failing
    try:
        stream = vlm.stream('Why?', picture(40, 40, 57), max_tiles=1)
        assert vlm.ask('Why?').completion_tokens
        with pytest.raises(InferenceError, match='out of order'):
            stream.wait()
    finally:
        del encoder.encode
    assert vlm.ask('Why?', picture(40, 40, 57), max_tiles=1).image_tokens


def test_each_tile_is_prefilled_while_the_next_is_encoded(vlm):
    empty(vlm)
    encoder, encode = parts(vlm).encoder, parts(vlm).encoder.encode
    shown = picture(200, 150, 55)
    (image,) = embed(vlm, shown, max_tiles=4)
    expected = vlm.ask('Why?', shown, max_tiles=4).text
    empty(vlm)
    encoded = []
    with batches(vlm) as seen:

        def counting(tiles):
            assert len(tiles.pixels) == 1
            while len(encoded) == 2 and not any(r.embedded for runs in seen for r in runs):
                pass  # the third tile waits until the first has been prefilled
            encoded.append(tiles)
            return encode(tiles)

        encoder.encode, encoder.elsewhere = counting, True
        try:
            reply = vlm.ask('Why?', shown.copy() ^ 1, max_tiles=4)
        finally:
            encoder.elsewhere = False
            del encoder.encode
    assert len(encoded) == len(image.tiles) > 3
    assert reply.image_tokens == image.tokens and expected


def test_a_tile_that_did_not_change_is_not_encoded_again(vlm):
    encoder, encode = parts(vlm).encoder, parts(vlm).encoder.encode
    size = encoder.tile_size
    frame = picture(4 * size, 3 * size, 99)
    vlm.ask('Why?', frame, n_predict=1)
    moved = frame.copy()
    moved[:size, :size] ^= 255
    encoded = []
    encoder.encode = lambda tiles: (encoded.append(tiles), encode(tiles))[1]
    try:
        reply = vlm.ask('Why?', moved)
    finally:
        del encoder.encode
    assert len(encoded) == 2  # the tile in the corner, and the overview
    with small() as other:
        assert other.ask('Why?', moved).text == reply.text


def test_the_memory_of_embeddings_is_bounded_in_bytes(monkeypatch):
    with small(max_tiles=1) as vlm:
        (image,) = embed(vlm, picture(30, 30, 0))
        size = sum(tile.data.nbytes for tile in image.tiles)
        monkeypatch.setattr(image_encoder, 'KEPT_BYTES', 3 * size)
        for i in range(10):
            embed(vlm, picture(30, 30, i))
        before = vlm.status()
        embed(vlm, picture(30, 30, 9), picture(30, 30, 8), picture(30, 30, 0))
        after = vlm.status()
    assert after.image_hits - before.image_hits == 2
    assert after.image_misses - before.image_misses == 1


def test_an_abandoned_picture_is_not_encoded(vlm):
    encoder, encode = parts(vlm).encoder, parts(vlm).encoder.encode
    begun, go = threading.Event(), threading.Event()
    encoded = []

    def waiting(tiles):
        encoded.append(tiles)
        begun.set()
        assert go.wait(20)
        return encode(tiles)

    encoder.encode = waiting
    try:
        first = vlm.stream('Why?', picture(40, 40, 700), max_tiles=1)
        assert begun.wait(20)
        second = vlm.stream('Why?', picture(40, 40, 701), max_tiles=1)
        while vlm.status().encoding < 2:
            pass
        second.close()
        while vlm.status().encoding > 1:
            pass
        go.set()
        assert first.result().image_tokens
    finally:
        del encoder.encode
    assert len(encoded) == 1
    assert vlm.ask('Why?', picture(40, 40, 701), max_tiles=1).image_tokens


# -- messages ----------------------------------------------------------------------------------


def test_messages_are_the_same_prompt_as_a_conversation(vlm):
    shown = picture(60, 40, 5)
    chat = vlm.conversation('Be short.')
    first = chat.ask('What is it?', shown)
    messages = [
        {'role': 'system', 'content': 'Be short.'},
        {
            'role': 'user',
            'content': [
                {'type': 'image', 'image': shown},
                {'type': 'text', 'text': 'What is it?'},
            ],
        },
    ]
    assert vlm.ask(messages).prompt_tokens == first.prompt_tokens
    messages += [
        {'role': 'assistant', 'content': 'A thing.'},
        {'role': 'user', 'content': 'And where?'},
    ]
    again = vlm.ask(messages)
    assert again.image_tokens == first.image_tokens
    assert again.timings.encode_ms == 0 and again.reused_tokens >= first.prompt_tokens - 1


def test_a_picture_stands_where_a_message_has_it(vlm):
    model = parts(vlm).model
    one, other = picture(30, 30, 1), picture(30, 30, 2)
    content = [
        {'type': 'text', 'text': 'Before'},
        {'type': 'image', 'image': one},
        {'type': 'text', 'text': 'between'},
        {'type': 'image', 'image': other},
        {'type': 'text', 'text': 'after'},
    ]
    from core import prompt

    ids = prompt(vlm, [{'role': 'user', 'content': content}], max_tiles=1).prompt.ids
    text = ''.join(
        model.piece(i).decode('utf-8', 'replace')
        or next(k for k, v in model.controls.items() if v == i)
        if i >= 0
        else '*'
        for i in ids
    )
    while '**' in text:
        text = text.replace('**', '*')
    assert 'Before<img>*</img>between<img>*</img>after' in text


# -- everything at once --------------------------------------------------------------------------


def sure(reply):
    """Say whether no token of an answer was nearly another one: sums may round differently."""
    return all(abs(p.top[0][1] - p.top[1][1]) > 0.015 for p in reply.logprobs)


@pytest.mark.timeout(600)
def test_random_requests_of_threads_and_coroutines(monkeypatch):
    """Each answer is what it is alone, whatever the others do; memory stays flat."""
    shown = [picture(40, 40, i) for i in range(8)]
    questions = ['Why?', 'And where?', '背景是什么颜色？', 'Tell me all. ' * 12]
    options = {'max_tiles': 1, 'n_predict': 5}
    with small(n_ctx=512, n_batch=64) as vlm:
        bias = no_end(vlm)
        keys = [(q, i) for q in range(len(questions)) for i in (None, *range(8))]
        alone, talked = {}, {}
        for q, i in keys:
            reply = vlm.ask(questions[q], None if i is None else shown[i], logprobs=2, **options)
            if sure(reply):
                alone[q, i] = reply.text
        for i in range(8):
            chat = vlm.conversation()
            said = [
                chat.ask('Why?', shown[i], logprobs=2, **options),
                chat.ask('So?', logprobs=2, **options),
            ]
            if all(map(sure, said)):
                talked[i] = [reply.text for reply in said]
        assert len(alone) > len(keys) / 2 and len(talked) > 1
        wrong = []

        def one(chooser):
            q, i = chooser.choice(list(alone))
            image = None if i is None else shown[i]
            kind = chooser.randrange(10)
            if kind <= 4:
                text = vlm.ask(questions[q], image, priority=chooser.randrange(3), **options).text
                if text != alone[q, i]:
                    wrong.append((q, i, text, alone[q, i]))
            elif kind == 5:  # dropped, or cancelled by and by
                stream = vlm.stream(questions[q], image, n_predict=40, logit_bias=bias)
                for _ in range(chooser.randrange(4)):
                    next(stream)
                if chooser.random() < 0.5:
                    stream.cancel()
            elif kind == 6:
                late = vlm.ask(questions[q], image, n_predict=300, logit_bias=bias, timeout=0.02)
                if late.finish_reason not in ('timeout', 'length'):
                    wrong.append(late)
            elif kind == 7:
                try:
                    vlm.ask(questions[q], b'no picture')
                    wrong.append('a bad picture was taken')
                except PictureError:
                    pass
            elif kind == 8:
                unread.append(vlm.stream(questions[q], image, **options))
                del unread[:-5]
            else:
                which = chooser.choice(list(talked))
                chat = vlm.conversation()
                said = [
                    chat.ask('Why?', shown[which], **options).text,
                    chat.ask('So?', **options).text,
                ]
                if said != talked[which]:
                    wrong.append((which, said, talked[which]))

        unread = []

        def caller(seed, requests):
            chooser = random.Random(seed)
            for _ in range(requests):
                one(chooser)

        async def coroutine(seed, requests):
            chooser = random.Random(seed)
            for _ in range(requests):
                q, i = chooser.choice(list(alone))
                stream = vlm.stream(questions[q], None if i is None else shown[i], **options)
                text = ''.join([chunk.text async for chunk in stream])
                if text != alone[q, i]:
                    wrong.append((q, i, text, alone[q, i]))

        async def coroutines(requests):
            await asyncio.gather(*(coroutine(1000 + n, requests) for n in range(CALLERS)))

        def everybody(requests):
            each = max(1, requests // (2 * CALLERS))
            with ThreadPoolExecutor(CALLERS + 1) as pool:
                done = [pool.submit(caller, seed, each) for seed in range(CALLERS)]
                done.append(pool.submit(asyncio.run, coroutines(each)))
                for future in done:
                    future.result()
            unread.clear()
            gc.collect()

        everybody(200)
        before = resident_bytes()
        everybody(REQUESTS)
        after = resident_bytes()
        assert wrong == []
        while vlm.status().waiting or vlm.status().running:  # what was cancelled at last
            pass
        assert not any(slot.in_use for slot in slots(vlm))
        print(f'{before / 1e6:.1f} -> {after / 1e6:.1f} MB in {REQUESTS} requests')
        assert after < 1.01 * before
