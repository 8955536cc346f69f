"""A damaged language model is refused by name, and never takes the process with it."""

from __future__ import annotations

from pathlib import Path
import subprocess
import sys

from folders import DEMO, MODELS
from hobot_vlm import ModelFileError, VLM
from hobot_vlm.llama.context import Context
from hobot_vlm.llama.model import Model
import pytest

GOOD = MODELS / 'plain' / 'decoder.gguf'
LOAD = """
import sys
from hobot_vlm.errors import VlmError
from hobot_vlm.llama.context import Context
from hobot_vlm.llama.model import Model
for path in sys.argv[1:]:
    try:
        model = Model(path)
        Context(model, n_ctx=64, threads=1).close()
        model.close()
        print('loaded')
    except VlmError as exc:
        print('refused')
"""


def cut(path: Path, share: float) -> Path:
    """Write the first part of a good file."""
    data = GOOD.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def test_a_missing_file(tmp_path):
    with pytest.raises(ModelFileError, match='no such file.*llm_model_name'):
        VLM.load(llm_model_name=tmp_path / 'none.gguf')


@pytest.mark.parametrize('share', [0.0, 0.00001, 0.01, 0.1, 0.5, 0.99])
def test_a_file_cut_short(tmp_path, share):
    path = cut(tmp_path / 'short.gguf', share)
    with pytest.raises(ModelFileError) as caught:
        Context(Model(path))
    assert (
        str(path) in str(caught.value)
        and 'expected' in str(caught.value)
        or ('give a .gguf' in str(caught.value) or 'again' in str(caught.value))
    )


@pytest.mark.parametrize(
    ('path', 'match'),
    [
        (DEMO / 'sample.png', 'no model of llama.cpp'),
        (DEMO / 'vision.onnx', 'no model of llama.cpp'),
        (MODELS / 'smolvlm' / 'mmproj.gguf', 'the decoder and not the mmproj'),
    ],
)
def test_a_file_of_another_kind(path, match):
    with pytest.raises(ModelFileError, match=match):
        VLM.load(llm_model_name=path)


def test_a_damaged_header_ends_no_process(tmp_path):
    """Bytes of the header, changed one at a time, in a process of its own."""
    data = GOOD.read_bytes()
    paths = []
    for at in range(4, 400, 9):
        path = tmp_path / f'{at}.gguf'
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x5A]) + data[at + 1 :])
        paths.append(str(path))
    done = subprocess.run(
        [sys.executable, '-c', LOAD, str(GOOD), *paths],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = done.stdout.split()
    assert outcomes[0] == 'loaded' and len(outcomes) == len(paths) + 1
    assert 'refused' in outcomes
