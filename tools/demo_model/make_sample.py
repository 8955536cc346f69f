"""Draw the bundled picture, ``hobot_vlm/demo/sample.png``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
import scenes

PLACES = {
    'dog': (0.2, 0.62, 0.52),
    'automobile': (0.53, 0.66, 0.40),
    'sunflower': (0.84, 0.55, 0.58),
}  # centre and height


def main() -> None:
    """Draw a dog, a car and a sunflower on blue."""
    width, height = 640, 360
    names = [k.en for k in scenes.KINDS]
    light, dark = np.array([90, 150, 255.0]), np.array([20, 80, 210.0])
    scene = scenes.Scene(width / height, 'blue', (light, dark), 'gradient', 3, 'row3')
    for name, (cx, cy, h) in PLACES.items():
        kind = names.index(name)
        w = h * scenes.glyph_aspect(kind) * height / width
        scene.things.append(scenes.Thing(kind, cx, cy, w, h))
    path = Path(__file__).parents[2] / 'hobot_vlm' / 'demo' / 'sample.png'
    Image.fromarray(scenes.draw(scene, width, height)).save(path, optimize=True)
    print(f'{path}: {path.stat().st_size / 1024:.0f} KiB')


if __name__ == '__main__':
    main()
