"""
Random conversations: every answer is what a fresh context gives for the same whole prompt.

``Fresh`` is that context: a decoder of its own, emptied before each prompt, which reads the whole
prompt in one go. It shares no code with the KV cache, the scheduler and the sampler.

Logits of the same prompt differ a little when it is decoded in other pieces: the sums of a batch
are added up in another order, and the KV cache rounds them to 16 bits. So not only tokens are
compared, but all logits, which is far stricter: one wrong cell moves them by more than 1. Where
the two likeliest tokens are closer than that noise, either may win; this is counted.
"""

from __future__ import annotations

import random
import threading

from core import at_once, parts, slots
from folders import DEMO, MODELS
from hobot_vlm import PromptTooLong, VLM
from hobot_vlm.llama.context import Context, Outcome, Run
from hobot_vlm.llama.model import Model
from hobot_vlm.llama.sampler import Sampler
from hobot_vlm.prompt_maker import PromptMaker
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
        self.model = Model(path)
        self.context = Context(
            self.model, n_ctx=N_CTX, n_batch=N_CTX, threads=1, flash_attention='off'
        )

    def logits(self, prompt, tokens):
        """Read a whole prompt and then tokens one by one; give the logits after each."""
        context = self.context
        lib.llama_memory_clear(context.memory, True)
        at, total = 0, len(prompt.ids)
        starts = dict(prompt.tiles)
        while at < total - 1:
            if at in starts:
                entries = starts[at].data
            else:
                end = min([first for first in starts if first > at] + [total - 1])
                entries = prompt.ids[at:end]
            assert context.run([Run(0, at, entries)]) is Outcome.DONE
            at += len(entries)
        for i, token in enumerate([prompt.ids[-1], *tokens]):
            assert context.run([Run(0, at + i, [token], logits=True)]) is Outcome.DONE
            yield context.logits()

    def close(self):
        self.context.close()
        self.model.close()


class Watch:
    """Notes prompts, and the tokens that are chosen with the logits they are chosen from."""

    def __init__(self, name, fresh, monkeypatch):
        self.name, self.fresh = name, fresh
        self.asked = []  # what was made of each question, in their order
        self.chosen = {}  # sampler -> [(token, logits)], in the same order
        self.tokens = self.ties = 0
        self.noise = 0.0
        question, sample = PromptMaker.question, Sampler.sample
        made = threading.local()

        def watched_question(maker, *args):
            prompt = question(maker, *args)
            self.asked.append(prompt)
            made.prompt = prompt  # its sampler is made next, on this thread
            return prompt

        def watched_init(sampler, *args, **more):
            init(sampler, *args, **more)
            self.samplers[sampler] = made.prompt

        def watched_sample(sampler, entry=-1):
            logits = sampler._context.logits(entry).copy()
            token = sample(sampler, entry)
            self.chosen.setdefault(sampler, []).append((token, logits))
            return token

        init, self.samplers = Sampler.__init__, {}
        monkeypatch.setattr(PromptMaker, 'question', watched_question)
        monkeypatch.setattr(Sampler, '__init__', watched_init)
        monkeypatch.setattr(Sampler, 'sample', watched_sample)

    def clear(self):
        self.asked.clear()
        self.chosen.clear()
        self.samplers.clear()

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
        remembered = list(self.chat.turns)
        stream = self.chat.stream(question, images, n_predict=N_PREDICT)
        try:
            if cancel is not None:
                for _ in range(cancel):
                    next(stream, None)
                stream.cancel()
            reply = stream.result()
        except PromptTooLong as error:
            assert error.tokens > N_CTX
            assert self.overflow == 'refuse'
            assert self.chat.turns == remembered
            return
        chosen = [c for answer in self.watch.chosen.values() for c in answer]
        if not chosen:  # cancelled before the first token: as if not asked
            assert reply.finish_reason == 'cancelled' and reply.text == ''
            assert self.chat.turns == remembered
            return
        (sampler,) = self.watch.chosen
        made = self.watch.samplers[sampler]
        turns, prompt, model = made.turns, made.prompt, parts(self.vlm).model
        tokens = [token for token, _ in chosen if not model.is_end(token)]
        # 1. the answer is right, and the numbers about it
        self.watch.check(prompt, chosen)
        if reply.finish_reason != 'cancelled':
            assert (reply.finish_reason == 'stop') == (len(tokens) < len(chosen))
        assert reply.completion_tokens == len(tokens) <= N_PREDICT
        assert reply.reused_tokens < reply.prompt_tokens == len(prompt.ids) <= N_CTX
        # 2. the prompt held what was said before, but for the oldest where room was needed
        kept = len(turns) - 1
        assert kept == len(self.said) or self.overflow == 'drop_oldest'
        self.dropped += len(self.said) - kept
        self.said = self.said[len(self.said) - kept :]
        assert [list(turn.answer.ids) for turn in turns[:-1]] == self.said
        text = b''.join(model.piece(i) for i in prompt.ids if i >= 0).decode('utf-8', 'replace')
        assert text.count('Be short.') == 1 and question.strip() in text
        self.shown = self.shown or bool(images)
        assert bool(prompt.tiles) == self.shown  # the newest picture stays
        self.said.append(tokens)

    def interrupt(self, question, images, after, monkeypatch):
        """Ask, and have a cancel arrive just as the n-th batch begins."""
        context = parts(self.vlm).context
        run = context.run
        left = [after]

        def watched(*args):
            if left[0] == 0:
                self.vlm.cancel()
            left[0] -= 1
            return run(*args)

        with monkeypatch.context() as patch:
            patch.setattr(context, 'run', watched)
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
    fresh.close()


step = strategies.tuples(
    strategies.integers(0, 1),  # which of two conversations
    strategies.integers(0, len(QUESTIONS) - 1),
    strategies.sampled_from([(), (), (), (0,), (1,), (2,), (0, 2)]),
    strategies.sampled_from(['ask'] * 6 + ['close', 'interrupt', 'interrupt', 'reset', 'alone']),
    strategies.integers(0, 6),
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
        steps=strategies.lists(step, min_size=10, max_size=18),
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
            elif how == 'interrupt':
                talk.interrupt(asked, images, number, monkeypatch)
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
        told = sorted((prompt.prompt.ids for prompt in watch.asked), key=str)
        assert told == sorted((watch.samplers[s].prompt.ids for s in watch.chosen), key=str)
        for sampler, chosen in watch.chosen.items():
            watch.check(watch.samplers[sampler].prompt, chosen)
        assert sorted(len(ids) for ids in told) == sorted(r.prompt_tokens for r in replies)
    watch.check_ties()


@pytest.mark.parametrize('cache_type', ['q8_0/f16', 'q8_0'])
@pytest.mark.usefixtures('all_cores')
def test_side_by_side_to_the_last_bit(cache_type, monkeypatch):
    """With these caches a quantised model's logits do not depend on what is decoded beside."""
    questions = [(question, PICTURES[0]) for question in QUESTIONS]
    seen = {}
    for parallel in (1, len(questions)):
        with VLM.load(
            'demo', max_tiles=1, n_predict=16, llm_threads=2, cache_type=cache_type
        ) as vlm:
            watch = Watch('demo', None, monkeypatch)
            with at_once(vlm, parallel):
                replies = vlm.ask_many(questions, parallel=parallel)
            if parallel > 1:
                assert sum(len(slot.ids) > 0 for slot in slots(vlm)) >= parallel
        assert len(replies) == len(questions)
        seen[parallel] = {
            tuple(watch.samplers[sampler].prompt.ids): (
                [token for token, _ in chosen],
                np.array([logits for _, logits in chosen]),
            )
            for sampler, chosen in watch.chosen.items()
        }
    alone, beside = seen.values()
    assert set(alone) == set(beside) and len(alone) == len(questions)
    for ids, (tokens, logits) in alone.items():
        assert tokens == beside[ids][0]
        np.testing.assert_array_equal(logits, beside[ids][1])
