"""
InternVL3.5-Flash: which tiles of a picture are described by a quarter of the embeddings.

The makers' router gives the probability that a tile loses nothing by it. Compressed are the tiles
whose probability is at least the absolute threshold, and above the quantile, among the tiles of
the picture, that the relative threshold names: ``generate_flash`` in ``modeling_internvl_chat.py``
of their checkpoints. So the only tile of a picture never is.

Knows numbers; nothing of graphs or of who runs them.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

#: outputs that ``tools/export_encoder.py`` gives such a graph beside the embeddings of all tiles:
#: float32 (tiles, tokens / 4, n_embd), and float32 (tiles, 3) of probability, absolute threshold
#: and relative threshold, the last two the same for each tile
COMPRESSED, GATE = OUTPUTS = ('compressed_features', 'gate')


def is_routed(outputs: Collection[str]) -> bool:
    """Say whether a graph with these outputs has a router."""
    return set(OUTPUTS) <= set(outputs)


def compressed(gate: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """
    Decide about the tiles of a picture.

    :param gate: float32 (tiles, 3): see ``OUTPUTS``; thresholds 0..1
    :return: bool (tiles,): whether a tile is compressed
    """
    probability, (absolute, relative) = gate[:, 0], gate[0, 1:]
    found: npt.NDArray[np.bool_] = np.greater(probability, np.quantile(probability, relative))
    found &= probability >= absolute
    return found


def check(
    fine: npt.NDArray[np.float32], coarse: npt.NDArray[np.float32], gate: npt.NDArray[np.float32]
) -> str:
    """Say what is wrong with what such a graph gave; empty: nothing."""
    tiles, tokens, n_embd = fine.shape
    if coarse.ndim != 3 or (len(coarse), coarse.shape[2]) != (tiles, n_embd) or not coarse.size:
        return f'{COMPRESSED} of shape {coarse.shape}, expected ({tiles}, {tokens // 4}, {n_embd})'
    if gate.shape != (tiles, 3):
        return f'{GATE} of shape {gate.shape}, expected ({tiles}, 3)'
    if not ((gate >= 0) & (gate <= 1)).all():
        return f'{GATE} with numbers that are not between 0 and 1'
    return ''
