"""
The inside of a model, for tests that look at what is decoded.

One place that knows where ``VLM`` keeps its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import time

from hobot_vlm import VLM
from hobot_vlm.engine.request import Request
from hobot_vlm.engine.sequence import Sequence
from hobot_vlm.engine.stream import Stream
from hobot_vlm.llama.context import Context, Outcome, Run
from hobot_vlm.llama.kv_cache import KvCache, Slot
from hobot_vlm.loader import Parts
from hobot_vlm.prompt_maker import Made, PromptMaker
from hobot_vlm.values import ImageEmbedding
from hobot_vlm.vlm import make_request
import numpy as np
import numpy.typing as npt


def parts(vlm: VLM) -> Parts:
    """Give encoder, decoder, template and family."""
    return vlm.parts


def cache(vlm: VLM) -> KvCache:
    """Give the KV cache."""
    return vlm._cache


def slots(vlm: VLM) -> list[Slot]:
    """Give the slots of the KV cache, the one used last at the end."""
    return vlm._cache._slots


def sequence_of(stream: Stream) -> Sequence:
    """Give what the scheduler has of an answer."""
    sequence: Sequence = stream._cancel.args[0]
    return sequence


def empty(vlm: VLM) -> None:
    """Forget all cells."""
    vlm.engine.call(lambda: [vlm._cache.rewind(slot, 0) for slot in slots(vlm)])


def embed(vlm: VLM, *pictures: object, **options: object) -> list[ImageEmbedding]:
    """Give the embeddings of pictures."""
    config = PromptMaker(vlm.parts).config_of(Request('.', options=options))
    images = vlm._images.submit(pictures, config, 0).images.result()
    for image in images:
        for tile in image.tiles:
            tile.encoded.result()
    return images


def prompt(vlm: VLM, question: object, pictures: object = None, **more: object) -> Made:
    """Make the prompt of a question, with its pictures encoded."""
    maker = PromptMaker(vlm.parts)
    request = make_request(question, pictures, **more)
    config = maker.config_of(request)
    images = embed(vlm, *request.sources, **{'max_tiles': config.max_tiles, 'fit': config.fit})
    return maker.question(request, config, images, [], drop_oldest=False)


@contextmanager
def batches(vlm: VLM) -> Iterator[list[list[Run]]]:
    """Note every batch that is decoded."""
    seen: list[list[Run]] = []
    context = vlm.parts.context
    run = context.run

    def noting(runs: list[Run]) -> object:
        seen.append(list(runs))
        return run(runs)

    context.run = noting
    try:
        yield seen
    finally:
        del context.run


@contextmanager
def stepping(vlm: VLM, may_step: Callable[[], bool]) -> Iterator[None]:
    """
    Decode only while something is so, which the engine's thread asks before each batch.

    All else goes on meanwhile: who comes is let in; who is cancelled or out of time leaves.
    """
    context = vlm.parts.context
    run, before = context.run, context.__dict__.get('run')
    over = False

    def waiting(runs: list[Run]) -> Outcome:
        if over or may_step():
            return run(runs)
        time.sleep(0.001)
        return Outcome.STOPPED

    context.run = waiting
    try:
        yield
    finally:
        over = True
        if before is None:
            del context.run
        else:
            context.run = before


@contextmanager
def unfinished(vlm: VLM, tokens: int = 30) -> Iterator[None]:
    """
    Decode nothing while a running answer has so many tokens, until the block is left.

    So no longer one has ended before a test cancels it, however slow the test is.
    """

    def may_step() -> bool:
        return all(len(s.tokens) < tokens for s in vlm.engine._scheduler.running)

    with stepping(vlm, may_step):
        yield


@contextmanager
def at_once(vlm: VLM, requests: int) -> Iterator[None]:
    """Decode nothing until so many requests have their prompts: they run side by side."""
    begun = False

    def may_step() -> bool:
        nonlocal begun
        scheduler = vlm.engine._scheduler
        ready = [s for s in (*scheduler.running, *scheduler.waiting) if s.prompt]
        begun = begun or len(ready) >= requests
        return begun

    with stepping(vlm, may_step):
        yield


class Refused(Exception):
    """What an answer has to follow did not let it be the text that was wished."""


@contextmanager
def wishes(vlm: VLM) -> Iterator[Callable[[str], None]]:
    """
    Let the decoder want an answer: give a function that says which text the next one is to be.

    At each place the likeliest token, by far, is the next one of that text, or an end token behind
    it. All else is as it always is, the constraints of the request among it: where the answer
    becomes another text, they refused this one, and the request ends with ``Refused``. One request
    at a time.
    """
    model, context = vlm.parts.model, vlm.parts.context
    logits_of = context.logits
    end = next(token for token in range(model.n_vocab) if model.is_end(token))
    wish, begun = '', 0

    def want(text: str) -> None:
        nonlocal wish, begun
        wish, begun = text, 0

    def wished(entry: int) -> npt.NDArray[np.float32]:
        nonlocal begun
        logits = logits_of(entry)
        ids = slots(vlm)[-1].ids
        begun = begun or len(ids)  # behind the prompt
        written = b''.join(map(model.piece, ids[begun:]))
        if not wish.encode().startswith(written):
            raise Refused(written)
        rest = wish.encode()[len(written) :]
        tokens = model.tokenize(rest.decode('utf-8', 'ignore')) if rest else []
        logits[:] = 0.0
        logits[tokens[0] if tokens else end] = 100.0
        return logits

    context.logits = wished
    try:
        yield want
    finally:
        del context.logits


def sizes(seen: list[list[Run]]) -> list[int]:
    """Count the entries of each batch."""
    return [sum(len(run.entries) for run in runs) for runs in seen]


__all__ = [
    'Context',
    'Run',
    'Refused',
    'at_once',
    'batches',
    'cache',
    'embed',
    'empty',
    'parts',
    'prompt',
    'sequence_of',
    'sizes',
    'slots',
    'stepping',
    'unfinished',
    'wishes',
]
