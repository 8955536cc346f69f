"""
From RGB to the pixels of tiles.

Arrays in, arrays out: what a model family wants cut is for ``families`` to say. Pixels are
resampled by Pillow, with which the makers trained; here it only runs on several cores.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import os

import numpy as np
from PIL import Image

from ..values import Pixels

# By number: the Pillow of Ubuntu 22.04 has no Image.Resampling.
LANCZOS = 1
BICUBIC = 3

MAX_CORES = 4
BANDS = 8
BAND_WORK = 500_000  # values of a picture that are worth a core


def place(rgb: Pixels, width: int, height: int, resample: int, fit: str) -> Pixels:
    """
    Bring a picture to a size.

    :param fit: ``fill`` stretches; ``contain`` keeps the aspect, centred on black; ``cover`` keeps
        the aspect and crops what sticks out; ``topleft`` is ``contain`` in the upper left corner,
        never enlarged
    """
    old_height, old_width = rgb.shape[:2]
    if fit == 'fill':
        return resize(rgb, width, height, resample)
    if fit == 'cover':
        seen_width = min(old_width, old_height * width / height)
        seen_height = min(old_height, old_width * height / width)
        return resize(
            rgb,
            width,
            height,
            resample,
            (
                (old_width - seen_width) / 2,
                (old_height - seen_height) / 2,
                (old_width + seen_width) / 2,
                (old_height + seen_height) / 2,
            ),
        )
    left, top, new_width, new_height = map(int, placed(old_width, old_height, width, height, fit))
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[top : top + new_height, left : left + new_width] = resize(
        rgb, new_width, new_height, resample
    )
    return canvas


def placed(
    old_width: int, old_height: int, width: int, height: int, fit: str
) -> tuple[float, float, float, float]:
    """
    Say where on a canvas ``place`` puts a picture; what ``cover`` crops lies beyond its edges.

    :return: left, top, width and height of the whole picture, in pixels of the canvas
    """
    if fit == 'fill':
        return 0, 0, width, height
    if fit == 'cover':
        scale = max(width / old_width, height / old_height)
        new_width, new_height = scale * old_width, scale * old_height
        return (width - new_width) / 2, (height - new_height) / 2, new_width, new_height
    if fit == 'topleft' and old_width <= width and old_height <= height:
        return 0, 0, old_width, old_height
    new_width = max(1, min(width, old_width * height // old_height))
    new_height = max(1, min(height, old_height * width // old_width))
    if fit == 'topleft':
        return 0, 0, new_width, new_height
    return (width - new_width) // 2, (height - new_height) // 2, new_width, new_height


def resize(
    rgb: Pixels,
    width: int,
    height: int,
    resample: int,
    box: tuple[float, float, float, float] | None = None,
) -> Pixels:
    """
    Resize as ``Image.resize`` of Pillow 13 does, pixel for pixel.

    Between the two passes pixels are rounded and cut off at 0 and 255, so their order shows in
    the result. Older versions of Pillow always go across first; here the order is the same with
    every version.

    :param box: left, top, right and bottom of the part to resize
    """
    old_height, old_width = rgb.shape[:2]
    left, top, right, bottom = box or (0, 0, old_width, old_height)
    if max(0, 2 * (old_width - width)) < old_height - height:
        return _across(_down(rgb, height, resample, top, bottom), width, resample, left, right)
    return _down(_across(rgb, width, resample, left, right), height, resample, top, bottom)


def _across(rgb: Pixels, width: int, resample: int, left: float, right: float) -> Pixels:
    height, old_width = rgb.shape[:2]
    if (left, right, width) == (0, old_width, old_width):
        return rgb
    made = np.empty((height, width, 3), np.uint8)

    def band(start: int, stop: int) -> None:
        made[start:stop] = np.asarray(
            Image.fromarray(rgb[start:stop]).resize(
                (width, stop - start), resample, (left, 0, right, stop - start)
            )
        )

    _on_all_cores(band, height, max(rgb.size, made.size))
    return made


def _down(rgb: Pixels, height: int, resample: int, top: float, bottom: float) -> Pixels:
    old_height, width = rgb.shape[:2]
    if (top, bottom, height) == (0, old_height, old_height):
        return rgb
    made = np.empty((height, width, 3), np.uint8)

    def band(start: int, stop: int) -> None:
        made[:, start:stop] = np.asarray(
            Image.fromarray(rgb[:, start:stop]).resize(
                (stop - start, height), resample, (0, top, stop - start, bottom)
            )
        )

    _on_all_cores(band, width, max(rgb.size, made.size))
    return made


def _on_all_cores(band: Callable[[int, int], None], length: int, work: int) -> None:
    """
    Make bands on all cores; Pillow computes without the lock of Python.

    There are more bands than cores, and each core takes the next one that nobody has: one that is
    slow to wake up keeps the others from nothing.
    """
    count = max(1, min(MAX_CORES, os.cpu_count() or 1, work // BAND_WORK))
    if count == 1 or length < BANDS:
        return band(0, length)
    edges = [length * index // BANDS for index in range(BANDS + 1)]
    bands = iter(list(zip(edges[:-1], edges[1:], strict=True)))

    def make() -> None:
        for start, stop in bands:
            band(start, stop)

    with ThreadPoolExecutor(count - 1) as pool:
        others = [pool.submit(make) for _ in range(count - 1)]
        make()
    for other in others:
        other.result()


def cut(canvas: Pixels, tile_size: int, overview: Pixels) -> Pixels:
    """
    Cut a canvas into tiles, row by row, and add the overview as the last.

    :param canvas: RGB uint8, whole multiples of ``tile_size`` wide and high
    :return: RGB uint8 (tiles + 1, tile_size, tile_size, 3)
    """
    rows, columns = canvas.shape[0] // tile_size, canvas.shape[1] // tile_size
    tiles = np.empty((rows * columns + 1, tile_size, tile_size, 3), np.uint8)
    tiles[:-1].reshape(rows, columns, tile_size, tile_size, 3)[:] = canvas.reshape(
        rows, tile_size, columns, tile_size, 3
    ).swapaxes(1, 2)
    tiles[-1] = overview
    return tiles
