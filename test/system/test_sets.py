# SPDX-License-Identifier: Apache-2.0
"""A set of files is the old one or the new one, whenever its writer is killed."""

from itertools import pairwise
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys

import pytest

from trt_segmentation.errors import InputError
from trt_segmentation.system import files, sets

OLD = {'model': 'm', 'cache': 'old', 'report': 'old', 'golden/0': 'old', 'golden/1': 'old'}
NEW = {'model': 'm', 'cache': 'new', 'manifest': 'new', 'golden/0': 'new'}
REPLACED = ('cache', 'manifest', 'report', 'golden/0', 'golden/1')


def write_old(directory):
    for name, text in OLD.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    files.write_sums(directory)


def change(directory):
    with sets.changing(directory, 'the set', REPLACED.__contains__) as new:
        (new.path / 'golden').mkdir()
        for name in ('cache', 'manifest', 'golden/0'):
            new.write(name, 'new')
        new.remove('report')
        new.remove('golden')
        new.commit()


def content(directory):
    return {name: (directory / name).read_text() for name in files.listed_files(directory)}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(os, 'fsync', lambda descriptor: None)  # kill -9 is no power cut


@pytest.fixture
def old(tmp_path):
    directory = tmp_path / 'set'
    write_old(directory)
    return directory


def test_a_change_is_all_of_it_and_leaves_nothing_else(old):
    change(old)
    assert content(old) == NEW
    files.verify_sums(old)
    subprocess.run(['sha256sum', '--check', '--strict', '--quiet', 'SHA256SUMS'], cwd=old,
                   check=True)
    assert sorted(path.name for path in old.iterdir()) == [
        '.lock', 'SHA256SUMS', 'cache', 'golden', 'manifest', 'model']


STEPS = {'open', 'os.link', 'os.rename', 'os.remove', 'os.mkdir', 'os.rmdir'}


def killed_at(step, directory):
    """Change a directory in a process that is killed at its step; return whether it was."""
    child = os.fork()
    if child == 0:
        left = step

        def hook(event, arguments):
            nonlocal left
            if event in STEPS:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        try:
            change(directory)
        finally:
            os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


@pytest.mark.parametrize('writable', [True, False])
def test_killed_at_each_step_the_old_or_the_new_set_is_whole(tmp_path, monkeypatch, writable):
    seen, step = [], 0
    while True:
        directory = tmp_path / str(step)
        write_old(directory)
        killed = killed_at(step, directory)
        with monkeypatch.context() as patch:
            if not writable:  # as on a disk that is read only
                patch.setattr(sets, '_finish', lambda directory: os.open('/', os.O_RDWR))
            with sets.reading(directory) as current:
                files.verify_sums(current)
                seen.append(content(current))
        assert seen[-1] in (OLD, NEW), step
        change(directory)  # whoever comes next can go on
        assert content(directory) == NEW
        assert not [path for path in directory.iterdir() if path.name.startswith('.')
                    and path.name != '.lock']
        shutil.rmtree(directory)
        if not killed:
            break
        step += 1
    assert step > 30 and seen[0] == OLD and seen[-1] == NEW
    switches = sum(before != after for before, after in pairwise(seen))
    assert switches == 1  # once new, it is never old again


def test_readers_see_whole_sets_while_a_writer_works(old):
    code = ('import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n'
            'import test_sets\n'
            'while True: test_sets.change(Path(sys.argv[1])); print(flush=True)')
    with subprocess.Popen([sys.executable, '-c', code, old, Path(__file__).parent],
                          stdout=subprocess.PIPE) as writer:
        try:
            writer.stdout.readline()
            for _ in range(100):
                with sets.reading(old) as current:
                    files.verify_sums(current)
                    assert content(current) == NEW
        finally:
            writer.kill()


def test_what_is_not_replaced_is_verified_and_never_vouched_for_anew(old):
    (old / 'model').write_text('M')
    with pytest.raises(InputError, match='model: sha256 is not the one.*seal'):
        change(old)
    (old / 'model').write_text('m')
    with sets.changing(old, 'the set', REPLACED.__contains__) as new:
        new.write('cache', 'new')
        (old / 'model').write_text('M')  # damage while the work is done
        new.commit()
    with pytest.raises(InputError, match='model: sha256 is not the one'):
        files.verify_sums(old)


def test_an_error_while_changing_leaves_the_old_set(old):
    with pytest.raises(RuntimeError):
        with sets.changing(old, 'the set', REPLACED.__contains__) as new:
            new.write('cache', 'new')
            raise RuntimeError
    assert content(old) == OLD
    files.verify_sums(old)


def test_a_file_system_without_links_gets_copies(old, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(1, 'Operation not permitted')
    monkeypatch.setattr(os, 'link', refuse)
    change(old)
    assert content(old) == NEW
    files.verify_sums(old)


def hostile(directory, removed):
    """Put a whole `.pending` there, with another list of files to remove."""
    pending = directory / sets.PENDING_NAME
    pending.mkdir()
    (pending / 'cache').write_text('new')
    files.write_sums(pending)
    (pending / '.removed').write_text(removed)


@pytest.mark.parametrize('removed', [
    '["../precious"]', '["/etc/hostname"]', '["golden/../../precious"]', '[["a"], 5, null]'])
def test_nothing_outside_is_removed(old, removed):
    precious = old.parent / 'precious'
    precious.touch()
    hostile(old, removed)
    with sets.reading(old) as current:
        assert current == old
    assert precious.exists() and Path('/etc/hostname').exists()
    assert content(old)['cache'] == 'new'


@pytest.mark.parametrize('removed', ['nonsense', '[' * 100_000, '{"a": NaN', '5'])
def test_a_damaged_list_is_an_error(old, removed):
    hostile(old, removed)
    with pytest.raises(InputError, match='damaged'):
        with sets.reading(old):
            pass


def test_nothing_is_written_through_a_link(old):
    outside = old.parent / 'outside'
    outside.mkdir()
    shutil.rmtree(old / 'golden')
    (old / 'golden').symlink_to(outside)
    hostile(old, '[]')
    (old / sets.PENDING_NAME / 'golden').mkdir()
    (old / sets.PENDING_NAME / 'golden' / '0').write_text('new')
    with pytest.raises(InputError, match='a link'):
        with sets.reading(old):
            pass
    assert list(outside.iterdir()) == []
