# SPDX-License-Identifier: Apache-2.0
"""Evaluation by several processes: the figures of one, whoever is killed or interrupts."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
import json
import re

import pytest
from support.bundles import foreign_bundle, FOREIGN_LABELS, save_with_truth
from support.work import kill_one

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.cli import main
from trt_segmentation.engines.opening import open_named
from trt_segmentation.engines.workers import Engines, opened, Workers
from trt_segmentation.errors import InputError
from trt_segmentation.evaluation import datasets, evaluate
from trt_segmentation.evaluation.evaluate import evaluate_items, evaluate_spread
from trt_segmentation.system.processes import Processes

COUNT = 24
NAMES = ('fp32', 'int8')


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """A directory with a bundle, pictures, and true masks that fit them badly."""
    path = tmp_path_factory.mktemp('spread')
    foreign_bundle(path)
    save_with_truth(path, COUNT)
    return path


@pytest.fixture(scope='module')
def expected(home):
    """What one process finds."""
    return run(home, home / 'one', '--jobs', '1')


def run(home, output, *words):
    """Return the figures and the page of a run, without the times that it took."""
    assert main(['evaluate', str(home / 'foreign'), '--images', str(home / 'images'), '--labels',
                 str(home / 'truth'), '--output', str(output), *words]) == 0
    figures = json.loads((output / 'evaluation.json').read_text())
    del figures['seconds'], figures['provenance']
    page = (output / 'evaluation.html').read_text()
    return figures, re.sub(r'<h2>Where these.*|\d[\d-]+ [\d:]+ UTC', '', page, flags=re.DOTALL)


def items_of(home):
    return datasets.folder(home / 'images', FOREIGN_LABELS, home / 'truth').items


def by_processes(home, executor, directory=None, **options):
    bundle = Bundle.open(home / 'foreign')
    workers = Workers(executor, 2)
    return evaluate_spread(Engines(workers.place(bundle), NAMES), items_of(home), bundle, workers,
                           directory, **options)


def comparable(evaluation):
    summary = evaluation.summary()
    del summary['seconds']
    return summary, evaluation.worst


def test_figures_and_page_are_those_of_one_process(home, expected, tmp_path):
    assert expected[0]['frames'] == COUNT
    assert expected[0]['engines']['int8']['worst_frames']
    assert run(home, tmp_path, '--jobs', '4') == expected


def test_killed_and_interrupted_it_goes_on_with_another_number_of_processes(
        home, tmp_path, monkeypatch):
    bundle = Bundle.open(home / 'foreign')
    with open_named(bundle, 'fp32') as fp32, open_named(bundle, 'int8') as int8:
        alone = evaluate_items({'fp32': fp32, 'int8': int8}, items_of(home), bundle)
    counted = []

    def stop(name):
        counted.append(name)
        if len(counted) == COUNT // 2:
            raise KeyboardInterrupt

    def killing(name):
        counted.append(name)
        if len(counted) % 5 == 0:
            kill_one(len(counted))

    with pytest.raises(KeyboardInterrupt), Processes(3, 1) as executor:
        by_processes(home, executor, tmp_path, progress=stop)
    before = len(counted)
    counted.clear()
    with Processes(2, 1) as executor:
        found = by_processes(home, executor, tmp_path, progress=killing)
    assert comparable(found) == comparable(alone)
    assert sorted(counted) == [f'{i:03d}.png' for i in range(COUNT)]
    assert before == COUNT // 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(('here', 'anew'), [('one', False), ('two', False), ('three', True)])
def test_processors_that_took_part_are_told_also_after_an_interruption(
        home, tmp_path, monkeypatch, here, anew):
    names, counted, count, identify = [], [], evaluate._count, evaluate.identify

    def stop(name):
        counted.append(name)
        if len(counted) == COUNT // 2:
            raise KeyboardInterrupt

    def counting(chunk):
        with monkeypatch.context() as patch:
            patch.setattr(evaluate, 'opened', lambda engines: renamed(engines, names.pop()))
            return count(chunk)

    @contextmanager
    def renamed(engines, processor):
        with opened(engines) as found:
            yield replace(found, identity=replace(found.identity, processor=processor))

    monkeypatch.setattr(evaluate, '_count', counting)
    monkeypatch.setattr(evaluate, 'identify', lambda engines: replace(
        identify(engines), processor=names[-1]))
    with ThreadPoolExecutor(1) as executor:
        names[:] = [*['two'] * COUNT, 'one', 'one']
        with pytest.raises(KeyboardInterrupt):
            by_processes(home, executor, tmp_path, progress=stop)
        assert len(counted) == COUNT // 2
        names[:] = [here] * COUNT
        found = by_processes(home, executor, tmp_path)
    notes = [note for note in found.figures().notes if note.startswith('different processors')]
    assert [note.rpartition(': ')[2] for note in notes] == ([] if anew else ['one; two'])
    assert found.frames == COUNT


def test_another_bundle_in_the_place_of_the_one_that_was_opened_is_refused(home):
    bundle = Bundle.open(home / 'foreign')
    with Processes(1, 1) as executor:
        workers = Workers(executor, 1)
        engines = Engines(replace(workers.place(bundle), sha256='0' * 64), NAMES)
        with pytest.raises(InputError, match='found another bundle there'):
            evaluate_spread(engines, items_of(home), bundle, workers)


def test_an_unreadable_picture_ends_it_with_its_name(home, tmp_path):
    items = items_of(home)
    (tmp_path / 'x.png').write_bytes(b'x')
    items.append(datasets.folder(tmp_path, FOREIGN_LABELS).items[0])
    bundle = Bundle.open(home / 'foreign')
    with pytest.raises(InputError, match=r'x\.png'), Processes(2, 1) as executor:
        workers = Workers(executor, 2)
        evaluate_spread(Engines(workers.place(bundle), NAMES), items, bundle, workers)


def test_a_cluster_is_not_given_copies_that_only_this_machine_has(home, capsys):
    assert main(['evaluate', str(home / 'foreign'), '--images', 's3://bucket/images', '--dask',
                 'tcp://127.0.0.1:1']) == 2
    assert capsys.readouterr().err.startswith(
        'trt-segmentation evaluate: --dask: s3://bucket/images would be fetched to this machine')
