"""
Several images, separate: each has its name before it (Image-1: ... Image-2: ...).

``multi_image_separate.py [MODEL]``. The family knows how its makers wrote the names.
"""

from pathlib import Path
import sys

import hobot_vlm
from hobot_vlm import VLM
from PIL import Image

sample = Image.open(Path(hobot_vlm.__file__).parent / 'demo' / 'sample.png').convert('RGB')
left = sample.crop((0, 0, 228, 360))
with VLM.load(sys.argv[1] if len(sys.argv) > 1 else 'demo') as vlm:
    talk = vlm.conversation()
    question = 'Describe the two images.'
    print(f'User: {question}\nAssistant: {talk.ask(question, [left, sample])}')
    question = 'What are the similarities and differences between these two images?'
    print(f'User: {question}\nAssistant: {talk.ask(question)}')
