"""
The test models themselves: real transformers classes, small sizes, weights from a seed.

Nothing here knows about files; ``make_test_models.py`` writes them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.processing_smolvlm import SmolVLMProcessor

from test_models import vocabulary, weights


class StillsOnly:
    """A processor without its half for video, which needs torchvision."""

    def check_argument_for_proper_class(self, name, argument):
        if argument is None:
            return None
        return super().check_argument_for_proper_class(name, argument)


class InternVLStills(StillsOnly, InternVLProcessor):
    """InternVL's processor, for pictures."""


class SmolVLMStills(StillsOnly, SmolVLMProcessor):
    """SmolVLM's processor, for pictures."""


INTERNVL_SIDE, INTERNVL_PATCH = 56, 14  # 4 x 4 patches, shuffled to 4 tokens
SMOLVLM_SIDE, SMOLVLM_PATCH = 64, 16  # likewise

N_EMBD = 64
CONTEXT = 4096
SEEDS = {'plain': 1, 'internvl': 2, 'smolvlm': 3}


@dataclass(frozen=True)
class LanguageModel:
    """A decoder alone."""

    model: torch.nn.Module
    vocabulary: vocabulary.Vocabulary


@dataclass(frozen=True)
class VisionLanguageModel:
    """A model of two halves with its makers' processor."""

    model: torch.nn.Module
    processor: InternVLProcessor | SmolVLMProcessor
    vocabulary: vocabulary.Vocabulary

    def decoder(self) -> LanguageModel:
        """Give the language half as a model of its own, with the same weights."""
        inner = self.model.model
        cls = Qwen2ForCausalLM if hasattr(inner, 'language_model') else LlamaForCausalLM
        model = cls(self.model.config.text_config)
        model.model = getattr(inner, 'language_model', None) or inner.text_model
        model.lm_head = self.model.lm_head
        return LanguageModel(model.eval(), self.vocabulary)


def _text_settings(words: vocabulary.Vocabulary, heads_kv: int, layers: int) -> dict:
    token = words.tokenizer.token_to_id
    return {
        'vocab_size': words.size(),
        'hidden_size': N_EMBD,
        'intermediate_size': 112,
        'num_hidden_layers': layers,
        'num_attention_heads': 4,
        'num_key_value_heads': heads_kv,
        'max_position_embeddings': CONTEXT,
        'tie_word_embeddings': False,
        'bos_token_id': token(words.bos),
        'eos_token_id': token(words.eos),
        'pad_token_id': token(words.pad),
    }


def plain() -> LanguageModel:
    """Make a Llama without pictures."""
    words = vocabulary.plain()
    config = LlamaConfig(
        **_text_settings(words, heads_kv=4, layers=3),
        rms_norm_eps=1e-5,
        rope_parameters={'rope_type': 'default', 'rope_theta': 10000.0},
    )
    model = LlamaForCausalLM(config)
    weights.fill(model, SEEDS['plain'], words.control_ids())
    return LanguageModel(model, words)


def internvl() -> VisionLanguageModel:
    """Make an InternVL on Qwen2."""
    words = vocabulary.internvl()
    token = words.tokenizer.token_to_id
    text = Qwen2Config(
        **_text_settings(words, heads_kv=2, layers=2),
        rms_norm_eps=1e-6,
        rope_parameters={'rope_type': 'default', 'rope_theta': 1000000.0},
    )
    vision = {
        'hidden_size': 32,
        'intermediate_size': 64,
        'num_hidden_layers': 2,
        'num_attention_heads': 2,
        'attention_bias': True,
        'image_size': INTERNVL_SIDE,
        'patch_size': INTERNVL_PATCH,
    }
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=token('<IMG_CONTEXT>'),
        image_seq_length=4,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    model = InternVLForConditionalGeneration(config)
    weights.fill(model, SEEDS['internvl'], words.control_ids())
    processor = InternVLStills(
        GotOcr2ImageProcessorPil(
            size={'height': INTERNVL_SIDE, 'width': INTERNVL_SIDE},
            crop_to_patches=True,
            min_patches=1,
            max_patches=12,
            image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
        ),
        words.for_transformers(
            start_image_token='<img>',
            end_image_token='</img>',
            context_image_token='<IMG_CONTEXT>',
            video_token='<video>',
        ),
        image_seq_length=4,
        chat_template=words.template,
    )
    return VisionLanguageModel(model, processor, words)


def smolvlm() -> VisionLanguageModel:
    """Make a SmolVLM on Llama."""
    words = vocabulary.smolvlm()
    token = words.tokenizer.token_to_id
    text = LlamaConfig(
        **_text_settings(words, heads_kv=2, layers=2),
        rms_norm_eps=1e-5,
        rope_parameters={'rope_type': 'default', 'rope_theta': 100000.0},
    )
    vision = {
        'hidden_size': 32,
        'intermediate_size': 64,
        'num_hidden_layers': 2,
        'num_attention_heads': 2,
        'image_size': SMOLVLM_SIDE,
        'patch_size': SMOLVLM_PATCH,
    }
    config = SmolVLMConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=token('<image>'),
        scale_factor=2,
        tie_word_embeddings=False,
    )
    model = SmolVLMForConditionalGeneration(config)
    weights.fill(model, SEEDS['smolvlm'], words.control_ids())
    processor = SmolVLMStills(
        SmolVLMImageProcessorPil(
            size={'longest_edge': 4 * SMOLVLM_SIDE},
            max_image_size={'longest_edge': SMOLVLM_SIDE},
            do_image_splitting=True,
        ),
        words.for_transformers(
            fake_image_token='<fake_token_around_image>',
            image_token='<image>',
            end_of_utterance_token='<end_of_utterance>',
            global_image_token='<global-img>',
        ),
        None,
        image_seq_len=4,
        chat_template=words.template,
    )
    return VisionLanguageModel(model, processor, words)
