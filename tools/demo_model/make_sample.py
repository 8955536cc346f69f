"""
Draw the pictures that come with the package.

They are ``hobot_vlm/demo/sample.png`` and ``config/image2.jpg``, which has the name that the
command lines of hobot_llamacpp give.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
import scenes

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Drawing:
    """
    A picture of three things on a coloured background.

    :param light: RGB of the background, where it is lightest
    :param dark: and where it is darkest
    :param places: thing -> centre and height, as fractions of the picture
    """

    width: int
    height: int
    colour: str
    light: tuple[int, int, int]
    dark: tuple[int, int, int]
    places: dict[str, tuple[float, float, float]]


DRAWINGS = {
    'hobot_vlm/demo/sample.png': Drawing(
        640, 360, 'blue', (90, 150, 255), (20, 80, 210),
        {
            'dog': (0.2, 0.62, 0.52),
            'automobile': (0.53, 0.66, 0.40),
            'sunflower': (0.84, 0.55, 0.58),
        },
    ),
    'config/image2.jpg': Drawing(
        640, 480, 'yellow', (255, 240, 120), (240, 215, 20),
        {
            'cat': (0.18, 0.6, 0.36),
            'bus': (0.5, 0.56, 0.36),
            'bicycle': (0.82, 0.56, 0.36),
        },
    ),
}  # fmt: skip


def draw(drawing: Drawing) -> Image.Image:
    """Draw the background and the things on it."""
    names = [kind.en for kind in scenes.KINDS]
    shades = np.array(drawing.light, float), np.array(drawing.dark, float)
    aspect = drawing.width / drawing.height
    scene = scenes.Scene(aspect, drawing.colour, shades, 'gradient', 3, 'row3')
    for name, (cx, cy, h) in drawing.places.items():
        kind = names.index(name)
        w = h * scenes.glyph_aspect(kind) / aspect
        scene.things.append(scenes.Thing(kind, cx, cy, w, h))
    return Image.fromarray(scenes.draw(scene, drawing.width, drawing.height))


def main() -> None:
    """Write all of them."""
    for name, drawing in DRAWINGS.items():
        path = ROOT / name
        more = {'quality': 90} if path.suffix == '.jpg' else {}
        draw(drawing).save(path, optimize=True, **more)
        print(f'{path}: {path.stat().st_size / 1024:.0f} KiB')


if __name__ == '__main__':
    main()
