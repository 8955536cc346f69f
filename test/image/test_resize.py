"""Resizing is Pillow's, pixel for pixel, on many cores and with every fit."""

from __future__ import annotations

from hobot_vlm.image import resize as module
from hobot_vlm.image.resize import BICUBIC, LANCZOS, place, resize
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest


@pytest.fixture
def many_cores(monkeypatch):
    monkeypatch.setattr(module.os, 'cpu_count', lambda: 8)
    monkeypatch.setattr(module, 'BAND_WORK', 1000)


def both_orders(picture, width, height, resample):
    """Resize with Pillow one direction at a time: (across first, down first)."""
    across = picture.resize((width, picture.height), resample)
    down = picture.resize((picture.width, height), resample)
    return (
        np.asarray(across.resize((width, height), resample)),
        np.asarray(down.resize((width, height), resample)),
    )


def noise(width, height):
    rng = np.random.default_rng(width * 10000 + height)
    return rng.integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    'size',
    [(1920, 1080), (1080, 1920), (97, 61), (1, 500), (500, 1), (640, 479), (130, 1200)],
    ids=str,
)
@pytest.mark.parametrize('to', [(448, 448), (256, 128), (700, 1344), (65, 77), (2, 64)], ids=str)
@pytest.mark.parametrize('resample', [BICUBIC, LANCZOS])
def test_resizing_on_many_cores_equals_pillow(size, to, resample, many_cores):
    rgb = noise(*size)
    ours = resize(rgb, *to, resample)
    assert any(
        np.array_equal(ours, theirs) for theirs in both_orders(Image.fromarray(rgb), *to, resample)
    )
    if int(Image.__version__.split('.')[0]) >= 13:
        assert np.array_equal(ours, Image.fromarray(rgb).resize(to, resample))


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(1, 200),
    st.integers(1, 200),
    st.sampled_from([BICUBIC, LANCZOS]),
)
@settings(max_examples=100)
def test_resizing_any_size_equals_pillow(width, height, to_width, to_height, resample):
    rgb = noise(width, height)
    ours = resize(rgb, to_width, to_height, resample)
    down_first = height - to_height > max(0, 2 * (width - to_width))
    theirs = both_orders(Image.fromarray(rgb), to_width, to_height, resample)[down_first]
    assert np.array_equal(ours, theirs)


def test_the_cores_share_the_work(many_cores, monkeypatch):
    parts = []
    whole = Image.Image.resize

    def count(self, size, *args):
        parts.append(size)
        return whole(self, size, *args)

    monkeypatch.setattr(Image.Image, 'resize', count)
    resize(noise(2000, 1000), 512, 1000, BICUBIC)
    assert parts == [(512, 125)] * 8


@given(
    st.integers(1, 200),
    st.integers(1, 200),
    st.integers(1, 64),
    st.integers(1, 64),
    st.sampled_from(['fill', 'contain', 'cover', 'topleft']),
)
def test_every_fit_gives_the_size_asked_for(width, height, to_width, to_height, fit):
    white = np.full((height, width, 3), 255, np.uint8)
    placed = place(white, to_width, to_height, BICUBIC, fit)
    assert placed.shape == (to_height, to_width, 3) and placed.dtype == np.uint8
    lit = placed[..., 0] == 255
    if fit in ('fill', 'cover'):
        assert lit.all()
    elif fit == 'contain':
        assert lit.any(axis=0).all() or lit.any(axis=1).all()
        assert abs(lit.any(axis=0).argmax() - lit.any(axis=0)[::-1].argmax()) <= 1
    else:
        assert lit[0, 0]
