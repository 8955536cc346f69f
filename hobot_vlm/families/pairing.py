"""
Whether a vision encoder and a language model are halves of one model.

Goes by what both files say of themselves: equal widths alone are no sign, since many models share
one. Knows projector types of llama.cpp; opens headers and runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
import logging
from pathlib import Path

from . import Family, family
from ..config import FAMILIES
from ..encoders import Encoder, VisionEncoder
from ..errors import ModelMismatch
from ..llama.gguf import read_gguf
from ..llama.model import Model

logger = logging.getLogger('hobot_vlm')

#: projector type of an mmproj -> the family of both halves
PROJECTORS = {'internvl': 'internvl', 'idefics3': 'smolvlm'}

#: projector type -> architectures of language models that it belongs to
ARCHITECTURES = {
    'qwen2vl_merger': ('qwen2vl',),
    'qwen2.5vl_merger': ('qwen2vl',),
    'qwen3vl_merger': ('qwen3vl', 'qwen3vlmoe'),
    'gemma3': ('gemma3',),
    'gemma3nv': ('gemma3n',),
    'llama4': ('llama4',),
    'cogvlm': ('cogvlm',),
}

KEYS = ('clip.projector_type', 'clip.vision.projector_type')

#: where a language model says what it is called
NAMES = ('general.name', 'general.finetune', 'general.basename')

#: ``model_type`` of whatever libmtmd knows
ANY = 2


def for_libmtmd(encoder: Path | None, model_type: int) -> bool:
    """
    Say whether libmtmd is to cut the pictures of a model: what no other family here reads.

    :param model_type: as the user has it; -1: the files tell
    :raises ModelFileError: the header of an mmproj is damaged
    :raises ModelMismatch: libmtmd is asked for, and this is no file of llama.cpp; or another
        family is, and this file is of none
    """
    if encoder is None or encoder.suffix.lower() != '.gguf':
        if model_type == ANY and encoder is not None:
            raise ModelMismatch(
                f'model_type is {ANY}, for encoders that libmtmd runs, and {encoder} is none: '
                'give an mmproj file of llama.cpp (.gguf), or leave model_type at -1'
            )
        return False
    metadata = read_gguf(encoder).metadata
    projector = projector_of(metadata)
    if model_type == ANY:
        return True
    if metadata.get('general.architecture') != 'clip' or projector in (*PROJECTORS, ''):
        return False
    if model_type != -1:
        raise ModelMismatch(
            f'model_type is {model_type}, and {encoder} is of the projector type '
            f'{projector[:40]!r}, which is of another family: leave model_type at -1'
        )
    return True


def projector_of(metadata: Mapping[str, object]) -> str:
    """Give the projector type of an mmproj file by its header; empty where it has none."""
    found = next((metadata[key] for key in KEYS if metadata.get(key)), '')
    return found if isinstance(found, str) else ''


def family_of(encoder: Path) -> Family | None:
    """
    Give the family that an encoder's file says it is of; None where it says none.

    :raises ModelFileError: the header of an mmproj is damaged
    """
    if encoder.suffix.lower() != '.gguf':
        return None
    name = PROJECTORS.get(projector_of(read_gguf(encoder).metadata))
    return family(name) if name else None


def check_pair(model: Model, encoder: Path, model_type: int = -1) -> None:
    """
    Check that a vision encoder belongs to a language model, as far as the files tell.

    :param model_type: as the user has it; libmtmd asks no vocabulary for its marks
    :raises ModelMismatch: it does not
    :raises ModelFileError: the header of an mmproj is damaged
    """
    architecture = model.metadata('general.architecture') or 'unknown'
    if encoder.suffix.lower() != '.gguf':
        if model.has_several_positions:
            raise ModelMismatch(
                f'{model.path} ({architecture}) gives pictures positions of several parts '
                f'(M-RoPE), which belong to the mmproj of its makers and not to {encoder}: give '
                'that mmproj (.gguf) in model_file_name, or another language model'
            )
        return
    projector = projector_of(read_gguf(encoder).metadata)
    if not projector:
        return  # opening the encoder says what is wrong with it
    cure = 'give the encoder and the decoder of one model'
    name = PROJECTORS.get(projector) if model_type != ANY else None
    if name and not family(name).knows(model.controls):
        others = [each for each in FAMILIES if family(each).knows(model.controls)]
        raise ModelMismatch(
            f'{encoder} is the vision half of a model of the family {name} (projector '
            f'{projector}), and the vocabulary of {model.path} ({architecture}) is '
            f'{"of the family " + others[-1] if others else "of no known family"}: it lacks '
            f'{family(name).marks}; {cure}'
        )
    fitting = ARCHITECTURES.get(projector)
    if fitting and architecture not in fitting:
        raise ModelMismatch(
            f'{encoder} (projector {projector}) belongs to a language model of the architecture '
            f'{" or ".join(fitting)}, and {model.path} is {architecture}: {cure}'
        )


def check_router(model: Model, encoder: Encoder, path: Path, found: Family) -> None:
    """
    Check that an encoder with a router belongs to a language model, as far as the files tell.

    A language model says at most in its name that it is one of InternVL3.5-Flash, so that a doubt
    about that is only a warning.

    :param path: of the encoder, for messages
    :param found: the family of the language model
    :raises ModelMismatch: it does not
    """
    routed = isinstance(encoder, VisionEncoder) and encoder.routed
    if routed and found.name != 'internvl':
        raise ModelMismatch(
            f'{path} is the vision half of an InternVL3.5-Flash, and {model.path} is of the '
            f'family {found.name}: give the encoder and the decoder of one model'
        )
    name = ' '.join(model.metadata(key) or '' for key in NAMES)
    if routed and 'flash' not in (name + model.path.name).lower():
        logger.warning(
            '%s is the vision half of an InternVL3.5-Flash, and %s does not say that it is one: '
            'another InternVL was not trained on compressed tiles',
            path,
            model.path,
        )
    elif found.name == 'internvl' and not routed and 'flash' in name.lower():
        logger.warning(
            '%s is the language model of an InternVL3.5-Flash, and %s has no router: no tile is '
            'compressed; make the encoder with tools/export_encoder.py',
            model.path,
            path,
        )
