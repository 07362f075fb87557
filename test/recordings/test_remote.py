# SPDX-License-Identifier: Apache-2.0
"""
Pictures and recordings by URL give what the same files give by their paths.

Run by test/fleet/run, which has fsspec; its stores in memory and over HTTP stand for all others.
"""

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
import json
import re
import tempfile
import threading

import pytest
from support.bundles import foreign_bundle, save, save_with_truth, scene
from support.calibration import write_pictures
from support.networks import five_classes

from trt_segmentation.calibration.sources import find
from trt_segmentation.cli import main
from trt_segmentation.errors import InputError
from trt_segmentation.evaluation import fleet
from trt_segmentation.recordings import bags, remote
from trt_segmentation.recordings.pictures import Unusable
from trt_segmentation.recordings.remote import here, local

fsspec = pytest.importorskip('fsspec')


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory, monkeypatch):
    """A directory for the copies, to see what is left of them."""
    path = tmp_path_factory.mktemp('temporary')
    monkeypatch.setattr(tempfile, 'tempdir', str(path))
    return path


@pytest.fixture
def memory(request):
    """The URL of a store in memory, empty for each test."""
    name = re.sub(r'\W', '_', request.node.name)
    yield f'memory://{name}'
    fsspec.filesystem('memory').store.clear()


class Handler(SimpleHTTPRequestHandler):
    """Serves a directory; of a name with 'cut' in it, half of what it promises."""

    def log_message(self, *words):
        pass

    def copyfile(self, source, outputfile):
        data = source.read()
        outputfile.write(data[:len(data) // 2] if 'cut' in self.path else data)


@pytest.fixture
def served(tmp_path):
    """A directory, and the URL under which a server on loopback has it."""
    pytest.importorskip('aiohttp')
    (tmp_path / 'served').mkdir()
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(
            Handler, directory=str(tmp_path / 'served'))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield tmp_path / 'served', f'http://127.0.0.1:{server.server_port}'
        server.shutdown()
        thread.join()


def upload(directory, url):
    system = fsspec.filesystem('memory')
    for path in directory.rglob('*'):
        if path.is_file():
            name = f'{url.removeprefix("memory:/")}/{path.relative_to(directory)}'
            system.pipe_file(name, path.read_bytes())
    return url


def drive(path, frames=3):
    with bags.Writer(path) as writer:
        for i in range(frames):
            writer.write_image('/camera/image_raw', scene(i, (60, 110))[0], 'bgr8', i + 1, 'x')
    return path


def loaded(*sources):
    return [(image.name, *map(bytes, image.load())) for image in find(sources)]


def test_directories_patterns_and_files_give_what_their_paths_give(tmp_path, memory):
    write_pictures(tmp_path / 'images', 4)
    write_pictures(tmp_path / 'images' / 'night', 2, seed=1)
    upload(tmp_path / 'images', f'{memory}/images')
    assert len(loaded(tmp_path / 'images')) == 6
    assert loaded(f'{memory}/images') == loaded(tmp_path / 'images')
    assert loaded(f'{memory}/images/night/') == loaded(tmp_path / 'images' / 'night')
    assert loaded(f'{memory}/images/night/001.png') == loaded(
        tmp_path / 'images' / 'night' / '001.png')
    assert [name for name, *_ in loaded(f'{memory}/images/*2.png')] == ['images/002.png']


def test_directories_of_one_name_come_in_the_same_order_in_each_process(tmp_path, memory):
    urls = []
    for i in range(4):
        (tmp_path / str(i)).mkdir()
        write_pictures(tmp_path / str(i) / 'set', 1, seed=i)
        urls.append(upload(tmp_path / str(i) / 'set', f'{memory}/{i}/set'))
    expected = loaded(*urls)
    assert [name for name, *_ in expected] == ['set/000.png'] * 4
    for order in (urls, urls[::-1], urls[2:] + urls[:2]):
        remote._copy.cache_clear()
        assert loaded(*order) == expected


def test_recordings_below_a_directory_are_those_of_its_path(tmp_path, served):
    directory, url = served
    for name in ('fleet/monday/one', 'fleet/two'):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        drive(directory / name)
    (directory / 'fleet/loose.mcap').write_bytes(
        (directory / 'fleet/two/two.mcap').read_bytes())
    (directory / 'fleet/notes.txt').write_text('none')
    expected = [recording.name for recording in fleet.find([str(directory / 'fleet')])]
    assert len(expected) == 3
    found = fleet.find([f'{url}/fleet/'])
    assert [recording.name for recording in found] == expected
    with local(found[0].path) as path:
        assert bags.Reader(path).count == 3
    assert [recording.path for recording in fleet.find([f'{url}/fleet/two'])] == [
        f'{url}/fleet/two']


def test_a_pattern_keeps_the_folders_below_it(tmp_path, memory):
    for city in ('a', 'b'):
        (tmp_path / city).mkdir()
        write_pictures(tmp_path / city / 'front', 2, seed=ord(city))
    upload(tmp_path, memory)
    found = loaded(f'{memory}/*/front/*.png')
    assert [name.partition('/')[2] for name, *_ in found] == [
        'a/front/000.png', 'a/front/001.png', 'b/front/000.png', 'b/front/001.png']
    assert [data for _, data, _ in found] == [
        path.read_bytes() for path in sorted(tmp_path.rglob('*.png'))]


def test_a_listing_that_leads_out_of_its_directory_is_refused(served, temporary):
    directory, url = served
    (directory / 'images').mkdir()
    (directory / 'images/index.html').write_text(
        '<a href="good.png">a</a> <a href="../../../evil.png">b</a>')
    with pytest.raises(InputError, match='evil.png., which leads out of it'):
        loaded(f'{url}/images/')
    assert not list(temporary.rglob('*.png'))


def test_recordings_give_what_their_paths_give(tmp_path, memory):
    drive(tmp_path / 'drives' / 'one')
    drive(tmp_path / 'drives' / 'two.mcap')
    upload(tmp_path / 'drives', f'{memory}/drives')
    expected = loaded(tmp_path / 'drives')
    assert len(expected) == 6
    assert loaded(f'{memory}/drives') == expected
    assert loaded(f'{memory}/drives/one', f'{memory}/drives/two.mcap') == expected
    assert [recording.path for recording in fleet.find([f'{memory}/drives/*'])] == [
        f'{memory.replace("://", ":///")}/drives/{name}' for name in ('one', 'two.mcap')]


def test_over_http(served):
    directory, url = served
    drive(directory / 'drive.mcap')
    save(directory / 'x.png', scene(0, (60, 110))[0])
    save(directory / 'cut.png', scene(1, (60, 110))[0])
    assert loaded(f'{url}/x.png', f'{url}/drive.mcap') == loaded(
        directory / 'x.png', directory / 'drive.mcap')
    for name, reason in (('cut.png', 'cannot be fetched: .+'),
                         ('gone.png', 'cannot be fetched: no such file or directory')):
        with pytest.raises(InputError, match=f'^{url}/{name}: {reason}$') as caught:
            find([f'{url}/{name}'])
        assert '\n' not in str(caught.value)


def test_what_is_damaged_or_gone_is_named_and_nothing_is_left_of_it(tmp_path, memory, temporary):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images' / 'bad.png').write_bytes(b'no picture')
    upload(tmp_path / 'images', f'{memory}/images')
    with pytest.raises(Unusable):
        find([f'{memory}/images'])[0].load()
    before = sorted(temporary.iterdir())
    for url in (f'{memory}/gone', f'{memory}/gone/*.png', f'{memory}/gone.mcap'):
        with pytest.raises(InputError, match='no such file or directory'):
            here(url)
        with pytest.raises(InputError, match='no such file or directory'), local(url):
            pass
    with pytest.raises(InputError, match=r'^nonsense://x: .*nonsense'):
        here('nonsense://x')
    assert sorted(temporary.iterdir()) == before
    with pytest.raises(InputError, match='cannot be listed: no such file'):
        fleet.find([f'{memory}/gone*'])


def test_a_file_that_vanishes_while_it_is_fetched_ends_it_in_one_line(tmp_path, memory, temporary,
                                                                     monkeypatch):
    upload(write_pictures(tmp_path / 'images', 3), f'{memory}/images')
    system = type(fsspec.filesystem('memory'))
    plain = system.get_file

    def vanishing(self, name, *given, **options):
        if name.endswith('001.png'):
            self.rm_file(name)
        return plain(self, name, *given, **options)

    monkeypatch.setattr(system, 'get_file', vanishing)
    with pytest.raises(InputError, match=f'^{memory}/images: cannot be fetched: no such file'):
        find([f'{memory}/images'])
    assert list(temporary.iterdir()) == []


def test_a_calibration_by_url_is_that_of_the_paths(tmp_path, memory):
    upload(write_pictures(tmp_path / 'images', 14), f'{memory}/images')
    found = []
    for name, images in (('path', tmp_path / 'images'), ('url', f'{memory}/images')):
        bundle = five_classes(tmp_path / name)
        assert main(['calibrate', str(bundle), '--images', str(images), '--count', '10',
                     '--golden', '2', '--no-report', '--jobs', '1']) == 0
        manifest = json.loads((bundle / 'calibration.json').read_text())
        found.append(((bundle / 'calibration.cache').read_bytes(), manifest['images'],
                      manifest['golden']))
    assert found[0] == found[1]


def test_an_evaluation_by_url_is_that_of_the_paths(tmp_path, memory):
    foreign_bundle(tmp_path)
    save_with_truth(tmp_path / 'data', 4)
    upload(tmp_path / 'data', memory)
    found = []
    for name, root, jobs in (('path', tmp_path / 'data', 1), ('url', memory, 2)):
        assert main(['evaluate', str(tmp_path / 'foreign'), '--images', f'{root}/images',
                     '--labels', f'{root}/truth', '--engines', 'fp32', 'int8', '--output',
                     str(tmp_path / name), '--jobs', str(jobs)]) == 0
        figures = json.loads((tmp_path / name / 'evaluation.json').read_text())
        del figures['seconds'], figures['provenance']
        # A note names a command for these images, as they were given.
        figures['notes'] = [note.partition(' --images ')[0] for note in figures['notes']]
        found.append(figures)
    assert found[0] == found[1]
