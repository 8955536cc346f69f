"""
Train the demo model: ``python tools/demo_model/train.py --out build/demo``.

1. The vision tower alone learns to name what is in each cell of the picture. A language loss
   teaches it the grammar of the answers long before the objects, so it gets none.
2. The tower is frozen, and what it sees in a pool of scenes is kept. Projector and decoder learn
   to answer, which is quick, since no picture has to be drawn or looked at again.

Both learning rates follow the clock, so a run ends when it was told to.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
import time

import cv2
import data
from model import DemoModel, Shape
import numpy as np
import scenes
from tokenizers import Tokenizer
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, IterableDataset


class Endless(IterableDataset):
    """Batches of a function of a random generator, made in another process."""

    def __init__(
        self, make: Callable[[np.random.Generator], list[dict[str, torch.Tensor]]], seed: int
    ):
        self.make, self.seed = make, seed

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        cv2.setNumThreads(1)  # leave the cores to the trainer
        torch.set_num_threads(1)
        rng = np.random.default_rng(self.seed)
        while True:
            yield from self.make(rng)

    def batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """Give batches for ever."""
        return iter(DataLoader(self, batch_size=None, num_workers=1, prefetch_factor=8))


def pictures_of(
    shape: Shape, rng: np.random.Generator, sampled: list[scenes.Scene]
) -> dict[str, torch.Tensor]:
    """Draw scenes, and say what is in each cell of them."""
    return {
        'pixels': torch.from_numpy(
            np.stack([data.picture_of(rng, s, shape.picture) for s in sampled])
        ),
        'cells': torch.from_numpy(np.stack([data.cell_labels(s, shape.grid) for s in sampled])),
    }


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """Turn uint8 (n, side, side, 3) into what the tower reads."""
    return (
        pixels.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last).float() / 127.5
        - 1
    )


def conversations(
    sequences: data.Sequences, rng: np.random.Generator, batch: int, turns: int
) -> list[dict[str, torch.Tensor]]:
    """Make several batches, each of sequences of like length."""
    made = sorted(
        (sequences.make(rng, turns) for _ in range(4 * batch)), key=lambda one: len(one[0])
    )
    batches = []
    for start in rng.permutation(range(0, 4 * batch, batch)):
        rows = made[start : start + batch]
        longest = -(-len(rows[-1][0]) // 8) * 8
        ids = np.zeros((batch, longest), np.int64)
        labels = np.full((batch, longest), data.ASIDE, np.int64)
        weights = np.zeros((batch, longest), np.float32)
        flags = np.full((batch, longest), data.ASIDE, np.int64)
        for i, (row, learned, weight, asked) in enumerate(rows):
            flags[i, : len(row)] = asked
            ids[i, : len(row)] = row
            labels[i, : len(row) - 1] = learned[1:]
            weights[i, : len(row) - 1] = weight[1:]
        batches.append(
            {
                'ids': torch.from_numpy(ids),
                'labels': torch.from_numpy(labels),
                'weights': torch.from_numpy(weights),
                'flags': torch.from_numpy(flags),
            }
        )
    return batches


def cell_loss(model: DemoModel, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, float]:
    """Give the loss of naming cells, and the share of objects' cells named right."""
    scores = model.cell_head(model.vision.cells(normalised(batch['pixels'])))
    scores, target = scores.float().flatten(0, 1), batch['cells'].flatten()
    each = F.cross_entropy(scores, target, reduction='none')
    things = (target < len(scenes.KINDS)).float()
    right = ((scores.argmax(1) == target).float() * things).sum() / things.sum()
    return (
        (each * things).sum() / things.sum()
        + 0.3 * (each * (1 - things)).sum() / (1 - things).sum()
    ), float(right)


def answer_loss(
    model: DemoModel, batch: dict[str, torch.Tensor], kept: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """Give the loss of answering, and the share of verdicts that are right."""
    ids, wanted = batch['ids'], batch['labels']
    slots = ids < 0
    x = model.decoder.embed(ids.clamp(min=0))
    if slots.any():
        # slots stand in the order of their pictures, and each picture fills `tokens` of them
        numbers = (-1 - ids[slots]).view(-1, model.shape.tokens)[:, 0]
        images = model.vision.project(kept[numbers].float())
        x = x.to(images.dtype)
        x[slots] = images.flatten(0, 1)
    keep = wanted != data.ASIDE
    logits = F.linear(model.decoder(x)[keep], model.decoder.embed.weight).float()
    each, weights = F.cross_entropy(logits, wanted[keep], reduction='none'), batch['weights'][keep]
    missed = (logits.argmax(1) != wanted[keep]) & (weights == 1)
    # a verdict ends a turn, so this many are there
    verdicts = (weights == 1) & (wanted[keep] == model.shape.end)
    right = 1 - missed.float().sum() / verdicts.float().sum()
    # halfway through, the model is to know which of the things it lists it was asked about
    keep = batch['flags'] != data.ASIDE
    halfway = model.asked_head(model.decoder.halfway[keep]).float()[:, 0]
    flags = F.binary_cross_entropy_with_logits(halfway, batch['flags'][keep].float())
    return (each * weights).sum() / weights.sum() + 0.3 * flags, float(right)


def run(
    name: str,
    minutes: float,
    rate: float,
    weights: list[torch.nn.Parameter],
    batches: Iterator[dict[str, torch.Tensor]],
    loss_of: Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor, float]],
    save: Callable[[], None],
) -> None:
    """Train until the time is up."""
    optimizer = torch.optim.AdamW(
        [
            {'params': [p for p in weights if p.ndim > 1], 'weight_decay': 0.05},
            {'params': [p for p in weights if p.ndim <= 1], 'weight_decay': 0.0},
        ],
        lr=rate,
        betas=(0.9, 0.98),
    )
    began, saved, step, sums = time.time(), time.time(), 0, np.zeros(2)
    while (done := (time.time() - began) / 60 / max(minutes, 1e-9)) < 1:
        now = rate * min(1, (step + 1) / 100) * 0.5 * (1 + np.cos(np.pi * done))
        for group in optimizer.param_groups:
            group['lr'] = max(now, 0.01 * rate)
        with torch.autocast('cpu', torch.bfloat16):
            loss, right = loss_of(next(batches))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        sums += (loss.item(), right)
        if step % 50 == 0:
            print(
                f'{name}: {(time.time() - began) / 60:.1f} min, step {step}: loss '
                f'{sums[0] / 50:.4f}, right {2 * sums[1]:.2f} %',
                flush=True,
            )
            sums[:] = 0
        if time.time() - saved > 240:
            saved = time.time()
            save()
    save()


def main() -> None:
    """Train both parts and keep the newest weights in ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('--out', type=Path, default=Path('build/demo'))
    parser.add_argument('--tower-minutes', type=float, default=60)
    parser.add_argument('--decoder-minutes', type=float, default=45)
    parser.add_argument('--tower-rate', type=float, default=1.5e-3)
    parser.add_argument('--decoder-rate', type=float, default=2e-3)
    parser.add_argument('--pool', type=int, default=20_000, help='scenes that step 2 asks about')
    parser.add_argument(
        '--exercises', type=float, default=0.3, help='share of conversations without pictures'
    )
    parser.add_argument('--batch', type=int, default=48)
    parser.add_argument('--turns', type=int, default=3)
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--resume', type=Path, help='weights to go on from')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    # weights go with the vocabulary that they were trained with
    tokenizer = (
        Tokenizer.from_file(str(args.resume.parent / 'tokenizer.json'))
        if args.resume
        else data.train_tokenizer(Shape.vocab)
    )
    tokenizer.save(str(args.out / 'tokenizer.json'))
    shape = Shape(vocab=tokenizer.get_vocab_size())
    model = DemoModel(shape).to(memory_format=torch.channels_last)
    if args.resume:
        print(model.load_state_dict(torch.load(args.resume)['weights'], strict=False))
    print(shape, f'{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M weights', flush=True)

    def save() -> None:
        part = args.out / 'weights.part'
        torch.save({'shape': shape.asdict(), 'weights': model.state_dict()}, part)
        part.rename(args.out / 'weights.pt')

    # both helpers start before any arithmetic: a process forked after it inherits locked threads
    looking = Endless(
        lambda rng: [pictures_of(shape, rng, [scenes.sample(rng) for _ in range(args.batch)])],
        args.seed,
    ).batches()
    rng = np.random.default_rng(args.seed + 1)
    pool = [scenes.sample(rng) for _ in range(args.pool)]
    sequences = data.Sequences(tokenizer, shape.tokens, pool, args.exercises)
    asking = Endless(
        lambda rng: conversations(sequences, rng, args.batch, args.turns), args.seed + 2
    ).batches()
    # 1. the tower
    run(
        'tower',
        args.tower_minutes,
        args.tower_rate,
        [*model.vision.parameters(), *model.cell_head.parameters()],
        looking,
        lambda batch: cell_loss(model, batch),
        save,
    )
    # 2. the decoder
    model.eval()
    kept = torch.empty(args.pool, shape.grid**2, shape.width, dtype=torch.bfloat16)
    with torch.no_grad():
        for start in range(0, args.pool, 64):
            drawn = pictures_of(shape, rng, pool[start : start + 64])
            kept[start : start + 64] = model.vision.cells(normalised(drawn['pixels']))
    print(f'{args.pool} scenes seen', flush=True)
    run(
        'decoder',
        args.decoder_minutes,
        args.decoder_rate,
        [
            *model.vision.projector.parameters(),
            model.vision.where,
            *model.decoder.parameters(),
            *model.asked_head.parameters(),
        ],
        asking,
        lambda batch: answer_loss(model, batch, kept),
        save,
    )


if __name__ == '__main__':
    main()
