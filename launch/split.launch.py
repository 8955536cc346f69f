"""
Eyes on one machine, words on another: what docs/machines.md shows.

On the robot:   ros2 launch hobot_vlm split.launch.py part:=vision camera:=usb model:=internvl3-1b
On the other:   ros2 launch hobot_vlm split.launch.py part:=language model:=internvl3-1b
Both on one machine, to try it: part:=both.
"""

from hobot_vlm.config import ELSEWHERE, EMBEDDING, ENCODE_OPTIONS, EncodeConfig
from hobot_vlm.option import checked
from hobot_vlm.ros import bringup, parameters, topics
from launch import LaunchDescription
from launch.actions import OpaqueFunction, SetEnvironmentVariable
from launch_ros.actions import Node

SPLIT = {
    'part': bringup.Argument('both', 'what runs on this machine', ('both', 'vision', 'language')),
    'domain_id': bringup.Argument('', 'ROS_DOMAIN_ID, the same on both machines'),
    'peer': bringup.Argument(
        '', 'address of the other machine, where multicast does not reach it (Iron and later)'
    ),
    'zenoh': bringup.Argument(
        '', 'use rmw_zenoh, and start its router: listen, or the address of the one that listens'
    ),
    'on_demand': bringup.Argument('false', 'encode only when asked to', ('true', 'false')),
    'embedding_dtype': bringup.Argument(
        'float16', 'number format on the way', ('float16', 'bfloat16')
    ),
}
#: options that are of the vision node alone, where both nodes have them by name
VISION = ('image_transport', 'image_qos', 'is_shared_mem_sub', 'max_rate', 'skip_similar')


def generate_launch_description():
    """Declare the arguments; what they choose is made when they are known."""
    return LaunchDescription(
        [
            *bringup.declare(SPLIT, bringup.NODE, bringup.CAMERA, bringup.SPEECH),
            OpaqueFunction(function=start),
        ]
    )


def start(context):
    """Make everything that the arguments choose, or fail before anything is started."""
    bringup.require(context)
    part = bringup.value(context, 'part')
    started = []
    if part != 'language':
        started += [*bringup.camera(context), vision(context)]
    if part != 'vision':
        started += [language(context), *bringup.speech(context)]
    network = [*bringup.transports(), *environment(context), *router(context)]
    return [*network, *bringup.in_namespace(context, started)]


def vision(context):
    """Make the node that encodes, with the parameters that were given."""
    chosen = {**bringup.camera_parameters(context), **bringup.node_parameters(context)}
    for name in ('on_demand', 'embedding_dtype'):
        chosen[name] = bringup.value(context, name)
    options = parameters.FIELDS[EncodeConfig]
    values = {
        name: checked(options[name], chosen[name]) for name in ENCODE_OPTIONS if name in chosen
    }
    texts = {name: bringup.text(each) for name, each in values.items() if isinstance(each, str)}
    return Node(
        package='hobot_vlm',
        executable='encode',
        name='encode',
        output='screen',
        parameters=[{**values, **texts}],
        ros_arguments=['--log-level', bringup.value(context, 'log_level')],
    )


def language(context):
    """Make the main node; what is about cameras and encoders was for the other one."""
    given = context.launch_configurations
    given.update(dict.fromkeys((*VISION, 'encoder_device', 'model_file_name'), ''))
    given.update({'llamacpp_vit_model_file_name': '', 'ros_img_sub_topic_name': ''})
    return bringup.node(
        context,
        feed_type=1,
        image_transport=EMBEDDING,
        encoder_device=ELSEWHERE,
        ros_img_sub_topic_name=topics.EMBEDDINGS.name,
    )


def environment(context):
    """Say where the other machine is."""
    values = {
        'ROS_DOMAIN_ID': bringup.value(context, 'domain_id'),
        'ROS_STATIC_PEERS': bringup.value(context, 'peer'),
    }
    if bringup.value(context, 'zenoh'):
        values['RMW_IMPLEMENTATION'] = 'rmw_zenoh_cpp'
    return [SetEnvironmentVariable(name, text) for name, text in values.items() if text]


def router(context):
    """Make the Zenoh router of this machine; one of the two calls the other."""
    other = bringup.value(context, 'zenoh')
    if not other:
        return []
    call = {'ZENOH_CONFIG_OVERRIDE': f'connect/endpoints=["tcp/{other}:7447"]'}
    return [
        Node(
            package='rmw_zenoh_cpp',
            executable='rmw_zenohd',
            output='screen',
            additional_env={} if other == 'listen' else call,
        )
    ]
