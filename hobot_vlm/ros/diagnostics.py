"""
What the node reports of itself, once a second on /diagnostics.

``Statistics`` is filled by those who answer and knows no ROS; ``Diagnostics`` publishes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
import threading

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.callback_groups import CallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from .outcome import Outcome
from .topics import DIAGNOSTICS
from ..machine import resident_bytes

PERIOD = 1.0


@dataclass
class Statistics:
    """
    Counts since the node started, and times of the last answer.

    :param similar: pictures that ``skip_similar`` passed over
    :param error: why the last prompt, or the start, failed; empty after a success
    :param input_ms: from the arrival of what was asked, or shown, to the call of the model
    :param publish_ms: from the model's last piece of text to the published answer
    """

    answered: int = 0
    cancelled: int = 0
    failed: int = 0
    similar: int = 0
    error: str = ''
    input_ms: float = 0.0
    publish_ms: float = 0.0
    last: Outcome | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, outcome: Outcome) -> None:
        """Note what became of a prompt; from any thread."""
        with self.lock:
            self.last = outcome
            self.error = outcome.error
            if outcome.error:
                self.failed += 1
            elif outcome.reply.finish_reason == 'cancelled':
                self.cancelled += 1
            else:
                self.answered += 1

    def values(self) -> dict[str, object]:
        """Give everything worth knowing, by name."""
        values: dict[str, object] = {
            'answered': self.answered,
            'cancelled': self.cancelled,
            'failed': self.failed,
            'similar pictures skipped': self.similar,
            'last error': self.error,
        }
        if self.last is not None:
            reply = self.last.reply
            values |= {f'last {name}': value for name, value in reply.as_dict()['timings'].items()}
            values |= {
                **({'last model': reply.model} if reply.model else {}),
                'last finish_reason': reply.finish_reason,
                'last prompt_tokens': reply.prompt_tokens,
                'last reused_tokens': reply.reused_tokens,
                'last completion_tokens': reply.completion_tokens,
                'last input_ms': round(self.input_ms, 3),
                'last publish_ms': round(self.publish_ms, 3),
            }
        return values


class Diagnostics:
    """
    Publishes the state of a node in every state that it has.

    :param group: of its timer
    :param state: gives a word for what the node does now
    :param troubles: gives what the node waits for, or what keeps it from its work
    :param values: gives what else is worth knowing
    :param about: what the report is about, after the name of the node
    """

    def __init__(
        self,
        node: Node,
        statistics: Statistics,
        group: CallbackGroup,
        *,
        state: Callable[[], str],
        troubles: Callable[[], list[str]],
        values: Callable[[], dict[str, object]],
        about: str = 'answers',
    ):
        self._node = node
        self._statistics = statistics
        self._state = state
        self._troubles = troubles
        self._values = values
        self._about = about
        self._publisher = node.create_publisher(DiagnosticArray, DIAGNOSTICS.name, 10)
        # by a steady clock: that of the node may stand still (use_sim_time without /clock)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = node.create_timer(PERIOD, self.publish, callback_group=group, clock=steady)

    def publish(self) -> None:
        """Publish now, whatever the timer says."""
        error = self._statistics.error
        state = self._state()
        troubles = '; '.join(self._troubles())
        level = DiagnosticStatus.OK
        if error:
            level = DiagnosticStatus.ERROR
        elif troubles:
            level = DiagnosticStatus.WARN
        values = {
            'state': state,
            'waits for': troubles,
            **self._values(),
            **self._statistics.values(),
            'memory_mb': round(resident_bytes() / 1e6, 1),
        }
        message = DiagnosticArray(
            status=[
                DiagnosticStatus(
                    level=level,
                    # in a namespace, with that: two robots have nodes of one name
                    name=f'{self._node.get_fully_qualified_name()[1:]}: {self._about}',
                    hardware_id='',
                    message=error or troubles or state,
                    values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
                )
            ]
        )
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)
