"""Parameters as ROS users write them, and as the node reads them."""

from hobot_vlm.config import NodeConfig
from hobot_vlm.errors import ConfigError
from hobot_vlm.ros.node import VlmNode
import pytest
import rclpy
from rclpy.context import Context


@pytest.fixture
def declared():
    """Give a function that starts a node with arguments and gives what it understood."""
    contexts = []

    def declare(*arguments):
        context = Context()
        contexts.append(context)
        rclpy.init(
            args=['--ros-args', *(part for a in arguments for part in ('-p', a))], context=context
        )
        node = VlmNode(context=context)
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
