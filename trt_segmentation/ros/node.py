# SPDX-License-Identifier: Apache-2.0
"""The node `segmentation`: a managed node from cameras to masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
import gc
import os
import sys
import threading
from time import monotonic, monotonic_ns
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.srv import ChangeState
import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from std_srvs.srv import Trigger

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.errors import (
    CheckFailed,
    DeviceError,
    DeviceLost,
    EngineMissing,
    InputError,
    SegmentationError,
)
from trt_segmentation.ros import diagnostics, parameters
from trt_segmentation.ros.camera import Camera, Frame
from trt_segmentation.ros.engine_build import EngineBuild
from trt_segmentation.ros.frame_pipeline import Pipeline
from trt_segmentation.ros.labels import publish_labels
from trt_segmentation.ros.process import on_stop_signal
from trt_segmentation.ros.recovery import Recovery
from trt_segmentation.ros.reporter import Reporter
from trt_segmentation.ros.worker import Worker
from trt_segmentation.system import shared_memory

UNCONFIGURED, INACTIVE, ACTIVE = 'unconfigured', 'inactive', 'active'
_STATES = (UNCONFIGURED, INACTIVE, ACTIVE)
_SUPERVISION_SECONDS = 0.1
_FOLLOW_SECONDS = 1.0
_STOP_SECONDS = 1.0  # that the engine gets, in all, to finish when the process shall end
_REPORTER_SECONDS = 0.2  # and the last diagnostics


class EngineStuck(Exception):
    """Report that the engine does not return."""


class Building(Exception):
    """Report that the node can be configured when the engine is built."""


class SegmentationNode(LifecycleNode):
    """
    Turns the latest frame of each camera into masks, on time or not at all.

    The executor's thread runs all callbacks and transitions; the worker's thread owns the engine;
    a third one publishes diagnostics, so that they speak even while a transition takes its time.
    """

    def __init__(self, end_process: Callable[[int], None], stopping: threading.Event):
        """
        Create the node, unconfigured.

        :param end_process: ends the process with an exit code, when nothing else can help
        :param stopping: is set when the process ends: what takes long gives up then
        :raises InputError: for a parameter with a value that it cannot have
        """
        super().__init__('segmentation')
        self._end_process, self._stopping = end_process, stopping
        self._settings = parameters.declare(self, lambda: self._state() == UNCONFIGURED)
        self._pipeline = Pipeline(lambda: self.get_clock().now().nanoseconds, self._settings)
        self._worker = self._new_worker()
        self._cameras: list[Camera] = []
        self._reports: list[diagnostics.CameraReport] = []
        self._label_publishers: list = []
        self._goal = ACTIVE if self._settings.autostart else UNCONFIGURED
        self._by_itself = False  # whether the transition that runs was the node's own idea
        self._reason = ''  # why the state is not the goal
        self._given_up = False  # until somebody asks for a transition
        self._build: EngineBuild | None = None
        self._built_precision = ''
        self._fault: BaseException | None = None
        self._transition_since: float | None = None
        self._end_by: float | None = None  # when what still runs is given up on
        self._recovery = Recovery(lambda: self._settings.max_recoveries_per_minute)
        self._self_test = 'not run'
        self.create_service(Trigger, '~/self_test', self._on_self_test)
        self._answer_impossible_transitions()
        # Not on the node's clock, which stands still when a recording is paused.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(_SUPERVISION_SECONDS, self._supervise, clock=steady)
        self.create_timer(_FOLLOW_SECONDS, self._follow, clock=steady)
        self._reporter = Reporter(self, self._statuses)

    def close(self) -> bool:
        """Free all; return whether the engine let go in time."""
        self._stopping.set()
        self._stop_build()
        if self._state() in _STATES:
            self._by_itself = True
            self.trigger_shutdown()
        freed = self._worker.stop(self._time_left())
        self._reporter.stop(_REPORTER_SECONDS)
        self.destroy_node()
        return freed

    # Transitions

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Check the bundle and open the engine."""
        return self._transition('configure', self._configure,
                                INACTIVE if self._goal == UNCONFIGURED else self._goal)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Prove the engine, and subscribe."""
        return self._transition('activate', self._activate, ACTIVE)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop taking frames."""
        return self._transition('deactivate', self._deactivate, INACTIVE)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the engine and take the topics away."""
        return self._transition('clean up', self._cleanup, UNCONFIGURED)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free all."""
        return self._transition('shut down', self._cleanup, UNCONFIGURED)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free all after a transition that failed badly, so that it can be tried again."""
        reason = self._reason
        try:
            self._cleanup()
        except Exception as error:
            self.get_logger().fatal(f'cannot clean up: {_in_words(error)}')
            return TransitionCallbackReturn.FAILURE
        finally:
            self._reason = reason
        return TransitionCallbackReturn.SUCCESS

    def _answer_impossible_transitions(self) -> None:
        """
        Let the service answer no to a transition that the state does not have.

        Up to Jazzy, rclpy raises an error then, which ends the process of a node that knows no
        better, and gives no answer.
        """
        change_state = self._service_change_state.callback

        def answer(request: ChangeState.Request, response: ChangeState.Response
                   ) -> ChangeState.Response:
            try:
                return change_state(request, response)
            except Exception as error:
                self.get_logger().error(f'change_state: {_in_words(error)}')
                response.success = False
                return response

        self._service_change_state.callback = answer

    def _transition(self, name: str, function: Callable[[], None], goal: str
                    ) -> TransitionCallbackReturn:
        """
        Run a transition; log and keep the reason if it fails, which rclpy would swallow.

        :param goal: what somebody wants who asks for this transition from outside
        """
        if not self._by_itself:
            self._goal, self._given_up = goal, False
        self._transition_since = monotonic()
        try:
            function()
        except Building as error:
            self._reason = str(error)
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            self._reason = f'cannot {name}: {_in_words(error)}'
            self.get_logger().error(self._reason)
            if name not in ('configure', 'activate'):
                self._given_up = True
                return TransitionCallbackReturn.ERROR
            # Bad input stays bad until somebody mends it; an engine that fails may work again.
            if isinstance(error, SegmentationError) and not isinstance(error, DeviceError):
                self._given_up = True
            else:
                self.note_fault(error)
            return TransitionCallbackReturn.FAILURE
        finally:
            self._transition_since = None
            self._reporter.soon()
        self.get_logger().info(f'{name}: done')
        return TransitionCallbackReturn.SUCCESS

    def _configure(self) -> None:
        """Open the engine, or begin to build it; then create the topics."""
        settings = self._settings
        if self._build is not None:
            if self._build.order == self._order():
                raise Building('the engine is being built')
            self._stop_build()  # of what was wanted before
        self._free()  # what an attempt that failed has left
        if not settings.bundle:
            raise InputError('parameter bundle: empty; name the bundle directory')
        bundle = self._in_worker(lambda: Bundle.open(settings.bundle), self._open_timeout())
        precision = settings.precision
        if precision == 'auto':
            precision = self._built_precision
        try:
            if not precision:
                raise EngineMissing(f'bundle {settings.bundle}: the fastest precision here is '
                                    'not known yet')
            self._in_worker(lambda: self._pipeline.open(bundle, precision), self._open_timeout())
        except EngineMissing as error:
            if not settings.build_missing:
                raise
            self._start_build()
            raise Building(str(error)) from None
        for index, name in enumerate(parameters.camera_names(settings)):
            self._cameras.append(Camera(self, index, name, settings, self._offer))
        self._reports = [diagnostics.CameraReport(camera) for camera in self._cameras]
        self._label_publishers = publish_labels(self, bundle.spec.labels)
        self._reason = ''

    def _activate(self) -> None:
        """Run the golden frames, and subscribe if the engine passes."""
        self._prove()
        # What exists now stays: without looking at it again, a collection takes no frame's time.
        gc.collect()
        gc.freeze()
        for camera in self._cameras:
            camera.start()
        self._reason = ''

    def _deactivate(self) -> None:
        """Unsubscribe, and wait for the frame that is in work."""
        for camera in self._cameras:
            camera.stop()
        gc.unfreeze()
        for frame in self._worker.clear():
            frame.camera.statistics.count('dropped_stopped')
        self._in_worker(lambda: None, self._engine_timeout())
        self._reason = ''

    def _cleanup(self) -> None:
        """Free engine and topics."""
        self._deactivate()
        self._stop_build()
        self._built_precision = ''
        self._free()

    def _free(self) -> None:
        """Close the engine and destroy the topics, as far as they are there."""
        self._in_worker(self._pipeline.close, self._engine_timeout())
        cameras, self._cameras, self._reports = self._cameras, [], []
        for camera in cameras:
            camera.close()
        for publisher in self._label_publishers:
            self.destroy_publisher(publisher)
        self._label_publishers = []

    def _prove(self) -> None:
        """Run the self-test; raise CheckFailed if the masks are not what they must be."""
        try:
            self._in_worker(self._pipeline.self_test,
                            self._engine_timeout(1 + self._pipeline.golden_frames))
        except CheckFailed as error:
            self._self_test = str(error)
            raise
        self._self_test = 'passed' if self._pipeline.golden_frames else 'no golden frames'

    def _in_worker(self, function: Callable[[], Any], timeout: float) -> Any:
        """
        Run a function in the engine's thread and return its result.

        :param timeout: seconds after which the engine counts as stuck, and the process ends
        :raises EngineStuck: then, or when the process ends for another reason
        """
        worker = self._worker
        future = worker.call(function)
        deadline = monotonic() + timeout
        while True:
            try:
                return future.result(0.05)
            except FutureTimeout:
                if future.done():  # the function itself has raised it
                    raise
            if not worker.alive and not future.done():
                raise EngineStuck('the thread of the engine has ended')
            if self._stopping.is_set():
                if not self._time_left():
                    raise EngineStuck('the engine has not returned, and the process ends')
            elif monotonic() > deadline:
                self._end_for_restart(f'the engine has not returned for {timeout:g} s')

    def _time_left(self) -> float:
        """Return the seconds left to finish in; call it only when the process shall end."""
        if self._end_by is None:
            self._end_by = monotonic() + _STOP_SECONDS
        return max(0.0, self._end_by - monotonic())

    def _open_timeout(self) -> float:
        """Return the seconds after which a bundle or an engine that is opened counts as stuck."""
        return self._settings.open_timeout_ms * 1e-3

    def _engine_timeout(self, frames: int = 1) -> float:
        """Return the seconds after which an engine that runs so many frames counts as stuck."""
        return self._settings.engine_timeout_ms * 1e-3 * frames

    def _end_for_restart(self, reason: str) -> None:
        """End the process: nothing else frees an engine that does not return, or a lost GPU."""
        self._reason = reason
        self.get_logger().fatal(f'{reason}; ending the process, to be started again')
        self._reporter.soon()
        self._end_process(1)

    # Supervision

    def _supervise(self) -> None:
        """Look after engine, build and goal; ten times a second."""
        self._look_at_worker()
        if self._fault is not None:
            self._on_fault()
        if self._build is not None and self._build.ended():
            self._after_build()
        if self._recovery.due():
            self._recover()
        self._pursue_goal()
        if self._state() == ACTIVE and self._settings.lazy:
            for camera in self._cameras:
                camera.look_at_subscribers()

    def _follow(self) -> None:
        """Let each camera adapt to its publishers and subscribers; every second."""
        if self._state() == ACTIVE:
            for camera in self._cameras:
                camera.start()  # in case it was lazy and is not any more
                camera.follow()

    def _pursue_goal(self) -> None:
        """Make the transition that leads to the goal, if nothing is in its way."""
        if self._given_up or self._build is not None or self._recovery.pending:
            return
        state = self._state()
        if state == UNCONFIGURED and self._goal in (INACTIVE, ACTIVE):
            self._trigger(self.trigger_configure)
        elif state == INACTIVE and self._goal == ACTIVE:
            self._trigger(self.trigger_activate)

    def _trigger(self, transition: Callable[[], Any]) -> None:
        """Make a transition that nobody has asked for."""
        self._by_itself = True
        try:
            transition()
        finally:
            self._by_itself = False

    def _look_at_worker(self) -> None:
        """Replace a worker that died; end the process if the engine does not return."""
        since, limit = self._pipeline.in_work_since_ns, self._engine_timeout()
        if since is not None and (monotonic_ns() - since) * 1e-9 > limit:
            self._end_for_restart(f'the engine has not returned for {limit:g} s')
        elif not self._worker.alive and not self._stopping.is_set():
            self._worker = self._new_worker()
            self.note_fault(RuntimeError('the worker thread ended'))

    def _offer(self, camera: int, frame: Frame) -> Frame | None:
        """Hand a frame to the worker that there is now."""
        return self._worker.offer(camera, frame)

    def _new_worker(self) -> Worker[Frame]:
        """Return a worker that runs the pipeline."""
        return Worker(self._pipeline.process, self.note_fault)

    def note_fault(self, error: BaseException) -> None:
        """Remember an error that stops the node until it has recovered; in any thread."""
        self._fault = error

    def _on_fault(self) -> None:
        """Stop publishing after a fault, and arrange for the engine to be opened again."""
        error, self._fault = self._fault, None
        if isinstance(error, DeviceLost):
            self._end_for_restart(str(error))
            return
        reason = f'engine fault: {_in_words(error)}'
        self.get_logger().error(reason)
        if self._state() == ACTIVE:
            self._trigger(self.trigger_deactivate)
        self._fault = None  # the frame in work may have failed too, of the same cause
        self._reason = reason
        self._recovery.request(reason)
        self._reporter.soon()

    def _recover(self) -> None:
        """Open the engine again; or have it built again, if that was what failed."""
        self._recovery.begin()
        if self._state() != INACTIVE:
            return  # the goal leads to a new configuration
        try:
            self._in_worker(self._pipeline.reopen, self._open_timeout())
        except InputError as error:  # such as: the bundle is another one than before
            self.get_logger().error(f'cannot open the engine again: {error}; configuring anew')
            self._trigger(self.trigger_cleanup)
        except DeviceLost as error:
            self._end_for_restart(str(error))
        except Exception as error:
            self._reason = f'cannot open the engine again: {_in_words(error)}'
            self.get_logger().error(self._reason)
            self._recovery.request(self._reason)
        else:
            self._reason = ''
            self.get_logger().info('the engine was opened again')

    def _start_build(self) -> None:
        """Begin to build the engine in a child process."""
        self._build = EngineBuild(*self._order(), self.get_logger().info)
        self.get_logger().info('building the engine in a child process')

    def _order(self) -> tuple[str, str, str, str]:
        """Return what is to be built, as `EngineBuild` takes it."""
        settings = self._settings
        return settings.bundle, settings.backend, settings.precision, settings.store

    def _after_build(self) -> None:
        """Go on when the build has ended: to configure, or to say why not."""
        build, self._build = self._build, None
        failure = build.failure()
        if not failure:
            self._built_precision = build.precision()
            self.get_logger().info(f'the engine was built in {build.seconds:.0f} s')
            return
        self._reason = f'the engine could not be built: {failure}'
        self.get_logger().error(self._reason)
        if build.killed():
            self._recovery.request(self._reason)
        else:
            self._given_up = True
        self._reporter.soon()

    def _stop_build(self) -> None:
        """End a build that nobody waits for any more."""
        build, self._build = self._build, None
        if build is not None:
            build.stop()

    def _on_self_test(self, request: Trigger.Request, response: Trigger.Response
                      ) -> Trigger.Response:
        """Run the golden frames; stop publishing if a mask is not what it must be."""
        response.success = False
        try:
            self._prove()
        except CheckFailed as error:
            response.message = str(error)
            self.get_logger().error(response.message)
            if self._state() == ACTIVE:
                self._trigger(self.trigger_deactivate)
                self._reason, self._given_up = response.message, True
        except Exception as error:
            response.message = _in_words(error)
            self.note_fault(error)
        else:
            response.success = self._pipeline.golden_frames > 0
            response.message = self._self_test
        self._reporter.soon()
        return response

    def _state(self) -> str:
        """Return the name of the lifecycle state."""
        return self._state_machine.current_state[1]

    def _statuses(self) -> list[DiagnosticStatus]:
        """Return the node's status and each camera's."""
        name, state = self.get_fully_qualified_name().lstrip('/'), self._state()
        since = self._transition_since
        return [
            diagnostics.node_status(
                name, state=state, goal=self._goal, reason=self._reason,
                transition_s=0.0 if since is None else monotonic() - since, build=self._build,
                pipeline=self._pipeline, recovery=self._recovery, self_test=self._self_test),
            *(report.status(name, self._settings, state == ACTIVE) for report in self._reports)]


def _in_words(error: BaseException) -> str:
    """Return an error's message, with its type if it is not one of ours."""
    if isinstance(error, (SegmentationError, EngineStuck)):
        return str(error)
    return f'{type(error).__name__}: {error}'


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; return the exit code."""
    shared_memory.remove_abandoned_segments()
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    stop, stopping = Future(), threading.Event()

    def end_process(code: int) -> None:
        stopping.set()
        if not stop.done():
            stop.set_result(code)

    on_stop_signal(lambda: end_process(0))
    try:
        node = SegmentationNode(end_process, stopping)
    except InputError as error:
        print(f'segmentation_node: {error}', file=sys.stderr)
        rclpy.shutdown()
        return 2
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while not stop.done():
            try:
                executor.spin_until_future_complete(stop)
            except Exception as error:  # no callback raises on purpose
                node.note_fault(error)
    finally:
        freed = node.close()
        executor.shutdown()
        rclpy.shutdown()
        if not freed:
            # A thread that never returns would keep the interpreter from ending.
            sys.stdout.flush()
            sys.stderr.flush()
            shared_memory.remove_own_segments()
            os._exit(1)
    return stop.result()


if __name__ == '__main__':
    sys.exit(main())
