"""Choosing the next token: llama.cpp's chain of samplers, built from what the user chose."""

from __future__ import annotations

from contextlib import ExitStack
import secrets

from llama_cpp import llama_cpp as lib

from ..config import Config
from .model import Decoder

#: tokens of the answer that repeat_penalty looks back at; llama.cpp's own default
PENALTY_WINDOW = 64


class Sampler:
    """
    A chain of samplers for one answer.

    The order is llama.cpp's own: penalties, top-k, top-p, min-p, temperature, choice. Penalties
    count the tokens of the answer only, so that a word of the question may be repeated.
    """

    def __init__(self, decoder: Decoder, config: Config):
        self._context = decoder.context
        self._on_close = ExitStack()
        self.chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        self._on_close.callback(lib.llama_sampler_free, self.chain)
        if config.repeat_penalty != 1.0:
            self._add(lib.llama_sampler_init_penalties(PENALTY_WINDOW, config.repeat_penalty,
                                                       0.0, 0.0))
        if config.temperature == 0:
            self._add(lib.llama_sampler_init_greedy())
            return
        seed = secrets.randbits(32) if config.seed < 0 else config.seed
        if config.top_k:
            self._add(lib.llama_sampler_init_top_k(config.top_k))
        self._add(lib.llama_sampler_init_top_p(config.top_p, 1))
        self._add(lib.llama_sampler_init_min_p(config.min_p, 1))
        self._add(lib.llama_sampler_init_temp(config.temperature))
        self._add(lib.llama_sampler_init_dist(seed))

    def _add(self, sampler: object) -> None:
        lib.llama_sampler_chain_add(self.chain, sampler)        # the chain owns it now

    def sample(self) -> int:
        """Choose a token from the logits of the last batch, and remember it."""
        return int(lib.llama_sampler_sample(self.chain, self._context, -1))

    def close(self) -> None:
        """Free the chain; twice is harmless."""
        self._on_close.close()
