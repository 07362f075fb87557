# SPDX-License-Identifier: Apache-2.0
"""A thread that publishes diagnostics, whatever else the node is busy with."""

from __future__ import annotations

from collections.abc import Callable
import threading

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.node import Node

_SECONDS = 1.0


class Reporter:
    """
    Publishes on /diagnostics every second, and at once when something has happened.

    It has a thread and not a timer, so that it speaks while a transition takes its time, and on
    a clock of its own, so that it speaks while a recording is paused.
    """

    def __init__(self, node: Node, statuses: Callable[[], list[DiagnosticStatus]]):
        """
        Start.

        :param statuses: returns what is published; it is called in the thread
        """
        self._node, self._statuses = node, statuses
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name='diagnostics', daemon=True)
        self._thread.start()

    def soon(self) -> None:
        """Publish at once, not only when the second is over."""
        self._wake.set()

    def stop(self, timeout: float) -> None:
        """Publish a last time, and end; wait for that at most `timeout` seconds."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        """Publish until the end."""
        while not self._stopping:
            self._wake.wait(_SECONDS)
            self._wake.clear()
            try:
                array = DiagnosticArray(status=self._statuses())
                array.header.stamp = self._node.get_clock().now().to_msg()
                self._publisher.publish(array)
            except Exception as error:  # one report that fails must not be the last one
                self._node.get_logger().error(f'diagnostics: {type(error).__name__}: {error}')
