"""The commands of the READMEs, and of the pages that go on from there: typed as they stand."""

from __future__ import annotations

import io
import os
from pathlib import Path
import re
import shlex
import shutil
import signal
import subprocess
import sys

import cv2
from folders import DEMO, MODELS
from hobot_vlm.cli.main import main
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

import make_mtmd_models  # noqa: E402

PAGES = ('README.md', 'README_cn.md', 'docs/terminal.md', 'docs/models.md', 'docs/models_cn.md')
#: commands that are not run here, and why
NOT_RUN = {
    'python3': 'makes the virtual environment for pip',
    'pip': 'installs; test_packaging installs the package',
    'rosdep': 'needs a ROS installation; test_packaging compares package.xml with the imports',
    'colcon': 'needs a ROS installation; test_packaging installs as it does',
    'source': 'needs what colcon made, or a board',
    'export': 'sets a variable for what follows',
    'ros2': 'needs a ROS installation; test_docs checks the arguments, test/ros runs the node',
    'echo': 'writes to the start-up file of the shell; test_completion runs what it writes',
}
#: files of a model that libmtmd reads, and the small ones that stand in for them
OTHER_MODEL = {
    'mmproj-gemma-3-4b-it-f16.gguf': 'mmproj.gguf',
    'gemma-3-4b-it-Q4_K_M.gguf': 'decoder.gguf',
}
#: a model of the hub that is asked, and the small one of its family that stands in for it
CATALOGUE = """
models:
  {name}:
    title: stand-in
    family: smolvlm
    variants:
      any:
        encoder: {models}/smolvlm/vision.onnx
        decoder: {models}/smolvlm/decoder.gguf
        options: {{max_tiles: 1, n_predict: 8}}
"""


def commands(page: str) -> list[tuple[str, ...]]:
    """Give the commands of all shell blocks, each in words, without variables before it."""
    text = (ROOT / page).read_text(encoding='utf-8').replace('\\\n', ' ')
    found = []
    for block in re.findall(r'^```(?:bash|shell|sh)\n(.*?)^```', text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = words.index('&&') if '&&' in words else len(words)
                command, words = words[:end], words[end + 1 :]
                while re.fullmatch('[A-Z_]+=.*', command[0]):
                    command = command[1:]
                found.append(tuple(command))
    return found


EVERY = {command: None for page in PAGES for command in commands(page)}
OF_VLM = [command for command in EVERY if command[0] == 'vlm' and command[1] != 'serve']


def named(command: tuple[str, ...]) -> str:
    return ' '.join(command).replace('/', '.')[:50]


def test_every_command_runs_or_has_a_reason():
    programs = {command[0] for command in EVERY}
    assert programs - set(NOT_RUN) == {'vlm', 'make'}
    assert set(NOT_RUN) <= programs
    assert {command[1] for command in EVERY if command[0] == 'vlm'} == {
        'ask', 'chat', 'serve', 'models', 'download'
    }  # fmt: skip


def test_both_readmes_have_the_same_commands():
    english, chinese = ([len(command) for command in commands(page)] for page in PAGES[:2])
    assert english == chinese


@pytest.fixture(scope='module')
def desk(tmp_path_factory) -> Path:
    """Make a folder with the files that the commands name."""
    folder = tmp_path_factory.mktemp('desk')
    for name in ('hobot_vlm', 'config'):
        (folder / name).symlink_to(ROOT / name)
    for name in ('vision.onnx', 'decoder.gguf'):
        (folder / name).symlink_to(MODELS / 'smolvlm' / name)
    make_mtmd_models.write(folder)
    for name, file in OTHER_MODEL.items():
        (folder / name).symlink_to(folder / 'gemma3' / file)
    picture = cv2.imread(str(DEMO / 'sample.png'))
    for name in ('photo', 'left', 'right', 'before', 'after'):
        cv2.imwrite(str(folder / f'{name}.jpg'), picture)
    writer = cv2.VideoWriter(
        str(folder / 'clip.mp4'), cv2.VideoWriter_fourcc(*'mp4v'), 10, picture.shape[1::-1]
    )
    for _ in range(20):
        writer.write(picture)
    writer.release()
    (folder / 'things.json').write_text(
        '{"type": "object", "properties": {"dog": {"type": "boolean"}}, "required": ["dog"]}'
    )
    catalogue = folder / 'home' / 'hobot_vlm' / 'models.yaml'
    catalogue.parent.mkdir(parents=True)
    names = {c[c.index('--model') + 1] for c in OF_VLM if '--model' in c}
    names |= {c[2] for c in OF_VLM if c[1] == 'download'}
    entries = [CATALOGUE.format(name=name, models=MODELS) for name in sorted(names)]
    catalogue.write_text(entries[0] + ''.join(e.split('models:\n')[1] for e in entries[1:]))
    return folder


@pytest.mark.parametrize('command', OF_VLM, ids=named)
def test_a_command_of_vlm(command, desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    monkeypatch.setenv('XDG_CONFIG_HOME', str(desk / 'home'))
    monkeypatch.setenv('XDG_STATE_HOME', str(desk / 'home'))
    monkeypatch.setenv('HF_HUB_CACHE', str(desk / 'home'))
    monkeypatch.setattr('sys.stdin', io.StringIO('What is this?\n'))
    words = list(command[1:])
    if '--camera' in words:  # OpenCV reads a video in place of a camera
        words[words.index('--camera') + 1] = 'clip.mp4'
    if '--model-file-name' in words:  # of a model that says nothing, a word is enough
        words += ['--n-predict', '8', '--llm-threads', '1']
        words += ['--max-tiles', '1'] if 'vision.onnx' in words else []
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert out.strip() or words[0] == 'download', err
    if '--json-schema' in words:
        assert out.strip() in ('{"dog":true}', '{"dog":false}', '{"dog": true}', '{"dog": false}')
    if '--stats' in words:
        assert 'tokens/s' in err


@pytest.mark.parametrize('command', [c for c in EVERY if c[:2] == ('vlm', 'serve')], ids=named)
def test_a_server_starts(command):
    process = subprocess.Popen(
        [sys.executable, '-m', 'hobot_vlm', *command[1:], '--port', '0'],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with process, process.stderr as stderr:
        assert 'http://127.0.0.1:' in stderr.readline()
        assert stderr.readline().startswith('the model demo answers')
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


@pytest.mark.skipif(not shutil.which('make'), reason='make is not installed')
@pytest.mark.parametrize('command', [c for c in EVERY if c[0] == 'make'], ids=named)
def test_a_target_of_make(command):
    env = {name: value for name, value in os.environ.items() if not name.startswith('MAKE')}
    done = subprocess.run(
        ['make', '-n', *command[1:]], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
