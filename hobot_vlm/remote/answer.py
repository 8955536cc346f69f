"""
The events of one chat completion -> chunks, and the reply that they come to.

Knows OpenAI's fields and what servers make of them; nothing that connects. A field of another type
than it should have is trouble, one that is not known is passed over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

from .events import END, Event
from .trouble import shortened, Trouble
from ..engine.detokenizer import AnswerText
from ..engine.request import Request
from ..values import Progress, Reply, TextChunk, Timings, TokenLogprob

#: characters of one token at most: the longest of usual vocabularies are 128 spaces. A server that
#: says more than ``n_predict`` of them does not keep to it
MOST_CHARACTERS = 256
#: words of servers for an answer that they gave up
FAILED = ('abort', 'error', 'content_filter', 'failed')
#: where a server says how far it is: `vlm serve` with tiles, llama.cpp with tokens
PROGRESS = {'image_progress': 'encoded', 'prompt_progress': 'processed'}
#: steps that are believed: the tokens of the largest context
MOST_STEPS = 1 << 20
#: where reasoning stands: LMDeploy, SGLang and llama.cpp; vLLM since 0.12
REASONING = ('reasoning_content', 'reasoning')


class Answer:
    """
    Reads one answer.

    :param submitted: by ``perf_counter``, when the question was asked
    """

    def __init__(self, request: Request, n_predict: int, submitted: float) -> None:
        self.request = request  # as the server is asked it
        self._most = n_predict * MOST_CHARACTERS
        self._submitted = submitted
        self._split = AnswerText()
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._reported = 0
        self._usage: Mapping[str, Any] = {}
        self._times: Mapping[str, Any] = {}
        self._first = self._last = 0.0
        self._characters = 0
        #: events that said something
        self.pieces = 0
        #: how far the server is with its pictures, and how much it did before the first word
        self.progress = Progress()
        self.done = 0
        self._reason = ''
        self.model = ''
        self.shares: dict[str, float] = {}  # of the choices, as the server says

    @property
    def text(self) -> str:
        """What there is of the answer."""
        return ''.join(self._texts)

    @property
    def complete(self) -> bool:
        """
        Whether the answer is whole: the server gave a reason for its end.

        ``[DONE]`` alone is none: llama-cpp-python ends an answer so when another request comes.
        """
        return bool(self._reason)

    def feed(self, event: Event) -> list[TextChunk]:
        """
        Give the chunks of an event.

        :raises Trouble: it is an error, or cannot be understood
        """
        if event is END:
            return []
        if event.get('error') or event.get('object') == 'error':
            error = event.get('error') or event
            why = error.get('message') if isinstance(error, dict) else error
            raise Trouble(f'says: {shortened(why)}', again=False)
        self._note(event)
        choices = event.get('choices')
        if choices is None or choices == [] or self._reason:  # counts, or what comes too late
            return []
        if not isinstance(choices, list) or not isinstance(choices[0], dict):
            raise Trouble('sends choices that are none', again=True)
        choice = choices[0]
        if isinstance(choice.get('choice_probabilities'), dict):
            self._note({'choice_probabilities': choice['choice_probabilities']})
        said = choice.get('delta') or choice.get('message') or {}
        if not isinstance(said, dict):
            raise Trouble('sends a delta that is no object', again=True)
        logprobs = self._read_logprobs(choice.get('logprobs'))
        thought = next((_text(said.get(name)) for name in REASONING if said.get(name)), '')
        chunks = [TextChunk(thought, thinking=True)] if thought else []
        content = _text(said.get('content'))
        if content:
            if self.request.logprobs and not logprobs and not self._logprobs:
                raise Trouble('gives no logprobs, and they are wanted')
            chunks += self._split.feed(content)
        if thought or content:
            self._count(thought + content)
        reason = choice.get('finish_reason') or ('stop' if choice.get('message') else None)
        if reason is not None:
            if reason in FAILED:
                raise Trouble(f'ends the answer with {shortened(reason)}', again=True)
            self._reason = 'length' if reason == 'length' else 'stop'
        self._logprobs += logprobs
        if len(self._logprobs) > self._most:
            raise Trouble('sends more logprobs than tokens were asked for')
        return self._given(chunks)

    def finish(self) -> list[TextChunk]:
        """Give what is left when the answer is over."""
        return self._given(self._split.finish())

    def _given(self, chunks: Sequence[TextChunk]) -> list[TextChunk]:
        found = []
        for chunk in chunks:
            if not chunk.thinking and self._reported < len(self._logprobs):
                fresh = tuple(self._logprobs[self._reported :])
                self._reported += len(fresh)
                chunk = TextChunk(chunk.text, False, fresh)
            (self._thoughts if chunk.thinking else self._texts).append(chunk.text)
            found.append(chunk)
        return found

    def _count(self, text: str) -> None:
        self._last = perf_counter()
        self._first = self._first or self._last
        self.pieces += 1
        self._characters += len(text)
        if self._characters > self._most:
            raise Trouble('says more than n_predict allows')

    def _note(self, event: Event) -> None:
        """Keep the counts and times that a server gives, at the end or all along."""
        if isinstance(event.get('model'), str):
            self.model = event['model'][:200]
        if isinstance(event.get('usage'), dict):
            self._usage = event['usage']
        if isinstance(event.get('timings'), dict):
            self._times = event['timings']
        shares = event.get('choice_probabilities')
        if isinstance(shares, dict):
            self.shares = {str(name): _number(share) for name, share in shares.items()}
        for name, count in PROGRESS.items():
            found = event.get(name)
            if isinstance(found, dict):
                done, total = _whole(found.get(count)), _whole(found.get('total'))
                if self.done < done <= total <= MOST_STEPS:
                    self.done = done
                if name == 'image_progress':
                    left = _number(found.get('seconds_left'))
                    self.progress = Progress(min(done, total), total, left)

    def _read_logprobs(self, found: Any) -> list[TokenLogprob]:
        if not self.request.logprobs or not isinstance(found, dict):
            return []
        try:
            if isinstance(found.get('content'), list):
                return [
                    TokenLogprob(
                        str(entry['token']),
                        float(entry['logprob']),
                        tuple(
                            (str(top['token']), float(top['logprob']))
                            for top in (entry.get('top_logprobs') or ())[: self.request.logprobs]
                        ),
                    )
                    for entry in found['content']
                ]
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise Trouble('sends logprobs that are none', again=True) from exc
        return []

    # -- the sum -------------------------------------------------------------------------------

    def reply(self, reason: str, queued: float, preprocess: float) -> Reply:
        """
        Sum up.

        :param reason: why it ended; empty: as the server says
        :param queued: seconds until it was sent
        :param preprocess: seconds of the work on its pictures
        """
        usage, times = self._usage, self._times
        details = usage.get('prompt_tokens_details')
        details = details if isinstance(details, dict) else {}
        tokens = _whole(usage.get('completion_tokens')) or self.pieces
        decode = self._last - self._first

        def ms(seconds: float) -> float:
            return round(1000 * max(0.0, seconds), 3)

        return Reply(
            self.text,
            reason or self._reason or 'stop',
            _whole(usage.get('prompt_tokens')),
            _whole(details.get('image_tokens')),
            tokens,
            _whole(details.get('cached_tokens')),
            Timings(
                ms(queued) + _number(times.get('queued_ms')),
                ms(preprocess) + _number(times.get('preprocess_ms')),
                _number(times.get('encode_ms')),
                _number(times.get('prompt_ms')),
                ms(self._first - self._submitted) if self._first else 0.0,
                ms(decode),
                round((tokens - 1) / decode, 2) if decode > 0 and tokens > 1 else 0.0,
            ),
            ''.join(self._thoughts),
            logprobs=tuple(self._logprobs),
        )


def _text(content: Any) -> str:
    """Give the text of a delta; some servers send parts."""
    if content is None:
        return ''
    if isinstance(content, list):
        return ''.join(_text(part.get('text')) for part in content if isinstance(part, dict))
    if not isinstance(content, str):
        raise Trouble(f'sends {type(content).__name__} where text belongs', again=True)
    # half characters, as JSON's \ud83d makes them, can be shown nowhere
    return content.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')


def _whole(value: Any) -> int:
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53
    return value if good else 0


def _number(value: Any) -> float:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e12
    return float(value) if good else 0.0
