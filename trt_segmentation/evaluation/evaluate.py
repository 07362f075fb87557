# SPDX-License-Identifier: Apache-2.0
"""How good an engine's masks are: against true masks, and against another engine's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from time import monotonic, perf_counter

from trt_segmentation import __version__
from trt_segmentation.bundles import manifest
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.evaluation import progress as saved
from trt_segmentation.evaluation.datasets import Item, load_ahead, Loaded
from trt_segmentation.evaluation.tally import Evaluation
from trt_segmentation.segmenters.segmenter import CLASSES, Segmenter
from trt_segmentation.system import files, machine

_SAVE_EVERY = 20.0  # seconds between two savings of what was counted so far


def evaluate(segmenters: Mapping[str, Segmenter], frames: Iterable[Loaded],
             evaluation: Evaluation | None = None, *,
             progress: Callable[[str], None] = lambda name: None) -> Evaluation:
    """
    Run frames through engines, one by one, and count.

    :param segmenters: by name; the first is what the others are compared with
    :param frames: (name, BGR image, true train ids or None) of each frame
    :param evaluation: what to count on in; a new one if left out
    :param progress: called with the name of each frame that was counted
    """
    if evaluation is None:
        labels = next(iter(segmenters.values())).spec.labels
        evaluation = Evaluation(labels, list(segmenters))
    evaluation.int8_shares |= {
        name: share for name, segmenter in segmenters.items()
        if (share := _int8_share(segmenter)) is not None}
    begin = perf_counter()
    for name, image, truth in frames:
        start = perf_counter()
        masks = {engine: segmenter.segment(image, (CLASSES,)).classes
                 for engine, segmenter in segmenters.items()}
        evaluation.seconds['engines'] += perf_counter() - start
        evaluation.add(name, image, truth, masks)
        evaluation.seconds['all'] += perf_counter() - begin
        begin = perf_counter()
        progress(name)
    return evaluation


def evaluate_items(segmenters: Mapping[str, Segmenter], items: Sequence[Item], bundle: Bundle,
                   directory: Path | None = None, *,
                   progress: Callable[[str], None] = lambda name: None) -> Evaluation:
    """
    Evaluate a data set; with a directory, go on where an interrupted run of the same ended.

    :param directory: where what was counted is kept until the end
    """
    labels = bundle.spec.labels
    evaluation = Evaluation(labels, list(segmenters))
    if directory is None:
        return evaluate(segmenters, load_ahead(items), evaluation, progress=progress)
    key = _key(segmenters, bundle)
    signatures = {item.name: item.signature for item in items}
    if state := saved.read(directory, key, signatures):
        evaluation = Evaluation.from_state(state, labels)
    todo = [item for item in items if item.name not in evaluation.done]
    for name in evaluation.done:
        progress(name)
    at = monotonic()

    def counted(name: str) -> None:
        nonlocal at
        evaluation.done[name] = signatures[name]
        if monotonic() - at > _SAVE_EVERY:
            saved.write(directory, evaluation.state(key))
            at = monotonic()
        progress(name)

    try:
        evaluate(segmenters, load_ahead(todo), evaluation, progress=counted)
    except BaseException:
        saved.write(directory, evaluation.state(key))
        raise
    saved.remove(directory)
    return evaluation


def _int8_share(segmenter: Segmenter) -> float | None:
    """Return the share 0..1 of the work in INT8 that an INT8 engine's record names, if it does."""
    record = getattr(segmenter, 'record', None)
    return record.acceptance.int8_share if record and record.precision == 'int8' else None


def _key(segmenters: Mapping[str, Segmenter], bundle: Bundle) -> str:
    """Return the hash of all that the figures depend on, besides the files."""
    engines = []
    for name, segmenter in segmenters.items():
        engine, record = segmenter.engine, segmenter.record
        if record is not None:
            plan = record.plan_sha256
        else:  # built for this run: ONNX Runtime's depends on the bundle alone, others on a clock
            plan = '' if engine.backend == 'onnxruntime' else token_hex()
        engines.append([name, engine.backend, engine.precision, plan])
    return files.sha256_json({
        'bundle': bundle.sha256, 'engines': engines, 'package': __version__,
        'versions': manifest.versions(), 'machine': machine.describe()})
