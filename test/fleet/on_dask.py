# SPDX-License-Identifier: Apache-2.0
"""
Work on a real Dask cluster gives what one process gives, also while its workers are killed.

Run by test/fleet/run, which has Dask: a scheduler and two workers with nannies, on loopback.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
from time import perf_counter

import distributed
import pytest
from support.bundles import foreign_bundle, save_with_truth, scene
from support.calibration import write_pictures
from support.networks import five_classes
from support.work import process as process_of
from support.work import square

from trt_segmentation.bundles import parcel
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.cli import main
from trt_segmentation.engines.cluster import connect
from trt_segmentation.engines.opening import open_segmenter
from trt_segmentation.errors import InputError
from trt_segmentation.recordings import bags
from trt_segmentation.system.spread import spread

KILLS = 10
PICTURES = 24
RECORDINGS = 6


class Cluster:
    """A scheduler, and two workers that their nannies start again."""

    def __init__(self, directory):
        self.file = directory / 'scheduler.json'
        self.store = directory / 'workers'
        self.log = open(directory / 'log', 'wb')
        environment = {**os.environ, 'TRT_SEGMENTATION_STORE': str(self.store)}
        self.processes = [subprocess.Popen(
            [sys.executable, '-m', f'distributed.cli.dask_{what}', '--scheduler-file',
             str(self.file), *options], env=environment, stdout=self.log, stderr=self.log)
            for what, options in (
                ('scheduler', ['--host', '127.0.0.1', '--port', '0', '--no-dashboard']),
                ('worker', ['--nworkers', '2', '--nthreads', '1', '--no-dashboard',
                            '--local-directory', str(directory / 'scratch')]))]
        self.client = distributed.Client(scheduler_file=str(self.file), timeout='120s',
                                         set_as_default=False)
        self.client.wait_for_workers(2, timeout='120s')
        self.random = random.Random(0)
        self.kills = 0

    def kill_one(self):
        """Kill a worker, when one is there, as the kernel does for lack of memory."""
        self.client.wait_for_workers(1, timeout='120s')
        pids = sorted(self.client.run(os.getpid, on_error='ignore').values())
        if pids:
            os.kill(self.random.choice(pids), signal.SIGKILL)
            self.kills += 1

    def end(self):
        self.client.close()
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:  # a machine under load
                process.kill()
                process.wait(60)
        self.log.close()


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
    found = Cluster(tmp_path_factory.mktemp('cluster'))
    yield found
    found.end()


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """A bundle, pictures with masks that fit them badly, and recordings."""
    path = tmp_path_factory.mktemp('home')
    foreign_bundle(path)
    save_with_truth(path, PICTURES)
    for number in range(RECORDINGS):
        with bags.Writer(path / 'drives' / f'drive{number}') as writer:
            for i in range(4):
                writer.write_image('/camera/image_raw', scene(4 * number + i, (60, 110))[0],
                                   'bgr8', (i + 1) * 50_000_000, 'camera')
    with open_segmenter(path / 'foreign', store=path / 'store'):
        pass  # builds it
    return path


def killing(cluster, monkeypatch):
    """Kill a worker after each item, until it were ten in this test."""
    from trt_segmentation.system.progress import ProgressBar
    plain, first = ProgressBar.show, cluster.kills

    def show(bar, stage, done):
        plain(bar, stage, done)
        if done and cluster.kills - first < KILLS and stage in ('', 'calibrating'):
            cluster.kill_one()
    monkeypatch.setattr(ProgressBar, 'show', show)
    return first


def without_times(page):
    return re.sub(rb'<h2>Where these.*|\d[\d-]+ [\d:]+ UTC', b'', page, flags=re.DOTALL)


def evaluated(home, output, *words):
    assert main(['evaluate', str(home / 'foreign'), '--images', str(home / 'images'), '--labels',
                 str(home / 'truth'), '--output', str(output), *words]) == 0
    figures = json.loads((output / 'evaluation.json').read_text())
    del figures['seconds'], figures['provenance']
    return figures, without_times((output / 'evaluation.html').read_bytes())


def test_figures_and_page_of_an_evaluation(cluster, home, tmp_path, monkeypatch):
    alone = evaluated(home, tmp_path / 'one', '--jobs', '1')
    assert evaluated(home, tmp_path / 'dask', '--dask', str(cluster.file)) == alone
    first = killing(cluster, monkeypatch)
    assert evaluated(home, tmp_path / 'killed', '--dask', str(cluster.file)) == alone
    assert cluster.kills - first >= KILLS - 1  # one may have been lost already


def test_bags_and_page_of_a_fleet(cluster, home, tmp_path, monkeypatch):
    def replayed(name, *words):
        output = tmp_path / name
        assert main(['replay', str(home / 'foreign'), '--bag', str(home / 'drives'), '--output',
                     str(output / 'masks'), '--report', str(output / 'fleet.html'), *words]) == 0
        found = {str(path.relative_to(output)): path.read_bytes()
                 for path in output.rglob('*') if path.is_file()
                 # What a killed worker has left goes when its recording is replayed again.
                 and not str(path.relative_to(output)).startswith('masks/.')}
        return {name: without_times(data) for name, data in found.items()}

    alone = replayed('one', '--jobs', '1', '--store', str(home / 'store'))
    assert len(alone) == 2 * RECORDINGS + 1
    assert replayed('dask', '--dask', str(cluster.file)) == alone
    first = killing(cluster, monkeypatch)
    assert replayed('killed', '--dask', str(cluster.file)) == alone
    assert cluster.kills > first


def test_the_bag_of_one_recording(cluster, home, tmp_path, monkeypatch):
    def replayed(name, *words):
        output = tmp_path / name / 'masks'
        assert main(['replay', str(home / 'foreign'), '--bag', str(home / 'drives' / 'drive1'),
                     '--output', str(output), *words]) == 0
        return {path.name: path.read_bytes() for path in output.iterdir()}

    alone = replayed('one', '--jobs', '1', '--store', str(home / 'store'))
    assert len(alone) == 2
    first = killing(cluster, monkeypatch)
    assert replayed('killed', '--dask', str(cluster.file)) == alone
    assert cluster.kills > first


def test_the_files_of_a_calibration(cluster, tmp_path, monkeypatch):
    images = write_pictures(tmp_path / 'images', 40)

    def calibrated(name, *words):
        bundle = five_classes(tmp_path / name / 'bundle')
        assert main(['calibrate', str(bundle), '--images', str(images), '--count', '20',
                     '--golden', '2', '--no-report', *words]) == 0
        found = {path.name: path.read_bytes() for path in bundle.rglob('*') if path.is_file()
                 and path.name not in ('.lock', 'SHA256SUMS')}
        found['calibration.json'] = re.sub(
            rb'"date": "[^"]*"', b'', found['calibration.json']).replace(
                str(bundle).encode(), b'BUNDLE')
        return found

    alone = calibrated('one', '--jobs', '1')
    first = killing(cluster, monkeypatch)
    assert calibrated('killed', '--dask', str(cluster.file)) == alone
    assert cluster.kills - first >= KILLS - 1


def test_a_bundle_is_sent_by_its_hash_and_kept(cluster, home):
    bundle = Bundle.open(home / 'foreign')
    with connect(str(cluster.file), store=None, gpu=False) as workers:
        place = workers.place(bundle)
    kept = parcel.place_of(place.path, cluster.store)
    assert Bundle.open(kept).sha256 == bundle.sha256 == place.sha256
    changed = parcel.Parcel('0' * 64, parcel.pack(bundle).data)
    with pytest.raises(InputError, match='has not the hash'):
        parcel.unpack(changed, cluster.store)
    (kept / 'model.yaml').write_text('damaged')
    assert parcel.unpack(parcel.pack(bundle), cluster.store) == kept
    assert Bundle.open(kept).sha256 == bundle.sha256


def test_items_that_need_a_gpu_go_to_the_workers_that_have_one(cluster):
    worker = subprocess.Popen(
        [sys.executable, '-m', 'distributed.cli.dask_worker', '--scheduler-file',
         str(cluster.file), '--nthreads', '1', '--no-dashboard', '--no-nanny', '--resources',
         'GPU=1'], stdout=cluster.log, stderr=cluster.log)
    try:
        cluster.client.wait_for_workers(3, timeout='120s')
        with connect(str(cluster.file), store=None, gpu=True) as workers:
            assert workers.number == 1
            assert {pid for _, pid in spread(workers.executor, process_of, range(8), ahead=4)
                    } == {worker.pid}
        with connect(str(cluster.file), store=None, gpu=False) as workers:
            assert workers.number == 3
    finally:
        worker.kill()
        worker.wait(60)


def test_what_an_item_costs_beside_its_work(cluster, capsys):
    """A figure, no limit: machines differ; docs/fleet.md has it from an idle one."""
    with connect(str(cluster.file), store=None, gpu=False) as workers:
        list(spread(workers.executor, square, range(100), ahead=8))
        start = perf_counter()
        assert len(list(spread(workers.executor, square, range(1000), ahead=8))) == 1000
    with capsys.disabled():
        print(f'\nDask: {perf_counter() - start:.2f} ms an item')


def test_no_scheduler_is_said_in_a_line(home, capsys, monkeypatch):
    monkeypatch.setattr('trt_segmentation.engines.cluster._PATIENCE', '2s')
    assert main(['evaluate', str(home / 'foreign'), '--images', str(home / 'images'), '--dask',
                 'tcp://127.0.0.1:1']) == 2
    error = capsys.readouterr().err
    assert 'no scheduler answers' in error
    assert error.count('\n') == 1
