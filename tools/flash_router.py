"""
The visual-resolution router of InternVL3.5-Flash in torch, for ``export_encoder.py``.

Names, sizes and order are those of the makers' checkpoints and of ``modeling_internvl_chat.py`` in
them, where no setting tells.
"""

from __future__ import annotations

import torch


class Pooling(torch.nn.Module):
    """The patches of a tile -> one vector, by a query that attends to them four times."""

    HEADS = 16

    def __init__(self, width: int):
        super().__init__()
        nn = torch.nn
        self.query_token = nn.Parameter(torch.zeros(1, width))
        self.attn1 = nn.MultiheadAttention(width, self.HEADS, batch_first=True)
        self.attn2 = nn.MultiheadAttention(width, self.HEADS, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        query = self.query_token[None].expand(patches.shape[0], -1, -1)
        query = self.norm1(self.attn1(query, patches, patches, need_weights=False)[0])
        # the checkpoints have a third and a fourth layer, and the makers' code runs the second
        for _ in range(3):
            query = self.norm2(self.attn2(query, patches, patches, need_weights=False)[0])
        return query[:, 0]


class Gating(torch.nn.Module):
    """One vector of a tile -> the probabilities that it is compressed, and that it is not."""

    def __init__(self, width: int):
        super().__init__()
        nn = torch.nn
        for block in ('block1', 'block2', 'block3', 'block4'):
            layers = (
                nn.Linear(width, 4 * width),
                nn.GELU(),
                nn.Identity(),
                nn.Linear(4 * width, width),
                nn.Identity(),
                nn.LayerNorm(width),
            )
            setattr(self, block, nn.Sequential(*layers))
        self.gate = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2))

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        for block in (self.block1, self.block2, self.block3, self.block4):
            pooled = pooled + block(pooled)
        return self.gate(pooled).softmax(-1)
