"""
The demo model in torch: a small SmolVLM, that is vision tower, pixel shuffle, projector, Llama.

Only tools import this. Rotary positions turn neighbouring pairs of numbers, as llama.cpp does for
Llama, so that no row has to be permuted when the weights are written as GGUF.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import nn
import torch.nn.functional as F


@dataclass
class Shape:
    """Sizes of the demo model."""

    picture: int = 192  # side of the square input, pixels
    width: int = 192  # of the vision tower
    vision_layers: int = 4
    shuffle: int = 2  # pixel shuffle factor: 12 x 12 cells -> 6 x 6 tokens
    n_embd: int = 192  # of the decoder
    layers: int = 4
    heads: int = 6
    ffn: int = 512
    vocab: int = 2048
    context: int = 4096  # positions promised in the GGUF
    eps: float = 1e-5
    theta: float = 10000.0
    labels: int = 128  # classes of the auxiliary loss
    end: int = 3  # token that ends a turn

    @property
    def grid(self) -> int:
        """Cells along one side of the vision tower's output."""
        return self.picture // 16

    @property
    def tokens(self) -> int:
        """Embeddings per picture."""
        return (self.grid // self.shuffle) ** 2

    asdict = asdict


class VisionBlock(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate='tanh'))


class Vision(nn.Module):
    """Pixels (n, 3, side, side), normalised to -1..1 -> embeddings (n, tokens, n_embd)."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        channels = [3, 32, 64, 128, shape.width]
        layers: list[nn.Module] = []
        for before, after in zip(channels, channels[1:], strict=False):
            layers += [
                nn.Conv2d(before, after, 3, 2, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
            if after == 128:
                layers += [
                    nn.Conv2d(after, after, 3, 1, 1, bias=False),
                    nn.BatchNorm2d(after),
                    nn.ReLU(),
                ]
        self.stem = nn.Sequential(*layers)
        self.position = nn.Parameter(torch.randn(1, shape.grid**2, shape.width) * 0.02)
        self.blocks = nn.ModuleList(
            VisionBlock(shape.width, 6) for _ in range(shape.vision_layers)
        )
        self.norm = nn.LayerNorm(shape.width)
        self.projector = nn.Linear(shape.width * shape.shuffle**2, shape.n_embd, bias=False)
        # tells the decoder where in the picture an embedding is from
        self.where = nn.Parameter(torch.randn(1, shape.tokens, shape.n_embd) * 0.05)

    def cells(self, pixels: torch.Tensor) -> torch.Tensor:
        """Give what the tower sees in each cell: (n, grid * grid, width)."""
        x = self.stem(pixels).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def project(self, cells: torch.Tensor) -> torch.Tensor:
        """Join neighbouring cells and project them to the decoder's width."""
        s, side, c = self.shape.shuffle, self.shape.grid, self.shape.width
        x = cells.view(-1, side // s, s, side // s, s, c).permute(0, 1, 3, 2, 4, 5)
        return self.projector(x.reshape(-1, (side // s) ** 2, s * s * c)) + self.where

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.project(self.cells(pixels))


class DecoderBlock(nn.Module):
    """A Llama layer."""

    def __init__(self, shape: Shape):
        super().__init__()
        n = shape.n_embd
        self.heads = shape.heads
        self.attn_norm, self.ffn_norm = nn.RMSNorm(n, shape.eps), nn.RMSNorm(n, shape.eps)
        self.q, self.k, self.v, self.o = (nn.Linear(n, n, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(n, shape.ffn, bias=False) for _ in range(2))
        self.down = nn.Linear(shape.ffn, n, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        y = self.attn_norm(x)
        q, k, v = (
            f(y).view(b, n, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, n, c))
        y = self.ffn_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn pairs of neighbouring numbers by their position's angle."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


class Decoder(nn.Module):
    """Embeddings (n, length, n_embd) -> hidden states of the same shape."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocab, shape.n_embd)
        nn.init.normal_(self.embed.weight, std=0.05)
        self.blocks = nn.ModuleList(DecoderBlock(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.n_embd, shape.eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = self.shape.n_embd // self.shape.heads // 2
        rates = self.shape.theta ** (-torch.arange(half, device=x.device) / half)
        angles = torch.arange(x.shape[1], device=x.device)[:, None] * rates
        cos, sin = angles.cos(), angles.sin()
        for number, block in enumerate(self.blocks):
            x = block(x, cos, sin)
            if number == len(self.blocks) // 2 - 1:
                self.halfway = x
        return self.norm(x)


class DemoModel(nn.Module):
    """Vision tower, decoder and the heads of the auxiliary losses."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.vision = Vision(shape)
        self.decoder = Decoder(shape)
        self.cell_head = nn.Linear(shape.width, shape.labels)
        self.asked_head = nn.Linear(shape.n_embd, 1)
