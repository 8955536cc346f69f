"""An mmproj file as an ONNX graph gives what its makers' model gives, however it is stored."""

from __future__ import annotations

from pathlib import Path

import gguf
from hobot_vlm.encoders import EncoderOptions, mmproj_graph, open_encoder
from hobot_vlm.encoders.choice import agreement
from hobot_vlm.encoders.mmproj_file import MmprojFile
from hobot_vlm.encoders.onnx import OnnxEncoder
from hobot_vlm.encoders.onnx_session import open_session
from hobot_vlm.errors import ModelFileError, ModelMismatch, VlmError
from hobot_vlm.families import family
from hobot_vlm.values import ImageTiles
from mmproj_files import internvl_shape, KINDS, made, MODELS, quantised, rewritten, smolvlm_shape
import numpy as np
import onnx
from pictures import picture
import pytest

FAMILIES = ('internvl', 'smolvlm')
FORMS = ('EXACT', 'BLOCKS', 'ROWS', 'PLAIN', 'PLAIN_HALF')
CPU = EncoderOptions(threads=1, device='cpu')
LIBMTMD = EncoderOptions(threads=1, device='libmtmd')


def tiles_of(name: str, side: int, n: int = 2) -> ImageTiles:
    pixels = np.stack([picture(side, side, seed) for seed in range(n)])
    return ImageTiles(pixels, 0, 0, True, family(name).mean, family(name).std)


def embed(path: Path, tiles: ImageTiles, options: EncoderOptions = CPU) -> np.ndarray:
    with open_encoder(path, options) as encoder:
        return encoder.encode(tiles)


def embed_as(form: str, path: Path, tiles: ImageTiles) -> np.ndarray:
    """Encode with a graph that is written in a form."""
    graph = mmproj_graph.build(MmprojFile(path), getattr(mmproj_graph, form))
    session = open_session(path, graph, 'cpu', 1, '')
    with OnnxEncoder(path, session, form) as encoder:
        return encoder.encode(tiles)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', FAMILIES)
def test_float_weights_give_the_embeddings_of_the_export(name, form):
    folder = MODELS / name
    with open_encoder(folder / 'vision.onnx', CPU) as export:
        tiles = tiles_of(name, export.tile_size, 3)
        expected = export.encode(tiles)
    found = embed_as(form, folder / 'mmproj.gguf', tiles)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize('name', FAMILIES)
def test_shape_and_embeddings_are_those_of_libmtmd(name):
    path = MODELS / name / 'mmproj.gguf'
    with open_encoder(path, CPU) as here, open_encoder(path, LIBMTMD) as there:
        assert (here.tile_size, here.tokens, here.n_embd) == (
            *(there.tile_size, there.tokens, there.n_embd),
        )
        tiles = tiles_of(name, here.tile_size)
        found, expected = here.encode(tiles), there.encode(tiles)
    # libmtmd computes GELU with tanh, or from a table of float16
    assert agreement(found, expected) > 0.9999


@pytest.mark.parametrize('name', FAMILIES)
def test_a_tile_is_encoded_the_same_alone_and_among_others(name):
    with open_encoder(MODELS / name / 'mmproj.gguf', CPU) as encoder:
        tiles = tiles_of(name, encoder.tile_size, 3)
        together = encoder.encode(tiles)
        for i in range(3):
            alone = ImageTiles(tiles.pixels[i : i + 1], 0, 0, True, tiles.mean, tiles.std)
            np.testing.assert_allclose(encoder.encode(alone)[0], together[i], atol=2e-5)


@pytest.mark.parametrize('shape', (internvl_shape, smolvlm_shape))
def test_8_bit_weights_are_taken_as_they_are(tmp_path, shape):
    path = made(tmp_path / 'mmproj.gguf', shape())
    file = MmprojFile(path)
    stored = {t.name: t for t in gguf.GGUFReader(str(path)).tensors}
    graph = onnx.load_from_string(mmproj_graph.build(file, mmproj_graph.BLOCKS).model())
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in graph.graph.initializer}
    nodes = [node for node in graph.graph.node if node.op_type == 'MatMulNBits']
    assert len(nodes) == 6 * 2 + (2 if file.projector == 'internvl' else 1)
    name = 'v.blk.0.ffn_up.weight'
    expected = gguf.quants.dequantize(stored[name].data, KINDS.Q8_0)
    first = [node for node in nodes if constants[node.input[1]].shape[0] == file.inner][0]
    weights = constants[first.input[1]].astype(np.float32) - 128
    scales = constants[first.input[2]].reshape(*weights.shape[:2], 1)
    np.testing.assert_array_equal((weights * scales).reshape(expected.shape), expected)
    np.testing.assert_array_equal(file.floats(name), expected)


@pytest.mark.parametrize(
    'form, least', [('BLOCKS', 0.9998), ('ROWS', 0.9990), ('PLAIN_HALF', 1 - 1e-6)]
)
@pytest.mark.parametrize('shape', (internvl_shape, smolvlm_shape))
def test_8_bit_weights_give_nearly_the_embeddings_of_float32(tmp_path, shape, form, least):
    # so narrow a model averages little of the rounding out; true shapes are measured elsewhere
    path = made(tmp_path / 'mmproj.gguf', shape(width=128, inner=256))
    tiles = tiles_of('internvl', 56)
    assert agreement(embed_as(form, path, tiles), embed_as('PLAIN', path, tiles)) > least


@pytest.mark.parametrize('kind', ('F16', 'BF16', 'Q4_0', 'Q5_1', 'Q8_0'))
@pytest.mark.parametrize('name', FAMILIES)
def test_any_format_gives_what_its_numbers_give_in_float32(tmp_path, name, kind):
    source = MODELS / name / 'mmproj.gguf'
    path = quantised(source, tmp_path / 'mmproj.gguf', KINDS[kind])

    def widened(tensor: str, values: np.ndarray):
        if values.ndim == 2 and 'position' not in tensor:
            stored = gguf.quants.quantize(values, KINDS[kind])
            values = gguf.quants.dequantize(stored, KINDS[kind])
        return values, KINDS.F32

    wide = rewritten(source, tmp_path / 'wide.gguf', widened)
    tiles = tiles_of(name, MmprojFile(path).tile_size)
    expected = embed(wide, tiles)
    found = embed_as('PLAIN', path, tiles)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    assert agreement(embed(path, tiles), expected) > 0.9995


@pytest.mark.parametrize('kind', ('Q2_K', 'Q3_K', 'Q4_K', 'Q5_K', 'Q6_K'))
def test_k_quants_are_widened_as_their_definition_says(tmp_path, kind):
    rng = np.random.default_rng(0)
    shape = internvl_shape(width=256, inner=256)
    source = made(tmp_path / 'f16.gguf', shape, 'f16')
    block, size = gguf.GGML_QUANT_SIZES[KINDS[kind]]
    drawn = {}

    def change(name: str, values: np.ndarray):
        if 'ffn' not in name or values.ndim != 2:
            stored = KINDS.F32
            return values, stored
        data = rng.integers(0, 60, (256, 256 // block * size), np.uint8)  # scales stay finite
        drawn[name] = data
        return data, KINDS[kind]

    file = MmprojFile(rewritten(source, tmp_path / 'mmproj.gguf', change))
    assert len(drawn) == 4
    for name, data in drawn.items():
        expected = gguf.quants.dequantize(data, KINDS[kind])
        np.testing.assert_allclose(file.floats(name), expected, rtol=1e-5, atol=1e-7)
        weights, scales = file.blocks(name)
        near = (weights.reshape(256, -1, 32) * scales[..., None]).reshape(256, 256)
        limit = 0.5 * scales.repeat(32, axis=1) * 1.001
        assert (np.abs(near - file.floats(name)) <= limit).all()


def test_patches_that_do_not_fill_the_tile(tmp_path):
    # SmolVLM 2.2B: 384 pixels are 27 patches of 14, and 6 pixels are cut off
    shape = smolvlm_shape(side=384, patch=14, merge=3, layers=1, longest=1536)
    path = made(tmp_path / 'mmproj.gguf', shape, 'f16')
    tiles = tiles_of('smolvlm', 384, 1)
    with open_encoder(path, CPU) as encoder:
        assert (encoder.tile_size, encoder.tokens) == (384, 81)
        found = encoder.encode(tiles)
    assert agreement(found, embed(path, tiles, LIBMTMD)) > 0.9999


def test_one_matrix_for_queries_keys_and_values(tmp_path):
    source = made(tmp_path / 'apart.gguf', internvl_shape(), 'f16')
    file = MmprojFile(source)
    reader = gguf.GGUFReader(str(source))
    assert reader.tensors
    joint = {
        f'v.blk.{i}.attn_{which}.{part}': np.concatenate(
            [file.floats(f'v.blk.{i}.attn_{w}.{part}') for w in 'qkv']
        )
        for i in range(2)
        for which in 'q'
        for part in ('weight', 'bias')
    }
    apart = made_with(tmp_path / 'joint.gguf', source, joint)
    tiles = tiles_of('internvl', 56)
    np.testing.assert_allclose(embed(apart, tiles), embed(source, tiles), atol=1e-5)


def made_with(path: Path, source: Path, joint: dict[str, np.ndarray]) -> Path:
    """Copy a file with attn_q, attn_k and attn_v as one attn_qkv."""
    reader, writer = gguf.GGUFReader(str(source)), gguf.GGUFWriter(str(path), 'clip')
    for field in reader.fields.values():
        if not field.name.startswith('GGUF.') and field.name != 'general.architecture':
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        if tensor.name in joint:
            writer.add_tensor(tensor.name.replace('attn_q', 'attn_qkv'), joint[tensor.name])
        elif '.attn_k.' not in tensor.name and '.attn_v.' not in tensor.name:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_positions_in_float16_are_read_and_libmtmd_is_not_asked(tmp_path):
    def half(name: str, values: np.ndarray):
        return (
            (values.astype(np.float16), KINDS.F16) if 'position' in name else (values, KINDS.F32)
        )

    source = MODELS / 'internvl' / 'mmproj.gguf'
    path = rewritten(source, tmp_path / 'mmproj.gguf', half)
    tiles = tiles_of('internvl', 56)
    assert agreement(embed(path, tiles), embed(source, tiles)) > 0.9999
    with pytest.raises(ModelFileError, match='position_embd.weight is of type 1.*encoder_device'):
        open_encoder(path, LIBMTMD)


@pytest.mark.parametrize('number', (np.nan, np.inf))
@pytest.mark.parametrize(
    'name', ('v.blk.1.ffn_up.weight', 'v.position_embd.weight', 'mm.model.mlp.3.bias')
)
def test_a_number_that_is_none_is_an_error(tmp_path, name, number):
    def spoil(tensor: str, values: np.ndarray):
        if tensor == name:
            values.reshape(-1)[5] = number
        return values, KINDS.F32

    path = rewritten(MODELS / 'internvl' / 'mmproj.gguf', tmp_path / 'mmproj.gguf', spoil)
    with pytest.raises(ModelFileError, match=f'{name} holds numbers that are not finite'):
        open_encoder(path, EncoderOptions(threads=1))


@pytest.mark.parametrize('name', FAMILIES)
def test_no_changed_byte_of_the_header_ends_the_process(tmp_path, name):
    data = bytearray((MODELS / name / 'mmproj.gguf').read_bytes())
    end = min(
        info.offset for info in MmprojFile(MODELS / name / 'mmproj.gguf').header.tensors.values()
    )
    rng = np.random.default_rng(0)
    path = tmp_path / 'mmproj.gguf'
    refused = 0
    for _ in range(400):
        changed = data.copy()
        changed[rng.integers(4, end)] = rng.integers(256)
        path.write_bytes(changed)
        try:
            with open_encoder(path, CPU) as encoder:
                assert encoder.tokens > 0
        except VlmError as exc:
            assert len(str(exc)) < 800
            refused += 1
    assert 100 < refused < 400


@pytest.mark.parametrize(
    'key, message',
    [
        (b'clip.vision.attention.layer_norm_epsilon', 'layer_norm_epsilon is None'),
        (b'clip.vision.image_mean', 'image_mean is None'),
        (b'clip.vision.block_count', 'block_count is None'),
    ],
)
def test_a_key_that_is_missing_is_named(tmp_path, key, message):
    data = (MODELS / 'internvl' / 'mmproj.gguf').read_bytes()
    assert data.count(key) == 1
    path = tmp_path / 'mmproj.gguf'
    path.write_bytes(data.replace(key, key[:-1] + b'_'))
    with pytest.raises(ModelFileError, match=message):
        open_encoder(path, CPU)


def test_a_model_that_the_graph_does_not_know_goes_to_libmtmd(tmp_path):
    data = (MODELS / 'internvl' / 'mmproj.gguf').read_bytes()
    path = tmp_path / 'mmproj.gguf'
    path.write_bytes(data.replace(b'v.blk.1.ls2.weight', b'v.blk.1.ls9.weight'))
    with pytest.raises(VlmError, match='v.blk.1.ls9.weight is for is not known.*libmtmd'):
        open_encoder(path, CPU)
    with open_encoder(path, EncoderOptions(threads=1)) as encoder:
        assert encoder.runtime == 'libmtmd'


def test_another_family_is_refused(tmp_path):
    data = (MODELS / 'internvl' / 'mmproj.gguf').read_bytes()
    path = tmp_path / 'mmproj.gguf'
    path.write_bytes(data.replace(b'\x08\0\0\0\0\0\0\0internvl', b'\x08\0\0\0\0\0\0\0qwen2.5v'))
    with pytest.raises(ModelMismatch, match='internvl.*idefics3'):
        open_encoder(path, CPU)
