"""
From a configuration to the parts of a model: the one place where all of them meet.

Knows which part needs which; runs nothing but what shows that the parts fit.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
import logging
import os
from pathlib import Path
from time import perf_counter

from . import catalogue
from .config import Config, ELSEWHERE
from .encoders import EncoderOptions, open_encoder, VisionEncoder
from .errors import ConfigError
from .families import detect, Family
from .families.pairing import check_pair
from .llama.context import Context
from .llama.gguf import parts
from .llama.gpu import Sharing
from .llama.model import Model
from .llama.probe import check_loads
from .prompt.template import CHATML, ChatTemplate, PLAIN

logger = logging.getLogger('hobot_vlm')


@dataclass(frozen=True)
class Parts:
    """
    A loaded model.

    :param config: with what the catalogue and the files say where the user said nothing
    :param encoder: None for a language model without pictures
    :param encoder_path: its file
    :param on_close: frees all
    """

    config: Config
    model: Model
    context: Context
    encoder: VisionEncoder | None
    encoder_path: Path | None
    family: Family | None
    template: ChatTemplate
    on_close: ExitStack


def load(config: Config) -> Parts:
    """
    Load what a configuration asks for.

    1. Which files: those that are named, or those of the catalogue.
    2. The language model, and its adapter.
    3. The vision encoder, and whether both belong together; or the family alone, where pictures
       come encoded.
    4. The chat template: the family's, or the file's own, or the plainest that fits.

    :raises VlmError: files are missing, damaged or do not belong together
    """
    if not isinstance(config, Config):
        raise ConfigError(
            f'the configuration is of type {type(config).__name__}: expected a Config, or options '
            'by name as in VLM.load(n_ctx=2048)'
        )
    began = perf_counter()
    with ExitStack() as undo:
        # 1. files
        files = catalogue.resolve(config)
        warn_of_idle_options(config, files.encoder)
        unset = {f.name for f in fields(Config) if getattr(config, f.name) == f.default}
        config = replace(config, **{k: v for k, v in files.options.items() if k in unset})
        check_loads(
            files.decoder,
            lora=Path(os.path.expanduser(config.lora)) if config.lora else None,
            mmproj=of_kind(files.encoder, '.gguf'),
            onnx=of_kind(files.encoder, '.onnx'),
            n_gpu_layers=config.n_gpu_layers,
            cache_type=config.cache_type,
            flash_attention=config.flash_attention,
        )
        # 2. language
        gpus = Sharing(
            config.n_gpu_layers, config.split_mode, config.main_gpu, config.gpu_shares()
        )
        gpus.check()
        model = Model(parts(files.decoder)[0], gpus=gpus, mmap=config.mmap)
        undo.callback(model.close)
        context = Context(
            model,
            n_ctx=config.n_ctx,
            n_batch=config.n_batch,
            threads=config.llm_threads,
            cache_type=config.cache_type,
            flash_attention=config.flash_attention,
        )
        undo.callback(context.close)
        if config.lora:
            context.add_lora(os.path.expanduser(config.lora), config.lora_scale)
        # 3. vision
        encoder, family = None, None
        if config.encoder_device == ELSEWHERE:
            files = replace(files, encoder=None)
            family = detect(model.controls, config.model_type, files.decoder)
        if files.encoder is not None:
            check_pair(model, files.encoder)
            encoder = open_encoder(
                files.encoder,
                EncoderOptions(
                    config.encoder_threads,
                    config.bpu_priority,
                    config.cores(),
                    config.encoder_device,
                    config.n_gpu_layers != 0,
                ),
            )
            undo.callback(encoder.close)
            model.check_embedding_width(encoder.n_embd, files.encoder)
            if not config.max_tiles:
                config = replace(config, max_tiles=encoder.usual_tiles)
            family = detect(model.controls, config.model_type, files.decoder)
        # 4. template
        source = (
            (family and family.template)
            or model.chat_template()
            or (CHATML if '<|im_start|>' in model.controls else PLAIN)
        )
        template = ChatTemplate(
            source,
            model.controls,
            *model.bos_and_eos(),
            family.image_mark if family else '',
            trusted=bool(family and family.template),
        )
        check_request(config, family)
        if family is not None:
            context.mix()
        if config.warm_up:
            context.warm_up()
        logger.info(
            'loaded %s%s and %s in %.0f ms',
            files.encoder,
            f' (on {encoder.runtime})' if encoder else '',
            files.decoder,
            1000 * (perf_counter() - began),
        )
        return Parts(
            config, model, context, encoder, files.encoder, family, template, undo.pop_all()
        )


def of_kind(path: Path | None, suffix: str) -> Path | None:
    """Give a file if it has this suffix."""
    return path if path is not None and path.suffix == suffix else None


def warn_of_idle_options(config: Config, encoder: Path | None) -> None:
    """Say which options have been set and change nothing."""
    idle: dict[str, str] = {}
    if encoder is None:
        for name in ('encoder_threads', 'max_tiles', 'fit', 'keep_image_tokens'):
            idle[name] = 'the model has no vision encoder'
    if encoder is None or encoder.suffix not in ('.bin', '.hbm'):
        for name in ('bpu_priority', 'bpu_cores'):
            idle[name] = 'nothing runs on a BPU'
    if not config.lora:
        idle['lora_scale'] = 'lora is empty'
    for item in fields(Config):
        if item.name in idle and getattr(config, item.name) != item.default:
            value = getattr(config, item.name)
            logger.warning('%s is %s and has no effect: %s', item.name, value, idle[item.name])


def check_request(config: Config, family: Family | None, find: bool = False) -> None:
    """
    Check the options of a request against the model.

    :param find: boxes are wanted
    :raises ConfigError: one that this model, or such a request, cannot have
    """
    if find and config.keep_image_tokens < 1:
        raise ConfigError(
            f'keep_image_tokens is {config.keep_image_tokens:g}, and boxes are wanted: where a '
            'thing is, only all the embeddings of a picture tell; leave it at 1',
            'keep_image_tokens',
        )
    if config.thinking and not (family and family.thinking_text):
        raise ConfigError(
            'thinking is true, but only InternVL models have a system prompt '
            'for it: give one, or set thinking to false',
            'thinking',
        )
