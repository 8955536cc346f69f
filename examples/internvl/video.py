"""
A video of which eight frames are shown, then a second question: ``video.py [MODEL [VIDEO]]``.

Without a video it makes one, in which the bundled picture passes by.
"""

from pathlib import Path
import sys
from tempfile import TemporaryDirectory

import cv2
import hobot_vlm
from hobot_vlm import VLM
from hobot_vlm.values import Video


def make(path: Path) -> str:
    """Write two seconds of video."""
    sample = cv2.imread(str(Path(hobot_vlm.__file__).parent / 'demo' / 'sample.png'))
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 10, (360, 360))
    for left in range(0, 280, 14):
        writer.write(sample[:, left : left + 360].copy())
    writer.release()
    return str(path)


model, file = (*sys.argv[1:], *('demo', '')[len(sys.argv) - 1 :])[:2]
with VLM.load(model) as vlm, TemporaryDirectory() as folder:
    video = Video(file or make(Path(folder) / 'video.mp4'), frames=8)
    talk = vlm.conversation()
    question = 'What is in the video?'
    print(f'User: {question}\nAssistant: {talk.ask(question, video)}')
    question = 'Describe this video in detail.'
    print(f'User: {question}\nAssistant: {talk.ask(question)}')
