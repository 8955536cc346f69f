"""Every option of the configuration as a flag, with help, from one table."""

from __future__ import annotations

from dataclasses import fields
import re

from hobot_vlm.cli.main import parse
from hobot_vlm.cli.options import config_of, GROUPS
from hobot_vlm.config import Config
from hobot_vlm.option import default_of
import pytest
from shell import complaint

#: a value other than the default, for options whose type does not say one
OTHER = {
    'model': 'smolvlm2-256m',
    'fit': 'cover',
    'model_type': 1,
    'cache_type': 'q8_0',
    'flash_attention': 'on',
    'bpu_cores': '0,1',
    'tensor_split': '3,1',
    'split_mode': 'row',
}


def other(item):
    default = default_of(item)
    if item.name in OTHER:
        return OTHER[item.name]
    if isinstance(default, bool):
        return not default
    if isinstance(default, str):
        return 'some text'
    value = (item.metadata['low'] + item.metadata['high']) / 2
    return value if isinstance(default, float) else int(value)


@pytest.mark.parametrize('item', fields(Config), ids=lambda item: item.name)
def test_each_option_is_a_flag(item):
    value, flag = other(item), '--' + item.name.replace('_', '-')
    if isinstance(value, bool):
        words = [flag if value else flag.replace('--', '--no-')]
    else:
        words = [flag, str(value)]
    assert value != default_of(item)
    assert getattr(config_of(parse(['ask', 'hi', *words])), item.name) == value
    if not isinstance(value, bool):  # as in parameter files, and in one word
        for name in (flag, f'--{item.name}'):
            assert getattr(config_of(parse(['ask', f'{name}={value}'])), item.name) == value
    assert config_of(parse(['ask'])) == Config()


def test_help_is_in_groups_and_says_ranges(run, monkeypatch):
    monkeypatch.setenv('COLUMNS', '400')
    status, out, err = run('chat', '--help')
    assert (status, err) == (0, '')
    for heading in (*GROUPS, 'machine'):
        assert f'\n{heading}:\n' in out
    words = ' '.join(out.split())
    for item in fields(Config):
        flag = '--' + item.name.replace('_', '-')
        about = re.split(f'{flag}[ ,]', words, maxsplit=1)[1]
        assert item.metadata['doc'] in about
        if item.metadata['low'] is not None:
            assert f'({item.metadata["low"]:g} to ' in about
    assert out.index('--temperature') > out.index('\nanswer:\n') > out.index('--model ')


def test_a_flag_wins_over_set_and_set_over_the_file(tmp_path):
    file = tmp_path / 'params.yaml'
    file.write_text('/**: {ros__parameters: {top_k: 1, top_p: 0.1, seed: 1}}')
    words = ['--params-file', str(file), '--set', 'top_k=2', '--set', 'seed=2', '--seed', '3']
    config = config_of(parse(['ask', *words]))
    assert (config.top_p, config.top_k, config.seed) == (0.1, 2, 3)


@pytest.mark.parametrize(
    ('words', 'hint'),
    [
        (
            ('ask', 'hi', '--temprature', '1'),
            'unknown argument: --temprature; did you mean --temp',
        ),
        (('ask', 'hi', '--modle=x'), 'did you mean --model?'),
        (('ask', 'hi', '--temp', '1'), 'unknown argument: --temp'),  # no abbreviations
        (('asc', 'hi'), "there is no command 'asc'; did you mean ask?"),
        (('donwload', 'demo'), 'did you mean download?'),
        (('models', 'extra'), 'unknown argument: extra'),
    ],
)
def test_what_was_meant_is_said(run, words, hint):
    status, out, err = run(*words)
    assert status == 2 and out == '' and hint in err and 'usage: vlm' in err


@pytest.mark.parametrize(
    ('name', 'meant'),
    [
        ('smolvlm2-265m', 'smolvlm2-256m'),
        ('smolvlm', 'smolvlm-256m'),
        ('SmolVLM2-500M', 'smolvlm2-500m'),
        ('internvl3', 'internvl3-1b'),
        ('InternVL3_5-2B', 'internvl3.5-2b'),
        ('OpenGVLab/InternVL2_5-1B', 'internvl2.5-1b'),
        ('OpenGVLab/InternVL3-1B-Instruct', 'internvl3-1b'),
        ('dmeo', 'demo'),
    ],
)
def test_the_right_model_is_suggested(run, name, meant):
    for words in (('ask', 'hi', '-m', name), ('download', name)):
        assert f'did you mean {meant}?' in complaint(run(*words))


def test_no_model_is_suggested_where_none_is_like_it(run):
    assert "no model 'llava-onevision'. `vlm models` lists" in complaint(
        run('ask', 'hi', '-m', 'llava-onevision')
    )
