"""
Every topic and service of the node: one table, which the node and docs/node.md are made of.

It knows no ROS; the class of a message is imported when somebody wants it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any

from ..config import NodeConfig
from ..option import default_of


@dataclass(frozen=True)
class Topic:
    """
    A topic, or a service.

    :param name: where no parameter gives it another one
    :param kind: package and type
    :param doc: what it is for
    """

    name: str
    kind: str
    doc: str

    @property
    def interface(self) -> str:
        """Give its type as the graph spells it."""
        return self.kind.replace('/', '/msg/')

    def message_class(self) -> Any:
        """
        Import the class of its messages.

        :raises ImportError: the package is not installed
        """
        package, name = self.kind.split('/')
        return getattr(import_module(f'{package}.msg'), name)


_named = {item.name: default_of(item) for item in fields(NodeConfig)}


def in_namespace(name: str, namespace: str) -> str:
    """
    Give the name of a topic that nobody named for a node in this namespace.

    The names are absolute, as on a board; in a namespace they follow it, so that two robots
    share none.
    """
    return name if namespace == '/' else name.removeprefix('/')


IMAGE = Topic(
    _named['ros_img_sub_topic_name'], 'sensor_msgs/Image', 'in; pictures, the newest is kept'
)
COMPRESSED_IMAGE = Topic(
    IMAGE.name, 'sensor_msgs/CompressedImage', 'in, instead, where that is what a camera publishes'
)
EMBEDDINGS = Topic(
    '/encode/embedding',
    'sensor_msgs/CompressedImage',
    'in, instead, with `image_transport:=embedding`; pictures that another machine '
    '[has encoded](machines.md)',
)
HBM_IMAGE = Topic(
    '/hbmem_img', 'hbm_img_msgs/HbmMsg1080P', 'in, instead, with `is_shared_mem_sub:=1`'
)
PROMPT = Topic(
    _named['ros_string_sub_topic_name'],
    'std_msgs/String',
    'in; up to 1000 prompts wait, and are answered in order',
)
REQUEST = Topic(
    '~/request',
    'std_msgs/String',
    'in; [JSON](requests.md): a question with an id, its own options and pictures; '
    'any number are answered side by side',
)
SPEECH = Topic(
    _named['text_msg_pub_topic_name'],
    'std_msgs/String',
    'out; the answer, sentence by sentence, for speech',
)
RESULT = Topic(
    _named['result_pub_topic_name'], 'std_msgs/String', 'out; the whole answer, latched'
)
REPLY = Topic(
    '~/reply',
    'std_msgs/String',
    'out; [JSON](reply.md): answer, token counts, timings, stamp, or the error',
)
CHUNK = Topic(
    '~/chunk',
    'std_msgs/String',
    'out; [JSON](requests.md): the answers to requests, piece by piece',
)
TARGETS = Topic(
    _named['ai_msg_pub_topic_name'],
    'ai_msgs/PerceptionTargets',
    'out, where that package is installed; the answer in `targets[0].type`, and in `perfs` what '
    'it took',
)
DETECTIONS = Topic(
    '~/detections',
    'vision_msgs/Detection2DArray',
    'out, with `parser_mode:=1` and where that package is installed; a box for each thing found',
)
WATCH = Topic(
    '~/watch/<name>',
    'std_msgs/Bool',
    'out, latched; the answer to a [standing question](watch.md), when it changes',
)
WATCH_EVENTS = Topic(
    '~/watch_events',
    'std_msgs/String',
    'out; [JSON](watch.md): each such change, with its probability, stamp and `frame_id`',
)
ANNOTATED = Topic(
    '~/annotated',
    'sensor_msgs/Image',
    'out, while somebody listens; the picture with boxes, points and the answer drawn on it',
)
ANNOTATED_COMPRESSED = Topic(
    '~/annotated/compressed', 'sensor_msgs/CompressedImage', 'out, while somebody listens; as JPEG'
)
DIAGNOSTICS = Topic(
    '/diagnostics', 'diagnostic_msgs/DiagnosticArray', 'out, once a second; state and last timings'
)
CANCEL = Topic('~/cancel', 'std_srvs/Trigger', 'service; stop the running answer')
RESET = Topic(
    '~/reset',
    'std_srvs/Trigger',
    'service; forget the conversation (`conversation:=true` or `feed_type:=2`)',
)
LLAMA_RESPONSE = Topic(
    '/llama/generate_response',
    'llama_msgs/GenerateResponse',
    'action, where that package is installed; as [llama_ros](llama_ros.md) has it',
)
LLAMA_CHAT = Topic(
    '/llama/generate_chat_completions',
    'llama_msgs/GenerateChatCompletions',
    'action, likewise; messages, pictures and tools',
)
LLAMA_METADATA = Topic(
    '/llama/get_metadata', 'llama_msgs/GetMetadata', 'service, likewise; what the model is'
)
LLAMA_TOKENIZE = Topic(
    '/llama/tokenize', 'llama_msgs/Tokenize', 'service, likewise; the tokens of a text'
)

#: of the encode node
EMBEDDING = Topic(
    '~/embedding',
    'sensor_msgs/CompressedImage',
    'out, latched; pictures, encoded, with the header of the picture',
)
ENCODE = Topic('~/encode', 'std_srvs/Trigger', 'service; encode and publish the newest picture')

ALL = (
    *(IMAGE, COMPRESSED_IMAGE, HBM_IMAGE, EMBEDDINGS, PROMPT, REQUEST),
    *(SPEECH, RESULT, REPLY, CHUNK, TARGETS, DETECTIONS),
    *(WATCH, WATCH_EVENTS, ANNOTATED, ANNOTATED_COMPRESSED, DIAGNOSTICS),
    *(CANCEL, RESET, LLAMA_RESPONSE, LLAMA_CHAT, LLAMA_METADATA, LLAMA_TOKENIZE),
)
