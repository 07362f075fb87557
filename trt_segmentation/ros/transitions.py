# SPDX-License-Identifier: Apache-2.0
"""What the transitions of the node do: with the bundle, the engine, the cameras and the build."""

from __future__ import annotations

from collections.abc import Callable
import gc
import threading
from types import SimpleNamespace
from typing import NoReturn

from rclpy.node import Node

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.errors import CheckFailed, EngineMissing, InputError
from trt_segmentation.ros import parameters
from trt_segmentation.ros.camera import Camera, Frame
from trt_segmentation.ros.closed_loop import ClosedLoop
from trt_segmentation.ros.engine_build import EngineBuild, Order, OtherVersion
from trt_segmentation.ros.frame_pipeline import Pipeline
from trt_segmentation.ros.intake import Intake
from trt_segmentation.ros.node_time import NodeTime
from trt_segmentation.ros.outputs import publish_labels
from trt_segmentation.ros.shadow import Shadow
from trt_segmentation.ros.supervisor import BuildEnded
from trt_segmentation.ros.wanted import engines, Wanted
from trt_segmentation.ros.worker import EngineThread, Stopwatch
from trt_segmentation.segmenters.postprocessing import offered


class Building(Exception):
    """Report that the node can be configured when the engine is built."""


class Transitions:
    """
    All that is opened and closed when the node changes its state.

    time: the node's, by which frames age
    pipeline: the engine, and the way of a frame through it
    engine: the thread that owns it
    cameras: while configured
    build: the build that runs, if one does
    self_test: how the last one ended
    loop: the shadow check and what it keeps, while configured
    """

    def __init__(self, node: Node, settings: SimpleNamespace,
                 failed: Callable[[BaseException], None], stopping: threading.Event):
        """
        Start unconfigured.

        :param node: whose topics they are
        :param settings: its parameters, as they are at any moment
        :param failed: gets, in the engine's thread, what a frame raised
        :param stopping: is set when the process ends
        """
        self._node, self._settings, self._stopping = node, settings, stopping
        self.time = NodeTime(node)
        self.pipeline = Pipeline(self.time.now_ns, settings)
        self._intake = Intake(node, lambda: self.engine.free, self.pipeline.batch, self._offer)
        self.engine: EngineThread[list[Frame]] = EngineThread(
            self.pipeline.process, failed, self._wake, stopping, self._intake.take)
        self._in_work_since: int | None = None  # as of the last look
        self._in_work = Stopwatch()
        self.cameras: list[Camera] = []
        self.build: EngineBuild | None = None
        # What the last build was of, and the bundle's hash; unless it failed, or was opened since.
        self._begun: tuple[Order, str] | None = None
        self.self_test = 'not run'
        self._label_publishers: list = []
        self.loop: ClosedLoop | None = None
        self._checks: list[Shadow] = []  # that have not ended yet

    def configure(self, number: int = 0, fallen: str = '') -> None:
        """
        Open the engine, or begin to build it; then create the topics.

        :param number: of the engine: 0 for the one that is wanted, else a fallback's
        :param fallen: why it is a fallback
        :raises EngineMissing: if it must not be built, or if there is another one to go to
        """
        settings = self._settings
        candidates = engines(settings)
        number = min(number, len(candidates) - 1)  # the list may have become shorter since
        wanted, last = candidates[number], number == len(candidates) - 1
        if self.build is not None:
            if self.build.order == self._order(wanted):
                raise Building
            self.stop_build()  # of what was wanted before
        self._free()  # what an attempt that failed has left
        if not settings.bundle:
            raise InputError('parameter bundle: empty; name the bundle directory')
        open_seconds = settings.open_timeout_ms * 1e-3
        path = parameters.path('bundle', settings.bundle)
        bundle = self.engine.run(lambda: Bundle.open(path), open_seconds)
        try:
            self.engine.run(lambda: self.pipeline.open(bundle, wanted, fallen), open_seconds)
        except EngineMissing as error:
            # A fallback that would take minutes to build is none, as long as there is another.
            if not settings.build_missing or (number and not last):
                raise
            self._begin_build(bundle, wanted, error)
        self._begun = None
        try:
            self._create_topics(bundle, candidates[0] if number else None)
        except BaseException:
            self._free()
            raise

    def _create_topics(self, bundle: Bundle, instead_of: Wanted | None) -> None:
        """
        Create the cameras and all that is published, without listening.

        :param instead_of: the engine in whose place a fallback is open; None if none is
        """
        for index, name in enumerate(parameters.camera_names(self._settings)):
            self.cameras.append(Camera(self._node, self._intake, index, name, self._settings,
                                       offered(bundle.spec), self.time,
                                       self.pipeline.device is not None))
        self._label_publishers = publish_labels(self._node, bundle.spec.labels)
        assert self.pipeline.record is not None  # it is open
        self.loop = ClosedLoop(self._node, self._settings, bundle, self.pipeline.record,
                               lambda: self.engine.free, instead_of)
        self.pipeline.shadow = self.loop.shadow

    def _begin_build(self, bundle: Bundle, wanted: Wanted, missing: EngineMissing
                     ) -> NoReturn:
        """Begin to build an engine and raise Building; OtherVersion if that was just done."""
        order = self._order(wanted)
        before, self._begun = self._begun, (order, bundle.sha256)
        if self._begun == before:
            self._begun = None  # whoever asks for it gets another build
            raise OtherVersion(missing) from None
        logger = self._node.get_logger()
        logger.info('building the engine in a child process')
        self.build = EngineBuild(*order, logger.info, logger.warning)
        raise Building from None

    def activate(self) -> None:
        """Run the golden frames, and subscribe if the engine passes."""
        self.prove()
        # What exists now stays: without looking at it again, a collection takes no frame's time.
        gc.collect()
        gc.freeze()
        try:
            for camera in self.cameras:
                camera.start()
        except BaseException:  # while inactive none listens
            self.deactivate()
            raise

    def deactivate(self) -> None:
        """Unsubscribe, and wait for the frame that is in work."""
        for camera in self.cameras:
            camera.stop()
        gc.unfreeze()
        for frame in self.engine.clear() or ():
            frame.camera.statistics.count('dropped_stopped')
        self.engine.run(lambda: None, self._engine_seconds(self.pipeline.in_work))

    def cleanup(self) -> None:
        """Free engine and topics."""
        self.deactivate()
        self.stop_build()
        self._free()

    def _free(self) -> None:
        """Close the engine and destroy the topics, as far as they are there."""
        self.engine.run(self.pipeline.close, self._engine_seconds())
        self.pipeline.failed = False  # no self-test opens it again
        self.pipeline.shadow = None
        loop, self.loop = self.loop, None
        if loop is not None:
            loop.close()
            self._checks = [shadow for shadow in (*self._checks, loop.shadow) if shadow.alive]
        cameras, self.cameras = self.cameras, []
        for camera in cameras:
            camera.close()
        publishers, self._label_publishers = self._label_publishers, []
        for publisher in publishers:
            self._node.destroy_publisher(publisher)

    def prove(self) -> None:
        """Run the self-test; raise CheckFailed if the masks are not what they must be."""
        seconds = self._engine_seconds(1 + self.pipeline.golden_frames)
        if self.pipeline.failed:  # it is opened again then
            seconds += self._settings.open_timeout_ms * 1e-3
        try:
            self.engine.run(self.pipeline.self_test, seconds)
        except CheckFailed as error:
            self.self_test = str(error)
            raise
        self.self_test = 'passed' if self.pipeline.golden_frames else 'no golden frames'

    def _engine_seconds(self, frames: int = 1) -> float:
        """Return the seconds after which an engine that runs so many frames counts as stuck."""
        return self._settings.engine_timeout_ms * 1e-3 * frames

    def _order(self, wanted: Wanted) -> Order:
        """Return what is to be built, as `EngineBuild` takes it."""
        settings = self._settings
        return (parameters.path('bundle', settings.bundle), wanted.backend, wanted.precision,
                parameters.path('store', settings.store), wanted.max_batch, wanted.dla)

    def end_of_build(self) -> BuildEnded | None:
        """Return how the build has ended, if it has since the last call."""
        build = self.build
        if build is None or not build.ended():
            return None
        self.build = None
        kind, reason = build.outcome()
        if kind is None:
            self._node.get_logger().info(f'the engine was built in {build.seconds:.0f} s')
        else:
            self._begun = None
            reason = f'the engine could not be built: {reason}'
            self._node.get_logger().error(reason)
        return BuildEnded(kind, reason)

    def stop_build(self) -> None:
        """End a build that nobody waits for any more."""
        build, self.build = self.build, None
        if build is not None:
            build.stop()
            self._begun = None

    def stuck(self) -> str:
        """Return that the engine has not returned from a frame, or ''; ask again and again."""
        since = self.pipeline.in_work_since_ns
        limit = self._engine_seconds(self.pipeline.in_work)
        if since != self._in_work_since:
            self._in_work_since, self._in_work = since, Stopwatch()
        self._in_work.look()
        if since is None or self._in_work.seconds <= limit:
            return ''
        return f'the engine has not returned for {limit:g} s'

    @property
    def lingers(self) -> bool:
        """Tell whether a float network still runs that nobody waits for any more."""
        return any(shadow.alive for shadow in self._checks)

    def _offer(self, frames: list[Frame]) -> None:
        """Hand frames over to the worker."""
        for frame in self.engine.offer(frames) or ():
            frame.camera.statistics.count('dropped_replaced')

    def _wake(self) -> None:
        """Let the executor look for messages again, and the shadow begin; in any thread."""
        if (shadow := self.pipeline.shadow) is not None:
            shadow.look()
        if self._node.executor is not None and not self._stopping.is_set():
            self._node.executor.wake()
