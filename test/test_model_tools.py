"""The tools that make and export models; skipped where torch or transformers is missing."""

from __future__ import annotations

from importlib.util import find_spec
import json
from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
NEEDED = ('torch', 'transformers', 'num2words', 'safetensors', 'gguf', 'onnxscript', 'onnxruntime')
MISSING = [name for name in NEEDED if find_spec(name) is None]

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f'not installed: {", ".join(MISSING)}'),
    pytest.mark.timeout(600),
]


def run(tool: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / 'tools' / tool, *map(str, arguments)],
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope='module')
def checkpoints(tmp_path_factory):
    """Make the test models anew; give the folder of their checkpoints and what the tool said."""
    folder = tmp_path_factory.mktemp('checkpoints')
    return folder, run('make_test_models.py', '--check', '--build', folder)


def embeddings(path: Path, side: int) -> np.ndarray:
    import onnxruntime

    pixels = np.random.default_rng(0).standard_normal((3, 3, side, side)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return session.run(None, {'pixel_values': pixels})[0]


def test_the_stored_answers_are_those_of_transformers(checkpoints):
    _, done = checkpoints
    assert done.returncode == 0, done.stderr
    assert 'everything is as stored' in done.stdout


@pytest.mark.parametrize('family, side', (('internvl', 56), ('smolvlm', 64)))
def test_an_export_is_checked_against_torch(checkpoints, tmp_path, family, side):
    target = tmp_path / 'vision.onnx'
    done = run('export_encoder.py', checkpoints[0] / family, target, '--json')
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told['side'], told['tokens'], told['n_embd']) == (side, 4, 64)
    assert told['relative'] < 1e-4
    np.testing.assert_allclose(
        embeddings(target, side),
        embeddings(ROOT / 'test' / 'models' / family / 'vision.onnx', side),
        atol=1e-4,
    )


@pytest.mark.parametrize('how, least', ((('--int8',), 0.98), (('--bits', '8'), 0.999)))
def test_eight_bits_are_smaller_and_close(checkpoints, tmp_path, how, least):
    target = tmp_path / 'vision.onnx'
    done = run('export_encoder.py', checkpoints[0] / 'internvl', target, *how, '--json')
    assert done.returncode == 0, done.stderr
    whole = ROOT / 'test' / 'models' / 'internvl' / 'vision.onnx'
    assert target.stat().st_size < 0.75 * whole.stat().st_size
    small, large = embeddings(target, 56), embeddings(whole, 56)
    lengths = np.linalg.norm(small, axis=-1) * np.linalg.norm(large, axis=-1)
    assert ((small * large).sum(-1) / lengths).min() > least


def test_a_checkpoint_as_opengvlab_publishes_it(checkpoints, tmp_path):
    """The names of their own code, with queries, keys and values in one matrix."""
    from safetensors.numpy import load_file, save_file

    source = checkpoints[0] / 'internvl'
    ours = {
        name.removeprefix('model.'): values
        for name, values in load_file(source / 'model.safetensors').items()
    }
    vision, projector = 'vision_tower.', 'multi_modal_projector.'
    theirs = {
        'vision_model.embeddings.class_embedding': ours[vision + 'embeddings.cls_token'],
        'vision_model.embeddings.position_embedding': ours[
            vision + 'embeddings.position_embeddings'
        ],
        'language_model.model.norm.weight': np.ones(64, np.float32),
    }
    for suffix in ('weight', 'bias'):
        theirs[f'vision_model.embeddings.patch_embedding.{suffix}'] = ours[
            f'{vision}embeddings.patch_embeddings.projection.{suffix}'
        ]
        for number, name in ((0, 'layer_norm'), (1, 'linear_1'), (3, 'linear_2')):
            theirs[f'mlp1.{number}.{suffix}'] = ours[f'{projector}{name}.{suffix}']
    for i in range(2):
        old, new = f'{vision}encoder.layer.{i}.', f'vision_model.encoder.layers.{i}.'
        for suffix in ('weight', 'bias'):
            theirs[f'{new}attn.qkv.{suffix}'] = np.concatenate(
                [ours[f'{old}attention.{which}_proj.{suffix}'] for which in 'qkv']
            )
            for a, b in (
                ('attention.projection_layer', 'attn.proj'),
                ('mlp.fc1', 'mlp.fc1'),
                ('mlp.fc2', 'mlp.fc2'),
                ('layernorm_before', 'norm1'),
                ('layernorm_after', 'norm2'),
            ):
                theirs[f'{new}{b}.{suffix}'] = ours[f'{old}{a}.{suffix}']
        for n in (1, 2):
            theirs[f'{new}ls{n}'] = ours[f'{old}lambda_{n}']
    save_file(theirs, tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text(
        json.dumps(
            {
                'model_type': 'internvl_chat',
                'downsample_ratio': 0.5,
                'force_image_size': 56,
                'llm_config': {'hidden_size': 64},
                'vision_config': {
                    'hidden_size': 32,
                    'intermediate_size': 64,
                    'num_hidden_layers': 2,
                    'num_attention_heads': 2,
                    'image_size': 56,
                    'patch_size': 14,
                    'hidden_act': 'gelu',
                    'layer_norm_eps': 1e-6,
                    'norm_type': 'layer_norm',
                    'qkv_bias': True,
                    'qk_normalization': False,
                },
            }
        )
    )
    done = run('export_encoder.py', tmp_path, tmp_path / 'vision.onnx')
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(
        embeddings(tmp_path / 'vision.onnx', 56),
        embeddings(ROOT / 'test' / 'models' / 'internvl' / 'vision.onnx', 56),
        atol=1e-4,
    )


@pytest.mark.parametrize(
    'settings, message',
    (
        ({'model_type': 'llama'}, "model_type is 'llama'"),
        ({'model_type': 'smolvlm'}, 'no *.safetensors'),
    ),
)
def test_a_folder_that_is_no_checkpoint(tmp_path, settings, message):
    (tmp_path / 'config.json').write_text(json.dumps(settings))
    done = run('export_encoder.py', tmp_path, tmp_path / 'vision.onnx')
    assert done.returncode != 0
    assert message in done.stderr and not (tmp_path / 'vision.onnx').exists()


def test_a_checkpoint_with_a_router(tmp_path):
    """Both branches and the gate come out, and the answers stored of them are those of torch."""
    checkpoint, out = tmp_path / 'flash', tmp_path / 'out'
    done = run('make_flash_model.py', '--build', checkpoint, '--out', out)
    assert done.returncode == 0, done.stderr
    stored = ROOT / 'test' / 'data'
    assert _cases(out / 'data' / 'flash.json') == _cases(stored / 'flash.json')
    with np.load(out / 'data' / 'flash.npz') as new, np.load(stored / 'flash.npz') as old:
        assert set(new) == set(old)
        for name in old:
            np.testing.assert_allclose(new[name], old[name], atol=1e-3)
    settings = json.loads((checkpoint / 'config.json').read_text())
    del settings['flash_relative_threshold']
    (checkpoint / 'config.json').write_text(json.dumps(settings))
    done = run('export_encoder.py', checkpoint, tmp_path / 'vision.onnx')
    assert done.returncode != 0 and 'flash_relative_threshold' in done.stderr


def _cases(path: Path) -> dict[str, dict[str, object]]:
    told = json.loads(path.read_text('utf-8'))
    return {name: {k: v for k, v in c.items() if k != 'margin'} for name, c in told.items()}


def test_a_checkpoint_without_its_router(tmp_path):
    from safetensors.numpy import load_file, save_file

    one, two = np.ones((2, 3), np.float32), np.zeros(4, np.float32)
    folder, target = tmp_path / 'flash', tmp_path / 'decoder'
    folder.mkdir()
    save_file({'gating.gate.1.bias': two, 'mlp2.0.bias': two}, folder / 'b.safetensors')
    for name in ('config.json', 'model.safetensors.index.json'):
        (folder / name).write_text('{}')
    done = run('without_router.py', folder, target)
    assert done.returncode != 0 and 'language_model.' in done.stderr
    save_file({'language_model.a': one, 'query_token': two}, folder / 'a.safetensors')
    done = run('without_router.py', folder, target)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in target.iterdir()} == {'a.safetensors', 'config.json'}
    copied = load_file(target / 'a.safetensors')
    assert list(copied) == ['language_model.a'] and (copied['language_model.a'] == one).all()
