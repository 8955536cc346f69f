"""
Many questions, some of them side by side.

Knows ``VLM`` and nothing below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TYPE_CHECKING

from .engine.request import Request
from .errors import ConfigError, PromptError, VlmError
from .llama.context import MAX_SEQUENCES
from .values import Images, Reply

if TYPE_CHECKING:
    from .engine.image_encoder import ImageJob
    from .engine.stream import Stream
    from .vlm import VLM

#: questions whose pictures are encoded before it is their turn
AHEAD = 3


def ask_many(
    vlm: VLM, questions: Sequence[tuple[Any, Images] | Request], parallel: int, more: Any
) -> list[Reply | VlmError]:
    """Answer questions; see :meth:`VLM.ask_many`."""
    check(questions, parallel)
    jobs: list[ImageJob | VlmError] = []
    streams: list[Stream | VlmError] = []
    replies: list[Reply | VlmError] = []
    requests = [as_request(question, more) for question in questions]
    for i, request in enumerate(requests):
        if i >= parallel:
            replies.append(_settled(streams[i - parallel]))
        jobs += [_job(vlm, ahead) for ahead in requests[len(jobs) : i + 1 + AHEAD]]
        streams.append(_stream(vlm, request, jobs[i]))
    return replies + [_settled(stream) for stream in streams[len(replies) :]]


def check(questions: object, parallel: object) -> None:
    """
    Check what many questions are asked with.

    :raises ConfigError: ``parallel`` cannot be
    :raises PromptError: the questions are no list
    """
    if not isinstance(parallel, int) or not 1 <= parallel <= MAX_SEQUENCES:
        raise ConfigError(
            f'parallel is {repr(parallel)[:80]}: expected 1 to {MAX_SEQUENCES}', 'parallel'
        )
    if not isinstance(questions, (list, tuple)):
        raise PromptError(
            f'the questions are of type {type(questions).__name__}: expected a list of questions, '
            'each with its picture, or None: [(question, picture), ...]'
        )


def as_request(question: Any, more: Any) -> Request | VlmError:
    """Give the request of one of many questions, or what is wrong with it."""
    from .vlm import make_request

    if isinstance(question, Request):
        return question
    if not isinstance(question, tuple) or len(question) != 2:
        return PromptError(
            f'one of the questions is of type {type(question).__name__}: expected (question, '
            'picture), or (question, None)'
        )
    try:
        return make_request(*question, **more)
    except VlmError as exc:
        return exc


def _job(vlm: VLM, request: Request | VlmError) -> ImageJob | VlmError:
    """Begin to encode the pictures of a request."""
    try:
        return request if isinstance(request, VlmError) else vlm.start_images(request)
    except VlmError as exc:
        return exc


def _stream(vlm: VLM, request: Request | VlmError, job: ImageJob | VlmError) -> Stream | VlmError:
    if isinstance(request, VlmError) or isinstance(job, VlmError):
        return request if isinstance(request, VlmError) else job  # type: ignore[return-value]
    try:
        return vlm.submit(request, job=job)
    except VlmError as exc:
        return exc


def _settled(stream: Stream | VlmError) -> Reply | VlmError:
    """Wait for the end of a stream; give the error that ended it instead of raising it."""
    try:
        return stream if isinstance(stream, VlmError) else stream.wait()
    except VlmError as exc:
        return exc
