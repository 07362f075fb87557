# SPDX-License-Identifier: Apache-2.0
"""The node `segmentation`: a managed node from cameras to masks."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
import signal
import socket
import sys
import threading
from time import monotonic, monotonic_ns

from diagnostic_msgs.msg import DiagnosticArray
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from sensor_msgs.msg import Image

from trt_segmentation.errors import SegmentationError
from trt_segmentation.image_messages import check, MalformedImage, to_image
from trt_segmentation.ros import parameters
from trt_segmentation.ros.ages import age
from trt_segmentation.ros.diagnostics import status
from trt_segmentation.ros.outputs import Outputs
from trt_segmentation.ros.statistics import Statistics
from trt_segmentation.ros.worker import Worker
from trt_segmentation.segmenter import Segmenter

_LOG_PERIOD = 5.0
_STOP_SECONDS = 1.0


@dataclass
class Frame:
    """A frame that waits: its message, and when it arrived on the steady clock."""

    message: Image
    arrived_ns: int


class SegmentationNode(LifecycleNode):
    """Turns the latest frame into masks, on time or not at all."""

    def __init__(self, stopped: threading.Event):
        """
        Create the node, unconfigured.

        :param stopped: is set when the process shall end: what takes long gives up then
        """
        super().__init__('segmentation')
        self._stopped = stopped
        self._settings = parameters.declare(self, lambda: self._state() == 'unconfigured')
        self._statistics = Statistics()
        self._worker: Worker[Frame] = Worker(1, self._process, self._on_crash)
        self._segmenter: Segmenter | None = None
        self._outputs: Outputs | None = None
        self._subscription = None
        self._reason = ''
        self._logged: dict[str, float] = {}
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self._reporter = threading.Thread(target=self._report, daemon=True)
        self._reporter.start()
        if self._settings.autostart:
            self._autostart = self.create_timer(0.0, self._start)

    def close(self) -> None:
        """Free all; the node cannot be used any more."""
        self._stopped.set()
        if self._state() in ('unconfigured', 'inactive', 'active'):
            self.trigger_shutdown()
        self._worker.stop(_STOP_SECONDS)
        self._reporter.join(_STOP_SECONDS)
        self.destroy_node()

    # Transitions

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Check the bundle and open the engine."""
        return self._transition('configure', self._configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe."""
        return self._transition('activate', self._activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop taking frames."""
        return self._transition('deactivate', self._deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the engine."""
        return self._transition('clean up', self._cleanup)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free all."""
        return self._transition('shut down', self._cleanup)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free all, so that the node can be configured again."""
        return self._transition('free', self._cleanup)

    def _start(self) -> None:
        """Configure and activate, once."""
        self._autostart.cancel()
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    def _transition(self, name: str, function) -> TransitionCallbackReturn:
        """Run a transition; log and keep the reason of a failure, which rclpy would swallow."""
        try:
            function()
        except Exception as error:
            self._reason = f'cannot {name}: {error}'
            self.get_logger().error(self._reason)
            expected = isinstance(error, SegmentationError) and name in ('configure', 'activate')
            return (TransitionCallbackReturn.FAILURE if expected
                    else TransitionCallbackReturn.ERROR)
        self._reason = ''
        self.get_logger().info(f'{name}: done')
        return TransitionCallbackReturn.SUCCESS

    def _configure(self) -> None:
        settings = self._settings
        self._segmenter = self._in_worker(lambda: Segmenter.open(
            settings.bundle, backend=settings.backend, precision=settings.precision,
            store=settings.store or None, build_missing=settings.build_missing))
        self._outputs = Outputs(self, '~/')

    def _activate(self) -> None:
        qos = QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=1,
                         reliability=QoSReliabilityPolicy.BEST_EFFORT)
        self._subscription = self.create_subscription(Image, 'image', self._on_image, qos)

    def _deactivate(self) -> None:
        if self._subscription is not None:
            self.destroy_subscription(self._subscription)
            self._subscription = None
        self._worker.clear()
        self._in_worker(lambda: None)  # returns when no frame is in work

    def _cleanup(self) -> None:
        self._deactivate()
        if self._segmenter is not None:
            segmenter, self._segmenter = self._segmenter, None
            self._in_worker(segmenter.close)
        if self._outputs is not None:
            outputs, self._outputs = self._outputs, None
            for publisher in outputs.publishers:
                self.destroy_publisher(publisher)

    def _in_worker(self, function):
        """Run a function in the engine's thread and return its result."""
        future = self._worker.call(function)
        grace = monotonic() + _STOP_SECONDS
        while True:
            try:
                return future.result(0.1)
            except FutureTimeout:
                if future.done():
                    raise
            if not self._stopped.is_set():
                grace = monotonic() + _STOP_SECONDS
            elif monotonic() > grace:
                raise RuntimeError('the engine is busy and the process ends')

    def _state(self) -> str:
        """Return the lifecycle state's name."""
        return self._state_machine.current_state[1]

    # Frames

    def _on_image(self, message: Image) -> None:
        """Hand a frame over to the worker."""
        self._statistics.count('received')
        try:
            check(message)
        except MalformedImage as error:
            self._drop(f'malformed_{error.cause}', str(error))
            return
        if self._worker.offer(0, Frame(message, monotonic_ns())) is not None:
            self._statistics.count('dropped_replaced')

    def _process(self, frame: Frame) -> None:
        """Turn a frame into masks; in the worker's thread."""
        start = monotonic_ns()
        segmenter, outputs, header = self._segmenter, self._outputs, frame.message.header
        if segmenter is None or outputs is None or self._is_late(frame, 'before_inference'):
            return
        try:
            image, color = to_image(frame.message)
        except MalformedImage as error:
            self._drop(f'malformed_{error.cause}', str(error))
            return
        converted = monotonic_ns()
        masks = segmenter.segment(image, outputs.wanted(), color=color)
        if self._is_late(frame, 'before_publishing'):
            return
        segmented = monotonic_ns()
        outputs.publish(masks, header)
        end = monotonic_ns()
        self._statistics.count('published')
        self._statistics.time({
            'wait': (start - frame.arrived_ns) * 1e-6,
            'convert': (converted - start) * 1e-6,
            **masks.stage_ms,
            'publish': (end - segmented) * 1e-6,
            'processing': (end - start) * 1e-6,
            'total': (end - frame.arrived_ns) * 1e-6,
        })

    def _is_late(self, frame: Frame, when: str) -> bool:
        """Tell whether a frame is too old or not to be trusted, and count it if so."""
        stamp = frame.message.header.stamp
        how_old = age(stamp.sec * 1_000_000_000 + stamp.nanosec,
                      self.get_clock().now().nanoseconds, monotonic_ns() - frame.arrived_ns)
        if how_old.foreign and when == 'before_inference':
            self._statistics.count('foreign_stamp')
            self._log_once('foreign_stamp', (
                'a stamp is more than 10 s old or 0.5 s ahead: from another clock; if this is a '
                'recording, play it with --clock and set use_sim_time'))
            if self._settings.strict_stamps:
                self._statistics.count('dropped_foreign_stamp')
                return True
        if how_old.ns > self._settings.max_frame_age_ms * 1_000_000:
            self._statistics.count(f'dropped_late_{when}')
            return True
        return False

    def _drop(self, cause: str, text: str) -> None:
        """Count a dropped frame and log its cause at a limited rate."""
        self._statistics.count(f'dropped_{cause}')
        now = monotonic()
        if now - self._logged.get(cause, -_LOG_PERIOD) >= _LOG_PERIOD:
            self._logged[cause] = now
            self.get_logger().warning(f'frame dropped: {text}')

    def _log_once(self, cause: str, text: str) -> None:
        """Log a warning the first time only."""
        if cause not in self._logged:
            self._logged[cause] = monotonic()
            self.get_logger().warning(text)

    def _on_crash(self, error: BaseException) -> None:
        """Note what the worker could not cope with."""
        self._reason = f'{type(error).__name__}: {error}'
        self._drop('engine_error', self._reason)

    # Diagnostics

    def _report(self) -> None:
        """Publish diagnostics once a second, in a thread of its own: it speaks in every state."""
        while not self._stopped.wait(1.0):
            array = DiagnosticArray(status=[status(
                self.get_fully_qualified_name(), self._state(), self._reason, self._statistics)])
            array.header.stamp = self.get_clock().now().to_msg()
            self._diagnostics.publish(array)


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM."""
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    stop, stopped = Future(), threading.Event()
    _on_signal(lambda: (stopped.set(), stop.set_result(None)))
    node = SegmentationNode(stopped)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        executor.spin_until_future_complete(stop)
    finally:
        node.close()
        executor.shutdown()
        rclpy.shutdown()
    return 0


def _on_signal(function) -> None:
    """
    Call a function, in a thread, at the first SIGINT or SIGTERM; later ones do nothing.

    A Python signal handler would wait for the main thread, which waits in DDS.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)

    def watch() -> None:
        with reader, writer:
            reader.recv(1)
            function()
            threading.Event().wait()  # keeps the sockets open for later signals

    threading.Thread(target=watch, daemon=True).start()


if __name__ == '__main__':
    sys.exit(main())
