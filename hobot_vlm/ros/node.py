"""
The ROS 2 node: its parameters, its states, and what it reports of itself.

The states are those of a lifecycle node: configure loads the model, activate answers, deactivate
and cleanup undo both. What works in this file works in Humble.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import gc
import logging
import queue
import threading
from typing import Any, Protocol

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.lifecycle.node import LifecycleNodeMixin
from rclpy.node import Node
from rclpy.parameter import Parameter

from . import parameters
from .assembly import Assembly
from .diagnostics import Diagnostics, Statistics
from .inbox import Inbox
from .ros_log import RosHandler
from ..errors import VlmError
from ..node_config import NodeConfig
from ..vlm import VLM

NAME = 'hobot_vlm'

SUCCESS = TransitionCallbackReturn.SUCCESS
FAILURE = TransitionCallbackReturn.FAILURE


class Working(Protocol):
    """What a configured node consists of."""

    inbox: Inbox

    @property
    def busy(self) -> bool:
        """Whether it has something to do."""

    def activate(self) -> None:
        """Begin."""

    def deactivate(self, seconds: float | None = None) -> bool:
        """Stop; False when that takes longer. Twice is harmless."""

    def close(self) -> None:
        """Free everything."""

    def troubles(self) -> list[str]:
        """Say what keeps it from its work."""

    def values(self) -> dict[str, object]:
        """Give counts, by name."""


class VlmNode(LifecycleNodeMixin, Node):
    """
    Answers prompts about pictures.

    :cvar default_name: of the node
    :cvar kind: its options
    :cvar working: the word for an active node that has something to do
    :cvar reports: what its diagnostics are about
    :param finished: given the exit status when there is nothing more to do
    :param typed: what stands on the command line for each parameter
    """

    default_name = NAME
    kind: type[NodeConfig] = NodeConfig
    working = 'answering'
    reports = 'answers'

    def __init__(
        self,
        finished: queue.SimpleQueue[int] | None = None,
        typed: Mapping[str, Sequence[str]] | None = None,
        **options: Any,
    ):
        """
        Declare the parameters.

        :param options: of ``rclpy.node.Node``
        :raises ConfigError: a parameter with a value that it cannot have
        """
        Node.__init__(self, self.default_name, **options)
        # apart from all else, so that the state can be asked for while the model loads
        LifecycleNodeMixin.__init__(self, callback_group=ReentrantCallbackGroup())
        self._finished = finished
        self._log_handler = RosHandler(self)
        logging.getLogger(NAME).addHandler(self._log_handler)
        logging.getLogger(NAME).setLevel(logging.DEBUG)  # what is logged is for ROS to say
        self.statistics = self._make_statistics()
        self.assembly: Working | None = None
        self._phase = 'unconfigured'
        self._ending = False
        self._transition = threading.RLock()
        try:
            self.config = parameters.declare(self, typed, self.kind)
        except VlmError:
            self.destroy_node()
            raise
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._diagnostics = Diagnostics(
            self,
            self.statistics,
            MutuallyExclusiveCallbackGroup(),
            state=self._state,
            troubles=self._troubles,
            values=self._values,
            about=self.reports,
        )

    @property
    def vlm(self) -> VLM | None:
        """Give the model, while there is one."""
        return self.assembly.vlm if isinstance(self.assembly, Assembly) else None

    def _make_statistics(self) -> Statistics:
        return Statistics()

    def _assemble(self) -> Working:
        return Assembly(self, self.config, self.statistics, self._finish)

    # -- lifecycle ---------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model, and let prompts wait."""
        return self._attempt('configure', self._configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to pictures, and begin to answer."""
        return self._attempt('activate', self._activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop the running answers; prompts wait for the next activation."""
        return self._attempt('deactivate', self._deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model."""
        return self._attempt('clean up', self._cleanup)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop, and free everything."""
        return self._attempt('shut down', self._cleanup)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Go back to the beginning."""
        return self.on_shutdown(state)

    def start(self) -> None:
        """Configure and activate, as ``autostart`` asks for."""
        if self.trigger_configure() != SUCCESS or self.trigger_activate() != SUCCESS:
            self._finish(1)

    def _attempt(self, what: str, step: Callable[[], None]) -> TransitionCallbackReturn:
        """Make a transition; say why where it fails, because Humble's rclpy does not."""
        with self._transition:
            try:
                step()
            except Exception as exc:
                if self._ending:
                    return FAILURE
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
        self._phase = 'loading the model'
        self.statistics.error = ''
        self._diagnostics.publish()
        self.config = parameters.current(self, self.config)
        self.assembly = self._assemble()
        self._phase = 'inactive'

    def _activate(self) -> None:
        assert self.assembly is not None
        self.assembly.activate()
        self._phase = 'active'
        self.get_logger().info('ready')

    def _deactivate(self) -> None:
        """Undo ``_activate``; harmless where that never ran."""
        if self.assembly is not None:
            self.assembly.deactivate()
        self._phase = 'inactive'

    def _cleanup(self) -> None:
        """Undo ``_configure``; harmless where that never ran."""
        if self.assembly is not None:
            self.assembly.close()
            self.assembly = None
            gc.collect()  # its parts know each other, and are not to wait with all their memory
        self._phase = 'unconfigured'

    # -- parameters --------------------------------------------------------------------------

    def set_parameters_atomically(self, parameter_list: list[Parameter]) -> Any:
        """Set parameters; a number that the option takes is taken, whatever its type to ROS."""
        return super().set_parameters_atomically(
            parameters.typed_by_option(parameter_list, type(self.config))
        )

    def _on_set_parameters(self, changes: list[Parameter]) -> Any:
        result = parameters.check_change(parameters.current(self, self.config), changes)
        if self.assembly is not None:
            self.assembly.inbox.wake()
        return result

    # -- diagnostics -------------------------------------------------------------------------

    def _state(self) -> str:
        assembly = self.assembly
        if self._phase != 'active' or assembly is None:
            return self._phase
        return self.working if assembly.busy else 'idle'

    def _troubles(self) -> list[str]:
        assembly = self.assembly
        if assembly is None:
            return []
        if self._phase == 'active':
            return assembly.troubles()
        count = len(assembly.inbox)
        return [f'{count} prompts wait: activate the node'] if count else []

    def _values(self) -> dict[str, object]:
        assembly = self.assembly
        return {**self._model(), **(assembly.values() if assembly is not None else {})}

    def _model(self) -> dict[str, object]:
        config = self.config
        return {'model': config.llm_model_name or config.model, 'feed_type': config.feed_type}

    # -- the end -----------------------------------------------------------------------------

    def _finish(self, status: int) -> None:
        if self._finished is not None:
            self._finished.put(status)

    def stop(self, seconds: float) -> bool:
        """Stop the running answers; False when the model does not come to its end in time."""
        self._ending = True
        return self.assembly is None or self.assembly.deactivate(seconds)

    def destroy_node(self, wait: bool = True) -> None:
        """
        Free everything.

        :param wait: False: free only what other nodes see, because the model is still busy
        """
        self._ending = True
        if wait and self._transition.acquire(blocking=False):
            self._cleanup()
            self._transition.release()
        logging.getLogger(NAME).removeHandler(self._log_handler)
        super().destroy_node()
        # holds the node's handle, and so keeps it in the graph; rclpy leaves it to the collector
        self._state_machine.destroy_when_not_in_use()
