"""
vlm.launch.py with the defaults of hobot_llamacpp's launch file of this name.

Model files lie in the current directory, the camera is CAM_TYPE or mipi, and speech and web page
are on.
"""

import os
from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

DEFAULTS = {
    'llamacpp_vit_model_file_name': 'vit_model_int16_v2.bin',
    'llamacpp_gguf_model_file_name': 'Qwen2.5-0.5B-Instruct-Q4_0.gguf',
    'llamacpp_system_prompt': 'You are a helpful assistant.',
    'llm_threads': '6',
    'cute_words': '好的,让我看看;没问题,我想想;容我思考片刻;小事一桩;收到,我的主人',
    'camera': os.environ.get('CAM_TYPE') or 'mipi',
    'asr': os.environ.get('ASR_TYPE') or 'sensevoice',
    'tts': os.environ.get('TTS_TYPE') or 'hobot_tts',
    'web': 'true',
}


def generate_launch_description():
    """Set what is not given, then do as vlm.launch.py does."""
    vlm = PythonLaunchDescriptionSource(str(Path(__file__).with_name('vlm.launch.py')))
    return LaunchDescription(
        [
            *(DeclareLaunchArgument(name, default_value=text) for name, text in DEFAULTS.items()),
            IncludeLaunchDescription(vlm),
        ]
    )
