# SPDX-License-Identifier: Apache-2.0
"""The acceptance: does an engine give the float network's masks on the golden frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trt_segmentation.bundles import form, golden
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.labels import IGNORE, LabelSet
from trt_segmentation.bundles.spec import AcceptanceSpec
from trt_segmentation.engines.record import (
    Acceptance,
    AGREEMENT,
    CLASS_AGREEMENT,
    Failure,
    Figures,
    Frame,
    INT8_SHARE,
    INT8_UNKNOWN,
    NOTHING_JUDGED,
)
from trt_segmentation.errors import counted
from trt_segmentation.networks.layers import int8_share, Layer
from trt_segmentation.segmenters.segmenter import CLASSES, Segmenter
from trt_segmentation.system import files

MIN_CLASS_SHARE = 0.001
"""A class that covers less of the frames than this is too small to judge by."""

_PIXELS, _SAME = 0, 1  # of a frame's counts

WAIVABLE = (INT8_SHARE, INT8_UNKNOWN)
"""The kinds of failure that --allow-float lets pass."""


@dataclass(frozen=True)
class Golden:
    """A golden frame: BGR image and the float network's train ids, both uint8."""

    name: str
    image: np.ndarray
    mask: np.ndarray


class Tally:
    """Golden pixels, and those of them that an engine gave the same class, by train id."""

    def __init__(self, labels: LabelSet):
        """Start with none."""
        self._names = {label.train_id: label.name for label in labels.classes}
        self._frames: list[tuple[str, np.ndarray, np.ndarray]] = []

    def add(self, name: str, mask: np.ndarray, classes: np.ndarray) -> None:
        """
        Count a frame: the golden mask and the engine's, uint8 of one shape.

        Where both are 255 (ignored) nothing is counted; a class where the golden mask has none is
        a difference, as the other way round.
        """
        pixels = np.bincount(mask.ravel(), minlength=256)
        same = np.bincount(mask[mask == classes], minlength=256)
        pixels[IGNORE] -= same[IGNORE]
        same[IGNORE] = 0
        self._frames.append((name, pixels, same))

    @property
    def pixels(self) -> dict[str, int]:
        """Return how many golden pixels each class has, those that occur in none included."""
        counts = self._sum(_PIXELS)
        unknown = [int(i) for i in np.flatnonzero(counts[:IGNORE]) if i not in self._names]
        return {**{name: int(counts[i]) for i, name in self._names.items()},
                **{f'train id {i}': int(counts[i]) for i in unknown}}

    def figures(self, share: float | None) -> Figures:
        """Return the agreement of all pixels and of each class that has enough of them."""
        pixels, same = self._sum(_PIXELS), self._sum(_SAME)
        golden = int(pixels[:IGNORE].sum())
        judged = [int(i) for i in np.flatnonzero(pixels[:IGNORE])
                  if enough_to_judge(pixels[i] / golden)]
        return Figures(
            float(same.sum() / pixels.sum()) if golden else None,
            {self._names.get(i, f'train id {i}'): float(same[i] / pixels[i]) for i in judged},
            share)

    def where(self, name: str) -> str:
        """Return in words how much of a class there is, and the frame where it agrees least."""
        ids = {label: i for i, label in self._names.items()}
        i = ids[name] if name in ids else int(name.rpartition(' ')[2])
        shares = {frame: same[i] / pixels[i] for frame, pixels, same in self._frames if pixels[i]}
        worst = min(shares, key=lambda frame: float(shares[frame]))
        return (f'{int(self._sum(_PIXELS)[i])} golden pixels in '
                f'{counted(len(shares), "frame")}, the worst is {worst} with {shares[worst]:.4f}')

    def _sum(self, which: int) -> np.ndarray:
        """Return the counts of all frames by train id."""
        total = np.zeros(256, np.int64)
        for _, *counts in self._frames:
            total += counts[which]
        return total


def examine(bundle: Bundle, segmenter: Segmenter, layers: Iterable[Layer], precision: str, *,
            frames: Iterable[Golden] | None = None, allow_float: bool = False) -> Acceptance:
    """
    Run the golden frames through an engine and judge it.

    :param layers: the network's weighted layers, with what the engine runs them in
    :param frames: the golden frames; None reads the bundle's
    :param allow_float: waive min_int8_share
    """
    tally = Tally(bundle.spec.labels)
    given = []
    for frame in read_golden(bundle) if frames is None else frames:
        classes = segmenter.segment(frame.image, (CLASSES,)).classes
        tally.add(frame.name, frame.mask, classes)
        given.append(Frame(frame.name, files.sha256_bytes(classes.tobytes())))
    if not given:  # that it runs at all is not proven then either
        segmenter.segment(np.zeros((*bundle.spec.input.size, 3), np.uint8), (CLASSES,))
    layers = tuple(layers)
    figures = tally.figures(int8_share(layers))
    failures = judge(figures, bundle.spec.acceptance, precision, proven=bool(given), tally=tally,
                     layers=layers)
    waived = tuple(failure for failure in failures if allow_float and failure.kind in WAIVABLE)
    return Acceptance(
        **vars(figures), basis=basis(bundle), frames=tuple(given),
        failures=tuple(failure for failure in failures if failure not in waived), waived=waived,
        pixels=tally.pixels if given else {})


def enough_to_judge(share: float) -> bool:
    """Tell whether a class that covers this share 0..1 of the frames can be judged by."""
    return share >= MIN_CLASS_SHARE


def judge(figures: Figures, limits: AcceptanceSpec, precision: str, *, proven: bool,
          tally: Tally | None = None, layers: Iterable[Layer] = ()) -> tuple[Failure, ...]:
    """
    Compare figures with a bundle's limits.

    :param proven: there were golden frames
    :param tally, layers: where the figures are from, to say more about them
    """
    failures = []
    if proven and figures.agreement is None:
        failures.append(Failure(NOTHING_JUDGED, 'the golden masks ignore every pixel, so there '
                                                'is nothing to judge by'))
    elif figures.agreement is not None and not figures.agreement >= limits.min_agreement:
        failures.append(Failure(AGREEMENT, _below(
            'agreement', figures.agreement, 'min_agreement', limits.min_agreement)))
    if precision == 'int8':
        share = figures.int8_share
        if share is None:
            failures.append(Failure(
                INT8_UNKNOWN, 'how much of the convolution work is in INT8 is not known'
                + _uncounted(layers)))
        elif not share >= limits.min_int8_share:
            failures.append(Failure(
                INT8_SHARE, f'{share:.1%} of the convolution work is in INT8, below '
                f'min_int8_share {limits.min_int8_share}'))
    for name, agreement in sorted(figures.classes.items(), key=lambda row: row[1]):
        if not agreement >= limits.min_class_agreement:
            where = f' ({tally.where(name)})' if tally else ''
            below = _below(f'agreement of class {name}', agreement, 'min_class_agreement',
                           limits.min_class_agreement)
            failures.append(Failure(CLASS_AGREEMENT, below + where, name))
    return tuple(failures)


def _below(what: str, value: float, limit: str, least: float) -> str:
    """Return that a share is below its limit, with four digits, or with more beside as few."""
    shown = f'{value:.4f}'
    if round(least, 4) == least:  # beside 0.9999, 0.99986 must not look like it
        texts = (f'{value:.{digits}f}' for digits in range(4, 12))
        shown = next((text for text in texts if not float(text) >= least), repr(value))
    return f'{what} {shown} is below {limit} {least}'


def _uncounted(layers: Iterable[Layer]) -> str:
    """Return which layers' work cannot be counted, and why, as the end of a sentence."""
    named = [f'{layer.name} ({layer.reason or layer.op})' for layer in layers
             if layer.macs is None]
    if not named:
        return ''
    return f': the work cannot be counted of {", ".join(named[:3])}{", ..." * (len(named) > 3)}'


def still_passes(acceptance: Acceptance, bundle: Bundle, precision: str) -> bool:
    """
    Tell whether what was measured of an engine keeps the limits that the bundle states now.

    What was waived when it was accepted counts as kept; who does not want that looks at `waived`.
    """
    found = judge(acceptance, bundle.spec.acceptance, precision, proven=bool(acceptance.frames))
    waived = {failure.kind for failure in acceptance.waived} & set(WAIVABLE)
    return (not acceptance.failures and acceptance.basis == basis(bundle)
            and all(failure.kind in waived for failure in found))


def basis(bundle: Bundle) -> str:
    """Return the hash of all that an acceptance was judged by, besides the plan."""
    spec = bundle.spec
    return files.sha256_json({
        'golden': [files.sha256_file(path) for image in golden.paths(bundle.golden_path)
                   for path in (image, image.with_suffix('.mask.png'))],
        'acceptance': form.contract(spec.acceptance),
        'input': form.contract(spec.input),
        'output': form.contract(spec.output),
        'labels': spec.labels.to_dict(),
    })


def read_golden(bundle: Bundle) -> Iterable[Golden]:
    """Return the bundle's golden frames, read one by one; raises InputError for a broken one."""
    return (Golden(*frame) for frame in golden.read(bundle.golden_path))


def shown(bundle: Bundle) -> Acceptance:
    """
    Return what a perfect engine's acceptance would say of the golden frames.

    Its `pixels`, `unproven_classes` and `only_class` are what any engine can be judged by.
    """
    tally = Tally(bundle.spec.labels)
    frames = []
    for frame in read_golden(bundle):
        tally.add(frame.name, frame.mask, frame.mask)
        frames.append(Frame(frame.name, files.sha256_bytes(frame.mask.tobytes())))
    return Acceptance(**vars(tally.figures(None)), frames=tuple(frames),
                      pixels=tally.pixels if frames else {})


def self_test(segmenter: Segmenter, images: Mapping[str, bytes]) -> str:
    """
    Run the golden frames again; return '' if each mask is the one of the accepted engine.

    Otherwise return a sentence that names the first frame that differs.

    :param images: what `golden.contents` returned when the engine was opened
    """
    record = segmenter.record
    expected: dict[str, Any] = ({} if record is None else
                                {frame.name: frame.sha256 for frame in record.acceptance.frames})
    if not expected:
        return 'the engine was built without golden frames, so there is nothing to compare with'
    for name, data in images.items():
        classes = segmenter.segment(golden.decode(data), (CLASSES,)).classes
        if files.sha256_bytes(classes.tobytes()) != expected.pop(name, None):
            return f'golden frame {name}: the mask is not the one of the accepted engine'
    return f'golden frame {min(expected)} is missing' if expected else ''
