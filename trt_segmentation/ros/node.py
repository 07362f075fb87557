# SPDX-License-Identifier: Apache-2.0
"""The node `segmentation`: a managed node from cameras to masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
import os
import sys
import threading
from time import monotonic
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

from trt_segmentation.errors import CheckFailed, DeviceLost, EngineMissing
from trt_segmentation.ros import diagnostics, given, outputs, parameters, process, refused
from trt_segmentation.ros.camera import Camera
from trt_segmentation.ros.closed_loop import SHADOW
from trt_segmentation.ros.failures import in_words, kind_of, Waits
from trt_segmentation.ros.supervisor import (
    Action,
    ACTIVE,
    Asked,
    BuildBegun,
    Failed,
    FINALIZED,
    INACTIVE,
    Kind,
    Mode,
    Returned,
    Situation,
    Supervisor,
    UNCONFIGURED,
)
from trt_segmentation.ros.transitions import Building, Transitions
from trt_segmentation.ros.wanted import engines
from trt_segmentation.ros.worker import Ending
from trt_segmentation.system import shared_memory

_SUPERVISION_SECONDS = 0.1
_FOLLOW_SECONDS = 1.0
_REPORTER_SECONDS = 2.0  # that the last diagnostics get when the process shall end, under load
_STALL_SECONDS = 10.0  # without supervision, though nothing takes its time: the executor hangs
_STALLS = 5  # that were seen, one a second: one alone follows when the machine was suspended
_ERROR_PAUSE = 0.05  # after an error in a callback: many at once must not take the processor


class SegmentationNode(LifecycleNode):
    """
    Turns the latest frame of each camera into masks, on time or not at all.

    The executor's thread runs all callbacks and transitions; the engine's thread owns the engine;
    a third one publishes diagnostics, so that they speak even while a transition takes its time.
    What to do next the supervisor decides; here it is done, and what came of it is reported back.
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
        self._work = Transitions(self, self._settings, self._on_frame_error, stopping)
        self._reports: dict[Camera, diagnostics.CameraReport] = {}
        self._cameras_said: list[DiagnosticStatus] = []
        self._asked_to_end = False
        self._supervisor = Supervisor(
            ACTIVE if self._settings.autostart else UNCONFIGURED, self._act, self._situation)
        self._waits = Waits()
        self._by_itself = False  # whether the transition that runs was the node's own idea
        self._busy_since: float | None = None  # with a transition or a self-test
        self._supervised_at, self._stalls = monotonic(), 0
        self._callback_errors = process.CallbackErrors(self.get_logger())
        self.create_service(Trigger, '~/self_test', self._on_self_test)
        self._answer_impossible_transitions()
        # Not on the node's clock, which stands still when a recording is paused.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(_SUPERVISION_SECONDS, self._supervise, clock=steady)
        self.create_timer(_FOLLOW_SECONDS, self._follow, clock=steady)
        self._reporter = diagnostics.Reporter(self, self._report)

    def close(self, asked: bool) -> bool:
        """
        Free all; return whether the engine let go in time.

        :param asked: whether somebody wants the process to end, and nothing failed
        """
        self._asked_to_end = asked
        self._stopping.set()
        self._supervised_at = monotonic()  # the executor has come back
        self._work.stop_build()
        if self._state() in (UNCONFIGURED, INACTIVE, ACTIVE):
            self._trigger(self.trigger_shutdown)
        freed = self._work.engine.stop()
        if not freed:
            self.get_logger().info('the engine has not returned: the process ends without it')
        self._reporter.stop(_REPORTER_SECONDS)
        self.destroy_node()
        return freed

    def names(self) -> list[str]:
        """Return the names of topics and services that remapping rules are made for."""
        found = ['/diagnostics', '~/self_test', '~/labels', '~/label_info', f'~/{SHADOW}']
        for camera in parameters.camera_names(self._settings):
            base = f'{camera}/' if camera else ''
            found += [f'{base}image', f'{base}image/compressed', f'{base}camera_info',
                      *outputs.names(f'~/{base}')]
        return found

    @property
    def lingers(self) -> bool:
        """Tell whether a float network still runs that nobody waits for any more."""
        return self._work.lingers

    def note_callback_error(self, error: Exception) -> None:
        """Count and log what a callback raised that has nothing to do with the engine."""
        self._callback_errors.add(error)

    # Transitions

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Check the bundle and open the engine."""
        # Who asks from outside wants the engine that is wanted, whatever has come of it before.
        known = self._supervisor.state
        number, fallen = (known.fallback, known.fallen) if self._by_itself else (0, '')
        return self._transition('configure', lambda: self._work.configure(number, fallen),
                                INACTIVE, keeping_active=True)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Prove the engine, and subscribe."""
        return self._transition('activate', self._work.activate, ACTIVE)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop taking frames."""
        return self._transition('deactivate', self._work.deactivate, INACTIVE)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the engine and take the topics away."""
        return self._transition('clean up', self._work.cleanup, UNCONFIGURED)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free all."""
        return self._transition('shut down', self._work.cleanup, FINALIZED)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free all after a transition that failed badly, so that it can be tried again."""
        try:
            with self._taking_time():
                self._work.cleanup()
        except Ending:
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            self.get_logger().fatal(f'cannot clean up: {in_words(error)}')
            return TransitionCallbackReturn.FAILURE
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
                self.get_logger().error(f'change_state: {in_words(error)}')
                response.success = False
                return response

        self._service_change_state.callback = answer

    def _transition(self, name: str, function: Callable[[], None], goal: str,
                    keeping_active: bool = False) -> TransitionCallbackReturn:
        """
        Run a transition; log and report what fails, which rclpy would swallow.

        :param goal, keeping_active: what somebody wants who asks for this transition from outside
        """
        if not self._by_itself:
            self._supervisor.post(Asked(goal, keeping_active))
        try:
            with self._taking_time():
                function()
        except Building:
            self._supervisor.post(BuildBegun())
            return TransitionCallbackReturn.FAILURE
        except Ending:  # which was asked for
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            kind = kind_of(error)
            if name == 'configure' and isinstance(error, CheckFailed):
                kind = Kind.LATER  # what lies in bundle and store may be another thing any time
            self._failed(kind, f'cannot {name}: {in_words(error)}',
                         isinstance(error, (CheckFailed, EngineMissing)))
            return (TransitionCallbackReturn.FAILURE if name in ('configure', 'activate')
                    else TransitionCallbackReturn.ERROR)
        self.get_logger().info(f'{name}: done')
        return TransitionCallbackReturn.SUCCESS

    @contextmanager
    def _taking_time(self):
        """Let diagnostics know that the executor is busy, and for how long."""
        self._busy_since = monotonic()
        try:
            yield
        finally:
            self._busy_since, self._supervised_at = None, monotonic()
            self._reporter.soon()

    # Supervision

    def _supervise(self) -> None:
        """Report what became of engine and build, and do what follows; ten times a second."""
        self._supervised_at = monotonic()
        if reason := self._work.stuck():
            self._supervisor.post(Failed(Kind.LOST, reason))
        if self._work.engine.replace_if_dead():
            self._on_frame_error(RuntimeError('the worker thread ended'))
        if (ended := self._work.end_of_build()) is not None:
            self._supervisor.post(ended)
        self._compare_with_float()
        self._supervisor.step()
        if text := self._waits.look(self._supervisor.state, monotonic()):
            self.get_logger().warning(text)
        if self._state() == ACTIVE and self._settings.lazy:
            self._for_each_camera(Camera.look_at_subscribers)

    def _follow(self) -> None:
        """Let each camera adapt to its publishers and subscribers; every second."""
        self._work.time.look()
        if self._state() == ACTIVE:
            self._for_each_camera(Camera.start)  # in case it was lazy and is not any more
            self._for_each_camera(Camera.follow)

    def _for_each_camera(self, do: Callable[[Camera], None]) -> None:
        """Do something for each camera; raise what failed for one when all have had their turn."""
        failed = None
        for camera in self._work.cameras:
            try:
                do(camera)
            except Exception as error:
                failed = error
        if failed is not None:
            raise failed

    def _situation(self) -> Situation:
        """Return where the node is."""
        return Situation(self._state(), monotonic(), self._settings.max_recoveries_per_minute,
                         self._fallbacks())

    def _act(self, action: Action) -> None:
        """Do what the supervisor has decided."""
        if action is Action.CONFIGURE:
            self._trigger(self.trigger_configure)
        elif action is Action.ACTIVATE:
            self._trigger(self.trigger_activate)
        elif action is Action.DEACTIVATE:
            self._trigger(self.trigger_deactivate)
        elif action is Action.CLEAN_UP:
            self.get_logger().info('configuring anew')
            self._trigger(self.trigger_cleanup)
        elif action is Action.MEND:
            self._trigger(self._mend)
        elif action is Action.END:
            self.get_logger().fatal(f'{self._supervisor.state.reason}; ending the process, to be '
                                    'started again')
            self._end_process(1)
        self._reporter.soon()

    def _trigger(self, transition: Callable[[], Any]) -> None:
        """Make a transition that nobody has asked for."""
        self._by_itself = True
        try:
            transition()
        except Exception as error:
            self._failed(Kind.ENGINE, in_words(error))
        finally:
            self._by_itself = False

    def _mend(self) -> None:
        """Open the engine again after a fault, and prove it."""
        try:
            with self._taking_time():
                self._work.prove()
        except Ending:
            pass
        except Exception as error:
            self._failed(kind_of(error), f'cannot open the engine again: {in_words(error)}',
                         isinstance(error, CheckFailed))

    def _failed(self, kind: Kind, reason: str, unproven: bool = False) -> None:
        """Report a failure, and log it unless it is the one that is known."""
        if reason != self._supervisor.state.reason:
            self.get_logger().error(reason)
        self._supervisor.post(Failed(kind, reason, unproven))

    def _on_frame_error(self, error: BaseException) -> None:
        """Report what a frame raised; in any thread."""
        kind = Kind.LOST if isinstance(error, DeviceLost) else Kind.ENGINE
        self._failed(kind, f'engine fault: {in_words(error)}')

    def _on_self_test(self, request: Trigger.Request, response: Trigger.Response
                      ) -> Trigger.Response:
        """Run the golden frames; stop publishing if a mask is not what it must be."""
        response.success = False
        try:
            with self._taking_time():
                self._work.prove()
        except Exception as error:
            response.message = in_words(error)
            if self._state() in (INACTIVE, ACTIVE) and not isinstance(error, Ending):
                self._failed(kind_of(error), response.message, isinstance(error, CheckFailed))
                self._supervisor.step()  # it is inactive before anybody has the answer
        else:
            response.success = self._work.pipeline.golden_frames > 0
            response.message = self._work.self_test
            if self._work.pipeline.fallen:
                response.message += f'; a fallback serves: {self._work.pipeline.fallen}'
                loop = self._work.loop
                if loop is None or not loop.checks:  # else the shadow tests what is wanted
                    self._supervisor.post(Returned())
        return response

    def _compare_with_float(self) -> None:
        """Go to a fallback if the masks disagree, or back if the wanted engine may serve."""
        loop, state = self._work.loop, self._supervisor.state
        if loop is None or self._state() != ACTIVE or state.mode is not Mode.PURSUING:
            return
        if state.fallback and loop.may_return(state.fallen):
            self.get_logger().info('the wanted engine has passed its self-test: it serves again')
            self._supervisor.post(Returned())
        elif not state.fallback and self._fallbacks() and (reason := loop.disagreement):
            self._failed(Kind.FOR_GOOD, reason, unproven=True)

    def _fallbacks(self) -> int:
        """Return how many engines may take the place of the wanted one."""
        return len(engines(self._settings)) - 1

    def _state(self) -> str:
        """Return the name of the lifecycle state."""
        return self._state_machine.current_state[1]

    def _report(self) -> list[DiagnosticStatus]:
        """Return the node's status and each camera's; in the thread of the diagnostics."""
        self._look_at_executor()
        name, state = self.get_fully_qualified_name().lstrip('/'), self._state()
        since = self._busy_since
        node_says = diagnostics.node_status(
            name, state=state, supervisor=self._supervisor.state,
            transition_s=0.0 if since is None else monotonic() - since, build=self._work.build,
            pipeline=self._work.pipeline, self_test=self._work.self_test,
            callback_errors=self._callback_errors.count, loop=self._work.loop)
        said = []
        if not self._asked_to_end:
            self._reports = {camera: self._reports.get(camera) or diagnostics.CameraReport(camera)
                             for camera in list(self._work.cameras)}
            said = [report.status(name, self._settings, state == ACTIVE)
                    for report in self._reports.values()]
        if self._asked_to_end:  # meanwhile, perhaps: its cameras are closed, or about to be
            return [diagnostics.stopped(status) for status in (node_says, *self._cameras_said)]
        self._cameras_said = said
        return [node_says, *said]

    def _look_at_executor(self) -> None:
        """End the process if the executor hangs, which nothing that it runs could notice."""
        stalled = (self._busy_since is None
                   and monotonic() - self._supervised_at > _STALL_SECONDS)
        self._stalls = self._stalls + 1 if stalled else 0
        if self._stalls >= _STALLS:
            self.get_logger().fatal('the executor has not come back; ending the process, to be '
                                    'started again')
            _end_now(1)


def main(args: Sequence[str] | None = None) -> int:
    """
    Run the node until SIGINT or SIGTERM; return the exit code.

    0: asked to end. 1: to be started again. 2: wrong use, which another start would not change.
    """
    stop, stopping = Future(), threading.Event()

    def end_process(code: int) -> None:
        stopping.set()
        if not stop.done():
            stop.set_result(code)

    try:
        process.check_environment(os.environ)
        argv = process.arguments(sys.argv if args is None else args)
        given.check(argv, parameters.TYPES)
        shared_memory.remove_abandoned_segments()
        with refused.said_once():
            rclpy.init(args=argv, signal_handler_options=SignalHandlerOptions.NO)
        process.on_stop_signal(lambda: end_process(0))
        node = SegmentationNode(end_process, stopping)
        for sentence in [*given.passed_over(argv), *given.missed(argv, node.names())]:
            node.get_logger().warning(sentence)
    except Exception as error:
        print(f'segmentation_node: {process.in_words(error)}', file=sys.stderr)
        rclpy.try_shutdown()
        return process.exit_code(error)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while not stop.done():
            try:
                executor.spin_until_future_complete(stop)
            except Exception as error:  # of another callback than ours, such as of a parameter
                node.note_callback_error(error)
                stopping.wait(_ERROR_PAUSE)
    finally:
        freed = node.close(asked=stop.done() and stop.result() == 0)
        executor.shutdown()
        rclpy.shutdown()
        if not freed or node.lingers:
            _end_now(stop.result() if freed else 1)
        shared_memory.remove_own_segments()  # what has no destructor called leaves one behind
    return stop.result()


def _end_now(code: int) -> None:
    """End the process, which a thread that never returns would keep from ending."""
    try:
        shared_memory.remove_own_segments()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # also without a descriptor left, or anybody who reads
        os._exit(code)


if __name__ == '__main__':
    sys.exit(main())
