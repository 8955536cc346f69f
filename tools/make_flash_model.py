"""
Make a small random InternVL3.5-Flash encoder, and store what torch answers with it.

``python tools/make_flash_model.py`` writes

* ``build/test_models/flash/`` (``--build``): a checkpoint as OpenGVLab publishes them,
* ``test/models/flash/vision.onnx``: its encoder, for ``test/models/internvl/decoder.gguf``,
* ``test/data/flash.npz`` and ``flash.json``: embeddings of tiles, prompts and answers, by a
  reading of the makers' code that shares only the vision tower with what exports.

``--out`` has another folder than test/. Needs what make_test_models.py does.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import sys
from typing import Any
import zlib

import numpy as np
import onnx
from safetensors.torch import save_file
import torch
from torch.nn import functional

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'test'))  # for the pictures

from export_encoder import export, load  # noqa: E402
from pictures import picture  # noqa: E402
from test_models import models, reference  # noqa: E402

SIDE, PATCH, WIDTH, HEADS = 16, 4, 16, 16  # 4 x 4 patches: 4 tokens, or 1 compressed
ABSOLUTE, RELATIVE = 0.25, 0.37  # the latter falls on no tile of several
SEED = 1

#: how far a probability must be from the higher threshold, so that rounding decides nothing
CLEAR = 0.005
#: bytes from which a tensor is stored in 16 bits; the weights have no more digits
LARGE = 1024

CONFIG = {
    'model_type': 'internvl_chat',
    'downsample_ratio': 0.5,
    'force_image_size': SIDE,
    'flash_mode': True,
    'flash_absolute_threshold': ABSOLUTE,
    'flash_relative_threshold': RELATIVE,
    'llm_config': {'hidden_size': models.N_EMBD},
    'vision_config': {
        'hidden_size': WIDTH,
        'intermediate_size': 2 * WIDTH,
        'num_hidden_layers': 1,
        'num_attention_heads': 2,
        'image_size': SIDE,
        'patch_size': PATCH,
        'hidden_act': 'gelu',
        'layer_norm_eps': 1e-6,
        'norm_type': 'layer_norm',
        'qkv_bias': True,
        'qk_normalization': False,
    },
}

Weights = dict[str, torch.Tensor]


def shapes() -> dict[str, tuple[int, ...]]:
    """Give the tensors of such a checkpoint, as the makers name them."""
    found: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        found[f'{name}.weight'], found[f'{name}.bias'] = (outputs, inputs), (outputs,)

    def norm(name: str, width: int) -> None:
        found[f'{name}.weight'] = found[f'{name}.bias'] = (width,)

    n_embd, patches = models.N_EMBD, (SIDE // PATCH) ** 2
    vision, layer = 'vision_model.embeddings.', 'vision_model.encoder.layers.0.'
    found[f'{vision}class_embedding'] = (1, 1, WIDTH)
    found[f'{vision}position_embedding'] = (1, patches + 1, WIDTH)
    found[f'{vision}patch_embedding.weight'] = (WIDTH, 3, PATCH, PATCH)
    found[f'{vision}patch_embedding.bias'] = (WIDTH,)
    found[f'{layer}ls1'] = found[f'{layer}ls2'] = (WIDTH,)
    linear(f'{layer}attn.qkv', WIDTH, 3 * WIDTH)
    linear(f'{layer}attn.proj', WIDTH, WIDTH)
    linear(f'{layer}mlp.fc1', WIDTH, 2 * WIDTH)
    linear(f'{layer}mlp.fc2', 2 * WIDTH, WIDTH)
    norm(f'{layer}norm1', WIDTH)
    norm(f'{layer}norm2', WIDTH)
    norm('mlp1.0', 4 * WIDTH)
    linear('mlp1.1', 4 * WIDTH, n_embd)
    linear('mlp1.3', n_embd, n_embd)
    norm('mlp2.0', 16 * WIDTH)
    linear('mlp2.1', 16 * WIDTH, 2 * n_embd)
    linear('mlp2.4', 2 * n_embd, 2 * n_embd)
    linear('mlp2.7', 2 * n_embd, n_embd)
    found['pooling_before_gating.query_token'] = (1, WIDTH)
    for i in range(1, 5):
        attention = f'pooling_before_gating.attn{i}'
        found[f'{attention}.in_proj_weight'] = (3 * WIDTH, WIDTH)
        found[f'{attention}.in_proj_bias'] = (3 * WIDTH,)
        linear(f'{attention}.out_proj', WIDTH, WIDTH)
        norm(f'pooling_before_gating.norm{i}', WIDTH)
        linear(f'gating.block{i}.0', WIDTH, 4 * WIDTH)
        linear(f'gating.block{i}.3', 4 * WIDTH, WIDTH)
        norm(f'gating.block{i}.5', WIDTH)
    norm('gating.gate.0', WIDTH)
    linear('gating.gate.1', WIDTH, 2)
    return found


def draw() -> Weights:
    """Give random weights that 16 bits hold; each tensor depends on its name and the seed."""
    found = {}
    for name, shape in shapes().items():
        values = np.random.default_rng([SEED, zlib.crc32(name.encode())]).standard_normal(shape)
        if name.endswith(('.bias', 'proj_bias')):
            values *= 0.1
        elif len(shape) == 1:
            values = 1 + 0.1 * values
        else:
            values *= 1.5 / np.sqrt(np.prod(shape[1:]))
        found[name] = torch.from_numpy(values.astype(np.float16).astype(np.float32))
    return found


@torch.no_grad()
def read(patches: torch.Tensor, w: Weights) -> tuple[list[torch.Tensor], torch.Tensor]:
    """
    Follow the makers' ``extract_feature_flash`` and ``generate_flash`` for the tiles of a picture.

    :param patches: (tiles, rows, columns, width) of the vision tower
    :return: of each tile (tokens, n_embd); and how far each probability is from the higher
        threshold
    """

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, w[f'{name}.weight'], w[f'{name}.bias'])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], w[f'{name}.weight'], w[f'{name}.bias'])

    def attend(query: torch.Tensor, name: str) -> torch.Tensor:
        q, k, v = (
            functional.linear(x, a, b).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for x, a, b in zip(
                (query, flat, flat),
                w[f'{name}.in_proj_weight'].chunk(3),
                w[f'{name}.in_proj_bias'].chunk(3),
                strict=True,
            )
        )
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return linear((weights @ v).transpose(1, 2).flatten(2), f'{name}.out_proj')

    def shuffle(factor: int) -> torch.Tensor:
        tiles, rows, columns, width = patches.shape
        x = patches.reshape(tiles, rows, columns // factor, width * factor).permute(0, 2, 1, 3)
        x = x.reshape(tiles, columns // factor, rows // factor, width * factor**2)
        return x.permute(0, 2, 1, 3).flatten(1, 2)

    flat = patches.flatten(1, 2)
    pool = 'pooling_before_gating'
    query = w[f'{pool}.query_token'].expand(len(flat), 1, -1)
    for layer in (1, 2, 2, 2):
        query = norm(attend(query, f'{pool}.attn{layer}'), f'{pool}.norm{layer}')
    x = query[:, 0]
    for block in (f'gating.block{i}' for i in range(1, 5)):
        inner = linear(functional.gelu(linear(x, f'{block}.0')), f'{block}.3')
        x = x + norm(inner, f'{block}.5')
    chance = linear(norm(x, 'gating.gate.0'), 'gating.gate.1').softmax(-1)[:, 0]
    bound = torch.quantile(chance, RELATIVE)
    small = (chance > bound) & (chance >= ABSOLUTE)
    fine = norm(shuffle(2), 'mlp1.0')
    fine = linear(functional.gelu(linear(fine, 'mlp1.1')), 'mlp1.3')
    coarse = functional.gelu(linear(norm(shuffle(4), 'mlp2.0'), 'mlp2.1'))
    coarse = linear(functional.gelu(linear(coarse, 'mlp2.4')), 'mlp2.7')
    distance = (chance - bound.clamp(min=ABSOLUTE)).abs()
    return [coarse[i] if small[i] else fine[i] for i in range(len(flat))], distance


def case(
    name: str, encoder: torch.nn.Module, weights: Weights
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Answer a case, with the first pictures that leave no decision to rounding."""
    vlm = models.internvl()
    language = vlm.decoder()
    processor = vlm.processor.image_processor
    processor.size = {'height': SIDE, 'width': SIDE}
    context = vlm.processor.tokenizer.convert_tokens_to_ids('<IMG_CONTEXT>')
    talk = reference.messages('internvl', name)
    prompt = vlm.processor.tokenizer.apply_chat_template(
        talk, add_generation_prompt=True, tokenize=False
    )
    settings = reference.processor_settings('internvl', name)
    table = language.model.get_input_embeddings()
    for seed in range(0, 20000, 20):
        recipes = [(*size, seed + i) for i, size in enumerate(reference.SIZES[name])]
        tiles: list[torch.Tensor] = []
        text, clear = prompt, True
        for recipe in recipes:
            pixels = processor(picture(*recipe), return_tensors='pt', **settings)['pixel_values']
            with torch.no_grad():
                made, distance = read(encoder.patches(pixels), weights)
            kinds = {len(tile) for tile in made}
            if len(made) > 1:  # one alone is never compressed
                clear &= float(distance.min()) > CLEAR and len(kinds) == 2
            tiles += made
            marks = '<IMG_PLACE>' * sum(map(len, made))
            text = text.replace('<IMG_CONTEXT>', f'<img>{marks}</img>', 1)
        if not clear:
            continue
        text = text.replace('<IMG_PLACE>', '<IMG_CONTEXT>')
        ids = torch.tensor([vlm.vocabulary.tokenizer.encode(text).ids])
        shown = torch.cat(tiles)

        def answer(ids: torch.Tensor, shown: torch.Tensor = shown) -> torch.Tensor:
            given = table(ids)
            given[ids == context] = shown
            return language.model(inputs_embeds=given).logits[0, -1]

        greedy, logits, margin = reference.best_tokens(answer, ids)
        if margin >= reference.MARGIN:
            break
    else:
        sys.exit(f'no pictures for {name}: take another SEED')
    counts = [len(tile) for tile in tiles]
    print(f'{name}: seed {seed}, tiles of {counts} embeddings, margin {margin:.3f}')
    return {
        'question': reference.QUESTIONS[name],
        'pictures': recipes,
        'counts': counts,
        'placeholder': context,
        'ids': ids[0].tolist(),
        'greedy': greedy,
        'margin': round(margin, 4),
    }, {f'{name}/embeddings': shown.numpy(), f'{name}/logits': logits}


def in_16_bits(path: Path) -> None:
    """Store the weights of a graph in 16 bits, which change nothing; it still computes in 32."""
    model = onnx.load(str(path))
    casts = []
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.nbytes >= LARGE:
            small = values.astype(np.float16)
            if (small == values).all():
                name = tensor.name
                tensor.CopyFrom(onnx.numpy_helper.from_array(small, f'{name}_16'))
                casts.append(onnx.helper.make_node('Cast', [f'{name}_16'], [name], to=1))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def main() -> None:
    """Write checkpoint, encoder and answers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('--out', type=Path, default=ROOT / 'test')
    parser.add_argument('--build', type=Path, default=ROOT / 'build' / 'test_models' / 'flash')
    args = parser.parse_args()
    torch.set_num_threads(1)
    build, data, target = args.build, args.out / 'data', args.out / 'models/flash/vision.onnx'
    weights = draw()
    build.mkdir(parents=True, exist_ok=True)
    data.mkdir(parents=True, exist_ok=True)
    save_file(weights, build / 'model.safetensors')
    (build / 'config.json').write_text(json.dumps(CONFIG, indent=1), encoding='utf-8')
    print(export(build, target))
    in_16_bits(target)
    size = target.stat().st_size
    assert size < 300_000, f'{target} has {size} bytes'
    encoder = load(build)
    told, arrays = {}, {}
    for name in ('single', 'tiles', 'two'):
        told[name], found = case(name, encoder, weights)
        arrays |= found
    np.savez_compressed(data / 'flash.npz', **arrays)
    text = json.dumps(told, ensure_ascii=False)
    (data / 'flash.json').write_text(text + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
