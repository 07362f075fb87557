# SPDX-License-Identifier: Apache-2.0
"""What extending a calibration has brought: before and after, on the old frames and on the new."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trt_segmentation.bundles import manifest
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.manifest import Compared, Extension
from trt_segmentation.calibration.lab import Frame
from trt_segmentation.calibration.memory import Memory
from trt_segmentation.calibration.reported import judge_frames
from trt_segmentation.networks import model as onnx_model
from trt_segmentation.networks.model import onnx

EARLIER, NEW = 'earlier golden frames', 'new golden frames'


class Before:
    """How the calibration that is extended does on some frames, in the vehicle's arithmetic."""

    def __init__(self, bundle: Bundle, memory: Memory, earlier: Sequence[Frame],
                 new: Sequence[Frame]):
        """
        Judge what is in the bundle now.

        :param earlier, new: the golden frames that there are, and those that are added
        """
        self._bundle, self._memory = bundle, memory
        self._sets = {name: frames for name, frames in ((EARLIER, earlier), (NEW, new)) if frames}
        scales = {name: tensor.scale for name, tensor in memory.document.tensors.items()}
        model = onnx_model.load(bundle.path / manifest.int8_network(bundle).file)
        self._found = self._judge(model, scales, bundle.spec.calibration.exclude)

    def compared(self, model: onnx.ModelProto, scales: Mapping[str, float],
                 exclude: Sequence[str], images: int) -> Extension:
        """
        Judge what takes its place, and return both for the manifest.

        :param model: the network that is quantized
        :param scales: by tensor; exclude: nodes that stay in float
        :param images: how many were calibrated with in all
        """
        after = self._judge(model, scales, exclude)
        return Extension(
            cache_sha256=self._memory.document.cache.sha256,
            images_before=self._memory.images, images_added=images - self._memory.images,
            sets=tuple(Compared(name, len(frames), *self._found[name], *after[name])
                       for name, frames in self._sets.items()))

    def _judge(self, model: onnx.ModelProto, scales: Mapping[str, float], exclude: Sequence[str]
               ) -> dict[str, tuple[float, str, float | None]]:
        """Return (agreement, class that agrees least, its agreement) of each set of frames."""
        found = {}
        for name, frames in self._sets.items():
            judged = judge_frames(self._bundle, model, scales, exclude, frames)
            assert judged is not None  # there are frames
            classes = judged.figures.classes
            worst = min(classes, key=classes.__getitem__, default='')
            found[name] = (judged.figures.agreement or 0.0, worst, classes.get(worst))
        return found
