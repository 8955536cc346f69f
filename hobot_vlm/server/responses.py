"""
What the model answers -> OpenAI's responses: one object, or its many named events.

As ``answers.py``, for the other of OpenAI's two forms. Nothing is kept between requests.
"""

from __future__ import annotations

from collections.abc import Sequence
import json
from typing import Any
import uuid

from .answers import Event, finish_reason, logprob_entries, shares, timings, Writer
from .openai import Asked
from .tools import ToolReader
from ..values import Reply, TextChunk, TokenLogprob


def _id(prefix: str) -> str:
    return f'{prefix}_{uuid.uuid4().hex}'


class ResponseWriter(Writer):
    """Writes one response."""

    prefix = 'resp'
    done = b''  # the event `response.completed` is the end

    def __init__(self, asked: Asked, model: str) -> None:
        super().__init__(asked, model)
        self.id = _id('resp')
        self._number = -1
        self._reader = ToolReader(asked.raw) if asked.toolbox else None
        self._items: list[Event] = []
        self._open: Event | None = None
        self._part: Event | None = None

    # -- whole ---------------------------------------------------------------------------------

    def whole(self, replies: Sequence[Reply]) -> Event:
        """Give the answer as one object."""
        (reply,) = replies
        for text, thinking in ((reply.thinking, True), (reply.text, False)):
            if text or not thinking:
                logprobs = () if thinking else reply.logprobs
                self.piece(0, TextChunk(text, thinking, logprobs))
        self.end(0, reply)
        return self._response(reply)

    # -- streamed ------------------------------------------------------------------------------

    def begin(self) -> list[Event]:
        """Give the events before the first piece."""
        response = self._response(None)
        return [
            self._event('response.created', response=response),
            self._event('response.in_progress', response=response),
        ]

    def piece(self, index: int, chunk: TextChunk) -> list[Event]:
        """Give the events of a piece of the answer."""
        if chunk.thinking:
            return self._add('reasoning', 'reasoning_text', chunk.text)
        if self._reader is None:
            return self._add('message', 'output_text', chunk.text, chunk.logprobs)
        words, arguments = self._reader.feed(chunk.text)
        if self._reader.call is None:
            return self._add('message', 'output_text', words) if words else []
        return self._add_call(arguments)

    def end(self, index: int, reply: Reply) -> list[Event]:
        """Give the events at the end of the answer."""
        self.note(reply)
        events = self._close(reply)
        if not self._items:  # an empty answer is a message still
            events += self._add('message', 'output_text', '') + self._close(reply)
        return events

    def finish(self, replies: Sequence[Reply]) -> list[Event]:
        """Give the last event, which holds everything."""
        response = self._response(replies[0])
        return [self._event(f'response.{response["status"]}', response=response)]

    # -- items ---------------------------------------------------------------------------------

    def _event(self, kind: str, /, **fields: Any) -> Event:
        self._number += 1
        return {'type': kind, 'sequence_number': self._number, **fields}

    def _here(self) -> Event:
        """Give the fields that say which item, and which part of it, an event is about."""
        assert self._open is not None
        place = {'item_id': self._open['id'], 'output_index': len(self._items) - 1}
        return place if self._part is None else {**place, 'content_index': 0}

    def _add(
        self, kind: str, part: str, text: str, found: Sequence[TokenLogprob] = ()
    ) -> list[Event]:
        events: list[Event] = []
        if self._open is None or self._open['type'] != kind:
            events += self._close(None)
            item: Event = {'id': _id('msg' if kind == 'message' else 'rs'), 'type': kind}
            item.update(status='in_progress', content=[])
            if kind == 'message':
                item['role'] = 'assistant'
            else:
                item['summary'] = []
            events += self._open_item(item)
            lists: Event = {'annotations': [], 'logprobs': []} if kind == 'message' else {}
            self._part = {'type': part, 'text': '', **lists}
            events.append(
                self._event('response.content_part.added', **self._here(), part=dict(self._part))
            )
        assert self._part is not None
        self._part['text'] += text
        fields: Event = {'delta': text}
        if kind == 'message':
            fields['logprobs'] = logprob_entries(found, self.asked.top_logprobs or 0)
            self._part['logprobs'] += fields['logprobs']
        if text:
            events.append(self._event(f'response.{part}.delta', **self._here(), **fields))
        return events

    def _add_call(self, arguments: str) -> list[Event]:
        assert self._reader is not None and self._reader.call is not None
        call, events = self._reader.call, []
        if self._open is None or self._open['type'] != 'function_call':
            events += self._close(None)
            item = {'id': _id('fc'), 'type': 'function_call', 'status': 'in_progress'}
            item |= {'call_id': call.id, 'name': call.name, 'arguments': ''}
            events += self._open_item(item)
        assert self._open is not None
        self._open['arguments'] += arguments
        if arguments:
            name = 'response.function_call_arguments.delta'
            events.append(self._event(name, **self._here(), delta=arguments))
        return events

    def _open_item(self, item: Event) -> list[Event]:
        self._items.append(item)
        self._open, self._part = item, None
        added = json.loads(json.dumps(item))  # as it is now: it will grow
        index = len(self._items) - 1
        return [self._event('response.output_item.added', output_index=index, item=added)]

    def _close(self, reply: Reply | None) -> list[Event]:
        """End the item that is being made, if there is one."""
        item, part, events = self._open, self._part, []
        if item is None:
            return []
        if part is not None:
            fields: Event = {'text': part['text']}
            if part['type'] == 'output_text':
                fields['logprobs'] = part['logprobs']
            events.append(self._event(f'response.{part["type"]}.done', **self._here(), **fields))
            done = self._event('response.content_part.done', **self._here(), part=part)
            events.append(done)
            item['content'].append(part)
        else:
            events.append(
                self._event(
                    'response.function_call_arguments.done',
                    **self._here(),
                    name=item['name'],
                    arguments=item['arguments'],
                )
            )
        whole = reply is None or finish_reason(reply) == 'stop'
        item['status'] = 'completed' if whole else 'incomplete'
        index = len(self._items) - 1
        events.append(self._event('response.output_item.done', output_index=index, item=item))
        self._open = self._part = None
        return events

    def _response(self, reply: Reply | None) -> Event:
        """Give the response as it is: begun, or whole."""
        options = self.asked.options
        status, details, counts = 'in_progress', None, None
        if reply is not None:
            whole = finish_reason(reply) == 'stop'
            status = 'completed' if whole else 'incomplete'
            details = None if whole else {'reason': 'max_output_tokens'}
            counts = {
                'input_tokens': reply.prompt_tokens,
                'input_tokens_details': {
                    'cached_tokens': reply.reused_tokens,
                    'cache_write_tokens': 0,
                },
                'output_tokens': reply.completion_tokens,
                'output_tokens_details': {'reasoning_tokens': 0},
                'total_tokens': reply.prompt_tokens + reply.completion_tokens,
            }
        response: Event = {
            'id': self.id,
            'object': 'response',
            'created_at': self.created,
            'status': status,
            'error': None,
            'incomplete_details': details,
            'instructions': None,
            'max_output_tokens': options.get('n_predict'),
            'metadata': {},
            'model': self.model,
            'output': list(self._items),
            'parallel_tool_calls': False,
            'previous_response_id': None,
            'store': False,
            'temperature': options.get('temperature'),
            'text': {'format': {'type': 'text'}},
            'tool_choice': 'auto' if self.asked.toolbox else 'none',
            'tools': [],
            'top_p': options.get('top_p'),
            'truncation': 'disabled',
            'usage': counts,
        }
        if reply is not None:
            response |= {'timings': timings(reply), **shares(reply)}
        return response
