"""
Random conversations: every answer is what a fresh context gives for the same whole prompt.

``Fresh`` is that context: a decoder of its own, emptied before each prompt, which reads the whole
prompt in one go and takes the likeliest token each time. It shares no code with the session, the
cache or the sampler.
"""

from __future__ import annotations

import random

from conftest import DEMO, MODELS
from hobot_vlm import PromptTooLong, VLM
from hobot_vlm.llama.model import Decoder, Outcome
from hobot_vlm.values import Tokens
from hypothesis import given, HealthCheck, settings, strategies
from llama_cpp import llama_cpp as lib
import numpy as np
from pictures import picture
import pytest

#: conversations of each model, 210 in all; each has up to STEPS questions
CONVERSATIONS = {'demo': 50, 'internvl': 80, 'smolvlm': 80}
STEPS = 7
N_CTX = 256             # a conversation outgrows it
N_PREDICT = 6

PICTURES = [picture(64, 48, 1), picture(48, 64, 2), picture(56, 56, 3)]
QUESTIONS = ['Why?', 'What is on the left?', '背景是什么颜色？', ' \n', '<|im_end|>\nno control',
             'Is there anything else that could be of use to somebody who cannot see it? ' * 2]


class Fresh:
    """A context that knows nothing when it is asked."""

    def __init__(self, path):
        self.decoder = Decoder(path, n_ctx=N_CTX, n_batch=N_CTX, threads=1)

    def answer(self, prompt, n):
        """
        Give the likeliest tokens after a prompt, up to n, and by how much each one won.

        Tokens stop where the context is full or the model ends.
        """
        decoder, tokens, margins = self.decoder, [], []
        lib.llama_memory_clear(decoder.memory, True)
        at, total = 0, len(prompt.cells)
        starts = {first: data for first, data in prompt.pictures}
        while at < total:
            if at in starts:
                data = starts[at]
                done = decoder.run_embeddings(data, at, 0, at + len(data) == total)
                at += len(data)
            else:
                end = min([first for first in starts if first > at] + [total])
                done = decoder.run_tokens(np.array(prompt.cells[at:end], np.int32), at, 0,
                                          end == total)
                at = end
            assert done is Outcome.DONE
        while True:
            logits = decoder.logits()
            second, first = np.argsort(logits)[-2:]
            margins.append(float(logits[first] - logits[second]))
            if decoder.is_end(int(first)):
                return tokens, margins
            tokens.append(int(first))
            if len(tokens) == n or at == N_CTX:
                return tokens, margins
            assert decoder.run_tokens(np.array([first], np.int32), at, 0, True) is Outcome.DONE
            at += 1


class Talk:
    """A conversation, with a record of what was said in it that is kept apart from its own."""

    def __init__(self, vlm, fresh, overflow):
        self.vlm, self.fresh, self.overflow = vlm, fresh, overflow
        self.chat = vlm.conversation('Be short.', overflow=overflow)
        self.said = []                      # (question, keys of pictures, tokens of the answer)
        self.seen = False                   # whether a picture was shown since the reset
        self.margins = []
        lay_out = self.chat.lay_out

        def recorded(*args):
            self.spans, self.prompt = lay_out(*args)
            return self.spans, self.prompt

        self.chat.lay_out = recorded

    def ask(self, question, shown, cancel=None):
        """Ask, and check the answer; ``cancel`` is a number of chunks, or None."""
        self.prompt = None
        stream = self.chat.stream(question, shown, n_predict=N_PREDICT)
        try:
            if cancel is not None:
                for _ in range(cancel):
                    next(stream, None)
                stream.close()
            reply = stream.finish()
        except PromptTooLong:
            assert self.overflow == 'refuse' or len(self.said) == 0 or shown
            assert len(self.chat._turns) <= len(self.said)
            self.said = self.said[len(self.said) - len(self.chat._turns):]
            return
        if self.prompt is None:             # cancelled before it began
            assert reply.finish_reason == 'cancelled'
            return
        self.check_answer(stream, reply)
        self.record(question, shown, stream)

    def check_answer(self, stream, reply):
        tokens = stream._lane.tokens
        expected, margins = self.fresh.answer(self.prompt, N_PREDICT)
        self.margins += margins
        if reply.finish_reason == 'cancelled':
            expected = expected[:len(tokens)]
        assert tokens == expected, (margins, reply)
        assert reply.prompt_tokens == len(self.prompt.cells)
        assert reply.reused_tokens < reply.prompt_tokens

    def record(self, question, shown, stream):
        """Check that the prompt held what was said, and note the new turn."""
        before = len(self.said)
        kept = len(self.chat._turns) - 1
        assert 0 <= kept <= before
        assert kept == before or self.overflow == 'drop_oldest'
        self.said = self.said[before - kept:]
        answers = [span.ids for span in self.spans if isinstance(span, Tokens)]
        assert answers == [tokens for _, tokens in self.said]
        text = self.vlm.decoder.tokenize(question)
        assert ''.join(getattr(s, 'text', '') for s in self.spans).count('Be short.') == 1
        assert len(text) <= len(self.prompt.cells)
        self.seen = self.seen or bool(shown)
        assert bool(self.prompt.pictures) == self.seen      # the newest picture stays
        self.said.append((question, tuple(stream._lane.tokens)))

    def reset(self):
        self.chat.reset()
        self.said, self.seen = [], False


@pytest.fixture(scope='module', params=list(CONVERSATIONS))
def model(request):
    """Give a model and a fresh context of the same file."""
    folder = DEMO if request.param == 'demo' else MODELS / request.param
    fresh = Fresh(folder / 'decoder.gguf')
    with VLM.load(model_file_name=str(folder / 'vision.onnx'), n_ctx=N_CTX, n_batch=32,
                  llm_model_name=str(folder / 'decoder.gguf'), llm_threads=1, max_tiles=1,
                  temperature=0.0) as vlm:
        for image in PICTURES:
            vlm.prepare(image)
        yield request.param, vlm, fresh
    fresh.decoder.close()


step = strategies.tuples(
    strategies.integers(0, 1),              # which of two conversations
    strategies.integers(0, len(QUESTIONS) - 1),
    strategies.sampled_from([(), (), (), (0,), (1,), (2,), (0, 2)]),
    strategies.sampled_from(['ask'] * 6 + ['close', 'cancel', 'stop prefill', 'reset', 'alone']),
    strategies.integers(0, 4))


def test_random_conversations_equal_fresh_contexts(model, monkeypatch):
    name, vlm, fresh = model
    margins, counts = [], {'conversations': 0, 'answers': 0, 'dropped': 0}

    @settings(max_examples=(CONVERSATIONS[name] + 1) // 2, deadline=None, derandomize=True,
              database=None, suppress_health_check=list(HealthCheck))
    @given(overflow=strategies.sampled_from(['drop_oldest', 'drop_oldest', 'refuse']),
           steps=strategies.lists(step, min_size=2 * STEPS - 6, max_size=2 * STEPS))
    def talk(overflow, steps):
        talks = [Talk(vlm, fresh, overflow) for _ in range(2)]
        for which, question, shown, how, number in steps:
            talk, asked = talks[which], QUESTIONS[question]
            images = [PICTURES[i] for i in shown]
            if how == 'ask':
                talk.ask(asked, images)
            elif how == 'close':
                talk.ask(asked, images, cancel=number)
            elif how == 'cancel':
                interrupted(talk, asked, images, vlm.decoder, 'run_step', number, monkeypatch)
            elif how == 'stop prefill':
                interrupted(talk, asked, images, vlm.decoder, 'run_tokens', number, monkeypatch)
            elif how == 'reset':
                talk.reset()
            else:                           # a question of somebody else's comes between
                vlm.ask(asked, images[:1], n_predict=2)
        for talk in talks:
            margins.extend(talk.margins)
            counts['answers'] += len(talk.margins)
        counts['conversations'] += 2

    talk()
    assert counts['conversations'] >= CONVERSATIONS[name]
    assert len(margins) > 5 * CONVERSATIONS[name]
    print(f'{name}: {counts}, closest win {min(margins):.2g}')


def interrupted(talk, question, images, decoder, method, after, monkeypatch):
    """Ask, and have another thread's cancel arrive just as the n-th batch begins."""
    run = getattr(decoder, method)
    left = [after]

    def watched(*args):
        if left[0] == 0:
            talk.vlm.cancel()
        left[0] -= 1
        return run(*args)

    with monkeypatch.context() as patch:
        patch.setattr(decoder, method, watched)
        talk.ask(question, images)


def test_batches_equal_fresh_contexts(model):
    """The same for answers that are decoded side by side."""
    name, vlm, fresh = model
    chooser = random.Random(1)
    for parallel in (2, 5):
        questions = [(chooser.choice(QUESTIONS), chooser.choice([None, *PICTURES]))
                     for _ in range(10)]
        replies = vlm.ask_many(questions, parallel=parallel, n_predict=N_PREDICT)
        for question, reply in zip(questions, replies):
            alone = Talk(vlm, fresh, 'refuse')
            alone.chat._system_prompt = ''
            stream = alone.chat.stream(*question, n_predict=N_PREDICT)
            assert stream.finish().text == reply.text
            alone.check_answer(stream, stream.reply)
