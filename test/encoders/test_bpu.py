"""The BPU encoder on stand-ins for both runtimes, against the ONNX encoder of the same weights."""

from __future__ import annotations

from dataclasses import replace
import gc
from pathlib import Path
import sys
from types import ModuleType

from fake_bpu import Compiled, hbm_runtime, pyeasy_dnn
from hobot_vlm.encoders import EncoderOptions, open_encoder
from hobot_vlm.errors import (
    BackendMissing,
    ConfigError,
    InferenceError,
    ModelFileError,
    ModelMismatch,
)
from hobot_vlm.values import ImageTiles
import numpy as np
from onnx_graphs import MEAN, normalise, STD, TinyEncoder
import pytest

RECIPE = TinyEncoder(lead=(1,))
FLOATS = Compiled()
#: one step per number of an embedding, very unlike
STEPS = tuple(float(s) for s in np.geomspace(4e-5, 4e-3, 12))


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch):
    """Take away whatever BPU runtime the machine may have."""
    for name in (
        'hbm_runtime',
        'hobot_dnn',
        'hobot_dnn.pyeasy_dnn',
        'hobot_dnn_rdkx5',
        'hobot_dnn_rdkx5.pyeasy_dnn',
    ):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def install(monkeypatch):
    """Give a function that installs stand-ins under their names, and returns their records."""

    def put(record, *names):
        for name in names:
            if '.' in name:
                package = ModuleType(name.split('.')[0])
                package.__path__ = []
                monkeypatch.setitem(sys.modules, package.__name__, package)
            monkeypatch.setitem(sys.modules, name, record[0])
        return record[1]

    return put


def tiles_of(count: int) -> ImageTiles:
    """Make tiles of noise, all different."""
    pixels = np.random.default_rng(5).integers(0, 256, (count, 16, 16, 3), np.uint8)
    return ImageTiles(pixels, 0, 0, True, MEAN, STD)


def by_onnx(tmp_path: Path, tiles: ImageTiles) -> np.ndarray:
    """Encode with the ONNX encoder of the same weights."""
    with open_encoder(RECIPE.write(tmp_path / 'same.onnx')) as encoder:
        return encoder.encode(tiles)


def compiled(
    tmp_path: Path, model: Compiled = FLOATS, suffix: str = '.hbm', recipe: TinyEncoder = RECIPE
) -> Path:
    """Write a compiled model."""
    return model.write(tmp_path / f'vision{suffix}', recipe.bytes())


RUNTIMES = {
    'hbm': (hbm_runtime, 'hbm_runtime', '.hbm'),
    'hbm with .bin': (hbm_runtime, 'hbm_runtime', '.bin'),
    'easy': (pyeasy_dnn, 'hobot_dnn.pyeasy_dnn', '.bin'),
    'easy on a desktop image': (pyeasy_dnn, 'hobot_dnn_rdkx5.pyeasy_dnn', '.bin'),
    'easy for the X5': (lambda: pyeasy_dnn(x5_build=True), 'hobot_dnn.pyeasy_dnn', '.bin'),
}


@pytest.mark.parametrize('runtime', RUNTIMES)
def test_floats_give_the_embeddings_of_the_onnx_encoder(tmp_path, install, runtime):
    make, name, suffix = RUNTIMES[runtime]
    install(make(), name)
    tiles = tiles_of(3)
    with open_encoder(compiled(tmp_path, suffix=suffix)) as encoder:
        assert (encoder.tile_size, encoder.tokens, encoder.n_embd) == (16, 4, 12)
        found = encoder.encode(tiles)
    assert found.dtype == np.float32 and found.flags.c_contiguous and found.shape == (3, 4, 12)
    np.testing.assert_allclose(found, by_onnx(tmp_path, tiles), atol=1e-6)


NHWC = (1, 16, 16, 3)
INPUTS = {
    'float16': Compiled(input_dtype='float16'),
    'float32 NHWC': Compiled(input_shape=NHWC),
    'int8': Compiled(input_dtype='int8', input_scale=(0.021,)),
    'int8 NHWC, a scale per channel': Compiled(
        input_shape=NHWC,
        input_dtype='int8',
        input_scale=(0.021, 0.018, 0.025),
        input_zero=(3, -5, 0),
        input_axis=3,
    ),
    'int8 NHWC, axis from the end': Compiled(
        input_shape=NHWC, input_dtype='int8', input_scale=(0.021, 0.018, 0.025), input_axis=-1
    ),
    'uint8 with a zero point': Compiled(
        input_dtype='uint8', input_scale=(0.02,), input_zero=(110,)
    ),
    'int16': Compiled(input_dtype='int16', input_scale=(1e-4,)),
}


@pytest.mark.parametrize('name', INPUTS)
def test_inputs_are_quantised_as_the_model_says(tmp_path, install, name):
    install(hbm_runtime(), 'hbm_runtime')
    model, tiles = INPUTS[name], tiles_of(2)
    with open_encoder(compiled(tmp_path, model)) as encoder:
        found = encoder.encode(tiles)
    # 1) exactly what rounding the pixels to the model's steps gives
    pixels = normalise(tiles.pixels)
    if model.input_scale:
        limits = np.iinfo(model.input_dtype)
        scale = np.reshape(model.input_scale, (-1, 1, 1))
        zero = np.reshape(model.input_zero or (0,), (-1, 1, 1))
        stored = np.clip(np.rint(pixels / scale + zero), limits.min, limits.max)
        pixels = (stored - zero) * scale
    else:
        pixels = pixels.astype(model.input_dtype)
    np.testing.assert_allclose(found, RECIPE.expect(pixels.astype(np.float64)), atol=2e-6)
    # 2) and so within half a step of every pixel of what the ONNX encoder gives
    step = max(model.input_scale or (2**-10,))
    reach = np.abs(RECIPE.weight).sum((1, 2, 3)) * step / 2 + 1e-5
    assert (np.abs(found - by_onnx(tmp_path, tiles)) <= reach).all()


@pytest.mark.parametrize('runtime', ['hbm', 'easy for the X5'])
def test_raw_pixels_are_left_to_a_model_that_normalises_them(tmp_path, install, runtime):
    make, name, suffix = RUNTIMES[runtime]
    install(make(), name)
    tiles = tiles_of(2)
    before = tiles.pixels.copy()
    path = compiled(
        tmp_path,
        Compiled(input_shape=NHWC, input_dtype='uint8'),
        suffix,
        replace(RECIPE, dtype='uint8'),
    )
    with open_encoder(path) as encoder:
        np.testing.assert_allclose(encoder.encode(tiles), by_onnx(tmp_path, tiles), atol=2e-6)
    np.testing.assert_array_equal(tiles.pixels, before)


OUTPUTS = {
    'float16': Compiled(output_dtype='float16'),
    'int16, a scale per number': Compiled(output_dtype='int16', output_scale=STEPS),
    'int16, a scale per token': Compiled(
        output_dtype='int16', output_scale=STEPS[:4], output_axis=1
    ),
    'int16, one scale': Compiled(output_dtype='int16', output_scale=(5e-5,), output_axis=0),
    'int8 with zero points': Compiled(
        output_dtype='int8', output_scale=(0.01,) * 12, output_zero=tuple(range(-6, 6))
    ),
    'int32': Compiled(output_dtype='int32', output_scale=STEPS, output_axis=-1),
    'rows of 16': Compiled(output_dtype='int16', output_scale=STEPS, padding=(0, 0, 4)),
    'rows of 16 floats': Compiled(padding=(0, 3, 4)),
    'two axes': Compiled(
        output_shape=(4, 12), output_dtype='int16', output_scale=STEPS, output_axis=1
    ),
    'four axes': Compiled(output_shape=(1, 4, 12, 1), output_dtype='int16', output_scale=STEPS),
    'four axes in front': Compiled(
        output_shape=(1, 1, 4, 12),
        output_dtype='int16',
        output_scale=STEPS,
        output_axis=3,
        padding=(0, 0, 4, 4),
    ),
    'channels first': Compiled(
        output_shape=(1, 12, 1, 4),
        output_dtype='int16',
        turned=True,
        output_scale=STEPS,
        output_axis=1,
        padding=(0, 0, 0, 4),
    ),
}


def half_steps(model: Compiled) -> np.ndarray | float:
    """Give by how much a number may be off, (tokens, n_embd)."""
    if not model.output_scale:
        return 3e-4 if model.output_dtype == 'float16' else 1e-6
    scale = np.array(model.output_scale)
    per_token = model.output_axis == 1 and len(scale) == 4
    return (scale[:, None] if per_token else scale) / 2 * 1.001 + 1e-6


@pytest.mark.parametrize('wide', [False, True], ids=['strides', 'wide'])
@pytest.mark.parametrize('name', OUTPUTS)
def test_outputs_equal_the_onnx_embeddings_within_half_a_step(tmp_path, install, name, wide):
    install(hbm_runtime(wide=wide), 'hbm_runtime')
    model, tiles = OUTPUTS[name], tiles_of(3)
    with open_encoder(compiled(tmp_path, model)) as encoder:
        assert (encoder.tokens, encoder.n_embd) == (4, 12)
        found = encoder.encode(tiles)
    assert found.flags.c_contiguous
    assert (np.abs(found - by_onnx(tmp_path, tiles)) <= half_steps(model)).all()


@pytest.mark.parametrize('x5_build', [False, True], ids=['documented', 'X5'])
@pytest.mark.parametrize(
    'name',
    [
        'int16, a scale per number',
        'int16, one scale',
        'int32',
        'rows of 16',
        'rows of 16 floats',
        'four axes',
        'two axes',
    ],
)
def test_pyeasy_dnn_gives_the_same_within_half_a_step(tmp_path, install, name, x5_build):
    install(pyeasy_dnn(x5_build), 'hobot_dnn.pyeasy_dnn')
    model, tiles = replace(OUTPUTS[name], output_zero=()), tiles_of(2)
    with open_encoder(compiled(tmp_path, model, '.bin')) as encoder:
        found = encoder.encode(tiles)
    assert (np.abs(found - by_onnx(tmp_path, tiles)) <= half_steps(model)).all()


def test_pyeasy_dnn_quantises_inputs_by_channel(tmp_path, install):
    install(pyeasy_dnn(x5_build=True), 'hobot_dnn.pyeasy_dnn')
    scale = (0.021, 0.018, 0.025)
    model = Compiled(input_shape=NHWC, input_dtype='int8', input_scale=scale, input_axis=3)
    tiles = tiles_of(2)
    with open_encoder(compiled(tmp_path, model, '.bin')) as encoder:
        found = encoder.encode(tiles)
    steps = np.reshape(model.input_scale, (3, 1, 1))
    pixels = np.clip(np.rint(normalise(tiles.pixels) / steps), -128, 127) * steps
    np.testing.assert_allclose(found, RECIPE.expect(pixels), atol=2e-6)


def test_pyeasy_dnn_puts_scales_on_the_channels_of_its_layout(tmp_path, install):
    # As many tokens as numbers: only the layout tells which of the two the scales belong to.
    recipe = TinyEncoder(lead=(1,), n_embd=4)
    model = Compiled(output_shape=(1, 4, 4), output_dtype='int16', output_scale=STEPS[::3])
    tiles = tiles_of(1)
    right = recipe.expect(normalise(tiles.pixels))
    for layout, axis in (('NONE', 2), ('NHWC', 2), ('NCHW', 1)):
        install(pyeasy_dnn(layout=layout), 'hobot_dnn.pyeasy_dnn')
        path = compiled(tmp_path, replace(model, output_axis=axis), '.bin', recipe)
        with open_encoder(path) as encoder:
            np.testing.assert_allclose(encoder.encode(tiles), right, atol=max(STEPS))


def test_three_axes_are_taken_in_their_order(tmp_path, install):
    # More embeddings than numbers in one, which only the order of the axes tells.
    install(hbm_runtime(), 'hbm_runtime')
    recipe, tiles = TinyEncoder(lead=(1,), n_embd=3), tiles_of(1)
    path = compiled(tmp_path, Compiled(output_shape=(1, 4, 3)), recipe=recipe)
    with open_encoder(path) as encoder:
        assert (encoder.tokens, encoder.n_embd) == (4, 3)
        np.testing.assert_allclose(
            encoder.encode(tiles), recipe.expect(normalise(tiles.pixels)), atol=1e-6
        )


def test_quantised_at_both_ends_with_gaps_between_rows(tmp_path, install):
    install(hbm_runtime(), 'hbm_runtime')
    scale = (0.021, 0.018, 0.025)
    model = Compiled(
        input_shape=NHWC,
        input_dtype='int8',
        input_scale=scale,
        input_axis=3,
        output_dtype='int16',
        output_scale=STEPS,
        padding=(0, 4, 4),
    )
    tiles = tiles_of(2)
    with open_encoder(compiled(tmp_path, model)) as encoder:
        found = encoder.encode(tiles)
    reach = np.abs(RECIPE.weight).sum((1, 2, 3)) * max(scale) / 2 + np.array(STEPS) / 2 + 1e-5
    assert (np.abs(found - by_onnx(tmp_path, tiles)) <= reach).all()


@pytest.mark.parametrize(
    'options, wanted',
    [
        (EncoderOptions(), {'priority': 0}),
        (EncoderOptions(bpu_priority=200), {'priority': 200}),
        (EncoderOptions(bpu_priority=7, bpu_cores=(0, 2)), {'priority': 7, 'bpu_cores': [0, 2]}),
    ],
)
def test_priority_and_cores_reach_hbm_runtime(tmp_path, install, options, wanted):
    made = install(hbm_runtime(cores=4), 'hbm_runtime')
    with open_encoder(compiled(tmp_path), options):
        assert vars(made[0]().sched_params['vit']) == wanted


@pytest.mark.parametrize(
    'options, wanted',
    [
        (EncoderOptions(), {}),
        (EncoderOptions(bpu_priority=200), {'priority': 200}),
        (EncoderOptions(bpu_cores=(0,)), {'core_id': 1}),
        (EncoderOptions(bpu_priority=3, bpu_cores=(1,)), {'priority': 3, 'core_id': 2}),
        (EncoderOptions(bpu_cores=(0, 1)), {}),
    ],
)
def test_priority_and_core_reach_pyeasy_dnn(tmp_path, install, options, wanted):
    calls = install(pyeasy_dnn(), 'hobot_dnn.pyeasy_dnn')
    with open_encoder(compiled(tmp_path, suffix='.bin'), options) as encoder:
        encoder.encode(tiles_of(2))
    assert calls == [wanted] * 2


def test_a_core_that_the_board_lacks_is_an_error_of_the_option(tmp_path, install):
    install(hbm_runtime(cores=1), 'hbm_runtime')
    with pytest.raises(ConfigError, match=r'bpu_cores \(3,\).*Invalid BPU core') as raised:
        open_encoder(compiled(tmp_path), EncoderOptions(bpu_cores=(3,)))
    assert raised.value.name == 'bpu_cores'


@pytest.mark.parametrize('suffix', ['.hbm', '.bin'])
def test_without_a_bpu_the_error_says_which_files_work_here(tmp_path, suffix):
    with pytest.raises(BackendMissing) as raised:
        open_encoder(compiled(tmp_path, suffix=suffix))
    text = str(raised.value)
    assert f'vision{suffix} runs on the BPU' in text and 'hbm_runtime' in text
    assert ('pyeasy_dnn' in text) == (suffix == '.bin')
    assert '.onnx' in text and 'mmproj .gguf' in text and 'model_file_name' in text


def test_a_runtime_without_its_libraries_counts_as_missing(tmp_path, monkeypatch):
    class Broken:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == 'hbm_runtime':
                raise OSError('libdnn.so: cannot open shared object file')

    monkeypatch.delitem(sys.modules, 'hbm_runtime')
    monkeypatch.setattr(sys, 'meta_path', [Broken, *sys.meta_path])
    with pytest.raises(BackendMissing):
        open_encoder(compiled(tmp_path))


def test_an_hbm_file_is_never_given_to_pyeasy_dnn(tmp_path, install):
    calls = install(pyeasy_dnn(), 'hobot_dnn.pyeasy_dnn')
    with pytest.raises(BackendMissing):
        open_encoder(compiled(tmp_path))
    assert not calls


def test_a_bin_file_goes_to_the_runtime_that_can_load_it(tmp_path, install):
    path, tiles = compiled(tmp_path, suffix='.bin'), tiles_of(1)
    calls = install(pyeasy_dnn(), 'hobot_dnn.pyeasy_dnn')
    made = install(hbm_runtime(), 'hbm_runtime')
    with open_encoder(path) as encoder:
        encoder.encode(tiles)
    assert (len(made), len(calls)) == (1, 0)  # hbm_runtime comes first
    made = install(hbm_runtime(loads=('.hbm',)), 'hbm_runtime')
    with open_encoder(path) as encoder:
        encoder.encode(tiles)
    assert (len(made), len(calls)) == (0, 1)


@pytest.mark.parametrize('data', [b'', b'GGUF' + bytes(50), b'\x08\x08' + bytes(50)])
def test_a_file_that_no_runtime_loads_is_an_error_with_all_reasons(tmp_path, install, data):
    install(hbm_runtime(), 'hbm_runtime')
    install(pyeasy_dnn(), 'hobot_dnn.pyeasy_dnn')
    path = tmp_path / 'other.bin'
    path.write_bytes(data)
    with pytest.raises(ModelFileError) as raised:
        open_encoder(path)
    text = str(raised.value)
    assert str(path) in text and 'compiled for this board' in text
    assert 'hbm_runtime: hbDNN' in text and 'pyeasy_dnn: hbDNN' in text


@pytest.mark.parametrize(
    'model, told',
    [
        (Compiled(input_shape=(1, 3, 16, 16), input_dtype='NV12'), 'its input is NV12'),
        (Compiled(input_dtype='int8'), 'its input is S8 without a scale'),
        (Compiled(input_dtype='int32'), 'its input is S32'),
        (Compiled(input_shape=(1, 24, 16, 1)), 'its input is not one picture'),
        (Compiled(input_shape=(2, 3, 16, 16)), 'its input is not one picture'),
        (Compiled(input_shape=(1, 3, 16, 32)), '32 x 16, not square'),
        (
            Compiled(input_dtype='int8', input_scale=(0.02,) * 16, input_axis=3),
            'belongs to no chan',
        ),
        (Compiled(extra_input=True), 'it has 2 inputs'),
        (Compiled(output_dtype='int16'), 'its output is S16 without a scale'),
        (Compiled(output_shape=(1, 2, 2, 12)), 'its output cannot be embeddings'),
        (Compiled(output_shape=(2, 2, 12)), 'its output cannot be embeddings'),
        (
            Compiled(output_dtype='int16', output_scale=STEPS[:5]),
            '5 numbers for axis 2, expected 1',
        ),
        (Compiled(output_dtype='int16', output_scale=(0.0,)), 'above zero'),
        (Compiled(output_dtype='int16', output_scale=(float('nan'),)), 'above zero'),
        (Compiled(output_dtype='int16', output_scale=STEPS, quant_type='SHIFT'), 'SHIFT'),
    ],
)
def test_a_model_that_is_no_vision_encoder_is_told_why(tmp_path, install, model, told):
    install(hbm_runtime(), 'hbm_runtime')
    with pytest.raises(ModelMismatch, match=told):
        open_encoder(compiled(tmp_path, model))


def test_a_failing_run_is_an_error(tmp_path, install):
    install(hbm_runtime(broken='hbUCPWaitTaskDone failed: -200003'), 'hbm_runtime')
    with open_encoder(compiled(tmp_path)) as encoder:
        with pytest.raises(InferenceError, match='vision.hbm failed on the BPU: hbUCPWait'):
            encoder.encode(tiles_of(1))


def test_an_output_that_pyeasy_dnn_cannot_give_is_not_mistaken_for_embeddings(tmp_path, install):
    # The X5's first builds knew no int16 and handed out its bytes.
    install(pyeasy_dnn(outputs=('float32', 'int8', 'int32')), 'hobot_dnn.pyeasy_dnn')
    model = Compiled(output_dtype='int16', output_scale=STEPS)
    with open_encoder(compiled(tmp_path, model, '.bin')) as encoder:
        with pytest.raises(InferenceError, match=r'gave int8 .* expected int16 \(1, 4, 12\).*hbm'):
            encoder.encode(tiles_of(1))


def test_numbers_that_are_not_finite_are_refused(tmp_path, install):
    install(hbm_runtime(), 'hbm_runtime')
    path = compiled(tmp_path, recipe=replace(RECIPE, spoil=True))
    white = ImageTiles(np.full((1, 16, 16, 3), 255, np.uint8), 0, 0, True, MEAN, STD)
    with open_encoder(path) as encoder, pytest.raises(InferenceError, match='NaN'):
        encoder.encode(white)


def test_tiles_of_another_size_are_refused(tmp_path, install):
    install(hbm_runtime(), 'hbm_runtime')
    tiles = ImageTiles(np.zeros((1, 8, 8, 3), np.uint8), 0, 0, True, MEAN, STD)
    with open_encoder(compiled(tmp_path)) as encoder:
        with pytest.raises(InferenceError, match='16 x 16'):
            encoder.encode(tiles)


def test_closing_frees_the_runtime(tmp_path, install):
    made = install(hbm_runtime(), 'hbm_runtime')
    encoder = open_encoder(compiled(tmp_path))
    found = encoder.encode(tiles_of(1))
    encoder.close()
    encoder.close()
    gc.collect()
    assert made[0]() is None
    assert found.shape == (1, 4, 12)
    with pytest.raises(InferenceError, match='closed'):
        encoder.encode(tiles_of(1))
