"""
Make small random models of every kind that libmtmd treats in its own way, as llama.cpp reads them.

``python tools/make_mtmd_models.py FOLDER`` writes ``decoder.gguf`` and ``mmproj.gguf`` for each of
``KINDS``, in less than a second; the tests make them anew. Names and shapes of the tensors are
those of clip.cpp and of the models of llama.cpp in llama-cpp-python 0.3.36.

Needs gguf.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
import sys

import gguf
import numpy as np
import numpy.typing as npt

Shapes = dict[str, tuple[int, ...]]

#: of the decoder: its width, which the resampler's heads of 128 fix, and the rest
WIDTH, HEADS, KV_HEADS, INNER, LAYERS = 128, 4, 2, 96, 2
#: of the encoder: its width, heads, layers, the edge of a patch and of a picture in pixels
V_WIDTH, V_HEADS, V_INNER, V_LAYERS, PATCH, SIDE = 32, 4, 48, 2, 8, 32
#: queries of the resampler, and the edge of its table of positions, which clip.cpp fixes
QUERIES, BUCKETS = 6, 70

#: the marks that libmtmd puts around pictures of these kinds, and those of ChatML
MARKS = (
    '<|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <start_of_image> <end_of_image> '
    '<image> </image> <slice> </slice> [IMG_END] <fake_token_around_image> <global-img> '
    '<|image_start|> <|image_end|> <|img_thumbnail|>'
).split() + [
    mark.format(row, column)
    for mark in ('<row_{}_col_{}>', '<|img_row_{}_col_{}|>')
    for row in range(1, 9)
    for column in range(1, 9)
]


def write(folder: Path) -> None:
    """Write all models."""
    for kind, (architecture, projector, seed) in KINDS.items():
        here = folder / kind
        here.mkdir(parents=True, exist_ok=True)
        _write_decoder(here / 'decoder.gguf', architecture, seed)
        _write_mmproj(here / 'mmproj.gguf', kind, projector, seed)


# -- language ----------------------------------------------------------------------------------


def _write_decoder(path: Path, architecture: str, seed: int) -> None:
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name(f'{architecture} test model')
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    size, kv = WIDTH, WIDTH // HEADS * KV_HEADS
    if architecture in ('qwen2vl', 'qwen3vl'):
        writer.add_rope_dimension_sections([4, 6, 6, 0])
    if architecture == 'qwen3vl':
        writer.add_num_deepstack_layers(1)
    if architecture == 'lfm2':
        writer.add_head_count_kv([0, KV_HEADS])
        writer.add_shortconv_l_cache(3)
    else:
        writer.add_head_count_kv(KV_HEADS)
    if architecture == 'gemma3':
        writer.add_key_length(WIDTH // HEADS)
        writer.add_value_length(WIDTH // HEADS)
        writer.add_sliding_window(24)
    tokens = _add_vocabulary(writer, starts=architecture == 'gemma3')
    norm = 'token_embd_norm.weight' if architecture == 'lfm2' else 'output_norm.weight'
    shapes: Shapes = {
        'token_embd.weight': (tokens, size),
        norm: (size,),
        'output.weight': (tokens, size),
    }
    for i in range(LAYERS):
        layer: Shapes = {
            'attn_norm.weight': (size,),
            'ffn_norm.weight': (size,),
            'ffn_gate.weight': (INNER, size),
            'ffn_up.weight': (INNER, size),
            'ffn_down.weight': (size, INNER),
        }
        if architecture == 'lfm2' and not i:
            layer |= {'shortconv.conv.weight': (size, 3)}
            layer |= {'shortconv.in_proj.weight': (3 * size, size)}
            layer |= {'shortconv.out_proj.weight': (size, size)}
        else:
            layer |= {'attn_q.weight': (size, size), 'attn_k.weight': (kv, size)}
            layer |= {'attn_v.weight': (kv, size), 'attn_output.weight': (size, size)}
            if architecture == 'qwen2vl':
                layer |= {'attn_q.bias': (size,), 'attn_k.bias': (kv,), 'attn_v.bias': (kv,)}
            if architecture in ('gemma3', 'lfm2', 'qwen3vl'):
                layer |= {'attn_q_norm.weight': (size // HEADS,)}
                layer |= {'attn_k_norm.weight': (size // HEADS,)}
        if architecture == 'gemma3':
            layer |= {'post_attention_norm.weight': (size,), 'post_ffw_norm.weight': (size,)}
        shapes |= {f'blk.{i}.{name}': shape for name, shape in layer.items()}
    # Gemma multiplies its tokens by the root of the width
    _finish(writer, shapes, seed, WIDTH**-0.5 if architecture == 'gemma3' else 1.0)


def _add_vocabulary(writer: gguf.GGUFWriter, starts: bool) -> int:
    """
    Add a token for each byte, and the marks.

    :param starts: a text begins with a token of its own
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = {byte: chr(byte) for byte in plain}
    names |= {byte: chr(256 + i) for i, byte in enumerate(sorted({*range(256)} - {*plain}))}
    line = names[ord('\n')]
    tokens = [*(names[byte] for byte in range(256)), 2 * line, '<bos>', *MARKS]
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre('default')
    writer.add_token_list(tokens)
    writer.add_token_types([normal] * 257 + [control] * (len(tokens) - 257))
    writer.add_token_merges([f'{line} {line}'])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(tokens.index('<|im_end|>'))
    writer.add_add_bos_token(starts)
    return len(tokens)


# -- vision ------------------------------------------------------------------------------------


def _write_mmproj(path: Path, kind: str, projector: str, seed: int) -> None:
    writer = gguf.GGUFWriter(str(path), 'clip')
    writer.add_type('mmproj')
    writer.add_name(f'{kind} test model')
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(projector)
    writer.add_vision_image_size(4 * SIDE if kind == 'gemma3' else SIDE)
    writer.add_vision_patch_size(PATCH)
    writer.add_vision_embedding_length(V_WIDTH)
    writer.add_vision_feed_forward_length(V_INNER)
    writer.add_vision_block_count(V_LAYERS)
    writer.add_vision_head_count(V_HEADS)
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_projection_dim(WIDTH)
    writer.add_vision_image_mean([0.5, 0.4, 0.3])
    writer.add_vision_image_std([0.3, 0.4, 0.5])
    writer.add_vision_use_gelu(True)
    shapes: Shapes = {'v.patch_embd.weight': (V_WIDTH, 3, PATCH, PATCH)}
    for i in range(V_LAYERS):
        norms = ('ln1.weight', 'ln1.bias', 'ln2.weight', 'ln2.bias')
        layer: Shapes = dict.fromkeys(norms, (V_WIDTH,))
        if kind == 'qwen3vl':
            layer |= _linear('attn_qkv', V_WIDTH, 3 * V_WIDTH) | _linear(
                'attn_out', *2 * [V_WIDTH]
            )
        else:
            for name in ('attn_q', 'attn_k', 'attn_v', 'attn_out'):
                layer |= _linear(name, V_WIDTH, V_WIDTH)
        layer |= {'ffn_up.weight': (V_INNER, V_WIDTH), 'ffn_up.bias': (V_INNER,)}
        layer |= {'ffn_down.weight': (V_WIDTH, V_INNER), 'ffn_down.bias': (V_WIDTH,)}
        shapes |= {f'v.blk.{i}.{name}': shape for name, shape in layer.items()}
    _finish(writer, shapes | PROJECTORS[kind](writer), seed)


def _llava(writer: gguf.GGUFWriter) -> Shapes:
    """Add one grid of tokens for a square picture."""
    patches = (SIDE // PATCH) ** 2
    return {
        'v.class_embd': (V_WIDTH,),
        'v.position_embd.weight': (patches + 1, V_WIDTH),
        'v.pre_ln.weight': (V_WIDTH,),
        'v.pre_ln.bias': (V_WIDTH,),
        **_linear('mm.0', V_WIDTH, WIDTH),
        **_linear('mm.2', WIDTH, WIDTH),
    }


def _qwen2vl(writer: gguf.GGUFWriter) -> Shapes:
    """Add what gives positions of several parts."""
    return {
        'v.patch_embd.weight.1': (V_WIDTH, 3, PATCH, PATCH),
        'v.post_ln.weight': (V_WIDTH,),
        'v.post_ln.bias': (V_WIDTH,),
        **_linear('mm.0', 4 * V_WIDTH, 64),
        **_linear('mm.2', 64, WIDTH),
    }


def _qwen3vl(writer: gguf.GGUFWriter) -> Shapes:
    """Add the same, with what a layer of the decoder is given besides."""
    writer.add_vision_spatial_merge_size(2)
    return {
        'v.patch_embd.weight.1': (V_WIDTH, 3, PATCH, PATCH),
        'v.patch_embd.bias': (V_WIDTH,),
        'v.position_embd.weight': ((SIDE // PATCH) ** 2, V_WIDTH),
        'v.post_ln.weight': (V_WIDTH,),
        'v.post_ln.bias': (V_WIDTH,),
        'v.deepstack.0.norm.weight': (4 * V_WIDTH,),
        'v.deepstack.0.norm.bias': (4 * V_WIDTH,),
        **_linear('v.deepstack.0.fc1', 4 * V_WIDTH, 64),
        **_linear('v.deepstack.0.fc2', 64, WIDTH),
        **_linear('mm.0', 4 * V_WIDTH, 64),
        **_linear('mm.2', 64, WIDTH),
    }


def _lfm2(writer: gguf.GGUFWriter) -> Shapes:
    """Add pictures of any size for a decoder with a memory that cannot forget its end."""
    writer.add_vision_projector_scale_factor(2)
    return {
        'v.position_embd.weight': ((SIDE // PATCH) ** 2, V_WIDTH),
        'v.post_ln.weight': (V_WIDTH,),
        'v.post_ln.bias': (V_WIDTH,),
        **_linear('mm.1', 4 * V_WIDTH, WIDTH),
        **_linear('mm.2', WIDTH, WIDTH),
    }


def _gemma3(writer: gguf.GGUFWriter) -> Shapes:
    """Add pictures whose embeddings all see all."""
    writer.add_vision_projector_scale_factor(2)
    return {
        'v.position_embd.weight': ((4 * SIDE // PATCH) ** 2, V_WIDTH),
        'v.post_ln.weight': (V_WIDTH,),
        'v.post_ln.bias': (V_WIDTH,),
        'mm.soft_emb_norm.weight': (V_WIDTH,),
        'mm.input_projection.weight': (V_WIDTH, WIDTH),
    }


def _minicpmv(writer: gguf.GGUFWriter) -> Shapes:
    """Add an overview and slices, with marks around each."""
    writer.add_int32('clip.minicpmv_version', 3)
    writer.add_uint32('clip.minicpmv_query_num', QUERIES)
    shapes: Shapes = {
        'v.position_embd.weight': (BUCKETS**2, V_WIDTH),
        'resampler.pos_embed_k': (BUCKETS**2, 1),
        'resampler.query': (QUERIES, WIDTH),
        'resampler.proj.weight': (WIDTH, WIDTH),
        'resampler.kv.weight': (WIDTH, V_WIDTH),
    }
    for name in 'q', 'k', 'v', 'out':
        shapes |= _linear(f'resampler.attn.{name}', WIDTH, WIDTH)
    for name in 'q', 'kv', 'post':
        shapes |= {f'resampler.ln_{name}.{part}': (WIDTH,) for part in ('weight', 'bias')}
    return shapes


def _pixtral(writer: gguf.GGUFWriter) -> Shapes:
    """Add pictures of any size, row by row."""
    return {
        'v.pre_ln.weight': (V_WIDTH,),
        'v.token_embd.img_break': (WIDTH,),
        **_linear('mm.1', V_WIDTH, WIDTH),
        **_linear('mm.2', WIDTH, WIDTH),
    }


def _idefics3(writer: gguf.GGUFWriter) -> Shapes:
    """Add tiles with marks of their row and column."""
    writer.add_vision_projector_scale_factor(2)
    writer.add_vision_preproc_image_size(3 * SIDE)
    return {
        'v.position_embd.weight': ((SIDE // PATCH) ** 2, V_WIDTH),
        'v.post_ln.weight': (V_WIDTH,),
        'v.post_ln.bias': (V_WIDTH,),
        'mm.model.fc.weight': (WIDTH, 4 * V_WIDTH),
    }


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f'{name}.weight': (outputs, inputs), f'{name}.bias': (outputs,)}


#: kind -> (architecture of the decoder, projector type of the encoder, seed). With these seeds no
#: answer of the tests hangs on two tokens that are nearer to each other than 0.001.
KINDS = {
    'llava': ('llama', 'mlp', 13),
    'qwen2vl': ('qwen2vl', 'qwen2vl_merger', 6),
    'gemma3': ('gemma3', 'gemma3', 11),
    'minicpmv': ('llama', 'resampler', 1),
    'pixtral': ('llama', 'pixtral', 13),
    'idefics3': ('llama', 'idefics3', 8),
    'qwen3vl': ('qwen3vl', 'qwen3vl_merger', 10),
    'lfm2': ('lfm2', 'lfm2', 13),
}
PROJECTORS: dict[str, Callable[[gguf.GGUFWriter], Shapes]] = {
    'llava': _llava,
    'qwen2vl': _qwen2vl,
    'gemma3': _gemma3,
    'minicpmv': _minicpmv,
    'pixtral': _pixtral,
    'idefics3': _idefics3,
    'qwen3vl': _qwen3vl,
    'lfm2': _lfm2,
}


def _finish(writer: gguf.GGUFWriter, shapes: Shapes, seed: int, embeddings: float = 1.0) -> None:
    """
    Fill the tensors with random numbers: norms near 1, matrices that keep lengths.

    :param embeddings: length of those of tokens and positions
    """
    random = np.random.default_rng(seed)

    def values(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        found = random.standard_normal(shape, np.float32)
        if len(shape) > 1:
            table = name in ('token_embd.weight', 'v.position_embd.weight')
            return found * np.float32(embeddings if table else shape[-1] ** -0.5)
        return 0.1 * found + np.float32('norm' in name or '.ln' in name and 'weight' in name)

    for name, shape in shapes.items():
        writer.add_tensor(name, values(name, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == '__main__':
    write(Path(sys.argv[1]))
