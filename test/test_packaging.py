"""The package as colcon and pip install it: files in their places, and one version everywhere."""

from __future__ import annotations

import ast
from importlib.metadata import distribution, entry_points
from pathlib import Path
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import hobot_vlm
import pytest

ROOT = Path(__file__).parents[1]
MANIFEST = ROOT / 'package.xml'
COMMANDS = ('encode', 'hobot_vlm', 'play_images', 'vlm')
#: import name -> name in package.xml, where they differ
ROSDEP = {
    'cv2': 'python3-opencv',
    'huggingface_hub': 'python3-huggingface-hub-pip',
    'jinja2': 'python3-jinja2',
    'llama_cpp': 'llama-cpp-python',
    'numpy': 'python3-numpy',
    'onnxruntime': 'python3-onnxruntime-pip',
    'PIL': 'python3-pil',
    'rosbags': 'rosbags-image',
    'yaml': 'python3-yaml',
}
#: runtimes of a board, which come with its system
BOARD = {'hbm_runtime', 'hobot_dnn', 'hobot_dnn_rdkx5'}


@pytest.fixture(scope='module')
def prefix(tmp_path_factory) -> Path:
    """Install as colcon does."""
    place = tmp_path_factory.mktemp('install')
    command = f"""{sys.executable} setup.py --quiet
        egg_info --egg-base {place} build --build-base {place}/build
        install --root {place} --prefix /hobot_vlm --single-version-externally-managed
        --record {place}/record"""
    subprocess.run(command.split(), cwd=ROOT, check=True, capture_output=True)
    return place / 'hobot_vlm'


def test_ros_finds_the_package_and_its_executables(prefix):
    assert (prefix / 'share/ament_index/resource_index/packages/hobot_vlm').is_file()
    share = prefix / 'share/hobot_vlm'
    assert (share / 'package.xml').read_bytes() == MANIFEST.read_bytes()
    for folder in ('launch', 'config', 'examples', 'examples/internvl'):
        files = {path.name for path in (ROOT / folder).iterdir() if path.is_file()}
        assert files and files == {path.name for path in (share / folder).glob('*.*')}
    places = {path.name for path in (prefix / 'lib/hobot_vlm').iterdir()}
    assert places == {*COMMANDS, 'config'}
    assert (prefix / 'lib/hobot_vlm/config/image2.jpg').is_file()


def test_every_file_of_the_package_is_installed(prefix):
    source = ROOT / 'hobot_vlm'
    wanted = {
        path.relative_to(source)
        for path in source.rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }
    (installed,) = prefix.glob('lib/python3*/site-packages/hobot_vlm')
    assert Path('demo/sample.png') in wanted
    assert wanted <= {path.relative_to(installed) for path in installed.rglob('*')}


def test_every_command_can_be_loaded():
    ours = [
        point for point in entry_points(group='console_scripts') if point.value.startswith('hobot')
    ]
    assert {point.name for point in ours} == set(COMMANDS)
    for point in ours:
        assert callable(point.load())


def test_one_version():
    tree = ElementTree.parse(MANIFEST)
    changes = (ROOT / 'CHANGELOG.rst').read_text(encoding='utf-8')
    newest = re.search(r'^(\d+\.\d+\.\d+) \(.*\)\n-+$', changes, re.MULTILINE)
    assert newest is not None
    assert {
        distribution('hobot_vlm').version,
        tree.findtext('version'),
        newest.group(1),
        hobot_vlm.__version__,
    } == {hobot_vlm.__version__}


def test_package_xml_names_every_import():
    manifest = MANIFEST.read_text(encoding='utf-8')
    imported = set()
    for path in [*(ROOT / 'hobot_vlm').rglob('*.py'), *(ROOT / 'launch').glob('*.py')]:
        for statement in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(statement, ast.Import):
                imported |= {alias.name.partition('.')[0] for alias in statement.names}
            elif isinstance(statement, ast.ImportFrom) and not statement.level:
                imported.add((statement.module or '').partition('.')[0])
    foreign = imported - set(sys.stdlib_module_names) - {'hobot_vlm'} - BOARD
    assert {'rclpy', 'launch', 'numpy', 'llama_cpp'} <= foreign
    for name in sorted(foreign):
        assert re.search(rf'\b{ROSDEP.get(name, name)}\b', manifest), f'{name} is not named'
