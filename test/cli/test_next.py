# SPDX-License-Identifier: Apache-2.0
"""What commands say before their work, and at its end: what was written, and what comes next."""

from __future__ import annotations

import html
import json
from pathlib import Path
import re
import shlex
import shutil

import onnx
import pytest
from support.bundles import FOREIGN_LABELS, foreign_network
from support.calibration import pictures, run, write_pictures
from support.networks import fcn, write_bundle

from trt_segmentation.bundles.create import create
from trt_segmentation.cli import doctor, main
from trt_segmentation.errors import InputError
from trt_segmentation.evaluation import benchmark, evaluate, preview
from trt_segmentation.evaluation.tally import Evaluation


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """Return a directory with a calibrated bundle and pictures, whose names have blanks."""
    path = tmp_path_factory.mktemp('next')
    bundle = write_bundle(path / 'a bundle', fcn(), input={
        'color': 'bgr', 'mean': [71.6, 82.1, 72.31], 'scale': [1, 1, 1]})
    run(bundle, pictures(5), count=4, golden=1)
    write_pictures(path / 'some pictures', 2)
    return path


@pytest.fixture(autouse=True)
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setenv('TRT_SEGMENTATION_STORE', str(home / 'store'))


def end_of(words, capsys):
    """Run a command; return the paths that it says it wrote, and the words that come next."""
    assert main(words) in (0, 1)
    found = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()
                 if line.startswith(('written ', 'next ')))
    return found.get('written', ''), shlex.split(found['next'])


@pytest.mark.parametrize(('blind', 'failures', 'following'), [
    (['it sees nothing'], [], ['preview', 'a bundle', '--images', 'some pictures']),
    ([], [], ['build', 'a bundle']),
    ([], ['too low'], ['calibrate', 'a bundle', '--images', 'DIRECTORY', '--tune'])])
def test_what_follows_an_evaluation_depends_on_what_it_found(blind, failures, following, capsys,
                                                             monkeypatch, tmp_path):
    monkeypatch.setattr(Evaluation, '_blind', lambda _: blind)
    monkeypatch.setattr(Evaluation, 'failures', lambda *_, **__: failures)
    written, found = end_of(['evaluate', 'a bundle', '--images', 'some pictures', '--engines',
                             'fp32', '--output', str(tmp_path / 'out')], capsys)
    assert {Path(path) for path in written.split(', ')} == {*(tmp_path / 'out').iterdir()}
    assert found[1:] == following


@pytest.mark.parametrize(('limit', 'number', 'kind', 'following'), [
    (0.0, 5, 'Yes', ['build', 'judged']),
    (1.0, 14, "No: this bundle's limits would refuse it",
     ['calibrate', 'judged', '--images', 'many', '--tune']),
    (1.0, 5, "No: this bundle's limits would refuse it",
     ['calibrate', 'judged', '--images', 'DIRECTORY', '(with', 'more', 'than', '4', 'images)'])])
def test_a_calibration_begins_with_its_page_s_verdict(limit, number, kind, following, capsys,
                                                      tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_bundle(tmp_path / 'judged', fcn(), acceptance={
        'min_agreement': limit, 'min_class_agreement': limit, 'min_int8_share': 0})
    write_pictures(tmp_path / 'many', number)
    assert main(['calibrate', 'judged', '--images', 'many']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f'trusted    {kind}')
    page = html.unescape(re.sub('<[^>]+>', '', Path('judged/calibration.html').read_text()))
    assert f'Is this calibration to be trusted? {kind}' in page
    reasons = re.split(', because |; ', lines[0])[1:]
    assert reasons and all(reason in page for reason in reasons)
    assert shlex.split(lines[-1])[2:] == following


def test_who_has_tuned_is_not_told_to_tune(capsys, home, monkeypatch, tmp_path):
    shutil.copytree(home / 'a bundle', tmp_path / 'tuned')
    manifest = tmp_path / 'tuned' / 'calibration.json'
    manifest.write_text(json.dumps({
        **json.loads(manifest.read_text()),
        'tuning': {'chosen': 'mse', 'trials': [], 'sensitivity_db': {}}}))
    main(['seal', str(tmp_path / 'tuned')])
    monkeypatch.setattr(Evaluation, 'failures', lambda *_, **__: ['too low'])
    _, found = end_of(['evaluate', str(tmp_path / 'tuned'), '--images', 'some pictures',
                       '--engines', 'fp32'], capsys)
    assert found[1:] == ['build', str(tmp_path / 'tuned'), '--precision', 'auto']


def test_after_a_benchmark_comes_its_comparison(capsys, tmp_path):
    words = ['benchmark', 'a bundle', '--frames', '1', '--warmup', '0', '--engines', 'fp32']
    _, following = end_of(words, capsys)
    assert following[-4:] == ['benchmark', 'a bundle', '--output', 'benchmark']
    written, following = end_of([*words, '--output', str(tmp_path / 'an output')], capsys)
    assert {Path(path) for path in written.split(', ')} == {*(tmp_path / 'an output').iterdir()}
    assert following[-4:] == ['benchmark', '--compare',
                              str(tmp_path / 'an output' / 'benchmark.json'), 'OTHER.json']


def test_after_an_export_comes_its_script(capsys, tmp_path):
    output = tmp_path / 'an export'
    _, following = end_of(['export', 'a bundle', '--for', 'tensorrt-11', '--output', str(output)],
                          capsys)
    assert following[-2] == 'sh' and Path(following[-1]) == output / 'build.sh'
    assert Path(following[-1]).exists()


@pytest.mark.parametrize('target', ['autoware', 'onnxruntime', 'openvino', 'deepstream'])
def test_after_an_export_without_a_script_comes_where_to_copy_it(target, capsys, tmp_path):
    output = tmp_path / 'new'
    _, following = end_of(['export', 'a bundle', '--for', target, '--output', str(output)], capsys)
    assert f'copy {output} to where {target} runs' in ' '.join(following)


@pytest.mark.parametrize(('limit', 'following'), [
    ('min_agreement', ['calibrate', 'a refused', '--images', 'DIRECTORY', '--tune']),
    ('min_int8_share', ['build', 'a refused', '--precision', 'auto'])])
def test_after_a_refused_build_comes_what_may_mend_it(limit, following, capsys, home):
    shutil.copytree('a bundle', 'a refused', dirs_exist_ok=True)
    spec = Path('a refused/model.yaml')
    spec.write_text(f'{spec.read_text()}\nacceptance: {{{limit}: 1.0}}\n')
    assert main(['seal', 'a refused']) == 0
    capsys.readouterr()
    assert end_of(['build', 'a refused', '--force'], capsys)[1] == ['trt-segmentation', *following]


@pytest.mark.parametrize('command', ['inspect', 'seal'])
def test_after_a_look_at_a_bundle_comes_what_it_lacks(command, capsys):
    assert end_of([command, 'a bundle'], capsys)[1] == ['trt-segmentation', 'build', 'a bundle']


@pytest.mark.parametrize(('level', 'following'), [
    ('ok', ['trt-segmentation', 'init']), ('problem', ['trt-segmentation', 'doctor'])])
def test_after_a_look_at_the_machine_comes_a_command(level, following, capsys, monkeypatch):
    monkeypatch.setattr(doctor, 'examine', lambda: [doctor.Finding('x', level, 'y')])
    found = end_of(['doctor'], capsys)[1]
    at = len(found) - 1 - found[::-1].index('trt-segmentation')
    assert found[at:at + 2] == following


@pytest.mark.parametrize(('levels', 'verdict'), [
    (['ok', 'none'], 'the node can run here'),
    (['problem', 'ok', 'problem'], 'mend what is marked problem: part 0, part 2')])
def test_the_doctor_says_first_what_the_rest_comes_to(levels, verdict, capsys, monkeypatch):
    monkeypatch.setattr(doctor, 'examine', lambda: [
        doctor.Finding(f'part {i}', level, 'y') for i, level in enumerate(levels)])
    assert main(['doctor']) == ('problem' in levels)
    assert capsys.readouterr().out.splitlines()[0] == verdict


def test_the_doctor_names_a_backend_once(monkeypatch):
    def absent(name=''):
        raise InputError(f'backend {name} cannot be used here: z')

    monkeypatch.setattr('trt_segmentation.engines.choose_backend', absent)
    assert 'cannot be used here: z' in [found.text for found in doctor._engines()]


@pytest.mark.parametrize(('words', 'module', 'name', 'said'), [
    (['evaluate', 'a bundle', '--images', 'some pictures', '--engines', 'fp32'], evaluate,
     'evaluate', '2 images, network 64x32, engines fp32, backend onnxruntime'),
    (['preview', 'a bundle', '--images', 'some pictures'], preview, 'preview',
     '2 of 2 images, network 64x32, fp32, backend onnxruntime'),
    (['benchmark', 'a bundle', '--engines', 'fp32'], benchmark, 'measure',
     '200 frames of 64x32 after 20 to warm up, for each of fp32, backend onnxruntime')])
def test_how_much_there_is_comes_before_the_work(words, module, name, said, capsys, monkeypatch):
    def work(*_, **__):
        raise InputError('the work has begun')

    monkeypatch.setattr(module, name, work)
    assert main([*words, '--format', 'json']) == 2
    streams = capsys.readouterr()
    assert streams.out == ''
    assert streams.err.splitlines() == [f'trt-segmentation {words[0]}: {line}'
                                        for line in (said, 'the work has begun')]


@pytest.mark.parametrize('words', [
    ['evaluate', 'a bundle', '--images', 'some pictures', '--engines', 'fp32', '--output'],
    ['benchmark', 'a bundle', '--frames', '1', '--warmup', '0', '--engines', 'fp32', '--output'],
    ['export', 'a bundle', '--for', 'tensorrt-11', '--output'],
    ['inspect', 'a bundle/calibration.cache', '--tensorrt', '8.6.1', '--rewrite']])
def test_what_was_written_is_said_beside_a_document(words, capsys, tmp_path):
    output = tmp_path / 'new'
    assert main([*words, str(output), '--format', 'json']) == 0
    streams = capsys.readouterr()
    json.loads(streams.out)
    written, = [line for line in streams.err.splitlines() if ': written ' in line]
    assert written.startswith(f'trt-segmentation {words[0]}: written {output}')


def test_what_is_said_before_the_work_is_not_in_the_figures(capsys):
    assert main(['preview', 'a bundle', '--images', 'some pictures', '--format', 'json']) == 0
    assert len(json.loads(capsys.readouterr().out)['images']) == 2


def test_what_init_assumed_is_said_until_it_is_given(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(foreign_network(), 'net.onnx')
    write_pictures(tmp_path / 'seen', 3)
    create('net.onnx', 'open', labels=FOREIGN_LABELS, mean=(0, 0, 0), scale=(4, 4, 4))
    create('net.onnx', 'given', labels=FOREIGN_LABELS, color='rgb', mean=(110, 110, 110),
           scale=(0.02, 0.02, 0.02))
    for verb in ('preview', 'calibrate'):
        for bundle, said in (('open', True), ('given', False)):
            assert main([verb, bundle, '--images', 'seen']) == 0
            error = capsys.readouterr().err
            assert ('color in model.yaml marked (assumed)' in error) is said
            assert ('mean and scale give values up to 1.02e+03' in error) is said
