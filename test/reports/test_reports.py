# SPDX-License-Identifier: Apache-2.0
"""Reports: one file that needs no other, with where its figures come from, and nothing hidden."""

from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
import json
import math
import platform
import re
import sys
import warnings
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from support.bundles import foreign_bundle, FOREIGN_LABELS, foreign_network, scene

from trt_segmentation import reports, Segmenter
from trt_segmentation.bundles import golden, manifest
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.create import create
from trt_segmentation.bundles.labels import CITYSCAPES
from trt_segmentation.bundles.spec import AcceptanceSpec
from trt_segmentation.calibration import calibrate
from trt_segmentation.engines.opening import open_named, VEHICLE
from trt_segmentation.engines.record import Figures
from trt_segmentation.evaluation import benchmark
from trt_segmentation.evaluation.account import Fleet
from trt_segmentation.evaluation.evaluate import evaluate
from trt_segmentation.evaluation.frames import InProcess
from trt_segmentation.evaluation.metrics import Confusion
from trt_segmentation.evaluation.replay import replay
from trt_segmentation.evaluation.tally import Evaluation
from trt_segmentation.recordings import bags
from trt_segmentation.reports import benchmark as benchmark_report
from trt_segmentation.reports import calibration as calibration_report
from trt_segmentation.reports import evaluation as evaluation_report
from trt_segmentation.reports import fleet as fleet_report
from trt_segmentation.reports import replay as replay_report
from trt_segmentation.reports.calibration import Judged
from trt_segmentation.system import machine

HOSTILE = '<script>alert(1)</script>&"\''
_VOID = {'meta', 'img', 'br', 'hr', 'link', 'input'}


class Page(HTMLParser):
    """Checks that tags match and collects what the page refers to."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.stack, self.links, self.tags, self.text = [], [], [], ''
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ('src', 'href', 'action')]
        assert not any(name.startswith('on') for name, _ in attrs)
        if tag not in _VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text += data


def check(text):
    page = Page(text)
    assert 'script' not in page.tags
    assert all(link.startswith('data:image/') for link in page.links)
    assert 'url(' not in text.split('</style>')[0]
    return page


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    path = tmp_path_factory.mktemp('reports')
    foreign_bundle(path)
    return path


@pytest.fixture(scope='module')
def segmenters(home):
    return {name: Segmenter.open(home / 'foreign', precision=name, store=home / 'store')
            for name in ('fp32', 'int8')}


def test_the_evaluations_page(home, segmenters):
    labels = segmenters['fp32'].spec.labels
    frames = [(f'{HOSTILE} {i}', *scene(i, (60, 110))) for i in range(3)]
    known = [label.train_id for label in labels.classes]
    frames = [(name, image, np.where(np.isin(truth, known), truth, 255).astype(np.uint8))
              for name, image, truth in frames]
    result = evaluate(segmenters, frames)
    bundle = Bundle.open(home / 'foreign')
    provenance = reports.provenance(bundle)

    def report(evaluation, failures, limits=None):
        return evaluation_report.Report(HOSTILE, evaluation.figures(limits), provenance, failures,
                                        labels, evaluation.worst)

    page = check(evaluation_report.html(report(result, [HOSTILE], bundle.spec.acceptance)))
    assert HOSTILE in page.text
    assert page.text.count(f'{HOSTILE} ') >= 3  # the frames that changed
    assert sum(link.startswith('data:image/svg') for link in page.links) == 2
    assert sum(link.startswith('data:image/jpeg') for link in page.links) == 3
    for label in labels.classes:
        assert label.name in page.text
    figures = result.summary()['engines']
    assert reports.share(figures['fp32']['mean_class_iou']) in page.text
    assert reports.points(figures['int8']['mean_class_iou_loss']) in page.text
    answer = "int8: would be accepted by this bundle's limits, on these frames: "
    found = result.figures(bundle.spec.acceptance)
    accepted = found.engines['int8'].judgement.accepted
    yes = 'that is not known' if found.blind else 'yes'
    assert answer + (yes if accepted else 'no') in page.text
    assert page.text.index(answer) < page.text.index('class IoU')  # the verdict comes first
    assert platform.node() in page.text[:page.text.index(answer)]
    for failures, said in ((None, ''), ([], 'that were asked for are kept'),
                           ([HOSTILE], 'are not kept')):
        assert said in evaluation_report.text(report(result, failures))
    without = evaluate(segmenters, [(name, image, None) for name, image, _ in frames])
    page = check(evaluation_report.html(report(without, None)))
    assert 'Categories' not in page.text
    assert 'would be accepted' not in page.text
    markdown = evaluation_report.markdown(report(result, None, bundle.spec.acceptance))
    assert '| class IoU |' in markdown
    assert f'**{answer}' in markdown
    assert 'bundle sha256' in markdown


def test_whose_arithmetic_an_int8_engine_has_is_told_in_a_line():
    masks = np.zeros((1, 4, 4), np.uint8)
    for names, here, there in ((('fp32', 'int8', 'int8-vehicle'), 1, 1), (('fp32', 'int8'), 1, 0),
                               (('fp32', 'int8-vehicle'), 0, 1), (('fp32', 'fp16'), 0, 0)):
        evaluation = Evaluation(CITYSCAPES, names)
        evaluation.add('a', np.zeros((4, 4, 3), np.uint8), None, dict.fromkeys(names, masks[0]))
        text = evaluation_report.text(evaluation_report.Report(
            'x', evaluation.figures(), {}, None, CITYSCAPES, {}))
        assert text.count('the one to judge a calibration by') == there
        assert text.count('which round at other places than the vehicle') == here


@pytest.mark.parametrize(('names', 'truth', 'said'), [
    (('fp32',), True, 'fp32: class IoU 100.00%, compared with nothing'),
    (('fp32',), False, 'fp32: not judged, compared with nothing'),
    (('int8', 'fp32'), False, 'no float network to judge the others by')])
def test_a_page_has_an_answer_whatever_was_compared(names, truth, said):
    evaluation = Evaluation(CITYSCAPES, names)
    mask = np.zeros((4, 4), np.uint8)
    mask[2:] = 13
    evaluation.add('a', np.zeros((4, 4, 3), np.uint8), mask if truth else None,
                   dict.fromkeys(names, mask))
    verdicts = evaluation_report.verdicts(evaluation_report.Report(
        'x', evaluation.figures(AcceptanceSpec()), {}, None, CITYSCAPES, {}))
    assert said in verdicts[0].answer


def test_the_replays_page(home, segmenters):
    with bags.Writer(home / 'bag') as writer:
        for i in range(3):
            writer.write_image('/c/image', scene(i, (60, 110))[0], 'bgr8', i + 1, 'c')
        writer.write_image('/c/image', scene(0, (60, 110))[0], HOSTILE, 9, 'c')
    replay(InProcess(segmenters['fp32']), home / 'bag', record_golden=home / 'g.mcap')
    result = replay(InProcess(segmenters['int8']), home / 'bag', golden=home / 'g.mcap')
    provenance = reports.provenance()
    page = check(replay_report.html(HOSTILE, result, provenance, ['too far']))
    assert page.text.index('No: the masks are not the golden ones') < page.text.index('too far')
    assert HOSTILE in page.text
    assert any(link.startswith('data:image/svg') for link in page.links)
    plain = replay(InProcess(segmenters['int8']), home / 'bag', record_golden=home / 'h.mcap')
    check(replay_report.html('bag', plain, provenance, None))
    assert '# Replay of bag' in replay_report.markdown('bag', plain, provenance, None)
    for text in (replay_report.markdown('bag', result, provenance, ['too far']),
                 replay_report.text('bag', result, ['too far'])):
        assert (text.index('No: the masks are not') < text.index('too far')
                < text.index("measured on this host's CPU") < text.index('compared'))


def test_each_camera_of_a_replay_has_a_line_of_its_own_over_time(home, segmenters):
    topics = ('/front/image', '/rear/image')
    with bags.Writer(home / 'two') as writer:
        for i in range(3):
            for topic in topics:
                writer.write_image(topic, scene(i, (60, 110))[0], 'bgr8', i + 1, 'c')
    replay(InProcess(segmenters['fp32']), home / 'two', record_golden=home / 'two.mcap')
    result = replay(InProcess(segmenters['fp32']), home / 'two', golden=home / 'two.mcap')
    page = check(replay_report.html('two', result, reports.provenance(), [], 0.9))
    picture, = (link for link in page.links if link.startswith('data:image/svg'))
    said = re.findall('>([^<>]+)</text>', b64decode(picture.partition(',')[2]).decode())
    assert [topic for topic in topics if topic in said] == [*topics]


def test_the_benchmarks_page(segmenters):
    result = benchmark.measure(segmenters, frames=5, warmup=1)
    page = check(benchmark_report.html(HOSTILE, result, reports.provenance()))
    assert HOSTILE in page.text
    assert len(page.links) == 2
    for text in (page.text, benchmark_report.text(result),
                 benchmark_report.markdown('x', result, {})):
        assert text.index('is the fastest: ') < text.index('speedup')
        assert text.index("measured on this host's CPU") < text.index('speedup')


@pytest.mark.parametrize(('backends', 'said', 'unsaid'), [
    (['onnxruntime'], "CPU (ONNX Runtime, with kernels for this CPU): says nothing about the time "
                      "of the vehicle's", 'OpenCV'),
    (['opencv', 'onnxruntime'], 'CPU (ONNX Runtime and OpenCV, with', 'GPU ('),
    (['tensorrt'], "this machine's GPU (TensorRT): a vehicle with another GPU", 'CPU'),
    (['opencv', 'tensorrt_rtx'], 'GPU (TensorRT for RTX) and CPU (OpenCV): ', "host's")])
def test_whose_arithmetic_was_measured_is_said(backends, said, unsaid):
    sentence, = reports.measured(backends)
    assert said in sentence and unsaid not in sentence


def test_nothing_is_said_of_an_engine_that_nobody_knows():
    assert reports.measured(['']) == []


def timed(**engines):
    """A result in which every frame of an engine takes the same time, in milliseconds."""
    return {
        'settings': {'frames': 40, 'warmup': 0, 'image_size': [4, 5], 'seed': 0},
        'machine_before': {'load': '0.10 0 0'}, 'machine_after': {},
        'engines': {name: {
            'backend': '', 'precision': name, 'warmup_ms': [], 'samples_ms': {'total': times},
            'stages': {'total': {key: float(np.median(times))
                                 for key in ('p50', 'p90', 'p95', 'p99', 'max', 'mean')}},
            'frames_per_second': 1e3 / np.mean(times)} for name, times in engines.items()}}


def test_the_benchmarks_verdict():
    first, *rest = benchmark_report.verdicts(timed(fp32=[80.0] * 40, int8=[20.0] * 40))
    assert first.answer.startswith('int8 is the fastest: 20.00 ms')
    assert '4.00 times as fast as fp32' in first.reasons[0]
    assert '50.0 Hz' in first.reasons[-1]
    assert rest == []
    slow = timed(fp32=[20.0] * 40, int8=[80.0] * 40)
    first, second = benchmark_report.verdicts(slow)
    assert first.kind == 'bad' and 'int8 is slower than fp32' in first.answer
    assert second.answer.startswith('fp32 is the fastest')
    slow['machine_before']['load'] = '999.0 0 0'
    slow['engines']['int8']['samples_ms']['total'][20:] = [160.0] * 20
    first, second, doubts = benchmark_report.verdicts(slow)
    assert first.kind == doubts.kind == 'warn' and second.kind == ''
    assert 'int8 came out slower than fp32' in first.answer
    assert 'load 999.0' in doubts.reasons[0]
    assert 'the second half of int8 took 100% more than the first half' in doubts.reasons[1]
    slow['engines']['int8']['samples_ms']['total'][20:] = [48.0] * 20
    assert 'int8 took 40% less than' in benchmark_report.verdicts(slow)[-1].reasons[1]


def test_the_calibrations_page_answers_with_the_vehicles_agreement(tmp_path):
    """Pixel by pixel on the golden frames, with the engine that stands for the vehicle's."""
    onnx.save(foreign_network(), tmp_path / 'foreign.onnx')
    create(tmp_path / 'foreign.onnx', tmp_path / 'foreign', labels=FOREIGN_LABELS, color='rgb',
           mean=(123.675, 116.28, 103.53), scale=(1 / 58.395, 1 / 57.12, 1 / 57.375))
    calibrate(tmp_path / 'foreign', (scene(i, (60, 110))[0] for i in range(10)), count=6,
              golden=2)
    bundle = Bundle.open(tmp_path / 'foreign')
    equal = total = 0
    with open_named(bundle, VEHICLE) as segmenter:
        for _, image, mask in golden.read(bundle.golden_path):
            classes = segmenter.segment(image).classes
            equal += np.count_nonzero((classes == mask) & (mask != 255))
            total += np.count_nonzero(mask != 255)
    page = check((tmp_path / 'foreign' / 'calibration.html').read_text(encoding='utf-8'))
    assert 'Is this calibration to be trusted? Yes' in page.text
    assert f'INT8 gives {equal / total:.2%} of the pixels' in page.text
    assert page.text.index('to be trusted?') < page.text.index('What the images represent')


def manifest_of(bundle, warnings=()):
    document = manifest.read(bundle / 'calibration.json')
    return replace(document, coverage=replace(document.coverage, warnings=warnings),
                   counts=replace(document.counts, used=100))


def test_the_calibrations_verdict(home):
    document = manifest_of(home / 'foreign')
    good = Judged(8, Figures(0.99, {'road': 0.9, 'car': 0.7}, 0.95), (), ())
    (verdict,) = calibration_report.verdicts(document, good)
    assert verdict.kind == 'good' and 'Yes' in verdict.answer
    assert any('car, keeps 70.00%' in reason for reason in verdict.reasons)
    first, second = calibration_report.verdicts(
        manifest_of(home / 'foreign', ('no night',)),
        replace(good, failures=('agreement 0.5 is below 0.95',), unjudged=('train',)))
    assert first.kind == 'bad' and first.reasons[0] == 'agreement 0.5 is below 0.95'
    assert second.kind == 'warn'
    assert 'train' in second.reasons[0] and second.reasons[1] == 'no night'
    for failures, kind in ((), 'warn'), (('too little',), 'bad'):
        first, *_ = calibration_report.verdicts(document, replace(
            good, failures=failures, only='road'))
        assert first.kind == kind and first.reasons[:len(failures)] == [*failures]
        assert 'next to nothing but road' in first.reasons[len(failures)]
    (verdict,) = calibration_report.verdicts(replace(document, counts=replace(
        document.counts, golden=0)), None)
    assert verdict.kind == 'warn' and 'no golden frames' in verdict.reasons[0]


@pytest.mark.parametrize(('images', 'frames', 'said'), [
    (7, 8, ['7 images to calibrate with']), (100, 1, ['1 golden frame to judge by']),
    (7, 1, ['7 images to calibrate with', '1 golden frame to judge by'])])
def test_a_calibration_of_few_pictures_is_no_plain_yes(home, images, frames, said):
    document = manifest_of(home / 'foreign')
    first, second = calibration_report.verdicts(
        replace(document, counts=replace(document.counts, used=images)),
        Judged(frames, Figures(0.99, {'road': 0.9}, 0.95), (), ()))
    assert first.kind == 'warn' and 'Yes, as far as so few' in first.answer
    assert [reason.partition(':')[0] for reason in second.reasons] == said


def test_provenance_says_what_made_the_figures(home, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['/x/trt-segmentation', 'evaluate', 'a b', '--scenes', '3'])
    bundle = Bundle.open(home / 'foreign')
    found = reports.provenance(bundle)
    assert found['command'] == "trt-segmentation evaluate 'a b' --scenes 3"
    assert found['bundle sha256'] == bundle.sha256
    assert found['network sha256'] == bundle.model_sha256
    assert found['python'] == '.'.join(map(str, sys.version_info[:3]))
    assert found['numpy'] == np.__version__
    assert found['cores']


def test_equal_figures_give_equal_pictures():
    def picture():
        figure = reports.new_figure(3, 2)
        figure.add_subplot().plot([1, 2, 3], label='a')
        return reports.figure_uri(figure)
    assert picture() == picture()
    import base64
    ElementTree.fromstring(base64.b64decode(picture().partition(',')[2]))


def test_pictures_have_names_of_all_languages_as_text_and_say_nothing():
    import base64
    figure = reports.new_figure(3, 2)
    figure.add_subplot().set_title('Straße 車線')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        svg = base64.b64decode(reports.figure_uri(figure).partition(',')[2])
    assert 'Straße 車線' in ''.join(ElementTree.fromstring(svg).itertext())


def test_json_has_null_where_there_is_no_number():
    text = reports.json_text({'a': [math.nan, 1.5], 'b': (math.nan,), 'c': 'nan'})
    assert json.loads(text) == {'a': [None, 1.5], 'b': [None], 'c': 'nan'}


@pytest.mark.parametrize(('value', 'text'), [
    (0.12345, '12.35'), (1, '100.00'), (math.nan, '-'), (None, '-')])
def test_shares_in_percent(value, text):
    assert reports.share(value) == text


@pytest.mark.parametrize(('value', 'text'), [
    (0.3, '+0.30'), (-0.3, '-0.30'), (0.001, '0.00'), (-0.001, '0.00'), (None, '-')])
def test_points_with_their_sign(value, text):
    assert reports.points(value) == text


def test_no_line_ends_at_a_hyphen_and_what_is_copied_is_the_same():
    text = 'build with: trt-segmentation build "<b>" --allow-float a'
    found = str(reports.whole(text))
    assert Page(found).text == text
    assert found.count('<span class="whole">') == 2 and 'whole">--allow-float<' in found


def test_tables():
    head, rows = ['name', 'n'], [['a', '1'], ['long', '22']]
    assert reports.markdown_table(head, [*rows, ['a|b', '3']]).splitlines() == [
        '| name | n |', '| --- | ---: |', '| a | 1 |', '| long | 22 |', '| a\\|b | 3 |']
    assert '| Straße &lt;1&gt; &amp; Weg | 4 |' in reports.markdown_table(
        head, [['Straße <1> & Weg', '4']])
    assert reports.text_table(head, rows).splitlines() == ['name   n', 'a      1', 'long  22']


def test_the_machine_is_described_by_what_it_has():
    found = machine.describe()
    assert int(found['cores']) >= 1
    assert 'Linux' in found['system']
    assert all(found.values())
    assert 'load' in machine.state()


def test_without_the_templating_library_the_error_says_what_to_install(monkeypatch):
    from trt_segmentation.errors import InputError
    monkeypatch.setitem(sys.modules, 'jinja2', None)
    with pytest.raises(InputError, match=r"pip install '\.\[cpu\]'"):
        reports.render('reports/base.html')


def test_classes_of_one_recording_and_of_many_come_worst_first_then_as_in_the_labels():
    confusion = Confusion(CITYSCAPES)  # which are not in the order of the alphabet
    for train_id, right in ((0, 4), (1, 2), (2, 4), (3, 3), (4, 4)):
        confusion.matrix[train_id, train_id] = right
        confusion.matrix[train_id, 9] = 4 - right
    expected = [['sidewalk', '50.000'], ['wall', '75.000'], ['road', '100.000'],
                ['building', '100.000'], ['fence', '100.000']]
    assert replay_report.class_rows(confusion) == expected
    fleet = Fleet(CITYSCAPES)
    fleet.confusion.merge(confusion)
    said = fleet_report.text(fleet, None).split()
    assert [word for word in said if word in dict(expected)] == [name for name, _ in expected]
