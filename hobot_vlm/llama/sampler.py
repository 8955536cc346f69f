"""Choosing the next token: llama.cpp's chain of samplers, built from what the user chose."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
import ctypes
import secrets
from typing import Any

from llama_cpp import llama_cpp as lib
import numpy as np

from .context import Context
from .schema import grammar_of_schema
from ..config import Config
from ..errors import GrammarError
from ..values import TokenLogprob

#: tokens of the answer that repeat_penalty looks back at; llama.cpp's own default
PENALTY_WINDOW = 64


def grammar_of(config: Config) -> str:
    """
    Give the GBNF grammar of a request; empty if it has none.

    :raises GrammarError: both a grammar and a schema, or a schema that cannot be one
    """
    grammar, schema = config.grammar_text(), config.schema_text()
    if not schema:
        return grammar
    if grammar:
        raise GrammarError('grammar and json_schema are both set: give one of them')
    return grammar_of_schema(schema)


class Sampler:
    """
    A chain of samplers for one answer.

    The order is llama.cpp's own: bias, penalties, top-k, top-p, min-p, temperature, choice.
    Penalties count the tokens of the answer only, so that a word of the question may be repeated.
    A grammar stands apart: asking it about one token is cheap, and about all of them is not, so
    it is asked about the chosen token first, and about all only if it refuses that one.

    :param logit_bias: token id -> what is added to its logit
    :param logprobs: likeliest tokens to report for each token; 0: none are reported
    :raises GrammarError: the grammar, or a token of ``logit_bias``, does not exist
    """

    def __init__(
        self,
        context: Context,
        config: Config,
        logit_bias: Mapping[int, float] | None = None,
        logprobs: int = 0,
    ):
        self._context = context
        self._logprobs = logprobs
        self.reported: list[TokenLogprob] = []
        self._on_close = ExitStack()
        self._grammar = self._open_grammar(grammar_of(config))
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        self._on_close.callback(lib.llama_sampler_free, self._chain)
        if logit_bias:
            self._add_bias(logit_bias)
        if config.repeat_penalty != 1.0:
            self._add(
                lib.llama_sampler_init_penalties(
                    self._context.model.n_vocab, PENALTY_WINDOW, config.repeat_penalty, 0.0, 0.0
                )
            )
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
        lib.llama_sampler_chain_add(self._chain, sampler)  # the chain owns it now

    def _add_bias(self, logit_bias: Mapping[int, float]) -> None:
        rows = (lib.llama_logit_bias * len(logit_bias))()
        for row, (token, bias) in zip(rows, logit_bias.items(), strict=True):
            if not 0 <= token < self._context.model.n_vocab:
                self.close()
                raise GrammarError(
                    f'logit_bias names token {token}: the vocabulary has 0 to '
                    f'{self._context.model.n_vocab - 1}'
                )
            row.token, row.bias = token, bias
        self._add(lib.llama_sampler_init_logit_bias(self._context.model.n_vocab, len(rows), rows))

    def _open_grammar(self, grammar: str) -> Any:
        if not grammar:
            return None
        sampler = lib.llama_sampler_init_grammar(
            self._context.model.vocab, grammar.encode(), b'root'
        )
        if not sampler:
            raise GrammarError(
                f'llama.cpp cannot read the grammar {grammar[:200]!r}: expected '
                'GBNF with a rule named root, without left recursion'
            )
        self._on_close.callback(lib.llama_sampler_free, sampler)
        return sampler

    def sample(self, row: int = -1) -> int:
        """Choose a token from the logits of a row of the last batch, and remember it."""
        if self._grammar is None:
            token = int(lib.llama_sampler_sample(self._chain, self._context.handle, row))
        else:
            token = self._sample_by_grammar(row)
        if self._logprobs:
            self._report(row, token)
        return token

    def _sample_by_grammar(self, row: int) -> int:
        """Let the chain choose freely; where the grammar refuses, let it filter first."""
        everything = self._candidates(np.arange(self._context.model.n_vocab), row)
        lib.llama_sampler_apply(self._chain, ctypes.byref(everything))
        token = everything.data[everything.selected].id
        alone = self._candidates(np.array([token]), row)
        lib.llama_sampler_apply(self._grammar, ctypes.byref(alone))
        if not np.isfinite(alone.data[0].logit):
            everything = self._candidates(np.arange(self._context.model.n_vocab), row)
            lib.llama_sampler_apply(self._grammar, ctypes.byref(everything))
            lib.llama_sampler_apply(self._chain, ctypes.byref(everything))
            token = everything.data[everything.selected].id
        lib.llama_sampler_accept(self._grammar, token)
        lib.llama_sampler_accept(self._chain, token)
        return int(token)

    def _candidates(self, tokens: np.ndarray, row: int) -> lib.llama_token_data_array:
        """Give tokens and their logits in llama.cpp's form."""
        table = np.zeros(len(tokens), _CANDIDATE)
        table['id'] = tokens
        table['logit'] = self._context.logits(row)[tokens]
        self._table = table  # llama.cpp works in this memory
        return lib.llama_token_data_array(
            data=table.ctypes.data_as(lib.llama_token_data_p),
            size=len(table),
            selected=-1,
            sorted=False,
        )

    def _report(self, row: int, token: int) -> None:
        """Note the log probability of a token, and of the likeliest ones in its place."""
        logits = self._context.logits(row).astype(np.float64)
        logits -= logits.max()
        logits -= np.log(np.exp(logits).sum())
        best = np.argsort(-logits)[: self._logprobs]

        def text(i: int) -> str:
            return self._context.model.piece(i).decode('utf-8', 'replace')

        self.reported.append(
            TokenLogprob(
                text(token),
                round(float(logits[token]), 5),
                tuple((text(int(i)), round(float(logits[i]), 5)) for i in best),
            )
        )

    def close(self) -> None:
        """Free the samplers; twice is harmless."""
        self._on_close.close()


#: struct llama_token_data of llama.h
_CANDIDATE = np.dtype([('id', np.int32), ('logit', np.float32), ('p', np.float32)])
