"""The recipes of CONTRIBUTING.md, followed by their words in a copy of the package."""

from __future__ import annotations

from collections.abc import Callable
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys

from folders import MODELS
from hobot_vlm.config import FAMILIES
from hobot_vlm.llama.gguf import read_gguf
import pytest

ROOT = Path(__file__).parents[1]
WORDS = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')

FAMILY = f'''
"""Toys: SmolVLM's pictures, with a word before each."""

from .smolvlm import SmolVLM


class Toy(SmolVLM):
    name = 'toy'
    model_type = {len(FAMILIES)}
    default_fit = 'contain'

    def parts(self, images, labels, controls):
        return ['TOY ', *super().parts(images, labels, controls)]
'''

ENCODER = '''
"""The chip of a toy, whose file says how large tiles and embeddings are."""

import json

import numpy as np

from . import VisionEncoder
from ..errors import BackendMissing


class ToyEncoder(VisionEncoder):
    runtime = 'toy chip'

    def __init__(self, path):
        try:
            import toychip
        except ImportError as exc:
            raise BackendMissing('the toy chip has no driver', 'pip install toychip') from exc
        self.tile_size, self.tokens, self.n_embd = json.loads(path.read_text())
        self._run = toychip.run

    def encode(self, tiles):
        return self._run(tiles.pixels, self.tokens, self.n_embd)

    def close(self):
        pass
'''
DRIVER = """
import numpy as np


def run(pixels, tokens, n_embd):
    means = pixels.reshape(len(pixels), -1)[:, : tokens * n_embd].astype(np.float32)
    return means.reshape(len(pixels), tokens, n_embd) / 255 - 0.5
"""
READER = """
def _for_toys(path: Path, options: EncoderOptions) -> tuple[list[Candidate], dict[str, str]]:
    from .toy import ToyEncoder

    return [Candidate('toychip', 'toy chip', '', lambda: ToyEncoder(path))], {}


"""


class Copy:
    """
    A copy of the package, and the files in it that were edited or made.

    :ivar touched: their paths, as the recipes name them
    """

    def __init__(self, root: Path):
        self.root, self.touched = root, set()
        ignored = shutil.ignore_patterns('__pycache__', '*.png')
        for name in ('hobot_vlm', 'tools', 'docs', 'launch', 'config'):
            shutil.copytree(ROOT / name, root / name, ignore=ignored)

    def make(self, name: str, text: str) -> None:
        """Make a file."""
        assert not (self.root / name).exists()
        self.touched.add(name)
        (self.root / name).write_text(text)

    def edit(self, name: str, pattern: str, added: str) -> None:
        """Put a text behind what a pattern finds once in a file."""
        self.touched.add(name)
        path = self.root / name
        text, found = re.subn(
            pattern,
            lambda match: match.group() + added,
            path.read_text(encoding='utf-8'),
            flags=re.DOTALL | re.MULTILINE,
        )
        assert found == 1, pattern
        path.write_text(text, encoding='utf-8')

    def run(self, code: str, *paths: Path) -> str:
        """Run Python with the copy in place of the package."""
        env = os.environ | {'PYTHONPATH': os.pathsep.join(map(str, (self.root, *paths)))}
        done = subprocess.run(
            [sys.executable, '-c', code], cwd=self.root, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def tool(self, name: str) -> None:
        """Run a tool that writes what follows from the code."""
        self.run(f"import runpy; runpy.run_path('tools/{name}', run_name='__main__')")


@pytest.fixture
def copy(tmp_path) -> Copy:
    return Copy(tmp_path)


def named_in(heading: str) -> Callable[[str], bool]:
    """Tell what a recipe names: a file, or the folder in which it lies."""
    recipe = WORDS.partition(f'### {heading}\n')[2].partition('\n##')[0]
    names = set(re.findall(r'`((?:\w+/)+[\w.]*)`', recipe))
    assert names
    return lambda file: file in names or file.rpartition('/')[0] + '/' in names


def test_a_family(copy):
    copy.make('hobot_vlm/families/toy.py', FAMILY)
    copy.edit(
        'hobot_vlm/config.py',
        r"^FAMILIES = \{\n(    '[^\n]*\n)+",
        "    'toy': 'hobot_vlm.families.toy:Toy',\n",
    )
    copy.tool('make_tables.py')
    out = copy.run(f"""
from hobot_vlm import VLM, catalogue, config
import numpy as np
files = {{'model_file_name': '{MODELS}/smolvlm/vision.onnx',
          'llm_model_name': '{MODELS}/smolvlm/decoder.gguf'}}
with VLM.load(**files, max_tiles=1, n_predict=4) as vlm:
    reply = vlm.ask('?', np.zeros((40, 60, 3), np.uint8))
    print(vlm.family, reply.image_tokens > 0, reply.completion_tokens)
with VLM.load(**files, max_tiles=1, n_predict=4, model_type=1) as vlm:
    other = vlm.ask('?', np.zeros((40, 60, 3), np.uint8))
    print(vlm.family, reply.prompt_tokens > other.prompt_tokens)
print(config.NodeConfig.from_flat({{'model_type': '{len(FAMILIES)}'}}).model_type)
print(catalogue.FAMILY_NUMBERS['toy'])
from hobot_vlm.cli.main import main
main(['ask', '--help'])
""")  # fmt: skip
    number = len(FAMILIES)
    assert out.splitlines()[:4] == ['toy True 4', 'smolvlm True', f'{number}', f'{number}']
    assert f'{number} Toy,' in ' '.join(out.split())
    assert f'{number} Toy,' in (copy.root / 'docs/parameters.md').read_text()
    assert f'{number} 为 Toy，' in (copy.root / 'docs/parameters_cn.md').read_text()
    assert all(map(named_in('Add a family'), copy.touched))


def test_an_encoder(copy, tmp_path):
    tables = 'hobot_vlm/encoders/runtimes.py'
    copy.make('hobot_vlm/encoders/toy.py', ENCODER)
    copy.edit(tables, r'^CURES = \{\n', "    'toychip': 'pip install toychip',\n")
    copy.edit(tables, r'^MODULES = \{\n', "    'toychip': ('toychip',),\n")
    copy.edit(tables, r'^READERS: .*?\] = \{', "'.toy': _for_toys, ")
    copy.edit(
        tables, r'^    """Say that the graph is in the file itself."""\n\n\n', READER.lstrip()
    )
    driver = tmp_path / 'driver'
    driver.mkdir()
    (driver / 'toychip.py').write_text(DRIVER)
    facts = read_gguf(MODELS / 'smolvlm' / 'decoder.gguf').metadata
    width = facts[f'{facts["general.architecture"]}.embedding_length']
    (tmp_path / 'vision.toy').write_text(f'[96, 9, {width}]')
    out = copy.run(f"""
import importlib, sys
from hobot_vlm import VLM, BackendMissing
from hobot_vlm.vlm import runtimes
import numpy as np
files = {{'model_file_name': '{tmp_path}/vision.toy',
          'llm_model_name': '{MODELS}/smolvlm/decoder.gguf', 'max_tiles': 1, 'n_predict': 4}}
print(runtimes()['toychip'])
try:
    VLM.load(**files)
except BackendMissing as exc:
    print(exc)
sys.path.append('{driver}')
importlib.invalidate_caches()
print(repr(runtimes()['toychip']))
for device in ('auto', 'toychip'):
    with VLM.load(**files, encoder_device=device) as vlm:
        reply = vlm.ask('?', np.zeros((96, 96, 3), np.uint8))
        print(vlm.runtime, reply.image_tokens, reply.completion_tokens)
""")  # fmt: skip
    lines = out.splitlines()
    assert lines[0] == 'pip install toychip' and 'pip install toychip' in lines[1]
    assert lines[2:] == ["''", 'toy chip 9 4', 'toy chip 9 4']
    assert all(map(named_in('Add an encoder'), copy.touched))


@pytest.mark.parametrize('of_node', [False, True], ids=['engine', 'node'])
def test_an_option(copy, of_node):
    copy.edit(
        'hobot_vlm/config.py',
        rf'^class {"NodeConfig" if of_node else "Config"}\b[^\n]*\n    """[^\n]*"""\n\n',
        "    toys: int = option(3, 'toys in the room', 0, 9, live=True)\n",
    )
    copy.edit('tools/make_tables.py', r'^CHINESE = \{\n', "    'toys': '房间里的玩具',\n")
    copy.tool('make_tables.py')
    copy.tool('make_option_types.py')
    parameters = copy.root / 'docs/parameters.md'
    mark = ' *' if of_node else ''
    assert f'| `toys`{mark} | `3` | 0 … 9 | ✓ | toys in the room |' in parameters.read_text()
    chinese = (copy.root / 'docs/parameters_cn.md').read_text()
    assert f'| `toys`{mark} | `3` | 0 … 9 | ✓ | 房间里的玩具 |' in chinese
    types = (copy.root / 'hobot_vlm/option_types.py').read_text()
    assert ('    toys: int\n' in types) is not of_node
    out = copy.run(f"""
from hobot_vlm import VLM, ConfigError
from hobot_vlm.config import Config, NodeConfig, PER_REQUEST
from hobot_vlm.cli.main import main
print(NodeConfig.from_flat({{'toys': '4'}}).toys)
if not {of_node}:
    with VLM.load('demo', toys=5) as vlm:
        print(vlm.config.toys, vlm.ask('?', toys=6, n_predict=1).completion_tokens)
        try:
            vlm.ask('?', toys=10)
        except ConfigError as exc:
            print(exc)
    main(['ask', '--help'])
""")
    assert out.startswith('4\n')
    if not of_node:
        assert out.splitlines()[1:3] == ['5 1', 'toys is 10: expected 0 to 9']
        assert '--toys N' in out and 'toys in the room (0 to 9; default 3)' in ' '.join(
            out.split()
        )
    assert all(map(named_in('Add an option'), copy.touched))
