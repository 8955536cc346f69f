"""Single image, several rounds; the picture stays in the KV cache: ``multi_turn.py [MODEL]``."""

from pathlib import Path
import sys

import hobot_vlm
from hobot_vlm import VLM

picture = Path(hobot_vlm.__file__).parent / 'demo' / 'sample.png'
with VLM.load(sys.argv[1] if len(sys.argv) > 1 else 'demo') as vlm:
    talk = vlm.conversation()
    question = 'Please describe the image in detail.'
    print(f'User: {question}\nAssistant: {talk.ask(question, str(picture))}')
    question = 'What is on the left?'
    reply = talk.ask(question)
    print(f'User: {question}\nAssistant: {reply}')
    print(f'({reply.reused_tokens} of {reply.prompt_tokens} tokens were there already)')
