# SPDX-License-Identifier: Apache-2.0
"""
What the node says of itself on /diagnostics, in the key words that Autoware's monitors read.

There is one status for the node and its engine, and one for each camera.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import threading
from time import monotonic
from types import SimpleNamespace
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.impl.implementation_singleton import rclpy_implementation as _rclpy
from rclpy.node import Node

from trt_segmentation.engines.record import Acceptance, Record
from trt_segmentation.ros.camera import Camera
from trt_segmentation.ros.closed_loop import ClosedLoop
from trt_segmentation.ros.engine_build import EngineBuild
from trt_segmentation.ros.frame_pipeline import Pipeline
from trt_segmentation.ros.process import usage
from trt_segmentation.ros.statistics import PUBLISHED, RECEIVED
from trt_segmentation.ros.supervisor import ACTIVE, FINALIZED, State

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
_STOPPED = 'stopped: the process was asked to end'
_LONG_TRANSITION_S = 3.0
_REPORT_SECONDS = 1.0
_QUANTILES = ('p50', 'p95', 'p99')


class Judgement:
    """The worst of several findings, and all of them in words."""

    def __init__(self):
        """Start with nothing found."""
        self.level = OK
        self._texts: list[str] = []

    def add(self, level: bytes, text: str) -> None:
        """Add a finding."""
        self.level = max(self.level, level)
        self._texts.append(text)

    def text(self, otherwise: str) -> str:
        """Return all findings, or what to say without any."""
        return '; '.join(self._texts) or otherwise


def status(name: str, judgement: Judgement, otherwise: str, values: Mapping[str, Any],
           hardware_id: str = '') -> DiagnosticStatus:
    """Return a status message; values that are None are left out."""
    return DiagnosticStatus(
        level=judgement.level, name=name, message=judgement.text(otherwise),
        hardware_id=hardware_id,
        values=[KeyValue(key=key, value=_text(value)) for key, value in values.items()
                if value is not None])


def node_status(name: str, *, state: str, supervisor: State, transition_s: float,
                build: EngineBuild | None, pipeline: Pipeline, self_test: str,
                callback_errors: int, loop: ClosedLoop | None) -> DiagnosticStatus:
    """
    Return the status of the node and its engine.

    :param name: the node's name
    :param state: the lifecycle state
    :param transition_s: for how long a transition or self-test has been going on; 0 if none is
    :param build: the build that runs, if one does
    :param self_test: how the last one ended
    :param callback_errors: how many callbacks failed that have nothing to do with the engine
    :param loop: the shadow check, while configured
    """
    judgement = Judgement()
    if build is not None:
        judgement.add(WARN, f'building the engine for {build.seconds:.0f} s: {build.progress}')
    elif supervisor.reason:
        judgement.add(ERROR, supervisor.reason)
    elif state == FINALIZED:
        judgement.add(ERROR, 'it was shut down: only a new process leads out of this state')
    if pipeline.fallen:
        judgement.add(WARN, f'a fallback serves, {_engine(pipeline)}: {pipeline.fallen}')
    if transition_s > _LONG_TRANSITION_S:
        judgement.add(WARN, f'{state} for {transition_s:.0f} s')
    record = pipeline.record
    for text in [*(_doubts(record.acceptance) if record else ()),
                 *(loop.warnings() if loop is not None and state == ACTIVE else ())]:
        judgement.add(WARN, text)
    return status(f'{name}: node', judgement, state, {
        'state': state if build is None else 'building',
        'goal': supervisor.goal,
        'supervision': supervisor.mode.name.lower(),
        'reason': supervisor.reason or None,
        'building_s': None if build is None else build.seconds,
        'fallback': pipeline.fallen or None,
        'bundle_sha256': pipeline.bundle_sha256,
        **(_figures(record) if record else {}),
        'self_test': self_test,
        'engine_faults': supervisor.faults,
        'recoveries': supervisor.recoveries,
        'last_fault': supervisor.last_fault or None,
        'callback_errors': callback_errors,
        **(loop.values() if loop is not None else {}),
        **usage(),
    }, str(record.inputs.identity.get('gpu', '')) if record else '')


def stopped(report: DiagnosticStatus) -> DiagnosticStatus:
    """Return a status as it is once the process has been asked to end: no error, and no news."""
    return DiagnosticStatus(level=DiagnosticStatus.STALE, name=report.name, message=_STOPPED,
                            hardware_id=report.hardware_id, values=report.values)


def _doubts(acceptance: Acceptance) -> list[str]:
    """Return what the engine's acceptance has not proven, in sentences."""
    found = []
    if not acceptance.frames:
        found.append('the engine is unproven: it was built without golden frames')
    elif acceptance.only_class:
        found.append('the engine is all but unproven: its golden frames show next to nothing '
                     f'but {acceptance.only_class}')
    return found + [f'the engine was accepted with --allow-float: {failure.text}'
                    for failure in acceptance.waived]


def _figures(record: Record) -> dict[str, Any]:
    """Return what diagnostics say of the engine that is open."""
    inputs, acceptance = record.inputs, record.acceptance
    return {
        'backend': inputs.backend,
        'backend_version': inputs.version or None,
        'precision': inputs.precision,
        'engine_sha256': record.plan_sha256,
        'engine_key': record.key,
        'cache_sha256': inputs.cache,
        'model_sha256': inputs.model,
        'agreement': acceptance.agreement,
        'unproven_classes': ', '.join(acceptance.unproven_classes),
        'int8_share': acceptance.int8_share,
        'batch_sizes': ', '.join(map(str, record.batch_sizes)),
    }


def _engine(pipeline: Pipeline) -> str:
    """Return which engine is open, in words."""
    inputs = pipeline.record.inputs if pipeline.record else None
    return f'{inputs.precision} of {inputs.backend}' if inputs else 'none yet'


class CameraReport:
    """Reports on one camera, each time on what happened since the last time."""

    def __init__(self, camera: Camera):
        """Take the camera."""
        self._camera = camera
        self._received = self._dropped = self._foreign = self._size_changes = 0

    def status(self, node_name: str, settings: SimpleNamespace, active: bool) -> DiagnosticStatus:
        """Return the camera's status."""
        camera, judgement, seen = self._camera, Judgement(), self._look()
        counts = camera.statistics.counts()
        if active:
            self._judge_input(judgement, seen, settings)
            self._judge_time(judgement, seen, settings)
            self._judge_output(judgement, seen, settings)
            if seen.trouble:
                judgement.add(WARN, seen.trouble)
            if seen.size_changes > self._size_changes:
                judgement.add(WARN, 'the size of the images changes')
            if seen.info_problem:
                judgement.add(WARN, f'masks go without camera info: {camera.info.topic}: '
                              f'{seen.info_problem}')
        self._size_changes = seen.size_changes
        foreign, self._foreign = self._foreign, counts.get('foreign_stamp', 0)
        if active and self._foreign > foreign:
            judgement.add(WARN, 'stamps are from another clock')
        dropped_share = self._dropped_share(counts)
        if active and dropped_share is not None:
            for level, limit in ((ERROR, settings.error_dropped_share),
                                 (WARN, settings.warn_dropped_share)):
                if dropped_share >= limit > 0:
                    judgement.add(level, f'{dropped_share:.0%} of the last frames were dropped')
                    break
        idle = 'no subscribers' if active and not camera.listens else 'not active'
        values = {
            'topic': camera.topic,
            'reliability': camera.reliability,
            'publishers': seen.publishers,
            **{f'subscribers_{name}': count
               for name, count in camera.outputs.subscribers().items()},
            'input_rate_hz': camera.statistics.rate(RECEIVED),
            'output_rate_hz': camera.statistics.rate(PUBLISHED),
            'input_gap_ms': None if seen.gap is None else seen.gap * 1e3,
            'drop_share': dropped_share,
            **self._times(seen, settings),
            RECEIVED: counts.pop(RECEIVED, 0),
            PUBLISHED: counts.pop(PUBLISHED, 0),
            **dict(sorted(counts.items())),
            'replaced_are_counted': camera.sequence.known,
            'size_changes': seen.size_changes,
            **camera.outputs.events,
            'trouble': seen.trouble or None,
            'camera_info_problem': seen.info_problem or None,
            'repeated_images': seen.repeated,
            'exposure': seen.exposure or 'normal',
            'low_margin_share': seen.low_margin_share,
            'class_drift': seen.class_drift,
        }
        return status(f'{node_name}: {camera.topic}', judgement,
                      'OK' if active and camera.listens else idle, values)

    def _look(self) -> SimpleNamespace:
        """Return what is both judged and told, read once, since frames go on meanwhile."""
        camera = self._camera
        since = camera.delayed_since
        return SimpleNamespace(
            gap=camera.gap_seconds(), publishers=camera.publishers(), trouble=camera.trouble,
            size_changes=camera.size_changes, info_problem=camera.outputs.info_problem,
            times=camera.statistics.last_times(),
            # For how long frames have taken longer than allowed.
            delay_ms=0.0 if since is None else max(0.0, camera.processed_at - since) * 1e3,
            repeated=camera.input_health.repeated, exposure=camera.input_health.exposure,
            low_margin_share=camera.output_health.low_margin_share,
            class_drift=camera.output_health.class_drift)

    def _judge_input(self, judgement: Judgement, seen: SimpleNamespace, settings: SimpleNamespace
                     ) -> None:
        """Look at what comes in."""
        gap = seen.gap
        for level, limit in ((ERROR, settings.error_input_gap_ms),
                             (WARN, settings.warn_input_gap_ms)):
            if gap is not None and gap * 1e3 >= limit:
                judgement.add(level, f'no image for {gap:.1f} s from {seen.publishers} '
                              'publishers')
                break
        if seen.repeated >= settings.warn_frozen_frames:
            judgement.add(WARN, f'the image is frozen: {seen.repeated} times the same')
        if seen.exposure:
            judgement.add(WARN, f'the image is {seen.exposure.replace("_", " ")}')

    def _judge_time(self, judgement: Judgement, seen: SimpleNamespace, settings: SimpleNamespace
                    ) -> None:
        """Look at how long frames take."""
        took, delay = seen.times.get('processing'), seen.delay_ms
        limit = settings.max_allowed_processing_time_ms
        if took is None or took <= limit:
            return
        judgement.add(ERROR if delay > settings.max_acceptable_consecutive_delay_ms else WARN,
                      f'the last frame took {took:.1f} ms, more than {limit} ms; so for '
                      f'{delay:.0f} ms')

    def _judge_output(self, judgement: Judgement, seen: SimpleNamespace,
                      settings: SimpleNamespace) -> None:
        """Look at what the masks say of themselves."""
        if (seen.low_margin_share or 0) > settings.warn_low_margin_share:
            judgement.add(WARN, f'{seen.low_margin_share:.0%} of the mask has a low margin')
        if (seen.class_drift or 0) > settings.warn_class_drift:
            judgement.add(WARN, f'the shares of classes have moved by {seen.class_drift:.2f}')

    def _times(self, seen: SimpleNamespace, settings: SimpleNamespace) -> dict[str, Any]:
        """Return the times of the last frame, and percentiles by stage."""
        camera, last, delay = self._camera, self._camera.last_published, seen.delay_ms
        times = dict(seen.times)
        took = times.pop('processing', None)
        if took is None:
            return {}
        values = {
            'processing_time_ms': took,
            'is_processing_time_ms_in_expected_range':
                took <= settings.max_allowed_processing_time_ms,
            'consecutive_processing_delay_ms': delay,
            'is_consecutive_processing_delay_in_range':
                delay <= settings.max_acceptable_consecutive_delay_ms,
            'pipeline_latency_ms': last.pipeline_latency_ms if last else None,
            'cyclic_time_ms': last.cyclic_time_ms if last else None,
            'last_frame_age_ms': (monotonic() - last.moment) * 1e3 if last else None,
            **{f'{stage}_time_ms': value for stage, value in times.items()},
        }
        values['batch_size'], shares = camera.statistics.batches()
        values |= {f'batch_size_{size}_share': share for size, share in shares.items()}
        for stage, percentiles in camera.statistics.percentiles().items():
            values |= {f'{stage}_time_ms_{quantile}': value
                       for quantile, value in zip(_QUANTILES, percentiles)}
        return values

    def _dropped_share(self, counts: Mapping[str, int]) -> float | None:
        """Return the share of frames dropped since the last report; None without any."""
        dropped = sum(count for event, count in counts.items() if event.startswith('dropped_'))
        received = counts.get(RECEIVED, 0)
        new_received, new_dropped = received - self._received, dropped - self._dropped
        self._received, self._dropped = received, dropped
        return min(1.0, new_dropped / new_received) if new_received else None


def _text(value: Any) -> str:
    """Return a value as text: floats with three digits, truth values as Autoware has them."""
    if isinstance(value, bool):
        return str(value)
    return f'{value:.3f}' if isinstance(value, float) else str(value)


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
        last = False
        while not last:
            self._wake.wait(_REPORT_SECONDS)
            self._wake.clear()
            last = self._stopping  # asked before the statuses, so that these know it as well
            try:
                array = DiagnosticArray(status=self._statuses())
                array.header.stamp = self._node.get_clock().now().to_msg()
                self._publisher.publish(array)
            except _rclpy.InvalidHandle:
                pass  # a topic that it looked at is just destroyed; the transition reports its end
            except Exception as error:  # one report that fails must not be the last one
                self._node.get_logger().error(f'diagnostics: {type(error).__name__}: {error}')
