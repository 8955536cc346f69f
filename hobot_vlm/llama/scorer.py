"""
How likely given answers are: what stands in the place of a sampler, and notes chances.

Knows logits and token ids; nothing of what is chosen between.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from .context import Context
from ..errors import InferenceError
from ..values import TokenLogprob


class Scorer:
    """
    Always chooses its tokens.

    ``logprob`` is the natural logarithm of the probability of all tokens until now, one after the
    other, before temperature and filters.
    """

    reported: list[TokenLogprob] = []
    form, at_end = '', False  # the answer has no form, and ends with its last token

    def __init__(self, context: Context, tokens: Sequence[int]):
        self._context = context
        self._left = list(tokens)
        self.logprob = 0.0

    def sample(self, entry: int = -1) -> int:
        """Give the next token, whatever the logits of an entry say, and note what they say."""
        token = self._left.pop(0)
        self.logprob += float(self._logprobs(entry)[token])
        return token

    def _logprobs(self, entry: int) -> npt.NDArray[np.float64]:
        """
        Give the natural logarithm of the probability of each token.

        :raises InferenceError: the logits are no numbers
        """
        logits = self._context.logits(entry).astype(np.float64)
        largest = logits.max()
        if not np.isfinite(largest):
            raise InferenceError(
                f'{self._context.model.path} gives numbers that are not finite: fetch it again'
            )
        logits -= largest
        logits -= np.log(np.exp(logits).sum())
        return logits

    def forced(self) -> list[int]:
        """Give nothing: every token is to be weighed."""
        return []

    def close(self) -> None:
        """Do nothing; a sampler would be freed."""


class Speaker(Scorer):
    """
    Says the likeliest token each time, until it has said one of some forms, or is about to.

    That is where forms of one token are together likely enough, or where the first tokens of all
    were, and it then said one of them whole. ``said`` is what stands before that place.

    :param forms: the tokens of each form
    :param share: how likely; 0: the place is where it begins
    """

    def __init__(self, context: Context, forms: Collection[tuple[int, ...]], share: float):
        super().__init__(context, ())
        self._firsts = list(dict.fromkeys(form[0] for form in forms))
        self._single = [self._firsts.index(form[0]) for form in forms if len(form) == 1]
        self._several = [form for form in forms if len(form) > 1]
        self._share = share
        self._end = context.model.end()
        self._own: list[float] = []  # logarithm of the probability of each token that was said
        self._begun: list[tuple[int, dict[int, float]]] = []  # where one of them may stand
        self.said: list[int] = []
        self.stopped = False
        #: logarithm of the probability of each first token: at the beginning, and at the place
        self.first: dict[int, float] = {}
        self.last: dict[int, float] = {}
        #: and of the form that was said whole
        self.whole: dict[tuple[int, ...], float] = {}

    def sample(self, entry: int = -1) -> int:
        """Give the likeliest token, or the end where it has come to the place."""
        logprobs = self._logprobs(entry)
        found = logprobs[self._firsts]
        here = dict(zip(self._firsts, map(float, found), strict=True))
        self.first = self.first or here
        chances = np.exp(found)
        if chances[self._single].sum() >= self._share:
            return self._stop(len(self.said), here)
        if chances.sum() >= self._share:
            self._begun.append((len(self.said), here))
        token = int(logprobs.argmax())
        if self._context.model.is_end(token):
            return token
        self.said.append(token)
        self._own.append(float(logprobs[token]))
        still = []
        for start, there in self._begun:
            since = tuple(self.said[start:])
            if since in self._several:
                self.whole = {since: sum(self._own[start:])}
                return self._stop(start, there)
            if any(form[: len(since)] == since for form in self._several):
                still.append((start, there))
        self._begun = still
        return token

    def _stop(self, place: int, logprobs: dict[int, float]) -> int:
        self.stopped, self.last = True, logprobs
        del self.said[place:]
        return self._end
