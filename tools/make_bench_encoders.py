"""
Make vision encoders of true shape with random weights, to measure speed and exactness with.

``python tools/make_bench_encoders.py`` writes, below build/bench/,

* ``internvit-300m-{f16,q8_0}.gguf``: the encoder of InternVL2.5-1B and InternVL3-1B,
* ``siglip-b16-512-{f16,q8_0}.gguf``: the encoder of SmolVLM2-256M,

as llama.cpp's converter names and stores them. Both files of a shape hold the same weights. They
cost what the real ones cost; what they say means nothing. Needs numpy and gguf.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
import time

import gguf
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
FORMATS = ('f16', 'q8_0')

#: Spread of the logarithm of the gains of norms. Trained norms do not weigh all the same, and
#: equal gains would make quantisation look better than it is.
GAIN_SPREAD = 0.4


@dataclass(frozen=True)
class Shape:
    """
    What a vision encoder looks like.

    :param projector: llama.cpp's name of it; ``internvl`` has a class token and layer scales
    :param merge: patches on the edge of the square that becomes one embedding
    :param longest: longest edge to which SmolVLM brings a picture before it is cut
    """

    projector: str
    side: int
    patch: int
    width: int
    inner: int
    layers: int
    heads: int
    merge: int
    n_embd: int
    epsilon: float = 1e-6
    longest: int = 0

    @property
    def patches(self) -> int:
        """Patches of a tile."""
        return (self.side // self.patch) ** 2


SHAPES = {
    'internvit-300m': Shape('internvl', 448, 14, 1024, 4096, 24, 16, 2, 896),
    'siglip-b16-512': Shape('idefics3', 512, 16, 768, 3072, 12, 12, 4, 576, longest=2048),
}


def tensors(shape: Shape, seed: int) -> Iterator[tuple[str, Array]]:
    """Draw all tensors; the order is that of the file."""
    rng = np.random.default_rng(seed)
    width, inner = shape.width, shape.inner
    internvl = shape.projector == 'internvl'

    def matrix(*size: int) -> Array:
        fan_in = int(np.prod(size[1:]))
        return rng.standard_normal(size, np.float32) / np.float32(fan_in**0.5)

    def small(size: int) -> Array:
        return rng.standard_normal(size, np.float32) * np.float32(0.02)

    def gain(size: int) -> Array:
        return np.exp(GAIN_SPREAD * rng.standard_normal(size, np.float32))

    yield 'v.patch_embd.weight', matrix(width, 3, shape.patch, shape.patch)
    yield 'v.patch_embd.bias', small(width)
    if internvl:
        yield 'v.class_embd', small(width)
    yield (
        'v.position_embd.weight',
        25 * small((shape.patches + internvl) * width).reshape(-1, width),
    )
    for i in range(shape.layers):
        block = f'v.blk.{i}.'
        for norm in ('ln1', 'ln2'):
            yield f'{block}{norm}.weight', gain(width)
            yield f'{block}{norm}.bias', small(width)
        for name, rows, columns in (
            *((f'attn_{which}', width, width) for which in ('q', 'k', 'v', 'out')),
            ('ffn_up', inner, width),
            ('ffn_down', width, inner),
        ):
            yield f'{block}{name}.weight', matrix(rows, columns)
            yield f'{block}{name}.bias', small(rows)
        if internvl:  # layer scales
            yield f'{block}ls1.weight', 0.3 * gain(width)
            yield f'{block}ls2.weight', 0.3 * gain(width)
    merged = width * shape.merge**2
    if internvl:
        yield 'mm.model.mlp.0.weight', gain(merged)
        yield 'mm.model.mlp.0.bias', small(merged)
        yield 'mm.model.mlp.1.weight', matrix(shape.n_embd, merged)
        yield 'mm.model.mlp.1.bias', small(shape.n_embd)
        yield 'mm.model.mlp.3.weight', matrix(shape.n_embd, shape.n_embd)
        yield 'mm.model.mlp.3.bias', small(shape.n_embd)
    else:
        yield 'v.post_ln.weight', gain(width)
        yield 'v.post_ln.bias', small(width)
        yield 'mm.model.fc.weight', matrix(shape.n_embd, merged)


def stored_as(name: str, values: Array, form: str) -> gguf.GGMLQuantizationType:
    """Give the format of a tensor, as llama.cpp's convert_hf_to_gguf.py chooses it."""
    kinds = gguf.GGMLQuantizationType
    if values.ndim == 1 or 'position_embd' in name:
        return kinds.F32
    if 'patch_embd' in name and form != 'f16':
        return kinds.F32
    return kinds.F16 if form == 'f16' else kinds.Q8_0


def write(path: Path, name: str, shape: Shape, form: str, seed: int) -> None:
    """Write one file."""
    writer = gguf.GGUFWriter(str(path), 'clip')
    writer.add_type('mmproj')
    writer.add_name(f'random weights of the shape of {name}')
    writer.add_license('apache-2.0')
    writer.add_file_type(gguf.LlamaFileType[f'MOSTLY_{form.upper()}'])
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(shape.projector)
    writer.add_vision_image_size(shape.side)
    writer.add_vision_patch_size(shape.patch)
    writer.add_vision_embedding_length(shape.width)
    writer.add_vision_feed_forward_length(shape.inner)
    writer.add_vision_block_count(shape.layers)
    writer.add_vision_head_count(shape.heads)
    writer.add_vision_attention_layernorm_eps(shape.epsilon)
    writer.add_vision_projection_dim(shape.n_embd)
    internvl = shape.projector == 'internvl'
    writer.add_vision_image_mean([0.485, 0.456, 0.406] if internvl else [0.5] * 3)
    writer.add_vision_image_std([0.229, 0.224, 0.225] if internvl else [0.5] * 3)
    writer.add_vision_use_gelu(True)
    writer.add_vision_projector_scale_factor(shape.merge)
    if shape.longest:
        writer.add_vision_preproc_image_size(shape.longest)
    for tensor, values in tensors(shape, seed):
        kind = stored_as(tensor, values, form)
        writer.add_tensor(tensor, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make(folder: Path, name: str, form: str, seed: int = 0) -> Path:
    """Write a file below a folder unless it is there; give its path."""
    path = folder / f'{name}-{form}.gguf'
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix('.part')  # whoever finds the name finds a whole file
        write(half, name, SHAPES[name], form, seed)
        half.replace(path)
    return path


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    folder = Path(__file__).resolve().parents[1] / 'build' / 'bench'
    parser.add_argument('--out', type=Path, default=folder)
    parser.add_argument('--shape', choices=SHAPES, help='default: all')
    parser.add_argument('--format', choices=FORMATS, help='default: all')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    for name in [args.shape] if args.shape else SHAPES:
        for form in [args.format] if args.format else FORMATS:
            began = time.perf_counter()
            path = make(args.out, name, form, args.seed)
            print(
                f'{path}: {path.stat().st_size / 2**20:.0f} MiB in '
                f'{time.perf_counter() - began:.0f} s'
            )


if __name__ == '__main__':
    main()
