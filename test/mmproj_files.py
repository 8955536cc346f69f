"""Small mmproj files: those of the test models stored in other formats, and any other shape."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
import sys
from typing import Any

import gguf
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

from make_bench_encoders import Shape, write  # noqa: E402

MODELS = ROOT / 'test' / 'models'
KINDS = gguf.GGMLQuantizationType


def internvl_shape(**changes: Any) -> Shape:
    """Give a small InternVL encoder: 4 x 4 patches become 4 embeddings."""
    small = {
        'projector': 'internvl',
        'side': 56,
        'patch': 14,
        'width': 64,
        'inner': 96,
        'layers': 2,
        'heads': 4,
        'merge': 2,
        'n_embd': 32,
    }
    return Shape(**{**small, **changes})


def smolvlm_shape(**changes: Any) -> Shape:
    """Give a small SmolVLM encoder: 4 x 4 patches become 4 embeddings."""
    return internvl_shape(**{'projector': 'idefics3', 'longest': 224, **changes})


def made(path: Path, shape: Shape, form: str = 'q8_0', seed: int = 0) -> Path:
    """Write an encoder of a shape with random weights."""
    write(path, 'a test', shape, form, seed)
    return path


def rewritten(
    source: Path, target: Path, change: Callable[[str, np.ndarray], tuple[np.ndarray, Any]]
) -> Path:
    """
    Copy a file of plain numbers with other tensors.

    :param change: name, float32 -> bytes or numbers, and how they are stored
    """
    reader = gguf.GGUFReader(str(source))
    writer = gguf.GGUFWriter(str(target), 'clip')
    for field in reader.fields.values():
        if field.name.startswith('GGUF.') or field.name == 'general.architecture':
            continue
        inner = field.types[1] if len(field.types) > 1 else None
        writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        values = np.array(tensor.data, np.float32)
        numbers, kind = change(tensor.name, values)
        writer.add_tensor(tensor.name, numbers, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def quantised(source: Path, target: Path, kind: Any) -> Path:
    """Copy a file with its matrices in another format."""

    def change(name: str, values: np.ndarray) -> tuple[np.ndarray, Any]:
        matrix = values.ndim == 2 and 'position' not in name
        stored = kind if matrix else KINDS.F32
        return gguf.quants.quantize(values, stored), stored

    return rewritten(source, target, change)
