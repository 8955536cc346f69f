"""Streaming output: each piece is printed as it is made. ``streaming.py [MODEL]``."""

from pathlib import Path
import sys

import hobot_vlm
from hobot_vlm import VLM

picture = Path(hobot_vlm.__file__).parent / 'demo' / 'sample.png'
with VLM.load(sys.argv[1] if len(sys.argv) > 1 else 'demo') as vlm:
    for chunk in vlm.stream('Please describe the image in detail.', str(picture)):
        print(chunk.text, end='', flush=True)
    print()
