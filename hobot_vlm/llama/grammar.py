"""A GBNF grammar that one answer follows: llama.cpp's own sampler, kept within bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, ExitStack
import time

from llama_cpp import llama_cpp as lib
import numpy as np

from .backend import last_errors
from .candidates import Candidates
from .gbnf_check import check_grammar
from .model import Model
from ..errors import GrammarError

#: Seconds of processor time for one step of a grammar. Work that grows without end doubles with
#: each character, so that the step that exceeds this is still far from taking minutes.
MAX_STEP = 1.0


class Grammar:
    """
    A grammar, at the place where the answer is.

    :raises GrammarError: llama.cpp cannot read or follow it, or no token begins an answer
    """

    def __init__(self, model: Model, text: str):
        check_grammar(text)
        self._model = model
        self._on_close = ExitStack()
        last_errors.clear()
        self._sampler = lib.llama_sampler_init_grammar(model.vocab, text.encode(), b'root')
        if not self._sampler:
            why = '; '.join(last_errors) or 'expected GBNF with a rule named root'
            raise GrammarError(f'llama.cpp cannot read the grammar: {why[:300]}')
        self._on_close.callback(lib.llama_sampler_free, self._sampler)
        first = Candidates(np.zeros(model.n_vocab, np.float32))
        try:
            self.filter(first)
        except GrammarError:
            self.close()
            raise

    def allows(self, token: int) -> bool:
        """Say whether a token may come next."""
        alone = Candidates(np.zeros(1, np.float32), np.array([token], np.int32))
        with _bounded():
            alone.apply(self._sampler)
        return alone.possible

    def filter(self, candidates: Candidates) -> None:
        """
        Leave only the tokens that may come next.

        :raises GrammarError: there is none
        """
        with _bounded():
            candidates.apply(self._sampler)
        if not candidates.possible:
            raise GrammarError('grammar cannot be followed: no token of the model fits its place')

    @property
    def ended(self) -> bool:
        """Whether only an end token may come next."""
        candidates = Candidates(np.zeros(self._model.n_vocab, np.float32))
        self.filter(candidates)
        return all(map(self._model.is_end, candidates.left))

    def accept(self, token: int) -> None:
        """Go on behind a token, which must be allowed: llama.cpp ends the process otherwise."""
        with _bounded():
            lib.llama_sampler_accept(self._sampler, token)

    def close(self) -> None:
        """Free it; twice is harmless."""
        self._on_close.close()


@contextmanager
def _bounded(clock: Callable[[], float] = time.thread_time) -> Iterator[None]:
    began = clock()
    yield
    if clock() - began > MAX_STEP:
        raise GrammarError(
            f'grammar takes more than {MAX_STEP:.0f} s for a token: say the same with fewer '
            'alternatives that begin alike'
        )
