"""
Choosing between answers by the probabilities that a server gives for the first token.

A server weighs no text that is given, so choices that begin with the same token cannot be told
apart. Knows replies; nothing that connects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
from typing import Any, TYPE_CHECKING

from ..engine.request import make_request, MAX_LOGPROBS
from ..errors import ConfigError, RemoteError
from ..values import Images, TokenLogprob

if TYPE_CHECKING:
    from .vlm import RemoteVLM

#: tokens that are asked for: some models begin with a space, or a line end
PLACES = 3


def share(
    vlm: RemoteVLM, question: Any, images: Images, choices: Sequence[str], more: Mapping[str, Any]
) -> dict[str, float]:
    """Weigh choices; see :meth:`RemoteVLM.choose`."""
    if isinstance(choices, str) or not all(isinstance(c, str) and c.strip() for c in choices):
        raise ConfigError(f'choices is {repr(choices)[:80]}: expected a list of texts', 'choices')
    if not 2 <= len(choices) <= MAX_LOGPROBS or len(set(choices)) < len(choices):
        raise ConfigError(
            f'there are {len(choices)} choices: expected 2 to {MAX_LOGPROBS} different ones',
            'choices',
        )
    options = {**more, 'n_predict': PLACES, 'temperature': 0.0, 'logprobs': MAX_LOGPROBS}
    reply = vlm.submit(make_request(question, images, **options)).wait()
    if vlm.local is not None and reply.model == vlm.local.name:
        return vlm.local.choose(question, images, choices, **more)
    for token in reply.logprobs:
        if token.text.strip():
            return weigh(token, choices)
    raise RemoteError('the server answers with no word, so there is nothing to choose by')


def weigh(first: TokenLogprob, choices: Sequence[str]) -> dict[str, float]:
    """
    Share out the probabilities of the likeliest first tokens.

    :raises ConfigError: a token begins two choices
    :raises RemoteError: none of them begins a choice
    """
    weights = dict.fromkeys(choices, 0.0)
    for text, logprob in {first.text: first.logprob, **dict(first.top)}.items():
        begun = [c for c in choices if text.strip() and c.lstrip().startswith(text.strip())]
        if len(begun) > 1:
            raise ConfigError(
                f'choices: {begun[0]!r} and {begun[1]!r} begin alike, and a server tells the '
                'probability of the first token alone: number them, or use a model here',
                'choices',
            )
        for choice in begun:
            weights[choice] += math.exp(min(0.0, logprob))
    total = sum(weights.values())
    if not total:
        raise RemoteError(
            f'none of the {MAX_LOGPROBS} likeliest beginnings is one of the choices: say in the '
            'question which answers there are'
        )
    return {choice: weight / total for choice, weight in weights.items()}
