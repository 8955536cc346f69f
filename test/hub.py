"""
A Hugging Face hub on this machine: as much of its protocol as downloads use.

Files are answered as the hub answers large ones: a redirect that carries commit, size and SHA-256,
to another host that knows ranges. It can also misbehave: cut connections, send wrong bytes, ignore
ranges, send without end or nothing at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import re
import threading
from urllib.parse import unquote, urlsplit

COMMIT = 'c0ffee' + '0' * 34


@dataclass
class Hub:
    """
    What is on the hub, and what happened to it.

    :param files: ``owner/name`` -> path -> content
    :param cuts: one number for each download to come: bytes after which the connection breaks
    :param lies: path -> other bytes that are sent under the right checksum
    :param small: paths that are answered as the hub answers small files, without a redirect
    :param bad: what else goes wrong: ``endless`` or ``silent`` or ``slow`` content, ``endless
        list``, ``endless page``, ``silent list``, ``silent answer``, ``no size``
    """

    files: dict[str, dict[str, bytes]]
    cuts: list[int] = field(default_factory=list)
    lies: dict[str, bytes] = field(default_factory=dict)
    small: set[str] = field(default_factory=set)
    bad: str = ''
    sent: int = 0
    ended: threading.Event = field(default_factory=threading.Event)
    ignores_ranges: bool = False
    requests: list[tuple[str, str]] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f'http://127.0.0.1:{self.port}'

    @property
    def downloads(self) -> int:
        """How often bytes of a file were asked for."""
        return len(self.ranges)


@contextmanager
def serve(files: dict[str, dict[str, bytes]]) -> Iterator[Hub]:
    """Run a hub with these files."""
    hub = Hub(files)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'

        def log_message(self, *_args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path))
            if found := re.fullmatch(r'/api/models/([^/]+/[^/]+)/tree/main', path):
                self.tree(found[1])
            elif found := re.fullmatch(
                r'/([^/]+/[^/]+)/resolve/(?:main|' + COMMIT + ')/(.+)', path
            ):
                self.resolve(found[1], found[2], body)
            elif found := re.fullmatch(r'/content/([^/]+/[^/]+)/(.+)', path):
                self.content(found[2], hub.files[found[1]][found[2]], {}, body)
            else:
                self.refuse('')

        def tree(self, repo: str) -> None:
            if repo not in hub.files:
                self.refuse('RepoNotFound')
                return
            if hub.bad == 'silent list':
                hub.ended.wait(60)
            if hub.bad == 'endless page':
                self.pour(b'["' + b'x' * 65536)
                return
            text = json.dumps(
                [
                    {'type': 'file', 'path': path, 'size': len(content), 'oid': sha1(content)}
                    for path, content in hub.files[repo].items()
                ]
            ).encode()
            headers = {'Content-Type': 'application/json', 'Content-Length': len(text)}
            if hub.bad == 'endless list':
                headers['Link'] = f'<{hub.url}{self.path}>; rel="next"'
            self.head(200, headers)
            self.wfile.write(text)

        def resolve(self, repo: str, path: str, body: bool) -> None:
            content = hub.files.get(repo, {}).get(path)
            if hub.bad == 'silent answer':
                hub.ended.wait(60)
            if content is None:
                self.refuse('EntryNotFound' if repo in hub.files else 'RepoNotFound')
            elif path in hub.small:
                about = {'ETag': f'"{sha1(content)}"', 'X-Repo-Commit': COMMIT}
                self.content(path, content, about, body)
            else:
                # Under another name, because clients treat a redirect to the same host otherwise.
                self.head(
                    302,
                    {
                        'Location': f'http://localhost:{hub.port}/content/{repo}/{path}',
                        'X-Repo-Commit': COMMIT,
                        **({} if hub.bad == 'no size' else {'X-Linked-Size': len(content)}),
                        'X-Linked-Etag': f'"{hashlib.sha256(content).hexdigest()}"',
                        'Content-Length': 0,
                    },
                )

        def content(self, path: str, content: bytes, about: dict[str, str], body: bool) -> None:
            content = hub.lies.get(path, content)
            wanted = self.headers.get('Range')
            if not body:
                self.head(200, {**about, 'Content-Length': len(content)})
                return
            hub.ranges.append(wanted)
            if hub.bad == 'silent':
                hub.ended.wait(60)
            if hub.bad in ('endless', 'slow'):
                self.pour(bytes(65536) if hub.bad == 'endless' else b'x')
                return
            start = int(wanted.split('=')[1].split('-')[0]) if wanted else 0
            if wanted and not hub.ignores_ranges:
                span = f'bytes {start}-{len(content) - 1}/{len(content)}'
                rest = content[start:]
                self.head(206, {**about, 'Content-Range': span, 'Content-Length': len(rest)})
            else:
                rest = content
                self.head(200, {**about, 'Content-Length': len(rest)})
            cut = hub.cuts.pop(0) if hub.cuts else None
            self.wfile.write(rest[:cut])
            if cut is not None:
                self.wfile.flush()
                self.close_connection = True

        def pour(self, piece: bytes) -> None:
            """Send the same again and again, until nobody wants it any more."""
            self.head(200, {})
            self.close_connection = True
            try:
                while not hub.ended.wait(0.01 if len(piece) == 1 else 0):
                    self.wfile.write(piece)
                    hub.sent += len(piece)
            except OSError:
                pass

        def head(self, status: int, headers: dict[str, object]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, str(value))
            self.end_headers()

        def refuse(self, code: str) -> None:
            self.head(404, {'X-Error-Code': code, 'Content-Length': 0})

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


def sha1(content: bytes) -> str:
    """Give the checksum that git, and so the hub, has for a small file."""
    return hashlib.sha1(b'blob %d\0' % len(content) + content).hexdigest()
