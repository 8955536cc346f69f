"""Pictures come in as RGB or are refused with a reason; resizing is Pillow's."""

from __future__ import annotations

from io import BytesIO
import struct
import zlib

from hobot_vlm import image
from hobot_vlm.errors import PictureError
from hobot_vlm.image import BICUBIC, LANCZOS, load_rgb, place, resize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
from PIL import Image
import pytest

RGB = np.random.default_rng(1).integers(0, 256, (30, 40, 3), np.uint8)


def encoded(picture, kind='PNG', **options):
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


PNG = encoded(Image.fromarray(RGB))


@pytest.mark.parametrize('kind', ['PNG', 'BMP', 'TIFF', 'PPM', 'WEBP'])
def test_a_file_is_read_from_a_path_and_from_bytes(kind, tmp_path):
    data = encoded(Image.fromarray(RGB), kind, **({'lossless': True} if kind == 'WEBP' else {}))
    path = tmp_path / '图 1'
    path.write_bytes(data)
    for source in (path, str(path), data, bytearray(data), memoryview(data)):
        assert np.array_equal(load_rgb(source), RGB)


def test_a_jpeg_is_what_pillow_decodes():
    data = encoded(Image.fromarray(RGB), 'JPEG')
    assert np.array_equal(load_rgb(data), np.asarray(Image.open(BytesIO(data))))


def test_an_rgb_array_is_not_copied():
    assert load_rgb(RGB) is RGB


def test_array_layouts():
    grey = RGB[..., 0]
    for source in (grey, grey[..., None]):
        assert np.array_equal(load_rgb(source), np.dstack([grey] * 3))
    opaque = np.dstack([RGB, np.full((30, 40), 255, np.uint8)])
    assert np.array_equal(load_rgb(opaque), RGB)
    mirrored = load_rgb(RGB[:, ::-1])
    assert mirrored.flags['C_CONTIGUOUS'] and np.array_equal(mirrored, RGB[:, ::-1])


def test_transparent_parts_are_white():
    alpha = np.zeros((30, 40), np.uint8)
    alpha[:, 20:] = 255
    array = np.dstack([RGB, alpha])
    for source in (array, encoded(Image.fromarray(array))):
        rgb = load_rgb(source)
        assert (rgb[:, :20] == 255).all() and np.array_equal(rgb[:, 20:], RGB[:, 20:])


def test_palette_and_bilevel_files():
    palette = Image.fromarray(RGB).quantize(16)
    assert np.array_equal(load_rgb(encoded(palette)), np.asarray(palette.convert('RGB')))
    assert np.array_equal(load_rgb(encoded(palette, 'GIF')), np.asarray(palette.convert('RGB')))
    bilevel = Image.fromarray(RGB[..., 0]).convert('1')
    assert np.array_equal(load_rgb(encoded(bilevel))[..., 1], np.asarray(bilevel) * np.uint8(255))


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'PGM'])
def test_16_bit_grey_keeps_its_range(kind):
    deep = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    data = (
        b'P5\n32 32\n65535\n' + deep.byteswap().tobytes()
        if kind == 'PGM'
        else encoded(Image.frombytes('I;16', (32, 32), deep.astype('<u2').tobytes()), kind)
    )
    assert np.array_equal(load_rgb(data), np.dstack([deep >> 8] * 3))


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'WEBP'])
def test_exif_orientation_sets_a_picture_upright(orientation, kind):
    # what the camera stored, for a picture that is RGB when upright
    stored = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.swapaxes(0, 1),
        6: np.rot90(RGB, 1),
        7: np.rot90(RGB, 2).swapaxes(0, 1),
        8: np.rot90(RGB, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(
        Image.fromarray(np.ascontiguousarray(stored)),
        kind,
        exif=exif.tobytes(),
        **({'lossless': True} if kind == 'WEBP' else {}),
    )
    upright = load_rgb(data)
    assert upright.flags['C_CONTIGUOUS'] and np.array_equal(upright, RGB)


@pytest.mark.filterwarnings('ignore:Corrupt EXIF')
def test_broken_exif_does_not_cost_the_picture():
    data = encoded(Image.fromarray(RGB), 'JPEG', exif=b'Exif\0\0MM\0*\xff\xff\xff\xff garbage')
    assert load_rgb(data).shape == RGB.shape


def chunk(name, data):
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))


def png_that_claims(width, height):
    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', header)
        + chunk(b'IDAT', zlib.compress(bytes(1000)))
        + chunk(b'IEND', b'')
    )


@pytest.mark.parametrize('width,height', [(70000, 1), (1, 70000), (20000, 20000), (9500, 9500)])
@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_decompression_bombs_are_refused_before_they_are_decoded(width, height):
    with pytest.raises(PictureError, match='give a picture within|make it smaller'):
        load_rgb(png_that_claims(width, height))


@pytest.mark.parametrize(
    'source,told',
    [
        (PNG[: len(PNG) // 2], 'damaged.*expected a whole .* copy or save it again'),
        (encoded(Image.fromarray(RGB), 'JPEG')[:-200], 'damaged'),
        (PNG[:8], 'picture of 8 bytes is'),
        (b'', 'picture of 0 bytes is not a picture.*expected JPEG, PNG'),
        (b'#!/bin/sh\necho hello', 'is not a picture.*give another file'),
        (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n', 'is not a picture'),
        ('no/such.png', "picture 'no/such.png': there is no such file; give"),
        ('/', "picture '/': there is no such file"),
        ('', "picture '': there is no such file"),
        ('a\0b', 'there is no such file'),
        (None, 'NoneType: expected a path.*convert'),
        (3.5, 'float: expected a path'),
        ([PNG], 'list: expected a path'),
        (np.zeros((4, 4, 3)), r'shape \(4, 4, 3\) and type float64: expected uint8.*astype'),
        (np.zeros((3, 4, 5), np.uint8), r'expected uint8 .*transpose\(1, 2, 0\)'),
        (np.zeros((2, 4, 4, 3), np.uint8), 'one picture at a time'),
        (np.zeros(12, np.uint8), 'expected uint8'),
        (np.zeros((4, 4, 2), np.uint8), 'expected uint8'),
        (np.zeros((0, 4, 3), np.uint8), 'is 4x0 pixels: expected 1 to 65535 a side.*give'),
        (np.zeros((4, 0), np.uint8), 'is 0x4 pixels'),
        (np.zeros((1, 65536), np.uint8), 'is 65536x1 pixels'),
        (np.array('x'), 'expected uint8'),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_not_a_picture_is_refused_with_a_cure(source, told):
    with pytest.raises(PictureError, match=told):
        load_rgb(source)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / 'secret.png'
    path.write_bytes(PNG)

    def refuse(*_):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr('builtins.open', refuse)
    with pytest.raises(PictureError, match='Permission denied; make it readable'):
        load_rgb(path)


@pytest.mark.filterwarnings('ignore')
@given(
    st.binary(max_size=300),
    st.sampled_from(
        [
            b'',
            b'\x89PNG\r\n\x1a\n',
            b'\xff\xd8\xff',
            b'GIF89a',
            b'BM',
            b'II*\0',
            b'MM\0*',
            b'P6 2 2 255\n',
            b'P5 1 1 65535\n',
            b'RIFF\x20\0\0\0WEBPVP8 ',
            b'\0\0\0\x0cjP  \r\n\x87\n',
            b'\0\0\0\x1cftypavif',
        ]
    ),
)
@settings(max_examples=300)
def test_random_bytes_are_a_picture_or_a_picture_error(data, start):
    check_whatever(start + data)


WHOLE = [
    encoded(Image.fromarray(RGB[:9, :11]), kind)
    for kind in ('PNG', 'JPEG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'PPM')
]


@pytest.mark.filterwarnings('ignore')
@given(
    st.sampled_from(WHOLE),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    st.floats(0.05, 1),
)
@settings(max_examples=300)
def test_damaged_files_are_a_picture_or_a_picture_error(data, changes, kept):
    damaged = bytearray(data)
    for place_in_file, value in changes:
        damaged[int(place_in_file * (len(data) - 1))] = value
    check_whatever(damaged[: max(1, int(kept * len(data)))])


def check_whatever(data):
    try:
        rgb = load_rgb(data)
    except PictureError as error:
        assert len(str(error)) > 40
    else:
        assert rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3
        assert rgb.flags['C_CONTIGUOUS']


@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.float32, np.uint16, np.bool_]),
        hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6),
    )
)
def test_any_array_is_a_picture_or_a_picture_error(array):
    good = (
        array.dtype == np.uint8
        and array.size > 0
        and (array.ndim == 2 or array.ndim == 3 and array.shape[2] in (1, 3, 4))
    )
    if good:
        assert load_rgb(array).shape == (*array.shape[:2], 3)
    else:
        with pytest.raises(PictureError):
            load_rgb(array)


@pytest.fixture
def many_cores(monkeypatch):
    monkeypatch.setattr(image.os, 'cpu_count', lambda: 8)
    monkeypatch.setattr(image, 'BAND_WORK', 1000)


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
