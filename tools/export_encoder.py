"""
Turn a Hugging Face InternVL or SmolVLM checkpoint into the ONNX encoder that hobot_vlm reads.

``python tools/export_encoder.py FOLDER vision.onnx`` writes vision tower, pixel shuffle and
projector as one graph: ``pixel_values`` float32 (tiles, 3, side, side), normalised, to
``image_features`` float32 (tiles, tokens, n_embd), for any number of tiles. The graph is compared
with torch on random pixels and the largest difference printed.

InternVL3.5-Flash: the graph has both branches. ``image_features`` is of all tiles uncompressed,
``compressed_features`` (tiles, tokens / 4, n_embd) of all tiles compressed, and ``gate``
(tiles, 3) what hobot_vlm chooses between them by: the router's probability, and both thresholds.

FOLDER holds config.json and the weights (*.safetensors), either in the layout of transformers
(InternVL3-1B-hf, SmolVLM2-500M-Video-Instruct) or as OpenGVLab publishes InternVL (InternVL3-1B).
The language model in it is not loaded. ``--bits 8`` stores the matrices in 8 bits with a scale for
each 32 weights, as Q8_0 does (MatMulNBits): a quarter of the size, faster on most CPUs, nearly as
exact. ``--int8`` has one scale to a matrix: faster still, and the least exact.

Needs torch, transformers, safetensors, onnx, onnxscript and onnxruntime.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
import json
from pathlib import Path
import re
import sys
from typing import Any

from flash_router import Gating, Pooling
import numpy as np
from safetensors import safe_open
import torch
from transformers import InternVLConfig, InternVLVisionModel, SmolVLMConfig
from transformers.models.internvl.modeling_internvl import (
    InternVLModel,
    InternVLMultiModalProjector,
)
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMConnector, SmolVLMVisionTransformer

#: largest difference from torch, relative to the largest embedding
TOLERANCE, TOLERANCE_INT8, TOLERANCE_BLOCKS = 1e-3, 0.3, 0.1

#: parts of OpenGVLab's names -> those of transformers
OPENGVLAB = (
    (r'^vision_model\.embeddings\.class_embedding$', 'vision_tower.embeddings.cls_token'),
    (
        r'^vision_model\.embeddings\.position_embedding$',
        'vision_tower.embeddings.position_embeddings',
    ),
    (
        r'^vision_model\.embeddings\.patch_embedding\.',
        'vision_tower.embeddings.patch_embeddings.projection.',
    ),
    (r'^vision_model\.encoder\.layers\.(\d+)\.', r'vision_tower.encoder.layer.\1.'),
    (r'\.attn\.proj\.', '.attention.projection_layer.'),
    (r'\.attn\.([qk]_norm|qkv)\.', r'.attention.\1.'),
    (r'\.norm1\.', '.layernorm_before.'),
    (r'\.norm2\.', '.layernorm_after.'),
    (r'\.ls([12])$', r'.lambda_\1'),
    (r'^mlp1\.0\.', 'multi_modal_projector.layer_norm.'),
    (r'^mlp1\.1\.', 'multi_modal_projector.linear_1.'),
    (r'^mlp1\.3\.', 'multi_modal_projector.linear_2.'),
)


class InternVLEncoder(torch.nn.Module):
    """Pixels of tiles -> embeddings, as InternVL makes them."""

    outputs: tuple[str, ...] = ('image_features',)

    def __init__(self, config: InternVLConfig):
        super().__init__()
        self.side = config.vision_config.image_size[0]
        self.ratio = config.downsample_ratio
        self.vision_tower = InternVLVisionModel(config.vision_config)
        self.multi_modal_projector = InternVLMultiModalProjector(config)

    def patches(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Give the patches of tiles in rows and columns."""
        tower = self.vision_tower
        patches = tower.encoder(tower.embeddings(pixel_values)).last_hidden_state
        patches = tower.layernorm(patches)[:, 1:]  # without the class token
        edge = round(patches.shape[1] ** 0.5)
        return patches.reshape(-1, edge, edge, patches.shape[2])

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        square = self.patches(pixel_values)
        shuffled = InternVLModel.pixel_shuffle(self, square, self.ratio)
        return self.multi_modal_projector(shuffled.flatten(1, 2))


class FlashEncoder(InternVLEncoder):
    """
    Pixels of tiles -> embeddings in full and compressed, and what the router says of each tile.

    Names and sizes are those of the checkpoints of InternVL3.5-Flash, where no setting tells them.
    """

    outputs = ('image_features', 'compressed_features', 'gate')

    def __init__(self, config: InternVLConfig, thresholds: tuple[float, float]):
        """:param thresholds: absolute and relative"""
        super().__init__(config)
        width, n_embd = config.vision_config.hidden_size, config.text_config.hidden_size
        shuffled = width * round(1 / self.ratio) ** 4
        nn = torch.nn
        self.mlp2 = nn.Sequential(
            nn.LayerNorm(shuffled),
            nn.Linear(shuffled, 2 * n_embd),
            nn.GELU(),
            nn.Identity(),
            nn.Linear(2 * n_embd, 2 * n_embd),
            nn.GELU(),
            nn.Identity(),
            nn.Linear(2 * n_embd, n_embd),
        )
        self.pooling_before_gating = Pooling(width)
        self.gating = Gating(width)
        self.register_buffer('thresholds', torch.tensor(thresholds), persistent=False)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        square = self.patches(pixel_values)
        patches = square.flatten(1, 2)
        shuffled = InternVLModel.pixel_shuffle(self, square, self.ratio)
        coarse = InternVLModel.pixel_shuffle(self, square, self.ratio**2)
        chance = self.gating(self.pooling_before_gating(patches))[:, :1]
        return (
            self.multi_modal_projector(shuffled.flatten(1, 2)),
            self.mlp2(coarse.flatten(1, 2)),
            torch.cat([chance, self.thresholds.expand(chance.shape[0], -1)], dim=1),
        )


class SmolVLMEncoder(torch.nn.Module):
    """Pixels of tiles -> embeddings, as SmolVLM makes them of full tiles."""

    outputs = ('image_features',)

    def __init__(self, config: SmolVLMConfig):
        super().__init__()
        self.side = config.vision_config.image_size
        self.vision_model = SmolVLMVisionTransformer(config.vision_config)
        self.connector = SmolVLMConnector(config)
        # where the patches of a full tile stand; the model works it out from a mask each time
        seen: list[torch.Tensor] = []
        embeddings = self.vision_model.embeddings
        hook = embeddings.position_embedding.register_forward_pre_hook(
            lambda _, given: seen.append(given[0])
        )
        edge = self.side // config.vision_config.patch_size
        embeddings(
            torch.zeros(1, 3, self.side, self.side), torch.ones(1, edge, edge, dtype=torch.bool)
        )
        hook.remove()
        self.register_buffer('positions', seen[0], persistent=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        embeddings = self.vision_model.embeddings
        patches = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        patches = patches + embeddings.position_embedding(self.positions)
        patches = self.vision_model.encoder(patches, None).last_hidden_state
        return self.connector(self.vision_model.post_layernorm(patches))


@dataclass(frozen=True)
class Exported:
    """What came out, as ``--json`` prints it."""

    file: str
    side: int
    tokens: int
    n_embd: int
    bytes: int
    difference: float
    relative: float


def load(folder: Path) -> torch.nn.Module:
    """Build the encoder of a checkpoint and load its weights."""
    settings = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    kind = settings.get('model_type')
    if kind == 'internvl_chat':
        config, rename = _from_opengvlab(settings), _rename_opengvlab
        encoder: torch.nn.Module = InternVLEncoder(config)
        if settings.get('flash_mode'):
            names = ('flash_absolute_threshold', 'flash_relative_threshold')
            if not all(isinstance(settings.get(name), int | float) for name in names):
                sys.exit(f'{folder}: flash_mode without {" and ".join(names)} in config.json')
            encoder = FlashEncoder(config, tuple(float(settings[name]) for name in names))
    elif kind == 'internvl':
        config, rename = InternVLConfig.from_pretrained(folder), _rename_transformers
        encoder = InternVLEncoder(config)
    elif kind in ('smolvlm', 'idefics3'):
        config, rename = SmolVLMConfig.from_pretrained(folder), _rename_transformers
        encoder = SmolVLMEncoder(config)
    else:
        sys.exit(f'{folder}: model_type is {kind!r}; expected internvl, internvl_chat or smolvlm')
    wanted = set(encoder.state_dict())
    missing, _ = encoder.load_state_dict(_weights(folder, rename, wanted), strict=False)
    if missing:
        sys.exit(f'{folder}: {len(missing)} weights are missing, such as {missing[0]}')
    return encoder.float().eval()


def _from_opengvlab(settings: dict[str, Any]) -> InternVLConfig:
    vision, text = settings['vision_config'], settings['llm_config']
    side = settings.get('force_image_size') or vision['image_size']
    if side != vision['image_size']:
        sys.exit(f'force_image_size is {side}, and the vision tower reads {vision["image_size"]}')
    same = (
        'hidden_size',
        'intermediate_size',
        'num_hidden_layers',
        'num_attention_heads',
        'image_size',
        'patch_size',
        'hidden_act',
        'layer_norm_eps',
        'norm_type',
    )
    return InternVLConfig(
        vision_config={key: vision[key] for key in same if key in vision}
        | {
            'attention_bias': vision.get('qkv_bias', True),
            'use_qk_norm': vision.get('qk_normalization', False),
        },
        text_config={'model_type': 'qwen2', 'hidden_size': text['hidden_size']},
        downsample_ratio=settings['downsample_ratio'],
    )


def _rename_opengvlab(name: str, values: torch.Tensor) -> dict[str, torch.Tensor]:
    if name.startswith(('mlp2.', 'pooling_before_gating.', 'gating.')):
        return {name: values}
    for pattern, new in OPENGVLAB:
        name = re.sub(pattern, new, name)
    if '.qkv.' not in name:
        return {name: values}
    return {
        name.replace('qkv', f'{which}_proj'): part
        for which, part in zip('qkv', values.chunk(3), strict=True)
    }


def _rename_transformers(name: str, values: torch.Tensor) -> dict[str, torch.Tensor]:
    name = name.removeprefix('model.')
    # names of the first conversions, which transformers still reads
    name = name.replace('vision_tower.encoder.layers.', 'vision_tower.encoder.layer.')
    return {name: values}


def _weights(
    folder: Path, rename: Callable[[str, torch.Tensor], dict[str, torch.Tensor]], wanted: set[str]
) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob('*.safetensors'))
    if not files:
        sys.exit(f'{folder}: there is no *.safetensors file in it')
    found: dict[str, torch.Tensor] = {}
    for file in files:
        with safe_open(file, framework='pt') as tensors:
            for name in tensors.keys():
                if not name.startswith(
                    ('language_model', 'model.language_model', 'lm_head', 'model.text_model')
                ):
                    renamed = rename(name, tensors.get_tensor(name))
                    found.update((k, v.float()) for k, v in renamed.items() if k in wanted)
    return found


def export(folder: Path, target: Path, int8: bool = False, bits: int = 32) -> Exported:
    """
    Write the encoder of a checkpoint as ONNX and compare it with torch.

    :raises SystemExit: the checkpoint is of another kind, or the graph computes something else
    """
    import onnx
    import onnxruntime

    encoder = load(folder)
    side = encoder.side
    target.parent.mkdir(parents=True, exist_ok=True)
    # 1. the graph; two tiles to trace with, or the exporter takes one for a constant
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    program = torch.onnx.export(
        encoder,
        (pixels,),
        dynamo=True,
        verbose=False,
        input_names=['pixel_values'],
        output_names=list(encoder.outputs),
        dynamic_shapes=({0: torch.export.Dim('tiles')},),
    )
    graph = program.model_proto
    graph.producer_name, graph.doc_string = 'hobot_vlm', 'vision encoder with its projector'
    for node in graph.graph.node:  # where in the exporter's sources it came from
        del node.metadata_props[:]
        node.doc_string = ''
    for value in [*graph.graph.value_info, *graph.graph.input, *graph.graph.output]:
        del value.metadata_props[:]
    onnx.save(graph, str(target))
    onnx.checker.check_model(str(target))
    # 2. eight bits
    if int8:
        from onnxruntime.quantization import quantize_dynamic, QuantType

        quantize_dynamic(
            target,
            target,
            weight_type=QuantType.QUInt8,
            op_types_to_quantize=['MatMul', 'Gemm'],
            per_channel=False,
        )
    if bits == 8:
        in_blocks_of_8_bits(target)
    # 3. against torch, with another number of tiles
    pixels = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(str(target), providers=['CPUExecutionProvider'])
    got = session.run(list(encoder.outputs), {'pixel_values': pixels.numpy()})
    with torch.no_grad():
        expected = encoder(pixels)
    pairs = list(zip(got, [expected] if torch.is_tensor(expected) else expected, strict=True))
    differences = [float(np.abs(one - other.numpy()).max()) for one, other in pairs]
    relative = max(
        difference / float(other.abs().max())
        for difference, (_, other) in zip(differences, pairs, strict=True)
    )
    difference = max(differences)
    most = TOLERANCE_INT8 if int8 else TOLERANCE_BLOCKS if bits == 8 else TOLERANCE
    if any(one.shape != other.shape for one, other in pairs) or not relative < most:
        sys.exit(
            f'{target} differs from torch by {difference:.3g} ({relative:.1%} of the largest '
            'embedding): the export is broken'
        )
    size, (_, tokens, n_embd) = target.stat().st_size, got[0].shape
    return Exported(str(target), side, tokens, n_embd, size, difference, relative)


def in_blocks_of_8_bits(path: Path) -> None:
    """Store the matrices of a graph in 8 bits, with a scale for each 32 weights of an output."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    settings = DefaultWeightOnlyQuantConfig(
        block_size=32, is_symmetric=True, accuracy_level=4, bits=8
    )
    quantiser = MatMulNBitsQuantizer(onnx.load(str(path)), algo_config=settings)
    quantiser.process()
    quantiser.model.save_model_to_file(str(path))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('checkpoint', type=Path, help='folder of a Hugging Face checkpoint')
    parser.add_argument('target', type=Path, help='ONNX file to write')
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        '--bits', type=int, choices=(8, 32), default=32, help='of a weight; 8: in blocks of 32'
    )
    form.add_argument('--int8', action='store_true', help='8 bits, one scale to a matrix')
    parser.add_argument('--json', action='store_true', help='print one JSON object')
    args = parser.parse_args()
    made = export(args.checkpoint, args.target, args.int8, args.bits)
    if args.json:
        print(json.dumps(vars(made)))
        return
    print(
        f'{made.file}: {made.bytes / 2**20:.1f} MiB, tiles of {made.side} x {made.side} pixels, '
        f'{made.tokens} embeddings of width {made.n_embd} each'
    )
    print(
        f'largest difference from torch: {made.difference:.2e} '
        f'({made.relative:.1e} of the largest embedding)'
    )


if __name__ == '__main__':
    main()
