"""The ONNX encoder, on real ONNX Runtime, against the same arithmetic in numpy."""

from __future__ import annotations

from pathlib import Path
import subprocess
import sys
import time

from hobot_vlm.encoders import EncoderOptions, open_encoder
from hobot_vlm.encoders.onnx import weight_bytes
from hobot_vlm.encoders.onnx_weights import weights_beside
from hobot_vlm.encoders.pixels import PixelFormat
from hobot_vlm.errors import BackendMissing, InferenceError, ModelFileError, ModelMismatch
from hobot_vlm.llama import gguf
from hobot_vlm.llama.probe import check_encoder_loads
from hobot_vlm.llama.trial import model_files
from hobot_vlm.values import ImageTiles
import numpy as np
import onnx
from onnx import helper, TensorProto
from onnx_graphs import any_graph, MEAN, normalise, OPSET, STD, TinyEncoder
import pytest

IMAGES = ('batch', 'images')

CPU = EncoderOptions(device='cpu')


def tiles_of(count: int, side: int = 16, seed: int = 1) -> ImageTiles:
    """Make tiles of noise, all different."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)
    return ImageTiles(pixels, 0, 0, True, MEAN, STD)


def encoder_of(tmp_path: Path, recipe: TinyEncoder, **options: int):
    """Open a recipe as a file."""
    return open_encoder(
        recipe.write(tmp_path / 'vision.onnx'), EncoderOptions(**options, device='cpu')
    )


def expected(recipe: TinyEncoder, tiles: ImageTiles) -> np.ndarray:
    """Give what the recipe computes from tiles."""
    return recipe.expect(normalise(tiles.pixels, tiles.mean, tiles.std))


@pytest.mark.parametrize(
    'dtype, tolerance', [('float32', 2e-6), ('uint8', 2e-6), ('float16', 3e-3)]
)
@pytest.mark.parametrize('layout', ['channels first', 'channels last', 'picture axis'])
def test_every_layout_and_number_format_gives_the_embeddings_of_the_arithmetic(
    tmp_path, layout, dtype, tolerance
):
    recipe = TinyEncoder(
        dtype=dtype,
        channels_first=layout != 'channels last',
        lead=IMAGES if layout == 'picture axis' else ('tiles',),
    )
    tiles = tiles_of(3)
    with encoder_of(tmp_path, recipe) as encoder:
        found = encoder.encode(tiles)
        assert (encoder.tile_size, encoder.tokens, encoder.n_embd) == (16, 4, 12)
    assert found.dtype == np.float32 and found.flags.c_contiguous
    assert found.shape == (3, 4, 12)
    np.testing.assert_allclose(found, expected(recipe, tiles), atol=tolerance)


@pytest.mark.parametrize(
    'lead, masks',
    [
        (IMAGES, {'pixel_attention_mask': ('bool', (*IMAGES, 'height', 'width'))}),
        (IMAGES, {'pixel_attention_mask': ('bool', ('b', 'i', None, None))}),
        (IMAGES, {'pixel_attention_mask': ('bool', (*IMAGES, 16, 16))}),
        (IMAGES, {'image_mask': ('int64', IMAGES)}),
        (('tiles',), {'pixel_mask': ('bool', ('tiles', 16, 16))}),
        (('tiles',), {'pixel_mask': ('int64', ('n', 'h', 'w')), 'other': ('bool', ('tiles', 1))}),
        (('tiles',), {'pixel_mask': ('bool', ('tiles', 1, 'h', 'w'))}),
        (
            ('batch', 1),
            {'pixel_mask': ('bool', ('batch', 1, 'h', 'w')), 'mask': ('bool', ('b', 'i'))},
        ),
    ],
)
def test_masks_are_filled_with_ones(tmp_path, lead, masks):
    recipe = TinyEncoder(lead=lead, sizes=(16, 16), masks=masks)
    tiles = tiles_of(3)
    with encoder_of(tmp_path, recipe) as encoder:
        np.testing.assert_allclose(encoder.encode(tiles), expected(recipe, tiles), atol=2e-6)


@pytest.mark.parametrize(
    'lead, total, runs',
    [
        (('tiles',), 5, [5] * 5),  # a free axis: one batch
        (('tiles',), 20, [16] * 16 + [4] * 4),  # but never more than memory allows
        ((1,), 3, [1] * 3),  # a fixed axis: one by one
        ((3,), 5, [3] * 5),  # or by its size, the last one filled up
        (IMAGES, 5, [5] * 5),
        ((1, 'images'), 5, [5] * 5),
        (('batch', 1), 5, [5] * 5),
        ((1, 1), 2, [1] * 2),
        ((2, 'images'), 3, [2] * 3),
    ],
)
def test_tiles_share_a_run_as_far_as_the_graph_allows(tmp_path, lead, total, runs):
    recipe = TinyEncoder(lead=lead, count=True)  # adds the number of tiles in the run
    tiles = tiles_of(total)
    with encoder_of(tmp_path, recipe) as encoder:
        found = encoder.encode(tiles)
    np.testing.assert_allclose(
        found, expected(recipe, tiles) + np.reshape(runs, (-1, 1, 1)), atol=3e-6
    )


def test_the_side_comes_from_the_metadata_where_the_graph_leaves_it_open(tmp_path):
    recipe = TinyEncoder(sizes=('height', 'width'), metadata={'side': '16'})
    tiles = tiles_of(2)
    with encoder_of(tmp_path, recipe) as encoder:
        assert encoder.tile_size == 16
        np.testing.assert_allclose(encoder.encode(tiles), expected(recipe, tiles), atol=2e-6)


def test_published_smolvlm_encoders_leave_the_side_open_and_mean_512(tmp_path):
    recipe = TinyEncoder(
        side=512,
        patch=64,
        lead=('batch_size', 'num_images'),
        channels='num_channels',
        sizes=('height', 'width'),
        output='open',
        masks={'pixel_attention_mask': ('bool', ('batch_size', 'num_images', 'height', 'width'))},
    )
    tiles = tiles_of(2, 512)
    with encoder_of(tmp_path, recipe) as encoder:
        assert (encoder.tile_size, encoder.tokens, encoder.n_embd) == (512, 64, 12)
        np.testing.assert_allclose(encoder.encode(tiles), expected(recipe, tiles), atol=2e-5)


@pytest.mark.parametrize(
    'metadata',
    [{}, {'side': 'wide'}, {'side': '0'}, {'side': '-4'}, {'side': '9' * 5000}, {'side': '99999'}],
)
def test_an_unknown_side_is_an_error_that_says_where_to_put_it(tmp_path, metadata):
    recipe = TinyEncoder(sizes=('height', 'width'), metadata=metadata)
    with pytest.raises(ModelMismatch, match='side|too large'):
        encoder_of(tmp_path, recipe)


@pytest.mark.parametrize(
    'recipe',
    [
        TinyEncoder(output='one', lead=(1,)),
        TinyEncoder(output='images'),
        TinyEncoder(output='open'),
        TinyEncoder(extra_output='last_hidden_state'),
    ],
    ids=['one', 'images', 'open', 'two outputs'],
)
def test_embeddings_are_found_in_every_shape_of_output(tmp_path, recipe):
    tiles = tiles_of(2)
    with encoder_of(tmp_path, recipe) as encoder:
        assert (encoder.tokens, encoder.n_embd) == (4, 12)
        found = encoder.encode(tiles)
    assert found.shape == (2, 4, 12)
    np.testing.assert_allclose(found, expected(recipe, tiles), atol=2e-6)


def test_tiles_may_be_a_view(tmp_path):
    recipe = TinyEncoder()
    pixels = tiles_of(2, 40).pixels[:, 3:19, 5:37:2]
    tiles = ImageTiles(pixels, 0, 0, True, MEAN, STD)
    before = pixels.copy()
    with encoder_of(tmp_path, recipe) as encoder:
        np.testing.assert_allclose(encoder.encode(tiles), expected(recipe, tiles), atol=2e-6)
    np.testing.assert_array_equal(pixels, before)


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    with encoder_of(tmp_path, TinyEncoder(spoil=True)) as encoder:
        dark = ImageTiles(np.zeros((1, 16, 16, 3), np.uint8), 0, 0, True, MEAN, STD)
        assert np.isfinite(encoder.encode(dark)).all()
        white = ImageTiles(np.full((1, 16, 16, 3), 255, np.uint8), 0, 0, True, MEAN, STD)
        with pytest.raises(InferenceError, match='48 of 48 numbers .*NaN.*float32'):
            encoder.encode(white)


def test_the_number_of_threads_reaches_onnx_runtime(tmp_path):
    path = TinyEncoder().write(tmp_path / 'vision.onnx')
    for threads in (0, 1, 3):
        with open_encoder(path, EncoderOptions(threads=threads, device='cpu')) as encoder:
            settings = encoder._session.get_session_options()
            assert settings.intra_op_num_threads == threads
            # idle threads must leave the cores to the decoder
            assert settings.get_session_config_entry('session.force_spinning_stop') == '1'


def test_tiles_of_another_size_are_refused(tmp_path):
    with encoder_of(tmp_path, TinyEncoder()) as encoder:
        with pytest.raises(InferenceError, match=r'16 x 16 .*\(1, 32, 32, 3\)'):
            encoder.encode(tiles_of(1, 32))
        with pytest.raises(InferenceError):
            encoder.encode(tiles_of(0))


def test_a_closed_encoder_says_so(tmp_path):
    encoder = encoder_of(tmp_path, TinyEncoder())
    encoder.close()
    encoder.close()
    with pytest.raises(InferenceError, match='closed'):
        encoder.encode(tiles_of(1))


def test_a_failing_run_is_an_error_and_the_next_one_works(tmp_path):
    # The graph can hold two tiles at most.
    path = tmp_path / 'two.onnx'
    nodes = [
        helper.make_node('Slice', ['pixel_values', 'begin', 'end', 'axes'], ['row']),
        helper.make_node('Reshape', ['row', 'shape'], ['padded']),
        helper.make_node('Expand', ['padded', 'two'], ['features']),
    ]
    graph = helper.make_graph(
        nodes,
        'two',
        [helper.make_tensor_value_info('pixel_values', TensorProto.FLOAT, ['n', 3, 4, 4])],
        [helper.make_tensor_value_info('features', TensorProto.FLOAT, ['n', 3, 4])],
        [
            onnx.numpy_helper.from_array(np.array(v, np.int64), k)
            for k, v in {
                'begin': [0],
                'end': [1],
                'axes': [2],
                'shape': [-1, 3, 4],
                'two': [2, 3, 4],
            }.items()
        ],
    )
    path.write_bytes(
        helper.make_model(graph, opset_imports=OPSET, ir_version=8).SerializeToString()
    )
    with open_encoder(path, CPU) as encoder:
        with pytest.raises(InferenceError, match='two.onnx.*3 tiles'):
            encoder.encode(tiles_of(3, 4))
        assert encoder.encode(tiles_of(2, 4)).shape == (2, 3, 4)


def test_an_output_that_does_not_belong_to_the_tiles_is_an_error(tmp_path):
    path = tmp_path / 'odd.onnx'
    path.write_bytes(
        any_graph(
            {'pixel_values': ('float32', ['n', 3, 4, 4])},
            {'y': ('float32', None)},
            [helper.make_node('ReduceSum', ['pixel_values'], ['y'], keepdims=0)],
        )
    )
    with pytest.raises(ModelMismatch, match=r'gave an array of shape \(\) for 1 tiles'):
        open_encoder(path, CPU)
    path.write_bytes(
        any_graph(
            {'pixel_values': ('float32', ['n', 3, 4, 4])},
            {'y': ('float32', ['n', 'c', 'h', 'w'])},
            [helper.make_node('Relu', ['pixel_values'], ['y'])],
        )
    )
    with pytest.raises(InferenceError, match=r'\(2, 3, 4, 4\) for 2 tiles'):
        open_encoder(path, CPU).encode(tiles_of(2, 4))


def test_a_number_of_embeddings_that_changes_from_run_to_run_is_an_error(tmp_path):
    # Three rows for each tile in the run: with two tiles, six for each.
    path = tmp_path / 'growing.onnx'
    path.write_bytes(
        any_graph(
            {'pixel_values': ('float32', ['n', 3, 4, 4])},
            {'y': ('float32', ['n', 't', 'e'])},
            [
                helper.make_node('Constant', [], ['last'], value_ints=[3]),
                helper.make_node('Constant', [], ['one'], value_ints=[1]),
                helper.make_node('ReduceSum', ['pixel_values', 'last'], ['rows'], keepdims=0),
                helper.make_node('Shape', ['pixel_values'], ['n'], end=1),
                helper.make_node('Concat', ['one', 'n', 'one'], ['repeats'], axis=0),
                helper.make_node('Tile', ['rows', 'repeats'], ['y']),
            ],
        )
    )
    with open_encoder(path, CPU) as encoder:
        assert encoder.encode(tiles_of(1, 4)).shape == (1, 3, 4)
        with pytest.raises(InferenceError, match=r'\(2, 6, 4\) for 2 tiles: expected \(2, 3, 4\)'):
            encoder.encode(tiles_of(2, 4))


def identity(**inputs: tuple[str, object]) -> bytes:
    """Make a graph that hands its first input through."""
    name, (kind, shape) = next(iter(inputs.items()))
    return any_graph(inputs, {'y': (kind, shape)}, [helper.make_node('Identity', [name], ['y'])])


@pytest.mark.parametrize(
    'data, told',
    [
        (identity(pixel_values=('int8', ['n', 3, 16, 16])), r'pixel_values is tensor\(int8\)'),
        (identity(x=('float32', [1, 16])), 'x is no picture'),
        (identity(x=('float32', [1, 4, 16, 16])), 'x is no picture'),
        (identity(x=('float32', [1, 1, 16, 16, 3])), 'x is no picture'),
        (identity(x=('float32', ['n', 3, 16, 32])), '32 x 16, not square'),
        (identity(x=('float32', ['n', 3, 0, 0])), 'without elements'),
        (identity(x=('float32', ['n', 3, 10**6, 10**6])), 'too large'),
        (identity(x=('float32', [10**6, 3, 16, 16])), 'too large'),
        (
            identity(x=('float32', ['n', 3, 16, 16]), z=('float32', ['n', 3, 16, 16])),
            '2 inputs that are no masks',
        ),
        (
            identity(
                input_ids=('int64', ['n', 'length']), attention_mask=('int64', ['n', 'length'])
            ),
            r'input_ids is tensor\(int64\)',
        ),
        (
            identity(x=('float32', ['n', 3, 16, 16]), mask=('bool', ['n'])),
            'mask is of no known kind',
        ),
        (identity(x=('uint8', ['n', 3, 16, 16])), 'none of its outputs'),
        (TinyEncoder(extra_output='b', output_name='a').bytes(), 'more than one'),
        (
            any_graph(
                {'x': ('float32', ['n', 3, 4, 4])},
                {'y': ('float32', ['n'])},
                [
                    helper.make_node('ReduceSum', ['x', 'axes'], ['y'], keepdims=0),
                    helper.make_node('Constant', [], ['axes'], value_ints=[1, 2, 3]),
                ][::-1],
            ),
            'output y cannot',
        ),
        (
            any_graph(
                {'x': ('float32', ['n', 3, 4, 4])},
                {'y': ('float32', ['n', 0, 4])},
                [
                    helper.make_node('Constant', [], ['none'], value_ints=[0]),
                    helper.make_node('Constant', [], ['one'], value_ints=[1]),
                    helper.make_node('ReduceSum', ['x', 'one'], ['rows'], keepdims=0),
                    helper.make_node('Slice', ['rows', 'none', 'none', 'one'], ['y']),
                ],
            ),
            'output y cannot',
        ),
    ],
)
def test_a_graph_that_is_no_vision_encoder_is_told_what_was_looked_for(tmp_path, data, told):
    path = tmp_path / 'other.onnx'
    path.write_bytes(data)
    with pytest.raises(ModelMismatch, match=told) as raised:
        open_encoder(path, CPU)
    assert str(path) in str(raised.value)
    assert 'Looked for one input of pixels' in str(raised.value)


def weights_elsewhere(location: str, inside: str = 'initializer') -> bytes:
    """Make a graph whose weights lie in another file."""
    weights = onnx.TensorProto(
        name='w', data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL
    )
    weights.external_data.add(key='location', value=location)
    weights.external_data.add(key='offset', value='0')
    nodes = [
        helper.make_node('Add', ['x', 'w'], ['sum']),
        helper.make_node('ReduceSum', ['sum', 'last'], ['y'], keepdims=0),
    ]
    nodes.insert(0, helper.make_node('Constant', [], ['last'], value_ints=[3]))
    if inside == 'node':
        nodes.insert(0, helper.make_node('Constant', [], ['w'], value=weights))
    graph = helper.make_graph(
        nodes,
        'far',
        [helper.make_tensor_value_info('x', TensorProto.FLOAT, ['n', 3, 4, 4])],
        [helper.make_tensor_value_info('y', TensorProto.FLOAT, ['n', 3, 4])],
        [weights] if inside == 'initializer' else [],
    )
    if inside == 'branch':
        # weights of a graph within a graph
        graph.node[1].CopyFrom(
            helper.make_node(
                'If',
                ['yes'],
                ['sum'],
                then_branch=(
                    helper.make_graph(
                        [helper.make_node('Add', ['x', 'w'], ['s'])],
                        'then',
                        [],
                        [helper.make_tensor_value_info('s', TensorProto.FLOAT, None)],
                        [weights],
                    )
                ),
                else_branch=helper.make_graph(
                    [helper.make_node('Identity', ['x'], ['t'])],
                    'else',
                    [],
                    [helper.make_tensor_value_info('t', TensorProto.FLOAT, None)],
                ),
            )
        )
        graph.initializer.append(helper.make_tensor('yes', TensorProto.BOOL, [], [True]))
    data: bytes = helper.make_model(graph, opset_imports=OPSET, ir_version=8).SerializeToString()
    return data


@pytest.mark.parametrize('inside', ['initializer', 'branch'])
def test_weights_in_a_file_beside_the_graph_are_read(tmp_path, inside):
    path = tmp_path / 'vision.onnx'
    path.write_bytes(weights_elsewhere('weights/data.bin', inside))
    (tmp_path / 'weights').mkdir()
    np.arange(4, dtype=np.float32).tofile(tmp_path / 'weights' / 'data.bin')
    tiles = tiles_of(2, 4)
    with open_encoder(path, CPU) as encoder:
        found = encoder.encode(tiles)
    pixels = normalise(tiles.pixels)
    np.testing.assert_allclose(found, (pixels + np.arange(4)).sum(3), atol=1e-5)


@pytest.mark.parametrize('inside', ['initializer', 'node', 'branch'])
def test_weights_beside_a_graph_count_for_what_it_is(tmp_path, inside):
    """Nothing else that stands beside their place is taken for a file."""
    path, weights = tmp_path / 'vision.onnx', tmp_path / 'data.bin'
    path.write_bytes(weights_elsewhere('data.bin', inside))
    assert weights_beside(path) == model_files(path)[1:] == [weights]
    marks = []
    for number in (1.0, 2.0):
        np.full(4, number, np.float32).tofile(weights)
        marks.append(gguf.identity(path, weights_beside(path)))
    assert marks[0] != marks[1]
    assert weight_bytes(path) == path.stat().st_size + 16


@pytest.mark.parametrize('name', ['VISION.ONNX', 'vision.Onnx'])
def test_a_kind_is_known_in_capitals_too(tmp_path, name):
    path = TinyEncoder().write(tmp_path / 'vision.onnx').rename(tmp_path / name)
    check_encoder_loads(path)
    with open_encoder(path, CPU) as encoder:
        assert encoder.tokens == 4


@pytest.mark.parametrize('inside', ['initializer', 'node', 'branch'])
@pytest.mark.parametrize('relative', [True, False])
def test_weights_are_never_read_from_outside_the_folder(tmp_path, inside, relative):
    # Old versions of ONNX Runtime do.
    np.arange(4, dtype=np.float32).tofile(tmp_path / 'secret')
    folder = tmp_path / 'model'
    folder.mkdir()
    path = folder / 'vision.onnx'
    location = 'weights/../../secret' if relative else str(tmp_path / 'secret')
    path.write_bytes(weights_elsewhere(location, inside))
    with pytest.raises(ModelFileError, match='weights lie outside its folder, in .*secret'):
        open_encoder(path, CPU)


@pytest.mark.parametrize(
    'data',
    [
        b'',
        b'GGUF\x03\x00\x00\x00' + bytes(200),
        b'<!DOCTYPE html><title>Not found</title>',
        TinyEncoder().bytes()[:-500],
        any_graph(
            {'x': ('float32', ['n', 3, 4, 4])},
            {'y': ('float32', ['n', 3, 4])},
            [helper.make_node('Steal', ['x'], ['y'], domain='odd.example')],
            ('odd.example',),
        ),
        weights_elsewhere('weights.bin'),
    ],
    ids=['empty', 'gguf', 'html', 'cut short', 'custom operator', 'weights missing'],
)
def test_a_file_that_cannot_be_loaded_is_named_with_reason_and_cure(tmp_path, capfd, data):
    path = tmp_path / 'vision.onnx'
    path.write_bytes(data)
    with pytest.raises(ModelFileError) as raised:
        open_encoder(path, CPU)
    text = str(raised.value)
    assert raised.value.path == str(path)
    assert f'{len(data)} bytes' in text and 'fetch or export it again' in text
    assert '\n' not in text
    assert capfd.readouterr().err == ''


def test_a_file_that_was_cut_short_anywhere_is_an_error(tmp_path):
    data = TinyEncoder().bytes()
    path = tmp_path / 'vision.onnx'
    for size in (*range(0, 400, 9), *range(400, len(data) - 1, 2003)):
        path.write_bytes(data[:size])
        with pytest.raises((ModelFileError, ModelMismatch)):
            open_encoder(path, CPU)


def test_a_file_of_noise_is_an_error(tmp_path):
    rng = np.random.default_rng(3)
    path = tmp_path / 'vision.onnx'
    whole = TinyEncoder().bytes()
    for _ in range(40):
        damaged = bytearray(whole[:600])
        for at in rng.integers(0, 600, 20):
            damaged[at] = rng.integers(256)
        path.write_bytes(bytes(damaged))
        with pytest.raises((ModelFileError, ModelMismatch)):
            open_encoder(path, CPU)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ModelFileError, match='nowhere.onnx: there is no such file'):
        open_encoder(tmp_path / 'nowhere.onnx', EncoderOptions())


def test_without_onnx_runtime_the_error_names_the_cure(tmp_path, monkeypatch):
    path = TinyEncoder().write(tmp_path / 'vision.onnx')
    for module in ('onnxruntime', 'openvino'):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendMissing, match='vision.onnx.*pip install onnxruntime'):
        open_encoder(path)


def test_onnx_runtime_is_imported_only_for_an_onnx_file():
    code = (
        'import sys, hobot_vlm.encoders.onnx, hobot_vlm.encoders.bpu; '
        "sys.exit('onnxruntime' in sys.modules or 'onnx' in sys.modules)"
    )
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
@pytest.mark.parametrize('channels_first', [True, False])
def test_normalisation_is_exact_to_the_last_bit_for_every_pixel_value(channels_first, dtype):
    pixels = np.stack([np.roll(np.arange(256, dtype=np.uint8), n) for n in (0, 50, 100)], -1)
    tiles = ImageTiles(pixels.reshape(1, 16, 16, 3), 0, 0, True, MEAN, STD)
    found = PixelFormat(16, channels_first, np.dtype(dtype)).batch(tiles, 0, 1)
    right = normalise(tiles.pixels).astype(dtype)
    np.testing.assert_array_equal(found, right if channels_first else right.transpose(0, 2, 3, 1))


@pytest.mark.parametrize('side', [448, 512])
def test_normalising_a_tile_takes_less_than_two_milliseconds(side):
    tiles = tiles_of(1, side)
    pixels = PixelFormat(side, True, np.dtype(np.float32))
    times = []
    for _ in range(20):
        start = time.perf_counter()
        pixels.batch(tiles, 0, 1)
        times.append(time.perf_counter() - start)
    assert min(times) < 2e-3
