"""Single image, single round: ``single_image.py [MODEL [PICTURE]]``."""

from pathlib import Path
import sys

import hobot_vlm
from hobot_vlm import VLM

model, picture = (*sys.argv[1:], *('demo', '')[len(sys.argv) - 1 :])[:2]
picture = picture or str(Path(hobot_vlm.__file__).parent / 'demo' / 'sample.png')
question = 'Please describe the image shortly.'
with VLM.load(model) as vlm:
    print(f'User: {question}\nAssistant: {vlm.ask(question, picture)}')
