"""
Several images, combined: their tiles stand one after the other, as those of one picture.

``multi_image_combined.py [MODEL]``. Here that is one picture made of two side by side.
"""

from pathlib import Path
import sys

import hobot_vlm
from hobot_vlm import VLM
import numpy as np
from PIL import Image

sample = Image.open(Path(hobot_vlm.__file__).parent / 'demo' / 'sample.png').convert('RGB')
left, right = sample.crop((0, 0, 228, 360)), sample.crop((436, 0, 640, 360))
both = np.hstack([np.asarray(one.resize((360, 360))) for one in (left, right)])
with VLM.load(sys.argv[1] if len(sys.argv) > 1 else 'demo') as vlm:
    talk = vlm.conversation()
    question = 'Describe the picture.'
    print(f'User: {question}\nAssistant: {talk.ask(question, both)}')
    question = 'What is on the right?'
    print(f'User: {question}\nAssistant: {talk.ask(question)}')
