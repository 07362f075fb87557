# SPDX-License-Identifier: Apache-2.0
"""Benchmark: what is counted, and how two results are compared."""

import csv
from html import unescape
import io
import json
from pathlib import Path
import re
import shutil

import numpy as np
import pytest
from support.bundles import foreign_bundle
from support.networks import Builder, write_bundle
import yaml

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.cli import main
from trt_segmentation.errors import command_line, InputError
from trt_segmentation.evaluation import benchmark
from trt_segmentation.evaluation.benchmark import compare, measure
from trt_segmentation.reports.benchmark import (
    comparison_table,
    comparison_text,
    comparison_verdicts,
    verdicts,
)


@pytest.fixture(scope='module')
def foreign(tmp_path_factory):
    return foreign_bundle(tmp_path_factory.mktemp('benchmark'))


def run(*words):
    return main(['benchmark', *map(str, words)])


@pytest.fixture(scope='module')
def result(foreign):
    bundle = Bundle.open(foreign)
    engines = {name: benchmark.open_engine(bundle, name) for name in ('opencv', 'fp32', 'int8')}
    return measure(engines, frames=23, warmup=3, image_size=(40, 70))


def test_every_frame_is_counted_by_stage(result):
    assert result['settings'] == {'frames': 23, 'warmup': 3, 'image_size': [40, 70], 'seed': 0}
    for figures in result['engines'].values():
        samples = figures['samples_ms']
        assert set(samples) == {'preprocess', 'inference', 'postprocess', 'total'}
        assert all(len(times) == 23 for times in samples.values())
        assert len(figures['warmup_ms']) == 3
        for total, *parts in zip(samples['total'], *(samples[stage] for stage in (
                'preprocess', 'inference', 'postprocess'))):
            assert total >= sum(parts)
        assert figures['frames_per_second'] == pytest.approx(23e3 / sum(samples['total']))
    assert result['engines']['int8']['precision'] == 'int8'
    assert result['engines']['opencv']['backend'] == 'opencv'


def test_quantiles_are_numpys(result):
    for figures in result['engines'].values():
        for stage, values in figures['stages'].items():
            times = figures['samples_ms'][stage]
            for key, share in (('p50', 50), ('p90', 90), ('p95', 95), ('p99', 99)):
                assert values[key] == pytest.approx(np.percentile(times, share))
            assert values['max'] == max(times)
            assert values['mean'] == pytest.approx(np.mean(times))


def test_csv_has_every_sample(result):
    rows = list(csv.DictReader(io.StringIO(benchmark.to_csv(result))))
    assert len(rows) == 3 * 23
    for name, figures in result['engines'].items():
        own = [row for row in rows if row['engine'] == name]
        assert [int(row['frame']) for row in own] == list(range(23))
        for stage, times in figures['samples_ms'].items():
            assert [float(row[f'{stage}_ms']) for row in own] == pytest.approx(times, abs=1e-4)


def test_engines_take_turns(foreign):
    order = []

    class Named:
        """A segmenter that notes when it is called."""

        def __init__(self, name, segmenter):
            self.name, self.segmenter, self.spec = name, segmenter, segmenter.spec
            self.engine = segmenter.engine

        def segment(self, image, want, color='bgr'):
            order.append((self.name, image.sum()))
            return self.segmenter.segment(image, want, color=color)

    segmenter = benchmark.open_engine(Bundle.open(foreign), 'fp32')
    measure({name: Named(name, segmenter) for name in 'ab'}, frames=25, warmup=0)
    names = ''.join(name for name, _ in order)
    assert names == 'a' * 10 + 'b' * 10 + 'a' * 10 + 'b' * 10 + 'a' * 5 + 'b' * 5
    sums = {name: [total for own, total in order if own == name] for name in 'ab'}
    assert sums['a'] == sums['b']  # the same images for both


def samples(seed, scale=1.0, count=200, **provenance):
    rng = np.random.default_rng(seed)
    times = scale * (10 + rng.gamma(2, 0.5, count))
    return {'settings': {'image_size': [4, 5]}, 'machine_before': {}, 'provenance': provenance,
            'engines': {'int8': {'samples_ms': {'total': times.tolist()}, 'backend': ''}}}


@pytest.mark.parametrize(('scale', 'verdict'), [
    (1.0, 'no difference beyond the noise'), (1.2, 'slower'), (0.8, 'faster')])
@pytest.mark.parametrize('seed', range(3))
def test_a_comparison_tells_change_from_noise(scale, verdict, seed):
    entry = compare(samples(seed), samples(seed + 10, scale))['int8']['total']
    assert entry['verdict'] == verdict
    assert entry['low_percent'] <= 100 * (scale - 1) <= entry['high_percent'] or (
        abs(entry['change_percent'] - 100 * (scale - 1)) < 4)
    assert entry['low_percent'] <= entry['change_percent'] <= entry['high_percent']
    assert entry['change_percent'] == pytest.approx(
        100 * (entry['second_ms'] / entry['first_ms'] - 1))


@pytest.mark.parametrize(('scale', 'kind', 'said'), [
    (1.0, '', 'int8 is the same within the noise ('), (1.25, 'bad', 'slower, beyond the noise: '),
    (0.8, 'good', 'faster, beyond the noise: ')])
def test_a_comparison_begins_with_its_verdict(scale, kind, said):
    first, second = samples(1), samples(11, scale)
    for result, factor in ((first, 1), (second, 3)):
        result['engines']['fp32'] = samples(2, factor)['engines']['int8']
    sides = first, second
    first, second = compare(first, second), compare(second, first)
    verdict, = comparison_verdicts(first, sides)
    assert verdict.kind == kind and said in verdict.answer
    other, = verdict.reasons
    assert other.startswith('fp32 is 200.0% slower')
    assert comparison_verdicts({'fp32': first['fp32']}, sides)[0].answer == other
    lines = comparison_text(second, sides).splitlines()
    assert lines[1].strip().startswith('fp32 is 66.7% faster')
    for side in sides:
        side['engines']['int8']['backend'] = 'onnxruntime'
    assert 'CPU (ONNX Runtime' in comparison_text(first, sides).splitlines()[1]
    assert comparison_table(first)[0][:3] == ['engine', 'stage', 'verdict']


@pytest.mark.parametrize(('other', 'size', 'said'), [
    ({'bundle': 'b'}, [4, 5], ''),  # the same network, calibrated anew: what a comparison is for
    ({'network sha256': '2' * 64}, [4, 5], 'networks,'),
    ({}, [8, 5], 'sizes of images,'),
    ({'processor': 'another'}, [4, 5], 'machines,'),
    ({'network sha256': '2' * 64, 'cores': '64'}, [8, 5],
     'networks and sizes of images and machines,')])
def test_a_comparison_of_different_things_says_so_first(other, size, said):
    one = {'bundle': 'a', 'network sha256': '1' * 64, 'processor': 'one', 'cores': '2'}
    sides = samples(1, **one), samples(11, 1.25, **{**one, **other})
    sides[1]['settings']['image_size'] = size
    comparison = compare(*sides)
    *before, verdict = comparison_verdicts(comparison, sides)
    assert 'int8 is ' in verdict.answer and verdict.kind == ('' if said else 'bad')
    assert [each.answer.startswith(f'The two results are of different {said} so ')
            for each in before] == [True] * bool(said)
    found = comparison_text(comparison, sides).splitlines()
    for name, first, second in (
            ('bundle', 'a', other.get('bundle', 'a')), ('images', '5x4', f'5x{size[0]}'),
            ('network', '1' * 12, other.get('network sha256', '1' * 12)[:12])):
        assert [name, first, second] in [line.split() for line in found]


def test_a_comparison_keeps_the_doubts_of_its_results():
    sides = samples(1, cores='2'), samples(11, 1.25, cores='64')
    for side in sides:
        side['machine_before']['load'] = '9.00 1 1'
    verdict, doubt = comparison_verdicts(compare(*sides), sides[:1] * 2)
    assert verdict.kind == '' and doubt.answer == 'Measure again' and doubt.reasons == [
        f'the {side} result: the machine was busy with other things: load 9.0 on 2 cores'
        for side in ('first', 'second')]
    *_, doubt = comparison_verdicts(compare(*sides), sides)
    assert [reason.split()[1] for reason in doubt.reasons] == ['first']  # 64 cores are not busy
    _, _, refused, _ = comparison_verdicts(compare(*sides), [
        {**sides[0], 'refused': {'fp16': []}}, {**sides[1], 'refused': {'int8': ['too low']}}])
    assert refused.answer.endswith("limits refuse the second result's int8")


def test_an_engine_that_the_limits_refuse_is_named_before_it_is_the_fastest(foreign, tmp_path,
                                                                            capsys):
    strict, words = tmp_path / 'strict', ['--frames', 3, '--warmup', 1, '--engines', 'int8',
                                          '--store', tmp_path / 'store']
    shutil.copytree(foreign, strict)
    spec = yaml.safe_load((strict / 'model.yaml').read_text())
    (strict / 'model.yaml').write_text(yaml.safe_dump(
        {**spec, 'acceptance': {**spec['acceptance'], 'min_agreement': 1.0}}))
    assert main(['seal', str(strict)]) == 0
    assert main(['build', str(strict), '--store', str(tmp_path / 'store')]) == 1
    why = re.search(r'agreement [\d.]+ is below min_agreement 1.0', capsys.readouterr().out)[0]
    said = "int8 was measured, but this bundle's limits refuse it: "
    assert run(strict, *words, '--output', tmp_path / 'out') == 0
    first, second, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith(said) and why in second and 'int8 is the fastest' in '\n'.join(rest)
    assert rest[-1].startswith(f'next       {command_line("calibrate", strict)} ')
    page = unescape((tmp_path / 'out' / 'benchmark.html').read_text())
    assert page.index(said) < page.index('int8 is the fastest')
    assert 'verdict good' not in page
    assert run(strict, *words, '--format', 'json') == 0
    assert json.loads(capsys.readouterr().out)['refused']['int8'][0] == why
    assert run(foreign, *words) == 0
    out = capsys.readouterr().out
    assert said not in out and 'int8 was built for this measurement only' in out
    assert main(['build', str(foreign), '--store', str(tmp_path / 'store')]) == 0
    capsys.readouterr()
    assert run(foreign, *words) == 0
    assert 'for this measurement only' not in capsys.readouterr().out


@pytest.mark.parametrize('named', ['benchmark', 'benchmark/benchmark.json'])
def test_a_result_is_compared_by_its_directory_or_its_file(tmp_path, monkeypatch, capsys, named):
    monkeypatch.chdir(tmp_path)
    Path('benchmark').mkdir()
    Path('benchmark/benchmark.json').write_text(json.dumps({'schema': 1, **samples(1)}))
    assert run('--compare', named, 'benchmark/benchmark.json') == 0
    assert 'int8 is the same within the noise' in capsys.readouterr().out
    assert run('--compare', named, 'benchmakr/benchmark.json') == 2
    assert 'did you mean benchmark/benchmark.json?' in capsys.readouterr().err


@pytest.mark.parametrize(('count', 'other'), [(1, 1), (19, 19), (49, 200), (200, 49)])
def test_few_frames_give_no_verdict(count, other):
    """Of fewer than five rounds nobody knows how rounds differ."""
    comparison = compare(samples(1, count=count), samples(2, 2.0, count=other))
    assert comparison['int8']['total']['verdict'] == 'too few frames to tell'
    verdict = comparison_verdicts(comparison, [samples(1), samples(2)])[0]
    assert verdict.kind == ''
    assert 'too few frames to tell a change from the noise' in verdict.answer
    assert comparison_table(comparison)[1][0][2] == 'too few frames'
    said = int(re.search(r'(\d+) frames or more', verdict.answer)[1])
    assert compare(samples(1, count=said), samples(2, 2.0, count=said))['int8']['total'][
        'verdict'] == 'slower'


def test_a_machine_that_slows_down_meanwhile_gives_no_verdict():
    drifting = samples(1)
    times = drifting['engines']['int8']['samples_ms']['total']
    times[100:] = [2 * value for value in times[100:]]
    entry = compare(samples(2), drifting)['int8']['total']
    assert entry['drift_percent'] > 90
    assert entry['verdict'] == 'no difference beyond the noise'


def test_results_without_a_common_engine_cannot_be_compared():
    other = {'engines': {'fp16': samples(0)['engines']['int8']}}
    with pytest.raises(InputError, match='no engine in common'):
        compare(samples(0), other)


def test_the_command_writes_all_files_and_compares_them(foreign, tmp_path, capsys):
    for name in 'ab':
        assert run(foreign, '--frames', 20, '--warmup', 2, '--output', tmp_path / name,
                   '--format', 'json') == 0
        found = json.loads(capsys.readouterr().out)
        assert list(found['engines']) == ['opencv', 'fp32', 'int8']
        assert 'processor' in found['provenance'] or 'system' in found['provenance']
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == [
            'benchmark.csv', 'benchmark.html', 'benchmark.json']
    words = ['--compare', tmp_path / 'a' / 'benchmark.json', tmp_path / 'b' / 'benchmark.json']
    assert run(*words) == 0
    verdict, *rest = capsys.readouterr().out.splitlines()
    assert verdict.startswith('int8 is ') and ' the noise' in verdict
    assert rest[0].strip().startswith("measured on this host's CPU")
    assert any('95% interval' in line for line in rest)
    assert run(*words, '--format', 'json', '--output', tmp_path / 'c') == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found['engines']) == {'opencv', 'fp32', 'int8'}
    assert found['verdict'] == found['verdicts'][0]['answer'] == verdict
    assert json.loads((tmp_path / 'c' / 'comparison.json').read_text()) == found
    page = (tmp_path / 'c' / 'comparison.html').read_text(encoding='utf-8')
    assert page.index('int8 is ') < page.index('Engines and stages')
    assert run(*words, '--format', 'markdown') == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f'**{verdict}**' and any('| int8 | total |' in line for line in lines)


def test_text_and_markdown_show_the_table(foreign, capsys):
    words = [foreign, '--engines', 'opencv', 'fp32', '--frames', 5, '--warmup', 0]
    assert run(*words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 'is the fastest: ' in lines[0]
    assert "this host's CPU (ONNX Runtime and OpenCV, " in lines[1]
    assert run(*words, '--format', 'markdown') == 0
    assert '| fp32 | inference |' in capsys.readouterr().out


@pytest.mark.parametrize('number', [99, 100])
def test_what_99_of_100_frames_take_is_not_said_of_fewer(result, number):
    times = [float(i) for i in range(1, number + 1)]
    engine = {**result['engines']['fp32'], 'samples_ms': {'total': times}, 'stages': {
        'total': {'p50': np.median(times), 'p99': np.quantile(times, 0.99), 'max': number}}}
    (verdict, *_) = verdicts({**result, 'engines': {'fp32': engine}})
    assert verdict.reasons[1:] == (
        ['the slowest of 99 frames took 99.00 ms, which keeps up with 10.1 Hz'] if number < 100
        else ['99 of 100 frames are done within 99.01 ms, which keeps up with 10.1 Hz'])


def test_a_network_that_opencv_cannot_run_is_measured_without_the_baseline(tmp_path, capsys):
    builder = Builder((16, 32))
    x = builder.conv('image', 'a', 3, 19)
    builder.node('Optional', [x], 'odd')  # of sequences and optionals it knows nothing
    model = builder.model(x, shape=['N', 19, 16, 32])
    bundle = write_bundle(tmp_path / 'bundle', model)
    with pytest.raises(InputError, match='OpenCV cannot run it'):
        benchmark.open_engine(Bundle.open(bundle), 'opencv')


@pytest.mark.parametrize(('words', 'said'), [
    ([], 'expected a bundle'), (['x', '--compare', 'a', 'b'], 'expected a bundle'),
    (['nowhere'], 'nowhere'), (['{}', '--frames', '0'], '0 frames'),
    (['{}', '--engines', 'int4'], 'int4'),
    (['--compare', 'nowhere.json', 'nowhere.json'], 'nowhere.json'),
])
def test_wrong_use_ends_with_code_2_and_one_line(foreign, capsys, words, said):
    assert run(*(word.format(foreign) for word in words)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count('\n') == 1


@pytest.mark.parametrize('content', ['', '{}', '[]', '{"schema": 1}', '{"schema": 9}', 'null',
                                     '[' * 200_000, '{"a":' * 200_000,
                                     '{"schema": 1, "engines": {"a": {}}}',
                                     '{"schema": 1, "engines": {}}',
                                     '{"schema": 1, "engines": {}, "machine_before": {}, '
                                     '"provenance": [], "settings": {"image_size": [1, 2]}}',
                                     '{"schema": 1, "engines": {}, "machine_before": {}, '
                                     '"settings": {"image_size": [1]}}',
                                     '{"schema": 1, "engines": {"a": {"samples_ms": '
                                     '{"total": ["x"]}}}}'])
def test_a_result_that_is_none_ends_with_code_2(tmp_path, capsys, content):
    path = tmp_path / 'benchmark.json'
    path.write_text(content)
    assert run('--compare', path, path) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert error.count('\n') == 1
