"""What the configuration takes and refuses, and what it says."""

from __future__ import annotations

from dataclasses import fields, FrozenInstanceError
import math

from hobot_vlm.config import Config, NodeConfig, read_parameter_file
from hobot_vlm.errors import ConfigError
from hypothesis import given, HealthCheck, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import yaml

OPTIONS = {item.name: item for item in fields(NodeConfig)}
RANGES = [
    (n, i.metadata['low'], i.metadata['high'])
    for n, i in OPTIONS.items()
    if i.metadata['low'] is not None
]
CHOICES = [(n, i.metadata['choices']) for n, i in OPTIONS.items() if i.metadata['choices']]

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.integers(min_value=10**300)
    | st.complex_numbers()
    | st.just(np.zeros(3)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


def write(tmp_path, text):
    path = tmp_path / 'params.yaml'
    path.write_text(text, encoding='utf-8')
    return path


# -- every option -----------------------------------------------------------------------------


@pytest.mark.parametrize('name', OPTIONS)
def test_an_option_says_what_it_is_and_takes_its_default(name):
    item = OPTIONS[name]
    assert item.metadata['doc']
    assert getattr(NodeConfig.from_flat({name: item.default}), name) == item.default
    # as from a command line
    text = str(list(item.default) if isinstance(item.default, tuple) else item.default)
    assert getattr(NodeConfig.from_flat({name: text}), name) == item.default


@pytest.mark.parametrize(('name', 'low', 'high'), RANGES)
def test_a_range_holds_at_both_ends(name, low, high):
    step = 1 if isinstance(OPTIONS[name].default, int) else 1e-6
    for good in (low, high, str(low)):
        assert getattr(NodeConfig.from_flat({name: good}), name) == float(good)
    for bad in (low - step, high + step):
        with pytest.raises(ConfigError, match=f'{name} is .*: expected {low} to {high}') as caught:
            NodeConfig.from_flat({name: bad})
        assert caught.value.name == name


@pytest.mark.parametrize(('name', 'choices'), CHOICES)
def test_only_the_choices_are_taken(name, choices):
    for choice in choices:
        assert getattr(NodeConfig.from_flat({name: choice}), name) == choice
    bad = max(choices) + 1 if isinstance(choices[0], int) else 'another'
    with pytest.raises(ConfigError, match=f'{name} is .*expected one of') as caught:
        NodeConfig.from_flat({name: bad})
    assert all(repr(choice) in str(caught.value) for choice in choices)


@pytest.mark.parametrize('name', OPTIONS)
def test_another_type_is_refused(name):
    for bad in (None, [1], {'a': 1}, b'1', object()):
        if (name, bad) == ('json_schema', {'a': 1}):
            continue  # a schema
        with pytest.raises(ConfigError, match=name):
            NodeConfig.from_flat({name: bad})


@pytest.mark.parametrize('name', [n for n, i in OPTIONS.items() if type(i.default) is float])
@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf, 'nan', 'inf', '', 'much', True])
def test_a_number_is_a_finite_number(name, bad):
    with pytest.raises(ConfigError, match=name):
        NodeConfig.from_flat({name: bad})


@pytest.mark.parametrize('name', [n for n, i in OPTIONS.items() if type(i.default) is int])
@pytest.mark.parametrize('bad', [1.5, '1.5', True, '', 'many', math.nan])
def test_a_count_is_a_whole_number(name, bad):
    with pytest.raises(ConfigError, match=name):
        NodeConfig.from_flat({name: bad})


@pytest.mark.parametrize('name', [n for n, i in OPTIONS.items() if type(i.default) is bool])
def test_a_switch_is_true_or_false(name):
    for true in (True, 1, 'true', 'True', '1', 'yes'):
        assert getattr(NodeConfig.from_flat({name: true}), name) is True
    for false in (False, 0, 'false', '0', 'no'):
        assert getattr(NodeConfig.from_flat({name: false}), name) is False
    for bad in (2, 'on off', 1.0, ''):
        with pytest.raises(ConfigError, match=name):
            NodeConfig.from_flat({name: bad})


@given(st.sampled_from(sorted(OPTIONS)), anything)
def test_no_value_does_more_harm_than_a_config_error(name, value):
    try:
        config = NodeConfig.from_flat({name: value})
    except ConfigError as exc:
        assert name in str(exc)
        return
    assert type(getattr(config, name)) is type(OPTIONS[name].default)
    config.cores()
    # what was taken once is taken again, as it then stands
    assert NodeConfig.from_flat({name: getattr(config, name)}) == config


@given(st.text())
def test_no_system_prompt_does_more_harm_than_a_config_error(text):
    try:
        assert isinstance(Config.from_flat({'system_prompt': text}).system_text(), str)
    except ConfigError as exc:
        assert 'system_prompt' in str(exc)


@given(st.dictionaries(st.text() | st.integers(), anything))
def test_no_name_does_more_harm_than_a_config_error(values):
    try:
        Config.from_flat(values)
    except ConfigError:
        return
    assert set(values) <= set(OPTIONS)


# -- names ------------------------------------------------------------------------------------


def test_a_wrong_name_is_refused_with_the_likely_one():
    with pytest.raises(ConfigError, match="no option 'temprature'; did you mean temperature?"):
        Config.from_flat({'temprature': 1})


def test_the_engine_has_no_options_of_the_node():
    with pytest.raises(ConfigError, match='feed_type'):
        Config.from_flat({'feed_type': 1})


def test_it_is_frozen():
    with pytest.raises(FrozenInstanceError):
        Config().n_ctx = 1


@pytest.mark.parametrize(
    ('text', 'cores'), [('', ()), ('0', (0,)), ('0,1', (0, 1)), (' 2 , 0 ', (2, 0))]
)
def test_bpu_cores(text, cores):
    assert Config(bpu_cores=text).cores() == cores


@pytest.mark.parametrize('bad', ['a', '0;1', '-1', '0,x', '²'])
def test_wrong_bpu_cores(bad):
    with pytest.raises(ConfigError, match='bpu_cores'):
        Config(bpu_cores=bad)


# -- the system prompt ------------------------------------------------------------------------


def test_a_system_prompt_is_text_or_a_file(tmp_path):
    path = tmp_path / 'prompt.txt'
    path.write_text('  You are a robot.\n你好\n', encoding='utf-8')
    assert Config(system_prompt=str(path)).system_text() == 'You are a robot.\n你好'
    assert Config(system_prompt='You are a robot.').system_text() == 'You are a robot.'
    assert Config().system_text() == ''


def test_a_system_prompt_may_be_longer_than_a_file_name():
    for text in ('be kind ' * 100, '请' * 100, 'a' * 5000, '~nobody-of-that-name'):
        assert Config(system_prompt=text).system_text() == text


def test_a_missing_or_unreadable_system_prompt_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match='there is no file .*absent.txt'):
        Config(system_prompt=str(tmp_path / 'absent.txt')).system_text()
    (tmp_path / 'binary.txt').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ConfigError, match='cannot read the text file .*binary.txt'):
        Config(system_prompt=str(tmp_path / 'binary.txt')).system_text()


# -- parameter files --------------------------------------------------------------------------


def test_a_ros_parameter_file(tmp_path):
    path = write(
        tmp_path,
        """
/**:
  ros__parameters:
    model: internvl3-1b
    temperature: 1
hobot_vlm:
  ros__parameters:
    feed_type: 2
    temperature: 0.5
""",
    )
    node = NodeConfig.from_yaml(path)
    assert (node.model, node.feed_type, node.temperature) == ('internvl3-1b', 2, 0.5)
    engine = Config.from_yaml(path, n_ctx='128', model='demo')
    assert (engine.model, engine.n_ctx, engine.temperature) == ('demo', 128, 0.5)


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('', 'expected `/\\*\\*:`'),
        ('[1, 2]', 'expected `/\\*\\*:`'),
        ('node: 3', 'expected `ros__parameters:` below'),
        ('node: {ros__parameters: 3}', 'expected `ros__parameters:` below'),
        ('node: {ros__parameters: {n_ctxx: 3, 4: 5}}', "there is no option '?4'?"),
        ('node: {ros__parameters: {n_ctx: many}}', 'n_ctx'),
        ('a: [', 'cannot read the parameter file'),
        ('a: 2001-99-99', 'cannot read the parameter file'),
        ('&a [*a', 'cannot read the parameter file'),
    ],
)
def test_a_wrong_parameter_file_says_where(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words):
        Config.from_yaml(write(tmp_path, text))


def test_a_missing_or_binary_parameter_file(tmp_path):
    with pytest.raises(ConfigError, match='absent.yaml'):
        read_parameter_file(tmp_path / 'absent.yaml')
    with pytest.raises(ConfigError, match='more than'):
        read_parameter_file('/dev/zero')
    for text in ('[' * 100_000, '{a: ' * 5000 + '1' + '}' * 5000, f'? {"x" * 100_000}\n: 1'):
        with pytest.raises(ConfigError) as caught:
            read_parameter_file(write(tmp_path, text))
        assert len(str(caught.value)) < 700
    (tmp_path / 'binary.yaml').write_bytes(b'\xff\xfe\xff')
    with pytest.raises(ConfigError, match='binary.yaml'):
        read_parameter_file(tmp_path / 'binary.yaml')


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text()
    | anything.map(lambda x: repr(x))
    | st.dictionaries(
        st.text(),
        st.dictionaries(
            st.just('ros__parameters'),
            st.dictionaries(
                st.sampled_from(sorted(OPTIONS)),
                st.integers() | st.text() | st.floats() | st.booleans(),
            ),
        ),
    ).map(yaml.safe_dump)
)
def test_no_parameter_file_does_more_harm_than_a_config_error(tmp_path, text):
    path = tmp_path / 'random.yaml'
    path.write_bytes(text.encode('utf-8', 'surrogatepass'))
    try:
        NodeConfig.from_yaml(path)
    except ConfigError:
        pass
