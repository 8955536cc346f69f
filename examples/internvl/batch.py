"""Batch inference, a single image per sample, answered side by side: ``batch.py [MODEL]``."""

from pathlib import Path
import sys

import hobot_vlm
from hobot_vlm import VLM
from PIL import Image

sample = Image.open(Path(hobot_vlm.__file__).parent / 'demo' / 'sample.png').convert('RGB')
pictures = [sample.crop((0, 0, 228, 360)), sample]
questions = [('Describe the picture.', picture) for picture in pictures]
with VLM.load(sys.argv[1] if len(sys.argv) > 1 else 'demo') as vlm:
    for (question, _), reply in zip(questions, vlm.ask_many(questions), strict=True):
        print(f'User: {question}\nAssistant: {reply}')
