"""Downloads against a hub on this machine; each runs the real command in a process of its own."""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path
import pty
import struct
import subprocess
import sys
import termios
import time

from folders import MODELS
import hub
import onnx
import pytest

REPO = 'maker/model'
ENCODER = bytes(range(256)) * 2048
DECODER = os.urandom(1 << 20) * 24

CATALOGUE = f"""
models:
  small:
    title: a model of this test
    languages: [en]
    variants:
      any:
        encoder: {REPO}:onnx/vision.onnx
        decoder: {REPO}:decoder.gguf
  pattern:
    variants:
      any:
        encoder: {REPO}:onnx/*.onnx
        decoder: {REPO}:*.gguf
  split:
    variants: {{any: {{decoder: '{REPO}:parts/big-00001-of-00003.gguf'}}}}
  split-pattern:
    variants: {{any: {{decoder: '{REPO}:parts/*.gguf'}}}}
  absent-file:
    variants: {{any: {{decoder: '{REPO}:nothing.gguf'}}}}
  absent-repo:
    variants: {{any: {{decoder: 'nobody/nothing:a.gguf'}}}}
"""


@pytest.fixture
def server():
    with hub.serve({REPO: {'onnx/vision.onnx': ENCODER, 'decoder.gguf': DECODER}}) as running:
        yield running


@pytest.fixture
def env(tmp_path, server):
    (tmp_path / 'config' / 'hobot_vlm').mkdir(parents=True)
    (tmp_path / 'config' / 'hobot_vlm' / 'models.yaml').write_text(CATALOGUE)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(('HF_', 'HUGGING', 'XDG_'))}
    return {
        **kept,
        'HF_ENDPOINT': server.url,
        'HF_HOME': str(tmp_path / 'hf'),
        'XDG_CONFIG_HOME': str(tmp_path / 'config'),
        'no_proxy': '*',
    }


def vlm(env, *args):
    return subprocess.run(
        [sys.executable, '-m', 'hobot_vlm.cli', *args],
        env=env,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
    )


def paths(result):
    """Read the paths that `vlm download` prints."""
    return {role: Path(path) for role, path in map(str.split, result.stdout.splitlines())}


def cache(env):
    """Give all files of the cache whose names say that they are content."""
    blobs = Path(env['HF_HOME']) / 'hub' / f'models--{REPO.replace("/", "--")}' / 'blobs'
    return {p.name: p.read_bytes() for p in blobs.glob('*')}


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def error(result):
    """Give the one line of complaint of a command that failed as it should."""
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith('vlm: ')]
    assert len(lines) == 1 and 'Traceback' not in result.stderr, result.stderr
    return lines[0]


def test_a_model_is_fetched_into_the_cache_that_others_use(env, server):
    found = paths(vlm(env, 'download', 'small'))
    assert found['encoder'].read_bytes() == ENCODER
    assert found['decoder'].read_bytes() == DECODER
    # huggingface_hub itself takes them from there, without a network
    script = (
        f'from huggingface_hub import hf_hub_download as h; print(h({REPO!r}, "decoder.gguf"))'
    )
    offline = {**env, 'HF_HUB_OFFLINE': '1'}
    own = subprocess.run(
        [sys.executable, '-c', script], env=offline, capture_output=True, text=True, check=True
    )
    assert Path(own.stdout.strip()) == found['decoder']


def test_what_is_here_is_not_fetched_again(env, server):
    first = vlm(env, 'download', 'small')
    assert server.downloads == 2
    seen = len(server.requests)
    second = vlm(env, 'download', 'small')
    assert second.stdout == first.stdout and second.returncode == 0
    assert len(server.requests) == seen


def test_small_files_without_lfs(env, server):
    server.small = {'onnx/vision.onnx'}
    assert paths(vlm(env, 'download', 'small'))['encoder'].read_bytes() == ENCODER
    assert hub.sha1(ENCODER) in cache(env)


def test_progress_is_shown_on_a_terminal(env, server):
    main, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack('4H', 24, 120, 0, 0))
    process = subprocess.Popen(
        [sys.executable, '-m', 'hobot_vlm.cli', 'download', 'small'],
        env=env,
        cwd=Path(__file__).parents[1],
        stdout=subprocess.DEVNULL,
        stderr=child,
    )
    os.close(child)
    shown = b''
    while True:
        try:
            part = os.read(main, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(main)
    assert process.wait(30) == 0
    assert b'decoder.gguf' in shown and b'100%' in shown and b'25.2M/25.2M' in shown


def test_a_cut_connection_is_resumed(env, server):
    server.cuts = [10**9, 11 << 20, 11 << 20]
    found = paths(vlm(env, 'download', 'small'))
    assert found['decoder'].read_bytes() == DECODER
    assert server.ranges == [None, None, f'bytes={11 << 20}-', f'bytes={22 << 20}-']


def test_a_later_run_goes_on_where_an_interrupted_one_stopped(env, server):
    server.cuts = [10**9, 21 << 20, *[0] * 50]
    assert 'the same command goes on' in error(vlm(env, 'download', 'small'))
    # what came is kept, under a name that nothing takes for the whole
    assert cache(env)[sha256(DECODER) + '.incomplete'] == DECODER[: 21 << 20]
    assert sha256(DECODER) not in cache(env)
    assert 'is not on this machine' in error(vlm(env, 'ask', '-m', 'small', 'What is it?'))
    server.cuts, server.ranges = [], []
    assert paths(vlm(env, 'download', 'small'))['decoder'].read_bytes() == DECODER
    assert server.ranges == [f'bytes={21 << 20}-']
    assert set(cache(env)) == {sha256(ENCODER), sha256(DECODER)}


def test_a_killed_download_leaves_no_file_that_looks_whole(env, server):
    server.cuts = [10**9, 21 << 20, *[0] * 50]
    process = subprocess.Popen(
        [sys.executable, '-m', 'hobot_vlm.cli', 'download', 'small'],
        env=env,
        cwd=Path(__file__).parents[1],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 30
    while server.downloads < 3 and time.monotonic() < end:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert sha256(DECODER) not in cache(env)
    assert 'is not on this machine' in error(vlm(env, 'ask', '-m', 'small', 'What is it?'))
    server.cuts, server.ranges = [], []
    assert paths(vlm(env, 'download', 'small'))['decoder'].read_bytes() == DECODER
    assert server.ranges == [f'bytes={21 << 20}-']


def test_a_server_that_ignores_ranges_does_no_harm(env, server):
    server.cuts, server.ignores_ranges = [10**9, 11 << 20], True
    for _ in range(2):  # older versions of huggingface_hub notice only at the end
        result = vlm(env, 'download', 'small')
    assert paths(result)['decoder'].read_bytes() == DECODER


@pytest.mark.parametrize('small', [False, True])
def test_wrong_bytes_are_refused_and_thrown_away(env, server, small):
    server.lies = {'decoder.gguf': bytes(len(DECODER))}
    server.small = {'decoder.gguf'} if small else set()
    line = error(vlm(env, 'download', 'small'))
    assert 'checksum' in line and 'decoder.gguf' in line
    assert set(cache(env)) == {sha256(ENCODER)}
    assert error(vlm({**env, 'HF_HUB_OFFLINE': '1'}, 'ask', '-m', 'small', 'What is it?'))
    server.lies = {}
    assert paths(vlm(env, 'download', 'small'))['decoder'].read_bytes() == DECODER


def test_too_few_bytes_are_refused(env, server):
    server.lies = {'decoder.gguf': DECODER[:-1]}
    assert 'decoder.gguf' in error(vlm(env, 'download', 'small'))
    assert sha256(DECODER) not in cache(env)


def test_a_damaged_file_is_fetched_again(env, server):
    found = paths(vlm(env, 'download', 'small'))
    found['decoder'].resolve().write_bytes(DECODER[:-1] + b'?')
    result = vlm(env, 'download', 'small')
    assert 'damaged' in result.stderr
    assert paths(result)['decoder'].read_bytes() == DECODER


def test_the_mirror_is_asked_and_nobody_else(env, server):
    with hub.serve(server.files) as mirror:
        assert vlm({**env, 'HF_ENDPOINT': mirror.url}, 'download', 'small').returncode == 0
        assert mirror.downloads == 2
    assert not server.requests


def test_offline_asks_nobody(env, server):
    line = error(vlm({**env, 'HF_HUB_OFFLINE': '1'}, 'download', 'small'))
    assert 'HF_HUB_OFFLINE' in line and 'onnx/vision.onnx' in line
    assert not server.requests
    vlm(env, 'download', 'small')
    seen = len(server.requests)
    assert vlm({**env, 'HF_HUB_OFFLINE': '1'}, 'download', 'small').returncode == 0
    assert len(server.requests) == seen


def test_no_network(env, server):
    line = error(vlm({**env, 'HF_ENDPOINT': 'http://127.0.0.1:9'}, 'download', 'small'))
    assert f'{REPO}:onnx/vision.onnx' in line and 'HF_ENDPOINT' in line


def test_a_server_that_is_no_hub(env, server):
    line = error(vlm({**env, 'HF_ENDPOINT': f'{server.url}/elsewhere'}, 'download', 'small'))
    assert 'onnx/vision.onnx' in line


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('absent-file', f'{REPO}:nothing.gguf: the repository holds no such file'),
        ('absent-repo', 'nobody/nothing:a.gguf: there is no such repository'),
        ('smal', 'did you mean small?'),
    ],
)
def test_what_does_not_exist_is_named(env, name, words):
    assert words in error(vlm(env, 'download', name))


def test_a_pattern_stands_for_the_one_file_that_fits(env, server):
    found = paths(vlm(env, 'download', 'pattern'))
    assert found['encoder'].name == 'vision.onnx' and found['encoder'].read_bytes() == ENCODER
    assert found['decoder'].read_bytes() == DECODER
    assert paths(vlm({**env, 'HF_HUB_OFFLINE': '1'}, 'download', 'pattern')) == found


def test_a_pattern_that_fits_several_files_names_them(env, server):
    server.files[REPO]['other.gguf'] = b'other'
    line = error(vlm(env, 'download', 'pattern'))
    assert 'decoder.gguf, other.gguf' in line


def test_nothing_is_fetched_unasked(env, server):
    line = error(vlm(env, 'ask', '-m', 'small', 'What is it?'))
    assert '`vlm download small`' in line and 'auto_download:=true' in line
    assert not server.requests


def test_auto_download_fetches(env, server):
    # the bytes are no model, so the question fails, but only after they have arrived
    line = error(vlm(env, 'ask', '-m', 'small', '--set', 'auto_download=true', 'What is it?'))
    assert server.downloads == 2
    assert 'decoder.gguf' in line or 'vision.onnx' in line


def test_two_at_once_fetch_once(env, server):
    both = [
        subprocess.Popen(
            [sys.executable, '-m', 'hobot_vlm.cli', 'download', 'small'],
            env=env,
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert set(cache(env)) == {sha256(ENCODER), sha256(DECODER)}


def test_models_lists_what_is_here(env):
    before = vlm(env, 'models').stdout
    assert [line.split() for line in before.splitlines() if line.startswith('small ')] == [
        ['small', 'fits', '-', '-', 'en', '-', '-', 'a', 'model', 'of', 'this', 'test']
    ]
    vlm(env, 'download', 'small')
    after = vlm(env, 'models').stdout
    assert [line.split()[:5] for line in after.splitlines() if line.startswith('small ')] == [
        ['small', 'here', '26', 'MB', '0.9']
    ]
    assert vlm(env, 'models', '--remove', 'small').stdout == 'freed 26 MB\n'
    assert vlm(env, 'models').stdout == before and not cache(env)


PARTS = {f'parts/big-0000{i}-of-00003.gguf': bytes([i]) * 5000 for i in (1, 2, 3)}


@pytest.mark.parametrize('name', ['split', 'split-pattern'])
def test_all_parts_of_a_split_are_fetched(env, server, name):
    server.files[REPO].update(PARTS)
    first = paths(vlm(env, 'download', name))['decoder']
    assert first.name == 'big-00001-of-00003.gguf'
    for path, content in PARTS.items():
        assert (first.parent / Path(path).name).read_bytes() == content
    assert server.downloads == 3
    # one that is gone or damaged is fetched again, and it alone
    third = first.parent / 'big-00003-of-00003.gguf'
    third.unlink()
    assert 'is not on this machine' in error(vlm(env, 'ask', '-m', name, 'What is it?'))
    assert paths(vlm(env, 'download', name))['decoder'] == first and third.is_file()
    third.resolve().write_bytes(b'damaged')
    assert paths(vlm(env, 'download', name))['decoder'] == first
    assert third.read_bytes() == PARTS['parts/big-00003-of-00003.gguf']
    assert server.downloads == 4


def test_a_part_that_the_hub_lacks_is_named(env, server):
    server.files[REPO].update(list(PARTS.items())[:2])
    assert 'holds no such file' in error(vlm(env, 'download', 'split'))


@pytest.fixture(scope='module')
def beside(tmp_path_factory):
    """Give the encoder of a test model as exporters write large ones: weights beside it."""
    folder = tmp_path_factory.mktemp('beside')
    graph = onnx.load(MODELS / 'internvl' / 'vision.onnx')
    onnx.save(
        graph,
        folder / 'vision.onnx',
        save_as_external_data=True,
        location='vision.onnx_data',
        size_threshold=1024,
    )
    return {f'onnx/{file.name}': file.read_bytes() for file in folder.iterdir()}


def test_the_weights_beside_an_encoder_are_fetched(env, server, beside):
    weights = 'onnx/vision.onnx_data'
    decoder = (MODELS / 'internvl' / 'decoder.gguf').read_bytes()
    server.files[REPO] = {**beside, 'decoder.gguf': decoder}
    found = paths(vlm(env, 'download', 'small'))
    there = found['encoder'].with_name('vision.onnx_data')
    assert there.read_bytes() == beside[weights] and server.downloads == 3
    # they count: what is damaged is fetched again, and what lacks them is not here
    there.resolve().write_bytes(b'damaged')
    assert vlm(env, 'download', 'small').returncode == 0
    assert there.read_bytes() == beside[weights] and server.downloads == 4
    there.unlink()
    assert 'is not on this machine' in error(vlm(env, 'ask', '-m', 'small', 'What is it?'))


def test_a_graph_with_too_many_files_beside_it(env, server, beside):
    server.files[REPO] = beside
    script = FETCH.replace('try:', 'hub.MOST_BESIDE = 0\ntry:')
    result = subprocess.run(
        [sys.executable, '-c', script, REPO, 'onnx/vision.onnx'],
        env=env,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert 'takes weights from 1 files: expected at most 0' in result.stdout
    assert server.downloads == 1


# -- a hub that does not end ------------------------------------------------------------------

FETCH = """
import sys, resource
from hobot_vlm import hub, transfer
from hobot_vlm.errors import DownloadError
hub.ANSWER_SECONDS = transfer.START_SECONDS = 1.0
transfer.LEAST_SECONDS, transfer.PAUSE = 0.5, 0.0
from hobot_vlm import net
net.SILENCE = 1.0
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    print(hub.fetch(sys.argv[1], sys.argv[2]))
except DownloadError as error:
    print('DownloadError', error)
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # 200 MB
"""


@pytest.mark.parametrize(
    ('bad', 'name', 'told'),
    [
        ('endless', 'decoder.gguf', 'more than the 25165824 bytes came that the hub promised'),
        ('silent', 'decoder.gguf', 'check the network'),
        ('slow', 'decoder.gguf', 'less than 60 kB came in'),
        ('silent answer', 'decoder.gguf', 'no answer after 1 s'),
        ('no size', 'decoder.gguf', ''),
        ('silent list', '*.gguf', 'no answer after 1 s'),
        ('endless page', '*.gguf', 'a list of more than 16 MB'),
        ('endless list', '*.gguf', 'does not end after 100 pages'),
    ],
)
def test_the_hub_sets_no_bound(env, server, bad, name, told):
    server.bad = bad
    result = subprocess.run(
        [sys.executable, '-c', FETCH, REPO, name],
        env=env,
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert told in result.stdout
    assert result.stdout.startswith('DownloadError') or bad == 'no size'
    kept = sum(map(len, cache(env).values()))
    assert kept <= len(DECODER) and server.sent < 100 << 20
