# SPDX-License-Identifier: Apache-2.0
"""Files appear whole or not at all; hashes are those of sha256sum; locks hold."""

import fcntl
import hashlib
import os
from pathlib import Path
import subprocess
import sys
import tempfile

from hypothesis import given
from hypothesis import strategies as st
import pytest
from support.cleaning import cleaned_up_before_it_is_held

from trt_segmentation.errors import InputError
from trt_segmentation.system import files, sets


def names(directory):
    return sorted(path.name for path in Path(directory).iterdir())


@given(st.binary(max_size=4096))
def test_hash_is_hashlibs(tmp_path_factory, data):
    path = tmp_path_factory.mktemp('hash') / 'file'
    path.write_bytes(data)
    expected = hashlib.sha256(data).hexdigest()
    assert files.sha256_file(path) == files.sha256_bytes(data) == expected


def test_canonical_json_ignores_order_and_refuses_nan():
    assert files.sha256_json({'a': 1, 'b': [2]}) == files.sha256_json({'b': [2], 'a': 1})
    with pytest.raises(ValueError):
        files.canonical_json(float('nan'))


def test_the_nearest_path_is_one_beside_what_is_not_there(tmp_path, monkeypatch):
    for name in ('drives', 'labels', 'link'):
        (tmp_path / name).symlink_to('nowhere')
    question = f'; did you mean {tmp_path / "drives"}?'
    assert files.nearest_path(tmp_path / 'drvies') == question
    (tmp_path / 'outputs' / 'monday').mkdir(parents=True)
    for name in ('otputs/monday', 'otputs/mnday', 'outputs/mnday'):
        near = tmp_path / 'outputs' / 'monday'
        assert files.nearest_path(tmp_path / name) == f'; did you mean {near}?'
        assert files.nearest_path(tmp_path / name / 'none') == ''
    for name in ('drives', 'link', 'images', 'no/drives', '..', '.', ''):
        assert files.nearest_path(tmp_path / name) == ''
    for name in ('q', 'q3', 'road'):
        (tmp_path / name).touch()
    for name, near in (('qq', 'q'), ('qx3', 'q3'), ('q3x', 'q3'), ('3', 'q3'),
                       ('raod', 'road')):
        assert files.nearest_path(tmp_path / name) == f'; did you mean {tmp_path / near}?'
    assert files.nearest_path(tmp_path / 'w') == ''
    monkeypatch.chdir(tmp_path)
    assert files.nearest_path('drvies') == '; did you mean drives?'
    monkeypatch.setattr(files, '_MANY', 2)
    assert files.nearest_path(tmp_path / 'drvies') == ''


def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path):
    """As of `--report /dev/stdout`, by root."""
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'link').symlink_to('pipe')
    for name in ('pipe', 'link'):
        for refused in (files.check_writable, lambda path: files.atomic_write(path, b'x')):
            with pytest.raises(InputError, match=f'{name}: cannot be written: neither a file nor'):
                refused(tmp_path / name)
    assert (tmp_path / 'link').is_fifo() and names(tmp_path) == ['link', 'pipe']


def test_atomic_write_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / 'file'
    files.atomic_write(path, 'old')
    files.atomic_write(path, b'new')
    assert path.read_bytes() == b'new' and names(tmp_path) == ['file']
    mask = os.umask(0o027)
    try:
        files.atomic_write(path, 'other')
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640


def test_atomic_write_keeps_the_old_file_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / 'file'
    files.atomic_write(path, 'old')

    def full(descriptor):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(InputError, match='file: cannot be written: No space left on device'):
        files.atomic_write(path, 'new')
    assert path.read_text() == 'old' and names(tmp_path) == ['file']


@pytest.mark.parametrize('name', ['no/file', 'there/file', 'there', 'text/file', 'text'])
@pytest.mark.parametrize('parents', [False, True])
def test_what_can_be_written_is_known_before(tmp_path, name, parents):
    (tmp_path / 'there').mkdir()
    (tmp_path / 'text').touch()
    before = names(tmp_path)
    try:
        files.check_writable(tmp_path / name, parents=parents, folder=parents)
        told = True
    except InputError as error:
        assert str(error).startswith(f'{tmp_path / name}: cannot be written: ')
        told = False
    assert names(tmp_path) == before and names(tmp_path / 'there') == []
    try:
        if parents and name != 'text':
            with files.atomic_directory(tmp_path / name):
                pass
        else:
            files.atomic_write(tmp_path / name, 'x')
        could = True
    except InputError:
        could = False
    assert told == could


def test_atomic_write_into_no_directory_is_one_line(tmp_path):
    with pytest.raises(InputError, match='cannot be written: No such file'):
        files.atomic_write(tmp_path / 'no' / 'file', 'x')


def test_atomic_directory_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / 'target'
    with files.atomic_directory(target) as directory:
        (directory / 'a').write_text('1')
        assert not target.exists()
    with pytest.raises(RuntimeError):
        with files.atomic_directory(target) as directory:
            (directory / 'b').write_text('2')
            raise RuntimeError
    assert names(target) == ['a'] and names(tmp_path) == ['target']
    with files.atomic_directory(target) as directory:
        (directory / 'c').write_text('3')
    assert names(target) == ['c'] and names(tmp_path) == ['target']


def test_a_directory_that_is_being_written_can_be_read_as_any_other(tmp_path):
    """What holds it against a clean-up is not the lock that readers take."""
    with files.atomic_directory(tmp_path / 'target') as directory:
        descriptor = os.open(directory, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
        with sets.reading(directory) as current:
            assert current == directory and current.name == 'target'
        files.remove_temporary(tmp_path)
        assert directory.exists()


def test_lock_holds_between_processes_and_ends_with_them(tmp_path):
    path = tmp_path / '.lock'
    code = ('import sys; from trt_segmentation.system import files\n'
            f'with files.lock({str(path)!r}, "thing"):\n'
            '    print("held", flush=True); sys.stdin.read()')
    process = subprocess.Popen([sys.executable, '-c', code], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'held\n'
    with pytest.raises(InputError, match='thing is in use by another process'):
        with files.lock(path, 'thing'):
            pass
    process.kill()
    process.wait()
    with files.lock(path, 'thing'):
        pass


def bundle_of(tmp_path):
    (tmp_path / 'golden').mkdir()
    (tmp_path / 'golden' / '000.png').write_bytes(b'picture')
    (tmp_path / 'model.yaml').write_text('version: 1\n')
    (tmp_path / '.lock').touch()
    files.write_sums(tmp_path)


def test_sums_are_those_of_sha256sum(tmp_path):
    bundle_of(tmp_path)
    files.verify_sums(tmp_path)
    subprocess.run(['sha256sum', '--check', '--strict', 'SHA256SUMS'], cwd=tmp_path, check=True)
    assert (tmp_path / 'SHA256SUMS').read_text().count('\n') == 2  # not the lock


@pytest.mark.parametrize('change, message', [
    (lambda p: (p / 'model.yaml').write_text('version: 2\n'), 'model.yaml: sha256 is'),
    (lambda p: (p / 'golden' / '000.png').unlink(), '000.png: listed in SHA256SUMS, but missing'),
    (lambda p: (p / 'more').touch(), 'more: not listed in SHA256SUMS'),
    (lambda p: (p / 'SHA256SUMS').write_text('nonsense\n'), 'line 1: expected'),
    (lambda p: (p / 'SHA256SUMS').write_bytes(b'\xff\xfe'), 'cannot be read'),
    (lambda p: (p / 'SHA256SUMS').write_text((p / 'SHA256SUMS').read_text() * 2),
     'line 3: .* is listed a second time'),
    (lambda p: (p / 'SHA256SUMS').write_text('\n' * (1 << 20) + 'x'), 'more than 1048576 bytes'),
])
def test_every_change_is_found(tmp_path, change, message):
    bundle_of(tmp_path)
    change(tmp_path)
    with pytest.raises(InputError, match=message):
        files.verify_sums(tmp_path)


def test_who_cleans_up_just_then_takes_nothing_from_who_begins_to_write(tmp_path, monkeypatch):
    """Of two processes that write the same at once, one looks for what others have left."""
    seen = cleaned_up_before_it_is_held(monkeypatch, tmp_path)
    with files.atomic_directory(tmp_path / 'target') as directory:
        (directory / 'file').write_text('whole')
    assert len(seen) == 2 and not seen[0].exists()
    assert [path.name for path in tmp_path.rglob('*')] == ['target', 'file']


def test_what_is_being_removed_cannot_be_held(tmp_path, monkeypatch):
    left = tmp_path / '.target.0123456789ab'
    left.mkdir()
    held = []
    monkeypatch.setattr(files.shutil, 'rmtree', lambda path, **_: held.append(files._hold(path)))
    files.remove_temporary(tmp_path)
    assert held == [-1]


def test_of_two_who_write_the_same_the_last_one_stays(tmp_path, monkeypatch):
    """Where the other one's appears after this one has looked for it."""
    (tmp_path / 'target').mkdir()
    (tmp_path / 'target' / 'other').touch()
    exists = Path.exists
    monkeypatch.setattr(Path, 'exists', lambda path: path.name != 'target' and exists(path))
    with files.atomic_directory(tmp_path / 'target') as directory:
        (directory / 'file').touch()
    assert [path.name for path in tmp_path.rglob('*')] == ['target', 'file']


def test_a_temporary_directory_of_who_was_killed_is_removed_and_no_other(tmp_path, monkeypatch):
    code = ('from trt_segmentation.system import files; import os; '
            'kept = files.temporary_directory(); print(kept.name, flush=True); os.read(0, 1)')
    environ = {**os.environ, 'TMPDIR': str(tmp_path)}
    holders = [subprocess.Popen([sys.executable, '-c', code], env=environ, text=True,
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    killed, living = (Path(holder.stdout.readline().strip()) for holder in holders)
    holders[0].kill()
    holders[0].wait()
    strange = tmp_path / 'trt_segmentation.previous'
    young = tmp_path / f'{files._PREFIX}of_late'
    for path in (strange, young):
        path.mkdir()
    for path in (killed, living, strange):
        (path / 'content').write_text('')
        os.utime(path, (0, 0))
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    with files.temporary_directory() as own:
        assert {*tmp_path.iterdir()} == {Path(own), living, strange, young}
    holders[1].communicate('x')
    assert {*tmp_path.iterdir()} == {strange, young}


def test_no_room_for_temporary_files_is_one_line():
    # As on a full disk, no file can be written: not even the one by which a place is tried.
    code = ('import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); '
            'resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)); '
            'from trt_segmentation.system import files; files.temporary_directory()')
    done = subprocess.run([sys.executable, '-B', '-c', code], capture_output=True, text=True)
    assert 'InputError: a temporary directory cannot be written' in done.stderr.splitlines()[-1]
    assert 'TMPDIR' in done.stderr.splitlines()[-1]
