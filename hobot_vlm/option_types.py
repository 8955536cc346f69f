"""
The options of ``VLM.load``, ``ask`` and ``stream`` as types, for editors and type checkers.

Written by tools/make_option_types.py from ``Config`` and ``Request``, which say more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict


class RequestOptions(TypedDict, total=False):
    """Options of the configuration that may differ from request to request."""

    system_prompt: str | Path
    thinking: bool
    fit: str
    max_tiles: int
    keep_image_tokens: float
    n_predict: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    seed: int
    grammar: str | Path
    json_schema: str | Path | Mapping[str, Any] | type
    regex: str


class AskOptions(RequestOptions, total=False):
    """What ``ask`` and ``stream`` take."""

    labels: Sequence[str]
    stop: Sequence[str]
    logit_bias: Mapping[int, float] | None
    logprobs: int
    choices: Sequence[str]
    exact: bool
    find: bool
    priority: int
    timeout: float
    bgr: bool


class LoadOptions(RequestOptions, total=False):
    """What ``VLM.load`` takes."""

    remote_model: str
    remote_timeout: float
    remote_image_side: int
    remote_jpeg_quality: int
    fallback: str
    model_file_name: str | Path
    llm_model_name: str | Path
    model_type: int
    auto_download: bool
    n_ctx: int
    n_batch: int
    n_gpu_layers: int
    split_mode: str
    main_gpu: int
    tensor_split: str
    llm_threads: int
    encoder_threads: int
    encoder_device: str
    bpu_priority: int
    bpu_cores: str
    lora: str | Path
    lora_scale: float
    cache_type: str
    flash_attention: str
    mmap: bool
    warm_up: bool
