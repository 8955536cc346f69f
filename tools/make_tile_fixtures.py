"""
Make test/data/tiles.npz: how the makers' image processors cut pictures.

Needs transformers, whose ``GotOcr2ImageProcessorPil`` (for InternVL) and
``SmolVLMImageProcessorPil`` are the reference. The tests compare with the stored file, and make
the reference anew where transformers is installed. Usage: python tools/make_tile_fixtures.py
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
import sys
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

STORED = Path(__file__).parent.parent / 'test' / 'data' / 'tiles.npz'

Pixels = npt.NDArray[np.uint8]


class Case(NamedTuple):
    """One picture, cut one way; ``kind`` is an array's layout or a file's mode."""

    kind: str
    width: int
    height: int
    family: str
    side: int
    max_tiles: int

    @property
    def label(self) -> str:
        """Name of the case in the stored file."""
        return '-'.join(map(str, self))


PICTURES = (
    ('rgb', 1, 1),
    ('rgb', 2, 3),
    ('rgb', 1, 300),
    ('rgb', 4000, 1),
    ('rgb', 97, 61),
    ('rgb', 320, 240),
    ('rgb', 448, 448),
    ('rgb', 512, 512),
    ('rgb', 640, 480),
    ('rgb', 333, 777),
    ('rgb', 1280, 720),
    ('rgb', 1920, 1080),
    ('rgb', 1080, 1920),
    ('rgb', 800, 600),
    ('rgb', 1100, 180),
    ('rgb', 150, 1050),
    ('grey array', 300, 200),
    ('rgba array', 200, 300),
    ('L', 400, 250),
    ('LA', 121, 260),
    ('P', 250, 180),
    ('P transparent', 180, 250),
    ('RGBA', 360, 500),
    ('1', 90, 60),
) + tuple((f'orientation {i}', 260, 150) for i in range(1, 9))

# what every picture is cut into, and what only every fourth is, because it takes longer
SMALL = (
    ('internvl', 64, 12),
    ('internvl', 32, 6),
    ('internvl', 192, 1),
    ('smolvlm', 64, 0),
    ('smolvlm', 32, 9),
    ('smolvlm', 128, 1),
)
LARGE = (
    ('internvl', 448, 12),
    ('internvl', 448, 1),
    ('smolvlm', 512, 0),
    ('smolvlm', 512, 1),
    ('smolvlm', 384, 6),
)

CASES = tuple(
    Case(*picture, *way)
    for number, picture in enumerate(PICTURES)
    for way in SMALL + (LARGE if number % 4 == 3 else ())
)

# (family, side, max_tiles) of the sweep over picture sizes
SWEPT = (
    ('internvl', 448, 1),
    ('internvl', 448, 2),
    ('internvl', 448, 3),
    ('internvl', 448, 5),
    ('internvl', 448, 6),
    ('internvl', 448, 9),
    ('internvl', 448, 12),
    ('internvl', 32, 12),
    ('smolvlm', 512, 0),
    ('smolvlm', 512, 12),
    ('smolvlm', 512, 9),
    ('smolvlm', 512, 5),
    ('smolvlm', 512, 4),
    ('smolvlm', 512, 3),
    ('smolvlm', 512, 2),
    ('smolvlm', 512, 1),
    ('smolvlm', 384, 0),
    ('smolvlm', 384, 8),
    ('smolvlm', 32, 0),
)


def array(width: int, height: int) -> Pixels:
    """Draw a picture: a gradient, rings that grow too fine for the grid, and noisy blocks."""
    y, x = np.mgrid[:height, :width].astype(np.int64)
    noise = (x * 7919 + y * 104729 + x * y * 31) * 2654435761 >> 16
    red = (x * 255 // max(1, width - 1) + y * 64 // height) & 255
    green = (x * x + y * y) // 64 & 255
    blue = np.where((x // 7 + y // 5) % 2 == 0, 255, noise & 127)
    return np.stack([red, green, blue], axis=2).astype(np.uint8)


def source(kind: str, width: int, height: int) -> Any:
    """Give a picture as a user would: an array, or the bytes of a file."""
    rgb = array(width, height)
    alpha = array(height, width)[..., 1].T
    if kind == 'rgb':
        return rgb
    if kind == 'grey array':
        return np.ascontiguousarray(rgb[..., 1])
    if kind == 'rgba array':
        return np.dstack([rgb, alpha])
    picture = Image.fromarray(rgb)
    options: dict[str, Any] = {}
    if kind.startswith('orientation'):
        exif = Image.Exif()
        exif[0x0112] = int(kind.split()[1])
        options['exif'] = exif.tobytes()
    elif kind.startswith('P'):
        picture = Image.frombytes('P', picture.size, (rgb[..., 1] // 8).tobytes())
        picture.putpalette([i * step % 256 for i in range(256) for step in (8, 29, 101)])
        if 'transparent' in kind:
            options['transparency'] = 3
    elif kind in ('LA', 'RGBA'):
        picture.putalpha(Image.fromarray(np.ascontiguousarray(alpha)))
        picture = picture.convert(kind)
    else:
        picture = picture.convert(kind, dither=0)
    file = BytesIO()
    picture.save(file, 'PNG', compress_level=1, **options)
    return file.getvalue()


def reference(case: Case) -> tuple[Pixels, tuple[int, int]]:
    """
    Cut a picture with the makers' processor.

    :return: tiles (tiles, side, side, 3), and the rows and columns of the grid, 0 for none
    """
    given = source(*case[:3])
    if isinstance(given, bytes):
        picture = ImageOps.exif_transpose(Image.open(BytesIO(given)))
    else:
        picture = Image.fromarray(given)
    raw = {'do_rescale': False, 'do_normalize': False}
    rows, columns = reference_grid(picture.width, picture.height, case[3:])
    if case.family == 'internvl':
        made = internvl_processor(case.side, case.max_tiles).preprocess([picture], **raw)
        tiles = list(made['pixel_values'])
        assert len(tiles) == (rows * columns + 1 if rows else 1)
    else:
        edge = longest_edge(picture.width, picture.height, case.side, case.max_tiles)
        made = smolvlm_processor(case.side, edge).preprocess(
            [[picture]], return_row_col_info=True, **raw
        )
        tiles = list(made['pixel_values'][0])
        assert (made['rows'][0][0], made['cols'][0][0]) == (rows, columns)
    return np.stack(tiles).astype(np.uint8).transpose(0, 2, 3, 1), (rows, columns)


def reference_grid(width: int, height: int, way: tuple[str, int, int]) -> tuple[int, int]:
    """Give the rows and columns that the makers cut a size into, 0 for none."""
    name, side, max_tiles = way
    if name == 'internvl':
        from transformers.models.got_ocr2 import image_processing_pil_got_ocr2 as maker

        columns, rows = maker.get_optimal_tiled_canvas((height, width), (side, side), 1, max_tiles)
        return (0, 0) if rows * columns == 1 else (rows, columns)
    processor = smolvlm_processor(side, longest_edge(width, height, side, max_tiles))
    if not processor.do_image_splitting:
        return 0, 0
    _, rows, columns = processor.get_number_of_image_patches(height, width)
    return rows, columns


def longest_edge(width: int, height: int, side: int, max_tiles: int) -> int:
    """Give the makers' setting that leaves so many tiles, or 0: do not split."""
    for edge in (4, 3, 2):
        tiles = smolvlm_processor(side, edge).get_number_of_image_patches(height, width)[0] - 1
        if tiles <= (max_tiles or 16):
            return edge
    return 0


def internvl_processor(side: int, max_tiles: int) -> Any:
    """Make the processor of InternVL."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    return GotOcr2ImageProcessorPil(
        size={'height': side, 'width': side},
        crop_to_patches=True,
        min_patches=1,
        max_patches=max_tiles,
    )


def smolvlm_processor(side: int, edge: int) -> Any:
    """Make the processor of SmolVLM; one that does not split keeps the makers' longest edge."""
    if (side, edge) not in _processors:
        from transformers.models.smolvlm.image_processing_pil_smolvlm import (
            SmolVLMImageProcessorPil,
        )

        _processors[side, edge] = SmolVLMImageProcessorPil(
            size={'longest_edge': (edge or 4) * side},
            max_image_size={'longest_edge': side},
            do_image_splitting=edge > 0,
        )
    return _processors[side, edge]


_processors: dict[tuple[int, int], Any] = {}


def sizes() -> npt.NDArray[np.int64]:
    """Sample (width, height) from 1x1 to 4000x4000: every corner, tie and step, and the rest."""
    steps = [
        1,
        2,
        3,
        31,
        32,
        33,
        223,
        224,
        447,
        448,
        449,
        512,
        513,
        895,
        896,
        1024,
        1080,
        1344,
        1536,
        1792,
        1920,
        2048,
        2049,
        3999,
        4000,
    ]
    listed = [(width, height) for width in steps for height in steps]
    ratios = [
        (a * d + c * b, 2 * b * d)
        for a in range(1, 7)
        for b in range(1, 7)
        for c in range(1, 7)
        for d in range(1, 7)
        if a * d > c * b
    ]
    ties = {(w * k, h * k) for w, h in ratios for k in (1, 5, 24) if max(w, h) * k <= 4000}
    free = np.random.default_rng(4).integers(1, 4001, (1200, 2)).tolist()
    return np.array(listed + sorted(ties) + free)


def samples(tiles: Pixels) -> Pixels:
    """Take some pixels of each tile, which hit every block of 8 by 8 in tiles of 512 alike."""
    step = max(1, tiles.shape[1] // 8 - 1)
    return tiles[:, ::step, ::step]


def means(tiles: Pixels) -> npt.NDArray[np.float64]:
    """Take the mean of each channel in every quarter of each tile."""
    half = tiles.shape[1] // 2
    return tiles.reshape(-1, 2, half, 2, half, 3).mean(axis=(2, 4))


def main() -> int:
    """Write the file."""
    import transformers

    stored: dict[str, Any] = {}
    swept = sizes()
    stored['sizes'] = swept.astype(np.uint16)
    stored['grids'] = np.array(
        [[reference_grid(width, height, way) for width, height in swept] for way in SWEPT],
        np.uint8,
    )
    for case in CASES:
        tiles, grid = reference(case)
        stored[f'{case.label}/grid'] = np.array(grid, np.uint8)
        stored[f'{case.label}/samples'] = samples(tiles)
        stored[f'{case.label}/means'] = means(tiles).astype(np.float32)
    np.savez_compressed(STORED, **stored)
    print(
        f'{STORED}: {len(CASES)} pictures, {len(swept)} sizes, {STORED.stat().st_size} bytes, '
        f'transformers {transformers.__version__}, Pillow {Image.__version__}'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
