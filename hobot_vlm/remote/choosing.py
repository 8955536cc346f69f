"""
Choosing between given answers, as a server can.

`vlm serve` weighs them whole, others give the probabilities of the first token alone. By these,
choices that begin with the same token cannot be told apart, which is trouble. Knows requests and
replies; nothing that connects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
import math

from .dialect import Dialect
from .trouble import Trouble
from ..config import Config
from ..engine.request import folded, MAX_LOGPROBS, Request
from ..errors import ConfigError
from ..values import Reply, TokenLogprob

#: tokens that are asked for: some models begin with a space, or a line end
PLACES = 3


def as_asked(request: Request, config: Config, dialect: Dialect) -> tuple[Request, Config]:
    """
    Give a request as its server is asked it.

    :raises ConfigError: choices in a way that only a model here has
    """
    if not request.choices:
        return request, config
    if request.exact:
        raise ConfigError('exact is for models on this machine: leave it out', 'exact')
    if dialect.choices is not None:
        return request, config
    return (
        replace(request, choices=(), logprobs=MAX_LOGPROBS),
        replace(config, n_predict=PLACES, temperature=0.0),
    )


def chosen(reply: Reply, choices: Sequence[str], shares: Mapping[str, float]) -> Reply:
    """
    Give the reply to a request with choices.

    :param shares: as the server says; empty: by the logprobs of the reply
    :raises Trouble: nothing tells
    """
    found = {choice: shares.get(choice, 0.0) for choice in choices}
    if not any(found.values()):
        said = [token for token in reply.logprobs if token.text.strip()]
        if not said:
            raise Trouble('answers with no word, so there is nothing to choose by')
        found = weigh(said[0], choices)
    best = max(found, key=lambda choice: found[choice])
    return replace(reply, text=best, finish_reason='stop', choices=found, logprobs=())


def weigh(first: TokenLogprob, choices: Sequence[str]) -> dict[str, float]:
    """
    Share out the probabilities of the likeliest first tokens.

    :raises Trouble: a token begins two choices, or none
    """
    weights = dict.fromkeys(choices, 0.0)
    for text, logprob in {first.text: first.logprob, **dict(first.top)}.items():
        begun = [c for c in choices if folded(text) and folded(c).startswith(folded(text))]
        if len(begun) > 1:
            raise Trouble(
                f'tells the first token alone, and {begun[0]!r} and {begun[1]!r} begin alike: '
                'number the choices'
            )
        for choice in begun:
            weights[choice] += math.exp(min(0.0, logprob))
    total = sum(weights.values())
    if not total:
        raise Trouble(
            f'begins with none of the choices, by its {MAX_LOGPROBS} likeliest tokens: say in the '
            'question which answers there are'
        )
    return {choice: weight / total for choice, weight in weights.items()}
