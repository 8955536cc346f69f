"""
Make the small random models of the tests, and store what transformers answers with them.

``python tools/make_test_models.py`` writes

* ``test/models/``: a text-only Llama, an InternVL and a SmolVLM as llama.cpp and ONNX files,
* ``test/data/parity_*``: the answers that transformers gives in float32,
* ``build/test_models/``: the same InternVL and SmolVLM as Hugging Face checkpoints.

``--check`` leaves test/ alone, makes everything anew and compares the answers with those stored.

Needs torch, transformers with num2words, tokenizers, gguf, onnx, onnxscript and onnxruntime.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import sys
import tempfile
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'test'))  # for the pictures

from export_encoder import export  # noqa: E402
from test_models import gguf_files, models, reference  # noqa: E402
import transformers  # noqa: E402

#: largest difference of logits that another build of torch may make
TOLERANCE = 1e-3


def make(out: Path, build: Path) -> None:
    """Write models, checkpoints and answers."""
    data = out / 'data'
    data.mkdir(parents=True, exist_ok=True)
    decoders: dict[str, np.ndarray] = {}
    logits: dict[str, np.ndarray] = {}
    choices: dict[str, dict[str, float]] = {}
    told: dict[str, Any] = {
        'made by': f'transformers {transformers.__version__}, float32, CPU, PIL image processors',
        'pictures': 'test/pictures.py: picture(width, height, seed)',
        'cases': {},
    }

    # 1. the language model without pictures
    plain = models.plain()
    folder = _folder(out, 'plain')
    gguf_files.write_decoder(
        plain.model, plain.vocabulary, folder / 'decoder.gguf', 'plain test model'
    )
    _keep(decoders, 'plain', reference.decoder_case(plain, reference.EMBEDDING_SEEDS['plain']))

    for family, maker in (('internvl', models.internvl), ('smolvlm', models.smolvlm)):
        # 2. the files of a model with pictures
        vlm = maker()
        language = vlm.decoder()
        folder = _folder(out, family)
        gguf_files.write_decoder(
            language.model, language.vocabulary, folder / 'decoder.gguf', f'{family} test model'
        )
        gguf_files.write_mmproj(vlm.model, vlm.processor, folder / 'mmproj.gguf')
        checkpoint = build / family
        vlm.model.save_pretrained(checkpoint)
        vlm.processor.image_processor.save_pretrained(checkpoint)
        vlm.processor.tokenizer.save_pretrained(checkpoint)
        export(checkpoint, folder / 'vision.onnx')
        # 3. its answers
        _keep(
            decoders, family, reference.decoder_case(language, reference.EMBEDDING_SEEDS[family])
        )
        for case in reference.SIZES:
            name = f'{family}/{case}'
            told['cases'][name], logits[name] = reference.vlm_case(family, vlm, case)
            print(
                f'{name}: {len(told["cases"][name]["ids"])} tokens, '
                f'{told["cases"][name]["tiles"]} tiles, '
                f'margin {told["cases"][name]["margin"]}'
            )
        choices |= {
            f'{family}/{case}': reference.choices_case(family, vlm, case)
            for case in ('single', 'text')
        }
    _check_answers(told['cases'], decoders)
    np.savez_compressed(data / 'parity_decoder.npz', **decoders)
    np.savez_compressed(data / 'parity_vlm.npz', **logits)
    (data / 'parity_choices.json').write_text(
        json.dumps(choices, ensure_ascii=False, indent=1) + '\n', encoding='utf-8'
    )
    (data / 'parity_vlm.json').write_text(
        json.dumps(told, ensure_ascii=False, indent=1) + '\n', encoding='utf-8'
    )


def compare(stored: Path, fresh: Path) -> list[str]:
    """Compare two sets of answers; give what differs."""
    wrong = []
    old, new = (
        json.loads((path / 'data' / 'parity_vlm.json').read_text('utf-8'))['cases']
        for path in (stored, fresh)
    )
    wrong += [
        f'case {name}'
        for name in sorted(old.keys() | new.keys())
        if _without_margin(old.get(name)) != _without_margin(new.get(name))
    ]
    for file in ('parity_decoder.npz', 'parity_vlm.npz'):
        with np.load(stored / 'data' / file) as old, np.load(fresh / 'data' / file) as new:
            for name in sorted(set(old.files) | set(new.files)):
                if (
                    name not in old.files
                    or name not in new.files
                    or old[name].shape != new[name].shape
                    or np.abs(old[name] - new[name]).max() > TOLERANCE
                ):
                    wrong.append(f'{name} in {file}')
    old, new = (
        json.loads((path / 'data' / 'parity_choices.json').read_text('utf-8'))
        for path in (stored, fresh)
    )
    wrong += [
        f'choices of {name}'
        for name in sorted(old.keys() | new.keys())
        if old.get(name, {}).keys() != new.get(name, {}).keys()
        or any(abs(old[name][text] - new[name][text]) > TOLERANCE for text in old[name])
    ]
    return wrong


def _without_margin(case: dict[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (case or {}).items() if key != 'margin'}


def _folder(out: Path, name: str) -> Path:
    folder = out / 'models' / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _keep(store: dict[str, np.ndarray], name: str, values: dict[str, np.ndarray]) -> None:
    store.update((f'{name}/{key}', value) for key, value in values.items())


def _check_answers(cases: dict[str, Any], decoders: dict[str, np.ndarray]) -> None:
    """Refuse answers that a rounding error could turn into others."""
    margins = {name: case['margin'] for name, case in cases.items()}
    margins.update(
        (name, float(value)) for name, value in decoders.items() if name.endswith('/margin')
    )
    close = {name: margin for name, margin in margins.items() if margin < reference.MARGIN}
    if close:
        sys.exit(f'two tokens are nearly equal in {close}: change a seed in reference.py')


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('--out', type=Path, default=ROOT / 'test')
    parser.add_argument('--build', type=Path, default=ROOT / 'build' / 'test_models')
    parser.add_argument(
        '--check',
        action='store_true',
        help='write only --build; compare the answers with those in --out',
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    if not args.check:
        make(args.out, args.build)
        return
    with tempfile.TemporaryDirectory() as scratch:
        make(Path(scratch), args.build)
        wrong = compare(args.out, Path(scratch))
    if wrong:
        sys.exit('these differ from what is stored: ' + ', '.join(wrong))
    print('everything is as stored')


if __name__ == '__main__':
    main()
