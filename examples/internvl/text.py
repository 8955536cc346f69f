"""Pure-text conversation, as the model cards of InternVL have it: ``text.py [MODEL]``."""

import sys

from hobot_vlm import VLM

with VLM.load(sys.argv[1] if len(sys.argv) > 1 else 'demo') as vlm:
    talk = vlm.conversation()
    for question in ('Hello, who are you?', 'Can you tell me a story?'):
        print(f'User: {question}\nAssistant: {talk.ask(question)}')
