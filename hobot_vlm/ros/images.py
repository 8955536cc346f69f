"""
From image messages to RGB arrays.

Knows sizes, steps, byte orders and encodings. The colour conversion itself is done by cv_bridge
where the ROS installation has it and it knows the encoding, otherwise by rosbags-image; both go
through OpenCV and give equal arrays. Nothing here subscribes to anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
import logging
import re
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from ..encoded import EncodedImage, is_encoded
from ..errors import BackendMissing, PictureError
from ..vlm import read_image

Array = npt.NDArray[Any]
Convert = Callable[['Pixels', str], Array]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """
    How an encoding lies in memory.

    :param channels: values per pixel; planes of a 4:2:0 picture count as further rows
    :param bits: per value
    :param even: (width, height) must be multiples of these
    :param chroma_rows: rows of colour below the picture, as a share of its height
    """

    channels: int
    bits: int = 8
    even: tuple[int, int] = (1, 1)
    chroma_rows: float = 0.0


LAYOUTS = {
    'mono8': Layout(1),
    'mono16': Layout(1, 16),
    'yuv422': Layout(2, even=(2, 1)),
    'yuv422_yuy2': Layout(2, even=(2, 1)),
    'nv12': Layout(1, even=(2, 2), chroma_rows=0.5),
    'nv21': Layout(1, even=(2, 2), chroma_rows=0.5),
    **{
        f'{order}{bits}': Layout(len(order), bits)
        for order in ('rgb', 'bgr', 'rgba', 'bgra')
        for bits in (8, 16)
    },
    **{
        f'bayer_{order}{bits}': Layout(1, bits)
        for order in ('rggb', 'bggr', 'gbrg', 'grbg')
        for bits in (8, 16)
    },
}
#: newer names of sensor_msgs, and D-Robotics' capitals
ALIASES = {'uyvy': 'yuv422', 'yuyv': 'yuv422_yuy2', 'NV12': 'nv12', 'NV21': 'nv21'}
#: what cv_bridge cannot convert, in any release up to Kilted
NOT_OF_CV_BRIDGE = ('nv12', 'nv21')


@dataclass(frozen=True, eq=False)
class Pixels:
    """
    The pixels of a message without padding, in this machine's byte order.

    The names are those of sensor_msgs/Image, so that cv_bridge and rosbags-image read it as one.
    """

    encoding: str
    height: int
    width: int
    step: int
    data: Array
    is_bigendian: int


def picture_of(message: Any) -> npt.NDArray[np.uint8] | EncodedImage:
    """
    Give the picture of a message: an encoded one as that, any other as ``rgb_of`` does.

    :raises PictureError: the message contradicts itself or has an unknown encoding
    :raises ModelMismatch: it was encoded by another version of hobot_vlm
    """
    if is_encoded(getattr(message, 'format', '')):
        return EncodedImage.unpack(message.format, message.data)
    return rgb_of(message)


def rgb_of(message: Any) -> npt.NDArray[np.uint8]:
    """
    Give the picture of an Image, a CompressedImage or an HbmMsg1080P as RGB (height, width, 3).

    An rgb8 picture is a view of the message; it must not be written to.

    :raises PictureError: the message contradicts itself or has an unknown encoding
    """
    if hasattr(message, 'format'):
        return _decompress(message)
    if hasattr(message, 'data_size'):
        return _rgb_of_hbm(message)
    return to_rgb(
        message.encoding,
        message.height,
        message.width,
        message.step,
        message.data,
        bool(message.is_bigendian),
    )


def to_rgb(
    encoding: str, height: int, width: int, step: int, data: Any, big_endian: bool = False
) -> npt.NDArray[np.uint8]:
    """
    Give the pixels as RGB (height, width, 3).

    :param step: bytes from one row to the next; 0 where there is no padding
    :param data: anything with the buffer interface
    :raises PictureError: the numbers contradict each other or the encoding is unknown
    """
    encoding = ALIASES.get(encoding, encoding)
    pixels = _without_padding(
        encoding, height, width, step, np.frombuffer(data, np.uint8), big_endian
    )
    if encoding == 'rgb8':
        return pixels.data.reshape(height, width, 3)
    deep = LAYOUTS[encoding].bits == 16
    target = 'rgb16' if deep else 'rgb8'
    try:
        rgb = _converter(encoding)(pixels, target)
    except BackendMissing:
        raise
    except Exception as exc:  # each library has its own errors, OpenCV's among them
        raise PictureError(
            f'cannot convert a {encoding} picture of {width}x{height} to rgb8: {exc}'
        ) from exc
    if deep:
        # here, and not in the libraries: one rounds and the other cuts
        rgb = (rgb.astype(np.uint32) * 255 + 32767) // 65535
    return np.ascontiguousarray(rgb, np.uint8)


def _without_padding(
    encoding: str, height: int, width: int, step: int, data: Array, big_endian: bool
) -> Pixels:
    """Check that the numbers of a message agree, and cut what pads its rows."""
    layout = LAYOUTS.get(encoding)
    if layout is None:
        raise PictureError(
            f'image encoding {encoding[:40]!r} is unknown: expected one of '
            f'{", ".join(sorted(LAYOUTS))}'
        )
    what = f'a {encoding} picture of {width}x{height}'
    if width < 1 or height < 1:
        raise PictureError(f'{what} is empty: expected at least one row and one column')
    if width % layout.even[0] or height % layout.even[1]:
        raise PictureError(
            f'{what} cannot be: its colours are shared between neighbours, so '
            f'expected multiples of {layout.even[0]}x{layout.even[1]}'
        )
    row = width * layout.channels * layout.bits // 8
    rows = height + int(height * layout.chroma_rows)
    step = step or row
    if step < row:
        raise PictureError(f'{what} with a step of {step} bytes: expected at least {row}')
    # some drivers leave out the padding of the last row, none adds less than a row
    if not step * (rows - 1) + row <= data.size <= step * rows:
        raise PictureError(
            f'{what} with a step of {step} bytes and {data.size} bytes of data: '
            f'expected {step * rows}'
        )
    if step != row:
        data = np.lib.stride_tricks.as_strided(data, (rows, row), (step, 1), writeable=False)
    data = np.ascontiguousarray(data).reshape(-1)
    if layout.bits == 16 and big_endian != (sys.byteorder == 'big'):
        data = data.view(np.uint16).byteswap().view(np.uint8)
    return Pixels(encoding, height, width, row, data, int(sys.byteorder == 'big'))


@cache
def _converter(encoding: str) -> Convert:
    """Choose the library for an encoding."""
    if encoding not in NOT_OF_CV_BRIDGE:
        try:
            return cv_bridge_converter()
        except ImportError:
            pass
        except Exception as exc:  # a cv_bridge built for another NumPy fails in its own ways
            log.warning('cv_bridge cannot be loaded (%s); pictures go through rosbags-image', exc)
    try:
        return rosbags_converter()
    except ImportError as exc:
        raise BackendMissing(
            f'no library here converts {encoding} pictures ({exc})',
            "install one: pip install 'rosbags-image[opencv-headless]'",
        ) from exc


def cv_bridge_converter() -> Convert:
    """Give cv_bridge's conversion; ImportError where this machine has none."""
    from cv_bridge import CvBridge

    # imported by cv_bridge on first use; better to fail now
    from cv_bridge.boost import cv_bridge_boost  # noqa: F401

    bridge = CvBridge()

    def convert(pixels: Pixels, target: str) -> Array:
        array: Array = bridge.imgmsg_to_cv2(pixels, target)
        return array

    return convert


def rosbags_converter() -> Convert:
    """Give rosbags-image's conversion; ImportError where this machine has none."""
    from rosbags.image import image_to_cvimage

    def convert(pixels: Pixels, target: str) -> Array:
        # for it, the colour planes of a 4:2:0 picture are rows like all others
        rows = pixels.data.size // pixels.step
        whole: Any = replace(pixels, height=rows)
        array: Array = image_to_cvimage(whole, target)
        return array

    return convert


def _decompress(message: Any) -> npt.NDArray[np.uint8]:
    """Give the picture of a sensor_msgs/CompressedImage."""
    what = f'compressed image of format {message.format[:40]!r}'
    # image_transport writes "ENCODING; CODEC compressed ENCODING", others the codec alone
    encoding = message.format.partition(';')[0]
    encoding = ALIASES.get(encoding.strip(), encoding.strip())
    if 'compressedDepth' in message.format or re.fullmatch(r'(16|32|64)[USF]C\d*', encoding):
        raise PictureError(f'{what}: expected a picture in colour or grey, as in jpeg or png')
    try:
        rgb = read_image(bytes(message.data))
    except PictureError as exc:
        raise PictureError(f'{what}, {len(message.data)} bytes: {exc}') from exc
    if encoding.startswith('bayer_') and encoding in LAYOUTS:
        grey = np.ascontiguousarray(rgb[..., 0])
        if np.array_equal(rgb, np.broadcast_to(grey[..., None], rgb.shape)):
            height, width = grey.shape  # a mosaic; whoever compressed colours took it apart before
            return to_rgb(f'{encoding.rstrip("168")}8', height, width, width, grey)
    return rgb


def _rgb_of_hbm(message: Any) -> npt.NDArray[np.uint8]:
    """Give the picture of an hbm_img_msgs message; only ``data[:data_size]`` is its own."""
    encoding = bytes(message.encoding).split(b'\0')[0].decode('ascii', 'replace')
    data = np.frombuffer(message.data, np.uint8)
    if not 0 < message.data_size <= data.size:
        raise PictureError(
            f'shared-memory picture with a data_size of {message.data_size}: '
            f'expected 1 to {data.size}'
        )
    return to_rgb(encoding, message.height, message.width, message.step, data[: message.data_size])
