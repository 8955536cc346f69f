"""
A server that misbehaves: what it does, the last user message names.

Plain sockets, so that it can break what a library would keep whole. ``WAYS`` lists the ways.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
import json
import socket
import socketserver
import threading
import time

ANSWER = 'The door is open.'
PIECES = ('The ', 'door is', ' open.')

#: name -> what the server does with the socket
WAYS: dict[str, Callable[[Visit], None]] = {}


class Visit:
    """One request for an answer, and the socket that it came by."""

    def __init__(self, sock: socket.socket, body: dict, number: int, over: threading.Event):
        self.sock = sock
        self.body = body
        self.number = number  # of requests for this way, from 1
        self.over = over

    def send(self, text: str | bytes) -> None:
        self.sock.sendall(text.encode() if isinstance(text, str) else text)

    def head(self, status='200 OK', kind='text/event-stream', **more) -> None:
        lines = [f'HTTP/1.1 {status}', f'Content-Type: {kind}', 'Connection: close']
        lines += [f'{name.replace("_", "-")}: {value}' for name, value in more.items()]
        self.send('\r\n'.join(lines) + '\r\n\r\n')

    def event(self, event: object) -> None:
        self.send(f'data: {json.dumps(event)}\n\n')

    def delta(self, reason=None, **delta) -> None:
        self.event({'choices': [{'index': 0, 'delta': delta, 'finish_reason': reason}]})

    def pieces(self, count: int = 3) -> None:
        for piece in PIECES[:count]:
            self.delta(content=piece)

    def end(self, usage=True) -> None:
        self.delta('stop')
        if usage:
            counts = {'prompt_tokens': 9, 'completion_tokens': 4}
            self.event({'choices': [], 'usage': counts})
        self.send('data: [DONE]\n\n')

    def answer(self) -> None:
        self.head()
        self.pieces()
        self.end()

    def whole(self, status: str, body: object, **more) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.head(status, 'application/json', Content_Length=len(data), **more)
        self.send(data)

    def wait(self) -> None:
        """Say nothing until the client goes away."""
        self.sock.settimeout(10)
        with suppress(OSError):
            while self.sock.recv(65536):
                pass


def way(function: Callable[[Visit], None]) -> Callable[[Visit], None]:
    WAYS[function.__name__] = function
    return function


@contextmanager
def odd_server() -> Iterator[OddServer]:
    """Run it on a free port."""
    server = OddServer(('127.0.0.1', 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


class OddServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, *args):
        super().__init__(*args)
        self.counts: Counter[str] = Counter()
        self.bodies: list[dict] = []
        self.headers: list[str] = []
        self.over = threading.Event()
        self.models: object = {'data': [{'id': 'odd', 'owned_by': 'vllm'}]}

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self.server_address[1]}/v1'


class _Handler(socketserver.BaseRequestHandler):
    server: OddServer

    def handle(self) -> None:
        with suppress(OSError):
            self._handle()

    def _handle(self) -> None:
        data = b''
        while b'\r\n\r\n' not in data:
            more = self.request.recv(65536)
            if not more:
                return
            data += more
        head, _, body = data.partition(b'\r\n\r\n')
        lines = head.decode('latin-1').split('\r\n')
        fields = dict(line.lower().split(': ', 1) for line in lines[1:])
        self.server.headers.append(head.decode('latin-1'))
        while len(body) < int(fields.get('content-length', 0)):
            body += self.request.recv(65536)
        if lines[0].startswith('GET'):
            Visit(self.request, {}, 0, self.server.over).whole('200 OK', self.server.models)
            return
        asked = json.loads(body)
        self.server.bodies.append(asked)
        content = asked['messages'][-1]['content']
        name = content if isinstance(content, str) else content[-1]['text']
        self.server.counts[name] += 1
        visit = Visit(self.request, asked, self.server.counts[name], self.server.over)
        WAYS.get(name, Visit.answer)(visit)


# -- ways that have an answer ---------------------------------------------------------------------


@way
def good(visit):
    visit.answer()


@way
def no_usage(visit):
    visit.head()
    visit.pieces()
    visit.end(usage=False)


@way
def other_orders(visit):
    visit.head('200 OK', 'text/event-stream; charset=utf-8')
    visit.send(': hello\r\n\r\nid: 7\r\nevent: message\r\nretry: 3\r\n')
    for piece in PIECES:
        event = {'usage': None, 'choices': [{'finish_reason': None, 'delta': {'content': piece}}]}
        visit.send(f'data:{json.dumps(event)}\r\n\r\n')
    visit.send('data: {"choices": [{"finish_reason": "stop", "delta": {}}]}\r\n\r\n')
    visit.send('data: [DONE]\r\n\r\n')


@way
def reasoning_content(visit):
    visit.head()
    visit.delta(role='assistant', content=None, reasoning_content='A door')
    visit.delta(reasoning_content=' it is.')
    visit.pieces()
    visit.end()


@way
def reasoning(visit):
    visit.head()
    visit.delta(reasoning='A door it is.')
    visit.pieces()
    visit.end()


@way
def think_marks(visit):
    visit.head()
    for piece in ('<thi', 'nk>A door', ' it is.</think>\n\n', *PIECES):
        visit.delta(content=piece)
    visit.end()


@way
def empty_choices(visit):
    visit.head()
    visit.event({'choices': []})
    visit.event({'object': 'chat.completion.chunk'})
    for piece in PIECES:
        visit.delta(content=piece)
        visit.event({'choices': [], 'usage': {'completion_tokens': 'many'}})
        visit.delta(content='')
    visit.end()


@way
def wrong_content_type(visit):
    visit.head(kind='text/plain')
    visit.pieces()
    visit.end()


@way
def not_streamed(visit):
    message = {'role': 'assistant', 'content': ANSWER}
    choice = {'index': 0, 'message': message, 'finish_reason': 'stop'}
    visit.whole('200 OK', {'choices': [choice], 'usage': {'completion_tokens': 4}})


@way
def parts_for_content(visit):
    visit.head()
    visit.delta(content=[{'type': 'text', 'text': ANSWER[:5]}, {'type': 'text'}])
    visit.delta(content=ANSWER[5:])
    visit.end()


@way
def two_done(visit):
    visit.answer()
    visit.send('data: [DONE]\n\ndata: [DONE]\n\ndata: {oops\n\n')


@way
def no_done(visit):
    visit.head()
    visit.pieces()
    visit.delta('stop')


@way
def no_done_and_stays(visit):
    no_done(visit)
    visit.wait()


@way
def no_last_line_end(visit):
    visit.head()
    visit.pieces()
    visit.send('data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}')


@way
def one_byte_at_a_time(visit):
    visit.head()
    event = {'choices': [{'delta': {'content': ANSWER}}]}
    for byte in f'data: {json.dumps(event)}\n\n'.encode():
        visit.send(bytes([byte]))
    visit.end()


@way
def goes_on_after_the_end(visit):
    visit.head()
    visit.pieces()
    visit.delta('stop')
    while not visit.over.is_set():
        visit.delta(content='more')
        time.sleep(0.01)


@way
def over_several_lines(visit):
    visit.head()
    for piece in PIECES:
        text = json.dumps({'choices': [{'delta': {'content': piece}}]}, indent=1)
        visit.send(''.join(f'data: {line}\n' for line in text.split('\n')) + '\n')
    visit.end()


@way
def busy_at_first(visit):
    if visit.number == 1:
        visit.whole('429 Too Many Requests', {'error': {'message': 'busy'}}, Retry_After='0.2')
    else:
        visit.answer()


@way
def busy_once(visit):
    busy_at_first(visit)


@way
def slow_with_progress(visit):
    visit.head()
    for done in range(8):
        visit.event({'choices': [], 'image_progress': {'encoded': done, 'total': 8}})
        time.sleep(0.2)
    visit.pieces()
    visit.end()


@way
def fails_at_first(visit):
    if visit.number == 1:
        visit.whole('500 Internal Server Error', {'detail': 'oops'})
    else:
        visit.answer()


@way
def closes_at_first(visit):
    if visit.number > 1:
        visit.answer()


# -- ways that have none: why, in the words of the error ------------------------------------------

#: way -> what the error says; the fallback answers
NO_ANSWER = {
    'cut_at_once': 'breaks off',
    'cut_before_a_word': 'gives no answer',
    'cut_in_an_event': 'gives no answer',
    'wrong_json': 'no JSON',
    'an_array': 'where an object belongs',
    'a_number_for_text': 'where text belongs',
    'choices_of_another_kind': 'choices that are none',
    'status_500': 'answers 500 .the GPU is on fire',
    'status_500_html': 'answers 500 .<html>',
    'loading': 'answers 503 .Loading model',
    'busy_for_an_hour': 'answers 429',
    'wrong_key': 'HOBOT_VLM_REMOTE_KEY',
    'no_such_model': 'answers 404 .no model odd',
    'refused': 'answers 400 .temperature is odd',
    'silent': 'remote_timeout',
    'slow_head': 'remote_timeout',
    'pings_for_ever': 'remote_timeout',
    'nothing_for_ever': 'remote_timeout',
    'progress_without_end': 'remote_timeout',
    'html': 'gives no answer',
    'huge_line': 'more than 4 MB',
    'huge_error': 'more than 1 MB',
    'huge_head': 'breaks off',
    'redirect': 'sends on to http://elsewhere/v1',
    'redirect_for_good': 'sends on to',
    'error_event': 'out of memory',
    'error_line': 'out of memory',
    'compressed': 'compresses',
    'no_http': 'breaks off',
    'broken_chunks': 'breaks off',
    'too_short': 'breaks off',
    'filtered': 'content_filter',
    'done_at_once': 'gives no answer',
}


@way
def cut_at_once(visit):
    pass


@way
def done_at_once(visit):
    visit.head()
    visit.delta(role='assistant')
    visit.send('data: [DONE]\n\n')


@way
def cut_before_a_word(visit):
    visit.head()
    visit.delta(role='assistant', content='')


@way
def cut_in_an_event(visit):
    visit.head()
    visit.send('data: {"choices": [{"delta": {"content": "The')


@way
def wrong_json(visit):
    visit.head()
    visit.send('data: {oops}\n\n')
    visit.pieces()
    visit.end()


@way
def an_array(visit):
    visit.head()
    visit.event([1, 2])


@way
def a_number_for_text(visit):
    visit.head()
    visit.delta(content=7)


@way
def choices_of_another_kind(visit):
    visit.head()
    visit.event({'choices': 'many'})


@way
def status_500(visit):
    visit.whole('500 Oops', {'error': {'message': 'the GPU is on fire'}})


@way
def status_500_html(visit):
    data = b'<html>' + b'\xff' * 5000
    visit.head('500 Oops', 'text/html', Content_Length=len(data))
    visit.send(data)


@way
def loading(visit):
    visit.whole('503 Service Unavailable', {'error': {'message': 'Loading model'}})


@way
def busy_for_an_hour(visit):
    visit.whole('429 Too Many Requests', {'error': 'busy'}, Retry_After='3600')


@way
def wrong_key(visit):
    visit.whole('401 Unauthorized', {'error': {'message': 'who are you?'}})


@way
def no_such_model(visit):
    visit.whole('404 Not Found', {'message': 'no model odd', 'object': 'error'})


@way
def refused(visit):
    visit.whole('400 Bad Request', {'detail': 'temperature is odd'})


@way
def silent(visit):
    visit.wait()


@way
def slow_head(visit):
    for byte in b'HTTP/1.1 200 OK\r\n' + b'A: b\r\n' * 1000:
        visit.send(bytes([byte]))
        time.sleep(0.02)


@way
def pings_for_ever(visit):
    visit.head()
    while not visit.over.is_set():
        visit.send(': ping\n\n')
        time.sleep(0.01)


@way
def nothing_for_ever(visit):
    visit.head()
    while not visit.over.is_set():
        visit.delta(content='')


@way
def progress_without_end(visit):
    visit.head()
    while not visit.over.is_set():
        visit.event({'choices': [], 'image_progress': {'encoded': 3, 'total': 2}})
        visit.event({'choices': [], 'prompt_progress': {'processed': 1, 'total': 1}})


@way
def html(visit):
    visit.head(kind='text/html')
    visit.send('<html><body>Welcome to the proxy of your hotel</body></html>')


@way
def huge_line(visit):
    visit.head()
    while not visit.over.is_set():
        visit.send(b'data: ' + b'x' * 65536)


@way
def huge_error(visit):
    visit.head('500 Oops', 'application/json')
    while not visit.over.is_set():
        visit.send(b'x' * 65536)


@way
def huge_head(visit):
    visit.send('HTTP/1.1 200 OK\r\n')
    while not visit.over.is_set():
        visit.send(b'A: ' + b'x' * 65536)


@way
def redirect(visit):
    visit.head('302 Found', Location='http://elsewhere/v1', Content_Length=0)


@way
def redirect_for_good(visit):
    visit.head('308 Permanent Redirect', Content_Length=0)


@way
def error_event(visit):
    visit.head()
    visit.event({'error': {'message': 'out of memory', 'code': 500}})


@way
def error_line(visit):
    visit.head()
    visit.send('{"object": "error", "message": "out of memory"}\n')


@way
def compressed(visit):
    visit.head(Content_Encoding='gzip')
    visit.send(b'\x1f\x8b' + b'\0' * 100)


@way
def no_http(visit):
    visit.send(b'\0\1\2 SSH-2.0-OpenSSH\r\n\r\n')


@way
def broken_chunks(visit):
    visit.head(Transfer_Encoding='chunked')
    visit.send('zz\r\nwhat\r\n')


@way
def too_short(visit):
    visit.head(Content_Length=5000)
    visit.delta(role='assistant')


@way
def filtered(visit):
    visit.head()
    visit.delta('content_filter')


# -- ways that break off after a word -------------------------------------------------------------

#: way -> what the error says; the fallback does not answer a second time
CUT = {
    'done_in_the_middle': 'breaks off the answer after a part',
    'cut_in_the_middle': 'breaks off the answer after a part',
    'wrong_json_later': 'no JSON',
    'silent_in_the_middle': 'remote_timeout',
    'error_in_the_middle': 'out of memory',
    'text_for_ever': 'more than n_predict',
    'number_later': 'where text belongs',
}


@way
def done_in_the_middle(visit):
    visit.head()
    visit.pieces(2)
    visit.send('data: [DONE]\n\n')


@way
def cut_in_the_middle(visit):
    visit.head()
    visit.pieces(2)


@way
def wrong_json_later(visit):
    visit.head()
    visit.pieces(2)
    visit.send('data: {oops}\n\n')


@way
def silent_in_the_middle(visit):
    visit.head()
    visit.pieces(2)
    visit.wait()


@way
def error_in_the_middle(visit):
    visit.head()
    visit.pieces(2)
    visit.event({'error': 'out of memory'})


@way
def text_for_ever(visit):
    visit.head()
    while not visit.over.is_set():
        visit.delta(content='word ' * 20)


@way
def number_later(visit):
    visit.head()
    visit.pieces(2)
    visit.delta(content=7)


# -- text that is none ----------------------------------------------------------------------------


@way
def not_utf_8(visit):
    visit.head()
    visit.send(b'data: {"choices": [{"delta": {"content": "The \xff door"}}]}\n\n')
    visit.end()


@way
def half_characters(visit):
    visit.head()
    visit.send('data: {"choices": [{"delta": {"content": "The \\ud83d door"}}]}\n\n')
    visit.end()
