# SPDX-License-Identifier: Apache-2.0
"""What of Fast DDS's shared memory is removed, and above all what is not."""

from __future__ import annotations

import os
from pathlib import Path
import subprocess
import sys

import pytest
from support.shm import needs_shared_memory, segment_locks

from trt_segmentation.system import domains, environment, middleware, shared_memory

OLD = 1_000_000_000  # a time of modification long ago

# Holds a lock as Fast DDS does, from before it says so until it is told to end.
OWNER = """
import fcntl, sys
lock = open(sys.argv[1])
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
print('locked', flush=True)
sys.stdin.read()
"""

# A real participant of DDS, which lives until it is killed.
PARTICIPANT = """
import sys
import rclpy
rclpy.init()
node = rclpy.create_node('owner')
print('there', flush=True)
sys.stdin.read()
"""

# The same, which ends without running any destructor.
HURRIED = PARTICIPANT + """
import os
from trt_segmentation.system.shared_memory import remove_own_segments
print(remove_own_segments(), flush=True)
os._exit(1)
"""


def segment(directory: Path, name: str, age: int = OLD, lock: bool = True) -> Path:
    path = directory / name
    path.write_bytes(bytes(8192))
    for made in (path, *([directory / f'{name}_el'] if lock else [])):
        made.touch()
        os.utime(made, (age, age))
    return path


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.mark.parametrize('prefix', ['fastdds', 'fastrtps'])
def test_what_nobody_owns_is_removed(prefix, tmp_path):
    segment(tmp_path, f'{prefix}_0123456789abcdef')
    assert shared_memory.remove_abandoned_segments(tmp_path) == 8192
    assert names(tmp_path) == set()


def test_what_a_living_process_owns_stays_until_it_is_killed(tmp_path):
    name = 'fastdds_0123456789abcdef'
    path = segment(tmp_path, name)
    with subprocess.Popen([sys.executable, '-c', OWNER, f'{path}_el'], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as owner:
        try:
            assert owner.stdout.readline() == b'locked\n'
            assert shared_memory.remove_abandoned_segments(tmp_path) == 0
            assert names(tmp_path) == {name, f'{name}_el'}
            assert [(found.owned, found.mine) for found in shared_memory.segments(tmp_path)] == [
                (True, True)]
        finally:
            owner.kill()
    assert shared_memory.remove_abandoned_segments(tmp_path) == 8192
    assert names(tmp_path) == set()


def test_half_a_pair_is_removed(tmp_path):
    segment(tmp_path, 'fastdds_0123456789abcdef', lock=False)
    (tmp_path / 'fastdds_fedcba9876543210_el').touch()
    os.utime(tmp_path / 'fastdds_fedcba9876543210_el', (OLD, OLD))
    assert shared_memory.remove_abandoned_segments(tmp_path) == 8192
    assert names(tmp_path) == set()


def test_one_that_is_just_being_made_stays(tmp_path):
    """Its owner may be between making the lock file and locking it."""
    future = 4_000_000_000
    segment(tmp_path, 'fastdds_0123456789abcdef', age=future)
    segment(tmp_path, 'fastdds_fedcba9876543210', age=future, lock=False)
    assert shared_memory.remove_abandoned_segments(tmp_path) == 0
    assert len(names(tmp_path)) == 3


@pytest.mark.parametrize('name', [
    'fastdds_port7411', 'sem.fastdds_port7411_mutex', 'fastdds_0123456789abcde',
    'fastdds_0123456789ABCDEF', 'xfastdds_0123456789abcdef', 'fastdds_0123456789abcdef.bak',
    'cyclone_0123456789abcdef', 'psm_0123456789abcdef'])
def test_nothing_else_is_touched(name, tmp_path):
    segment(tmp_path, name)
    before = names(tmp_path)
    assert shared_memory.segments(tmp_path) == []
    assert shared_memory.remove_abandoned_segments(tmp_path) == 0
    assert names(tmp_path) == before


def test_no_link_is_followed(tmp_path):
    target = tmp_path / 'precious'
    target.write_text('precious')
    os.utime(target, (OLD, OLD))
    for name in ('fastdds_0123456789abcdef', 'fastdds_0123456789abcdef_el'):
        (tmp_path / name).symlink_to(target)
    segment(tmp_path, 'fastdds_fedcba9876543210', lock=False)
    (tmp_path / 'fastdds_fedcba9876543210_el').symlink_to(target)
    before = names(tmp_path)
    assert shared_memory.remove_abandoned_segments(tmp_path) == 0
    assert names(tmp_path) == before
    assert target.read_text() == 'precious'


@pytest.mark.skipif(os.geteuid() != 0, reason='only root can make files of another user')
def test_another_users_stay(tmp_path):
    for name, of in (('fastdds_0123456789abcdef', ('', '_el')),
                     ('fastdds_fedcba9876543210', ('_el',)),
                     ('fastdds_00000000deadbeef', ('',))):
        segment(tmp_path, name)
        for suffix in of:
            os.chown(tmp_path / f'{name}{suffix}', 65534, 65534)
    assert shared_memory.remove_abandoned_segments(tmp_path) == 0
    assert len(names(tmp_path)) == 6
    assert not any(found.mine for found in shared_memory.segments(tmp_path))


def test_no_shared_memory_is_no_error(tmp_path):
    assert shared_memory.segments(tmp_path / 'none') == []
    assert shared_memory.remove_abandoned_segments(tmp_path / 'none') == 0
    assert shared_memory.remove_own_segments(tmp_path / 'none') == 0


def participant(program: str) -> tuple[subprocess.Popen[str], list[Path]]:
    """Start a participant of DDS; return it with the lock files that it holds open."""
    pytest.importorskip('rclpy', reason='makes a participant of DDS')
    process = subprocess.Popen(
        [sys.executable, '-c', program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**environment.completed(os.environ), 'ROS_DOMAIN_ID': str(domains.reserve()),
             'PYTHONPATH': os.pathsep.join(filter(None, sys.path))})
    assert process.stdout.readline() == 'there\n'
    return process, segment_locks(process.pid)


@needs_shared_memory
def test_a_killed_participant_leaves_nothing():
    process, locks = participant(PARTICIPANT)
    with process:
        assert locks, 'this Fast DDS has no shared memory here'
        data = [Path(str(lock).removesuffix('_el')) for lock in locks]
        # What the profile, the documentation and doctor say of it: 70 MB a process. ROS adds one
        # of half a megabyte where it keeps to this machine.
        sizes = [path.stat().st_size for path in data]
        assert middleware.MIN_SEGMENT < max(sizes) <= sum(sizes) < 75 << 20
        for path in (*data, *locks):  # as if it had been there for long
            os.utime(path, (OLD, OLD))
        shared_memory.remove_abandoned_segments()
        assert all(path.exists() for path in (*data, *locks))
        process.kill()
    # Beside other processes that clean up: what counts is that it goes, not who takes it, and
    # while one looks at a segment, another leaves it alone.
    while any(path.exists() for path in (*data, *locks)):
        shared_memory.remove_abandoned_segments()


@needs_shared_memory
def test_a_participant_that_ends_in_a_hurry_gives_its_own_back():
    other, others_locks = participant(PARTICIPANT)
    with other:
        process, locks = participant(HURRIED)
        with process:
            answer, _ = process.communicate('')
        assert int(answer) > middleware.MIN_SEGMENT
        assert not any(lock.exists() for lock in locks)
        assert all(lock.exists() for lock in others_locks)
        other.communicate('')
