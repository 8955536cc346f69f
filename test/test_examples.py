"""The examples without ROS run as they stand, with the bundled model; layouts name real topics."""

from __future__ import annotations

import json
from pathlib import Path
import re
import runpy
import sys

from hobot_vlm.ros import topics
import pytest
import yaml

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / 'examples'
#: what each of the model cards' examples says, among other things
SAYS = {
    'text': 'demo model of hobot_vlm',
    'single_image': 'automobile in the middle',
    'multi_turn': 'Assistant: There is a dog on the left.\n',
    'multi_image_combined': 'a dog on the left and a sunflower on the right',
    'multi_image_separate': 'First picture: There is a dog',
    'batch': 'User: Describe the picture.\nAssistant: There is a dog',
    'video': 'Assistant: There is',
    'streaming': 'There is a dog on the left, an automobile in the middle',
}


def test_every_example_is_listed_and_run():
    listed = (EXAMPLES / 'README.md').read_text(encoding='utf-8')
    for path in EXAMPLES.iterdir():
        assert path.name == 'README.md' or f']({path.name})' in listed
    assert {path.stem for path in (EXAMPLES / 'internvl').glob('*.py')} == set(SAYS)


@pytest.mark.parametrize('name', SAYS)
def test_an_example_of_the_model_cards(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', [f'{name}.py'])
    runpy.run_path(str(EXAMPLES / 'internvl' / f'{name}.py'), run_name='__main__')
    assert SAYS[name] in capsys.readouterr().out


def test_the_client_is_short():
    lines = (EXAMPLES / 'ask.py').read_text(encoding='utf-8').splitlines()
    code = [line for line in lines if line and not line.startswith(('"""', 'import', 'from'))]
    assert len(code) <= 15


def known(topic):
    """Whether the node has a topic."""
    names = [re.escape(t.name.replace('~', '/hobot_vlm')) for t in topics.ALL]
    return any(re.fullmatch(name.replace('<name>', r'\w+'), topic) for name in names)


def test_the_layout_of_rviz():
    layout = yaml.safe_load((EXAMPLES / 'hobot_vlm.rviz').read_text(encoding='utf-8'))
    displays = layout['Visualization Manager']['Displays']
    assert len(displays) == 2
    for display in displays:
        assert display['Class'] == 'rviz_default_plugins/Image'
        assert known(display['Topic']['Value']), display['Topic']


def test_the_layout_of_foxglove():
    text = (EXAMPLES / 'hobot_vlm.foxglove.json').read_text(encoding='utf-8')
    layout = json.loads(text)
    placed = set(re.findall(r'"(?:first|second)": "([^"]+)"', text))
    assert placed == set(layout['configById'])
    for topic in re.findall(r'"(/[\w/]+)(?:\.data)?"', text):
        assert known(topic), topic
    asked = json.loads(layout['configById']['Publish!prompt']['value'])
    assert set(asked) == {'data'}
