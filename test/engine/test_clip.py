"""Clips: pictures in the order of time reach the model as the frames of a video do."""

from __future__ import annotations

from core import prompt
from folders import DEMO, MODELS
from hobot_vlm import PictureError, VLM
from hobot_vlm.values import Clip
import numpy as np
from pictures import picture
import pytest

SHOWN = [picture(60, 40, seed) for seed in (1, 2, 3)]


@pytest.fixture(scope='module')
def vlm():
    folder = MODELS / 'internvl'
    with VLM.load(
        model_file_name=str(folder / 'vision.onnx'),
        llm_model_name=str(folder / 'decoder.gguf'),
        llm_threads=1,
        n_ctx=1024,
    ) as opened:
        yield opened


def test_a_clip_is_written_as_its_family_writes_videos(vlm):
    made = prompt(vlm, 'What happens?', Clip(SHOWN, [0.0, 0.5, 1.25])).prompt
    frames = ['Frame1', 'Frame2', 'Frame3']
    labelled = prompt(vlm, 'What happens?', SHOWN, labels=frames, max_tiles=1).prompt
    assert made.ids == labelled.ids
    assert vlm.ask('What?', Clip(SHOWN, [0, 1, 2]), n_predict=2).image_tokens == 3 * 4


def test_clips_stay_apart(vlm):
    """Two cameras, with as many pictures each, and a picture beside them."""
    one, other = Clip(SHOWN[:2], [0, 1]), Clip(SHOWN[1:], [0, 1])
    made = prompt(vlm, 'What?', [one, other, SHOWN[0]], max_tiles=1).prompt
    labels = ['Frame1', 'Frame2', 'Frame1', 'Frame2']
    pictures = [*SHOWN[:2], *SHOWN[1:]]
    labelled = prompt(vlm, 'What?', pictures, labels=labels, max_tiles=1).prompt
    tail = labelled.ids[labelled.tiles[0][0] :]
    assert made.ids[-len(tail) :] == tail and len(made.ids) > len(labelled.ids)


def test_the_times_of_a_clip_are_told():
    """SmolVLM writes how long it is, and when each picture was taken."""
    with VLM.load(model_file_name=str(DEMO / 'vision.onnx'),
                  llm_model_name=str(DEMO / 'decoder.gguf')) as demo:  # fmt: skip
        made = prompt(demo, 'What?', Clip(SHOWN, [0, 60, 65])).prompt
        text = b''.join(demo.parts.model.piece(i) for i in made.ids if i >= 0).decode()
    assert 'three frames from a 0:01:10 [H:MM:SS] video' in text
    assert 'Frame from 01:05:' in text


@pytest.mark.parametrize(
    'images, seconds',
    [
        ([], []),
        (SHOWN, [0, 1]),
        (SHOWN, [0, 1, 1]),
        (SHOWN, [0, 2, 1]),
        (SHOWN, [1, 2, 3]),
        (SHOWN, [0, 1, np.nan]),
        (SHOWN, [0, 1, np.inf]),
    ],
)
def test_what_is_no_clip(images, seconds):
    with pytest.raises(PictureError, match='clip'):
        Clip(images, seconds)
