"""The llama.cpp encoder gives what the ONNX export of its weights gives, and survives any file."""

from __future__ import annotations

from pathlib import Path
import struct

from hobot_vlm.encoders import EncoderOptions, open_encoder
from hobot_vlm.encoders.mmproj import _Positions
from hobot_vlm.encoders.mmproj_file import MmprojFile
from hobot_vlm.errors import InferenceError, ModelFileError, ModelMismatch
from hobot_vlm.families import family
from hobot_vlm.values import ImageTiles
import numpy as np
from pictures import picture
import pytest

MODELS = Path(__file__).parents[1] / 'models'
FAMILIES = ('internvl', 'smolvlm')
#: so small that a second thread only waits
ONE_THREAD = EncoderOptions(threads=1, device='libmtmd')


def tiles_of(name: str, side: int, n: int) -> ImageTiles:
    pixels = np.stack([picture(side, side, seed) for seed in range(n)])
    return ImageTiles(pixels, 0, 0, True, family(name).mean, family(name).std)


def embed(path: Path, tiles: ImageTiles) -> np.ndarray:
    with open_encoder(path, ONE_THREAD) as encoder:
        return encoder.encode(tiles)


@pytest.fixture
def edited(tmp_path):
    """Give a copy of a file with some bytes replaced by as many others."""

    def edit(source: Path, old: bytes, new: bytes) -> Path:
        data = source.read_bytes()
        assert len(old) == len(new) and data.count(old) == 1
        copy = tmp_path / 'mmproj.gguf'
        copy.write_bytes(data.replace(old, new))
        return copy

    return edit


@pytest.mark.parametrize('n', (1, 4, 6))
@pytest.mark.parametrize('name', FAMILIES)
def test_embeddings_are_those_of_the_onnx_export(name, n):
    # six tiles need two strips of four in SmolVLM's case
    with open_encoder(MODELS / name / 'vision.onnx', EncoderOptions(threads=1)) as onnx:
        tiles = tiles_of(name, onnx.tile_size, n)
        expected = onnx.encode(tiles)
    with open_encoder(MODELS / name / 'mmproj.gguf', ONE_THREAD) as mmproj:
        assert (mmproj.tile_size, mmproj.tokens) == (onnx.tile_size, expected.shape[1])
        assert mmproj.n_embd == expected.shape[2]
        found = mmproj.encode(tiles)
    assert found.dtype == np.float32 and found.shape == expected.shape
    lengths = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    assert ((found * expected).sum(-1) / lengths).min() > 0.999
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()


@pytest.mark.parametrize('name', FAMILIES)
def test_a_tile_is_encoded_the_same_alone_and_among_others(name):
    with open_encoder(MODELS / name / 'mmproj.gguf', ONE_THREAD) as encoder:
        tiles = tiles_of(name, encoder.tile_size, 5)
        together = encoder.encode(tiles)
        for i in range(5):
            alone = ImageTiles(tiles.pixels[i : i + 1], 0, 0, True, tiles.mean, tiles.std)
            np.testing.assert_allclose(encoder.encode(alone)[0], together[i], atol=1e-4)
        encoder.close()  # and once more on leaving: harmless


@pytest.mark.parametrize('name', FAMILIES)
def test_llama_cpp_says_nothing_on_the_terminal(name, capfd):
    with open_encoder(MODELS / name / 'mmproj.gguf', ONE_THREAD) as encoder:
        encoder.encode(tiles_of(name, encoder.tile_size, 1))
    assert capfd.readouterr() == ('', '')


def test_a_file_without_the_longest_edge_is_read_too(edited):
    # conversions before the key existed
    whole = MODELS / 'smolvlm' / 'mmproj.gguf'
    old = edited(whole, b'clip.vision.preproc_image_size', b'clip.vision.preproc_image_was_')
    tiles = tiles_of('smolvlm', 64, 3)
    np.testing.assert_allclose(embed(old, tiles), embed(whole, tiles), atol=1e-4)


def test_a_longest_edge_that_is_no_number_of_tiles_is_refused(edited):
    key = b'clip.vision.preproc_image_size' + struct.pack('<I', 4)
    path = edited(
        MODELS / 'smolvlm' / 'mmproj.gguf',
        key + struct.pack('<I', 256),
        key + struct.pack('<I', 250),
    )
    with pytest.raises(ModelMismatch, match='250.*64 pixels.*encoder_device cpu'):
        open_encoder(path, ONE_THREAD)


def test_positions_that_are_right_are_left_alone():
    positions = _Positions(MmprojFile(MODELS / 'internvl' / 'mmproj.gguf'))
    class_token, patch = np.random.default_rng(0).standard_normal((2, positions.table.shape[1]))
    for cells in ([class_token, *[patch] * 16], [*[patch] * 16, class_token]):
        right = (
            positions.table if cells[0] is class_token else np.roll(positions.table, -1, axis=0)
        )
        positions._seen = np.array(cells, np.float32) + right
        positions.learn()
        assert positions._missing is None


def test_positions_that_nobody_knows_are_refused():
    positions = _Positions(MmprojFile(MODELS / 'internvl' / 'mmproj.gguf'))
    positions._seen = positions.table[::-1].copy()
    with pytest.raises(ModelMismatch, match='positions'):
        positions.learn()


def test_tiles_of_another_size_are_refused():
    with open_encoder(MODELS / 'internvl' / 'mmproj.gguf', ONE_THREAD) as encoder:
        with pytest.raises(InferenceError, match='56'):
            encoder.encode(tiles_of('internvl', 64, 1))


def test_a_missing_file(tmp_path):
    with pytest.raises(ModelFileError, match='no such file'):
        open_encoder(tmp_path / 'mmproj.gguf', ONE_THREAD)


def test_a_file_of_another_kind(tmp_path):
    path = tmp_path / 'mmproj.gguf'
    path.write_text('not a model')
    with pytest.raises(ModelFileError, match='instead of GGUF'):
        open_encoder(path, ONE_THREAD)


def test_a_language_model_is_no_encoder():
    with pytest.raises(ModelFileError, match="'qwen2'.*'clip'.*llm_model_name"):
        open_encoder(MODELS / 'internvl' / 'decoder.gguf', ONE_THREAD)


@pytest.mark.parametrize('name', FAMILIES)
def test_a_file_cut_anywhere(tmp_path, name):
    data = (MODELS / name / 'mmproj.gguf').read_bytes()
    path = tmp_path / 'mmproj.gguf'
    for end in [*range(0, 4000, 97), *range(4000, len(data), 20011), len(data) - 1]:
        path.write_bytes(data[:end])
        with pytest.raises(ModelFileError):
            open_encoder(path, ONE_THREAD)


@pytest.mark.parametrize(
    'old, new, error, message',
    (
        (b'\x08\0\0\0\0\0\0\0internvl', b'\x08\0\0\0\0\0\0\0qwen2.5v', ModelMismatch, 'idefics3'),
        (
            b'clip.has_vision_encoder',
            b'clip.has_audio__encoder',
            ModelFileError,
            'no vision encoder',
        ),
        (
            b'clip.vision.patch_size',
            b'clip.vision.patch_sizE',
            ModelFileError,
            'patch_size is None',
        ),
        (b'v.class_embd', b'v.class_embD', ModelFileError, 'no tensor v.class_embd'),
        (
            b'v.blk.1.attn_q.weight',
            b'v.blk.7.attn_q.weight',
            ModelFileError,
            'no tensor v.blk.1.attn_q.weight',
        ),
        (
            b'mm.model.mlp.1.bias',
            b'mm.model.mlp.7.bias',
            ModelFileError,
            'llama.cpp cannot load it .*mm.model.mlp.1.bias',
        ),
        (
            b'clip.vision.image_size\x04\0\0\0\x38',
            b'clip.vision.image_size\x04\0\0\0\x54',
            ModelFileError,
            r'position_embd.weight is \(17, 32\), which is not 1184',
        ),
    ),
)
def test_a_file_that_lacks_something(edited, old, new, error, message):
    with pytest.raises(error, match=message):
        open_encoder(edited(MODELS / 'internvl' / 'mmproj.gguf', old, new), ONE_THREAD)
