"""
Options of the ROS 2 nodes: those of the engine, and where things come from and go to.

As in ``config.py``, each stands once; knows no ROS.
"""

from __future__ import annotations

from dataclasses import dataclass

from .config import Config
from .encoded import DTYPES
from .option import option

FEED_LOCAL, FEED_TOPICS, FEED_TEXT = 0, 1, 2
#: ``image_transport`` of pictures that come encoded
EMBEDDING = 'embedding'


@dataclass(frozen=True)
class NodeConfig(Config):
    """Options of the ROS 2 node: those of the engine and where things come from and go to."""

    feed_type: int = option(
        FEED_LOCAL,
        '0 local picture, 1 subscribed pictures and prompts, '
        '2 subscribed prompts without pictures',
        choices=(0, 1, 2),
    )
    image: str = option('', 'picture that feed_type 0 reads; empty: the bundled sample')
    image_type: int = option(0, 'kind of the local picture; 0: an image file', choices=(0, 1))
    is_shared_mem_sub: int = option(
        0, '1: subscribe to hbm_img_msgs on /hbmem_img', choices=(0, 1)
    )
    user_prompt: str = option(
        '', 'question of feed_type 0 and of trigger image; else asked once, first', live=True
    )
    cute_words: str = option(
        '', 'phrases with ; between: one before an answer, or with feed_type 2 at first', live=True
    )
    pre_infer: int = option(
        0,
        '1: encode the newest picture on 你好, 2: always, before the prompt comes',
        choices=(0, 1, 2),
    )
    ai_msg_pub_topic_name: str = option('/llama_cpp_node', 'topic of ai_msgs/PerceptionTargets')
    text_msg_pub_topic_name: str = option('/tts_text', 'topic of the answer in sentences')
    result_pub_topic_name: str = option('/hobot_vlm/result', 'topic of the whole answer')
    ros_img_sub_topic_name: str = option(
        '/image', 'topic of the pictures; several with , between them'
    )
    ros_string_sub_topic_name: str = option('/prompt_text', 'topic of the prompts')
    frames: int = option(
        1, 'newest pictures of each camera that a prompt is about; several: as a video', 1, 64
    )
    frame_period: float = option(
        0.5, 'frames: least seconds from one of them to the next', 0.0, 60.0
    )
    image_transport: str = option(
        'auto',
        'kind of image messages; auto: as published; embedding: encoded by '
        '`ros2 run hobot_vlm encode`',
        choices=('auto', 'raw', 'compressed', EMBEDDING),
    )
    image_qos: str = option(
        'auto',
        'reliability of the image subscription; auto: as all publishers offer it',
        choices=('auto', 'best_effort', 'reliable'),
    )
    trigger: str = option(
        'prompt',
        'what starts an answer: a prompt, or each image with user_prompt',
        choices=('prompt', 'image'),
        live=True,
    )
    max_rate: float = option(
        0.0,
        'trigger image: most answers per second; 0: as fast as they come',
        0.0,
        1000.0,
        live=True,
    )
    skip_similar: bool = option(
        False, 'trigger image: skip pictures that look like the last one answered', live=True
    )
    max_image_age: float = option(
        0.0,
        'seconds after which a picture is too old to answer from; 0: never',
        0.0,
        86400.0,
        live=True,
    )
    old_images: str = option(
        'report',
        'what to do with a picture older than max_image_age: answer and report it, or refuse',
        choices=('report', 'refuse'),
        live=True,
    )
    watch: tuple[str, ...] = option(
        (), 'standing questions about the pictures, each as "name: question"', live=True
    )
    watch_rate: float = option(
        1.0, 'most times a second that the standing questions are asked', 0.01, 100.0, live=True
    )
    watch_hold: float = option(
        1.0,
        'seconds that an answer to one must hold before it is published',
        0.0,
        3600.0,
        live=True,
    )
    parser_mode: int = option(
        0,
        '0: text, 1: each prompt names a thing to find, or a task as in /point dog, and boxes and '
        'points are published',
        choices=(0, 1),
    )
    conversation: bool = option(
        False, 'prompts are turns of one conversation; with feed_type 2 they always are'
    )
    overflow: str = option(
        'drop_oldest',
        'when the context is full: the oldest turns of the conversation leave, or a prompt is '
        'refused',
        choices=('drop_oldest', 'refuse'),
    )
    state_file: str = option(
        '', 'file that keeps the conversation from one run to the next; empty: none'
    )
    serve: int = option(0, 'port of the HTTP API and its page; 0: none', 0, 65535)
    serve_host: str = option('127.0.0.1', 'address that serve listens on')
    allow_urls: bool = option(
        False,
        'fetch pictures that requests, on the topic and over HTTP, name by http(s) addresses',
    )
    stay_alive: bool = option(False, 'feed_type 0: go on running after the answer')
    autostart: bool = option(True, 'configure and activate at start-up')

    @property
    def in_turns(self) -> bool:
        """Whether prompts are turns of one conversation."""
        return self.conversation or self.feed_type == FEED_TEXT


@dataclass(frozen=True)
class EncodeConfig(NodeConfig):
    """Options of the encode node; it has those of ``NodeConfig`` that ``ENCODE_OPTIONS`` names."""

    image_transport: str = option(
        'auto', 'kind of image messages; auto: as published', choices=('auto', 'raw', 'compressed')
    )
    # at 256 x 896 two a second are 7 Mbit/s, which a busy Wi-Fi still carries
    max_rate: float = option(
        2.0, 'most pictures encoded per second; 0: as fast as they come', 0.0, 1000.0, live=True
    )
    skip_similar: bool = option(
        False, 'skip pictures that look like the last one published; equal ones always', live=True
    )
    on_demand: bool = option(False, 'encode only when `~/encode` asks for it', live=True)
    embedding_dtype: str = option(
        DTYPES[0],
        'number format on the way: float16 is nearer, bfloat16 has the range of float32',
        choices=DTYPES,
        live=True,
    )


#: what the encode node has of all these
ENCODE_OPTIONS = (
    *('model', 'model_file_name', 'model_type', 'auto_download', 'fit', 'max_tiles'),
    *('keep_image_tokens', 'encoder_threads', 'encoder_device', 'bpu_priority', 'bpu_cores'),
    *('is_shared_mem_sub', 'ros_img_sub_topic_name', 'image_transport', 'image_qos', 'max_rate'),
    *('skip_similar', 'on_demand', 'embedding_dtype', 'autostart'),
)
