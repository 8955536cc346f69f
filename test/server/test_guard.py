"""Who may ask: keys, names of the server, pages of other origins; and pictures from elsewhere."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
import shutil
import threading

from hobot_vlm.errors import ConfigError
from hobot_vlm.server.guard import is_local, Settings
from hobot_vlm.server.pictures import Pictures
import httpx
import pytest

from .conftest import asked, serving

CHAT = '/v1/chat/completions'
HELLO = {'messages': [{'role': 'user', 'content': 'Hello'}], 'max_tokens': 2}


@pytest.fixture(scope='module')
def locked(demo):
    with serving(demo, Settings(api_key='sesame', local=False)) as server:
        with httpx.Client(base_url=server.url, trust_env=False) as client:
            yield client


@pytest.mark.parametrize(
    'header', ['', 'sesame', 'Bearer', 'Bearer sesam', 'Bearer Sesame', 'Basic sesame']
)
def test_a_wrong_key_is_refused(locked, header):
    for path in ('/v1/models', '/metrics', '/live', '/nothing'):
        answer = locked.get(path, headers={'Authorization': header})
        assert answer.status_code == 401
        assert answer.json()['error']['code'] == 'invalid_api_key'
    answer = locked.post(CHAT, json=HELLO, headers={'Authorization': header.encode() + b'\xff'})
    assert answer.status_code == 401


def test_the_key_opens(locked):
    key = {'Authorization': 'Bearer sesame'}
    assert locked.post(CHAT, json=HELLO, headers=key).status_code == 200
    for path in ('/', '/page.js', '/page.css', '/icon.svg', '/health'):
        assert locked.get(path).status_code == 200


def test_a_local_server_answers_to_local_names_alone(http):
    """Else a page of the web reaches it under a name that leads here."""
    for host in ('localhost', 'localhost:99', '127.0.0.1:8000', '[::1]:8000'):
        assert http.get('/v1/models', headers={'Host': host}).status_code == 200
    for host in ('evil.example', 'localhost.evil.example', 'a@localhost', '', '0.0.0.0'):
        assert http.get('/v1/models', headers={'Host': host}).status_code in (400, 403)


def test_pages_of_other_origins_are_refused_unless_allowed(http, demo):
    evil = {'Origin': 'https://evil.example'}
    assert http.post(CHAT, json=HELLO, headers=evil).status_code == 403
    own = {'Origin': str(http.base_url).rstrip('/')}
    assert http.post(CHAT, json=HELLO, headers=own).status_code == 200
    assert http.post(CHAT, json=HELLO, headers={'Origin': 'null'}).status_code == 403
    with serving(demo, Settings(origins=('https://robot.example',))) as server:
        with httpx.Client(base_url=server.url, trust_env=False) as client:
            good = {'Origin': 'https://robot.example'}
            asks = {**good, 'Access-Control-Request-Headers': 'authorization, x-own'}
            allowed = client.options(CHAT, headers=asks)
            assert allowed.status_code == 204
            assert allowed.headers['access-control-allow-origin'] == good['Origin']
            assert 'x-own' in allowed.headers['access-control-allow-headers']
            answer = client.post(CHAT, json=HELLO, headers=good)
            assert answer.headers['access-control-allow-origin'] == good['Origin']
            assert client.post(CHAT, json=HELLO, headers=evil).status_code == 403


@pytest.mark.parametrize(
    ('host', 'local'),
    [('127.0.0.1', True), ('127.9.9.9', True), ('::1', True), ('localhost', True),
     ('0.0.0.0', False), ('::', False), ('192.168.1.2', False), ('robot', False)],
)  # fmt: skip
def test_which_addresses_are_local(host, local):
    assert is_local(host) is local


# -- pictures from elsewhere ------------------------------------------------------------------


@pytest.fixture
def web(sample, monkeypatch):
    """Give the address of a server with the picture, and with some that misbehave."""
    monkeypatch.setenv('no_proxy', '*')
    data = Path(sample).read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == '/away.png':
                self.send_response(302)
                self.send_header('Location', '/sample.png')
            elif self.path == '/to_file.png':
                self.send_response(302)
                self.send_header('Location', 'file:///etc/passwd')
            else:
                self.send_response(200 if self.path == '/sample.png' else 404)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


def test_pictures_of_the_web(demo, http, web, picture):
    expected = http.post(CHAT, json={'messages': asked(picture)}).json()['choices']
    with serving(demo, Settings(allow_urls=True)) as server:
        with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
            for name in ('sample.png', 'away.png'):
                body = {'messages': asked(f'{web}/{name}')}
                assert client.post(CHAT, json=body).json()['choices'] == expected
            for name in ('to_file.png', 'missing.png'):  # fetched by the model, in bounds
                answer = client.post(CHAT, json={'messages': asked(f'{web}/{name}')})
                assert answer.status_code == 400 and 'cannot be fetched' in answer.text
            closed = client.post(CHAT, json={'messages': asked('http://127.0.0.1:9/x.png')})
            assert closed.status_code == 400


def test_pictures_in_a_folder(demo, http, picture, sample, tmp_path):
    expected = http.post(CHAT, json={'messages': asked(picture)}).json()['choices']
    folder = tmp_path / 'media'
    (folder / 'deep').mkdir(parents=True)
    shutil.copy(sample, folder / 'deep' / 'a b.png')
    (tmp_path / 'secret.png').write_bytes(Path(sample).read_bytes())
    (folder / 'link.png').symlink_to(tmp_path / 'secret.png')
    with serving(demo, Settings(media_path=str(folder))) as server:
        with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
            for url in ('file:deep/a%20b.png', f'file://{folder}/deep/a%20b.png'):
                body = {'messages': asked(url)}
                assert client.post(CHAT, json=body).json()['choices'] == expected
            for url in ('file:../secret.png', f'file://{tmp_path}/secret.png', 'file:link.png',
                        'file:%2e%2e/secret.png', 'file:', 'file:a%00b'):  # fmt: skip
                answer = client.post(CHAT, json={'messages': asked(url)})
                assert answer.status_code == 400 and 'no such picture' in answer.text, url
    with pytest.raises(ConfigError, match='media-path'):
        Pictures(folder=str(tmp_path / 'missing'))
