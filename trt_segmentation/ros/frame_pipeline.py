# SPDX-License-Identifier: Apache-2.0
"""What happens to a frame, from message to masks; and the engine that it happens with."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from time import monotonic_ns
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from sensor_msgs.msg import Image

from trt_segmentation.bundles import golden
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.cuda import device as gpu
from trt_segmentation.cuda.device import Device
from trt_segmentation.cuda.images import DeviceImage
from trt_segmentation.cuda.jpegs import JpegDecoder
from trt_segmentation.engines import acceptance
from trt_segmentation.engines.evidence import Evidence
from trt_segmentation.engines.record import Record
from trt_segmentation.errors import CheckFailed, InputError
from trt_segmentation.recordings import layouts
from trt_segmentation.recordings.limits import MalformedImage
from trt_segmentation.ros import native, outputs, parameters
from trt_segmentation.ros.camera import Frame
from trt_segmentation.ros.node_time import age
from trt_segmentation.ros.outputs import CLASS_MASK, to_compute
from trt_segmentation.ros.shadow import Served, Shadow
from trt_segmentation.ros.wanted import Wanted
from trt_segmentation.segmenters.preprocessing import Geometry, resize
from trt_segmentation.segmenters.segmenter import CONFIDENCE, largest, Masks, Segmenter

# Between two looks at the masks' health. A look makes one frame slower by the confidence it needs:
# rare enough not to show in the 99th percentile.
_LOOK_NS = 5_000_000_000


class _Judged(NamedTuple):
    """
    What a frame's stamp and wait tell.

    late: it is older than allowed
    foreign: its stamp is from another clock
    dropped: it is dropped, for the one or the other
    """

    late: bool
    foreign: bool
    dropped: bool


class _Begun(NamedTuple):
    """
    A frame on its way: its image and layout as the segmenter takes them.

    on_gpu, into: what `outputs.on_gpu` has begun
    source_size: (height, width) that it came with
    wanted, compute: the topics somebody subscribes to, and the masks they need
    look: whether its masks' health is looked at
    checker: the shadow that checks it, if one does
    start: when its batch was begun, on the steady clock in nanoseconds
    convert_ms: how long it took to make the image of the message
    """

    frame: Frame
    image: np.ndarray | DeviceImage
    color: str
    on_gpu: Mapping[str, Image]
    into: Mapping[str, int]
    source_size: tuple[int, int]
    wanted: frozenset[str]
    compute: frozenset[str]
    look: bool
    checker: Shadow | None
    start: int
    convert_ms: float


class Pipeline:
    """
    The engine, and the way of each frame through it; for the worker's thread alone.

    Its attributes may be read by other threads. No frame is published but from an engine that has
    passed its self-test since it was opened, since it last failed, and since it last passed none.

    failed: whether the engine has failed and was not opened again
    fallen: why the engine is another one than is wanted; '' if it is not
    shadow: what checks a frame now and then, while one is configured
    in_work: how many frames the last batch had, at least 1
    """

    def __init__(self, now_ns: Callable[[], int], settings: SimpleNamespace):
        """
        Start without an engine.

        :param now_ns: the node's time
        :param settings: the node's parameters, as they are at any moment
        """
        self._now_ns = now_ns
        self._settings = settings
        self._segmenter: Segmenter | None = None
        self._golden: dict[str, bytes] = {}
        self._proven = False
        self.failed = False
        self.bundle: Bundle | None = None
        self.bundle_sha256: str | None = None
        self.record: Record | None = None
        self._evidence: Evidence | None = None
        self._wanted: Wanted | None = None
        self._jpegs: JpegDecoder | None = None
        self.fallen = ''
        self.shadow: Shadow | None = None
        self.in_work_since_ns: int | None = None
        self.in_work = 1

    def open(self, bundle: Bundle, wanted: Wanted, fallen: str = '') -> None:
        """
        Open one of the bundle's engines, which must be in the store, and warm it up.

        :param fallen: why it is not the one that is wanted; '' if it is
        """
        settings = self._settings
        gpu.select(settings.gpu)
        segmenter = wanted.open(bundle, settings.store)
        try:
            segmenter.segment(np.zeros((*bundle.spec.input.size, 3), np.uint8))
            # Now: the files may be others when they are needed.
            self.bundle_sha256, self._golden = bundle.sha256, golden.contents(bundle.golden_path)
            if segmenter.device is not None and settings.gpu_jpeg:
                self._jpegs = JpegDecoder.found(segmenter.device)
        except BaseException:
            segmenter.close()
            raise
        self._segmenter, self.bundle, self.record = segmenter, bundle, segmenter.record
        self._wanted, self.fallen = wanted, fallen
        self._evidence = Evidence(self.record, bundle.spec.labels, fallen)
        self.failed = False

    def reopen(self) -> None:
        """
        Close the engine and open it again.

        :raises InputError: if bundle or store are not what they were
        """
        assert self.bundle is not None and self.record is not None  # it was open
        assert self._wanted is not None
        path, wanted = self.bundle.path, self._wanted._replace(precision=self.record.precision)
        fallen = self.fallen
        self.close()
        bundle = Bundle.open(path)
        if bundle.sha256 != self.bundle_sha256:
            raise InputError(f'bundle {bundle.path}: another one than was configured with')
        self.open(bundle, wanted, fallen)

    def close(self) -> None:
        """Free the engine, if there is one."""
        segmenter, self._segmenter, self._proven = self._segmenter, None, False
        self.fallen = ''
        jpegs, self._jpegs = self._jpegs, None
        if jpegs is not None:
            jpegs.close()
        if segmenter is not None:
            segmenter.close()

    @property
    def device(self) -> Device | None:
        """Return the GPU that the engine runs on; None without one."""
        return self._segmenter.device if self._segmenter is not None else None

    @property
    def golden_frames(self) -> int:
        """How many golden frames the engine was accepted by; without any it is unproven."""
        return len(self.record.acceptance.frames) if self.record else 0

    def self_test(self) -> None:
        """
        Run the golden frames; on a new engine if the one that is open has failed.

        :raises CheckFailed: if a mask is not the one of the accepted engine
        :raises InputError: if bundle or store are not what they were when it was opened
        """
        self._proven = False
        if self.failed:
            self.reopen()
        if self._segmenter is None:
            raise CheckFailed('there is no engine to test')
        self.failed = True  # unless it gets to the end
        difference = (acceptance.self_test(self._segmenter, self._golden)
                      if self.golden_frames else '')
        self.failed = False
        if difference:
            raise CheckFailed(f'self-test: {difference}')
        self._proven = True

    def batch(self, waiting: int) -> int:
        """Return how many frames to take where so many, at least one, wait; in any thread."""
        segmenter = self._segmenter
        return 1 if segmenter is None else largest(segmenter.batch_sizes, waiting)

    def process(self, frames: list[Frame]) -> None:
        """Turn frames of different cameras into masks and publish them, or count why not."""
        if self._segmenter is None or not self._proven:
            for frame in frames:
                frame.camera.statistics.count('dropped_not_ready')
            return
        self.in_work, self.in_work_since_ns = len(frames), monotonic_ns()
        left = deque(frames)
        try:
            self._process(left)
        except BaseException:
            self._proven, self.failed = False, True
            for frame in left:
                frame.camera.statistics.count('dropped_fault')
            raise
        finally:
            self.in_work_since_ns = None

    def _process(self, left: deque[Frame]) -> None:
        """Do so, with the engine there; take out of `left` what is done with."""
        start = monotonic_ns()
        batch: list[_Begun] = []
        with ExitStack() as handles:  # of data on the GPU: before masks are published they end
            for _ in range(len(left)):
                begun = self._begun(left[0], start, handles)
                frame = left.popleft()
                if begun is not None:
                    batch.append(begun)
                    left.append(frame)
            if not batch:
                return
            assert self._segmenter is not None
            masks = self._segmenter.segment_batch(
                [each.image for each in batch], [each.compute for each in batch],
                color=[each.color for each in batch], into=[each.into for each in batch])
        segmented = monotonic_ns()
        for each, its in zip(batch, masks):
            self._end(each, its, segmented, len(batch))
            left.popleft()

    def _begun(self, frame: Frame, start: int, handles: ExitStack) -> _Begun | None:
        """Return a frame as the segmenter takes it, or None if it is dropped."""
        camera = frame.camera
        judged = self._judge(frame, 'before_inference')
        if judged.dropped:
            self._tell(frame, judged, camera.outputs.wanted())
            return None
        assert self._segmenter is not None and self.bundle is not None
        shrunk = self._settings.mask_size == parameters.NETWORK
        begin = monotonic_ns()
        device = self._segmenter.device
        decode_jpeg = (None if shrunk or self._jpegs is None
                       else partial(self._jpegs.decode, slot=camera.topic))
        try:
            image, color = native.to_image(
                frame.message, None if shrunk else device,
                () if shrunk else self._segmenter.layouts, handles, decode_jpeg)
        except MalformedImage as error:
            camera.drop(f'malformed_{error.cause}', str(error))
            return None
        source_size, spec = layouts.size(image, color), self.bundle.spec.input
        try:
            geometry = Geometry.of(source_size, spec.size, spec.fit)
        except InputError as error:
            camera.drop('malformed_aspect_ratio', str(error))
            return None
        if shrunk:
            image = resize(image, geometry, spec.interpolation)
        if isinstance(image, DeviceImage):
            camera.statistics.count('received_on_gpu' if native.is_native(frame.message)
                                    else 'decoded_on_gpu')
        camera.input_health.see(image, color)
        wanted = camera.outputs.wanted()
        shadow = self.shadow
        checker = shadow if shadow is not None and shadow.wants(camera.topic) else None
        look = start - camera.looked_ns >= _LOOK_NS
        on_gpu: dict[str, Image] = {}
        into: dict[str, int] = {}
        if device is not None and self._settings.masks_on_gpu and native.cuda_buffer():
            on_gpu, into = outputs.on_gpu(wanted, layouts.size(image, color),
                                          frame.message.header, device, handles)
        compute = self._segmenter.offers & (
            to_compute(wanted - on_gpu.keys()) | ({CONFIDENCE} if look else frozenset()))
        return _Begun(frame, image, color, on_gpu, into, source_size, wanted, compute, look,
                      checker, start, (monotonic_ns() - begin) * 1e-6)

    def _end(self, begun: _Begun, masks: Masks, segmented: int, batch_size: int) -> None:
        """Publish a frame's masks, unless it is late."""
        frame, start = begun.frame, begun.start
        camera = frame.camera
        stage_ms = {
            'wait': (start - frame.arrived_ns) * 1e-6,
            'convert': begun.convert_ms,
            **masks.stage_ms,
            'processing': (segmented - start) * 1e-6,
        }
        judged = self._judge(frame, 'before_publishing')
        if judged.dropped:
            # An engine that is too slow for any mask must show.
            camera.processed(stage_ms, batch_size)
            self._look(begun, masks)
            self._tell(frame, judged, begun.wanted, stage_ms=stage_ms)
            return
        begin = monotonic_ns()
        camera.outputs.publish(begun.wanted, masks, begun.image, begun.color,
                               frame.message.header, camera.info.of(frame.message.header),
                               begun.source_size, begun.on_gpu)
        end = monotonic_ns()
        self._look(begun, masks)
        stage_ms |= {
            'publish': (end - begin) * 1e-6,
            'processing': (end - start) * 1e-6,
            'total': (end - frame.arrived_ns) * 1e-6,
        }
        self._tell(frame, judged, begun.wanted, masks.classes, stage_ms)
        camera.processed(stage_ms, batch_size)
        if begun.checker is not None:
            begun.checker.offer(Served(
                camera.topic, camera.outputs.topics[CLASS_MASK], native.on_host(frame.message),
                np.asarray(begun.image), begun.color, masks.classes))
        now_ns = self._now_ns()
        foreign = age(frame.stamp_ns, now_ns, 0).foreign
        camera.published(None if foreign else (now_ns - frame.stamp_ns) * 1e-6)

    def _look(self, begun: _Begun, masks: Masks) -> None:
        """Look at the health of a frame's masks, if it is its turn; late ones have theirs, too."""
        if begun.look:  # it made the frame slower: if it made it late, the next must be in time
            camera = begun.frame.camera
            camera.looked_ns = begun.start
            camera.output_health.see(masks.classes, masks.confidence)

    def _tell(self, frame: Frame, judged: _Judged, wanted: frozenset[str],
              classes: np.ndarray | None = None, stage_ms: Mapping[str, float] | None = None
              ) -> None:
        """Publish a frame's status; without classes for one that is dropped."""
        camera, evidence = frame.camera, self._evidence
        assert evidence is not None  # of the engine that is open
        share = camera.output_health.low_margin_share
        since = (monotonic_ns() - camera.looked_ns) * 1e-9
        camera.outputs.publish_status(wanted, lambda sequence: evidence.status(
            camera.topic, sequence, frame.stamp_ns, frame.message.header.frame_id, classes,
            late=judged.late, foreign_stamp=judged.foreign,
            low_margin=None if share is None else (share, since), stage_ms=stage_ms))

    def _judge(self, frame: Frame, when: str) -> _Judged:
        """Tell whether a frame is too old, or its stamp not to be believed; count it if so."""
        camera, stamp = frame.camera, frame.stamp_ns
        now_ns = self._now_ns()
        how_old = age(stamp, now_ns, monotonic_ns() - frame.arrived_ns)
        late = how_old.ns > self._settings.max_frame_age_ms * 1_000_000
        if when == 'before_inference':
            camera.age_ms, camera.behind_s = how_old.ns * 1e-6, (now_ns - stamp) * 1e-9
        if how_old.foreign:
            if when == 'before_inference':
                camera.foreign_stamp()
            if self._settings.strict_stamps:  # also if the clock has jumped in between
                camera.drop('foreign_stamp', 'its stamp is from another clock')
                return _Judged(late, True, True)
        if late:
            camera.statistics.count(f'dropped_late_{when}')
        return _Judged(late, how_old.foreign, late)
