"""
llama_vlm.launch.py for detection, with the defaults of hobot_llamacpp's launch file of this name.

Each prompt names a thing to find; its boxes are published.
"""

from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

DEFAULTS = {
    'llamacpp_vit_model_file_name': 'vit_model_int16_VL3_2B.hbm',
    'llamacpp_gguf_model_file_name': 'qwen2_5_1.5b_q8_0_InternVL3_2B.gguf',
    'llm_threads': '3',
    'parser_mode': '1',
}


def generate_launch_description():
    """Set what is not given, then do as llama_vlm.launch.py does."""
    vlm = PythonLaunchDescriptionSource(str(Path(__file__).with_name('llama_vlm.launch.py')))
    return LaunchDescription(
        [
            *(DeclareLaunchArgument(name, default_value=text) for name, text in DEFAULTS.items()),
            IncludeLaunchDescription(vlm),
        ]
    )
