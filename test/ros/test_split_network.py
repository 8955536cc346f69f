"""
Eyes and words on two machines, and between them a link of 20 ms and 20 Mbit/s.

HOBOT_VLM_LONG=1 asks a hundred questions, and kills the encode node at half of them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess

from hobot_vlm import VLM
import pytest

from .conftest import ACTORS, MODELS, SAMPLE
from .link import forbidden, Link

LONG = 'HOBOT_VLM_LONG' in os.environ
QUESTION = 'Describe the picture.'
DECODER = MODELS / 'internvl' / 'decoder.gguf'
ENCODER = MODELS / 'internvl' / 'vision.onnx'
RUN = 'from hobot_vlm.ros.main import {0}; {0}()'


def test_over_a_slow_link(ros, tmp_path):
    """Each prompt has its reply, in order, and that is the one of a single process."""
    if forbidden():
        pytest.skip(forbidden())
    count = 100 if LONG else 6
    (tmp_path / 'pictures').mkdir()
    (tmp_path / 'pictures' / 'sample.png').symlink_to(SAMPLE)
    environment = os.environ | {'ROS_AUTOMATIC_DISCOVERY_RANGE': 'SUBNET'}
    running = []

    def run(link, number, log, *arguments, **more):
        with (tmp_path / log).open('a') as err:
            more = {'stderr': err, 'env': environment, **more}
            running.append(link.run(number, *arguments, **more))
        return running[-1]

    def parameters(**values):
        given = [('-p', f'{name}:={value}') for name, value in values.items()]
        return ['--ros-args', *(word for pair in given for word in pair)]

    eyes = ['-c', RUN.format('encode'), *parameters(model_file_name=ENCODER, model_type=0)]
    with Link(0.020, 20e6) as link:
        try:
            words = parameters(
                llm_model_name=DECODER, feed_type=1, image_transport='embedding', n_predict=24,
                llm_threads=1,
            )  # fmt: skip
            run(link, 1, 'words', '-c', RUN.format('main'), *words)
            vision = run(link, 0, 'eyes', *eyes)
            play = parameters(folder=tmp_path / 'pictures', rate=5.0, frame_id='left')
            run(link, 0, 'play', '-c', RUN.format('play_images'), *play)
            talk = run(
                *(link, 1, 'talk', str(ACTORS), 'talk', str(count)),
                stdout=subprocess.PIPE,
                text=True,
            )
            replies = []
            with talk.stdout:
                for line in talk.stdout:
                    replies.append(json.loads(line))
                    if LONG and len(replies) == count // 2:
                        vision.kill()
                        run(link, 0, 'eyes', *eyes)
            assert talk.wait(60) == 0
        finally:
            for process in running:
                process.send_signal(signal.SIGINT)
            ends = [process.wait(20) for process in running]
    with VLM.load(
        model_file_name=str(ENCODER), llm_model_name=str(DECODER), n_predict=24, llm_threads=1
    ) as vlm:
        expected = vlm.ask('Question 0', SAMPLE).text
    logs = {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()}
    assert [reply['prompt'] for reply in replies] == [f'Question {i}' for i in range(count)], logs
    assert all(reply['error'] == '' and reply['frame_id'] == 'left' for reply in replies)
    assert replies[0]['text'] == expected
    assert LONG or ends == [0] * len(running), logs
    assert all(link.frames)
    assert not any('Traceback' in log for log in logs.values())
