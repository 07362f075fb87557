# SPDX-License-Identifier: Apache-2.0
"""Calibration by several processes: the bytes of one, whoever is killed or interrupts."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
import re
import shutil

import cv2
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import onnx
import pytest
from support.calibration import pictures, write_pictures
from support.networks import fcn, five_classes
from support.work import kill_one

from trt_segmentation.calibration import calibrate, observing
from trt_segmentation.calibration import progress as partial
from trt_segmentation.calibration.histogram import Histogram
from trt_segmentation.cli import main
from trt_segmentation.engines.workers import Workers
from trt_segmentation.errors import InputError
from trt_segmentation.system.processes import Processes

COUNT = 12


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """A bundle that is not calibrated, and pictures some of which cannot be used."""
    path = tmp_path_factory.mktemp('spread')
    five_classes(path / 'bundle')
    images = write_pictures(path / 'images', 30)
    for number in (3, 11, 20):
        (images / f'{number:03d}.png').write_bytes(b'no picture')
    for number in (5, 17):
        shutil.copyfile(images / '000.png', images / f'{number:03d}.png')
    return path


@pytest.fixture(scope='module')
def expected(home, tmp_path_factory):
    """What one process makes of them, byte for byte."""
    bundle = copy(home, tmp_path_factory.mktemp('one'))
    run(bundle, home)
    return files(bundle)


def copy(home, directory):
    return shutil.copytree(home / 'bundle', directory / 'bundle')


def run(bundle, home, workers=None, **options):
    return calibrate(bundle, home / 'images', count=COUNT, golden=2, seed=3, workers=workers,
                     **options)


def files(bundle):
    """Return all files, without what manifest and page say of when and where they were made."""
    where = str(bundle).encode()
    found = {str(path.relative_to(bundle)): path.read_bytes().replace(where, b'BUNDLE')
             for path in sorted(bundle.rglob('*')) if path.is_file() and path.name != '.lock'}
    del found['SHA256SUMS']
    for name, times in (('calibration.json', rb'"date": "[^"]*"'),
                        ('calibration.html', rb'<h2>Where these.*|\d[\d-]+ [\d:]+ UTC')):
        found[name] = re.sub(times, b'', found[name], flags=re.DOTALL)
    return found


def test_processes_that_are_killed_make_the_bytes_of_one(home, expected, tmp_path):
    bundle = copy(home, tmp_path)

    def killing(stage, done):
        if stage == 'calibrating' and done % 4 == 1:
            kill_one(done)

    with Processes(3, 1) as executor:
        run(bundle, home, Workers(executor, 3), progress=killing)
    assert files(bundle) == expected
    assert len(expected) == 11


@pytest.mark.parametrize('first, second', [(None, 2), (2, None)])
def test_interrupted_it_goes_on_with_another_number_of_processes(
        home, expected, tmp_path, first, second):
    bundle = copy(home, tmp_path)

    def stop(stage, done):
        if (stage, done) == ('calibrating', 7):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spread(bundle, home, first, progress=stop)
    assert (bundle / partial.FILE_NAME).exists()
    assert not (bundle / 'calibration.cache').exists()
    spread(bundle, home, second)
    assert files(bundle) == expected


def spread(bundle, home, number, **options):
    if number is None:
        run(bundle, home, **options)
        return
    with Processes(number, 1) as executor:
        run(bundle, home, Workers(executor, number), **options)


def on_two_machines(monkeypatch, bundle, home, changes, **options):
    """Calibrate on a worker that is another one from the fourth image on."""
    calls, look = count(), observing._look

    def other(job):
        identity, seen = look(job)
        return replace(identity, **changes) if next(calls) >= 3 else identity, seen

    with monkeypatch.context() as patch, ThreadPoolExecutor(1) as executor:
        patch.setattr(observing, '_look', other)
        return run(bundle, home, Workers(executor, 1), **options)


@pytest.mark.parametrize('changes', [
    {'versions': {'onnxruntime': '0.1'}},
    {'engines': {'float network': ('onnxruntime', 'fp32', 'CUDAExecutionProvider')}}])
def test_workers_of_other_versions_or_providers_end_it(home, tmp_path, monkeypatch, changes):
    with pytest.raises(InputError, match=f'two workers have other {next(iter(changes))}'):
        on_two_machines(monkeypatch, copy(home, tmp_path), home, changes)


def test_processors_that_took_part_are_told_also_after_an_interruption(
        home, expected, tmp_path, monkeypatch):
    def stop(stage, done):
        if (stage, done) == ('calibrating', 7):
            raise KeyboardInterrupt

    monkeypatch.setattr(observing, 'processor', lambda: 'one')
    bundles = [copy(home, tmp_path / name) for name in 'abc']
    for bundle in bundles:
        with pytest.raises(KeyboardInterrupt):
            on_two_machines(monkeypatch, bundle, home, {'processor': 'two'}, progress=stop)
    for bundle, here, anew in zip(bundles, ('one', 'two', 'three'), (False, False, True)):
        monkeypatch.setattr(observing, 'processor', lambda here=here: here)
        warnings = run(bundle, home).warnings
        assert any(warning.endswith(': one; two') for warning in warnings) == (not anew)
        assert (files(bundle) == expected) == anew


def test_what_was_counted_of_other_images_or_another_network_is_not_used(
        home, expected, tmp_path):
    bundle = copy(home, tmp_path)

    def stop(stage, done):
        if (stage, done) == ('calibrating', 7):
            raise KeyboardInterrupt

    def interrupt():
        with pytest.raises(KeyboardInterrupt):
            run(bundle, home, progress=stop)
        return (bundle / partial.FILE_NAME).read_bytes()

    state = interrupt()
    for damaged in (state[:-100], b'', b'PK' + state[2:]):
        (bundle / partial.FILE_NAME).write_bytes(damaged)
        again = interrupt()
        assert again[:2] == b'PK'
    others = shutil.copytree(home / 'images', tmp_path / 'others')
    halfway, fresh = copy(home, tmp_path / 'halfway'), copy(home, tmp_path / 'fresh')
    with pytest.raises(KeyboardInterrupt):
        run(halfway, home, progress=stop)
    for path in (halfway, fresh):  # pictures of other names are another calibration
        calibrate(path, others, count=COUNT, golden=2, seed=3)
    assert files(halfway) == files(fresh)
    others = others.rename(tmp_path / 'images')
    for number, picture in enumerate(pictures(30, seed=7)):
        shutil.move(others / f'{number:03d}.png', tmp_path / 'old.png')
        cv2.imwrite(str(others / f'{number:03d}.png'), picture)
    with pytest.raises(InputError, match='no longer those that an interrupted run'):
        calibrate(bundle, others, count=COUNT, golden=2, seed=3)
    assert not (bundle / partial.FILE_NAME).exists()
    interrupt()
    onnx.save(fcn(classes=5, seed=1), bundle / 'model.onnx')
    other = copy(home, tmp_path / 'other')
    onnx.save(fcn(classes=5, seed=1), other / 'model.onnx')
    run(bundle, home)
    run(other, home)
    assert files(bundle) == files(other) != expected


def test_the_command_takes_a_number_of_processes(home, expected, tmp_path):
    bundle = copy(home, tmp_path)
    assert main(['calibrate', str(bundle), '--images', str(home / 'images'), '--count',
                 str(COUNT), '--golden', '2', '--seed', '3', '--jobs', '2']) == 0
    assert files(bundle) == expected


@given(seed=st.integers(0, 2**32), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8),
       exponents=st.lists(st.integers(-140, 120), min_size=8, max_size=8))
@settings(deadline=None)
def test_histograms_add_up_exactly_in_any_order_and_grouping(seed, sizes, exponents):
    random = np.random.default_rng(seed)
    parts = [np.ldexp(random.normal(0, 1, size), exponent).astype(np.float32)
             for size, exponent in zip(sizes, exponents)]

    def of(*values):
        histogram = Histogram()
        for part in values:
            histogram.add(part, float(np.abs(part).max()))
        return histogram

    def merged(histograms):
        """Merge neighbors, of which each may be a merged one, until one is left."""
        histograms = list(histograms)
        while len(histograms) > 1:
            i = random.integers(len(histograms) - 1)
            histograms[i].merge(histograms.pop(i + 1))
        return histograms[0]

    whole = of(np.concatenate(parts))
    for _ in range(3):
        order = random.permutation(len(parts))
        found = merged(of(parts[i]) for i in order)
        assert (found.exponent, found.amax) == (whole.exponent, whole.amax)
        np.testing.assert_array_equal(found.counts, whole.counts)
        again = Histogram.restored(found.exponent, found.amax, found.counts)
        again.merge(of(parts[0]))
        found.merge(of(parts[0]))
        np.testing.assert_array_equal(again.counts, found.counts)
