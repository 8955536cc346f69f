"""
The launch files: hobot_llamacpp's arguments, what they reach, and what happens when they run.

``launch`` comes with a ROS installation only. Without it the argument lists are still checked, by
reading the files.
"""

from __future__ import annotations

import ast
from contextlib import suppress
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / 'launch'
DEMO = ROOT / 'hobot_vlm' / 'demo'
TABLES = ROOT / 'hobot_vlm' / 'ros' / 'bringup.py'

# The arguments of hobot_llamacpp's launch files (fbdd224, and model_type of its newer README).
UPSTREAM_LLM = {
    'llamacpp_gguf_model_file_name', 'llamacpp_user_prompt', 'llamacpp_system_prompt',
    'llamacpp_text_msg_pub_name', 'llamacpp_prompt_msg_sub_name', 'audio_asr_model',
    'audio_device',
}  # fmt: skip
UPSTREAM_VLM = UPSTREAM_LLM | {
    'llamacpp_image_width', 'llamacpp_image_height', 'llamacpp_vit_model_file_name',
    'llamacpp_advance', 'llamacpp_model_type', 'device', 'publish_image_source',
}  # fmt: skip
OWN = {'params_file', 'namespace', 'log_level', 'asr', 'tts'}
EXPECTED = {
    'vlm': UPSTREAM_VLM | OWN | {'camera', 'web'},
    'llm': UPSTREAM_LLM | OWN,
    'local': OWN | {'folder', 'rate', 'loop'},
    'split': OWN | {'camera', 'web', 'device', 'part', 'domain_id', 'peer', 'zenoh'},
}


def tables_in(path: Path) -> dict[str, set[str]]:
    """Give the keys of the dictionaries that a file defines, by the dictionary's name."""
    return {
        statement.targets[0].id: {key.value for key in statement.value.keys}
        for statement in ast.parse(path.read_text(encoding='utf-8')).body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict)
    }


@pytest.mark.parametrize('name', EXPECTED)
def test_the_arguments_of_hobot_llamacpp_are_declared(name):
    path = LAUNCH / f'{name}.launch.py'
    tables = tables_in(TABLES) | tables_in(path)
    declared = set(tables['UPSTREAM'])
    for call in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == 'bringup.declare':
            for table in call.args:
                declared |= tables[ast.unparse(table).removeprefix('bringup.')]
    assert declared >= EXPECTED[name]


@pytest.mark.parametrize('name', ['llama_vlm', 'llama_vlm_det', 'llama_llm'])
def test_the_defaults_of_the_old_names_are_for_arguments_that_exist(name):
    from dataclasses import fields

    from hobot_vlm.node_config import NodeConfig

    tables = tables_in(TABLES)
    known = {key for table in ('NODE', 'CAMERA', 'SPEECH', 'UPSTREAM') for key in tables[table]}
    known |= {option.name for option in fields(NodeConfig)}
    assert tables_in(LAUNCH / f'{name}.launch.py')['DEFAULTS'] <= known


@pytest.fixture
def ros_launch():
    """Give the launch modules; ./launch is a folder, so look for what only the package has."""
    pytest.importorskip('launch.actions', reason='launch comes with a ROS installation')
    pytest.importorskip('launch_ros.actions', reason='launch_ros comes with a ROS installation')


@pytest.fixture
def board(tmp_path):
    """Give a function that installs a stand-in for a package of a board."""
    before = dict(os.environ)
    for variable in ('CAM_TYPE', 'ASR_TYPE', 'TTS_TYPE', 'FASTDDS_BUILTIN_TRANSPORTS'):
        os.environ.pop(variable, None)
    os.environ['AMENT_PREFIX_PATH'] = str(tmp_path)

    def install(package, launch_file='', *arguments):
        marker = tmp_path / 'share/ament_index/resource_index/packages' / package
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
        path = tmp_path / 'share' / package / 'launch' / f'{launch_file}.launch.py'
        path.parent.mkdir(parents=True)
        if launch_file:
            path.write_text(STAND_IN.format(package=package, arguments=arguments))

    yield install
    os.environ.clear()
    os.environ.update(before)


# Declares what the real launch file declares, and notes what it was told.
STAND_IN = """
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetLaunchConfiguration
from launch.substitutions import LaunchConfiguration
import os
os.environ['SEEN_{package}'] = 'yes'
def note(context):
    for name in {arguments!r}:
        context.told[name] = LaunchConfiguration(name).perform(context)
def generate_launch_description():
    return LaunchDescription([
        *(DeclareLaunchArgument(name, default_value='default') for name in {arguments!r}),
        OpaqueFunction(function=note)])
"""


def walk(entity, context, nodes):
    """Do what a launch service does, but start no process; collect the nodes."""
    from launch_ros.actions import Node

    if isinstance(entity, Node):
        # files are written, and names are resolved, when a node is about to be executed
        entity._perform_substitutions(context)
        nodes.append(entity)
        return
    for part in entity.visit(context) or []:
        walk(part, context, nodes)


def visit(name, **arguments):
    """Load and execute a launch file; give its nodes by package, and the context."""
    from launch import LaunchContext
    from launch.launch_description_sources import PythonLaunchDescriptionSource

    context = LaunchContext(argv=[])
    context.launch_configurations.update(arguments)
    context.told = {}
    nodes = []
    source = PythonLaunchDescriptionSource(str(LAUNCH / f'{name}.launch.py'))
    walk(source.get_launch_description(context), context, nodes)
    return {node.node_package: node for node in nodes}, context


def parameters_of(node):
    """Give what a node is told, as its command line and parameter files say it."""
    import yaml

    values = {}
    for arguments, is_file in node._Node__expanded_parameter_arguments:
        assert is_file
        for body in yaml.safe_load(Path(arguments).read_text()).values():
            values.update(body['ros__parameters'])
    return values


def test_each_argument_reaches_its_parameter(ros_launch, board, tmp_path):
    board('hobot_vlm')
    file = tmp_path / 'some.yaml'
    file.write_text('/**:\n  ros__parameters:\n    n_predict: 7\n    temperature: 0.5\n')
    nodes, context = visit(
        'vlm',
        params_file=str(file),
        namespace='arm',
        log_level='debug',
        llamacpp_vit_model_file_name='a.bin',
        llamacpp_gguf_model_file_name='b.gguf',
        llamacpp_model_type='1',
        llamacpp_user_prompt='12',
        llamacpp_system_prompt='yes',
        llamacpp_advance='2',
        llamacpp_text_msg_pub_name='/say',
        llamacpp_prompt_msg_sub_name='/ask',
        temperature='1',
        stay_alive='true',
    )
    assert parameters_of(nodes['hobot_vlm']) == {
        'feed_type': 1,
        'model_file_name': 'a.bin',
        'llm_model_name': 'b.gguf',
        'model_type': 1,
        'user_prompt': '12',
        'system_prompt': 'yes',
        'pre_infer': 2,
        'text_msg_pub_topic_name': '/say',
        'ros_string_sub_topic_name': '/ask',
        'n_predict': 7,
        'temperature': 1.0,
        'stay_alive': True,
    }
    assert nodes['hobot_vlm'].node_name == '/arm/hobot_vlm'
    assert ('/image', 'image') in nodes['hobot_vlm'].expanded_remapping_rules
    assert context.environment['FASTDDS_BUILTIN_TRANSPORTS'] == 'LARGE_DATA'


def test_a_parameter_file_of_the_package_is_found_by_its_name(ros_launch, board, tmp_path):
    board('hobot_vlm')
    file = tmp_path / 'share/hobot_vlm/config/some.yaml'
    file.parent.mkdir()
    file.write_text('/**:\n  ros__parameters:\n    n_predict: 7\n')
    nodes, context = visit('llm', params_file='some.yaml')
    assert parameters_of(nodes['hobot_vlm']) == {'feed_type': 2, 'n_predict': 7}


def test_a_camera_in_shared_memory(ros_launch, board):
    mipi = ('mipi_image_width', 'mipi_image_height', 'mipi_io_method', 'mipi_video_device')
    web = ('websocket_image_topic', 'websocket_image_type', 'log_level')
    codec = ('codec_sub_topic', 'codec_pub_topic')
    board('hbm_img_msgs')
    board('hobot_vlm')
    board('hobot_shm', 'hobot_shm')
    board('mipi_cam', 'mipi_cam', *mipi)
    board('hobot_codec', 'hobot_codec_encode', *codec)
    board('websocket', 'websocket', *web)
    board('sensevoice_ros2')
    board('hobot_tts')
    os.environ['CAM_TYPE'] = 'mipi'
    nodes, context = visit(
        'vlm',
        llamacpp_image_width='640',
        llamacpp_image_height='480',
        web='true',
        log_level='debug',
        asr='sensevoice',
        tts='hobot_tts',
        audio_device='hw:1,0',
        llamacpp_advance='1',
        llamacpp_prompt_msg_sub_name='/ask',
        llamacpp_text_msg_pub_name='/say',
    )
    told = context.told
    assert [told[name] for name in mipi] == ['640', '480', 'shared_mem', 'F37']
    assert [told[name] for name in codec] == ['/hbmem_img', '/image']
    assert [told[name] for name in web] == ['/image', 'mjpeg', 'warn']
    assert os.environ['SEEN_hobot_shm'] == 'yes'
    assert context.launch_configurations['log_level'] == 'debug'
    assert parameters_of(nodes['hobot_vlm'])['is_shared_mem_sub'] == 1
    assert parameters_of(nodes['sensevoice_ros2']) == {
        'push_wakeup': 1,
        'asr_model': 'sense-voice-small-fp16.gguf',
        'asr_pub_topic_name': '/ask',
        'micphone_name': 'hw:1,0',
    }
    assert parameters_of(nodes['hobot_tts']) == {'topic_sub': '/say', 'playback_device': 'hw:1,0'}


def test_a_usb_camera_hands_on_its_jpeg_pictures(ros_launch, board):
    board('hobot_usb_cam', 'hobot_usb_cam', 'usb_video_device', 'usb_image_width')
    board('hobot_vlm')
    nodes, context = visit('vlm', camera='usb', device='/dev/video8')
    assert context.told == {'usb_video_device': '/dev/video8', 'usb_image_width': '1920'}
    assert parameters_of(nodes['hobot_vlm']) == {'feed_type': 1, 'image_transport': 'compressed'}


def test_every_missing_package_is_named_before_anything_starts(ros_launch, board):
    from hobot_vlm import BackendMissing

    board('hobot_shm', 'hobot_shm')
    with pytest.raises(BackendMissing) as caught:
        visit('vlm', camera='mipi', asr='sensevoice', tts='cloud', web='true')
    assert str(caught.value) == (
        'camera:=mipi needs mipi_cam hbm_img_msgs, asr:=sensevoice needs sensevoice_ros2, '
        'tts:=cloud needs aliyun_tts_node, web:=true needs websocket hobot_codec, '
        'not installed here; on an RDK board: apt install '
        'tros-humble-mipi-cam tros-humble-hbm-img-msgs tros-humble-sensevoice-ros2 '
        'tros-humble-aliyun-tts-node tros-humble-websocket tros-humble-hobot-codec; '
        'elsewhere choose none'
    )


def test_the_old_names_choose_what_they_did(ros_launch, board):
    board('hobot_vlm')
    board('hbm_img_msgs')
    board('hobot_shm', 'hobot_shm')
    board('mipi_cam', 'mipi_cam', 'mipi_video_device')
    board('hobot_codec', 'hobot_codec_encode')
    board('websocket', 'websocket')
    board('sensevoice_ros2')
    board('hobot_tts')
    nodes, context = visit('llama_vlm', llamacpp_vit_model_file_name='a.bin')
    assert set(nodes) == {'hobot_vlm', 'sensevoice_ros2', 'hobot_tts'}
    assert context.told == {'mipi_video_device': 'F37'}
    given = parameters_of(nodes['hobot_vlm'])
    assert given['model_file_name'] == 'a.bin'
    assert given['llm_model_name'] == 'Qwen2.5-0.5B-Instruct-Q4_0.gguf'
    assert given['llm_threads'] == 6
    nodes, context = visit('llama_vlm_det', asr='none')
    assert set(nodes) == {'hobot_vlm', 'hobot_tts'}
    given = parameters_of(nodes['hobot_vlm'])
    assert given['model_file_name'] == 'vit_model_int16_VL3_2B.hbm'
    assert given['parser_mode'] == 1 and given['is_shared_mem_sub'] == 1
    nodes, context = visit('llama_llm')
    given = parameters_of(nodes['hobot_vlm'])
    assert given['feed_type'] == 2
    assert Path(given['system_prompt']).parts[-2:] == ('config', 'system_prompt.txt')


@pytest.mark.parametrize(
    'arguments, message',
    [
        ({'camera': 'none', 'n_ctx': '3'}, 'n_ctx is 3: expected 64 to 1048576'),
        ({'params_file': 'nothing.yaml'}, 'params_file: there is no file nothing.yaml'),
        ({'llamacpp_model_type': '5'}, 'model_type is 5: expected one of -1, 0, 1'),
    ],
)
def test_a_wrong_value_is_refused_before_anything_starts(ros_launch, board, arguments, message):
    from hobot_vlm import ConfigError

    board('hobot_vlm')
    with pytest.raises(ConfigError, match=message):
        visit('vlm', **arguments)


# What `ros2 launch FILE` does, without ros2cli.
SERVICE = """
import sys
from launch import LaunchDescription, LaunchService
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
path, *arguments = sys.argv[1:]
service = LaunchService()
service.include_launch_description(LaunchDescription([IncludeLaunchDescription(
    PythonLaunchDescriptionSource(path),
    launch_arguments=[argument.split(':=') for argument in arguments])]))
sys.exit(service.run())
"""


@pytest.fixture
def installed(board, tmp_path):
    """Install this package as colcon does: executables in lib/hobot_vlm."""
    board('hobot_vlm')
    for name, function in (('hobot_vlm', 'main'), ('play_images', 'play_images')):
        path = tmp_path / 'lib' / 'hobot_vlm' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f'#!{sys.executable}\nimport sys\nfrom hobot_vlm.ros.main import {function}\n'
            f'sys.exit({function}())\n'
        )
        path.chmod(0o755)
    os.environ['ROS_LOG_DIR'] = str(tmp_path / 'log')
    os.environ['ROS_DOMAIN_ID'] = str(os.getpid() % 100 + 1)


def test_local_launch_answers_about_the_played_picture(ros_launch, installed, tmp_path):
    import rclpy
    from std_msgs.msg import String

    launch = subprocess.Popen(
        [sys.executable, '-c', SERVICE, LAUNCH / 'local.launch.py', 'rate:=5', 'namespace:=desk'],
        cwd=tmp_path,
        start_new_session=True,
    )
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node('asker', context=context)
    answers = []
    node.create_subscription(String, '/desk/hobot_vlm/reply', answers.append, 1)
    prompts = node.create_publisher(String, '/desk/prompt_text', 1)
    executor = rclpy.executors.SingleThreadedExecutor(context=context)
    executor.add_node(node)
    try:
        start = asked = time.monotonic()
        while not answers and time.monotonic() - start < 60 and launch.poll() is None:
            executor.spin_once(timeout_sec=0.1)
            if time.monotonic() - asked > 2:  # the first may come before the first picture
                asked = time.monotonic()
                prompts.publish(String(data='Describe the picture.'))
        assert answers, 'no answer in a minute'
        reply = json.loads(answers[0].data)
        assert reply['text'] and reply['image_tokens'] > 0
        launch.send_signal(signal.SIGINT)
        assert launch.wait(60) == 0
    finally:
        with suppress(ProcessLookupError):
            os.killpg(launch.pid, signal.SIGKILL)
        node.destroy_node()
        rclpy.shutdown(context=context)


def test_launch_fails_as_the_node_does(ros_launch, installed, tmp_path):
    done = subprocess.run(
        [sys.executable, '-c', SERVICE, LAUNCH / 'vlm.launch.py', 'llm_model_name:=none.gguf'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert 'none.gguf' in done.stdout + done.stderr
