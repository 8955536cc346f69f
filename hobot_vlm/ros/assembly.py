"""
What a configured node consists of: model, inputs, outputs, and how they are connected.

Callbacks store what comes and return; the model works on threads of its own. Knows no lifecycle
and no process.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
import threading
from typing import Any

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.timer import Timer
from std_msgs.msg import String
from std_srvs.srv import Trigger

from . import inbox, parameters, topics
from .cameras import Cameras, possible_kinds
from .diagnostics import Statistics
from .frames import FrameReader
from .inbox import Inbox, Prompt, Reset
from .llama_actions import installed, LlamaActions
from .offers import unheard
from .outcome import Outcome
from .prompt_worker import PromptWorker
from .publishers import Publishers, WatchPublishers
from .requests import Requests
from .serving import check_serving, Serving
from .watch import Watch
from ..config import ELSEWHERE
from ..errors import ModelMismatch, PictureError
from ..node_config import EMBEDDING, FEED_LOCAL, FEED_TEXT, FEED_TOPICS, NodeConfig
from ..values import Pixels, Reply
from ..vlm import read_image, VLM

#: the picture of feed_type 0 where none is named
SAMPLE = Path(__file__).parents[1] / 'demo' / 'sample.png'
DEFAULT_PROMPT = 'Describe the picture.'

#: as many as may wait: rclpy takes one message at a time, and a burst must push out none
PROMPTS = QoSProfile(depth=inbox.CAPACITY, reliability=ReliabilityPolicy.RELIABLE)

#: seconds between two checks of what the publishers of pictures offer
MATCH_PERIOD = 0.25
#: seconds that subscribers of a first answer have to be found
DISCOVERY_SECONDS = 1.0
#: seconds that subscribers have to take the last messages before their publishers end
FLUSH_SECONDS = 0.7


class Assembly:
    """
    Answers what comes in on topics, while it is active.

    :param finish: given the exit status when there is nothing more to do
    """

    vlm: VLM

    def __init__(
        self, node: Node, config: NodeConfig, statistics: Statistics, finish: Callable[[int], None]
    ):
        """
        Load the model.

        :raises VlmError: it cannot be, or the configuration is not for it
        """
        self._node = node
        self._config = config
        self._statistics = statistics
        self._finish = finish
        self._reader = FrameReader(node.get_clock())
        self._printable = True
        self._first_asked = False
        self._waiting: Prompt | None = None  # the prompt whose waiting was said
        self._guard = threading.Lock()  # of the next two, which a timer uses
        self._cameras: Cameras | None = None
        self._match: Timer | None = None
        self._serving: Serving | None = None
        self._subscriptions: list[Any] = []
        self._services: list[Any] = []
        # 1. what is cheap to refuse: the message types, the local picture, the state file
        self._picture: Pixels | None = None
        cameras = 0
        if config.feed_type == FEED_TOPICS:
            possible_kinds(config)
            cameras = 1 if config.is_shared_mem_sub else len(parameters.topics_of(config))
            if config.image_transport == EMBEDDING:
                config = replace(config, encoder_device=ELSEWHERE)
        elif config.feed_type == FEED_LOCAL:
            self._picture = self._local_picture()
        parameters.check_state_file(config)
        if config.serve:
            check_serving(config)
        self.inbox = Inbox(cameras, config.frames, config.frame_period)
        with ExitStack() as undo:
            # 2. outputs; subscribers find them while the model loads
            self._publishers = Publishers(node, config, self._on_reply)
            self._watch_publishers = WatchPublishers(node)
            undo.callback(self._leave_graph)
            self._serve(topics.CANCEL.name, self._on_cancel)
            self._serve(topics.RESET.name, self._on_reset)
            # 3. the model
            self.vlm = VLM(config)
            undo.callback(self.vlm.close)
            self._check_model()
            # 4. inputs; prompts wait from now on
            parts = self.vlm, self.inbox, self._reader, self._publishers, statistics
            self._worker = PromptWorker(
                *parts,
                settings=self._settings,
                on_text=self._print,
                on_answer=self._on_answer,
                picture=self._picture,
            )
            self.requests = Requests(
                *parts,
                settings=self._settings,
                cancel_prompts=self._cancel_prompts,
                picture=self._picture,
            )
            self._askers: list[Requests | LlamaActions] = [self.requests]
            undo.callback(self.requests.close)
            self._watch = Watch(
                *(self.vlm, self.inbox, self._reader, self._watch_publishers),
                settings=self._settings,
                store=partial(parameters.store, node, 'watch'),
            )
            if config.feed_type != FEED_LOCAL or config.stay_alive:
                self._subscribe(config.ros_string_sub_topic_name, self._on_prompt)
                self._subscribe(topics.REQUEST.name, self._on_request)
                self._askers += [LlamaActions(node, self.vlm)] if installed() else []
            undo.pop_all()

    def _check_model(self) -> None:
        """
        See whether the model is for this.

        :raises ModelMismatch: it sees nothing, and is to talk about pictures
        """
        config = self._config
        if config.feed_type != FEED_TEXT and not (self.vlm.tile_size or self.vlm.family):
            raise ModelMismatch(
                f'feed_type is {config.feed_type} and the model has no vision '
                'encoder: give it in model_file_name, or set feed_type to 2'
            )
        if config.parser_mode and self.vlm.family == 'smolvlm':
            self._node.get_logger().warning(
                f'parser_mode is {config.parser_mode}, and smolvlm models give no boxes'
            )

    def _settings(self) -> NodeConfig:
        return parameters.current(self._node, self._config)

    def _local_picture(self) -> Pixels:
        """
        Read the picture of feed_type 0.

        :raises PictureError: it cannot be read
        """
        try:
            return read_image(self._config.image or str(SAMPLE))
        except PictureError as exc:
            raise PictureError(f'image: {exc}') from exc

    def _serve(self, name: str, callback: Callable[..., Trigger.Response]) -> None:
        self._services.append(self._node.create_service(Trigger, name, callback))

    def _subscribe(self, topic: str, callback: Callable[[String], None]) -> None:
        subscription = self._node.create_subscription(
            String,
            topic,
            callback,
            PROMPTS,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        self._subscriptions.append(subscription)

    # -- states ------------------------------------------------------------------------------

    def activate(self) -> None:
        """Let come pictures, and then answer; what the configuration asks is asked first."""
        self.inbox.open()
        if self._config.feed_type == FEED_TOPICS:
            self._cameras = Cameras(self._node, self._config, self.inbox)
            # by a steady clock: that of the node may stand still (use_sim_time without /clock)
            self._match = self._node.create_timer(
                MATCH_PERIOD,
                self._on_match,
                callback_group=MutuallyExclusiveCallbackGroup(),
                clock=Clock(clock_type=ClockType.STEADY_TIME),
            )
        self._worker.start()
        for asker in self._askers:
            asker.start()
        if self._config.feed_type == FEED_TOPICS:
            self._watch.start()
        if self._config.serve:
            parts = self.vlm, self._config, self.inbox, self._reader, self._picture
            watch = self._watch if self._config.feed_type == FEED_TOPICS else None
            self._serving = Serving(*parts, watch)
        if not self._first_asked:
            self._first_asked = True
            self._ask_first()

    def _ask_first(self) -> None:
        """Ask ``user_prompt`` by itself, as hobot_llamacpp does, and greet without pictures."""
        config = self._config
        prompt = config.user_prompt if config.trigger == 'prompt' else ''
        if config.feed_type == FEED_LOCAL:
            prompt = prompt or DEFAULT_PROMPT
        greets = config.feed_type == FEED_TEXT and bool(config.cute_words)
        if prompt or greets:
            self._publishers.wait_for_listeners(DISCOVERY_SECONDS)
        if greets:
            self._worker.say_phrase(config)
        if prompt:
            self._put(prompt)

    def deactivate(self, seconds: float | None = None) -> bool:
        """
        Stop the running answers; prompts wait for the next activation. Twice is harmless.

        :return: False when the model does not come to its end in time
        """
        with self._guard:
            if self._match is not None:
                self._node.destroy_timer(self._match)
                self._match = None
            if self._cameras is not None:
                self._cameras.close()
                self._cameras = None
        serving, self._serving = self._serving, None
        ended = serving is None or serving.close(seconds)
        ended = all([a.stop(seconds) for a in self._askers]) and ended  # noqa: C419, each
        ended = self._worker.stop(seconds) and ended
        return self._watch.stop(seconds) and ended

    def close(self) -> None:
        """Free everything; what waits is refused."""
        self.deactivate()
        self._unsubscribe()
        left = self.inbox.drain()
        if left:
            self._node.get_logger().error(f'prompts that had no turn: {len(left)}')
        for prompt in left:
            self._refuse(prompt, 'the node was cleaned up before this prompt had its turn')
        for asker in self._askers:
            asker.close()
        self.vlm.close()
        self._publishers.flush(FLUSH_SECONDS)
        self._leave_graph()

    def _unsubscribe(self) -> None:
        while self._subscriptions:
            self._node.destroy_subscription(self._subscriptions.pop())

    def _leave_graph(self) -> None:
        self._unsubscribe()
        for service in self._services:
            self._node.destroy_service(service)
        self._publishers.close()
        self._watch_publishers.close_all()

    # -- what comes in -----------------------------------------------------------------------

    def _on_prompt(self, message: String) -> None:
        self._put(message.data)

    def _put(self, text: str) -> None:
        prompt = Prompt(text, self._reader.now())
        if not self.inbox.put(prompt):
            why = (
                f'{len(self.inbox)} prompts wait, and at most {inbox.CAPACITY} of '
                f'{inbox.CAPACITY_BYTES} bytes may: send it again when some have been answered'
            )
            self._node.get_logger().error(f'prompt refused: {why}')
            self._refuse(prompt, why)

    def _on_request(self, message: String) -> None:
        self.requests.receive(message.data)

    def _refuse(self, prompt: Prompt, why: str) -> None:
        self._end_unasked(Outcome(prompt, Reply('', 'error'), error=why))

    def _end_unasked(self, outcome: Outcome) -> None:
        self._statistics.count(outcome)
        self._publishers.reply(outcome)

    def _cancel_prompts(self) -> None:
        """Cancel the running prompt, and all that wait."""
        for prompt in self.inbox.drain():
            self._end_unasked(Outcome(prompt, Reply('', 'cancelled')))
        self.inbox.cancel()

    def _on_cancel(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self.inbox.cancel()
        response.message = 'stopped' if response.success else 'no prompt is being answered'
        if not response.success and len(self.requests):
            response.message += '; publish {"cancel": "ID"} on ~/request to stop a request'
        return response

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = True
        if self._config.in_turns:
            self.inbox.put(Reset())
            response.message = 'prompts from now on begin a new conversation'
        else:
            response.message = 'each prompt is a conversation of its own: nothing to forget'
        return response

    def _on_match(self) -> None:
        """Follow what the cameras publish; say once what a prompt waits for."""
        with self._guard:
            if self._cameras is None:
                return
            self._cameras.match()
            running, missing = self.inbox.running, self.inbox.missing
            if missing and running is not None and running is not self._waiting:
                self._waiting = running
                where = self._cameras.describe(missing)
                self._node.get_logger().warning(f'a prompt waits for the first picture on {where}')

    # -- what goes out -----------------------------------------------------------------------

    def _print(self, text: str) -> None:
        """Print the answer about the local picture; the process ends where nobody reads it."""
        if self._config.feed_type != FEED_LOCAL or not self._printable:
            return
        try:
            print(text, end='', flush=True)
        except (OSError, ValueError) as exc:  # a closed pipe, a full disk, letters that it lacks
            self._printable = False
            self._node.get_logger().error(f'the answer cannot be printed: {exc}')
            self._finish(1)

    def _on_reply(self, outcome: Outcome) -> None:
        """Show on the page what an answer found."""
        if (serving := self._serving) is not None:
            serving.note(outcome)

    def _on_answer(self, outcome: Outcome) -> None:
        """Say what became of a prompt; the local picture's first answer ends the process."""
        reply = outcome.reply
        if not outcome.error:
            by = f', by {reply.model}' if reply.model else ''
            self._node.get_logger().info(
                f'{reply.finish_reason}: {reply.completion_tokens} tokens, first after '
                f'{reply.timings.ttft_ms:.0f} ms, {reply.timings.tokens_per_second:.1f} tokens/s'
                f'{by}'
            )
        if self._config.feed_type == FEED_LOCAL:
            self._print('\n')
            if not self._config.stay_alive:
                self._finish(1 if outcome.error else 0)

    # -- what there is to say ----------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether something is being answered."""
        return self.inbox.running is not None or len(self.requests) > 0

    def troubles(self) -> list[str]:
        """Say what keeps an active node from answering."""
        said = self.vlm.troubles()
        kind = topics.PROMPT.interface
        said += filter(None, (unheard(self._node, each, kind) for each in self._subscriptions))
        cameras = self._cameras
        if cameras is not None:
            said += cameras.troubles(self._settings().max_image_age)
        return [*said, *self._watch.troubles()]

    def values(self) -> dict[str, object]:
        """Give counts, by name."""
        status = self.vlm.status()
        return {
            'encoder runtime': self.vlm.runtime,
            'tiles encoding': status.encoding,
            'encoding seconds left': round(status.encoding_s, 1),
            'prompts waiting': len(self.inbox),
            'requests open': len(self.requests),
            'pictures received': self.inbox.received,
            'pictures dropped': self.inbox.dropped,
            **self._watch.values(),
        }
