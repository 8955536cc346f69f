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
from .encoders import Encoder, EncoderOptions, open_encoder, PictureEncoder
from .errors import ConfigError, ModelMismatch
from .families import detect, Family, family
from .families.mtmd import Libmtmd
from .families.pairing import check_pair, check_router, for_libmtmd, projector_of
from .llama.context import Context
from .llama.gguf import parts, read_gguf
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
    encoder: Encoder | None
    encoder_path: Path | None
    family: Family | None
    template: ChatTemplate
    on_close: ExitStack


def load(config: Config) -> Parts:
    """
    Load what a configuration asks for.

    1. Which files: those that are named, or those of the catalogue.
    2. The language model.
    3. The vision encoder, and whether both belong together; or the family alone, where pictures
       come encoded.
    4. The context that both are for, and the adapter.
    5. The chat template: the family's, or the file's own, or the plainest that fits.

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
        if config.encoder_device == ELSEWHERE:
            files = replace(files, encoder=None)
        by_libmtmd = for_libmtmd(files.encoder, config.model_type)
        check_loads(
            files.decoder,
            lora=Path(os.path.expanduser(config.lora)) if config.lora else None,
            mmproj=of_kind(files.encoder, '.gguf'),
            by_libmtmd=by_libmtmd,
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
        # 3. vision
        encoder, chosen = None, None
        if config.encoder_device == ELSEWHERE:
            chosen = detect(model.controls, config.model_type, files.decoder)
        if files.encoder is not None:
            check_pair(model, files.encoder, config.model_type)
            encoder, chosen = open_vision(files.encoder, files.decoder, model, config, by_libmtmd)
            undo.callback(encoder.close)
            check_router(model, encoder, files.encoder, chosen)
            model.check_embedding_width(encoder.n_embd, files.encoder)
            if not config.max_tiles:
                config = replace(config, max_tiles=encoder.usual_tiles)
        placed = isinstance(encoder, PictureEncoder) and encoder.places
        # 4. context
        context = Context(
            model,
            n_ctx=config.n_ctx,
            n_batch=config.n_batch,
            threads=config.llm_threads,
            cache_type=config.cache_type,
            flash_attention=config.flash_attention,
            whole_pictures=isinstance(encoder, PictureEncoder) and encoder.whole,
        )
        undo.callback(context.close)
        if config.lora:
            context.add_lora(os.path.expanduser(config.lora), config.lora_scale)
        # 5. template
        source = (
            (chosen and chosen.template)
            or model.chat_template()
            or (CHATML if '<|im_start|>' in model.controls else PLAIN)
        )
        template = ChatTemplate(
            source,
            model.controls,
            *model.bos_and_eos(),
            chosen.image_mark if chosen else '',
            trusted=bool(chosen and chosen.template),
        )
        check_request(config, chosen)
        if chosen is not None and not placed:
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
            config, model, context, encoder, files.encoder, chosen, template, undo.pop_all()
        )


def open_vision(
    path: Path, decoder: Path, model: Model, config: Config, by_libmtmd: bool
) -> tuple[Encoder, Family]:
    """
    Open a vision encoder, and find the family that it is of.

    :param decoder: path of the language model, for messages
    :param by_libmtmd: it cuts the pictures itself
    """
    options = EncoderOptions(
        config.encoder_threads,
        config.bpu_priority,
        config.cores(),
        config.encoder_device,
        config.n_gpu_layers != 0,
    )
    if not by_libmtmd:
        encoder = open_encoder(path, options)
        try:
            return encoder, detect(model.controls, config.model_type, decoder)
        except ModelMismatch:
            encoder.close()
            raise
    if config.encoder_device not in ('auto', 'libmtmd'):
        raise ConfigError(
            f'encoder_device is {config.encoder_device[:40]!r}, and only libmtmd reads {path}: '
            'leave it at auto',
            'encoder_device',
        )
    from .encoders.mtmd import MtmdEncoder

    projector = projector_of(read_gguf(path).metadata)
    return MtmdEncoder(path, projector, model, options), family('mtmd')


def of_kind(path: Path | None, suffix: str) -> Path | None:
    """Give a file if it has this suffix."""
    return path if path is not None and path.suffix.lower() == suffix else None


def warn_of_idle_options(config: Config, encoder: Path | None) -> None:
    """Say which options have been set and change nothing."""
    idle: dict[str, str] = {}
    if encoder is None:
        for name in ('encoder_threads', 'max_tiles', 'fit', 'keep_image_tokens'):
            idle[name] = 'the model has no vision encoder'
    if encoder is None or encoder.suffix.lower() not in ('.bin', '.hbm'):
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
    if isinstance(family, Libmtmd):
        check_uncut(config)
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


def check_uncut(config: Config) -> None:
    """Check the options of a request for a model whose pictures libmtmd cuts; as above."""
    for name, unset in (('max_tiles', 0), ('fit', ''), ('keep_image_tokens', 1)):
        if getattr(config, name) != unset:
            raise ConfigError(
                f'{name} is {getattr(config, name)!r}, and libmtmd cuts the pictures of this '
                f'model as its makers do: leave it at {unset!r}',
                name,
            )
