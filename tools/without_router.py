"""
Copy an InternVL3.5-Flash checkpoint without its router, for llama.cpp's converter.

``python tools/without_router.py FOLDER TARGET`` leaves out the vision half and the router, whose
names ``convert_hf_to_gguf.py`` does not know; the language model keeps its weights and names. One
file of weights is in memory at a time. ``tools/export_encoder.py`` reads FOLDER as it is.

Needs torch and safetensors.
"""

from __future__ import annotations

import argparse
from pathlib import Path
import shutil
import sys

from safetensors import safe_open
from safetensors.torch import save_file

LANGUAGE = 'language_model.'
WEIGHTS = ('.safetensors', '.safetensors.index.json')


def copy(folder: Path, target: Path) -> int:
    """
    Copy a checkpoint.

    :return: how many tensors the copy has
    :raises SystemExit: there is no language model in the folder
    """
    files = sorted(folder.glob('*.safetensors'))
    target.mkdir(parents=True, exist_ok=True)
    count = 0
    for file in files:
        with safe_open(file, framework='pt') as tensors:
            kept = {
                name: tensors.get_tensor(name)
                for name in tensors.keys()
                if name.startswith(LANGUAGE)
            }
        if kept:
            save_file(kept, target / file.name, {'format': 'pt'})
            count += len(kept)
    if not count:
        sys.exit(f'{folder}: no *.safetensors file in it has tensors named {LANGUAGE}*')
    for path in folder.iterdir():
        if path.is_file() and not path.name.endswith(WEIGHTS):
            shutil.copy(path, target / path.name)
    return count


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('checkpoint', type=Path, help='folder of a Hugging Face checkpoint')
    parser.add_argument('target', type=Path, help='folder to write')
    args = parser.parse_args()
    print(f'{args.target}: {copy(args.checkpoint, args.target)} tensors')


if __name__ == '__main__':
    main()
