"""
How likely a given answer is: a sampler that always chooses its tokens and notes their chance.

Knows logits and token ids; nothing of what is chosen between.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .context import Context
from ..errors import InferenceError
from ..values import TokenLogprob


class Scorer:
    """
    Stands in the place of a sampler.

    ``logprob`` is the natural logarithm of the probability of all tokens until now, one after the
    other, before temperature and filters.

    :param tokens: at least one
    """

    reported: list[TokenLogprob] = []
    form, whole = '', False  # the answer has no form, and ends with its last token

    def __init__(self, context: Context, tokens: Sequence[int]):
        self._context = context
        self._left = list(tokens)
        self.logprob = 0.0

    def sample(self, entry: int = -1) -> int:
        """Give the next token, whatever the logits of an entry say, and note what they say."""
        token = self._left.pop(0)
        logits = self._context.logits(entry).astype(np.float64)
        largest = logits.max()
        if not np.isfinite(largest):
            raise InferenceError(
                f'{self._context.model.path} gives numbers that are not finite: fetch it again'
            )
        self.logprob += float(logits[token] - largest - np.log(np.exp(logits - largest).sum()))
        return token

    def forced(self) -> list[int]:
        """Give nothing: every token is to be weighed."""
        return []

    def close(self) -> None:
        """Do nothing; a sampler would be freed."""
