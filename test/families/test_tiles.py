"""Tiles are the makers' own: number, order and pixels, against their image processors."""

from __future__ import annotations

import importlib.util
from pathlib import Path
import sys

from hobot_vlm.config import FAMILIES
from hobot_vlm.families import family, TileFamily
from hobot_vlm.families.internvl import closest_grid
from hobot_vlm.families.smolvlm import layout
from hobot_vlm.image.load import load_rgb
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest

sys.path.insert(0, str(Path(__file__).parents[1].parent / 'tools'))
import make_tile_fixtures as maker  # noqa: E402

CLOSE = 2  # of 255
TILED = [name for name in FAMILIES if isinstance(family(name), TileFamily)]


@pytest.fixture(scope='module')
def stored():
    with np.load(maker.STORED) as file:
        return dict(file)


def cut(case):
    rgb = load_rgb(maker.source(*case[:3]))
    return family(case.family).tiles(rgb, case.side, case.max_tiles)


def apart(ours, theirs):
    assert ours.shape == theirs.shape
    return int(np.abs(ours.astype(int) - theirs).max())


@pytest.mark.parametrize('kind', sorted({case[:3] for case in maker.CASES}), ids=str)
def test_tiles_equal_the_stored_ones_of_the_makers(kind, stored):
    for case in (case for case in maker.CASES if case[:3] == kind):
        tiles = cut(case)
        assert (tiles.rows, tiles.columns) == tuple(stored[f'{case.label}/grid']), case
        assert tiles.overview
        pixels = tiles.pixels
        assert pixels.dtype == np.uint8 and pixels.shape[1:] == (case.side, case.side, 3)
        assert apart(maker.samples(pixels), stored[f'{case.label}/samples']) <= CLOSE, case
        drift = np.abs(maker.means(pixels) - stored[f'{case.label}/means']).max()
        assert drift < 0.25, case


@pytest.mark.skipif(
    importlib.util.find_spec('transformers') is None, reason='transformers is not installed'
)
@pytest.mark.parametrize('kind', sorted({case[:3] for case in maker.CASES}), ids=str)
def test_every_pixel_equals_the_makers(kind):
    for case in (case for case in maker.CASES if case[:3] == kind):
        tiles = cut(case)
        pixels, grid = maker.reference(case)
        assert (tiles.rows, tiles.columns) == grid, case
        assert apart(tiles.pixels, pixels) <= CLOSE, case


@pytest.mark.parametrize(
    'number', range(len(maker.SWEPT)), ids=['-'.join(map(str, way)) for way in maker.SWEPT]
)
def test_number_of_tiles_equals_the_makers_for_every_size(number, stored):
    name, side, max_tiles = maker.SWEPT[number]
    for (width, height), grid in zip(
        stored['sizes'].tolist(), stored['grids'][number].tolist(), strict=True
    ):
        if name == 'internvl':
            columns, rows = closest_grid(width, height, side, max_tiles)
        else:
            _, columns, rows = layout(width, height, side, max_tiles or 16)
        assert [rows, columns] == (grid if grid[0] else [1, 1]), (width, height)


@pytest.mark.parametrize('name', TILED)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    max_tiles=st.integers(0, 12),
    fit=st.sampled_from(['', 'fill', 'contain', 'cover', 'topleft']),
)
@settings(max_examples=60)
def test_any_picture_is_cut_within_the_limit(name, width, height, max_tiles, fit):
    made = family(name)
    tiles = made.tiles(maker.array(width, height), 32, max_tiles, fit)
    assert len(tiles.pixels) == tiles.rows * tiles.columns + 1
    assert tiles.rows * tiles.columns <= (max_tiles or 16)
    assert tiles.rows * tiles.columns != 1
    assert tiles.pixels.shape[1:] == (32, 32, 3) and tiles.pixels.dtype == np.uint8
    assert (tiles.mean, tiles.std) == (made.mean, made.std)


@pytest.mark.parametrize('size', [(4000, 1), (1, 4000), (65535, 2), (2, 65535)], ids=str)
@pytest.mark.parametrize('name', TILED)
def test_the_thinnest_pictures_are_cut(name, size):
    tiles = family(name).tiles(maker.array(*size), 32, 0)
    assert tiles.rows * tiles.columns == (12 if name == 'internvl' else 4)


def white(width, height):
    return np.full((height, width, 3), 255, np.uint8)


@pytest.mark.parametrize('name', TILED)
def test_contain_keeps_the_aspect_and_centres_on_black(name):
    (tile,) = family(name).tiles(white(100, 50), 64, 1, 'contain').pixels
    assert (tile[16:48] == 255).all() and (tile[:16] == 0).all() and (tile[48:] == 0).all()


@pytest.mark.parametrize('name', TILED)
def test_cover_crops_the_middle(name):
    picture = white(200, 100)
    picture[:, :48] = picture[:, 152:] = 0
    (tile,) = family(name).tiles(picture, 64, 1, 'cover').pixels
    assert (tile[:, 2:-2] == 255).all()


@pytest.mark.parametrize('name', TILED)
def test_topleft_is_the_letterbox_of_hobot_llamacpp(name):
    (tile,) = family(name).tiles(white(100, 50), 64, 1, 'topleft').pixels
    assert (tile[:32] == 255).all() and (tile[32:] == 0).all()
    (tile,) = family(name).tiles(white(20, 30), 64, 1, 'topleft').pixels
    assert (tile[:30, :20] == 255).all() and tile.sum() == 20 * 30 * 3 * 255


@pytest.mark.parametrize('name', TILED)
def test_fit_applies_to_the_grid_of_tiles_and_to_the_overview(name):
    tiles = family(name).tiles(white(90, 40), 32, 12, 'contain')
    grid = tiles.pixels[:-1].reshape(tiles.rows, tiles.columns, 32, 32, 3)
    canvas = grid.swapaxes(1, 2).reshape(tiles.rows * 32, tiles.columns * 32, 3)
    width, height = tiles.columns * 32, tiles.rows * 32
    for pixels, whole in ((canvas, (width, height)), (tiles.pixels[-1], (32, 32))):
        ratio = min(whole[0] / 90, whole[1] / 40)
        assert abs(pixels.mean() / 255 - 90 * 40 * ratio**2 / (whole[0] * whole[1])) < 0.05
        assert pixels[whole[1] // 2, whole[0] // 2].tolist() == [255] * 3


@pytest.mark.parametrize('name', TILED)
def test_the_default_fit_is_to_stretch(name):
    rgb = maker.array(150, 70)
    made = family(name)
    assert made.default_fit == 'fill'
    assert (made.tiles(rgb, 32, 6).pixels == made.tiles(rgb, 32, 6, 'fill').pixels).all()
    assert (made.tiles(rgb, 32, 6).pixels[-1] != made.tiles(rgb, 32, 6, 'cover').pixels[-1]).any()


def test_tiles_lie_row_by_row_and_the_overview_comes_last():
    rows, columns = 2, 3
    shades = np.arange(rows * columns, dtype=np.uint8).reshape(rows, columns) * 40
    picture = np.repeat(shades.repeat(64, 0).repeat(64, 1)[..., None], 3, 2)
    tiles = family('internvl').tiles(picture, 32, 6)
    assert (tiles.rows, tiles.columns) == (rows, columns)
    assert [int(np.median(tile)) for tile in tiles.pixels[:-1]] == [0, 40, 80, 120, 160, 200]
    small = np.asarray(Image.fromarray(picture).resize((32, 32), Image.BICUBIC))
    assert (tiles.pixels[-1] == small).all()
