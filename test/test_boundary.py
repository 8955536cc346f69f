"""What the README promises of imports: the core needs no ROS, and importing it is quick."""

from __future__ import annotations

import ast
from pathlib import Path
import subprocess
import sys

import pytest

PACKAGE = Path(__file__).parents[1] / 'hobot_vlm'
CORE = [path for path in PACKAGE.rglob('*.py') if 'ros' not in path.relative_to(PACKAGE).parts]
ROS = {
    'ai_msgs', 'ament_index_python', 'cv_bridge', 'diagnostic_msgs', 'hbm_img_msgs', 'launch',
    'launch_ros', 'lifecycle_msgs', 'rcl_interfaces', 'rclpy', 'sensor_msgs', 'std_msgs',
    'std_srvs', 'vision_msgs',
}  # fmt: skip


def loaded_by(code: str) -> set[str]:
    """Give the names of the modules that a new interpreter has after running the code."""
    code += '\nimport sys\nprint(*sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_no_core_file_imports_ros():
    assert len(CORE) > 10
    for path in CORE:
        for statement in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(statement, ast.Import):
                names = {alias.name.partition('.')[0] for alias in statement.names}
            elif isinstance(statement, ast.ImportFrom) and not statement.level:
                names = {(statement.module or '').partition('.')[0]}
            else:
                names = set()
            assert not names & ROS, f'{path} imports {names & ROS}'


def test_the_engine_and_the_tool_load_no_ros():
    loaded = loaded_by('import hobot_vlm.vlm, hobot_vlm.cli.ask, hobot_vlm.maix.nn')
    assert 'llama_cpp' in loaded
    assert not loaded & ROS
    assert not [name for name in loaded if name.startswith('hobot_vlm.ros')]


def test_importing_the_package_loads_nothing_heavy():
    heavy = {'llama_cpp', 'onnxruntime', 'cv2', 'PIL', 'huggingface_hub', 'jinja2'}
    assert not loaded_by('import hobot_vlm') & heavy


@pytest.mark.parametrize('program', ['main', 'play_images'])
def test_the_node_without_ros_says_what_is_missing(program):
    code = (
        "import sys; sys.modules['rclpy'] = None\n"
        f"from hobot_vlm.ros.main import {program}; {program}(['x', '--ros-args'])"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ''
    assert done.stderr.count('\n') == 1
    assert 'finds no rclpy. Source a ROS 2 installation' in done.stderr
