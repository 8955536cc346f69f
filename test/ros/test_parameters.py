"""Parameters as ROS users write them, and as the node reads them."""

from hobot_vlm.errors import ConfigError
from hobot_vlm.node_config import NodeConfig
from hobot_vlm.ros.arguments import as_typed
from hobot_vlm.ros.node import VlmNode
from hobot_vlm.ros.parameters import topic_options
import pytest
import rclpy
from rclpy.context import Context
from rclpy.parameter import Parameter


@pytest.fixture
def declared():
    """Give a function that starts a node with arguments and gives what it understood."""
    contexts = []

    def declare(*arguments):
        context = Context()
        contexts.append(context)
        line = ['--ros-args']
        for argument in arguments:
            line += ['-r' if argument.startswith('__') else '-p', argument]
        rclpy.init(args=line, context=context)
        node = VlmNode(typed=as_typed(line), context=context)
        try:
            return node.config, {
                name: node.get_parameter(name).value
                for name in ('temperature', 'user_prompt', 'stay_alive')
            }
        finally:
            node.destroy_node()

    yield declare
    for context in contexts:
        context.try_shutdown()


@pytest.mark.parametrize(
    ('arguments', 'pictures'),
    [
        ((), 'image'),
        (('image_transport:=embedding', 'feed_type:=1'), 'encode/embedding'),
        (('ros_img_sub_topic_name:=/image',), '/image'),
        (('ros_img_sub_topic_name:=cam,/top',), 'cam,/top'),
    ],
)
def test_topics_in_a_namespace(declared, arguments, pictures):
    """Each that nobody named follows the node; what was named stays as it is written."""
    config, _ = declared('__ns:=/left', *arguments)
    named = {name: getattr(config, name) for name in topic_options(NodeConfig)}
    assert named.pop('ros_img_sub_topic_name') == pictures
    assert len(named) > 3 and not any(name.startswith('/') for name in named.values())


def test_defaults(declared):
    config, _ = declared()
    assert config == NodeConfig()


@pytest.mark.parametrize(
    'argument, name, value',
    [
        ('temperature:=1', 'temperature', 1.0),
        ('temperature:=0.5', 'temperature', 0.5),
        ('user_prompt:=42', 'user_prompt', '42'),
        ('user_prompt:=true', 'user_prompt', 'true'),
        ('user_prompt:=yes', 'user_prompt', 'yes'),
        ('user_prompt:=Off', 'user_prompt', 'Off'),
        ('user_prompt:=1.50', 'user_prompt', '1.50'),
        ('user_prompt:=0x10', 'user_prompt', '0x10'),
        ('user_prompt:=1e3', 'user_prompt', '1e3'),
        ('user_prompt:=.inf', 'user_prompt', '.inf'),
        ('user_prompt:=null', 'user_prompt', 'null'),
        ('user_prompt:=#1', 'user_prompt', '#1'),
        ('flash_attention:=on', 'flash_attention', 'on'),
        ('flash_attention:=off', 'flash_attention', 'off'),
        ('lora_scale:=1', 'lora_scale', 1.0),
        ('user_prompt:="What is this?"', 'user_prompt', 'What is this?'),
        ('user_prompt:=这是什么', 'user_prompt', '这是什么'),
        ('stay_alive:=1', 'stay_alive', True),
        ('stay_alive:=true', 'stay_alive', True),
        ('llm_threads:=6', 'llm_threads', 6),
        ('image_type:=0', 'image_type', 0),
        ('seed:=4294967294', 'seed', 4294967294),
        ('ros_img_sub_topic_name:=[/left, /right]', 'ros_img_sub_topic_name', '/left,/right'),
    ],
)
def test_values_as_written_on_a_command_line(declared, argument, name, value):
    config, parameters = declared(argument)
    assert getattr(config, name) == value
    assert type(getattr(config, name)) is type(value)
    if name in parameters:
        assert parameters[name] == value


@pytest.mark.parametrize(
    'argument, says',
    [
        ('temperature:=hot', "temperature is 'hot': expected a number"),
        ('temperature:=-1', 'expected 0.0 to 10.0'),
        ('llm_threads:=1.5', 'expected a whole number'),
        ('image_qos:=fast', "expected one of 'auto'"),
        ('trigger:=image', 'only feed_type 1'),
        ('user_prompt:=[1, 2]', 'expected text'),
        ('feed_type:=3', 'feed_type is 3: expected one of 0, 1, 2'),
        ('n_predict:=many', "n_predict is 'many': expected a whole number"),
        ('system_prompt:=/no/such/file.txt', 'there is no file /no/such/file.txt'),
    ],
)
def test_values_that_cannot_be(declared, argument, says):
    with pytest.raises(ConfigError, match=says):
        declared(argument)


def test_unknown_names_are_reported(declared, capfd):
    declared('temprature:=1', 'use_sim_time:=false', 'colour:=red')
    log = capfd.readouterr().err
    assert "there is no parameter 'temprature'; did you mean temperature?" in log
    assert "there is no parameter 'colour'" in log
    assert 'use_sim_time' not in log


def test_a_parameter_file_as_it_is_written(tmp_path):
    """What YAML takes for more than text stays text in a file too."""
    file = tmp_path / 'some.yaml'
    file.write_text(
        '/**:\n  ros__parameters:\n    flash_attention: on\n    user_prompt: 1.50\n'
        '    temperature: 1\n    stay_alive: yes\n'
    )
    line = ['--ros-args', '--params-file', str(file)]
    context = Context()
    rclpy.init(args=line, context=context)
    node = VlmNode(typed=as_typed(line), context=context)
    try:
        assert (node.config.flash_attention, node.config.user_prompt) == ('on', '1.50')
        assert (node.config.temperature, node.config.stay_alive) == (1.0, True)
    finally:
        node.destroy_node()
        context.try_shutdown()


def test_home_folders(declared, monkeypatch):
    monkeypatch.setenv('HOME', '/home/robot')
    config, _ = declared(
        *(f'{name}:=~/a' for name in ('image', 'lora', 'model_file_name', 'llm_model_name'))
    )
    for name in ('image', 'lora', 'model_file_name', 'llm_model_name'):
        assert getattr(config, name) == '/home/robot/a'


@pytest.mark.parametrize(
    'name, value, becomes',
    [
        ('temperature', 1, 1.0),
        ('temperature', '0.5', 0.5),
        ('max_rate', 2, 2.0),
        ('n_predict', 3.0, 3),
        ('seed', 5.0, 5),
        ('skip_similar', 1, True),
        ('skip_similar', 'true', True),
        ('user_prompt', 42, '42'),
        ('user_prompt', True, 'true'),
    ],
)
def test_a_number_is_taken_whatever_its_type(name, value, becomes):
    """`ros2 param set /hobot_vlm temperature 1` sends a whole number."""
    context = Context()
    rclpy.init(context=context)
    node = VlmNode(context=context)
    try:
        result = node.set_parameters_atomically([Parameter(name, value=value)])
        assert result.successful, result.reason
        assert node.get_parameter(name).value == becomes
        assert type(node.get_parameter(name).value) is type(becomes)
        for wrong in ('hot', [1, 2]) if name != 'user_prompt' else ([1, 2],):
            assert not node.set_parameters_atomically([Parameter(name, value=wrong)]).successful
    finally:
        node.destroy_node()
        context.try_shutdown()
