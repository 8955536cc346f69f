"""The command lines of D-Robotics' page on hobot_llamacpp, with the package's name changed."""

from __future__ import annotations

import os
from pathlib import Path
import re
import subprocess
import sys

from hobot_vlm import catalogue, VLM
import pytest

from .conftest import MODELS, SAMPLE

ROOT = MODELS.parents[1]
#: all shell blocks of the page, as they stand there; an empty line ends a block
PAGE = (MODELS.parent / 'data' / 'rdk_page.txt').read_text(encoding='utf-8')
BLOCKS = [block.strip() for block in PAGE.split('\n\n')]
RUNS = [block for block in BLOCKS if 'ros2 run' in block]
#: what stands in for files that only a BPU reads, and for the one tile that it takes
BUNDLED = {
    r'(?<=model_file_name:=)\S+\.(bin|hbm)': f'{SAMPLE.parent}/vision.onnx -p max_tiles:=1',
    r'(?<=llm_model_name:=)\S+\.gguf': f'{SAMPLE.parent}/decoder.gguf',
}
#: what a board's setup.bash brings, as far as the commands need it
SETUP = """
export TROS_DISTRO=humble PYTHONPATH={site}
ros2() {{ [ "$1" = run ] && "{prefix}/lib/$2/$3" "${{@:4}}"; }}
"""


@pytest.fixture(scope='module')
def board(tmp_path_factory) -> Path:
    """Install the package where a board has its packages, below a folder of ours."""
    root = tmp_path_factory.mktemp('board')
    prefix = root / 'opt/tros/humble'
    command = f"""{sys.executable} setup.py --quiet
        egg_info --egg-base {root} build --build-base {root}/build
        install --root {root} --prefix /opt/tros/humble --single-version-externally-managed
        --record {root}/record"""
    subprocess.run(command.split(), cwd=ROOT, check=True, capture_output=True)
    (site,) = prefix.glob('lib/python3*/site-packages')
    (prefix / 'setup.bash').write_text(SETUP.format(site=site, prefix=prefix))
    return root


def here(block: str, root: Path) -> str:
    """Write a block for this package, this machine and the bundled files."""
    block = block.replace('hobot_llamacpp', 'hobot_vlm').replace('/opt/tros', f'{root}/opt/tros')
    for pattern, name in BUNDLED.items():
        block = re.sub(pattern, name, block)
    return block


def test_both_boards_have_the_same_commands_but_for_the_files(board):
    assert len(RUNS) == 4 and len({here(block, board) for block in RUNS}) == 2


@pytest.mark.parametrize('block', [RUNS[0], RUNS[2]], ids=['InternVL', 'SmolVLM'])
def test_the_commands_run(block, board, tmp_path):
    env = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run(
        ['bash', '-e', '-c', here(block, board)],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        encoding='utf-8',
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    (question,) = re.findall(r'user_prompt:="(.*?)"', block)
    with VLM.load('demo') as vlm:
        expected = vlm.ask(question, ROOT / 'config' / 'image2.jpg').text
    assert done.stdout == expected + '\n'
    for words in ('loaded ', 'ready', 'stop: '):
        assert f'[hobot_vlm]: {words}' in done.stderr


def test_the_files_that_the_page_fetches_are_in_the_catalogue():
    """Those of the smaller models, so that `vlm download` fetches the same."""
    fetched = set(re.findall(r'^wget https://hf-mirror.com/(.*)/resolve/main/(.*)$', PAGE, re.M))
    known = {
        tuple(str(file).split(':'))
        for model in catalogue.load().values()
        for variant in model.variants.values()
        for file in (variant.encoder, variant.decoder)
        if file and ':' in str(file)
    }
    assert len(fetched) == 6 and fetched <= known


@pytest.mark.parametrize('name', ['rdk.md', 'rdk_cn.md'])
def test_what_the_page_sets_up_is_in_ours(name):
    ours = (ROOT / 'docs' / name).read_text(encoding='utf-8')
    places = set(re.findall(r'/sys/devices/system/cpu/\S+/(\w+)', PAGE)) | {'cpufreq/boost'}
    assert places == {'boost', 'scaling_governor', 'cpufreq/boost'}
    for words in (*places, 'srpi-config', '1.6 GB', '/opt/tros/humble/setup.bash'):
        assert words in ours
