# SPDX-License-Identifier: Apache-2.0
"""Replay of many recordings: the bags and the account of one process, whoever does the work."""

from contextlib import closing
from itertools import permutations
import json
import os
from pathlib import Path
import re
import shutil
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from support.bundles import foreign_bundle, FOREIGN_LABELS, scene
from support.work import kill_one

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.cli import main
from trt_segmentation.engines.opening import open_segmenter
from trt_segmentation.engines.workers import Engines, identify, Workers
from trt_segmentation.errors import InputError
from trt_segmentation.evaluation import fleet
from trt_segmentation.evaluation.account import STATE_NAME
from trt_segmentation.evaluation.frames import InProcess
from trt_segmentation.evaluation.replay import replay
from trt_segmentation.recordings import bags, image_messages
from trt_segmentation.recordings.remote import local
from trt_segmentation.system.processes import Processes
from trt_segmentation.system.spread import Here

COUNT = 6
START, STEP = 1_700_000_000_000_000_000, 50_000_000


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """A bundle with its engine, six drives, a bad message in one, golden masks that differ."""
    path = tmp_path_factory.mktemp('fleet')
    foreign_bundle(path)
    for number in range(COUNT):
        with bags.Writer(path / 'drives' / f'day{number % 2}' / f'drive{number}') as writer:
            for i in range(3 + number):
                writer.write_image('/camera/image_raw', scene(4 * number + i, (60, 110))[0],
                                   'bgr8' if (number, i) != (5, 2) else 'nonsense',
                                   START + i * STEP, 'camera')
    with open_segmenter(path / 'foreign', store=path / 'store'):
        pass  # builds it
    assert command(path, '--bag', path / 'drives', '--record-golden', path / 'right') == 2
    for golden in (path / 'right').rglob('*.mcap'):
        change(golden, path / 'golden' / golden.relative_to(path / 'right'))
    return path


def change(golden, target):
    """Copy golden masks, with some rows of each of another class, by the recording's number."""
    lines = int(golden.stem.removeprefix('drive'))
    with bags.Writer(target) as writer:
        for recorded in bags.Reader(golden):
            mask = np.ascontiguousarray(image_messages.to_image(recorded.message)[0][..., 0])
            mask[:lines] = 7
            writer.write_image(recorded.topic, mask, 'mono8', recorded.stamp_ns, 'camera',
                               recorded.time_ns)


@pytest.fixture(scope='module')
def expected(home, tmp_path_factory):
    """What one process gives."""
    return outcome(home, tmp_path_factory.mktemp('one'), '--jobs', '1')


def command(home, *words):
    return main(['replay', str(home / 'foreign'), '--store', str(home / 'store'),
                 *map(str, words)])


def outcome(home, directory, *words):
    """Return bags, figures and page of a run, without the times that it took."""
    assert command(home, '--bag', home / 'drives', '--output', directory / 'masks', '--golden',
                   home / 'golden', '--report', directory / 'fleet.html', '--min-agreement',
                   '0.98', *words) == 2
    return written(directory)


def written(directory):
    found = {str(path.relative_to(directory)): path.read_bytes()
             for path in directory.rglob('*') if path.is_file()}
    found['fleet.html'] = re.sub(rb'<h2>Where these.*|\d[\d-]+ [\d:]+ UTC', b'',
                                 found.get('fleet.html', b''), flags=re.DOTALL)
    return found


def account(fleet):
    summary = fleet.summary()
    for row in summary['by_recording']:
        del row['seconds']
    return repr(summary), fleet.worst  # as text, in which nan equals itself


def wanted(home, workers, output=None):
    engines = Engines(workers.place(Bundle.open(home / 'foreign')), ('int8',),
                      store=str(home / 'store'), proven=True)
    return fleet.Wanted(engines, output=output and str(output), golden=str(home / 'golden'))


def all_of(home, executor, number, output=None, **options):
    workers = Workers(executor, number)
    asked = wanted(home, workers, output)
    return fleet.replay_all(
        fleet.find([str(home / 'drives')]), asked, workers,
        workers.call(identify, asked.engines), FOREIGN_LABELS,
        output and output / STATE_NAME, **options)


def test_each_recording_gives_the_bag_of_its_own_replay(home, expected, tmp_path):
    names = {str(Path(name).parent) for name in expected if name.startswith('masks/')}
    assert names == {f'masks/drive{i}' for i in range(COUNT)}
    with open_segmenter(home / 'foreign', store=home / 'store') as segmenter:
        replay(InProcess(segmenter), home / 'drives' / 'day0' / 'drive2',
               output=tmp_path / 'drive2')
    for path in (tmp_path / 'drive2').iterdir():
        assert expected[f'masks/drive2/{path.name}'] == path.read_bytes()


def test_rows_frames_and_classes_are_those_of_the_changed_masks(home, capsys):
    assert command(home, '--bag', home / 'drives', '--golden', home / 'golden', '--format',
                   'json', '--min-agreement', '0.98', '--jobs', '1') == 2
    figures = json.loads(capsys.readouterr().out)
    rows = {row['name']: row for row in figures['by_recording']}
    assert list(rows) == [f'drive{i}' for i in range(COUNT)]
    for number in range(COUNT - 1):
        row = rows[f'drive{number}']
        assert row['frames'] == row['compared'] == 3 + number
        # So many of 60 rows are another class, but where they were that already.
        assert row['worst_agreement'] >= 1 - number / 60
        assert row['identical'] == (row['frames'] if number == 0 else 0)
    assert rows['drive5']['dropped'] == {'unknown_encoding': 1} and figures['damaged'] == 1
    agreements = [frame['agreement'] for frame in figures['worst_frames']]
    assert agreements == sorted(agreements)
    assert agreements[0] == min(row['worst_agreement'] for row in rows.values())
    worst_class = min((value, name) for name, value in figures['class_agreement'].items()
                      if value is not None)[1]
    assert worst_class == 'night'  # the only one that the golden masks have too much of
    assert figures['failures'][-1].startswith('in ')


def test_processes_that_are_killed_give_the_bytes_of_one(home, expected, tmp_path):
    assert outcome(home, tmp_path, '--jobs', '3') == expected
    done = []

    def killing():
        done.append(kill_one(len(done)))

    with Processes(2, 1) as executor:
        found = all_of(home, executor, 2, tmp_path / 'again', progress=killing)
    assert len(done) == COUNT
    assert account(found) == account(all_of(home, Here(), 1))
    again = written(tmp_path / 'again')
    assert {name: data for name, data in expected.items() if name != 'fleet.html'} == {
        f'masks/{name}': data for name, data in again.items() if name != 'fleet.html'}


def stopping():
    """Return what is called at each step, and interrupts at the third."""
    done = []

    def stop():
        done.append(1)
        if len(done) == 3:
            raise KeyboardInterrupt

    return stop


def test_interrupted_it_goes_on_with_another_number_of_processes(home, tmp_path):
    output = tmp_path / 'masks'
    with pytest.raises(KeyboardInterrupt), Processes(2, 1) as executor:
        all_of(home, executor, 2, output, progress=stopping())
    state = (output / STATE_NAME).read_bytes()
    assert state.count(b'\n') == 4
    (output / STATE_NAME).write_bytes(state + b'{"signature": "cut sh')
    times = {path: path.stat().st_mtime_ns for path in output.glob('[!.]*/*.mcap')}
    rows = [json.loads(line)['row']['name'] for line in state.splitlines()[1:]]
    found = all_of(home, Here(), 1, output)
    assert account(found) == account(all_of(home, Here(), 1))
    for path, time in times.items():
        assert (path.stat().st_mtime_ns == time) == (path.parent.name in rows)
    assert not (output / STATE_NAME).exists()
    with pytest.raises(InputError, match='exists already, and is not what an interrupted run'):
        all_of(home, Here(), 1, output)


def test_rows_that_were_judged_by_other_golden_masks_are_done_again(home, tmp_path):
    shutil.copytree(home, tmp_path / 'home', symlinks=True)
    home, output = tmp_path / 'home', tmp_path / 'masks'
    with pytest.raises(KeyboardInterrupt):
        all_of(home, Here(), 1, output, progress=stopping())
    for bag in (home / 'golden').iterdir():
        files = [bag] if bag.is_file() else bag.iterdir()
        for file in files:
            os.utime(file, (1, 1))  # written anew
    names = []
    found = all_of(home, Here(), 1, output, watch=names.append)
    assert {name for each in names for name in each} == {row.name for row in found.rows}


def test_a_state_of_something_else_is_not_gone_on_with(home, tmp_path):
    output = tmp_path / 'masks'
    output.mkdir()
    (output / 'mine').write_text('kept')
    for state in (b'', b'{"schema": 1, "key": "other"}\n', b'[1]\n', b'\xff\n'):
        (output / STATE_NAME).write_bytes(state)
        with pytest.raises(InputError, match='exists already'):
            all_of(home, Here(), 1, output)
    assert (output / 'mine').read_text() == 'kept'


def test_recordings_that_cannot_be_replayed_are_rows_too(home, tmp_path, capsys):
    drives = tmp_path / 'drives'
    shutil.copytree(home / 'drives' / 'day0' / 'drive0', drives / 'good')
    (drives / 'bad.mcap').write_bytes(b'no recording')
    assert command(home, '--bag', drives / 'good', drives / 'bad.mcap', '--output',
                   tmp_path / 'masks', '--jobs', '1') == 2
    assert 'bad: ' in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / 'masks').iterdir()) == ['good']


def test_a_message_whose_time_is_none_costs_no_other_message_or_recording(home, tmp_path, capsys):
    drives = tmp_path / 'drives'
    shutil.copytree(home / 'drives' / 'day0' / 'drive0', drives / 'good')
    with bags.Writer(drives / 'bad', storage='sqlite3') as writer:
        for i in range(4):
            writer.write_image('/camera/image_raw', scene(i, (60, 110))[0], 'bgr8', START, 'a', i)
    with closing(sqlite3.connect(drives / 'bad' / 'bad.db3')) as database, database:
        database.execute('UPDATE messages SET timestamp = -5 WHERE id = 2')
        database.execute("UPDATE messages SET timestamp = 'noon' WHERE id = 3")
    assert command(home, '--bag', drives, '--output', tmp_path / 'masks', '--storage', 'sqlite3',
                   '--jobs', '1', '--format', 'json') == 2
    rows = {row['name']: row for row in json.loads(capsys.readouterr().out)['by_recording']}
    assert rows['good']['frames'] == 3 and rows['good']['problems'] == 0
    assert rows['bad']['frames'] == 2 and rows['bad']['problems'] == 2
    assert all('the time of recording is none' in problem for problem in rows['bad']['shown'])
    assert len(list(bags.Reader(tmp_path / 'masks' / 'bad', ['/segmentation/class_mask']))) == 2


def test_the_verdict_on_several_recordings_begins_with_what_could_not_be_read(
        home, tmp_path, capsys):
    for name in ('one', 'two'):
        with bags.Writer(tmp_path / 'bags' / name, storage='sqlite3') as writer:
            for i in range(7):
                writer.write_image('/camera/image_raw', scene(i, (240, 400))[0], 'bgr8',
                                   START + i * STEP, 'camera')
    file, = (tmp_path / 'bags' / 'two').glob('*.db3')
    file.write_bytes(file.read_bytes()[:file.stat().st_size // 2])
    words = ['--bag', tmp_path / 'bags', '--report', tmp_path / 'page.html', '--jobs', '1']
    assert command(home, *words) == 2
    lines = capsys.readouterr().out.splitlines()
    assert command(home, *words, '--format', 'json') == 2
    found = json.loads(capsys.readouterr().out)
    assert command(home, *words, '--format', 'markdown') == 2
    markdown = [line for line in capsys.readouterr().out.splitlines() if line]
    one, two = found['by_recording']
    assert 0 < two['frames'] < one['frames'] == 7 and one['damage'] == ''
    answer = '1 of 2 recordings could not be read whole'
    lost = f'two: {7 - two["frames"]} of 7 messages could not be read'
    assert found['verdict'] == lines[0] == answer
    assert found['reasons'] == [lost] == [lines[1].strip()]
    assert markdown[1:3] == [f'**{answer}**', f'- {lost}']
    page = (tmp_path / 'page.html').read_text()
    assert page.index(answer) < page.index(lost) < page.index('class="facts"')
    following, = (line for line in lines if line.startswith('next '))
    assert '--record-golden' not in following


def test_where_no_recording_could_be_replayed_nothing_is_written(home, tmp_path, capsys):
    for name in ('a.mcap', 'b.mcap'):
        (tmp_path / 'broken' / name).parent.mkdir(exist_ok=True)
        (tmp_path / 'broken' / name).write_bytes(b'no recording')
    assert command(home, '--bag', tmp_path / 'broken', '--output', tmp_path / 'masks') == 2
    said = capsys.readouterr().out
    assert 'written' not in said and 'next' not in said
    assert not (tmp_path / 'masks').exists()


def test_a_directory_without_golden_masks_is_named_before_the_work(home, tmp_path, capsys):
    assert command(home, '--bag', home / 'drives', '--golden', tmp_path / 'nowhere', '--report',
                   tmp_path / 'fleet.html', '--jobs', '1') == 2
    line, = capsys.readouterr().err.splitlines()
    assert f'--golden: {tmp_path}/nowhere: there are no golden masks of this' in line
    assert list(tmp_path.iterdir()) == []


def test_a_recording_without_golden_masks_is_named(home, tmp_path, capsys):
    golden = shutil.copytree(home / 'right', tmp_path / 'golden')
    os.remove(golden / 'drive3.mcap')
    assert command(home, '--bag', home / 'drives', '--golden', golden, '--jobs', '1') == 2
    assert 'drive3.mcap: no golden masks of this recording' in capsys.readouterr().err


@pytest.mark.parametrize('paths, names', [
    (['/a/x.mcap', '/b/y.bag'], ['x', 'y']),
    (['/a/x', '/b/x'], ['a/x', 'b/x']),
    (['/a/x.mcap', '/a/x.db3', '/b/y.mcap'], ['x_mcap', 'x_db3', 'y']),
    (['/a/x.db3', '/a/x', '/b/x.bag'], ['a/x_db3', 'a/x', 'b/x']),
    (['/a/x.mcap', '/a/x.mcap.zstd'], ['x_mcap', 'x_mcap_zstd']),
    (['gs://b/d.mcap', 's3://b/d.mcap'], ['gs:/b/d', 's3:/b/d']),
    (['s3://b//d.mcap', 's3://b/d.mcap', '/c/e.bag'], ['d', 'd_2', 'e']),
    (['s3://bucket/1/d.mcap', 's3://bucket/2/d.mcap'], ['1/d', '2/d'])])
def test_names_are_as_short_as_they_can_differ(paths, names):
    assert fleet._names(paths) == names


def test_names_depend_neither_on_the_order_of_the_recordings_nor_on_where_they_lie(
        tmp_path, monkeypatch):
    given = ['drive.db3', 'drive.mcap', 'link.mcap', 'real.mcap']
    for place in (tmp_path / 'a', tmp_path / 'deep' / 'b'):
        place.mkdir(parents=True)
        for name in ('drive.db3', 'drive.mcap', 'real.mcap'):
            (place / name).write_bytes(b'')
        (place / 'link.mcap').symlink_to('real.mcap')
        paths = [str(place / name) for name in given]
        monkeypatch.chdir(place)
        for sources in ([str(place)], [f'{place}/*'], ['.'], ['../' + place.name, *given],
                        given[::-1], *permutations(paths)):
            found = {recording.name: recording.path for recording in fleet.find(sources)}
            assert found == {'drive_db3': paths[0], 'drive_mcap': paths[1], 'link': paths[2]}


TEN_THOUSAND = """
import sys
from pathlib import Path
from support.bundles import FOREIGN_LABELS
from trt_segmentation.evaluation import fleet
from trt_segmentation.evaluation.account import Fleet, Log, Replayed, Row
from trt_segmentation.evaluation.progress import Counts, Worst
from trt_segmentation.reports import fleet as report, json_text

counts = Counts([[i, j, 10**7 + i] for i in range(19) for j in (i, 0, 1)], [])
names = [f'2026-11-{i:05d}_a_vehicle_somewhere/rosbag2_2026_11_27-12_00_{i}'
         for i in range(10_000)]
signatures = {name: f'{i:064x}' for i, name in enumerate(names)}
found, again = Fleet(FOREIGN_LABELS), Fleet(FOREIGN_LABELS)
try:
    with Log(Path(sys.argv[1]), 'key', signatures) as log:
        for i, name in enumerate(names):
            result = Replayed(
                Row(name, frames=20_000, dropped={'damaged': 3}, problems=3,
                    shown=tuple(f'/front/image_raw at {i} ns: damaged {k}' for k in range(3)),
                    compared=20_000, identical=19_000, below=2, agreement=0.999,
                    worst_agreement=0.9, class_agreement={
                        f'class {k}': 0.99 + i * 1e-9 for k in range(19)}),
                counts, [Worst(f'{name}: frame', 0.5 + i * 1e-6, bytes(40_000))] * (i < 100))
            log.write(result)
            found.add(result)
        raise KeyboardInterrupt
except KeyboardInterrupt:
    pass
assert Log(Path(sys.argv[1]), 'key', signatures).resume(again)
assert len(again.rows) == len(names)
assert json_text(again.summary()) == json_text(found.summary())
del found
assert report.html(again, {'time': 'now', 'host': ''}, None).count('<tr>') > len(names)
# Not by getrusage: there the memory of the process that started this one counts.
peak, = (line for line in open('/proc/self/status') if line.startswith('VmHWM:'))
print(int(peak.split()[1]) >> 10)
"""


def test_ten_thousand_recordings_fit_into_500_mb_of_the_parent(tmp_path):
    """With rows as large as a drive's; two accounts are there at once, then one and its page."""
    done = subprocess.run(
        [sys.executable, '-c', TEN_THOUSAND, str(tmp_path / STATE_NAME)], text=True,
        capture_output=True, env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 500


def test_a_url_is_fetched_for_as_long_as_it_is_read(home):
    pytest.importorskip('fsspec')
    bag = home / 'drives' / 'day0' / 'drive0'
    with local(f'file://{bag}') as path:
        assert sorted(file.read_bytes() for file in path.iterdir()) == sorted(
            file.read_bytes() for file in bag.iterdir())
    assert not path.exists()
    with pytest.raises(InputError, match='cannot be fetched'), local('file:///nowhere.mcap'):
        pass


def test_without_its_library_a_url_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'fsspec', None)
    with pytest.raises(InputError, match='fsspec.*\\[remote\\]'), \
            local('s3://bucket/drive.mcap'):
        pass
