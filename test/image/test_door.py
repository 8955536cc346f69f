"""Whatever a picture comes as: its kind, its notes, its numbers, its cost, and the network."""

from __future__ import annotations

import base64
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO, RawIOBase
import mmap
import os
from pathlib import Path
import struct
import subprocess
import sys
import tempfile
import threading
from urllib.parse import quote

from hobot_vlm.errors import PictureError
from hobot_vlm.image import fetch, load
from hobot_vlm.image.load import load_rgb
import numpy as np
from PIL import Image, PngImagePlugin
import pytest

RGB = np.random.default_rng(1).integers(0, 256, (30, 40, 3), np.uint8)
PICTURE = Image.fromarray(RGB)


def encoded(picture, kind='PNG', **options):
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


PNG = encoded(PICTURE)
JPEG = encoded(PICTURE, 'JPEG')
BASE64 = base64.b64encode(PNG).decode()


# -- what it comes as -------------------------------------------------------------------------


@pytest.mark.parametrize(
    'source',
    [
        PICTURE,
        BytesIO(PNG),
        'data:image/png;base64,' + BASE64,
        'DATA:image/png;charset=x;base64,' + BASE64.rstrip('='),
        'data:;base64,' + '\n'.join(BASE64[i : i + 76] for i in range(0, len(BASE64), 76)),
        'data:;base64,' + base64.urlsafe_b64encode(PNG).decode(),
        'data:image/png,' + quote(PNG),
    ],
    ids=['PIL', 'file', 'data', 'unpadded', 'in lines', 'urlsafe', 'percent'],
)
def test_every_way_to_give_a_picture(source):
    assert np.array_equal(load_rgb(source), RGB)


def written(file):
    file.write(PNG)
    return file


def read_to_its_end(path):
    file = path.open('rb')
    assert file.read() == PNG
    return file


def mapped(path):
    with path.open('rb') as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class Bits(RawIOBase):
    """Gives a few bytes at a time and has no place, as a socket."""

    def __init__(self):
        super().__init__()
        self.file = BytesIO(PNG)

    def readable(self):
        return True

    def readinto(self, buffer):
        data = self.file.read(min(len(buffer), 700))
        buffer[: len(data)] = data
        return len(data)


def piped():
    reading, writing = os.pipe()
    os.write(writing, PNG)
    os.close(writing)
    return os.fdopen(reading, 'rb')


@pytest.mark.parametrize(
    'opened',
    [
        lambda path: written(BytesIO()),
        lambda path: written(tempfile.SpooledTemporaryFile()),
        read_to_its_end,
        mapped,
        lambda path: Bits(),
        lambda path: piped(),
    ],
    ids=['written', 'spooled', 'read', 'mapped', 'bits', 'pipe'],
)
def test_a_place_within_an_open_file_is_not_trusted(tmp_path, opened):
    path = tmp_path / 'a.png'
    path.write_bytes(PNG)
    with opened(path) as file:
        assert np.array_equal(load_rgb(file), RGB)
        if not hasattr(file, 'seekable') or file.seekable():
            assert np.array_equal(load_rgb(file), RGB)


def test_one_open_file_for_many(demo):
    """Each reads it from its beginning, whoever else reads it at that time."""
    file = BytesIO(PNG)
    replies = demo.ask_many([(f'{number}?', file) for number in range(12)], n_predict=1)
    assert all(reply.image_tokens for reply in replies)


def test_home_and_open_files(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'a.png').write_bytes(PNG)
    assert np.array_equal(load_rgb('~/a.png'), RGB)
    assert np.array_equal(load_rgb(Path('~/a.png')), RGB)
    with open(tmp_path / 'a.png', 'rb') as file:
        assert np.array_equal(load_rgb(file), RGB)
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(PictureError, match='pipe.* is no file'):
        load_rgb(tmp_path / 'pipe')


def test_a_pil_image_is_treated_as_its_file():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(np.ascontiguousarray(np.rot90(RGB))), exif=exif.tobytes())
    assert np.array_equal(load_rgb(Image.open(BytesIO(data))), RGB)
    glass = Image.new('RGBA', (3, 2), (9, 9, 9, 0))
    assert (load_rgb(glass) == 255).all()
    with pytest.raises(PictureError, match='PIL image of mode LAB, 3x2 .* colours as LAB'):
        load_rgb(Image.new('LAB', (3, 2)))
    with pytest.raises(PictureError, match='0x0 pixels'):
        load_rgb(Image.new('RGB', (0, 0)))


def test_an_open_file_that_fails():
    class Broken:
        def read(self, size):
            raise ValueError('no luck ' * 999)

    with pytest.raises(PictureError, match='open file .Broken. cannot be read') as caught:
        load_rgb(Broken())
    assert len(str(caught.value)) < 300


# -- notes ------------------------------------------------------------------------------------


def with_text(**options):
    info = PngImagePlugin.PngInfo()
    info.add_itxt('k', 'x' * 2_000_000, **options)
    info.add_text('l', 'y' * 2_000_000, **options)
    return encoded(PICTURE, pnginfo=info)


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize(
    ('data', 'plain'),
    [
        (with_text(zip=True), PNG),
        (with_text(zip=False), PNG),
        (encoded(PICTURE, icc_profile=os.urandom(3_000_000)), PNG),
        (encoded(PICTURE, exif=b'Exif\0\0' + os.urandom(3_000_000)), PNG),
        (encoded(PICTURE, 'JPEG', icc_profile=os.urandom(3_000_000)), JPEG),
        (encoded(PICTURE, 'JPEG', exif=b'Exif\0\0' + os.urandom(60_000)), JPEG),
        (encoded(PICTURE, 'JPEG', xmp=b'<' * 60_000), JPEG),
        (encoded(PICTURE, 'JPEG', comment=os.urandom(60_000)), JPEG),
        *(
            (encoded(PICTURE, 'WEBP', lossless=True, **{note: b'\xff' * 2_000_000}), PNG)
            for note in ('icc_profile', 'exif', 'xmp')
        ),
        (encoded(PICTURE, 'TIFF', icc_profile=os.urandom(3_000_000)), PNG),
    ],
)
def test_no_note_costs_the_picture(data, plain):
    assert np.array_equal(load_rgb(data), load_rgb(plain))


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('marker', range(0xE0, 0xF0))
def test_no_segment_of_a_jpeg_costs_the_picture(marker):
    for body in (
        b'',
        os.urandom(3000),
        b'MPF\0MM\0*\0\0\0\x08' + os.urandom(300),
        b'Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x10' + os.urandom(300),
        b'ICC_PROFILE\0' + os.urandom(9),
        b'Exif\0\0' + os.urandom(30),
    ):
        note = bytes([0xFF, marker]) + struct.pack('>H', len(body) + 2) + body
        assert np.array_equal(load_rgb(JPEG[:2] + note + JPEG[2:]), load_rgb(JPEG))


def test_a_comment_of_a_gif_costs_nothing():
    flat = PICTURE.quantize(16)
    noted = encoded(flat, 'GIF', comment=os.urandom(4_000_000))
    assert np.array_equal(load_rgb(noted), load_rgb(encoded(flat, 'GIF')))


# -- numbers ----------------------------------------------------------------------------------


def tiff(values, dtype):
    return encoded(Image.fromarray(np.asarray(values).astype(dtype)), 'TIFF')


@pytest.mark.parametrize('dtype', ['f4', 'f8'])
def test_fractions_are_scaled(dtype):
    ramp = np.linspace(0, 1, 256).reshape(16, 16)
    assert np.array_equal(load_rgb(tiff(ramp, dtype))[..., 1].ravel(), np.arange(256))


@pytest.mark.parametrize(
    ('values', 'dtype', 'told'),
    [
        ([[0, 255]], 'f4', 'fractions from 0 to 255: expected 0 .black. to 1'),
        ([[-1, 1]], 'f4', 'fractions from -1 to 1'),
        ([[0, np.nan]], 'f4', 'fractions from nan'),
        ([[0, np.inf]], 'f4', 'to inf'),
        ([[0, 4000]], 'i4', 'without a known white'),
        ([[-9, 4000]], 'i2', 'without a known white'),
        ([[0, 4000]], 'u4', 'without a known white'),
        ([[0, 255]], 'u2', 'no number above 255, where 65536 is white'),
    ],
)
def test_numbers_without_a_known_white_are_refused(values, dtype, told):
    with pytest.raises(PictureError, match=told):
        load_rgb(tiff(values, dtype))


def test_every_mode_of_pillow_is_read_or_refused():
    """Not as damaged: it was not read from anything."""
    colours = Image.fromarray(np.full((4, 4, 3), 200, np.uint8))
    for mode in ('L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBa', 'RGBX', 'CMYK', 'YCbCr', 'HSV'):
        assert load_rgb(colours.convert(mode)).min() >= 198, mode
    assert (load_rgb(colours.convert('LA').convert('La')) == 200).all()
    for mode in ('I', 'F', 'I;16', 'I;16B'):  # 200 of four thousand millions is black
        with pytest.raises(PictureError, match='white'):
            load_rgb(colours.convert(mode))


def test_grey_of_16_bits_where_zero_is_white():
    deep = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    data = encoded(Image.fromarray(deep), 'TIFF', tiffinfo={262: 0})
    assert np.array_equal(load_rgb(data)[..., 0].ravel(), 255 - np.arange(256))


def test_colours_of_other_kinds():
    grey = np.full((8, 8, 3), 128, np.uint8)
    for mode in ('CMYK', 'YCbCr'):
        for kind in ('JPEG', 'TIFF'):
            found = load_rgb(encoded(Image.fromarray(grey).convert(mode), kind))
            assert np.abs(found.astype(int) - 128).max() < 3
    flat = PICTURE.quantize(4)
    found = load_rgb(encoded(flat, transparency=2))
    assert (found[np.asarray(flat) == 2] == 255).all()


@pytest.mark.parametrize('kind', ['GIF', 'WEBP', 'PNG', 'TIFF', 'AVIF'])
def test_the_first_frame_of_an_animation(kind):
    frames = [Image.new('RGB', (20, 20), colour) for colour in ('red', 'lime')]
    found = load_rgb(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert found[..., 0].min() > 250 and found[..., 1].max() < 5


# -- cost -------------------------------------------------------------------------------------

EMPTY_SCAN = b'\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00\x00'


def many_scans(side, scans):
    data = encoded(Image.new('RGB', (side, side)), 'JPEG', progressive=True)
    return data[:-2] + EMPTY_SCAN * scans + data[-2:]


def test_a_jpeg_of_many_scans_is_refused():
    with pytest.raises(PictureError, match='JPEG of 86.. scans: expected at most 100'):
        load_rgb(many_scans(64, 8600))


def test_reading_ends_when_its_time_is_up(monkeypatch):
    monkeypatch.setattr(load, 'SECONDS', 0.0)
    for source in (PNG, JPEG, BytesIO(PNG), PICTURE):
        with pytest.raises(PictureError, match='takes longer than 0 s to read'):
            load_rgb(source)


@pytest.mark.parametrize('kind', load.FORMATS)
def test_reading_ends_when_nobody_wants_it(kind):
    data = encoded(PICTURE, kind)
    with pytest.raises(PictureError, match='was cancelled'):
        load_rgb(data, cancelled=lambda: True)


def test_a_jpeg_is_left_in_the_middle():
    data, asked = many_scans(1500, 90), []
    with pytest.raises(PictureError, match='was cancelled'):
        load_rgb(data, cancelled=lambda: bool(asked.append(1)) or len(asked) > 10)
    assert len(asked) == 11


LIMITED = """
import resource, sys
from hobot_vlm.errors import PictureError
from hobot_vlm.image.load import MEMORY, load_rgb
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    shape = load_rgb(sys.argv[1]).shape
    print(shape)
except PictureError as error:
    print('PictureError', error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 2**20)
"""


@pytest.mark.parametrize(
    ('kind', 'options'),
    [
        ('JPEG2000', {}),
        ('WEBP', {'lossless': True, 'quality': 0, 'method': 0}),
        ('AVIF', {'speed': 10}),
        ('PNG', {}),
        ('JPEG', {'progressive': True, 'subsampling': 0}),
        ('TIFF', {'compression': 'tiff_lzw'}),
    ],
)
@pytest.mark.parametrize('side', [4000, 9400])
def test_memory_stays_within_the_bound(kind, options, side, tmp_path):
    if kind == 'PNG':
        picture = Image.new('I;16', (side, side), 30000)
    else:
        picture = Image.new('RGB', (side, side), (200, 30, 99))
    if side == 9400 and kind in ('JPEG2000', 'AVIF'):
        pytest.skip('making it takes longer than the test is worth')
    picture.save(tmp_path / 'picture', kind, **options)
    result = subprocess.run(
        [sys.executable, '-c', LIMITED, str(tmp_path / 'picture')],
        capture_output=True,
        text=True,
        check=True,
    )
    outcome, megabytes = result.stdout.splitlines()
    assert float(megabytes) < (load.MEMORY >> 20) * 1.1
    assert outcome == f'({side}, {side}, 3)' if side == 4000 else 'million in all' in outcome


# -- the network ------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_args):
        pass

    def do_GET(self):
        name = self.path.strip('/')
        if name == 'a.png':
            self.answer(200, PNG)
        elif name == 'hop':
            self.answer(302, b'', Location='/a.png')
        elif name == 'file':
            self.answer(302, b'', Location='file:///etc/passwd')
        elif name == 'ftp':
            self.answer(302, b'', Location='ftp://127.0.0.1/a.png')
        elif name == 'round':
            self.answer(302, b'', Location='/round')
        elif name == 'short':
            self.answer(200, PNG[:99], **{'Content-Length': str(len(PNG))})
        elif name == 'endless':
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(1 << 16))
            except OSError:
                pass
        elif name == 'silent':
            self.server.quiet.wait(60)
        else:
            self.answer(404, b'')

    def answer(self, status, body, **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv('no_proxy', '*')
    running = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    running.daemon_threads = True
    running.quiet = threading.Event()
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f'http://127.0.0.1:{running.server_address[1]}'
    running.quiet.set()
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.mark.parametrize('name', ['a.png', 'hop'])
def test_an_address_is_fetched(server, name):
    assert np.array_equal(load_rgb(f'{server}/{name}'), RGB)


@pytest.mark.parametrize(
    ('name', 'told'),
    [
        ('absent', 'the server answers 404'),
        ('file', 'cannot be fetched'),
        ('ftp', 'cannot be fetched'),
        ('round', 'cannot be fetched'),
        ('short', 'bytes came'),
    ],
)
def test_what_cannot_be_fetched(server, name, told):
    with pytest.raises(PictureError, match=told):
        load_rgb(f'{server}/{name}')


def test_an_endless_answer_ends(server, monkeypatch):
    monkeypatch.setattr(load, 'MAX_BYTES', 3 << 20)
    with pytest.raises(PictureError, match='more than 3 MB'):
        load_rgb(f'{server}/endless')


def test_a_silent_server_is_left(server, monkeypatch):
    with pytest.raises(PictureError, match='was cancelled'):
        load_rgb(f'{server}/silent', cancelled=lambda: True)
    monkeypatch.setattr(fetch, 'SECONDS', 0.2)
    with pytest.raises(PictureError, match='takes longer than 0 s to fetch'):
        load_rgb(f'{server}/silent')


def test_pictures_from_the_network_keep_no_others_waiting(server, demo, sample):
    """Eight requests for a picture that never comes; a file is read meanwhile."""
    expected = demo.ask('Describe the picture.', sample)
    streams = [demo.stream('Describe the picture.', f'{server}/silent') for _ in range(9)]
    assert demo.ask('Describe the picture.', sample).text == expected.text
    for stream in streams:
        stream.close()
    assert demo.ask('What is it?', f'{server}/a.png').image_tokens  # the fetchers are free again


def test_a_video_is_not_fetched(server, demo):
    with pytest.raises(PictureError, match='only pictures are fetched.*download it'):
        demo.ask('What is it?', f'{server}/a.mp4')


@pytest.mark.parametrize('url', ['http://', 'http://[', 'http://a b/', 'http://127.0.0.1:1/x'])
def test_addresses_that_lead_nowhere(url):
    with pytest.raises(PictureError, match='cannot be fetched'):
        load_rgb(url)
