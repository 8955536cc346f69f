"""
How likely given answers are: what stands in the place of a sampler, and notes chances.

Knows logits and token ids; nothing of what is chosen between.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .context import Context, log_softmax
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
        logits = self._context.logits(entry)
        if not np.isfinite(logits.max()):
            raise InferenceError(
                f'{self._context.model.path} gives numbers that are not finite: fetch it again'
            )
        return log_softmax(logits)

    def forced(self) -> list[int]:
        """Give nothing: every token is to be weighed."""
        return []

    def close(self) -> None:
        """Do nothing; a sampler would be freed."""


@dataclass
class Place:
    """
    Where forms may stand: how likely each is, as far as what was said there tells.

    ``start`` counts the tokens before it. ``logprob`` is the logarithm of the probability of the
    first ``weighed`` tokens of a form, and so at most that of the whole.
    """

    start: int
    likely: bool = False  # that one of the forms stands there
    logprob: dict[tuple[int, ...], float] = field(default_factory=dict)
    weighed: dict[tuple[int, ...], int] = field(default_factory=dict)

    def whole(self) -> list[tuple[int, ...]]:
        """Give the forms that are weighed to their end."""
        return [form for form, number in self.weighed.items() if number == len(form)]


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
        self._forms = list(forms)
        self._firsts = list({form[0] for form in forms})
        self._singles = list({form[0] for form in forms if len(form) == 1})
        self._share = share
        self._end = context.model.end()
        self._own: list[float] = []  # logarithm of the probability of each token that was said
        self.said: list[int] = []
        #: where the forms stand: at the beginning, unless it has come to another place
        self.place = Place(0)
        self._open: list[Place] = []  # where forms go on with what was said

    def sample(self, entry: int = -1) -> int:
        """Give the likeliest token, or the end where it has come to the place."""
        logprobs = self._logprobs(entry)
        here = Place(len(self.said)) if self.said else self.place
        self._open.append(here)
        # 1. each form that goes on with what was said is known by one more token
        for place in self._open:
            since, before = tuple(self.said[place.start :]), sum(self._own[place.start :])
            for form in self._forms:
                if len(form) > len(since) and form[: len(since)] == since:
                    place.logprob[form] = before + float(logprobs[form[len(since)]])
                    place.weighed[form] = len(since) + 1
        # 2. this may be the place
        chances = np.exp(logprobs)
        if chances[self._singles].sum() >= self._share:
            return self._stop(here)
        here.likely = chances[self._firsts].sum() >= self._share
        # 3. say a token, and see whether a form is said whole by it
        token = int(logprobs.argmax())
        if self._context.model.is_end(token):
            return token
        self.said.append(token)
        self._own.append(float(logprobs[token]))
        still = []
        for place in self._open:
            since = tuple(self.said[place.start :])
            if place.likely and since in self._forms:
                return self._stop(place)
            if any(form[: len(since)] == since for form in self._forms):
                still.append(place)
        self._open = still
        return token

    def _stop(self, place: Place) -> int:
        self.place = place
        del self.said[place.start :]
        return self._end
