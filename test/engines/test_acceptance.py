# SPDX-License-Identifier: Apache-2.0
"""The acceptance against a count of pixels one by one, and what it says it did not judge."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from trt_segmentation.bundles.labels import IGNORE, Label, LabelSet
from trt_segmentation.bundles.spec import AcceptanceSpec, InputSpec, OutputSpec, Spec
from trt_segmentation.engines.acceptance import examine, Golden, judge, self_test, still_passes
from trt_segmentation.engines.record import Figures
from trt_segmentation.engines.summary import agreement_table, unproven
from trt_segmentation.networks.layers import Layer

SIZE = (30, 50)  # one pixel of one frame is less than 0.1% of it, two are more
IDS = (0, 1, 4, 200)
LABELS = LabelSet((
    *(Label(f'class {i}', i, (i, 0, 0), 'a') for i in IDS), Label('void', IGNORE, (0, 0, 0), 'b'),
    Label('class 0', 0, (0, 0, 0), 'a')))  # two channels of one class
SHARES = st.sampled_from([0.0, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0])


DEFAULT = AcceptanceSpec()


def bundle_of(limits=DEFAULT, labels=LABELS, golden=Path('/nowhere')):
    return SimpleNamespace(golden_path=golden, spec=Spec(
        'model.onnx', InputSpec('data', SIZE), OutputSpec('logits'), labels, acceptance=limits))


class Given:
    """A segmenter that gives masks by turns, whatever it is shown."""

    record = None

    def __init__(self, masks):
        self._masks = iter(masks)

    def segment(self, image, want):
        return SimpleNamespace(classes=next(self._masks))


def frames_of(masks):
    return [Golden(f'{i:03}', np.zeros((*mask.shape, 3), np.uint8), mask)
            for i, mask in enumerate(masks)]


def plain_count(pairs):
    """Return the pixels that have a class in either mask, and the agreeing, by golden id."""
    total, same = Counter(), Counter()
    for truth, given_mask in pairs:
        for a, b in zip(truth.ravel().tolist(), given_mask.ravel().tolist()):
            if a != IGNORE or b != IGNORE:
                total[a] += 1
                same[a] += a == b
    return total, same


@st.composite
def masks(draw):
    """Draw pairs of golden masks and an engine's, which differ at some places."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    ids = np.array(draw(st.lists(st.sampled_from((*IDS, IGNORE)), min_size=1, unique=True)))
    pairs = []
    for _ in range(draw(st.integers(1, 3))):
        weights = rng.dirichlet(np.full(len(ids), draw(st.sampled_from([0.02, 0.5, 5.0]))))
        truth = rng.choice(ids, SIZE, p=weights).astype(np.uint8)
        wrong = rng.random(SIZE) < draw(st.sampled_from([0.0, 0.0005, 0.01, 0.06, 0.3, 1.0]))
        other = rng.choice((*IDS, IGNORE), SIZE).astype(np.uint8)
        pairs.append((truth, np.where(wrong, other, truth)))
    return pairs


@settings(max_examples=200, deadline=None)
@given(pairs=masks(), least=SHARES, least_of_a_class=SHARES)
def test_no_engine_passes_that_a_count_of_pixels_fails(pairs, least, least_of_a_class):
    limits = AcceptanceSpec(least, least_of_a_class, 0)
    total, same = plain_count(pairs)
    count = sum(total[i] for i in IDS)
    right = count > 0 and sum(same.values()) / sum(total.values()) >= least and all(
        same[i] / total[i] >= least_of_a_class for i in IDS
        if total[i] and total[i] * 1000 >= count)
    frames = frames_of([truth for truth, _ in pairs])
    found = examine(bundle_of(limits), Given([mask for _, mask in pairs]), [], 'fp32',
                    frames=frames)
    assert (not found.failures) == right
    assert found.pixels == {f'class {i}': total[i] for i in IDS}
    judged = {f'class {i}' for i in IDS if total[i] and total[i] * 1000 >= count}
    assert set(found.classes) == judged
    assert set(found.unproven_classes) == {f'class {i}' for i in IDS} - judged


def test_the_failing_class_is_named_with_its_pixels_and_its_worst_frame():
    good, bad = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    good[:10], bad[:3] = 4, 4
    found = examine(bundle_of(AcceptanceSpec(0.1, 0.8, 0)), Given([good, np.zeros_like(bad)]), [],
                    'fp32', frames=frames_of([good, bad]))
    failure, = found.failures
    assert (failure.kind, failure.subject) == ('class_agreement', 'class 4')
    assert '650 golden pixels in 2 frames, the worst is 001 with 0.0000' in failure.text


def test_a_class_where_the_float_network_says_none_is_a_difference():
    golden, given_mask = np.full(SIZE, IGNORE, np.uint8), np.full(SIZE, 4, np.uint8)
    golden[:10] = given_mask[:10] = 1
    for one, other in ((golden, given_mask), (given_mask, golden)):
        found = examine(bundle_of(), Given([other]), [], 'fp32', frames=frames_of([one]))
        assert found.agreement == 1 / 3 and found.failures


def test_golden_frames_of_one_class_are_said_to_prove_next_to_nothing():
    mask = np.full(SIZE, 4, np.uint8)
    found = examine(bundle_of(), Given([mask]), [], 'fp32', frames=frames_of([mask]))
    assert not found.failures and found.agreement == 1 and found.only_class == 'class 4'
    assert 'show next to nothing but class 4' in unproven(found)[0]
    assert "golden 'a bundle' --images DIRECTORY" in unproven(found, 'a bundle')[0]
    assert found.unproven_classes == ('class 0', 'class 1', 'class 200')
    assert agreement_table(found)[-1].split() == ['class', '200', '-', '0']


@pytest.mark.parametrize(('second', 'third', 'only'), [
    (31, 0, ''), (29, 2, ''), (28, 2, 'class 4'), (9, 0, 'class 4')])  # of 1500, 30 are 2%
def test_a_trace_of_other_classes_proves_nothing_either(second, third, only):
    mask = np.full(SIZE, 4, np.uint8)
    mask.flat[:second], mask.flat[second:second + third] = 0, 1
    found = examine(bundle_of(), Given([mask]), [], 'int8', frames=frames_of([mask]))
    assert found.only_class == only
    assert found.agreement == 1 and {'class 0', 'class 4'} <= set(found.classes)
    assert ('next to nothing' in unproven(found)[0]) is bool(only)


def test_a_class_without_pixels_is_named():
    mask = np.zeros(SIZE, np.uint8)
    mask[:5], mask[6, 0] = 1, 4
    found = examine(bundle_of(), Given([mask]), [], 'fp32', frames=frames_of([mask]))
    assert set(found.classes) == {'class 0', 'class 1'}
    assert unproven(found) == ['2 of 4 classes cover less than 0.1% of the golden frames and were '
                               'not judged: class 4, class 200']


@pytest.mark.parametrize('share, kind', [(None, 'int8_unknown'), (0.89, 'int8_share')])
def test_too_little_or_unknown_int8_fails_and_can_be_waived(share, kind):
    failure, = judge(Figures(1.0, {}, share), AcceptanceSpec(), 'int8', proven=True)
    assert failure.kind == kind
    assert judge(Figures(1.0, {}, share), AcceptanceSpec(), 'fp16', proven=True) == ()
    assert judge(Figures(1.0, {}, 0.9), AcceptanceSpec(), 'int8', proven=True) == ()


def test_work_that_cannot_be_counted_is_named_with_its_reason():
    mask = np.zeros(SIZE, np.uint8)
    layers = [Layer('conv', 'Conv', 100, 'int8'),
              *(Layer(f'odd{i}', 'FusedConv', None, 'float', 'not of ONNX') for i in range(4))]
    found = examine(bundle_of(), Given([mask]), layers, 'int8', frames=frames_of([mask]))
    failure, = found.failures
    assert (failure.kind, found.int8_share) == ('int8_unknown', None)
    assert failure.text.endswith('is not known: the work cannot be counted of odd0 (not of ONNX), '
                                 'odd1 (not of ONNX), odd2 (not of ONNX), ...')


def test_waiving_int8_waives_nothing_else():
    mask = np.zeros(SIZE, np.uint8)
    layers = [Layer('conv', 'Conv', 100, 'float', 'because')]
    bundle = bundle_of()
    found = examine(bundle, Given([mask + 1]), layers, 'int8', frames=frames_of([mask]),
                    allow_float=True)
    assert [failure.kind for failure in found.waived] == ['int8_share']
    assert [failure.kind for failure in found.failures] == ['agreement', 'class_agreement']
    assert not still_passes(found, bundle, 'int8')
    found = examine(bundle, Given([mask]), layers, 'int8', frames=frames_of([mask]),
                    allow_float=True)
    assert still_passes(found, bundle, 'int8')


def test_a_self_test_without_a_record_proves_nothing():
    assert 'without golden frames' in self_test(Given([]), {'000': b''})
