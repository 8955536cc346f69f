"""Image messages to RGB: every encoding, padding, byte order and size; and messages that lie."""

from array import array
import sys
from types import ModuleType

import cv2
from hobot_vlm.errors import PictureError
from hobot_vlm.ros import images
from hobot_vlm.ros.images import LAYOUTS, rgb_of, to_rgb
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from sensor_msgs.msg import CompressedImage, Image

sides = st.integers(1, 33)
paddings = st.integers(0, 9)
seeds = st.integers(0, 2**32 - 1)


def message(encoding, rows, width, height, padding=0, big_endian=False):
    """Pack rows of bytes, one per row of the message, into an Image with padded steps."""
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xA5)
    msg = Image(
        encoding=encoding,
        height=height,
        width=width,
        step=padded.shape[1],
        is_bigendian=int(big_endian),
    )
    msg.data = array('B', padded.tobytes())
    return msg


def noise(seed, *shape, dtype=np.uint8):
    return np.random.default_rng(seed).integers(
        0, np.iinfo(dtype).max, shape, dtype, endpoint=True
    )


def bt601(y, u, v):
    """Limited-range YCbCr -> RGB by the definition; y below 16 is black."""
    y = np.maximum(y, 16)
    y, u, v = (255 / 219) * (y - 16.0), u - 128.0, v - 128.0
    rgb = np.stack([y + 1.596 * v, y - 0.813 * v - 0.391 * u, y + 2.018 * u], axis=-1)
    return rgb.clip(0, 255)


@given(height=sides, width=sides, padding=paddings, seed=seeds)
def test_colour_orders(height, width, padding, seed):
    rgba = noise(seed, height, width, 4)
    for encoding, order in {
        'rgb8': [0, 1, 2],
        'bgr8': [2, 1, 0],
        'rgba8': [0, 1, 2, 3],
        'bgra8': [2, 1, 0, 3],
    }.items():
        rows = rgba[..., order].reshape(height, -1)
        got = rgb_of(message(encoding, rows, width, height, padding))
        np.testing.assert_array_equal(got, rgba[..., :3], encoding)


@given(height=sides, width=sides, padding=paddings, seed=seeds, big=st.booleans())
def test_deep_pictures_are_scaled_and_rounded(height, width, padding, seed, big):
    deep = noise(seed, height, width, 3, dtype=np.uint16)
    want = np.rint(deep / 257.0).astype(np.uint8)
    kind = '>u2' if big else '<u2'
    grey = deep[..., 0].astype(kind).view(np.uint8)
    got = rgb_of(message('mono16', grey, width, height, padding, big))
    np.testing.assert_array_equal(got, np.repeat(want[..., :1], 3, axis=-1))
    rows = deep[..., ::-1].astype(kind).reshape(height, -1).view(np.uint8)
    got = rgb_of(message('bgr16', rows, width, height, padding, big))
    np.testing.assert_array_equal(got, want)


@given(height=sides, width=sides, padding=paddings, seed=seeds)
def test_grey(height, width, padding, seed):
    grey = noise(seed, height, width)
    got = rgb_of(message('mono8', grey, width, height, padding))
    np.testing.assert_array_equal(got, np.repeat(grey[..., None], 3, axis=-1))


@given(
    height=sides,
    width=sides,
    padding=paddings,
    seed=seeds,
    encoding=st.sampled_from(['yuv422', 'uyvy', 'yuv422_yuy2', 'yuyv']),
)
def test_yuv_422(height, width, padding, seed, encoding):
    width *= 2
    y, u, v = noise(seed, height, width), *noise(seed, 2, height, width // 2)
    rows = np.empty((height, width // 2, 4), np.uint8)
    order = [0, 1, 2, 3] if encoding in ('yuv422', 'uyvy') else [1, 0, 3, 2]
    for place, plane in zip(order, (u, y[:, 0::2], v, y[:, 1::2]), strict=True):
        rows[..., place] = plane
    got = rgb_of(message(encoding, rows.reshape(height, -1), width, height, padding))
    want = bt601(y, u.repeat(2, 1), v.repeat(2, 1))
    assert np.abs(got - want).max() <= 2


@given(
    height=sides,
    width=sides,
    padding=paddings,
    seed=seeds,
    encoding=st.sampled_from(['nv12', 'nv21', 'NV12']),
)
def test_yuv_420(height, width, padding, seed, encoding):
    height, width = 2 * height, 2 * width
    y, u, v = noise(seed, height, width), *noise(seed, 2, height // 2, width // 2)
    pair = (v, u) if encoding == 'nv21' else (u, v)
    rows = np.concatenate([y, np.stack(pair, axis=-1).reshape(height // 2, width)])
    got = rgb_of(message(encoding, rows, width, height, padding))
    want = bt601(y, *(c.repeat(2, 0).repeat(2, 1) for c in (u, v)))
    assert np.abs(got - want).max() <= 2


@pytest.mark.parametrize('order', ['rggb', 'bggr', 'gbrg', 'grbg'])
@pytest.mark.parametrize('deep', [False, True])
def test_bayer(order, deep):
    """On a smooth picture, what is interpolated is near what was there."""
    x, y = np.meshgrid(np.linspace(0, 1, 64), np.linspace(0, 1, 48))
    rgb = np.stack([40 + 160 * x, 60 + 120 * y, 200 - 150 * x], axis=-1)
    mosaic = np.empty((48, 64))
    for place, colour in enumerate(order):
        at = (slice(place // 2, None, 2), slice(place % 2, None, 2))
        mosaic[at] = rgb[..., 'rgb'.index(colour)][at]
    rows = (mosaic * 257).astype('<u2').view(np.uint8) if deep else mosaic.astype(np.uint8)
    got = rgb_of(message(f'bayer_{order}{16 if deep else 8}', rows, 64, 48, padding=4))
    assert np.abs(got[2:-2, 2:-2] - rgb[2:-2, 2:-2]).max() < 8


def test_rgb8_is_a_view():
    """A 1080p picture must not be copied on its way to the tiles."""
    msg = message('rgb8', noise(0, 1080, 1920 * 3), 1920, 1080)
    assert np.shares_memory(rgb_of(msg), np.frombuffer(msg.data, np.uint8))


@settings(max_examples=1000)
@given(
    encoding=st.sampled_from([*LAYOUTS, '', 'rgb', '32FC1', 'x' * 300, '\N{SNOWMAN}']),
    height=st.one_of(st.integers(0, 40), st.just(2**32 - 1)),
    width=st.one_of(st.integers(0, 40), st.just(2**32 - 1)),
    step=st.one_of(st.integers(0, 200), st.just(2**32 - 1)),
    size=st.integers(0, 4000),
    big=st.booleans(),
)
def test_messages_that_lie(encoding, height, width, step, size, big):
    """Whatever the numbers say: a picture of that size, or a PictureError; never a crash."""
    try:
        got = to_rgb(encoding, height, width, step, bytes(size), big)
    except PictureError as exc:
        assert str(exc)
    else:
        assert got.shape == (height, width, 3) and got.dtype == np.uint8


@pytest.mark.parametrize(
    'change, says',
    [
        ({'encoding': 'rgb9'}, "encoding 'rgb9' is unknown: expected one of bayer"),
        ({'height': 0}, 'of 4x0 is empty'),
        ({'width': 5}, 'step of 12 bytes: expected at least 15'),
        ({'height': 3}, '24 bytes of data: expected 36'),
        ({'height': 1}, '24 bytes of data: expected 12'),
        ({'data': array('B')}, '0 bytes of data: expected 24'),
    ],
)
def test_a_broken_message_says_what_is_wrong(change, says):
    msg = message('rgb8', noise(0, 2, 12), 4, 2)
    for name, value in change.items():
        setattr(msg, name, value)
    with pytest.raises(PictureError, match=says):
        rgb_of(msg)


def test_odd_nv12():
    with pytest.raises(PictureError, match='multiples of 2x2'):
        to_rgb('nv12', 3, 4, 4, bytes(16))


def test_compressed(tmp_path):
    import io

    from PIL import Image as Pillow

    rgb = noise(1, 20, 30, 3)
    for kind in ('png', 'jpeg'):
        file = io.BytesIO()
        Pillow.fromarray(rgb // 128 * 8 + 100).save(file, kind)
        msg = CompressedImage(format=kind, data=array('B', file.getvalue()))
        got = rgb_of(msg)
        assert np.abs(got.astype(int) - (rgb // 128 * 8 + 100)).max() <= (
            0 if kind == 'png' else 20
        )
    with pytest.raises(PictureError, match="format 'png', 9 bytes"):
        rgb_of(CompressedImage(format='png', data=array('B', b'no image.')))
    with pytest.raises(PictureError, match='compressedDepth'):
        rgb_of(CompressedImage(format='16UC1; compressedDepth png'))


@pytest.mark.parametrize('order', ['rggb', 'bggr', 'gbrg', 'grbg'])
@pytest.mark.parametrize('deep', [False, True])
def test_a_compressed_mosaic(order, deep):
    """Its format says what it is; taken apart, it is the picture that it was made of."""
    x, y = np.meshgrid(np.linspace(0, 1, 64), np.linspace(0, 1, 48))
    rgb = np.stack([40 + 160 * x, 60 + 120 * y, 200 - 150 * x], axis=-1)
    mosaic = np.empty((48, 64), np.uint16 if deep else np.uint8)
    for place, colour in enumerate(order):
        at = (slice(place // 2, None, 2), slice(place % 2, None, 2))
        mosaic[at] = rgb[..., 'rgb'.index(colour)][at] * (257 if deep else 1)
    data = cv2.imencode('.png', mosaic)[1].tobytes()
    encoding = f'bayer_{order}{16 if deep else 8}'
    for form in (f'{encoding}; png compressed {encoding}', f'{encoding}; png compressed '):
        got = rgb_of(CompressedImage(format=form, data=array('B', data)))
        assert np.abs(got[2:-2, 2:-2] - rgb[2:-2, 2:-2]).max() < 8
    # whoever compressed colours took the mosaic apart before
    data = cv2.imencode('.png', rgb[..., ::-1].astype(np.uint8))[1].tobytes()
    form = f'{encoding}; png compressed bgr8'
    got = rgb_of(CompressedImage(format=form, data=array('B', data)))
    np.testing.assert_array_equal(got, rgb.astype(np.uint8))


@pytest.mark.parametrize(
    'form', ['16UC1; png compressed 16UC1', '32FC1; compressedDepth png', '32FC1; tiff compressed']
)
def test_a_compressed_depth_is_no_picture(form):
    data = cv2.imencode('.png', np.zeros((4, 4), np.uint16))[1].tobytes()
    with pytest.raises(PictureError, match='expected a picture in colour or grey'):
        rgb_of(CompressedImage(format=form, data=array('B', data)))


def test_other_formats_are_as_their_data_says():
    rgb = noise(2, 8, 8, 3)
    data = cv2.imencode('.png', rgb[..., ::-1])[1].tobytes()
    for form in ('', 'png', 'jpeg', 'rgb8; png compressed bgr8', 'yuv422; jpeg compressed bgr8'):
        got = rgb_of(CompressedImage(format=form, data=array('B', data)))
        np.testing.assert_array_equal(got, rgb)


def hbm(**changes):
    """Make a message; its arrays are fixed, and most of them unused."""
    from hbm_img_msgs.msg import HbmMsg1080P

    data = np.zeros(6220800, np.uint8)
    data[: 16 * 8] = 120
    data[16 * 8 : 16 * 12] = 128
    fields = {
        'index': 0,
        'height': 8,
        'width': 16,
        'data_size': 192,
        'step': 16,
        'encoding': np.frombuffer(b'nv12'.ljust(12, b'\0'), np.uint8),
        'data': data,
    }
    return HbmMsg1080P(**(fields | changes))


@pytest.mark.usefixtures('messages')
def test_shared_memory_message():
    got = rgb_of(hbm())
    assert got.shape == (8, 16, 3)
    assert np.abs(got - bt601(120.0, 128.0, 128.0)).max() <= 1
    for size in (0, 6220801):
        with pytest.raises(PictureError, match=f'data_size of {size}: expected 1 to 6220800'):
            rgb_of(hbm(data_size=size))
    with pytest.raises(PictureError, match='100 bytes of data: expected 192'):
        rgb_of(hbm(data_size=100))


def test_converters_give_equal_arrays():
    """Both libraries, where this machine has cv_bridge."""
    try:
        ours = images.cv_bridge_converter()
    except ImportError:
        pytest.skip('no cv_bridge on this machine')
    theirs = images.rosbags_converter()
    for encoding in set(LAYOUTS) - set(images.NOT_OF_CV_BRIDGE):
        layout = LAYOUTS[encoding]
        row = 64 * layout.channels * layout.bits // 8
        pixels = images.Pixels(encoding, 48, 64, row, noise(3, 48 * row), 0)
        target = f'rgb{layout.bits}'
        np.testing.assert_array_equal(ours(pixels, target), theirs(pixels, target), encoding)


class Broken(ModuleType):
    """A cv_bridge made for another NumPy."""

    def __getattr__(self, name):
        raise AttributeError('_ARRAY_API not found')


@pytest.mark.parametrize(
    'cv_bridge', [None, Broken('cv_bridge')], ids=['missing', 'made for another NumPy']
)
def test_without_a_cv_bridge_that_works(cv_bridge, monkeypatch):
    """None makes the import fail as if it were not installed."""
    monkeypatch.setitem(sys.modules, 'cv_bridge', cv_bridge)
    monkeypatch.setattr(images, '_converter', images._converter.__wrapped__)
    bgr = noise(4, 6, 8, 3)
    msg = message('bgr8', bgr.reshape(6, -1), 8, 6)
    np.testing.assert_array_equal(rgb_of(msg), bgr[..., ::-1])
