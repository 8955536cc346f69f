"""What the core logs, in the log of the node; the core itself knows no ROS."""

from __future__ import annotations

import logging

from rclpy.node import Node


class RosHandler(logging.Handler):
    """Brings what the core logs to the log of the node."""

    def __init__(self, node: Node):
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
