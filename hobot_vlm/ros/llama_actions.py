"""
The actions of llama_ros, where its package of messages is installed.

Its Python client and its LangChain wrappers then work with this node: ``generate_response`` and
``generate_chat_completions``, with feedback, cancel, pictures and tools, and the two services that
the wrappers ask. Knows actions and threads; what goals mean, ``llama_goals`` knows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, wait
from importlib import import_module
import logging
import threading
from typing import Any, TYPE_CHECKING

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy

from .llama_goals import Messages, read_messages, read_prompt
from .topics import in_namespace, LLAMA_CHAT, LLAMA_METADATA, LLAMA_RESPONSE, LLAMA_TOKENIZE
from ..errors import VlmError
from ..server.answers import Writer
from ..server.openai import Asked

if TYPE_CHECKING:
    from .. import Stream, VLM

log = logging.getLogger('hobot_vlm.node')

#: goals that may be open: more than a robot asks at once
CAPACITY = 100
#: seconds between two looks at whether a cancel has been noted
NOTED = 0.005
#: seconds from one piece of an answer to the next, at least, and from the last one to the result:
#: clients keep ten pieces that they have not read, rclpy's reads one in a round of its executor,
#: and none after the result. Only models of more than 200 tokens a second are held back
PACE, LAST = 0.005, 0.05
#: pieces of an answer that may wait for a slow client
PIECES = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)


def installed() -> bool:
    """Whether the messages of llama_ros are here."""
    try:
        import_module('llama_msgs.action')
    except ImportError:
        return False
    return True


class _Goal:
    """
    A goal that is being answered.

    :param stop: ends its answer, once that has begun
    """

    def __init__(self, handle: Any):
        self.handle = handle
        self.cancelled = threading.Event()
        self.by_client = False
        self.stop: Callable[[], None] = lambda: None

    def cancel(self) -> None:
        """Let its answer end."""
        self.cancelled.set()
        self.stop()


class LlamaActions:
    """Serves goals on an event loop of its own, any number side by side."""

    def __init__(self, node: Node, vlm: VLM):
        """
        Begin to serve.

        :raises ImportError: llama_msgs is not installed
        """
        actions, services = import_module('llama_msgs.action'), import_module('llama_msgs.srv')
        self._node, self._vlm = node, vlm
        self._messages = Messages(import_module('llama_msgs.msg'), vlm.tokenize)
        self._response, self._chat = actions.GenerateResponse, actions.GenerateChatCompletions
        self._talk = vlm.conversation()
        self._lock = threading.Lock()  # of the next three
        self._open: dict[bytes, _Goal] = {}
        self._tasks: set[Future[None]] = set()
        self._active = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name='llama', daemon=True)
        self._thread.start()
        group = ReentrantCallbackGroup()
        space = node.get_namespace()
        self._servers = [
            ActionServer(
                node,
                kind,
                in_namespace(topic.name, space),
                lambda handle: None,  # goals are ended where their answers end
                goal_callback=self._on_goal,
                handle_accepted_callback=self._on_accepted,
                cancel_callback=self._on_cancel,
                callback_group=group,
                feedback_pub_qos_profile=PIECES,
            )
            for kind, topic in ((self._response, LLAMA_RESPONSE), (self._chat, LLAMA_CHAT))
        ]
        self._services = [
            node.create_service(kind, in_namespace(topic.name, space), answer)
            for kind, topic, answer in (
                (services.GetMetadata, LLAMA_METADATA, self._on_metadata),
                (services.Tokenize, LLAMA_TOKENIZE, self._on_tokenize),
            )
        ]

    def start(self) -> None:
        """Begin to accept goals."""
        self._active = True

    def stop(self, seconds: float | None = None) -> bool:
        """End all answers; goals that come from now on are rejected. False: it takes longer."""
        with self._lock:
            self._active = False
            goals, tasks = list(self._open.values()), set(self._tasks)
        for goal in goals:
            goal.cancel()
        return not wait(tasks, seconds).not_done

    def close(self) -> None:
        """Leave the graph, and end the thread."""
        for server in self._servers:
            server.destroy()
        for service in self._services:
            self._node.destroy_service(service)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # -- callbacks ---------------------------------------------------------------------------

    def _on_goal(self, goal: Any) -> GoalResponse:
        if self._active and len(self._open) < CAPACITY:
            return GoalResponse.ACCEPT
        log.error('a goal of llama_ros is rejected: the node is inactive, or has too many')
        return GoalResponse.REJECT

    def _on_accepted(self, handle: Any) -> None:
        goal = _Goal(handle)
        with self._lock:
            self._open[bytes(handle.goal_id.uuid)] = goal
            task = asyncio.run_coroutine_threadsafe(self._serve(goal), self._loop)
            self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: Future[None]) -> None:
        with self._lock:
            self._tasks.discard(task)

    def _on_cancel(self, handle: Any) -> CancelResponse:
        with self._lock:
            goal = self._open.get(bytes(handle.goal_id.uuid))
        if goal is None:
            return CancelResponse.REJECT
        goal.by_client = True
        goal.cancel()
        return CancelResponse.ACCEPT

    def _on_metadata(self, request: Any, response: Any) -> Any:
        """Say what the model is, as far as that is known by name."""
        general, model = response.metadata.general, response.metadata.model
        general.name, general.architecture = self._vlm.name, self._vlm.family
        model.context_length = self._vlm.config.n_ctx
        return response

    def _on_tokenize(self, request: Any, response: Any) -> Any:
        response.tokens = self._vlm.tokenize(request.text)
        return response

    # -- one goal ----------------------------------------------------------------------------

    async def _serve(self, goal: _Goal) -> None:
        """Answer one goal, and end it: succeeded, cancelled or, with an error, aborted."""
        handle = goal.handle
        kind = self._chat if isinstance(handle.request, self._chat.Goal) else self._response
        result, whole = kind.Result(), False
        try:
            read = read_messages if kind is self._chat else read_prompt
            asked = await asyncio.to_thread(read, handle.request)
            writer = Writer(asked, self._vlm.name)
            answer, whole = await self._answer(goal, kind, asked, writer)
            result = self._result(kind, writer, answer)
        except VlmError as exc:
            log.error('a goal of llama_ros is aborted: %s', exc)
        except Exception:  # whatever happens, the others are answered
            log.exception('a goal of llama_ros is aborted')
        # rclpy notes that a goal is cancelled after its callback, so the answer may end before
        while goal.by_client and handle.is_active and not handle.is_cancel_requested:
            await asyncio.sleep(NOTED)
        with self._lock:
            del self._open[bytes(handle.goal_id.uuid)]

        def end(_: Any) -> Any:
            if whole:
                handle.succeed()
            elif handle.is_cancel_requested:
                handle.canceled()
            else:
                handle.abort()
            return result

        handle.execute(end)

    async def _answer(
        self, goal: _Goal, kind: Any, asked: Asked, writer: Writer
    ) -> tuple[dict[str, Any], bool]:
        """Ask the model and hand out the pieces; gives the whole, and whether it is whole."""
        stream = self._ask(goal.handle.request, kind, asked)
        goal.stop = stream.cancel
        if goal.cancelled.is_set():
            stream.cancel()
        events = writer.begin()
        async for chunk in stream:
            if goal.cancelled.is_set():
                continue  # what is left is not wanted any more
            events += writer.piece(0, chunk)
            for event in events:
                await self._feed(goal.handle, kind, writer, event)
            events = []
        reply = await stream
        for event in (*events, *writer.end(0, reply)):
            await self._feed(goal.handle, kind, writer, event)
        await asyncio.sleep(LAST)
        return writer.whole([reply]), reply.finish_reason in ('stop', 'length')

    def _ask(self, request: Any, kind: Any, asked: Asked) -> Stream:
        """Ask the model; responses are turns of one conversation, until one begins it anew."""
        (messages,) = asked.prompts
        if kind is self._chat:
            return self._vlm.stream(messages, **asked.options)
        if request.reset:
            self._talk = self._vlm.conversation()
        content = messages[-1]['content']
        parts = [{'type': 'text', 'text': content}] if isinstance(content, str) else content
        text = ''.join(part['text'] for part in parts if part['type'] == 'text')
        images = [part['image'] for part in parts if part['type'] == 'image']
        return self._talk.stream(text, images or None, **asked.options)

    async def _feed(self, handle: Any, kind: Any, writer: Writer, event: dict[str, Any]) -> None:
        """Publish what an event says, and give the client time to read it."""
        if kind is self._chat:
            chunk = self._messages.chunk(event)
            pieces = [self._messages.head(kind.Feedback, writer, [chunk], None)]
        else:
            made = self._messages.partial(event)
            pieces = [kind.Feedback(partial_response=piece) for piece in made]
        for piece in pieces:
            handle.publish_feedback(piece)
            await asyncio.sleep(PACE)

    def _result(self, kind: Any, writer: Writer, whole: dict[str, Any]) -> Any:
        if kind is not self._chat:
            return kind.Result(response=self._messages.response(whole))
        choice = self._messages.choice(whole)
        return self._messages.head(kind.Result, writer, [choice], whole['usage'])
