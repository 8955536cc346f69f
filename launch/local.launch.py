"""
The whole graph on a desk: the pictures of a folder take the place of a camera.

ros2 launch hobot_vlm local.launch.py folder:=$HOME/Pictures rate:=1
ros2 topic pub --once /prompt_text std_msgs/msg/String "{data: 'Describe the picture.'}"
ros2 topic echo /hobot_vlm/result
"""

from hobot_vlm.ros import bringup
from launch import LaunchDescription
from launch.actions import OpaqueFunction
from launch_ros.actions import Node

PICTURES = {
    'folder': bringup.Argument('', 'folder of the pictures; empty: the bundled sample'),
    'rate': bringup.Argument('1', 'pictures a second'),
    'loop': bringup.Argument('true', 'begin again after the last picture', ('true', 'false')),
}


def generate_launch_description():
    """Declare the arguments; what they choose is made when they are known."""
    return LaunchDescription(
        [*bringup.declare(PICTURES, bringup.NODE, bringup.SPEECH), OpaqueFunction(function=start)]
    )


def start(context):
    """Make everything that the arguments choose, or fail before anything is started."""
    bringup.require(context)
    topic = bringup.value(context, 'ros_img_sub_topic_name') or '/image'
    parameters = {
        'folder': bringup.text(bringup.value(context, 'folder')),
        'loop': bringup.value(context, 'loop') == 'true',
        'rate': bringup.number(context, 'rate'),
        'topic': bringup.text(topic),
    }
    player = Node(
        package='hobot_vlm',
        executable='play_images',
        name='play_images',
        output='screen',
        parameters=[parameters],
    )
    node = bringup.node(context, feed_type=1)
    started = [player, node, *bringup.speech(context)]
    return [*bringup.transports(), *bringup.in_namespace(context, started)]
