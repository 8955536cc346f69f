"""
What the launch files are made of: their arguments, and the nodes that those arguments choose.

It knows which packages of a D-Robotics board a choice needs, and names the missing ones before
anything is started. It knows nothing of models: what the node is given is checked by ``config``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
import os
from pathlib import Path
from typing import Any

from ament_index_python.packages import (
    get_package_prefix,
    get_package_share_directory,
    PackageNotFoundError,
)
from launch import LaunchContext
from launch.actions import (
    DeclareLaunchArgument,
    GroupAction,
    IncludeLaunchDescription,
    SetEnvironmentVariable,
    Shutdown,
)
from launch.events.process import ProcessExited
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node, PushRosNamespace, SetRemap
from launch_ros.parameter_descriptions import ParameterValue

from . import topics
from ..config import NodeConfig
from ..errors import BackendMissing, ConfigError
from ..option import checked

SAMPLE = Path(__file__).parent.parent / 'demo' / 'sample.png'


@dataclass(frozen=True)
class Argument:
    """
    An argument of a launch file.

    :param variable: environment variable that holds the default, as hobot_llamacpp has it
    """

    default: str
    doc: str
    choices: tuple[str, ...] = ()
    variable: str = ''


NODE = {
    'params_file': Argument('', 'YAML file of node parameters, here or in config/; arguments win'),
    'namespace': Argument('', 'namespace of all that is started, and of its topics'),
    'log_level': Argument(
        'info', 'what the node logs', ('debug', 'info', 'warn', 'error', 'fatal')
    ),
}
CAMERA = {
    'camera': Argument(
        'none', 'what publishes the pictures', ('none', 'usb', 'mipi', 'fb'), 'CAM_TYPE'
    ),
    'device': Argument('', 'camera device; empty: /dev/video0 (usb) or F37 (mipi)'),
    'publish_image_source': Argument('', 'picture of camera:=fb; empty: the bundled sample'),
    'llamacpp_image_width': Argument('1920', 'width of the camera picture'),
    'llamacpp_image_height': Argument('1080', 'height of the camera picture'),
    'web': Argument('false', 'show the pictures in a browser, port 8000', ('true', 'false')),
}
SPEECH = {
    'asr': Argument(
        'none', 'what turns speech into prompts', ('none', 'sensevoice', 'cloud'), 'ASR_TYPE'
    ),
    'tts': Argument('none', 'what speaks the answers', ('none', 'hobot_tts', 'cloud'), 'TTS_TYPE'),
    'audio_asr_model': Argument('sense-voice-small-fp16.gguf', 'model of asr:=sensevoice'),
    'audio_device': Argument('hw:0,0', 'sound device of asr and tts'),
}
#: hobot_llamacpp's arguments, and the parameters that they set
UPSTREAM = {
    'llamacpp_vit_model_file_name': 'model_file_name',
    'llamacpp_gguf_model_file_name': 'llm_model_name',
    'llamacpp_model_type': 'model_type',
    'llamacpp_user_prompt': 'user_prompt',
    'llamacpp_system_prompt': 'system_prompt',
    'llamacpp_advance': 'pre_infer',
    'llamacpp_text_msg_pub_name': 'text_msg_pub_topic_name',
    'llamacpp_prompt_msg_sub_name': 'ros_string_sub_topic_name',
}
#: what a choice needs besides this package
PACKAGES = {
    'camera:=usb': ('hobot_usb_cam',),
    'camera:=mipi': ('mipi_cam', 'hobot_shm', 'hbm_img_msgs'),
    'camera:=fb': ('hobot_image_publisher', 'hobot_shm', 'hbm_img_msgs'),
    'asr:=sensevoice': ('sensevoice_ros2',),
    'asr:=cloud': ('aliyun_asr_node',),
    'tts:=hobot_tts': ('hobot_tts',),
    'tts:=cloud': ('aliyun_tts_node',),
    'web:=true': ('websocket',),
}
#: topics with absolute names of which each robot has its own
TOPICS = {topic.name for topic in topics.ALL if topic.name[0] == '/'} - {topics.DIAGNOSTICS.name}
#: cameras that hand over their pictures in shared memory
SHARED_MEMORY = ('mipi', 'fb')


def declare(*tables: Mapping[str, Argument]) -> list[DeclareLaunchArgument]:
    """Declare the arguments of the tables, and one for each parameter of the node."""
    declared = []
    for name, item in (pair for table in tables for pair in table.items()):
        default = os.environ.get(item.variable) or item.default
        doc = f'{item.doc} (environment: {item.variable})' if item.variable else item.doc
        declared.append(
            DeclareLaunchArgument(
                name, default_value=default, description=doc, choices=item.choices or None
            )
        )
    # Empty means that the argument was not given: the parameter file or the node decides.
    alike = {name: f'the same as {parameter}' for name, parameter in UPSTREAM.items()}
    for name, doc in (alike | {o.name: o.metadata['doc'] for o in fields(NodeConfig)}).items():
        declared.append(DeclareLaunchArgument(name, default_value='', description=doc))
    return declared


def value(context: LaunchContext, name: str) -> str:
    """Give the value of an argument; empty where it was not declared."""
    content: str = LaunchConfiguration(name, default='').perform(context)
    return content


def number(context: LaunchContext, name: str) -> float:
    """
    Give an argument that is a number.

    :raises ConfigError: it is none
    """
    content = value(context, name)
    try:
        return float(content)
    except ValueError:
        raise ConfigError(f'{name} is {content[:100]!r}: expected a number', name) from None


def transports() -> list[SetEnvironmentVariable]:
    """Make Fast DDS carry large images, which its default transports lose."""
    name = 'FASTDDS_BUILTIN_TRANSPORTS'
    return [] if os.environ.get(name) else [SetEnvironmentVariable(name, 'LARGE_DATA')]


def require(context: LaunchContext) -> None:
    """
    Check that what the arguments choose is installed.

    :raises BackendMissing: names every choice and every package that is missing
    """
    missing: dict[str, list[str]] = {}
    for choice, packages in PACKAGES.items():
        argument, _, wanted = choice.partition(':=')
        if value(context, argument) == wanted:
            if choice == 'web:=true' and value(context, 'camera') in SHARED_MEMORY:
                packages = (*packages, 'hobot_codec')
            absent = [name for name in packages if not _is_installed(name)]
            if absent:
                missing[choice] = absent
    if missing:
        needs = [f'{choice} needs {" ".join(absent)}' for choice, absent in missing.items()]
        distro = os.environ.get('ROS_DISTRO', 'humble')
        names = dict.fromkeys(name for absent in missing.values() for name in absent)
        debs = ' '.join(f'tros-{distro}-{name.replace("_", "-")}' for name in names)
        raise BackendMissing(
            f'{", ".join(needs)}, not installed here',
            f'on an RDK board: apt install {debs}; elsewhere choose none',
        )


def _is_installed(package: str) -> bool:
    try:
        get_package_prefix(package)
    except PackageNotFoundError:
        return False
    return True


def node_parameters(context: LaunchContext) -> dict[str, str]:
    """Give the node's parameters that were given; a plain name wins over hobot_llamacpp's."""
    names = {**UPSTREAM, **{option.name: option.name for option in fields(NodeConfig)}}
    return {
        parameter: value(context, name)
        for name, parameter in names.items()
        if value(context, name)
    }


def node(context: LaunchContext, **defaults: Any) -> Node:
    """
    Make the node with the parameters that were given.

    :param defaults: parameters that the launch file chooses; arguments win over them
    :raises ConfigError: a value that a parameter cannot have, or no such parameter file
    """
    options = {option.name: option for option in fields(NodeConfig)}
    chosen = {**defaults, **node_parameters(context)}.items()
    values = {name: checked(options[name], item) for name, item in chosen}
    parameters: list[Any] = []
    if value(context, 'params_file'):
        parameters.append(str(_params_file(value(context, 'params_file'))))
    parameters.append(
        {n: text(item) if isinstance(item, (str, tuple)) else item for n, item in values.items()}
    )
    return Node(
        package='hobot_vlm',
        executable='hobot_vlm',
        name='hobot_vlm',
        output='screen',
        parameters=parameters,
        ros_arguments=['--log-level', value(context, 'log_level')],
        on_exit=_ended,
    )


def in_namespace(context: LaunchContext, actions: Sequence[Any]) -> list[Any]:
    """
    Put all that is started into the namespace, if one was given.

    The topics have absolute names, as on a board; in a namespace they follow it, for every node,
    so that two launches share none. A topic that an argument names stays as it was named.
    """
    namespace = value(context, 'namespace')
    if not namespace:
        return [*actions]
    remaps = [SetRemap(topic, topic[1:]) for topic in sorted(TOPICS)]
    return [GroupAction([PushRosNamespace(namespace), *remaps, *actions])]


def _params_file(name: str) -> Path:
    own = Path(get_package_share_directory('hobot_vlm')) / 'config'
    for path in (Path(name).expanduser(), own / name):
        if path.is_file():
            return path
    raise ConfigError(f'params_file: there is no file {name}, nor one in {own}', 'params_file')


def _ended(event: ProcessExited, context: LaunchContext) -> Shutdown:
    """End the rest with the node; an exception makes `ros2 launch` fail as the node did."""
    if event.returncode and not context.is_shutdown:
        raise RuntimeError(
            f'hobot_vlm failed (exit status {event.returncode}); its last lines say why'
        )
    return Shutdown(reason='hobot_vlm has ended')


def camera_parameters(context: LaunchContext) -> dict[str, Any]:
    """Give the node's parameters that fit the chosen camera."""
    camera = value(context, 'camera')
    if camera in SHARED_MEMORY:
        return {'is_shared_mem_sub': 1}
    # hobot_usb_cam hands on the camera's JPEG pictures; only those asked about get decoded.
    return {'image_transport': 'compressed'} if camera == 'usb' else {}


def camera(context: LaunchContext) -> list[Any]:
    """Make what publishes and shows pictures, as ``camera`` and ``web`` say."""
    chosen, device = value(context, 'camera'), value(context, 'device')
    width = value(context, 'llamacpp_image_width')
    height = value(context, 'llamacpp_image_height')
    actions: list[Any] = []
    if chosen in SHARED_MEMORY:
        # Sets the environment of all that follows, so it stands outside of any group.
        actions.append(IncludeLaunchDescription(_launch_file('hobot_shm', 'hobot_shm')))
    if chosen == 'usb':
        usb = _include(
            'hobot_usb_cam',
            usb_image_width=width,
            usb_image_height=height,
            usb_framerate='30',
            usb_video_device=device or '/dev/video0',
        )
        actions.append(usb)
    elif chosen == 'mipi':
        mipi = _include(
            'mipi_cam',
            mipi_image_width=width,
            mipi_image_height=height,
            mipi_io_method='shared_mem',
            mipi_frame_ts_type='realtime',
            mipi_video_device=device or 'F37',
        )
        actions.append(mipi)
    elif chosen == 'fb':
        source = os.path.expanduser(value(context, 'publish_image_source')) or str(SAMPLE)
        picture = _include(
            'hobot_image_publisher',
            publish_image_source=source,
            publish_image_format=Path(source).suffix[1:],
            publish_is_shared_mem='True',
            publish_message_topic_name=topics.HBM_IMAGE.name,
            publish_fps='10',
            publish_is_loop='True',
            publish_output_image_w=width,
            publish_output_image_h=height,
        )
        actions.append(picture)
    if value(context, 'web') == 'true':
        if chosen in SHARED_MEMORY:
            codec = _include(
                'hobot_codec',
                'hobot_codec_encode',
                codec_in_mode='shared_mem',
                codec_out_mode='ros',
                codec_sub_topic=topics.HBM_IMAGE.name,
                codec_pub_topic=topics.IMAGE.name,
            )
            actions.append(codec)
        page = _include(
            'websocket',
            websocket_image_topic=topics.IMAGE.name,
            websocket_image_type='mjpeg',
            websocket_only_show_image='True',
        )
        actions.append(page)
    return actions


def speech(context: LaunchContext) -> list[Node]:
    """Make what hears and speaks, as ``asr`` and ``tts`` say."""
    given = node_parameters(context)
    prompts = text(given.get('ros_string_sub_topic_name', topics.PROMPT.name))
    answers = text(given.get('text_msg_pub_topic_name', topics.SPEECH.name))
    # The wake word goes out as a prompt too, so that the picture is encoded early.
    wakeup = given.get('pre_infer') == '1'
    sound = text(value(context, 'audio_device'))
    asr, tts = value(context, 'asr'), value(context, 'tts')
    nodes = []
    if asr == 'sensevoice':
        hearing = _quiet(
            'sensevoice_ros2',
            'sensevoice_ros2',
            push_wakeup=int(wakeup),
            asr_model=text(value(context, 'audio_asr_model')),
            asr_pub_topic_name=prompts,
            micphone_name=sound,
        )
        nodes.append(hearing)
    elif asr == 'cloud':
        hearing = _quiet(
            'aliyun_asr_node',
            'asr_node',
            audio_device=sound,
            pub_topic_name=prompts,
            pub_awake_keyword=wakeup,
        )
        nodes.append(hearing)
    if tts == 'hobot_tts':
        nodes.append(_quiet('hobot_tts', 'hobot_tts', topic_sub=answers, playback_device=sound))
    elif tts == 'cloud':
        speaking = _quiet(
            'aliyun_tts_node',
            'aliyun_tts_node',
            tts_method='sambert',
            text_topic=answers,
            cosy_voice='longjielidou',
            audio_device=sound,
        )
        nodes.append(speaking)
    return nodes


def text(content: str | tuple[str, ...]) -> ParameterValue:
    """Make a parameter that stays text, or texts, even where it looks like a number."""
    if isinstance(content, str):
        return ParameterValue(content, value_type=str)
    return ParameterValue([*content], value_type=list[str])


def _quiet(package: str, executable: str, **parameters: Any) -> Node:
    return Node(
        package=package,
        executable=executable,
        output='screen',
        parameters=[parameters],
        ros_arguments=['--log-level', 'warn'],
    )


def _include(package: str, name: str = '', **arguments: str) -> GroupAction:
    """Include another package's launch file; what it is given and declares stays inside."""
    included = IncludeLaunchDescription(
        _launch_file(package, name or package),
        launch_arguments={'log_level': 'warn', **arguments}.items(),
    )
    return GroupAction([included])


def _launch_file(package: str, name: str) -> PythonLaunchDescriptionSource:
    share = Path(get_package_share_directory(package))
    return PythonLaunchDescriptionSource(str(share / 'launch' / f'{name}.launch.py'))
