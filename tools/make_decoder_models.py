"""
Make small random InternVL decoders of each kind, and store what transformers answers with them.

``python tools/make_decoder_models.py`` writes

* ``test/models/decoders/``: Phi-3, InternLM2, Qwen3, Qwen3-MoE and gpt-oss as llama.cpp
  files; they read the embeddings of ``test/models/internvl/vision.onnx``,
* ``test/data/parity_decoders.*``: the answers that transformers gives in float32, and what the
  sentencepiece library makes of some texts.

Needs torch, transformers with num2words, tokenizers, sentencepiece and gguf.
"""

from __future__ import annotations

import json
from pathlib import Path
import re
import sys
from typing import Any

import gguf
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'test'))  # for the pictures

from pictures import picture  # noqa: E402
from test_models import models, reference, vocabulary, weights  # noqa: E402
from test_models.decoder_vocabulary import KINDS, SPM, Words  # noqa: E402
from test_models.gguf_files import rotary_order  # noqa: E402
from transformers import (  # noqa: E402
    GptOssConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    Phi3Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

OUT = ROOT / 'test' / 'models' / 'decoders'
DATA = ROOT / 'test' / 'data'
TOKENS, CONTEXT, LAYERS = 4, 2048, 2  # TOKENS: of a tile, as test_models makes the encoder

#: What the makers put around system prompt, question and answer: ``conversation.py`` of their
#: checkpoints, and for gpt-oss ``preprocess_internvl3_5_gpt_oss`` of their training code.
LAYOUTS = {
    'phi3': '<|system|>\n{system}<|end|><|user|>\n{user}<|end|><|assistant|>\n',
    'gptoss': '<|start|>system<|message|>{system}<|end|><|start|>user<|message|>{user}<|end|>'
    '<|start|>assistant<|channel|>final<|message|>',
}
CHATML = (
    '<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n'
    '<|im_start|>assistant\n'
)
PHI3_SYSTEM = (
    '你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, '
    '是一个有用无害的人工智能助手。'
)
TEXTS = [
    'Describe the picture.', ' two  spaces ', '图片里有什么？', 'naïve café', '12345 67', '',
    'a\nb\n\nc', '\n', '▁', 'emoji 🐕!', '<img> is no mark here', 'x' * 40, 'Ａ ﬁ', '\tTab',
    'red cup',
]  # fmt: skip


def _model(kind: str, words: Words) -> torch.nn.Module:
    """Make an InternVL on a decoder."""
    common: dict[str, Any] = {
        'vocab_size': words.size, 'hidden_size': models.N_EMBD, 'intermediate_size': 24,
        'num_hidden_layers': LAYERS, 'num_attention_heads': 4, 'num_key_value_heads': 2,
        'max_position_embeddings': CONTEXT, 'tie_word_embeddings': False, 'rms_norm_eps': 1e-6,
        'bos_token_id': None, 'eos_token_id': None, 'pad_token_id': None,
        'rope_parameters': {'rope_type': 'default', 'rope_theta': 10000.0},
    }  # fmt: skip
    experts = {'num_experts_per_tok': 2}
    text = {
        'phi3': lambda: Phi3Config(**common, sliding_window=None),
        'internlm2': lambda: LlamaConfig(**common),
        'qwen3': lambda: Qwen3Config(**common, head_dim=16),
        'qwen3moe': lambda: Qwen3MoeConfig(
            **common, head_dim=16, num_experts=4, moe_intermediate_size=8, norm_topk_prob=True,
            **experts,
        ),
        'gptoss': lambda: GptOssConfig(
            **{**common, 'intermediate_size': 8}, head_dim=16, num_local_experts=4,
            sliding_window=32, **experts,
        ),
    }[kind]()  # fmt: skip
    vision = {
        'hidden_size': 32, 'intermediate_size': 64, 'num_hidden_layers': 2,
        'num_attention_heads': 2, 'attention_bias': True, 'image_size': models.INTERNVL_SIDE,
        'patch_size': models.INTERNVL_PATCH,
    }  # fmt: skip
    config = InternVLConfig(
        vision_config=vision, text_config=text, image_token_id=words.id_of['<IMG_CONTEXT>'],
        image_seq_length=TOKENS, downsample_ratio=0.5, tie_word_embeddings=False,
        attn_implementation='eager',
    )  # fmt: skip
    model = InternVLForConditionalGeneration(config)
    # the seed of the encoder that is there: each tensor depends on its name and the seed alone
    weights.fill(model, models.SEEDS['internvl'], words.rare)
    with torch.no_grad():
        for name, values in model.named_parameters():
            if 'experts' in name and values.dim() == 3:
                fan_in = values.shape[1] if kind == 'gptoss' else values.shape[2]
                values *= (values.shape[1] * values.shape[2] / fan_in) ** 0.5
            if 'embed_tokens' in name:
                values.copy_(values.half().float())  # stored in 16 bits
    return model.eval()


def _tensors(kind: str, model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Name the tensors of the decoder as llama.cpp does."""
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == KINDS[kind][0])
    names = gguf.get_tensor_name_map(arch, LAYERS)
    found: dict[str, np.ndarray] = {}
    state = dict(model.model.language_model.state_dict(prefix='model.'))
    for name, tensor in {**state, 'lm_head.weight': model.lm_head.weight}.items():
        values = tensor.detach().numpy()
        parts = {name: values}
        if name.endswith('experts.gate_up_proj'):
            stem = name.removesuffix('gate_up_proj')
            if kind == 'gptoss':
                turned = values.swapaxes(1, 2)
                halves = turned[:, ::2], turned[:, 1::2]
            else:
                halves = tuple(np.split(values, 2, axis=1))
            parts = {f'{stem}gate_proj.weight': halves[0], f'{stem}up_proj.weight': halves[1]}
        elif name.endswith('experts.gate_up_proj_bias'):
            stem = name.removesuffix('gate_up_proj_bias')
            parts = {
                f'{stem}{half}_proj.bias': values[:, i::2] for i, half in ((0, 'gate'), (1, 'up'))
            }
        elif name.endswith('experts.down_proj'):
            parts = {f'{name}.weight': values.swapaxes(1, 2) if kind == 'gptoss' else values}
        elif name.endswith('experts.down_proj_bias'):
            parts = {name.replace('_bias', '.bias'): values}
        elif name.endswith('.sinks'):
            parts = {f'{name}.weight': values}
        elif kind == 'internlm2' and re.search(r'\.(q|k)_proj\.', name):
            parts = {name: rotary_order(values, 4 if 'q_proj' in name else 2)}
        for part, array in parts.items():
            to = names.get_name(part, try_suffixes=('.weight', '.bias'))
            assert to, part
            if to == 'token_embd.weight':
                array = array.astype(np.float16)
            found[to] = np.ascontiguousarray(array)
    return found


def _write(kind: str, model: torch.nn.Module, words: Words) -> None:
    config = model.config.text_config
    arch = KINDS[kind][0]
    path = OUT / f'{kind}.gguf'
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_name(f'InternVL on {arch}, test model')
    writer.add_description('random weights, for tests')
    writer.add_license('apache-2.0')
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(words.size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if kind == 'phi3':
        writer.add_rope_scaling_orig_ctx_len(CONTEXT)
    elif kind != 'internlm2':
        writer.add_key_length(16)
        writer.add_value_length(16)
    if kind in ('qwen3moe', 'gptoss'):
        writer.add_expert_count(4)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(8)
    if kind == 'gptoss':
        writer.add_sliding_window(config.sliding_window)
    words.add(writer)
    for name, values in _tensors(kind, model).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    size = path.stat().st_size
    assert size < 300_000, f'{path} has {size} bytes'


def _case(kind: str, case: str, model: torch.nn.Module, words: Words) -> tuple[dict, np.ndarray]:
    """Answer a case, with the first pictures after which no two tokens are nearly equal."""
    processor = models.internvl().processor
    system = PHI3_SYSTEM if kind == 'phi3' else reference.INTERNVL_SYSTEM
    for seed in range(0, 4000, 20):
        recipes = [(*size, seed + i) for i, size in enumerate(reference.SIZES[case])]
        shown = [picture(*recipe) for recipe in recipes]
        user = ''
        pixels = []
        for i, each in enumerate(shown, 1):
            made = processor.image_processor(each, return_tensors='pt')['pixel_values']
            pixels.append(made)
            marks = f'<img>{"<IMG_CONTEXT>" * TOKENS * len(made)}</img>\n'
            user += (f'Image-{i}: ' if len(shown) > 1 else '') + marks
        text = LAYOUTS.get(kind, CHATML).format(
            system=system, user=user + reference.QUESTIONS[case]
        )
        ids = torch.tensor([words.encode(text)])
        all_pixels = torch.cat(pixels)
        greedy, logits, margin = reference.best_tokens(
            lambda ids, p=all_pixels: model(input_ids=ids, pixel_values=p).logits[0, -1], ids
        )
        if margin >= reference.MARGIN:
            break
    print(f'{kind}/{case}: seed {seed}, {ids.shape[1]} tokens, margin {margin:.3f}')
    return {
        'question': reference.QUESTIONS[case],
        'pictures': recipes,
        'placeholder': words.id_of['<IMG_CONTEXT>'],
        'ids': ids[0].tolist(),
        'greedy': greedy,
        'margin': round(margin, 4),
    }, logits


def main() -> None:
    """Write models and answers."""
    torch.set_num_threads(1)
    vocabulary.MERGES = 60  # so that the files stay small
    OUT.mkdir(parents=True, exist_ok=True)
    told: dict[str, Any] = {'cases': {}, 'ends': {}, 'texts': {}}
    logits = {}
    for kind in KINDS:
        words = Words(kind)
        model = _model(kind, words)
        _write(kind, model, words)
        told['ends'][kind] = sorted(words.id_of[end] for end in words.ends)
        if kind in SPM:
            told['texts'][kind] = [[text, words.spm.encode(text)] for text in TEXTS]
        for case in ('tiles', 'two'):
            name = f'{kind}/{case}'
            told['cases'][name], logits[name] = _case(kind, case, model, words)
    np.savez_compressed(DATA / 'parity_decoders.npz', **logits)
    text = json.dumps(told, ensure_ascii=False)
    (DATA / 'parity_decoders.json').write_text(text + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
