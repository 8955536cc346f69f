"""
The node that talks without pictures, with speech as chosen.

ros2 launch hobot_vlm llm.launch.py llm_model_name:=Qwen2.5-0.5B-Instruct-Q4_0.gguf
"""

from hobot_vlm.ros import bringup
from launch import LaunchDescription
from launch.actions import OpaqueFunction


def generate_launch_description():
    """Declare the arguments; what they choose is made when they are known."""
    return LaunchDescription(
        [*bringup.declare(bringup.NODE, bringup.SPEECH), OpaqueFunction(function=start)]
    )


def start(context):
    """Make everything that the arguments choose, or fail before anything is started."""
    bringup.require(context)
    started = [bringup.node(context, feed_type=2), *bringup.speech(context)]
    return bringup.in_namespace(context, started)
