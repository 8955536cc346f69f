"""
Pictures that are the same on every machine: colour ramps with soft and hard edges.

The tool that stores the reference answers and the tests that compare with them draw from here.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def picture(width: int, height: int, seed: int) -> npt.NDArray[np.uint8]:
    """
    Draw a picture: three ramps with five boxes on them.

    :return: RGB uint8 (height, width, 3)
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    x, y = (x + 0.5) / width, (y + 0.5) / height
    slopes = rng.uniform(-1, 1, (3, 2))
    image = np.stack([128 + 90 * (a * (x - 0.5) + b * (y - 0.5)) for a, b in slopes], axis=-1)
    for left, top, wide, high in rng.uniform(0.05, 0.6, (5, 4)):
        inside = (x > left) & (x < left + wide) & (y > top) & (y < top + high)
        image[inside] = 0.4 * image[inside] + 0.6 * rng.uniform(0, 255, 3)
    return np.rint(image).clip(0, 255).astype(np.uint8)
