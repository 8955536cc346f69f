"""
Train the demo model: ``python tools/demo_model/train.py --minutes 90 --out build/demo``.

1. The vision tower alone learns to name what is in each cell of the picture.
2. Tower and decoder together learn to answer. The first loss goes on: with the language loss
   alone the decoder learns the grammar of the answers and never the objects.

The learning rate follows the clock, so the run ends when it was told to.
"""

from __future__ import annotations

import argparse
from pathlib import Path
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, IterableDataset

import data
from model import DemoModel, Shape
import scenes


class Batches(IterableDataset):
    """Endless batches."""

    def __init__(self, shape: Shape, sequences: data.Sequences, batch: int, turns: int,
                 seed: int):
        self.shape, self.sequences, self.batch, self.turns = shape, sequences, batch, turns
        self.seed = seed

    def __iter__(self):
        cv2_threads()
        info = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, info.id if info else 0])
        while True:
            yield self.make(rng)

    def make(self, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Make one batch."""
        rows, labels, pictures = [], [], []
        for _ in range(self.batch):
            ids, learned, shown = self.sequences.make(rng, self.turns)
            rows.append([i if i >= 0 else i - len(pictures) for i in ids])
            labels.append(learned)
            pictures += shown
        longest = -(-max(map(len, rows)) // 16) * 16
        ids = np.zeros((len(rows), longest), np.int64)
        learned = np.full((len(rows), longest), data.ASIDE, np.int64)
        for i, row in enumerate(rows):
            ids[i, :len(row)] = row
            learned[i, :len(row) - 1] = labels[i][1:]
        side = self.shape.picture
        pixels = np.stack([data.picture_of(rng, s, side) for s in pictures])
        cells = np.stack([data.cell_labels(s, self.shape.grid) for s in pictures])
        return {'ids': torch.from_numpy(ids), 'labels': torch.from_numpy(learned),
                'pixels': torch.from_numpy(pixels), 'cells': torch.from_numpy(cells)}


def cv2_threads() -> None:
    """Keep OpenCV from taking the trainer's cores."""
    import cv2

    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def losses(model: DemoModel, batch: dict[str, torch.Tensor], language: bool):
    """Give the loss per cell and, if asked for, the loss of the answers."""
    shape = model.shape
    pixels = (batch['pixels'].permute(0, 3, 1, 2).contiguous(
        memory_format=torch.channels_last).float() / 127.5 - 1)
    cells = model.vision.cells(pixels)
    scores = model.cell_head(cells).float().flatten(0, 1)
    target = batch['cells'].flatten()
    each = F.cross_entropy(scores, target, reduction='none')
    things = (target < len(scenes.KINDS)).float()
    cell_loss = ((each * things).sum() / things.sum()
                 + 0.3 * (each * (1 - things)).sum() / (1 - things).sum())
    right = ((scores.argmax(1) == target).float() * things).sum() / things.sum()
    if not language:
        return cell_loss, cell_loss.new_zeros(()), right
    images = model.vision.project(cells)
    ids = batch['ids']
    x = model.decoder.embed(ids.clamp(min=0))
    slots = ids < 0
    # slots stand in the order of the pictures, and each picture fills `tokens` of them
    order = (-1 - ids[slots]).view(-1, shape.tokens)[:, 0]
    x = x.to(images.dtype)
    x[slots] = images[order].flatten(0, 1)
    hidden = model.decoder(x)
    wanted = batch['labels']
    keep = wanted != data.ASIDE
    logits = F.linear(hidden[keep], model.decoder.embed.weight)
    return cell_loss, F.cross_entropy(logits.float(), wanted[keep]), right


def main() -> None:
    """Train and keep the newest weights in ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('--minutes', type=float, default=90)
    parser.add_argument('--out', type=Path, default=Path('build/demo'))
    parser.add_argument('--batch', type=int, default=48)
    parser.add_argument('--turns', type=int, default=3)
    parser.add_argument('--rate', type=float, default=1.5e-3)
    parser.add_argument('--alone', type=float, default=0.15, help='share of time for step 1')
    parser.add_argument('--seed', type=int, default=1)
    parser.add_argument('--resume', type=Path, help='weights to go on from')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    tokenizer = data.train_tokenizer(Shape.vocab)
    tokenizer.save(str(args.out / 'tokenizer.json'))
    shape = Shape(vocab=tokenizer.get_vocab_size())
    model = DemoModel(shape).to(memory_format=torch.channels_last)
    if args.resume:
        model.load_state_dict(torch.load(args.resume)['weights'])
    print(shape, f'{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M weights', flush=True)
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{'params': decay, 'weight_decay': 0.05},
                                   {'params': rest, 'weight_decay': 0.0}],
                                  lr=args.rate, betas=(0.9, 0.98))
    batches = Batches(shape, data.Sequences(tokenizer, shape.tokens), args.batch, args.turns,
                      args.seed)
    loader = iter(DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=6))
    began, step, saved = time.time(), 0, time.time()
    mean = np.zeros(3)
    while (done := (time.time() - began) / 60 / args.minutes) < 1:
        language = done >= args.alone
        rate = args.rate * min(1, (step + 1) / 100) * 0.5 * (1 + np.cos(np.pi * done))
        for group in optimizer.param_groups:
            group['lr'] = max(rate, args.rate * 0.01)
        with torch.autocast('cpu', torch.bfloat16):
            cell, answer, right = losses(model, next(loader), language)
        (cell * (1 if not language else 0.5) + answer).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        mean += (cell.item(), answer.item(), right.item())
        if step % 25 == 0:
            mean /= 25
            print(f'{(time.time() - began) / 60:6.1f} min, step {step}: cells {mean[0]:.3f} '
                  f'({100 * mean[2]:.1f} % right), answers {mean[1]:.4f}', flush=True)
            mean[:] = 0
        if time.time() - saved > 240:
            saved = time.time()
            save(model, args.out)
    save(model, args.out)


def save(model: DemoModel, folder: Path) -> None:
    """Write the weights; the file is whole or absent."""
    part = folder / 'weights.part'
    torch.save({'shape': model.shape.asdict(), 'weights': model.state_dict()}, part)
    part.rename(folder / 'weights.pt')


if __name__ == '__main__':
    main()
