"""Pictures come in as RGB or are refused with a reason."""

from __future__ import annotations

from io import BytesIO, StringIO
import struct
import zlib

from hobot_vlm.errors import PictureError
from hobot_vlm.image.load import load_rgb
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
        ('/', "picture '/' is no file; give the path"),
        ('/dev/zero', 'is no file'),
        ('x' * 70000, r'picture .xxx.*x.\.\.\.: there is no such file; give'),
        ('data:image/png;base64,' + '!' * 70000, 'data: URL of 70022 characters: .* no base64'),
        ('data:image/png;base64' + 'A' * 70000, 'data: URL of 70021 characters: .* no comma'),
        ('data:,' + 'hello' * 9999, 'data: URL of 50001 characters is not a picture'),
        ('http://127.0.0.1:1/a.png', 'cannot be fetched.*check address'),
        pytest.param(
            StringIO('text'),
            "StringIO.* gives str instead of bytes; open it with mode 'rb'",
            id='StringIO',  # its repr differs from process to process
        ),
        ({'image': 'a.png'}, 'dict: expected a path'),
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
    with pytest.raises(PictureError, match=told) as caught:
        load_rgb(source)
    assert len(str(caught.value)) < 400  # the data itself is not echoed


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
