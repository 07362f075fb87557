# SPDX-License-Identifier: Apache-2.0
"""The calibration of a bundle, from images to the files that the target builds from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
import os
from pathlib import Path
from typing import Any

from trt_segmentation.bundles import cache, form, manifest
from trt_segmentation.bundles import golden as golden_frames
from trt_segmentation.bundles.bundle import (
    Bundle,
    CACHE_NAME,
    EQUALIZED_NAME,
    GOLDEN_NAME,
    MANIFEST_NAME,
    MEMORY_NAME,
    REPORT_NAME,
    SPEC_NAME,
)
from trt_segmentation.bundles.implausible import open_notes
from trt_segmentation.bundles.labels import one_class
from trt_segmentation.bundles.manifest import CALIBRATION_IMAGES, GOLDEN_FRAMES, Manifest
from trt_segmentation.bundles.spec import with_exclude
from trt_segmentation.calibration import progress as partial
from trt_segmentation.calibration.equalization import EQUALIZE, TRIAL_IMAGES
from trt_segmentation.calibration.extension import Before
from trt_segmentation.calibration.golden import (
    Candidate,
    choose,
    ids_of,
    trial_frames,
    write_golden,
)
from trt_segmentation.calibration.lab import Frame
from trt_segmentation.calibration.measure import OnnxRuntimeMeasure, TensorRtMeasure, Used
from trt_segmentation.calibration.memory import recall
from trt_segmentation.calibration.selection import describe, drive, Progress, Selection
from trt_segmentation.engines.workers import unlike, Workers
from trt_segmentation.errors import command_line, counted, InputError
from trt_segmentation.recordings.pictures import alike, Picture
from trt_segmentation.reports.calibration import Judged
from trt_segmentation.system import files

CALIBRATORS = ('onnxruntime', 'tensorrt')
_CALIBRATED = 'the bundle was calibrated with it'


@dataclass(frozen=True)
class Calibration:
    """
    What a calibration found, and the manifest that went into the bundle with it.

    judged: by the golden frames; None without any, or after TensorRT's own calibrator
    warnings: the manifest's, with commands that can be typed here: files do not tell where the
        bundle lies, since they go round
    """

    cache: cache.Cache
    manifest: Manifest
    judged: Judged | None
    warnings: tuple[str, ...]


def calibrate(bundle: str | os.PathLike[str] | Bundle, images: Any, *, count: int | None = None,
              batch_size: int = 5, method: str | None = None, percentile: float | None = None,
              seed: int = 0, extend: bool = False,
              golden: int | None = None, allow_fewer: bool = False, topics: Collection[str] = (),
              spacing: float = 0.0, exclude: Iterable[str | os.PathLike[str]] = (),
              calibrator: str = 'onnxruntime', equalize: str = 'auto',
              tuned: bool | Sequence[Frame] = False,
              report: bool = True, workers: Workers | None = None,
              progress: Callable[[str, int], None] = lambda stage, done: None,
              expect: Callable[[str, int], None] = lambda stage, steps: None,
              say: Callable[[str], None] = lambda line: None) -> Calibration:
    """
    Calibrate a bundle: write its cache, manifest, report and golden frames.

    :param bundle: a bundle, or its directory
    :param images: a path or several (files, directories, globs, list files, bags), or BGR uint8
        arrays of shape (height, width, 3), one by one: they need not all be in memory
    :param count: images to calibrate with; None for 100, or as many as there are
    :param batch_size: images a batch; ONNX Runtime runs them one by one whatever it is
    :param method: one of `METHODS`; TensorRT's calibrators have entropy and minmax; None for mse,
        or for that of the calibration that is extended
    :param percentile: the share of values that the percentile method keeps, 0..100; None for
        99.99, or as before
    :param extend: go on from the bundle's calibration, as if its images were given too, and add
        to its golden frames
    :param seed: decides which images are used, and which are held out
    :param golden: images held out of the calibration, to prove engines with, chosen so that they
        show as much as they can; None for 8, or a fifth of few images; 0 leaves the golden frames
        that there are
    :param allow_fewer: take what there is if fewer images can be used than were asked for
    :param topics: the image topics of recordings; those of cameras if none is named
    :param spacing: seconds between two images of a bag's topic
    :param exclude: paths of images that must not be used, nor near-duplicates of them
    :param calibrator: 'onnxruntime', or 'tensorrt' where TensorRT up to 10 and a GPU are there
    :param equalize: 'auto' derives a network that loses less in INT8 (see `equalization`) where
        that is better on a few more images, or on the golden frames if there are no more, and
        writes it; 'off' leaves the network as it is
    :param tuned: search the best method, and layers to leave in float, on the golden frames or
        on frames that are given; calibration.exclude in model.yaml is then rewritten
    :param report: write the HTML report too
    :param workers: where the float network runs; None for this process. The result does not
        depend on it
    :param progress: called after each step of a stage, with its name and how many are done
    :param expect: called before, with the name of a stage and how many steps it has; not for one
        whose end is not known
    :param say: takes a line each of what is known before the work: which images are taken
    :raises InputError: for a bad bundle or network, or too few usable images
    """
    _check_numbers(count, batch_size, golden, 99.99 if percentile is None else percentile)
    if extend and calibrator != 'onnxruntime':
        raise InputError(f'calibrator: found {calibrator!r}, expected onnxruntime: TensorRT keeps '
                         'nothing that could be extended')
    if calibrator not in CALIBRATORS:
        raise InputError(f'calibrator: found {calibrator!r}, expected one of '
                         f'{", ".join(CALIBRATORS)}')
    if equalize not in EQUALIZE:
        raise InputError(f'equalize: found {equalize!r}, expected one of {", ".join(EQUALIZE)}')
    if report:
        from trt_segmentation.reports.calibration import check_libraries
        check_libraries()
    replaces = [CACHE_NAME, EQUALIZED_NAME, MANIFEST_NAME, MEMORY_NAME, REPORT_NAME,
                *[GOLDEN_NAME] * (golden != 0 and not extend)]
    with Bundle.changing(_path(bundle), [] if extend else replaces) as (bundle, change):
        for note in open_notes(bundle):
            say(note)
        memory = recall(bundle) if extend else None
        before = memory.document if memory else None
        method = method or (before.method if before else 'mse')
        if percentile is None:
            percentile = before.parameters.get('percentile', 99.99) if before else 99.99
        measure = (OnnxRuntimeMeasure(bundle, memory) if calibrator == 'onnxruntime'
                   else TensorRtMeasure(bundle, method, batch_size))
        # Golden frames that stay: if there are no new ones, or if they are added to.
        earlier = _frames(bundle.golden_path) if extend or golden == 0 else []
        selection = Selection(images, size=bundle.spec.input.size, seed=seed, topics=topics,
                              spacing=spacing, exclude=exclude, say=say,
                              known=(*before.images, *before.golden) if before else (),
                              golden=(frame.image for frame in earlier))
        allow_fewer |= count is None
        count, golden = _counts(selection, count, golden, allow_fewer, say)
        if not extend and (replaced := _replaced(bundle, golden)):
            say(replaced)
        if not golden and not earlier:  # too few images to hold one out
            earlier = _frames(bundle.golden_path)
            selection.leave_out(frame.image for frame in earlier)
        if not golden and earlier and not extend:
            say(f'nothing is held out: {counted(len(earlier), "golden frame")} of before '
                f'{"stays" if len(earlier) == 1 else "stay"}')
        shown = frozenset[int]().union(*(ids_of(frame.mask) for frame in earlier))
        step = _told(progress, expect)
        chosen = choose(bundle, selection, selection, golden, step, shown) if golden else []
        held_out = write_golden(chosen, change.path / GOLDEN_NAME, _next_golden(bundle, extend)
                                ) if golden else []
        new = _frames(change.path / GOLDEN_NAME)
        most = (count if selection.available is None
                else min(count, selection.available - len(chosen)))
        used = measure(selection, count, lambda done: step('calibrating', done, most), workers)
        if not used or not (allow_fewer or len(used) == count):
            expected = _expected(count, golden, allow_fewer)
            raise (selection.too_few(len(held_out), expected, 'give more, or hold out fewer '
                                     '(--golden)') if allow_fewer else
                   selection.too_few(len(used) + len(held_out), expected))
        comparison = None
        if memory is not None and before is not None:
            used.follow(memory)
            held_out[:0] = before.golden
            comparison = Before(bundle, memory, earlier, new)
        kept = measure.memory(used)
        if kept is not None:
            change.write(MEMORY_NAME, kept)
        else:
            change.remove(MEMORY_NAME)
        choice = None
        if equalize == 'auto' and calibrator == 'onnxruntime':
            trial = trial_frames(bundle, selection, TRIAL_IMAGES) if memory is None else []
            trial = trial or [*earlier[:TRIAL_IMAGES], *new[:TRIAL_IMAGES]]
            choice = measure.equalize(method, percentile, trial, step) if trial else None
        if choice is not None and choice.network.words:
            change.write(EQUALIZED_NAME, choice.network.model.SerializeToString())
        else:
            change.remove(EQUALIZED_NAME)
        tuning = None
        if tuned is not False:
            frames = [*earlier, *new] if tuned is True else tuned
            tuning = measure.tune(frames, step)
            method, percentile = tuning.best.setting.method, tuning.best.setting.percentile
            change.write(SPEC_NAME, with_exclude(
                (bundle.path / SPEC_NAME).read_text(encoding='utf-8'),
                tuning.best.setting.exclude))
        result, tensors = measure.result(method, percentile, tuning)
        excluded = tuning.best.setting.exclude if tuning else bundle.spec.calibration.exclude
        extension = None
        if comparison is not None and isinstance(measure, OnnxRuntimeMeasure):
            extension = comparison.compared(
                measure.network, {name: tensor.scale for name, tensor in tensors.items()},
                excluded, len(used))
        coverage = _represented(bundle, used, chosen, shown)
        document = manifest.new(
            bundle, result,
            method=method,
            parameters={'percentile': percentile} if method == 'percentile' else {},
            calibrator=measure.name,
            batch_size=batch_size, seed=seed,
            counts=manifest.Counts(count, len(used), len(held_out), len(selection.skipped)),
            images=tuple(used.listed), golden=tuple(held_out), skipped=tuple(selection.skipped),
            coverage=_handed_on(coverage, bundle),
            equalization=choice and choice.record(_file(change.path / EQUALIZED_NAME)),
            tuning=None if tuning is None else tuning.record(),
            tensors=tensors,
            statistics=_file(change.path / MEMORY_NAME),
            extension=extension)
        change.write(CACHE_NAME, result.to_bytes())
        change.write(MANIFEST_NAME, form.to_json(document))
        judged = measure.judge(tensors, excluded, [*earlier, *new])
        page = measure.report(document, used.impressions, judged) if report else None
        if page is not None:
            change.write(REPORT_NAME, page)
        change.remove(REPORT_NAME)  # an older one is about another cache
        if golden and not extend:
            change.remove(GOLDEN_NAME)
        change.commit()
        partial.remove(bundle.path)
    return Calibration(result, document, judged, coverage.warnings)


def record(bundle: str | os.PathLike[str] | Bundle, images: Any, *, count: int | None = None,
           seed: int = 0, topics: Collection[str] = (),
           progress: Callable[[str, int], None] = lambda stage, done: None,
           say: Callable[[str], None] = lambda line: None) -> list[manifest.Image]:
    """
    Replace a bundle's golden frames, and their list in its manifest; its cache stays as it is.

    :param images: as for `calibrate`; those that were calibrated with are not used
    :param count: how many frames; None for 8, or as many as there are
    :returns: the images, chosen so that they show as much as they can
    :raises InputError: if no image can be used, or fewer than `count`
    """
    _check_numbers(count, 1, 0, 100)
    with Bundle.changing(_path(bundle), [GOLDEN_NAME]) as (bundle, change):
        selection = Selection(images, size=bundle.spec.input.size, seed=seed, topics=topics,
                              say=say)
        document = (manifest.read(bundle.manifest_path) if bundle.manifest_path.exists()
                    else None)
        calibrated = {image.sha256 for image in document.images} if document else set()

        def fresh() -> Iterator[Picture]:
            for picture in selection:
                if picture.sha256 in calibrated:
                    selection.skip(picture.name, _CALIBRATED)
                else:
                    yield picture
        if selection.available is not None:
            say(f'{counted(selection.available, "image")}, of which '
                f'{count or f"up to {GOLDEN_FRAMES}"} that show most become golden frames '
                '(--count), but for those that were calibrated with')
        chosen = choose(bundle, selection, fresh(), count or GOLDEN_FRAMES, _told(progress))
        if left := sum(skipped.reason == _CALIBRATED for skipped in selection.skipped):
            say(f'{counted(left, "image")} left out: {_CALIBRATED}')
        if len(chosen) < (count or 1):
            raise selection.too_few(len(chosen), f'{count or 1} that were not calibrated with',
                                    'give more, or ask for fewer (--count)')
        if before := _counted(golden_frames.paths(bundle.golden_path)):
            say(f'replaces {before}')
        for warning in _golden_warnings(bundle, chosen):
            say(warning)
        frames = write_golden(chosen, change.path / GOLDEN_NAME)
        if document is not None:  # whoever extends the calibration must not calibrate with them
            counts = document.counts and replace(document.counts, golden=len(frames))
            change.write(MANIFEST_NAME, form.to_json(
                replace(document, golden=tuple(frames), counts=counts)))
            if (bundle.path / REPORT_NAME).exists():
                say(f'{REPORT_NAME} still judges by the golden frames of before; build judges by '
                    'these')
        change.remove(GOLDEN_NAME)
        change.commit()
    return frames


def _handed_on(coverage: manifest.Represented, bundle: Bundle) -> manifest.Represented:
    """Return what images represent, without the place of the bundle in its warnings."""
    from trt_segmentation.reports import without_directories
    return replace(coverage, warnings=tuple(
        without_directories(warning, bundle.path) for warning in coverage.warnings))


def _told(progress: Callable[[str, int], None],
          expect: Callable[[str, int], None] = lambda stage, steps: None) -> Progress:
    """Return what tells of each step, and of the steps of a stage before its first."""
    told = set()

    def step(stage: str, done: int, of: int | None) -> None:
        if of is not None and stage not in told:
            told.add(stage)
            expect(stage, of)
        progress(stage, done)
    return step


def _counts(selection: Selection, count: int | None, golden: int | None, allow_fewer: bool,
            say: Callable[[str], None]) -> tuple[int, int]:
    """
    Return how many images to calibrate with and to hold out, by what there is.

    :raises InputError: if there are fewer than were asked for
    """
    wanted = CALIBRATION_IMAGES if count is None else count
    if selection.available is None:
        return wanted, GOLDEN_FRAMES if golden is None else golden
    if selection.available < wanted + (GOLDEN_FRAMES if golden is None else golden):
        selection.count_usable()  # so few are soon read, and what is said of them is true
    available = selection.available
    fifth = max(available // 5, min(1, available - 1))
    if golden is None:
        golden = min(GOLDEN_FRAMES, max(fifth, 0 if count is None else available - count))
    elif allow_fewer and golden > fifth:
        say(f'{golden} golden frames are too many of {counted(available, "image")}: a fifth of '
            f'them, {fifth}, is held out')
        golden = fifth
    if available < (1 if allow_fewer else wanted + golden):
        raise selection.too_few(available, _expected(wanted, golden, allow_fewer))
    selection.rewind()
    taken = min(wanted, available - golden)
    more = '; a hundred of different places and weather are better' if taken < wanted else ''
    say(f'{counted(available, "image")}: {taken} to calibrate with and {golden} to hold out as '
        'golden frames' + (f' (--count, --golden){more}' if count is None else ''))
    return (wanted if allow_fewer else taken), golden


def _expected(count: int, golden: int, allow_fewer: bool) -> str:
    """Return how many images were asked for, in words."""
    if allow_fewer:
        return '1 or more' + (f' to calibrate with beside the {golden} to hold out' if golden
                              else '')
    return f'{count} to calibrate with and {golden} to hold out'


def _replaced(bundle: Bundle, golden: int) -> str:
    """Return what a new calibration with so many golden frames takes the place of; or ''."""
    frames = golden_frames.paths(bundle.golden_path) if golden else []
    what = ' and '.join(filter(None, (manifest.in_words(bundle), _counted(frames))))
    instead = '; --extend adds to it instead' if (bundle.path / MEMORY_NAME).exists() else ''
    return f'replaces {what}{instead}' if what else ''


def _counted(frames: Sequence[Path]) -> str:
    """Return how many golden frames there are, in words; '' for none."""
    return counted(len(frames), 'golden frame') if frames else ''


def _next_golden(bundle: Bundle, extend: bool) -> int:
    """Return the number of the first golden frame that is written."""
    names = [path.stem for path in golden_frames.paths(bundle.golden_path)] if extend else []
    return max((int(name) for name in names if name.isdecimal()), default=-1) + 1


def _represented(bundle: Bundle, used: Used, golden: Sequence[Candidate],
                 shown: frozenset[int]) -> manifest.Represented:
    """
    Return what the images represent, with what they lack by what the float network says.

    :param golden: the frames that are new; shown: the train ids that those before show
    """
    found = describe(used.impressions)
    warnings = list(found.warnings)
    classes = {label.name: float(used.pixels[label.train_id] / max(used.pixels.sum(), 1))
               for label in bundle.spec.labels.classes}
    never = [name for name, share in classes.items() if not share]
    if nothing := one_class(classes):
        warnings.insert(0, f'the float network says {nothing} look at its masks with: '
                        f'{command_line("preview", bundle.path, "--images", "DIRECTORY")}')
    if used.pixels.any() and never:
        warnings.append(f'no image shows {_names(never)} to the float network: '
                        f'{"its" if len(never) == 1 else "their"} values are not in the ranges')
    if golden:
        warnings += _golden_warnings(bundle, golden, shown)
        hashes = [impression.perceptual_hash for impression in used.impressions]
        near = sum(any(alike(frame.picture.perceptual_hash, other) for other in hashes)
                    for frame in golden)
        if near:
            frames = counted(len(golden), 'golden frame is a near-duplicate',
                             'golden frames are near-duplicates')
            warnings.append(f'{near} of {frames} of images that were calibrated with, which says '
                            'little about other drives')
        drives = {drive(image.name) for image in used.listed} | {
            drive(frame.picture.name) for frame in golden}
        if len(drives) == 1 and '' not in drives:
            warnings.append(f'all images are of one folder or recording, {drives.pop()}: if that '
                            'is one drive, take golden frames of another with: '
                            + command_line('golden', bundle.path, '--images', 'OTHER'))
    warnings += unlike(used.processors)
    return replace(found, warnings=tuple(warnings), classes=classes)


def _golden_warnings(bundle: Bundle, golden: Sequence[Candidate],
                     shown: frozenset[int] = frozenset()) -> list[str]:
    """Return what golden frames cannot prove, in sentences; `shown` are train ids of others."""
    shown = shown.union(*(frame.ids for frame in golden))
    missing = [label.name for label in bundle.spec.labels.classes if label.train_id not in shown]
    if not missing:
        return []
    return [f'no golden frame shows {_names(missing)}: an engine is not proven for '
            f'{"it" if len(missing) == 1 else "them"}']


def _names(names: Sequence[str]) -> str:
    """Return names in a list that is not too long."""
    return ', '.join(names[:6]) + (f' and {len(names) - 6} more' if len(names) > 6 else '')


def _path(bundle: str | os.PathLike[str] | Bundle) -> Path:
    """Return a bundle's directory."""
    return bundle.path if isinstance(bundle, Bundle) else Path(bundle)


def _file(path: Path) -> manifest.File | None:
    """Return a new file as the manifest names it; None if there is none."""
    return manifest.File(path.name, files.sha256_file(path)) if path.exists() else None


def _frames(directory: Path) -> list[Frame]:
    """Return the golden frames of a directory."""
    return [Frame(image, mask) for _, image, mask in golden_frames.read(directory)]


def _check_numbers(count: int | None, batch_size: int, golden: int | None, percentile: float
                   ) -> None:
    """Raise InputError for a number out of its range."""
    for name, value, holds, expected in (
            ('count', count, count is None or count >= 1, '1 or more'),
            ('batch size', batch_size, batch_size >= 1, '1 or more'),
            ('golden', golden, golden is None or golden >= 0, '0 or more'),
            ('percentile', percentile, 0 < percentile <= 100, 'above 0, up to 100')):
        if not holds:
            raise InputError(f'{name}: found {value}, expected {expected}')
