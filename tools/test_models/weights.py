"""
Random weights that are the same on every machine, whatever fills the model.

Each tensor has a generator of its own, seeded by its name, so that a change to one module leaves
the others as they are. The spreads are chosen so that the answers are not flat: the best token
stands out, and pictures change it.
"""

from __future__ import annotations

from collections.abc import Sequence
import re
import zlib

import numpy as np
import torch

#: (pattern of the name, kind); the first that matches counts
KINDS = (
    (r'embed_tokens', 'embedding'),
    (r'lm_head', 'head'),
    (r'cls_token|position_embedding', 'table'),
    (r'lambda_\d', 'gain'),
    (r'norm\w*\.weight|layer_norm\d?\.weight|layernorm_\w+\.weight', 'gain'),
    (r'\.bias$', 'bias'),
    (r'(q|k)_proj\.weight', 'attention'),
    (r'.', 'matrix'),
)


def _draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    values = rng.standard_normal(shape)
    inputs = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    kind = next(kind for pattern, kind in KINDS if re.search(pattern, name))
    if kind == 'gain':
        values = 1 + 0.1 * values
    elif kind == 'bias':
        values *= 0.1
    elif kind == 'table':
        values *= 0.5
    elif kind == 'head':
        values *= 3 / np.sqrt(inputs)
    elif kind == 'attention':
        values *= 1.5 / np.sqrt(inputs)
    elif kind == 'matrix':
        values *= 1.2 / np.sqrt(inputs)
    return values.astype(np.float32)


def fill(model: torch.nn.Module, seed: int, rare: Sequence[int]) -> None:
    """
    Give a model its weights.

    :param rare: tokens that the model must hardly ever answer with: control tokens and padding
    """
    state = model.state_dict()
    for name in state:
        values = _draw(name, tuple(state[name].shape), seed)
        if name.endswith('lm_head.weight'):
            values[list(rare)] *= 0.05
        state[name] = torch.from_numpy(values)
    model.load_state_dict(state)
    model.eval()
