# SPDX-License-Identifier: Apache-2.0
"""What the report of a calibration shows: how values are distributed, and whether to trust it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.labels import only_class
from trt_segmentation.bundles.manifest import Manifest, Scale
from trt_segmentation.calibration import methods
from trt_segmentation.calibration.calibrator import Calibrator, Statistics
from trt_segmentation.calibration.histogram import Histogram
from trt_segmentation.calibration.lab import Frame
from trt_segmentation.calibration.selection import BRIGHT, DARK, FLAT, Impression
from trt_segmentation.engines.acceptance import judge, Tally
from trt_segmentation.engines.onnxruntime import emulated, input_shapes
from trt_segmentation.engines.record import AGREEMENT, CLASS_AGREEMENT
from trt_segmentation.engines.summary import causes
from trt_segmentation.networks.model import onnx
from trt_segmentation.networks.quantize import quantize
from trt_segmentation.reports import calibration as report
from trt_segmentation.reports.calibration import Curve, Distribution, Judged
from trt_segmentation.segmenters.cpu import CpuSegmenter
from trt_segmentation.segmenters.segmenter import CLASSES

_POINTS = 400  # of the curve of signal to noise


def page(bundle: Bundle, manifest: Manifest, calibrator: Calibrator,
         impressions: Sequence[Impression], judged: Judged | None) -> str:
    """
    Return the report.

    :param manifest: what goes into calibration.json
    :param calibrator: with the statistics of all images
    :param impressions: of the images that were used
    :param judged: what `judge_frames` returned; None without golden frames
    """
    worst = report.worst_first(manifest)[:report.LARGE]
    distributions = {
        name: _distribution(calibrator.statistics[name], tensor, manifest, name in worst)
        for name, tensor in manifest.tensors.items() if tensor.sqnr_db is not None}
    return report.html(bundle, manifest, distributions, impressions, judged,
                       limits=(DARK, BRIGHT, FLAT))


def judge_frames(bundle: Bundle, model: onnx.ModelProto, scales: Mapping[str, float],
                 exclude: Sequence[str], frames: Sequence[Frame]) -> Judged | None:
    """
    Judge a calibration by the bundle's limits, in the vehicle's arithmetic.

    :param model: the network that is quantized
    :param scales: by tensor
    :param exclude: nodes that stay in float
    :param frames: the golden frames; None is returned without any
    """
    if not frames:
        return None
    quantized = quantize(model, scales, 'tensorrt', exclude=exclude,
                         input_shapes=input_shapes(bundle))
    tally = Tally(bundle.spec.labels)
    with CpuSegmenter(bundle.spec, emulated(quantized)) as segmenter:
        for number, frame in enumerate(frames):
            tally.add(f'{number:03d}', frame.mask,
                      segmenter.segment(frame.image, (CLASSES,)).classes)
    figures = tally.figures(quantized.int8_share)
    failures = judge(figures, bundle.spec.acceptance, 'int8', proven=True, tally=tally)
    return Judged(len(frames), figures, tuple(causes(failures)),
                  tuple(name for name in tally.pixels if name not in figures.classes),
                  only_class(tally.pixels),
                  any(failure.kind in (AGREEMENT, CLASS_AGREEMENT) for failure in failures))


def _distribution(statistics: Statistics, tensor: Scale, manifest: Manifest, curves: bool
                  ) -> Distribution:
    """Return what is drawn of one tensor; the curves only where they are drawn."""
    histogram = statistics.histogram
    assert histogram is not None
    percentile = manifest.parameters.get('percentile', 100.0)
    earlier = {} if tensor.method != manifest.method else {
        images: methods.find(tensor.method, before, percentile=percentile).value
        for images, before in statistics.earlier.items()}
    noise, divergence = _curves(histogram) if curves else (None, None)
    return Distribution(histogram.counts, histogram.width, tuple(statistics.growth), earlier,
                        noise, divergence)


def _curves(histogram: Histogram) -> tuple[Curve | None, Curve | None]:
    """Return signal to noise (dB) and KL divergence by threshold."""
    counts = histogram.counts
    if len(counts) <= methods.CODES:
        return None, None
    kept = np.arange(methods.CODES, len(counts) + 1, max(1, len(counts) // _POINTS))
    middles = np.arange(len(counts)) + 0.5
    noise = methods.squared_errors(counts, kept) / (counts * middles ** 2).sum()
    divergence = methods.divergences(methods.without_zero_spike(counts))
    return (Curve(kept * histogram.width, -10 * np.log10(noise)),
            Curve(np.arange(methods.LEVELS, len(counts) + 1) * histogram.width, divergence))
