"""
llm.launch.py with the defaults of hobot_llamacpp's launch file of this name.

The model file lies in the current directory, and speech is on.
"""

import os
from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource

OWN = Path('config/system_prompt.txt')
BUNDLED = Path(__file__).parent.parent / OWN

DEFAULTS = {
    'llamacpp_gguf_model_file_name': 'Qwen2.5-0.5B-Instruct-Q4_0.gguf',
    'llamacpp_system_prompt': str(OWN if OWN.is_file() else BUNDLED),
    'llm_threads': '6',
    'cute_words': '我来啦',
    'asr': os.environ.get('ASR_TYPE') or 'sensevoice',
    'tts': os.environ.get('TTS_TYPE') or 'hobot_tts',
}


def generate_launch_description():
    """Set what is not given, then do as llm.launch.py does."""
    llm = PythonLaunchDescriptionSource(str(Path(__file__).with_name('llm.launch.py')))
    return LaunchDescription(
        [
            *(DeclareLaunchArgument(name, default_value=text) for name, text in DEFAULTS.items()),
            IncludeLaunchDescription(llm),
        ]
    )
