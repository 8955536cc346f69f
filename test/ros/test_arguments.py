"""The command line: what is taken as it was typed, and what is said of the rest."""

from __future__ import annotations

import subprocess
import sys

from hobot_vlm.config import NodeConfig, read_parameter_file
from hobot_vlm.errors import ConfigError
from hobot_vlm.ros.arguments import as_typed, before_ros, explained, same
import pytest

NODE = 'from hobot_vlm.ros.main import main; main()'
PLAY = 'from hobot_vlm.ros.main import play_images; play_images()'


def run(program, *arguments):
    """Run a program to its end."""
    return subprocess.run(
        [sys.executable, '-c', program, *arguments], capture_output=True, text=True, timeout=60
    )


def test_what_is_not_for_ros():
    assert before_ros(['--ros-args', '-p', 'a:=b']) == []
    assert before_ros(['x', '--ros-args', '-p', 'a:=b', '--', 'y']) == ['x', 'y']
    assert before_ros(['-p', 'a:=b', '--ros-args', '--ros-args']) == ['-p', 'a:=b']


def test_what_was_typed(tmp_path):
    file = tmp_path / 'some.yaml'
    file.write_text('/**:\n  ros__parameters:\n    fit: off\n    user_prompt: 1.50\n')
    arguments = ['--ros-args', '-p', 'fit:=yes', '--params-file', str(file)]
    arguments += ['--param', 'hobot_vlm:user_prompt:=a:=b', '-p', 'nothing']
    assert as_typed(arguments) == {'fit': ['yes', 'off'], 'user_prompt': ['1.50', 'a:=b']}


@pytest.mark.parametrize('levels', [3, 40])
def test_aliases_of_aliases_in_a_parameter_file(tmp_path, levels):
    """Nine to the power of forty values are not read; ROS takes no aliases at all."""
    file = tmp_path / 'some.yaml'
    lines = ['/**:', '  ros__parameters:', '    a0: &a0 [x, x]']
    for level in range(1, levels):
        lines.append(f'    a{level}: &a{level} [{", ".join([f"*a{level - 1}"] * 9)}]')
    file.write_text('\n'.join(lines))
    assert as_typed(['--params-file', str(file)]) == {}
    done = run(NODE, '--ros-args', '--params-file', str(file))
    assert done.returncode == 2
    assert 'aliasing' in done.stderr and str(file) in done.stderr
    assert len(done.stderr) < 500
    # and where our own reader meets them
    file.write_text('\n'.join([*lines, f'    temperature: *a{levels - 1}']))
    with pytest.raises(ConfigError) as caught:
        NodeConfig.from_flat({'temperature': read_parameter_file(file)['temperature']})
    assert 'temperature is [[' in str(caught.value)
    assert len(str(caught.value)) < 5000


def test_a_message_does_not_carry_the_value():
    for name, value in (('image_qos', 'x' * 10**6), ('n_ctx', 10**4000), ('seed', [0] * 10**5)):
        with pytest.raises(ConfigError) as caught:
            NodeConfig.from_flat({name: value})
        assert str(caught.value).startswith(f'{name} is ')
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    'typed, value, is_same',
    [
        ('yes', True, True),
        ('Off', False, True),
        ('yes', False, False),
        ('1.50', 1.5, True),
        ('1.5', 1.5, True),
        ('0x10', 16, True),
        ('1e3', 1000.0, True),
        ('.inf', float('inf'), True),
        ('16', 17, False),
        ('red', True, False),
        ('red', 1, False),
    ],
)
def test_the_words_behind_a_value(typed, value, is_same):
    assert same(typed, value) == is_same


@pytest.mark.parametrize('program, name', [(NODE, 'hobot_vlm'), (PLAY, 'play_images')])
def test_help_and_arguments_that_nobody_reads(program, name):
    done = run(program, '--help')
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.startswith(f'usage: {name} --ros-args')
    done = run(program, '-p', 'feed_type:=1')
    assert done.returncode == 2
    assert 'did you mean --ros-args -p feed_type:=1?' in done.stderr
    done = run(program, 'picture.png')
    assert done.returncode == 2
    assert "unknown arguments 'picture.png'" in done.stderr


@pytest.mark.parametrize(
    'arguments, says',
    [
        (['-p', 'user_prompt:=Describe: it'], "user_prompt is 'Describe: it', which ROS reads as"),
        (['-p', 'user_prompt:='], "user_prompt is '', which ROS"),
        (['-p', 'user_prompt:=[1, a]'], "user_prompt is '[1, a]', which"),
        (['-p', "user_prompt:='it"], 'user_prompt is "\'it", which'),
        (['-p', 'user_prompt:={a: 1}'], 'quote it twice'),
        (['-p', 'json_schema:={"a": 1}'], """as in -p 'json_schema:="{\\"a\\": 1}"'"""),
        (['--params-file', '/dev/zero'], '/dev/zero'),
        (['-p', 'user_prompt'], "'-p user_prompt'"),
        (['-r', 'a'], "remap rule: '-r a'"),
        (['-q'], "unknown ROS arguments: ['-q']"),
        (['--log-level', 'loud'], "'--log-level loud'"),
        (['--params-file', '/no/such.yaml'], '/no/such.yaml'),
    ],
)
def test_ros_arguments_that_cannot_be_read(arguments, says):
    """One line, and no traceback."""
    done = run(NODE, '--ros-args', *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count('\n') == 1, done.stderr


def test_a_value_of_thousands_of_brackets():
    said = explained(['-p', 'user_prompt:=' + '[' * 5000], ValueError())
    assert said.startswith("user_prompt is '[[[") and len(said) < 500


@pytest.mark.parametrize(
    'argument, says',
    [
        ('ros_img_sub_topic_name:=a b', "ros_img_sub_topic_name is 'a b': topic name must not"),
        ('text_msg_pub_topic_name:=/a//b', "text_msg_pub_topic_name is '/a//b'"),
        ('ros_string_sub_topic_name:=/9', "ros_string_sub_topic_name is '/9'"),
        ('result_pub_topic_name:=""', "result_pub_topic_name is ''"),
        ('lora:=nofile', 'lora'),
        ('image:=~/no such.png', 'image: picture'),
        ('state_file:=/dev/null', 'state_file is /dev/null, and that is no file'),
        ('state_file:=/no/such/folder/talk', 'state_file is /no/such/folder/talk: there is no'),
    ],
)
def test_a_value_that_cannot_be_is_named(argument, says):
    """Parameter, value and cure, in one line."""
    done = run(NODE, '--ros-args', '--log-level', 'warn', '-p', argument)
    assert done.returncode == 1
    assert says in done.stderr
    assert '~' not in done.stderr.replace("'~'", '')
    assert done.stderr.count('\n') == 1, done.stderr


def test_play_images_names_its_parameters():
    for argument, says in [
        ('rate:=fast', "rate is 'fast': expected a number"),
        ('loop:=3', "loop is '3': expected true or false"),
        ('topic:=a b', "topic is 'a b'"),
        ('folder:=~/no such folder', 'folder: cannot read /'),
        ('folder:=[1, 2]', 'folder is [1, 2]: expected text'),
    ]:
        done = run(PLAY, '--ros-args', '-p', argument)
        assert done.returncode == 1
        assert says in done.stderr
        assert done.stderr.count('\n') == 1, done.stderr
