"""A decoder and its context, for the tests of sampling: one answer at a time."""

from __future__ import annotations

from pathlib import Path

from hobot_vlm.config import Config
from hobot_vlm.llama.context import Context, Run
from hobot_vlm.llama.model import Model
from hobot_vlm.llama.sampler import Sampler
from llama_cpp import llama_cpp as lib

MODELS = Path(__file__).parents[1] / 'models'
PLAIN = MODELS / 'plain' / 'decoder.gguf'


class Decoder:
    """One model, and one sequence of it."""

    def __init__(self, path=PLAIN):
        self.model = Model(path)
        self.context = Context(self.model, n_ctx=512, n_batch=256, threads=1)

    def close(self):
        self.context.close()
        self.model.close()

    def answer(
        self, prompt='hello', n=200, logit_bias=None, logprobs=0, reasoned=False, **options
    ):
        """
        Give the tokens of an answer, its end token included, and how often was decoded.

        :param reasoned: the prompt ends within the model's reasoning
        """
        lib.llama_memory_clear(self.context.memory, True)
        config = Config(**options)
        sampler = Sampler(self.context, config, logit_bias, logprobs, reasoned)
        fresh, position, tokens, batches = self.model.tokenize(prompt), 0, [], 0
        try:
            while len(tokens) < n and not (tokens and self.model.is_end(tokens[-1])):
                self.context.run([Run(0, position, fresh, logits=True)])
                position, batches = position + len(fresh), batches + 1
                fresh = [sampler.sample()]
                if not self.model.is_end(fresh[0]):
                    fresh += sampler.forced()
                tokens += fresh
        finally:
            sampler.close()
        return tokens, batches

    def text(self, tokens):
        """Give the text of tokens."""
        return b''.join(map(self.model.piece, tokens)).decode('utf-8', 'replace')
