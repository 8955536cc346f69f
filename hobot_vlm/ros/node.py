"""
The ROS 2 node: parameters, topics and services around one VLM.

It only translates. Callbacks store what comes and return; the model works on the worker's thread.
The states are those of a lifecycle node: configure loads the model, activate subscribes and
answers, deactivate and cleanup undo both. What works in this file works in Humble.
"""

from __future__ import annotations

from collections.abc import Callable
import logging
import os
from pathlib import Path
import queue
import signal
import sys
import threading
from time import perf_counter
from typing import Any

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.service import Service
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription
from rclpy.timer import Timer
from std_msgs.msg import String
from std_srvs.srv import Trigger

from . import parameters, topics
from .cameras import Camera, message_reader, message_type, open_cameras
from .diagnostics import Diagnostics, Statistics
from .inbox import CAPACITY, Frame, Inbox, Prompt, Reset, Stamp
from .outcome import Outcome, Shown
from .outputs import Outputs
from .worker import Worker
from .. import VLM
from ..config import FEED_LOCAL, FEED_TEXT, FEED_TOPICS
from ..errors import ModelMismatch, VlmError
from ..image import load_rgb, Pixels
from ..machine import share_one_heap
from ..values import Reply

NAME = 'hobot_vlm'
#: the picture of feed_type 0 where none is named
SAMPLE = Path(__file__).parents[1] / 'demo' / 'sample.png'
DEFAULT_PROMPT = 'Describe the picture.'

#: as many as may wait: rclpy takes one message at a time, and a burst must push out none
PROMPTS = QoSProfile(depth=CAPACITY, reliability=ReliabilityPolicy.RELIABLE)

#: seconds between two looks at what the publishers of pictures offer
MATCH_PERIOD = 0.25
#: seconds that subscribers of a local picture's answer have to be found
DISCOVERY_SECONDS = 1.0
#: seconds that subscribers have to take the last messages before their publishers end
FLUSH_SECONDS = 0.7
#: seconds that the model has to come to its end when the process is asked to stop
STOP_SECONDS = 1.0

SUCCESS = TransitionCallbackReturn.SUCCESS
FAILURE = TransitionCallbackReturn.FAILURE


class VlmNode(LifecycleNode):
    """
    Answers prompts about pictures.

    :param finished: told the exit status when there is nothing more to do
    """

    def __init__(self, finished: queue.SimpleQueue[int] | None = None, **options: Any):
        """
        Declare the parameters.

        :param options: of ``rclpy.node.Node``
        :raises ConfigError: a parameter with a value that it cannot have
        """
        super().__init__(NAME, **options)
        self._finished = finished
        self._log_handler = RosHandler(self)
        logging.getLogger(NAME).addHandler(self._log_handler)
        logging.getLogger(NAME).setLevel(logging.DEBUG)  # what is shown is for ROS to say
        self.statistics = Statistics()
        self.vlm: VLM | None = None
        self._phase = 'unconfigured'
        self._inbox = Inbox()
        self._outputs: Outputs | None = None
        self._worker: Worker | None = None
        self._picture: Pixels | None = None
        self._read_message: Callable[[bytes], Any] | None = None
        self._cameras: list[Camera] = []
        self._match: Timer | None = None
        self._prompts: Subscription | None = None
        self._triggers: list[Service] = []
        try:
            self.config = parameters.declare(self)
        except VlmError:
            self.destroy_node()
            raise
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._diagnostics = Diagnostics(self, self.statistics, self._state, self._values)

    # -- lifecycle ---------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and announce the outputs."""
        return self._attempt('configure', self._configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe, and begin to answer."""
        return self._attempt('activate', self._activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop the running answer and unsubscribe; prompts that wait stay."""
        return self._attempt('deactivate', self._deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model."""
        return self._attempt('clean up', self._cleanup)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop, and free everything."""
        self._deactivate()
        self._cleanup()
        return SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Go back to the beginning."""
        return self.on_shutdown(state)

    def _attempt(self, what: str, step: Any) -> TransitionCallbackReturn:
        """Make a transition; say why where it fails, because Humble's rclpy does not."""
        try:
            step()
        except Exception as exc:
            text = str(exc) if isinstance(exc, VlmError) else f'{type(exc).__name__}: {exc}'
            self.get_logger().error(f'cannot {what}: {text}')
            if not isinstance(exc, VlmError):
                logging.getLogger(NAME).debug('', exc_info=exc)
            self._deactivate()
            if what != 'activate':
                self._cleanup()
            self.statistics.error = text
            self._diagnostics.publish()
            return FAILURE
        return SUCCESS

    def _configure(self) -> None:
        """
        Make what answers need.

        1. What is cheap to refuse: the message types, the local picture.
        2. Publishers and services; subscribers find them while the model loads.
        3. The model.
        """
        self._phase = 'loading the model'
        self.statistics.error = ''
        self._diagnostics.publish()
        config = self.config = parameters.current(self, self.config)
        # 1. what is cheap
        cameras = 0
        if config.feed_type == FEED_TOPICS:
            self._read_message = message_reader(message_type(config))
            cameras = 1 if config.is_shared_mem_sub else len(parameters.topics_of(config))
        elif config.feed_type == FEED_LOCAL:
            self._picture = load_rgb(config.image or SAMPLE)
        # 2. outputs
        self._outputs = Outputs(self, config)
        self._triggers = [
            self.create_service(Trigger, topics.CANCEL.name, self._on_cancel),
            self.create_service(Trigger, topics.RESET.name, self._on_reset),
        ]
        # 3. the model
        self.vlm = VLM(config)
        if config.feed_type != FEED_TEXT and self.vlm.encoder is None:
            raise ModelMismatch(
                f'feed_type is {config.feed_type} and the model has no vision '
                'encoder: give it in model_file_name, or set feed_type to 2'
            )
        if config.parser_mode and self.vlm.family and self.vlm.family.name != 'internvl':
            self.get_logger().warning(
                f'parser_mode is {config.parser_mode}, and {self.vlm.family.name} models were not '
                'taught to give boxes: expect none, or use an InternVL model'
            )
        self._inbox = Inbox(cameras)
        self._worker = Worker(
            self.vlm,
            self._inbox,
            self,
            self.statistics,
            settings=lambda: parameters.current(self, config),
            unpack=self._unpack,
            now=self._now,
            on_wait=self._on_wait,
            on_text=self._on_text,
            picture=self._picture,
        )
        self._phase = 'inactive'

    def _activate(self) -> None:
        assert self._worker is not None and self._outputs is not None
        config = self.config
        self._worker.start()
        if config.feed_type == FEED_LOCAL:
            self._outputs.wait_for_listeners(DISCOVERY_SECONDS)
            self._put(config.user_prompt or DEFAULT_PROMPT)
        if config.feed_type != FEED_LOCAL or config.stay_alive:
            self._prompts = self.create_subscription(
                String,
                config.ros_string_sub_topic_name,
                self._on_prompt,
                PROMPTS,
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
        if config.feed_type == FEED_TOPICS:
            self._cameras = open_cameras(self, config, self._on_picture)
            self._match = self.create_timer(MATCH_PERIOD, self._match_publishers)
        self._phase = 'active'
        self.get_logger().info('ready')

    def _deactivate(self) -> None:
        """Undo ``_activate``, in reverse; harmless where that never ran."""
        if self._match is not None:
            self.destroy_timer(self._match)
            self._match = None
        for camera in self._cameras:
            camera.close()
        self._cameras = []
        if self._prompts is not None:
            self.destroy_subscription(self._prompts)
            self._prompts = None
        if self._worker is not None:
            self._worker.stop()
        self._phase = 'inactive'

    def _cleanup(self) -> None:
        """Undo ``_configure``, in reverse; harmless where that never ran."""
        left = self._inbox.drain()
        if left:
            self.get_logger().error(f'prompts that had no turn: {len(left)}')
        for prompt in left:
            self._refuse(prompt, 'the node was cleaned up before this prompt had its turn')
        self._worker = None
        if self.vlm is not None:
            self.vlm.close()
            self.vlm = None
        for service in self._triggers:
            self.destroy_service(service)
        self._triggers = []
        if self._outputs is not None:
            self._outputs.flush(FLUSH_SECONDS)
            self._outputs.close()
            self._outputs = None
        self._picture = None
        self._inbox = Inbox()
        self._phase = 'unconfigured'

    # -- what comes in -----------------------------------------------------------------------

    def _on_picture(self, camera: int, topic: str, data: bytes) -> None:
        self._inbox.show(camera, Frame(topic, data))

    def _on_prompt(self, message: String) -> None:
        self._put(message.data)

    def _put(self, text: str) -> None:
        prompt = Prompt(text, self._now())
        if not self._inbox.put(prompt):
            why = f'{CAPACITY} prompts wait already: send it again when some have been answered'
            self.get_logger().error(f'prompt refused: {why}')
            self._refuse(prompt, why)

    def _refuse(self, prompt: Prompt, why: str) -> None:
        outcome = Outcome(prompt, Reply('', 'error'), error=why)
        self.statistics.count(outcome)
        if self._outputs is not None:
            self._outputs.finish(outcome)

    def _on_cancel(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._worker is not None and self._worker.cancel()
        response.message = 'stopped' if response.success else 'nothing is being answered'
        return response

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = True
        if self.config.in_turns:
            self._inbox.put(Reset())
            response.message = 'prompts from now on begin a new conversation'
        else:
            response.message = 'each prompt is a conversation of its own: nothing to forget'
        return response

    def _match_publishers(self) -> None:
        for camera in self._cameras:
            camera.match()

    def _on_set_parameters(self, changes: list[Parameter]) -> Any:
        result = parameters.check_change(parameters.current(self, self.config), changes)
        return result

    # -- what the worker asks for ------------------------------------------------------------

    def _unpack(self, frame: Frame) -> tuple[Any, Shown]:
        """Give a message; its age is counted from its stamp, or from its arrival without one."""
        assert self._read_message is not None
        message = self._read_message(frame.data)
        header = getattr(message, 'header', None)  # HbmMsg1080P has none
        time = header.stamp if header else message.time_stamp
        age = perf_counter() - frame.received
        if time.sec or time.nanosec:
            age = self.get_clock().now().nanoseconds / 1e9 - (time.sec + time.nanosec / 1e9)
        frame_id = header.frame_id if header else ''
        return message, Shown(frame.topic, Stamp(time.sec, time.nanosec), frame_id, age)

    def _now(self) -> Stamp:
        seconds, nanoseconds = self.get_clock().now().seconds_nanoseconds()
        return Stamp(seconds, nanoseconds)

    def _on_wait(self, missing: list[int]) -> None:
        topics = ', '.join(self._cameras[number].describe() for number in missing)
        self.get_logger().warning(f'a prompt waits for the first picture on {topics}')

    def _on_text(self, text: str) -> None:
        if self.config.feed_type == FEED_LOCAL:
            print(text, end='', flush=True)

    # -- what the worker hands out -----------------------------------------------------------

    def speak(self, text: str) -> None:
        """Publish a finished sentence."""
        if self._outputs is not None:
            self._outputs.speak(text)

    def finish(self, outcome: Outcome) -> None:
        """Publish what became of a prompt; the local picture's first answer ends the process."""
        if self._outputs is None:
            return
        self._outputs.finish(outcome)
        if self.config.feed_type == FEED_LOCAL:
            print(flush=True)
            if not self.config.stay_alive:
                self._finish(1 if outcome.error else 0)
        reply = outcome.reply
        if not outcome.error:
            self.get_logger().info(
                f'{reply.finish_reason}: {reply.completion_tokens} tokens, first after '
                f'{reply.timings.ttft_ms:.0f} ms, {reply.timings.tokens_per_second:.1f} tokens/s'
            )

    def _finish(self, status: int) -> None:
        if self._finished is not None:
            self._finished.put(status)

    # -- diagnostics -------------------------------------------------------------------------

    def _state(self) -> str:
        if self._phase != 'active':
            return self._phase
        if self._inbox.running is None:
            return 'idle'
        return 'answering'

    def _values(self) -> dict[str, object]:
        return {
            'model': self.config.llm_model_name or self.config.model,
            'feed_type': self.config.feed_type,
            'prompts waiting': len(self._inbox),
            'pictures received': self._inbox.seen,
            'pictures dropped': self._inbox.skipped,
        }

    # -- the process -------------------------------------------------------------------------

    def start(self) -> None:
        """Configure and activate, as ``autostart`` asks for."""
        if self.trigger_configure() != SUCCESS or self.trigger_activate() != SUCCESS:
            self._finish(1)

    def hush(self, seconds: float) -> bool:
        """Stop the running answer; False when the model does not come to its end in time."""
        return self._worker is None or self._worker.stop(seconds)

    def destroy_node(self) -> None:
        """Free everything."""
        self._deactivate()
        self._cleanup()
        logging.getLogger(NAME).removeHandler(self._log_handler)
        super().destroy_node()


class RosHandler(logging.Handler):
    """Brings what the core logs to the log of the node."""

    def __init__(self, node: LifecycleNode):
        super().__init__()
        self._logger = node.get_logger()

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record; rclpy wants each severity to come from a line of its own."""
        text = self.format(record)
        if record.levelno >= logging.ERROR:
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        elif record.levelno >= logging.INFO:
            self._logger.info(text)
        else:
            self._logger.debug(text)


def main(args: list[str] | None = None) -> None:
    """
    Run the node until it is done or is told to stop.

    The main thread only waits, so that it meets a signal at once, whatever the model does.
    """
    share_one_heap()
    # 1. from here on a signal is an exit status like any other
    finished: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: finished.put(0))
    # 2. the node
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = VlmNode(finished)
    except VlmError as exc:
        rclpy.logging.get_logger(NAME).fatal(str(exc))
        rclpy.try_shutdown()
        sys.exit(1)
    # 3. its callbacks
    stopping = threading.Event()
    thread = threading.Thread(target=spin, args=(node, stopping), name='ros', daemon=True)
    thread.start()
    # 4. the end
    status = finished.get()
    stopping.set()
    ended = node.hush(STOP_SECONDS)
    thread.join(0.5)
    if ended and not thread.is_alive():
        node.destroy_node()
        rclpy.try_shutdown()
    # What is left is either deep in a library, in a step that cannot be interrupted, or only the
    # end of the interpreter, which takes seconds on a busy board.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def spin(node: VlmNode, stopping: threading.Event) -> None:
    """Start the node and serve its callbacks."""
    if node.config.autostart:
        node.start()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    while rclpy.ok() and not stopping.is_set():
        executor.spin_once(timeout_sec=0.2)
    executor.shutdown()


if __name__ == '__main__':
    main()
