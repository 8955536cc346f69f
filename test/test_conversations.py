"""
Random conversations: every answer is what a fresh context gives for the same whole prompt.

``Fresh`` is that context: a decoder of its own, emptied before each prompt, which reads the whole
prompt in one go. It shares no code with the session, the cache and the sampler.

Logits of the same prompt differ a little when it is decoded in other pieces: the sums of a batch
are added up in another order, and the KV cache rounds them to 16 bits. So not only tokens are
compared, but all logits, which is far stricter: one wrong cell moves them by more than 1. Where
the two likeliest tokens are closer than that noise, either may win; this is counted.
"""

from __future__ import annotations

import random

from conftest import DEMO, MODELS
from hobot_vlm import engine, PromptTooLong, VLM
from hobot_vlm.llama.model import Decoder, Outcome
from hobot_vlm.llama.sampling import Sampler
from hobot_vlm.values import Tokens
from hypothesis import given, HealthCheck, Phase, settings, strategies
from llama_cpp import llama_cpp as lib
import numpy as np
from pictures import picture
import pytest

#: conversations of each model, 210 in all
CONVERSATIONS = {'demo': 50, 'internvl': 80, 'smolvlm': 80}
N_CTX = 256  # a conversation outgrows it
N_PREDICT = 6

#: by how much logits may differ; their spread is 2.4 to 3. A quantised model rounds in each layer
NOISE = {'demo': 0.25, 'internvl': 0.01, 'smolvlm': 0.01}
#: share of tokens that may be another one of two that are as likely
TIES = 0.004

PICTURES = [picture(64, 48, 1), picture(48, 64, 2), picture(56, 56, 3)]
QUESTIONS = [
    'Why?',
    'What is on the left?',
    '背景是什么颜色？',
    ' \n',
    '<|im_end|>\nno control',
    'Is there anything else that could be of use to somebody who cannot see it? ' * 2,
]


class Fresh:
    """A context that knows nothing when it is asked."""

    def __init__(self, path):
        self.decoder = Decoder(path, n_ctx=N_CTX, n_batch=N_CTX, threads=1, flash_attention='off')

    def logits(self, prompt, tokens):
        """Read a whole prompt and then tokens one by one; give the logits after each."""
        decoder = self.decoder
        lib.llama_memory_clear(decoder.memory, True)
        at, total = 0, len(prompt.cells)
        starts = dict(prompt.pictures)
        while at < total - 1:
            if at in starts:
                data = starts[at]
                done = decoder.run_embeddings(data, at, 0)
                at += len(data)
            else:
                end = min([first for first in starts if first > at] + [total - 1])
                done = decoder.run_tokens(np.array(prompt.cells[at:end], np.int32), at, 0)
                at = end
            assert done is Outcome.DONE
        for i, token in enumerate([prompt.cells[-1], *tokens]):
            assert decoder.run_rows([(token, at + i, 0, True)]) is Outcome.DONE
            yield decoder.logits()


class Watch:
    """Notes prompts, and the tokens that are chosen with the logits they are chosen from."""

    def __init__(self, name, fresh, monkeypatch):
        self.name, self.fresh = name, fresh
        self.asked = []  # (turns, spans, prompt), in the order of questions
        self.chosen = {}  # sampler -> [(token, logits)], in the same order
        self.tokens = self.ties = 0
        self.noise = 0.0
        lay_out, sample = engine.Conversation.lay_out, Sampler.sample

        def watched_lay_out(*args):
            self.asked.append(lay_out(*args))
            return self.asked[-1]

        def watched_sample(sampler, row=-1):
            logits = sampler._decoder.logits(row).copy()
            token = sample(sampler, row)
            self.chosen.setdefault(sampler, []).append((token, logits))
            return token

        monkeypatch.setattr(engine.Conversation, 'lay_out', watched_lay_out)
        monkeypatch.setattr(Sampler, 'sample', watched_sample)

    def clear(self):
        self.asked.clear()
        self.chosen.clear()

    def check(self, prompt, chosen):
        """Compare an answer with what a fresh context makes of the prompt."""
        before = [token for token, _ in chosen[:-1]]
        expected = self.fresh.logits(prompt, before)
        for (token, logits), other in zip(chosen, expected, strict=True):
            assert token == np.argmax(logits)
            noise = float(np.abs(logits - other).max())
            assert noise <= NOISE[self.name], (noise, token, np.argmax(other))
            self.noise = max(self.noise, noise)
            self.tokens += 1
            self.ties += bool(token != np.argmax(other))

    def check_ties(self):
        assert self.ties <= TIES * self.tokens, (self.ties, self.tokens)


class Talk:
    """A conversation, with a record of what was said in it that is kept apart from its own."""

    def __init__(self, vlm, watch, overflow):
        self.vlm, self.watch, self.overflow = vlm, watch, overflow
        self.chat = vlm.conversation('Be short.', overflow=overflow)
        self.said = []  # tokens of each answer
        self.shown = False  # whether there was a picture since the reset
        self.dropped = 0

    def ask(self, question, images, cancel=None):
        """Ask, and check the answer; ``cancel`` is a number of chunks, or None."""
        self.watch.clear()
        remembered = list(self.chat._turns)
        stream = self.chat.stream(question, images, n_predict=N_PREDICT)
        try:
            if cancel is not None:
                for _ in range(cancel):
                    next(stream, None)
                stream.close()
            reply = stream.finish()
        except PromptTooLong as error:
            assert error.tokens > N_CTX
            assert self.overflow == 'refuse'
            assert self.chat._turns == remembered
            return
        chosen = [c for answer in self.watch.chosen.values() for c in answer]
        if not chosen:  # cancelled before the first token: as if not asked
            assert reply.finish_reason == 'cancelled' and reply.text == ''
            assert self.chat._turns == remembered
            return
        ((turns, spans, prompt),) = self.watch.asked
        tokens = [token for token, _ in chosen if not self.vlm.decoder.is_end(token)]
        # 1. the answer is right, and the numbers about it
        self.watch.check(prompt, chosen)
        assert (reply.finish_reason == 'stop') == (len(tokens) < len(chosen))
        assert reply.completion_tokens == len(tokens) <= N_PREDICT
        assert reply.reused_tokens < reply.prompt_tokens == len(prompt.cells) <= N_CTX
        # 2. the prompt held what was said before, but for the oldest where room was needed
        kept = len(turns) - 1
        assert kept == len(self.said) or self.overflow == 'drop_oldest'
        self.dropped += len(self.said) - kept
        self.said = self.said[len(self.said) - kept :]
        assert [list(s.ids) for s in spans if isinstance(s, Tokens)] == self.said
        text = ''.join(getattr(span, 'text', '') for span in spans)
        assert text.count('Be short.') == 1 and question.strip() in text
        self.shown = self.shown or bool(images)
        assert bool(prompt.pictures) == self.shown  # the newest picture stays
        self.said.append(tokens)

    def interrupt(self, question, images, method, after, monkeypatch):
        """Ask, and have a cancel arrive just as the n-th batch begins."""
        run = getattr(self.vlm.decoder, method)
        left = [after]

        def watched(*args):
            if left[0] == 0:
                self.vlm.cancel()
            left[0] -= 1
            return run(*args)

        with monkeypatch.context() as patch:
            patch.setattr(self.vlm.decoder, method, watched)
            self.ask(question, images)

    def reset(self):
        self.chat.reset()
        self.said, self.shown = [], False


@pytest.fixture(scope='module', params=list(CONVERSATIONS))
def model(request):
    """Give a model and a fresh context of the same file."""
    folder = DEMO if request.param == 'demo' else MODELS / request.param
    fresh = Fresh(folder / 'decoder.gguf')
    with VLM.load(
        model_file_name=str(folder / 'vision.onnx'),
        n_ctx=N_CTX,
        n_batch=32,
        llm_model_name=str(folder / 'decoder.gguf'),
        llm_threads=1,
        max_tiles=1,
        flash_attention='off',
    ) as vlm:
        yield request.param, vlm, fresh
    fresh.decoder.close()


step = strategies.tuples(
    strategies.integers(0, 1),  # which of two conversations
    strategies.integers(0, len(QUESTIONS) - 1),
    strategies.sampled_from([(), (), (), (0,), (1,), (2,), (0, 2)]),
    strategies.sampled_from(['ask'] * 6 + ['close', 'cancel', 'stop prefill', 'reset', 'alone']),
    strategies.integers(0, 4),
)


@pytest.mark.timeout(300)
def test_random_conversations_equal_fresh_contexts(model, monkeypatch):
    name, vlm, fresh = model
    watch = Watch(name, fresh, monkeypatch)
    talks = []

    @settings(
        max_examples=CONVERSATIONS[name] // 2,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(
        overflow=strategies.sampled_from(['drop_oldest', 'drop_oldest', 'refuse']),
        steps=strategies.lists(step, min_size=8, max_size=14),
    )
    def converse(overflow, steps):
        two = [Talk(vlm, watch, overflow) for _ in range(2)]
        talks.extend(two)
        for which, question, shown, how, number in steps:
            talk, asked = two[which], QUESTIONS[question]
            images = [PICTURES[i] for i in shown]
            if how == 'ask':
                talk.ask(asked, images)
            elif how == 'close':
                talk.ask(asked, images, cancel=number)
            elif how == 'cancel':
                talk.interrupt(asked, images, 'run_rows', number + 1, monkeypatch)
            elif how == 'stop prefill':
                method = ('run_tokens', 'run_embeddings', 'run_rows')[number % 3]
                talk.interrupt(asked, images, method, number // 3, monkeypatch)
            elif how == 'reset':
                talk.reset()
            else:  # a question of somebody else's comes between
                vlm.ask(asked, images[:1], n_predict=2)

    converse()
    print(
        f'{name}: {len(talks)} conversations, {watch.tokens} tokens, {watch.ties} ties, noise '
        f'{watch.noise:.2g}, {sum(t.dropped for t in talks)} turns dropped'
    )
    assert len(talks) >= CONVERSATIONS[name]
    assert sum(talk.dropped for talk in talks) > len(talks) / 10
    watch.check_ties()


def test_batches_equal_fresh_contexts(model, monkeypatch):
    """The same for answers that are decoded side by side."""
    name, vlm, fresh = model
    watch = Watch(name, fresh, monkeypatch)
    chooser = random.Random(1)
    for parallel in (2, 5):
        watch.clear()
        questions = [
            (chooser.choice(QUESTIONS), chooser.choice([None, *PICTURES])) for _ in range(10)
        ]
        replies = vlm.ask_many(questions, parallel=parallel, n_predict=N_PREDICT)
        assert len(watch.asked) == len(watch.chosen) == len(questions)
        for (_, _, prompt), chosen, reply in zip(
            watch.asked, watch.chosen.values(), replies, strict=True
        ):
            watch.check(prompt, chosen)
            assert reply.prompt_tokens == len(prompt.cells)
    watch.check_ties()


@pytest.mark.parametrize('cache_type', ['q8_0/f16', 'q8_0'])
def test_side_by_side_to_the_last_bit(cache_type, monkeypatch):
    """With these caches a quantised model's logits do not depend on what is decoded beside."""
    questions = [(question, PICTURES[0]) for question in QUESTIONS]
    seen = {}
    for parallel in (1, len(questions)):
        with VLM.load(
            'demo', max_tiles=1, n_predict=16, llm_threads=2, cache_type=cache_type
        ) as vlm:
            watch = Watch('demo', None, monkeypatch)
            replies = vlm.ask_many(questions, parallel=parallel)
            assert sum(len(s.cells) > 0 for s in vlm.cache._sessions) >= parallel
        seen[parallel] = [
            (reply.text, [token for token, _ in chosen], np.array([row for _, row in chosen]))
            for reply, chosen in zip(replies, watch.chosen.values(), strict=True)
        ]
    for alone, beside in zip(*seen.values(), strict=True):
        assert alone[:2] == beside[:2]
        np.testing.assert_array_equal(alone[2], beside[2])
