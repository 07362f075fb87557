# SPDX-License-Identifier: Apache-2.0
"""Going on from a calibration without its images: the same as if they had been there."""

from __future__ import annotations

from fractions import Fraction
import json
from pathlib import Path
import shutil

import numpy as np
import onnx
import pytest
from support.bundles import foreign_bundle, foreign_network, MEAN, SCALE, scene
from support.calibration import pictures

from trt_segmentation.bundles import golden, manifest
from trt_segmentation.bundles.bundle import Bundle, CACHE_NAME, MEMORY_NAME
from trt_segmentation.calibration import calibrate
from trt_segmentation.calibration.calibrator import Calibrator, Counted
from trt_segmentation.calibration.channels import Channels
from trt_segmentation.calibration.memory import recall
from trt_segmentation.calibration.moments import Moments, Window
from trt_segmentation.calibration.packing import packed, unpacked
from trt_segmentation.cli import main
from trt_segmentation.errors import InputError
from trt_segmentation.recordings import bags
from trt_segmentation.sample.night import night, with_low_light_branch
from trt_segmentation.system import files

SIZE = (60, 110)
IMAGES = [scene(number, SIZE)[0] for number in range(16, 30)]  # not those of the golden frames


def run(bundle, images, **options):
    return calibrate(bundle, images, **{
        'count': len(images), 'golden': 0, 'report': False, 'equalize': 'off', **options})


@pytest.fixture(scope='module')
def base(tmp_path_factory):
    """A bundle with golden frames, to be calibrated."""
    return foreign_bundle(tmp_path_factory.mktemp('base'))


@pytest.fixture
def copy(base, tmp_path):
    def make(name: str) -> Path:
        return shutil.copytree(base, tmp_path / name)
    return make


@pytest.mark.parametrize('method', ['mse', 'entropy', 'percentile', 'minmax'])
def test_in_parts_or_at_once_in_any_order_the_bytes_are_the_same(method, copy):
    parts = [IMAGES[:5], IMAGES[5:9], IMAGES[9:]]
    options = {'method': method, 'percentile': 99.9}
    once, forward, backward = copy('once'), copy('forward'), copy('backward')
    run(once, IMAGES, **options)
    for bundle, order in ((forward, parts), (backward, [part[::-1] for part in parts[::-1]])):
        run(bundle, order[0], **options)
        for part in order[1:]:
            run(bundle, part, extend=True)  # the method is that of before
    cache = (once / CACHE_NAME).read_bytes()
    assert {(each / CACHE_NAME).read_bytes() for each in (forward, backward)} == {cache}
    # Arrays have a number for a name, so that only what was seen of them can be compared.
    memories = [recall(Bundle.open(each)) for each in (once, forward, backward)]
    for memory in memories[1:]:
        assert memory.images == memories[0].images == len(IMAGES)
        for name, statistics in memories[0].statistics.items():
            other = memory.statistics[name]
            assert (statistics.minimum, statistics.maximum) == (other.minimum, other.maximum)
            if statistics.histogram is not None:
                np.testing.assert_array_equal(statistics.histogram.counts, other.histogram.counts)
        for name, channels in memories[0].channels.items():
            np.testing.assert_array_equal(channels.summed, memory.channels[name].summed)
        np.testing.assert_array_equal(memory.pixels, memories[0].pixels)


def test_recordings_in_any_order_give_the_same_bytes(copy, tmp_path):
    for number in range(2):
        with bags.Writer(tmp_path / f'drive{number}.mcap') as writer:
            for i, image in enumerate(IMAGES[5 + 4 * number:9 + 4 * number]):
                writer.write_image('/image', image, 'bgr8', i * 10**9, 'camera')
    made = []
    for name, order in (('one', (0, 1)), ('two', (1, 0))):
        bundle = copy(name)
        run(bundle, IMAGES[:5])
        words = [str(tmp_path / f'drive{number}.mcap') for number in order]
        assert main(['calibrate', str(bundle), '--images', *words, '--extend', '--equalize',
                     'off', '--no-report']) == 0
        made.append(bundle)
    names = [name for name in files.listed_files(made[0]) if name != 'calibration.json']
    assert MEMORY_NAME in names and names == [
        name for name in files.listed_files(made[1]) if name != 'calibration.json']
    for name in names:
        assert (made[0] / name).read_bytes() == (made[1] / name).read_bytes(), name
    one, two = (json.loads((each / 'calibration.json').read_text()) for each in made)
    assert {key for key in one if one[key] != two[key]} <= {'date'}


def test_golden_frames_are_added_to_and_both_sets_are_judged(copy):
    bundle = copy('bundle')
    run(bundle, IMAGES[:6])
    earlier = {path.name: path.read_bytes() for path in (bundle / 'golden').iterdir()}
    dark = [image // 4 for image in IMAGES[6:12]]
    result = run(bundle, dark, count=4, golden=2, extend=True, equalize='auto', report=True)
    frames = list(golden.read(bundle / 'golden'))
    assert len(frames) == len(earlier) // 2 + 2
    assert all((bundle / 'golden' / name).read_bytes() == data for name, data in earlier.items())
    added = [image for name, image, _ in frames if f'{name}.png' not in earlier]
    assert all(any(np.array_equal(image, other) for other in dark) for image in added)
    document = result.manifest
    assert document.counts.used == len(document.images) == 10 and document.counts.golden == 2
    extension = document.extension
    assert (extension.images_before, extension.images_added) == (6, 4)
    assert [(each.name, each.frames) for each in extension.sets] == [
        ('earlier golden frames', len(earlier) // 2), ('new golden frames', 2)]
    assert all(0 <= each.agreement_before <= 1 and 0 <= each.agreement_after <= 1
               for each in extension.sets)
    page = (bundle / 'calibration.html').read_text()
    assert 'What the new images have brought' in page and 'new golden frames' in page
    manifest.verify(Bundle.open(bundle))  # and SHA256SUMS vouch for all of it


def test_what_a_new_range_does_shows_before_and_after(copy):
    """Of clear scenes first, so that a branch that wakes at night has no range."""
    bundle = copy('bundle')
    onnx.save(with_low_light_branch(foreign_network(), 'image', MEAN, SCALE),
              bundle / Bundle.open(bundle).spec.model)
    files.write_sums(bundle)
    run(bundle, IMAGES[:6])
    nights = [night(image, seed) for seed, image in enumerate(IMAGES[6:])]
    sets = run(bundle, nights, count=6, golden=2, extend=True).manifest.extension.sets
    clear, dark = sets
    assert dark.agreement_before < 0.9 and dark.agreement_after > 0.95
    assert clear.agreement_after > clear.agreement_before - 0.01


def test_images_that_were_used_are_not_counted_twice(copy):
    bundle = copy('bundle')
    run(bundle, IMAGES[:6])
    result = run(bundle, IMAGES[:8], count=None, extend=True, allow_fewer=True)
    assert result.manifest.counts.used == 8
    assert 'same content' in result.manifest.skipped[0].reason
    with pytest.raises(InputError, match='0 can be used'):
        run(bundle, IMAGES[:6], count=None, extend=True)


def test_what_cannot_be_extended_says_why(copy, tmp_path):
    bundle = copy('damaged')
    data = bytearray((bundle / MEMORY_NAME).read_bytes())
    for place, reason in ((len(data) // 2, 'SHA256SUMS'), (None, 'not the one that')):
        if place is not None:
            data[place] ^= 1
        (bundle / MEMORY_NAME).write_bytes(data)
        if place is None:
            files.write_sums(bundle)
        with pytest.raises(InputError, match=reason):
            run(bundle, IMAGES[:2], extend=True)
    document = json.loads((bundle / 'calibration.json').read_text())
    for content in (data, b'', b'PK', bytes(data)[:2000]):
        (bundle / MEMORY_NAME).write_bytes(content)
        document['statistics']['sha256'] = files.sha256_bytes(bytes(content))
        (bundle / 'calibration.json').write_text(json.dumps(document))
        files.write_sums(bundle)
        with pytest.raises(InputError, match='damaged|quantized now'):
            run(bundle, IMAGES[:2], extend=True)
    adopted = copy('adopted')
    shutil.copy(adopted / CACHE_NAME, tmp_path / 'foreign')
    assert main(['adopt', str(adopted), str(tmp_path / 'foreign')]) == 0
    assert not (adopted / MEMORY_NAME).exists()
    with pytest.raises(InputError, match='kept nothing to extend'):
        run(adopted, IMAGES[:2], extend=True)
    never = copy('never')
    for name in (CACHE_NAME, 'calibration.json'):
        (never / name).unlink()
    files.write_sums(never)
    with pytest.raises(InputError, match='no calibration cache'):
        run(never, IMAGES[:2], extend=True)


def test_the_sum_of_channels_is_exact():
    """0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1 in floats; of many, it hardly ever is."""
    random = np.random.default_rng(0)
    images = [np.float32(random.normal(size=(1, 3, 8, 8)) * 10.0 ** random.integers(-9, 9))
              for _ in range(40)]
    totals = []
    for order in (range(40), reversed(range(40))):
        total = None
        for i in order:
            one = Channels.of(images[i])
            if total is None:
                total = one
            else:
                total.merge(one)
        totals.append(total)
    np.testing.assert_array_equal(totals[0].summed, totals[1].summed)
    expected = np.sum([np.abs(image).max(axis=(0, 2, 3)).astype(np.longdouble)
                       for image in images], axis=0)
    np.testing.assert_allclose(totals[0].factors(), np.maximum(expected / expected.max(),
                                                               2.0**-10).astype(float))


def test_the_sums_of_windows_are_exact():
    """At once or in parts, which are packed and read again, forward or backward."""
    random = np.random.default_rng(0)
    images = [np.float32(random.normal(size=(1, 3, 8, 8))
                         * 10.0 ** random.integers(-9, 9, (3, 1, 1))) for _ in range(40)]
    window = Window((1, 2), (1, 1), (1, 1), (0, 0, 0, 0), 1)
    names = ('moment_sums', 'moment_sums_rest', 'moment_products', 'moment_products_rest')
    totals = []
    for order in (images, images[::-1]):
        calibrator = Calibrator([], [])
        for i, image in enumerate(order):
            calibrator.merge(Counted(moments={'conv': Moments.of(image, window)}))
            if i == 15:
                calibrator.moments = unpacked(*packed(calibrator)).moments
        _, arrays = packed(calibrator)
        totals.append([arrays[name] for name in names])
    for one, other in zip(*totals):
        assert one.tobytes() == other.tobytes()
    sums, sums_rest, products, products_rest = totals[0]
    alone = [Moments.of(image, window) for image in images]
    rows, columns = np.triu_indices(6)
    for first, rest, terms in (
            (sums, sums_rest, [each.summed.rounded()[0, 0] for each in alone]),
            (products, products_rest,
             [each.product.rounded()[0, 0][rows, columns] for each in alone])):
        for i in range(len(first)):
            expected = sum(Fraction(each[i]) for each in terms)
            assert first[i] == float(expected)
            assert expected == sum(map(Fraction, rest[:, i]), Fraction(first[i]))


def test_sums_that_are_not_finite_are_none():
    calibrator = Calibrator([], [])
    calibrator.moments['conv'] = Moments.of(
        np.ones((1, 1, 2, 2), np.float32), Window((1, 1), (1, 1), (1, 1), (0, 0, 0, 0), 1))
    header, arrays = packed(calibrator)
    assert 'moment_sums_rest' not in arrays
    arrays['moment_sums'][0] = np.nan
    with pytest.raises(ValueError, match='moment_sums: not finite'):
        unpacked(header, arrays)


def test_smooth_pictures_of_another_network_extend_too(tmp_path):
    """A network whose channels are known, with equalization tried on golden frames."""
    bundle = foreign_bundle(tmp_path)
    calibrate(bundle, pictures(6, SIZE), count=6, golden=0, report=False)
    result = calibrate(bundle, pictures(4, SIZE, seed=1), count=4, golden=0, report=False,
                       extend=True)
    assert result.manifest.counts.used == 10 and result.manifest.equalization is not None
