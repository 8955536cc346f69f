"""
Whether a vision encoder and a language model are halves of one model.

Goes by what both files say of themselves: equal widths alone are no sign, since many models share
one. Knows the projector types of llama.cpp; opens headers and runs nothing.
"""

from __future__ import annotations

from pathlib import Path

from . import Family, family
from ..config import FAMILIES
from ..errors import ModelMismatch
from ..llama.gguf import read_gguf
from ..llama.model import Model

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


def family_of(encoder: Path) -> Family | None:
    """
    Give the family that an encoder's file says it is of; None where it says none.

    :raises ModelFileError: the header of an mmproj is damaged
    """
    name = PROJECTORS.get(_projector(encoder)) if encoder.suffix == '.gguf' else None
    return family(name) if name else None


def _projector(encoder: Path) -> str:
    """Give the projector type of an mmproj; empty where it is none that a name can be."""
    metadata = read_gguf(encoder).metadata
    projector = next((metadata[key] for key in KEYS if key in metadata), '')
    return projector if isinstance(projector, str) else ''


def check_pair(model: Model, encoder: Path) -> None:
    """
    Check that a vision encoder belongs to a language model, as far as the files tell.

    :raises ModelMismatch: it does not
    :raises ModelFileError: the header of an mmproj is damaged
    """
    architecture = model.metadata('general.architecture') or 'unknown'
    if encoder.suffix != '.gguf':
        if model.has_several_positions:
            raise ModelMismatch(
                f'{model.path} ({architecture}) gives pictures positions of several parts '
                f'(M-RoPE), which belong to the mmproj of its makers and not to {encoder}: give '
                'that mmproj (.gguf) in model_file_name, or another language model'
            )
        return
    projector = _projector(encoder)
    if not projector:
        return  # opening the encoder says what is wrong with it
    cure = 'give the encoder and the decoder of one model'
    name = PROJECTORS.get(projector)
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
