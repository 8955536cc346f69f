"""
What the model answers -> OpenAI's JSON: chat completions and the old completions.

A writer makes the events of one stream, or the one object of an answer that is not streamed. It
knows the request and the pieces of the answer; how they travel is ``app.py``'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
import json
import math
import time
from typing import Any
import uuid

from .openai import Asked
from .tools import ToolReader
from ..values import Progress, Reply, TextChunk, TokenLogprob

Event = dict[str, Any]

#: what stands for a probability of 0, whose logarithm JSON cannot say; OpenAI's number
LOWEST_LOGPROB = -9999.0

DONE = b'data: [DONE]\n\n'


def encoded(event: Event) -> bytes:
    """Give an event as server-sent events have it; those of responses have a name."""
    text = json.dumps(event, ensure_ascii=False, separators=(',', ':'))
    name = f'event: {event["type"]}\n' if 'type' in event else ''
    return f'{name}data: {text}\n\n'.encode('utf-8', 'replace')


def finish_reason(reply: Reply) -> str:
    """Give OpenAI's word for why an answer ended; one that was stopped is not whole either."""
    return 'stop' if reply.finish_reason == 'stop' else 'length'


def usage(replies: Sequence[Reply]) -> Event:
    """Count the tokens of the answers to one prompt, or to several."""
    prompt = sum(reply.prompt_tokens for reply in replies)
    completion = sum(reply.completion_tokens for reply in replies)
    return {
        'prompt_tokens': prompt,
        'completion_tokens': completion,
        'total_tokens': prompt + completion,
        'prompt_tokens_details': {
            'cached_tokens': sum(reply.reused_tokens for reply in replies),
            'image_tokens': sum(reply.image_tokens for reply in replies),
        },
    }


def timings(reply: Reply) -> Event:
    """Give the times of an answer by the names of llama.cpp's server, and by ours."""
    t = reply.timings
    new = reply.prompt_tokens - reply.reused_tokens
    said = reply.completion_tokens
    return {
        'cache_n': reply.reused_tokens,
        'prompt_n': new,
        'prompt_ms': t.prefill_ms,
        'prompt_per_token_ms': t.prefill_ms / new if new else 0.0,
        'prompt_per_second': 1000 * new / t.prefill_ms if t.prefill_ms else 0.0,
        'predicted_n': said,
        'predicted_ms': t.decode_ms,
        'predicted_per_token_ms': t.decode_ms / said if said else 0.0,
        'predicted_per_second': t.tokens_per_second,
        'queued_ms': t.queued_ms,
        'preprocess_ms': t.preprocess_ms,
        'encode_ms': t.encode_ms,
        'ttft_ms': t.ttft_ms,
    }


def shares(reply: Reply) -> Event:
    """Give how likely each choice is, where there was something to choose; a field of ours."""
    return {'choice_probabilities': reply.choices} if reply.choices else {}


def logprob_entries(found: Sequence[TokenLogprob], top: int) -> list[Event]:
    """Give the logarithms of probabilities as chat completions and responses have them."""
    return [
        {
            **_token(entry.text, entry.logprob),
            'top_logprobs': [_token(text, value) for text, value in entry.top[:top]],
        }
        for entry in found
    ]


def _token(text: str, logprob: float) -> Event:
    return {'token': text, 'logprob': _finite(logprob), 'bytes': list(text.encode())}


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LOWEST_LOGPROB


class Writer:
    """
    Writes chat completions.

    :param asked: the request
    :param model: name of the model that answers
    """

    kind = 'chat.completion'
    prefix = 'chatcmpl'
    done = DONE

    def __init__(self, asked: Asked, model: str) -> None:
        self.asked = asked
        self.id = f'{self.prefix}-{uuid.uuid4().hex}'
        self.model = model
        self.created = int(time.time())
        self._readers = [ToolReader(asked.raw) for _ in range(asked.n)] if asked.toolbox else []
        self._called: set[int] = set()

    def note(self, reply: Reply) -> None:
        """Name the model that answered, where several might; not where it is."""
        if reply.model:
            self.model = reply.model.partition('@http')[0]

    def begin(self) -> list[Event]:
        """Give the events before the first piece."""
        return [self._chunk(i, {'role': 'assistant', 'content': ''}) for i in range(self.asked.n)]

    def progress(self, index: int, progress: Progress) -> list[Event]:
        """Give the events that say how far the pictures of one answer are."""
        event = self._chunk(index, {})
        event['image_progress'] = {
            'encoded': progress.done,
            'total': progress.total,
            'seconds_left': round(progress.seconds_left, 1),
        }
        return [event]

    def piece(self, index: int, chunk: TextChunk) -> list[Event]:
        """Give the events of a piece of one answer."""
        if chunk.thinking:
            return [self._chunk(index, {'reasoning_content': chunk.text})]
        if self._readers:
            return self._tool_piece(index, chunk.text)
        return [self._chunk(index, {'content': chunk.text}, self._logprobs(chunk.logprobs))]

    def end(self, index: int, reply: Reply) -> list[Event]:
        """Give the events at the end of one answer."""
        reason = finish_reason(reply)
        if reason == 'stop' and index in self._called:
            reason = 'tool_calls'
        self.note(reply)
        event = self._chunk(index, {}, reason=reason)
        event['choices'][0] |= shares(reply)
        event['timings'] = timings(reply)
        return [event]

    def finish(self, replies: Sequence[Reply]) -> list[Event]:
        """Give the events after all answers."""
        if not self.asked.usage:
            return []
        return [{**self._head('.chunk'), 'choices': [], 'usage': self._usage(replies)}]

    def whole(self, replies: Sequence[Reply]) -> Event:
        """Give all answers as one object."""
        choices = [self._choice(index, reply) for index, reply in enumerate(replies)]
        self.note(replies[0])
        return {
            **self._head(),
            'choices': choices,
            'usage': self._usage(replies),
            'timings': timings(replies[0]),
        }

    def _usage(self, replies: Sequence[Reply]) -> Event:
        """Count the tokens; a prompt that has several answers is read once."""
        found = usage(replies)
        if self.asked.n > 1:
            once = usage(replies[:: self.asked.n])
            once['completion_tokens'] = found['completion_tokens']
            once['total_tokens'] = once['prompt_tokens'] + found['completion_tokens']
            return once
        return found

    def _head(self, suffix: str = '') -> Event:
        return {
            'id': self.id,
            'object': self.kind + suffix,
            'created': self.created,
            'model': self.model,
        }

    def _chunk(
        self, index: int, delta: Event, logprobs: Event | None = None, reason: str | None = None
    ) -> Event:
        choice: Event = {'index': index, 'delta': delta, 'finish_reason': reason}
        if logprobs is not None:
            choice['logprobs'] = logprobs
        return {**self._head('.chunk'), 'choices': [choice]}

    def _tool_piece(self, index: int, text: str) -> list[Event]:
        reader = self._readers[index]
        words, arguments = reader.feed(text)
        if reader.call is None:
            return [self._chunk(index, {'content': words})] if words else []
        events = []
        if index not in self._called:
            self._called.add(index)
            head = {'name': reader.call.name, 'arguments': ''}
            call = {'index': 0, 'id': reader.call.id, 'type': 'function', 'function': head}
            events.append(self._chunk(index, {'tool_calls': [call]}))
        if arguments:
            call = {'index': 0, 'function': {'arguments': arguments}}
            events.append(self._chunk(index, {'tool_calls': [call]}))
        return events

    def _choice(self, index: int, reply: Reply) -> Event:
        message: Event = {'role': 'assistant', 'content': reply.text}
        reason = finish_reason(reply)
        if self.asked.toolbox:
            reader = ToolReader(self.asked.raw)
            words, arguments = reader.feed(reply.text)
            message['content'] = words
            if reader.call:
                function = {'name': reader.call.name, 'arguments': arguments}
                call = {'id': reader.call.id, 'type': 'function', 'function': function}
                message |= {'content': None, 'tool_calls': [call]}
                reason = 'tool_calls' if reason == 'stop' else reason
        if reply.thinking:
            message['reasoning_content'] = reply.thinking
        return {
            'index': index,
            'message': message,
            'logprobs': self._logprobs(reply.logprobs),
            'finish_reason': reason,
            **shares(reply),
        }

    def _logprobs(self, found: Sequence[TokenLogprob]) -> Event | None:
        top = self.asked.top_logprobs
        return None if top is None else {'content': logprob_entries(found, top)}


class CompletionWriter(Writer):
    """Writes the old completions: plain text, several prompts."""

    kind = 'text_completion'
    prefix = 'cmpl'

    def __init__(self, asked: Asked, model: str) -> None:
        super().__init__(asked, model)
        self._offsets: dict[int, int] = {}

    def begin(self) -> list[Event]:
        """Give the events before the first piece: none."""
        return []

    def piece(self, index: int, chunk: TextChunk) -> list[Event]:
        """Give the events of a piece of one answer; reasoning has no place here."""
        if chunk.thinking:
            return []
        return [self._text(index, chunk.text, chunk.logprobs)]

    def end(self, index: int, reply: Reply) -> list[Event]:
        """Give the events at the end of one answer."""
        self.note(reply)
        event = self._text(index, '', (), finish_reason(reply))
        event['choices'][0] |= shares(reply)
        return [{**event, 'timings': timings(reply)}]

    def finish(self, replies: Sequence[Reply]) -> list[Event]:
        """Give the events after all answers."""
        if not self.asked.usage:
            return []
        return [{**self._head(), 'choices': [], 'usage': self._usage(replies)}]

    def _text(
        self, index: int, text: str, found: Sequence[TokenLogprob], reason: str | None = None
    ) -> Event:
        logprobs = self._old_logprobs(index, found)
        choice = {'index': index, 'text': text, 'logprobs': logprobs, 'finish_reason': reason}
        return {**self._head(), 'choices': [choice]}

    def _choice(self, index: int, reply: Reply) -> Event:
        choices = self._text(index, reply.text, reply.logprobs, finish_reason(reply))['choices']
        choice: Event = choices[0]
        return choice | shares(reply)

    def _old_logprobs(self, index: int, found: Sequence[TokenLogprob]) -> Event | None:
        top = self.asked.top_logprobs
        if top is None:
            return None
        offsets = []
        for entry in found:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(entry.text)
        return {
            'tokens': [entry.text for entry in found],
            'token_logprobs': [_finite(entry.logprob) for entry in found],
            'top_logprobs': [
                {text: _finite(value) for text, value in entry.top[:top]} for entry in found
            ],
            'text_offset': offsets,
        }
