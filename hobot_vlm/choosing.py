"""
Choosing between given answers by how likely the model finds each.

Knows ``VLM`` and the scorer; every choice is a sequence of its own, and the scheduler decodes what
they begin with once and all of them side by side.
"""

from __future__ import annotations

from collections.abc import Sequence as List
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from .engine.request import Request
from .engine.sequence import Sequence
from .errors import ConfigError, InferenceError, PromptTooLong
from .llama.context import MAX_SEQUENCES
from .llama.scorer import Scorer

if TYPE_CHECKING:
    from .engine.image_encoder import ImageJob
    from .vlm import VLM


def choose(vlm: VLM, request: Request, choices: List[str]) -> dict[str, float]:
    """Weigh choices; see :meth:`VLM.choose`."""
    _check(choices)
    if request.stop:
        raise ConfigError('choices are weighed whole: leave stop out', 'stop')
    config = vlm.maker.config_of(request)
    context = vlm.parts.context
    job = vlm.start_images(request)
    scorers, streams, sizes = [], [], []
    for choice in choices:
        tokens = vlm.tokenize(choice)
        sequence = Sequence(request, replace(config, n_predict=len(tokens)))
        scorer = Scorer(context, tokens)

        def make(job: ImageJob, sequence: Sequence = sequence, scorer: Scorer = scorer) -> None:
            images = job.images.result()
            made = vlm.maker.question(request, config, images, [], drop_oldest=False)
            vlm.engine.ready(sequence, made.prompt, made.thinking, scorer)

        scorers.append(scorer)
        sizes.append(len(tokens))
        streams.append(vlm.begin(sequence, None, make, job))
    for stream, size in zip(streams, sizes, strict=True):
        reply = stream.wait()
        if reply.completion_tokens == size:
            continue
        if reply.finish_reason == 'length':
            raise PromptTooLong(reply.prompt_tokens + size, context.n_ctx)
        raise InferenceError(f'the choices were not weighed to their end: {reply.finish_reason}')
    scores = np.array([scorer.logprob for scorer in scorers])
    weights = np.exp(scores - scores.max())
    shares = weights / weights.sum()
    return dict(zip(choices, map(float, shares), strict=True))


def _check(choices: List[str]) -> None:
    """
    Check what is to be chosen between.

    :raises ConfigError: no texts, fewer than two, too many, or one twice
    """
    if not isinstance(choices, (list, tuple)) or not all(
        isinstance(c, str) and c.strip() for c in choices
    ):
        raise ConfigError(f'choices is {repr(choices)[:80]}: expected a list of texts', 'choices')
    if not 2 <= len(choices) <= MAX_SEQUENCES or len(set(choices)) < len(choices):
        raise ConfigError(
            f'there are {len(choices)} choices: expected 2 to {MAX_SEQUENCES} different ones',
            'choices',
        )
