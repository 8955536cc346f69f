"""
The node's parameters: declared from the fields of ``NodeConfig``, checked when they are set.

Knows how ROS spells a type and a range. What an option means, and what it may be, stands in
``config.py`` alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, fields, replace
import difflib
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from ..config import checked, NodeConfig
from ..errors import ConfigError

FIELDS = {item.name: item for item in fields(NodeConfig)}
LIVE = tuple(name for name, item in FIELDS.items() if item.metadata['live'])

#: what ROS itself may set on any node
OF_ROS = (
    'use_sim_time',
    'qos_overrides.',
    'start_type_description_service',
    'diagnostic_updater.',
)


def descriptor(item: Field[Any]) -> ParameterDescriptor:
    """Describe an option as ROS wants it."""
    meta = item.metadata
    described = ParameterDescriptor(
        name=item.name, description=meta['doc'], read_only=not meta['live']
    )
    if meta['choices']:
        described.additional_constraints = 'one of ' + ', '.join(map(repr, meta['choices']))
    if meta['low'] is not None:
        if isinstance(item.default, float):
            described.floating_point_range = [
                FloatingPointRange(from_value=float(meta['low']), to_value=float(meta['high']))
            ]
        else:
            described.integer_range = [
                IntegerRange(from_value=int(meta['low']), to_value=int(meta['high']), step=1)
            ]
    return described


def declare(node: Node) -> NodeConfig:
    """
    Declare every option and give what the user chose.

    :raises ConfigError: a value that the option cannot have
    """
    given: dict[str, Parameter] = node._parameter_overrides
    warn_of_unknown(node, given)
    values = {}
    for name, item in FIELDS.items():
        value = spoken(item, given[name].value) if name in given else item.default
        values[name] = checked(item, value)
        # ROS would refuse temperature:=1 and user_prompt:=42, so the override is put in here
        node.declare_parameter(name, values[name], descriptor(item), ignore_override=True)
    return valid(NodeConfig.from_flat(values))


def spoken(item: Field[Any], value: Any) -> Any:
    """Give a value as the user wrote it: ROS reads 42, true and [a, b] as more than text."""
    if not isinstance(item.default, str) or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
        return ','.join(value)
    return value


def warn_of_unknown(node: Node, given: dict[str, Parameter]) -> None:
    """Say which parameters nobody reads; ROS drops them in silence."""
    for name in given:
        if name not in FIELDS and not name.startswith(OF_ROS):
            near = difflib.get_close_matches(name, FIELDS, 1)
            hint = f'; did you mean {near[0]}?' if near else ''
            node.get_logger().warning(f'there is no parameter {name!r}{hint}')


def current(node: Node, config: NodeConfig) -> NodeConfig:
    """Give the configuration with the values that live parameters have now."""
    return replace(config, **{name: node.get_parameter(name).value for name in LIVE})


def check_change(config: NodeConfig, changes: Sequence[Parameter]) -> SetParametersResult:
    """Say whether parameters may be set, and why not."""
    try:
        values = {
            change.name: checked(FIELDS[change.name], change.value)
            for change in changes
            if change.name in FIELDS
        }
        valid(replace(config, **values))
    except ConfigError as exc:
        return SetParametersResult(successful=False, reason=str(exc))
    return SetParametersResult(successful=True)


def valid(config: NodeConfig) -> NodeConfig:
    """
    Check what depends on more than one option.

    :raises ConfigError: options that contradict each other
    """
    config.system_text()
    if config.trigger == 'image' and config.feed_type == 1 and not config.user_prompt:
        raise ConfigError(
            'trigger is image and user_prompt is empty: say in user_prompt what to '
            'ask about each picture',
            'user_prompt',
        )
    if config.trigger == 'image' and config.feed_type != 1:
        raise ConfigError(
            f'trigger is image and feed_type is {config.feed_type}: only feed_type '
            '1 subscribes to pictures',
            'trigger',
        )
    if not topics_of(config):
        raise ConfigError(
            'ros_img_sub_topic_name is empty: expected at least one topic',
            'ros_img_sub_topic_name',
        )
    return config


def topics_of(config: NodeConfig) -> list[str]:
    """Give the topics of the cameras, in the order in which the model sees them."""
    return [name.strip() for name in config.ros_img_sub_topic_name.split(',') if name.strip()]
