# SPDX-License-Identifier: Apache-2.0
"""
The shadow check: one served frame now and then is segmented again by the float network.

It has a thread and an engine of its own. It begins only while the engine's thread is free and no
frame waits, at a lower priority, and not more often than its share of the time allows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import os
import threading
from time import monotonic
from types import SimpleNamespace
from typing import Any

import numpy as np

from trt_segmentation.bundles import golden
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.engines import acceptance, choose_backend
from trt_segmentation.engines.onnxruntime import OnnxRuntimeEngine
from trt_segmentation.engines.record import Record
from trt_segmentation.errors import CheckFailed, command_line, EngineMissing, InputError
from trt_segmentation.ros.live_agreement import Comparison, due, LiveAgreement
from trt_segmentation.ros.wanted import Wanted
from trt_segmentation.segmenters.cpu import CpuSegmenter
from trt_segmentation.segmenters.segmenter import CLASSES, CONFIDENCE, Segmenter
from trt_segmentation.system import files

SCHEMA = 1
_NICE = 10
_RETRY_S = 60.0  # after an error of the float network
_OTHER_CAMERA_S = 1.0  # that another camera than the one checked last is waited for


@dataclass(frozen=True, eq=False)
class Served:
    """
    A frame that was served.

    camera: the topic of its images; mask_topic: of its class masks; message: as it came
    image, color: what was segmented, as `Segmenter.segment` takes it
    classes: the mask that was published, uint8 (height, width)
    """

    camera: str
    mask_topic: str
    message: Any
    image: np.ndarray
    color: str
    classes: np.ndarray


@dataclass(frozen=True, eq=False)
class Checked:
    """
    A frame that was checked.

    classes, reference: the engine's mask and the float network's, as `Served.classes`; where the
        float network serves as a fallback, the engine is the one that is wanted
    figures: what is known of the frame, as JSON values
    """

    served: Served
    classes: np.ndarray
    reference: np.ndarray
    comparison: Comparison
    figures: dict[str, Any]


class Shadow:
    """
    The float network's thread, from one configuration to the next.

    live: the figures so far
    passed: whether the engine that is wanted, where a fallback serves, has passed its self-test
    state: what it does, in words
    trouble: why nothing is checked though it should be; '' if nothing is wrong
    """

    def __init__(self, bundle: Bundle, record: Record, settings: SimpleNamespace,
                 free: Callable[[], bool], checked: Callable[[Checked], None],
                 log: Callable[[str], object], ended: Callable[[], None],
                 wanted: Wanted | None = None):
        """
        Start; the float network is opened in the thread.

        :param bundle, record: what serves
        :param settings: the node's parameters, as they are at any moment
        :param free: tells whether the engine's thread could begin a frame and none waits
        :param checked: is called, in the thread, with each check
        :param log: takes a warning
        :param ended: is called, in the thread, at its end
        :param wanted: the engine that is wanted, where a fallback serves: it is tested, and then
            compared, instead of the float network
        """
        self._bundle, self._record, self._settings = bundle, record, settings
        self._free, self._checked, self._log, self._ended = free, checked, log, ended
        self.live = LiveAgreement(bundle.spec.labels)
        self.state, self.trouble = 'waiting for a frame', ''
        self.passed, self._wanted = False, wanted
        self._off = record.precision == 'fp32' and wanted is None
        if wanted is not None:
            self._golden = golden.contents(bundle.golden_path)
        self._served: Served | None = None
        self._began: float | None = None
        self._took, self._camera = 0.0, ''
        self._retry_at = 0.0
        self._wake = threading.Condition()
        self._stopping = False
        if self._off:
            self.state = 'off: the engine is the float network'
        self._thread = threading.Thread(target=self._run, name='shadow', daemon=True)
        self._thread.start()

    def wants(self, camera: str) -> bool:
        """Tell whether the next frame of a camera is to be checked; in the engine's thread."""
        settings, now = self._settings, monotonic()
        if (self._off or self._served is not None or now < self._retry_at
                or not due(now, self._began, self._took, settings.shadow_period_s,
                           settings.shadow_max_share)):
            return False
        waited = now - (self._began or now) - settings.shadow_period_s
        return camera != self._camera or waited > _OTHER_CAMERA_S or self._began is None

    def offer(self, served: Served) -> None:
        """Hand over a frame that was published; in the engine's thread."""
        with self._wake:
            self._served = served
            self._wake.notify()

    def look(self) -> None:
        """Begin, if the engine's thread is free now; in the engine's thread."""
        if self._served is not None:
            with self._wake:
                self._wake.notify()

    @property
    def alive(self) -> bool:
        """Tell whether its thread runs."""
        return self._thread.is_alive()

    def stop(self, timeout: float) -> None:
        """End after the check that runs; wait for that at most `timeout` seconds."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout)

    def _next(self) -> Served | None:
        """Wait for a frame and for the moment to check it; None at the end."""
        with self._wake:
            while not self._stopping:
                if self._served is not None and self._free():
                    return self._served
                self._wake.wait()
        return None

    def _run(self) -> None:
        """Check frame after frame, until the end."""
        # What it starts inherits this: the threads of ONNX Runtime too.
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(
            _NICE, os.getpriority(os.PRIO_PROCESS, thread)))
        segmenter: Segmenter | None = None
        try:
            while (served := self._next()) is not None:
                try:
                    if segmenter is None:
                        segmenter = self._open()
                        self.state = (f'against {segmenter.engine.precision} of '
                                      f'{segmenter.engine.backend}')
                        # The first run takes its time, and says nothing of the next.
                        segmenter.segment(served.image, (CLASSES,), color=served.color)
                    self._check(served, segmenter)
                    self._took = monotonic() - (self._began or 0)  # with what was captured
                    self.trouble = ''
                except Exception as error:
                    if segmenter is not None:
                        segmenter.close()
                    segmenter = None
                    if self._stopping:
                        break
                    self._retry_at = monotonic() + _RETRY_S
                    if str(error) != self.trouble:
                        self._log(f'shadow check: {error}')
                    self.trouble = str(error)
                self._served = None
        finally:
            if segmenter is not None:
                segmenter.close()
            self._ended()

    def _open(self) -> Segmenter:
        """Open the float network, or the wanted engine, which must pass its self-test first."""
        if self._wanted is None:
            return open_reference(self._bundle, self._record, self._settings)
        segmenter = self._wanted.open(self._bundle, self._settings.store)
        if difference := acceptance.self_test(segmenter, self._golden):
            segmenter.close()
            raise CheckFailed(f'the wanted engine does not pass its self-test: {difference}')
        self.passed = True
        return segmenter

    def _check(self, served: Served, segmenter: Segmenter) -> None:
        """Segment a frame again, and compare."""
        self._began, self._camera = monotonic(), served.camera
        # The confidence here, where it costs no frame its time.
        masks = segmenter.segment(served.image, segmenter.offers & {CLASSES, CONFIDENCE},
                                  color=served.color)
        other = masks.classes
        served_by, other_by = (
            {'backend': engine.backend, 'precision': engine.precision,
             'key': record.key if record else None,
             'sha256': record.plan_sha256 if record else None}
            for engine, record in ((self._record.inputs, self._record),
                                   (segmenter.engine, segmenter.record)))
        if self._wanted is None:
            classes, reference, by, reference_by = served.classes, other, served_by, other_by
        else:
            classes, reference, by, reference_by = other, served.classes, other_by, served_by
        comparison = Comparison.of(reference, classes)
        self._took = monotonic() - self._began
        if self._stopping:  # what it is told to may be gone
            return
        self.live.add(monotonic(), comparison)
        header = served.message.header
        self._checked(Checked(served, classes, reference, comparison, {
            'schema': SCHEMA,
            'camera': served.camera,
            'stamp': {'sec': header.stamp.sec, 'nanosec': header.stamp.nanosec},
            'frame_id': header.frame_id,
            'agreement': round(comparison.agreement, 6),
            'classes': {name: round(value, 6) for name, value in
                        comparison.by_class(self._bundle.spec.labels).items()},
            'confidence': (None if masks.confidence is None
                           else round(float(masks.confidence.mean()) / 255, 6)),
            'engine': by,
            'reference': reference_by,
            'model_sha256': self._record.inputs.model,
            'cache_sha256': self._record.inputs.cache,
            'bundle_sha256': self._bundle.sha256,
            'milliseconds': round(self._took * 1e3, 3),
        }))


def open_reference(bundle: Bundle, record: Record, settings: SimpleNamespace) -> Segmenter:
    """
    Open the float network: an engine of the store, or on a CPU the network itself.

    :param record: of the engine that serves; without another backend's name it is of the same
    :raises EngineMissing: if the store has no proven one
    """
    backend = choose_backend(settings.shadow_backend or record.inputs.backend)
    precisions = [name for name in ('fp16', 'fp32') if name != record.precision
                  and (name == 'fp32' or backend.name != 'onnxruntime')]
    for precision in precisions:
        for max_batch in sorted({settings.max_batch, 1}):
            try:
                return Wanted(backend.name, precision, None, max_batch).open(
                    bundle, settings.store)
            except EngineMissing:
                continue
    if backend.name != 'onnxruntime':
        raise EngineMissing(
            f'the store has no proven {" or ".join(precisions)} engine; run: ' + command_line(
                'build', bundle.path, '--backend', backend.name, '--precision', precisions[0],
                *(('--store', settings.store) if settings.store else ()))
            + ', or set shadow_backend to onnxruntime')
    # What every engine is proven by.
    if files.sha256_file(bundle.model_path) != record.inputs.model:
        raise InputError(f'{bundle.model_path}: another network than the one that serves')
    return CpuSegmenter(bundle.spec, OnnxRuntimeEngine(bundle.model_path))
