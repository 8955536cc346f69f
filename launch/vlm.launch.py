"""
The node that answers questions about pictures, with a camera, speech and a web page as chosen.

ros2 launch hobot_vlm vlm.launch.py camera:=usb asr:=sensevoice tts:=hobot_tts
"""

from hobot_vlm.ros import bringup
from launch import LaunchDescription
from launch.actions import OpaqueFunction


def generate_launch_description():
    """Declare the arguments; what they choose is made when they are known."""
    return LaunchDescription(
        [
            *bringup.declare(bringup.NODE, bringup.CAMERA, bringup.SPEECH),
            OpaqueFunction(function=start),
        ]
    )


def start(context):
    """Make everything that the arguments choose, or fail before anything is started."""
    bringup.require(context)
    node = bringup.node(context, feed_type=1, **bringup.camera_parameters(context))
    started = [*bringup.camera(context), node, *bringup.speech(context)]
    return [*bringup.transports(), *bringup.in_namespace(context, started)]
