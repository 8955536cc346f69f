"""
The node's parameters: declared from the fields of ``NodeConfig``, checked when they are set.

Knows how ROS spells a type and a range. What an option means, and what it may be, stands in
``config.py`` alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field, fields, replace
import difflib
import os
from pathlib import Path
from typing import Any, TypeVar

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.exceptions import InvalidTopicNameException
from rclpy.expand_topic_name import expand_topic_name
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.validate_full_topic_name import validate_full_topic_name

from .arguments import same
from .standing import read_questions
from .topics import EMBEDDINGS, in_namespace
from ..config import ELSEWHERE, EMBEDDING, ENCODE_OPTIONS, EncodeConfig, NodeConfig
from ..errors import ConfigError
from ..option import checked, default_of

C = TypeVar('C', bound=NodeConfig)

#: the parameters of each kind of node
FIELDS: dict[type[NodeConfig], dict[str, Field[Any]]] = {
    NodeConfig: {item.name: item for item in fields(NodeConfig)},
    EncodeConfig: {
        item.name: item for item in fields(EncodeConfig) if item.name in ENCODE_OPTIONS
    },
}
PICTURES = 'ros_img_sub_topic_name'
#: what names a file, and nothing else
FILES = ('image', 'model_file_name', 'llm_model_name', 'lora', 'state_file')

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
    # to rclpy, an empty list is one of bytes, and may never hold texts
    described.dynamic_typing = isinstance(item.default, tuple)
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


def topic_options(kind: type[NodeConfig]) -> list[str]:
    """Give the options that name topics."""
    return [name for name in FIELDS[kind] if name.endswith('topic_name')]


def declare(node: Node, typed: Mapping[str, Sequence[str]] | None, kind: type[C]) -> C:
    """
    Declare every option and give what the user chose.

    :param kind: which options there are
    :param typed: what was typed for each, where that is known
    :raises ConfigError: a value that the option cannot have
    """
    given: dict[str, Parameter] = node._parameter_overrides
    options, topics = FIELDS[kind], topic_options(kind)
    warn_of_unknown(node, given, options)
    encoded = 'image_transport' in given and given['image_transport'].value == EMBEDDING
    values = {}
    for name, item in options.items():
        value = default_of(item)
        if name in topics:
            named = EMBEDDINGS.name if name == PICTURES and encoded else value
            value = in_namespace(named, node.get_namespace())
        if name in given:
            value = of_option(item, given[name].value, (typed or {}).get(name, ()))
        values[name] = value
        # ROS would refuse temperature:=1 and user_prompt:=42, so the override is put in here
        node.declare_parameter(name, values[name], descriptor(item), ignore_override=True)
    values |= {name: os.path.expanduser(values[name]) for name in FILES if name in values}
    config = valid(kind.from_flat(values))
    check_topics(node, config)
    return config


def as_text(value: Any, typed: Sequence[str] = (), choices: Sequence[str] = ()) -> Any:
    """
    Give the text that the user wrote: ROS reads 1.50, yes and [a, b] as more than text.

    :param typed: what was written for the option; where that is not known, as ROS would write it
    :param choices: of the option
    :return: a value that no text stands behind as it is
    """
    if value is None:  # what YAML took for a comment, or for nothing
        return typed[-1] if typed else ''
    if isinstance(value, (bool, int, float)):
        written = [word for word in typed if same(word, value)]
        if written:
            return written[-1]
        if isinstance(value, bool) and ('on' if value else 'off') in choices:
            return 'on' if value else 'off'
        return str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(value, (list, tuple)) and all(isinstance(part, str) for part in value):
        return ','.join(value)
    return value


def of_option(item: Field[Any], value: Any, typed: Sequence[str] = ()) -> Any:
    """
    Give a value in the type of its option.

    :raises ConfigError: the option cannot have it
    """
    if isinstance(item.default, str):
        value = as_text(value, typed, item.metadata['choices'])
    return checked(item, value)


def warn_of_unknown(
    node: Node, given: Mapping[str, Parameter], options: Mapping[str, Field[Any]]
) -> None:
    """Say which parameters nobody reads; ROS drops them in silence."""
    for name in given:
        if name not in options and not name.startswith(OF_ROS):
            near = difflib.get_close_matches(name, options, 1)
            hint = f'; did you mean {near[0]}?' if near else ''
            node.get_logger().warning(f'there is no parameter {name!r}{hint}')


def current(node: Node, config: C) -> C:
    """Give the configuration with the values that live parameters have now."""
    live = [name for name, item in FIELDS[type(config)].items() if item.metadata['live']]
    return replace(config, **{name: node.get_parameter(name).value for name in live})


def typed_by_option(changes: Sequence[Parameter], kind: type[NodeConfig]) -> list[Parameter]:
    """
    Give parameters the types of their options: to ROS, 1 is no number with a fraction.

    What cannot be is left as it is; ``check_change`` or ROS itself refuses it.
    """
    typed = []
    for change in changes:
        item = FIELDS[kind].get(change.name)
        if item is not None:
            try:
                change = Parameter(change.name, value=of_option(item, change.value))
            except ConfigError:
                pass
        typed.append(change)
    return typed


def check_change(config: NodeConfig, changes: Sequence[Parameter]) -> SetParametersResult:
    """Say whether parameters may be set, and why not."""
    options = FIELDS[type(config)]
    try:
        values = {
            change.name: checked(options[change.name], change.value)
            for change in changes
            if change.name in options
        }
        valid(replace(config, **values))
    except ConfigError as exc:
        return SetParametersResult(successful=False, reason=str(exc))
    return SetParametersResult(successful=True)


def store(node: Node, name: str, texts: Sequence[str]) -> None:
    """
    Set a parameter that is a list of texts.

    :raises ConfigError: it cannot be that
    """
    result = node.set_parameters_atomically([Parameter(name, value=list(texts))])
    if not result.successful:
        raise ConfigError(result.reason, name)


def valid(config: C) -> C:
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
    if read_questions(config.watch) and config.feed_type != 1:
        raise ConfigError(
            f'watch asks about pictures and feed_type is {config.feed_type}: only feed_type 1 '
            'subscribes to them',
            'watch',
        )
    if config.frames > 1 and (config.feed_type != 1 or config.parser_mode):
        raise ConfigError(
            f'frames is {config.frames}, feed_type {config.feed_type} and parser_mode '
            f'{config.parser_mode}: several pictures of a camera are there with feed_type 1 '
            'alone, and boxes are those of one picture',
            'frames',
        )
    if config.parser_mode and config.keep_image_tokens < 1:
        raise ConfigError(
            f'keep_image_tokens is {config.keep_image_tokens:g} and parser_mode is '
            f'{config.parser_mode}: boxes need all the embeddings of a picture; leave it at 1',
            'keep_image_tokens',
        )
    if config.image_transport == EMBEDDING and (config.feed_type != 1 or config.is_shared_mem_sub):
        raise ConfigError(
            f'image_transport is {EMBEDDING}, feed_type is {config.feed_type} and '
            f'is_shared_mem_sub is {config.is_shared_mem_sub}: embeddings come with feed_type 1 '
            'and is_shared_mem_sub 0',
            'image_transport',
        )
    if config.image_transport == EMBEDDING and config.frames > 1:
        raise ConfigError(
            f'frames is {config.frames} and image_transport is {EMBEDDING}: a video is made of '
            'pictures, each one tile, and these come cut and encoded; set frames to 1',
            'frames',
        )
    if config.encoder_device == ELSEWHERE and config.image_transport != EMBEDDING:
        raise ConfigError(
            f'encoder_device is {ELSEWHERE} and image_transport is {config.image_transport}: a '
            f'node without encoder reads pictures that come encoded; set image_transport to '
            f'{EMBEDDING}',
            'encoder_device',
        )
    if not topics_of(config):
        raise ConfigError(
            'ros_img_sub_topic_name is empty: expected at least one topic',
            'ros_img_sub_topic_name',
        )
    return config


def check_topics(node: Node, config: NodeConfig) -> None:
    """
    Check the names of the topics.

    :raises ConfigError: ROS does not take one
    """
    for option in topic_options(type(config)):
        several = option == PICTURES
        for name in topics_of(config) if several else [getattr(config, option)]:
            check_topic(node, option, name)


def check_topic(node: Node, option: str, name: str) -> None:
    """
    Check the name of a topic.

    :raises ConfigError: ROS does not take it
    """
    try:
        full = expand_topic_name(name, node.get_name(), node.get_namespace())
        validate_full_topic_name(full)
    except (InvalidTopicNameException, ValueError) as exc:
        # "Invalid topic name: REASON:\n ..." or "topic name ... is invalid: REASON, at /..."
        reason = str(exc).partition('nvalid')[2].partition(': ')[2]
        reason = reason.partition(':\n')[0].partition(', at /')[0]
        raise ConfigError(
            f'{option} is {name[:100]!r}: {reason}; expected a name such as /camera/image', option
        ) from exc


def check_state_file(config: NodeConfig) -> None:
    """
    Check that a conversation can be kept.

    :raises ConfigError: ``state_file`` is something else than a file, or has no folder
    """
    path = Path(config.state_file)
    if not config.state_file:
        return
    if path.exists() and not path.is_file():
        what = 'a folder' if path.is_dir() else 'no file, but a device, pipe or socket'
        raise ConfigError(
            f'state_file is {path}, and that is {what}: give the name of a file', 'state_file'
        )
    if not path.resolve().parent.is_dir():
        raise ConfigError(
            f'state_file is {path}: there is no folder {path.resolve().parent}; make it',
            'state_file',
        )


def topics_of(config: NodeConfig) -> list[str]:
    """Give the topics of the cameras, in the order in which the model sees them."""
    return [name.strip() for name in config.ros_img_sub_topic_name.split(',') if name.strip()]
