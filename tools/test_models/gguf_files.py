"""
GGUF files of llama.cpp, written from transformers models in float32.

``write_decoder`` for Llama and Qwen2, ``write_mmproj`` for the vision half of InternVL and
SmolVLM. Names of keys and tensors are those that llama.cpp reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import json
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import torch

from test_models.vocabulary import Vocabulary

Array = npt.NDArray[np.float32]

LAYER = {
    'input_layernorm': 'attn_norm',
    'self_attn.q_proj': 'attn_q',
    'self_attn.k_proj': 'attn_k',
    'self_attn.v_proj': 'attn_v',
    'self_attn.o_proj': 'attn_output',
    'post_attention_layernorm': 'ffn_norm',
    'mlp.gate_proj': 'ffn_gate',
    'mlp.up_proj': 'ffn_up',
    'mlp.down_proj': 'ffn_down',
}

INTERNVL_LAYER = {
    'attention.q_proj': 'attn_q',
    'attention.k_proj': 'attn_k',
    'attention.v_proj': 'attn_v',
    'attention.projection_layer': 'attn_out',
    'mlp.fc1': 'ffn_up',
    'mlp.fc2': 'ffn_down',
    'layernorm_before': 'ln1',
    'layernorm_after': 'ln2',
    'lambda_1': 'ls1',
    'lambda_2': 'ls2',
}
INTERNVL_REST = {
    'vision_tower.embeddings.cls_token': 'v.class_embd',
    'vision_tower.embeddings.position_embeddings': 'v.position_embd.weight',
    'vision_tower.embeddings.patch_embeddings.projection': 'v.patch_embd',
    'multi_modal_projector.layer_norm': 'mm.model.mlp.0',
    'multi_modal_projector.linear_1': 'mm.model.mlp.1',
    'multi_modal_projector.linear_2': 'mm.model.mlp.3',
}

SMOLVLM_LAYER = {
    'self_attn.q_proj': 'attn_q',
    'self_attn.k_proj': 'attn_k',
    'self_attn.v_proj': 'attn_v',
    'self_attn.out_proj': 'attn_out',
    'mlp.fc1': 'ffn_up',
    'mlp.fc2': 'ffn_down',
    'layer_norm1': 'ln1',
    'layer_norm2': 'ln2',
}
SMOLVLM_REST = {
    'vision_model.embeddings.patch_embedding': 'v.patch_embd',
    'vision_model.embeddings.position_embedding': 'v.position_embd',
    'vision_model.post_layernorm': 'v.post_ln',
    'connector.modality_projection.proj': 'mm.model.fc',
}


def _split(name: str) -> tuple[str, str]:
    """Give the module's name and '.weight' or '.bias'; a bare parameter has neither."""
    for suffix in ('.weight', '.bias'):
        if name.endswith(suffix):
            return name.removesuffix(suffix), suffix
    return name, ''


def rotary_order(weight: Array, heads: int) -> Array:
    """Interleave the two halves of each head: llama.cpp rotates neighbours in Llama models."""
    size = weight.shape[0] // heads
    halves = weight.reshape(heads, 2, size // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def _decoder_tensors(
    state: Mapping[str, torch.Tensor], config: object
) -> Iterator[tuple[str, Array]]:
    fixed = {'embed_tokens': 'token_embd', 'norm': 'output_norm', 'lm_head': 'output'}
    for name, tensor in state.items():
        values = tensor.detach().numpy()
        module, suffix = _split(name.removeprefix('model.'))
        if module in fixed:
            yield fixed[module] + suffix, values
            continue
        _, number, part = module.split('.', 2)
        if config.model_type == 'llama' and part in ('self_attn.q_proj', 'self_attn.k_proj'):
            heads = config.num_attention_heads if 'q_proj' in part else config.num_key_value_heads
            values = rotary_order(values, heads)
        yield f'blk.{number}.{LAYER[part]}{suffix}', values


def write_decoder(model: torch.nn.Module, vocabulary: Vocabulary, path: Path, name: str) -> None:
    """Write a LlamaForCausalLM or Qwen2ForCausalLM with its tokenizer."""
    config = model.config
    writer = gguf.GGUFWriter(str(path), config.model_type)
    writer.add_name(name)
    writer.add_description('random weights, for tests')
    writer.add_license('apache-2.0')
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters['rope_theta'])
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_vocabulary(writer, vocabulary)
    for tensor, values in _decoder_tensors(model.state_dict(), config):
        writer.add_tensor(tensor, values)
    _write(writer)


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    saved = json.loads(vocabulary.tokenizer.to_str())
    tokens = {i: token for token, i in saved['model']['vocab'].items()}
    tokens.update((added['id'], added['content']) for added in saved['added_tokens'])
    types = []
    for i in range(vocabulary.size()):
        if i not in tokens:
            tokens[i] = f'[PAD{i}]'
            types.append(gguf.TokenType.UNUSED)
        elif tokens[i] in vocabulary.control:
            types.append(gguf.TokenType.CONTROL)
        else:
            types.append(gguf.TokenType.NORMAL)
    id_of = vocabulary.tokenizer.token_to_id
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list([tokens[i] for i in range(vocabulary.size())])
    writer.add_token_types(types)
    writer.add_token_merges([' '.join(pair) for pair in saved['model']['merges']])
    writer.add_bos_token_id(id_of(vocabulary.bos))
    writer.add_eos_token_id(id_of(vocabulary.eos))
    writer.add_pad_token_id(id_of(vocabulary.pad))
    writer.add_add_bos_token(False)
    writer.add_chat_template(vocabulary.template)


def write_mmproj(model: torch.nn.Module, processor: object, path: Path) -> None:
    """Write vision tower and projector of an InternVL or SmolVLM model."""
    config, vision = model.config, model.config.vision_config
    is_internvl = config.model_type == 'internvl'
    image_processor = processor.image_processor
    writer = gguf.GGUFWriter(str(path), 'clip')
    writer.add_type('mmproj')
    writer.add_name(f'{config.model_type} test model')
    writer.add_description('random weights, for tests')
    writer.add_license('apache-2.0')
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type('internvl' if is_internvl else 'idefics3')
    side, patch = vision.image_size, vision.patch_size
    writer.add_vision_image_size(side[0] if is_internvl else side)
    writer.add_vision_patch_size(patch[0] if is_internvl else patch)
    writer.add_vision_embedding_length(vision.hidden_size)
    writer.add_vision_feed_forward_length(vision.intermediate_size)
    writer.add_vision_block_count(vision.num_hidden_layers)
    writer.add_vision_head_count(vision.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(vision.layer_norm_eps)
    writer.add_vision_projection_dim(config.text_config.hidden_size)
    writer.add_vision_image_mean(list(image_processor.image_mean))
    writer.add_vision_image_std(list(image_processor.image_std))
    writer.add_vision_use_gelu(True)
    if is_internvl:
        writer.add_vision_projector_scale_factor(round(1 / config.downsample_ratio))
    else:
        writer.add_vision_projector_scale_factor(config.scale_factor)
        writer.add_vision_preproc_image_size(image_processor.size['longest_edge'])
    for tensor, values in _vision_tensors(model.model.state_dict(), is_internvl):
        writer.add_tensor(tensor, values)
    _write(writer)


def _vision_tensors(
    state: Mapping[str, torch.Tensor], is_internvl: bool
) -> Iterator[tuple[str, Array]]:
    layers = 'vision_tower.encoder.layer.' if is_internvl else 'vision_model.encoder.layers.'
    inner = INTERNVL_LAYER if is_internvl else SMOLVLM_LAYER
    rest = INTERNVL_REST if is_internvl else SMOLVLM_REST
    for name, tensor in state.items():
        values = tensor.detach().numpy()
        module, suffix = _split(name)
        if module.startswith(layers):
            number, part = module.removeprefix(layers).split('.', 1)
            yield f'v.blk.{number}.{inner[part]}{suffix or ".weight"}', values
        elif module in rest:
            if module.endswith(('cls_token', 'position_embeddings')):
                values = values[0]  # without the batch
            yield rest[module] + suffix, values[0] if module.endswith('cls_token') else values


def _write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
