"""
Fewer embeddings per tile: those that together say the most.

Neighbouring parts of a picture say much the same. What is kept is a greedy maximum of a
determinantal point process over the cosines of the embeddings: each next one is that which the
ones before explain the least. That is CDPruner (Zhang et al., "Beyond Attention or Similarity:
Maximizing Conditional Diversity for Token Pruning in MLLMs", NeurIPS 2025, arXiv:2506.10967)
without its condition on the question, since a tile is encoded before a question about it is known
and then serves all of them. The greedy steps are those of Chen, Zhang and Zhou, "Fast Greedy MAP
Inference for Determinantal Point Process to Improve Recommendation Diversity", NeurIPS 2018,
arXiv:1709.05135, algorithm 1.

Knows embeddings; nothing of pictures, of encoders or of who asks.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

#: variance below which an embedding counts as explained: float32 cosines are this exact
EXPLAINED = 1e-6


def kept(tokens: int, share: float) -> int:
    """
    Give how many embeddings of a tile are kept.

    :param tokens: how many it has; 0: not known yet, as the result is then
    :param share: above 0, at most 1
    """
    return math.ceil(tokens * share - 1e-9)  # 0.07 * 100 is a little more than 7


def select(embeddings: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.float32]:
    """
    Keep the embeddings of a tile that together say the most, in their order.

    Equal input gives equal output.

    :param embeddings: float32 (tokens, n_embd)
    :param count: how many to keep, at least 1; from ``tokens`` on all are
    :return: float32 (count, n_embd), C order
    """
    tokens = len(embeddings)
    if count >= tokens:
        return embeddings
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    units = embeddings / np.maximum(lengths, np.float32(1e-30))
    # how much of each embedding those that are chosen explain: a Cholesky factor, row by row
    factor = np.zeros((count, tokens), np.float32)
    left = np.ones(tokens, np.float32)  # what they do not explain
    chosen = np.zeros(tokens, bool)
    for step in range(count):
        best = int(np.argmax(np.where(chosen, -np.inf, left)))
        chosen[best] = True
        root = math.sqrt(max(float(left[best]), EXPLAINED))
        explained = units @ units[best] - factor[:step, best] @ factor[:step]
        factor[step] = explained / root
        left -= factor[step] ** 2
    return np.ascontiguousarray(embeddings[chosen])
