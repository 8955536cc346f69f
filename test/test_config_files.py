"""Every file in config/ can be used as it is."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from hobot_vlm import catalogue
from hobot_vlm.config import Config, NodeConfig
import pytest

CONFIG = Path(__file__).parents[1] / 'config'
FILES = sorted(CONFIG.glob('*.yaml'))
SUFFIX = {'rdkx5': '_rdkx5', 'rdks100': '_rdks100', 'any': '_pc'}


@pytest.fixture(autouse=True)
def only_our_catalogue(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CONFIG_HOME', str(tmp_path))


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_it_configures_node_and_engine(path):
    node, engine = NodeConfig.from_yaml(path), Config.from_yaml(path)
    for item in fields(Config):
        assert getattr(node, item.name) == getattr(engine, item.name)
    name, _, board = path.stem.partition('_')
    assert node.model == name
    if board:
        kind = next(kind for kind, suffix in SUFFIX.items() if suffix == f'_{board}')
        assert kind in catalogue.find(name).variants


def test_there_is_one_for_each_model_of_a_board_and_each_machine():
    expected = {'demo.yaml'} | {
        f'{model.name}{SUFFIX[kind]}.yaml'
        for model in catalogue.load().values()
        for kind in model.variants
        if len(model.variants) > 1
    }
    assert expected <= {path.name for path in FILES}


def test_the_system_prompt_is_read_from_its_file():
    path = CONFIG / 'system_prompt.txt'
    text = Config.from_flat({'system_prompt': str(path)}).system_text()
    assert text == path.read_text(encoding='utf-8').strip() and len(text) > 100
