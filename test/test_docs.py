"""What the documents say: tables, links, options and examples agree with the code."""

from __future__ import annotations

from dataclasses import fields, replace
from importlib.util import module_from_spec, spec_from_file_location
import json
import os
from pathlib import Path
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

from hobot_vlm import catalogue
from hobot_vlm.cli.main import main
from hobot_vlm.node_config import NodeConfig
from hobot_vlm.ros.inbox import Prompt, Stamp
from hobot_vlm.ros.outcome import ImageInfo, Outcome
from hobot_vlm.values import Box, Point, Reply
import pytest

ROOT = Path(__file__).parents[1]
READMES = ('README.md', 'README_cn.md')
PAIRS = (
    READMES,
    ('docs/parameters.md', 'docs/parameters_cn.md'),
    ('docs/node.md', 'docs/node_cn.md'),
    ('docs/models.md', 'docs/models_cn.md'),
    ('docs/many_at_once.md', 'docs/many_at_once_cn.md'),
    ('docs/rdk.md', 'docs/rdk_cn.md'),
    ('docs/remote.md', 'docs/remote_cn.md'),
    ('docs/serving.md', 'docs/serving_cn.md'),
    ('docs/machines.md', 'docs/machines_cn.md'),
    ('docs/coming_from_hobot_llamacpp.md', 'docs/coming_from_hobot_llamacpp_cn.md'),
)
DOCS = [ROOT / name for name in (*READMES, 'CONTRIBUTING.md', 'hobot_vlm/demo/MODEL_CARD.md')]
DOCS += sorted((ROOT / 'docs').glob('*.md'))
EACH = pytest.mark.parametrize('path', DOCS, ids=lambda path: path.stem)
PARAMETERS = {item.name for item in fields(NodeConfig)}


def prose(text: str) -> str:
    """Give a document without its code blocks."""
    return re.sub(r'^```.*?^```', '', text, flags=re.MULTILINE | re.DOTALL)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```', text, re.MULTILINE | re.DOTALL)


def command_lines(path: Path) -> list[list[str]]:
    """Give the commands of all shell blocks, in words."""
    found = []
    for block in blocks(path.read_text(encoding='utf-8'), 'bash'):
        for line in block.replace('\\\n', ' ').splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch('[A-Z_]+=.*', words[0]):
                words.pop(0)
            if words:
                found.append(words)
    return found


def anchors(text: str) -> set[str]:
    """Give the anchors that GitHub makes of the headings."""
    headings = re.findall(r'^#+ (.*)$', prose(text), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', h).strip().lower().replace(' ', '-') for h in headings}


@pytest.fixture(scope='module')
def make_tables():
    spec = spec_from_file_location('make_tables', ROOT / 'tools' / 'make_tables.py')
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- tables -----------------------------------------------------------------------------------


def test_the_tables_are_up_to_date(make_tables):
    described = {False: set(), True: set()}
    for file, (name, chinese) in make_tables.PLACES.items():
        text = (ROOT / file).read_text(encoding='utf-8')
        assert text == make_tables.with_table(text, name, chinese), (
            'run: python tools/make_tables.py'
        )
        described[chinese] |= set(re.findall(r'^\| `([\w/]+)`', text, re.MULTILINE))
    expected = PARAMETERS | {'/image', '/hobot_vlm/reply', '/hobot_vlm/cancel'}
    assert described[False] == described[True] >= expected


def test_every_parameter_has_chinese_words_and_no_other(make_tables):
    assert set(make_tables.CHINESE) == PARAMETERS
    words = [*make_tables.CHINESE.values(), *make_tables.CHINESE_TOPICS.values()]
    assert all(re.search('[\u4e00-\u9fff]', text) for text in words)


@pytest.mark.parametrize(
    ('name', 'phrase'),
    [('docs/parameters.md', 'accepted, so that'), ('docs/parameters_cn.md', '只是为了兼容')],
)
def test_the_parameters_without_effect_are_named(name, phrase):
    sources = [
        path.read_text(encoding='utf-8')
        for path in (ROOT / 'hobot_vlm').rglob('*.py')
        if path.name not in ('config.py', 'node_config.py')
    ]
    unread = {p for p in PARAMETERS if not any(re.search(rf'\b{p}\b', s) for s in sources)}
    text = (ROOT / name).read_text(encoding='utf-8')
    named = [part for part in text.split('\n\n') if phrase in part]
    assert set(re.findall(r'`(\w+)`', ''.join(named))) == unread


@pytest.mark.parametrize('name', [*READMES, 'hobot_vlm/demo/MODEL_CARD.md'])
def test_no_figure_is_missing(name):
    text = (ROOT / name).read_text(encoding='utf-8')
    tables = re.findall(r'<!-- (?:bench|figures) -->(.*?)<!-- /', text, re.DOTALL)
    rows = [row for row in ''.join(tables).splitlines() if row.startswith('|')]
    assert len(rows) > 5
    assert not [row for row in rows if '…' in row]


@pytest.mark.parametrize('name', ['models.md', 'models_cn.md'])
def test_the_models_of_the_catalogue_are_listed(name):
    spec = spec_from_file_location('model_table', ROOT / 'tools' / 'make_model_table.py')
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (ROOT / 'docs' / name).read_text(encoding='utf-8')
    assert module.with_table(text, name) == text, 'run python tools/make_model_table.py'


@pytest.mark.parametrize('name', READMES)
def test_the_models_that_are_named_exist(name):
    text = prose((ROOT / name).read_text(encoding='utf-8'))
    listed = set(re.findall(r'`((?:internvl|smolvlm)[\w.]*-\w+)`', text))
    assert listed and listed <= set(catalogue.bundled())


# -- links ------------------------------------------------------------------------------------


@EACH
def test_every_link_leads_somewhere(path):
    for target in re.findall(r'\]\(([^)\s]+)\)', prose(path.read_text(encoding='utf-8'))):
        if '://' in target:
            continue
        name, _, anchor = target.partition('#')
        file = path.parent / name if name else path
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text(encoding='utf-8')), target


@EACH
def test_every_file_that_is_named_exists(path):
    text = prose(path.read_text(encoding='utf-8'))
    folders = 'tools|test|docs|config|launch|benchmarks|hobot_vlm'
    for name in re.findall(rf'`((?:{folders})/[\w./]*)`', text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r'`(\w+\.launch\.py)`', text):
        assert (ROOT / 'launch' / name).is_file(), name


@pytest.mark.parametrize('name', ['graph', 'machines'])
def test_the_drawings_are_well_formed(name):
    assert ElementTree.parse(ROOT / 'docs' / f'{name}.svg').getroot().tag.endswith('svg')


def tree(name: str) -> ElementTree.Element:
    root = ElementTree.parse(ROOT / 'docs' / name).getroot()
    assert root.tag.endswith('svg')
    return root


def test_both_graphs_are_the_same_but_for_words():
    english, chinese = tree('graph.svg'), tree('graph_cn.svg')
    for one, other in zip(english.iter(), chinese.iter(), strict=True):
        assert one.tag == other.tag
        assert {**one.attrib, 'font-family': ''} == {**other.attrib, 'font-family': ''}
        words = one.text or ''
        if re.search('[/~]|hobot_vlm$|·', words):  # names stay
            assert other.text == words


@pytest.mark.skipif(not shutil.which('bash'), reason='bash is not installed')
def test_the_recorded_terminals_are_true(tmp_path):
    """What a model suits this machine is said, and may be another than where it was recorded."""
    subprocess.run(
        [sys.executable, ROOT / 'tools' / 'make_terminal.py', '--out', tmp_path],
        check=True,
        timeout=100,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
    )
    for name in ('terminal.svg', 'terminal_cn.svg'):
        shown = terminal_words(ROOT / 'docs' / name)
        assert shown == terminal_words(tmp_path / name), 'run: python tools/make_terminal.py'
        assert '/bye' in shown


def terminal_words(path: Path) -> str:
    lines = [text.text or '' for text in ElementTree.parse(path).iter() if 'text' in text.tag]
    return re.sub(r'(?:internvl|smolvlm)[\d.]+-\d+[bm]', 'NAME', ' '.join(lines))


# -- commands ---------------------------------------------------------------------------------


def options_of_vlm(capsys, command: str) -> set[str]:
    with pytest.raises(SystemExit):
        main([command, '--help'])
    return set(re.findall(r'(?<![\w-])--?[a-z][\w-]*', capsys.readouterr().out))


@EACH
def test_every_command_of_vlm_is_understood(path, capsys):
    for words in command_lines(path):
        if Path(words[0]).name != 'vlm':
            continue
        known = options_of_vlm(capsys, words[1])
        for i, word in enumerate(words[2:], 2):
            assert not word.startswith('-') or word in known, word
            if word == '--set':
                NodeConfig.from_flat(dict([words[i + 1].split('=', 1)]))
            if word == '--model' or words[1] == 'download':
                catalogue.find(words[-1])
    for command, option in re.findall(
        r'`vlm (\w+) [^`]*?(--[\w-]+)', path.read_text(encoding='utf-8')
    ):
        assert option in options_of_vlm(capsys, command), option


@EACH
def test_every_parameter_of_the_node_is_one(path):
    for words in command_lines(path):
        if 'hobot_vlm' not in words:
            continue
        launched = 'launch' in words
        given = [word.partition(':=') for word in words if ':=' in word]
        given = [each for each in given if not each[0].startswith('qos_overrides.')]
        values = {name: value for name, _, value in given if not launched or name in PARAMETERS}
        NodeConfig.from_flat(values)
        for name in {name for name, _, _ in given} - PARAMETERS:
            assert f"'{name}': " in launch_arguments(words), name
    text = prose(path.read_text(encoding='utf-8'))
    for name in set(re.findall(r'(?:-p |`)(\w+):=', text)) - {'name', '名称'}:
        assert name in PARAMETERS or f"'{name}': " in launch_arguments([]), name


def launch_arguments(words: list[str]) -> str:
    """Give the source of the launch files that a command names, and of what all have."""
    files = [word for word in words if word.endswith('.launch.py')]
    paths = [ROOT / 'launch' / name for name in files] + [ROOT / 'hobot_vlm/ros/bringup.py']
    return '\n'.join(path.read_text(encoding='utf-8') for path in paths)


@EACH
def test_every_target_of_make_is_one(path):
    targets = re.findall(r'^([\w-]+):(?!=)', (ROOT / 'Makefile').read_text(), re.MULTILINE)
    used = re.findall(r'`make ([\w-]+)`', path.read_text(encoding='utf-8'))
    used += [words[1] for words in command_lines(path) if words[0] == 'make']
    assert set(used) <= set(targets)


# -- examples ---------------------------------------------------------------------------------


@pytest.mark.parametrize('name', READMES)
def test_the_python_example_runs(name, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (example,) = blocks((ROOT / name).read_text(encoding='utf-8'), 'python')
    exec(compile(example, name, 'exec'), {})
    said = capsys.readouterr().out.splitlines()
    assert said[-3] == 'The background is blue'
    assert isinstance(json.loads(said[-2])['dog'], bool)
    assert re.fullmatch('[0-9]{1,2}', said[-1])


@pytest.mark.parametrize('name', READMES)
def test_the_answer_below_the_picture_is_the_real_one(name, demo, sample):
    question, _, answer = (
        (ROOT / name).read_text(encoding='utf-8').partition('> **')[2].partition('**')
    )
    quoted = ' '.join(line[1:].strip() for line in answer.splitlines() if line.startswith('>'))
    assert demo.ask(question, sample).text == quoted.strip()


def test_the_reply_is_described_and_its_example_is_one():
    text = (ROOT / 'docs' / 'reply.md').read_text(encoding='utf-8')
    described = {
        name
        for cell in re.findall(r'^\| (`.*?`) \|', text, re.MULTILINE)
        for name in re.findall(r'\w+', cell)
    }
    image = ImageInfo('/image', Stamp(1, 2), 'camera', 0.5, 640, 360)
    image = replace(image, frames=(image,))
    found = {'boxes': (Box('dog', 1.5, 2, 3, 4),), 'points': (Point('dog', 1.5, 2),)}
    reply = Reply('!', thinking='...', choices={'!': 1.0}, model='m', **found)
    real = json.loads(Outcome(Prompt('?', Stamp(1, 2), id='1'), reply, (image,)).as_json())
    names = set(real) | set(real['timings'])
    names = names.union(*(real[name][0] for name in ('pictures', 'boxes', 'points')))
    assert described == names
    (example,) = map(json.loads, blocks(text, 'json'))
    for name in ('thinking', 'boxes', 'points', 'choices', 'id', 'model'):
        del real[name]
    del real['pictures'][0]['frames']
    assert shape(example) == shape(real)


def shape(value: object) -> object:
    """Give the names and types of a JSON value."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return type(value)


# -- two languages ----------------------------------------------------------------------------


@pytest.mark.parametrize('names', PAIRS, ids=lambda names: Path(names[0]).stem)
def test_both_languages_have_the_same_parts(names):
    english, chinese = ((ROOT / name).read_text(encoding='utf-8') for name in names)
    for pattern in (r'^#+ ', r'^```', r'^\| ', r'^- ', r'!\['):
        assert len(re.findall(pattern, english, re.MULTILINE)) == len(
            re.findall(pattern, chinese, re.MULTILINE)
        ), pattern
    assert without_words(english) == without_words(chinese)


def without_words(text: str) -> list[str]:
    """Give the code blocks without their comments and texts, which are translated."""
    return [re.sub(r'#.*|"[^"]*"', '', code) for code in blocks(text, r'\w*')]
