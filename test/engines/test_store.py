# SPDX-License-Identifier: Apache-2.0
"""Who can write to a store, and what is left in it when its writer is killed."""

from contextlib import contextmanager
from dataclasses import replace
import os
from pathlib import Path
import random
import re
import signal
import stat
import time
from types import SimpleNamespace

import pytest

from trt_segmentation.engines.record import Acceptance, Inputs, Record
from trt_segmentation.engines.store import Store
from trt_segmentation.errors import InputError
from trt_segmentation.networks.layers import Layer
from trt_segmentation.system import trust

root_only = pytest.mark.skipif(os.geteuid() != 0, reason='needs root, to give files away')


def record_of(model='m', **changes):
    return replace(Record(
        Inputs('onnxruntime', {'version': '1'}, 1, model, (32, 64), 'int8', 'c', (), 'explicit'),
        '/bundle', '2026-01-01T00:00:00+00:00', 1.0, '0.2.0',
        (Layer('conv', 'Conv', 10, 'int8'),), (), Acceptance(1.0, {'road': 1.0}, 1.0)), **changes)


@contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def store(tmp_path):
    """A store with one plan."""
    Store(tmp_path / 'store').publish(record_of(), b'plan')
    return tmp_path / 'store'


KEY = record_of().key


def read(store):
    return Store(store, writable=False).engine(KEY)


@pytest.mark.parametrize('order', [1, -1])
def test_of_plans_of_the_same_second_the_same_one_stays(tmp_path, monkeypatch, order):
    store = Store(tmp_path)
    records = sorted((store.publish(record_of(model), b'plan') for model in 'abc'),
                     key=lambda record: record.key)
    new = store.publish(record_of('d', built='2026-01-02T00:00:00+00:00'), b'plan')
    monkeypatch.setattr(store, '_records', lambda: [*records, new][::order])
    assert set(store.prune([new])) == {record.key for record in records[:-1]}


def test_everything_is_private_whatever_the_umask_is(tmp_path):
    path = tmp_path / 'a' / 'b' / 'store'
    with umask(0):
        Store(path).publish(record_of(), b'plan')
        Store(path).keep('0' * 64, b'timings')
        Store(path).publish(record_of(), b'again')
    for directory in (tmp_path / 'a', path.parent, path, path / KEY, path / ('0' * 64)):
        assert mode(directory) == 0o700, directory
    for file in path.glob('*/*'):
        assert mode(file) == 0o600, file
    assert read(path)[1] == b'again'


@pytest.mark.parametrize('part', ['', KEY, f'{KEY}/plan', f'{KEY}/record.json'])
@pytest.mark.parametrize('bits', [0o020, 0o002])
def test_what_others_can_write_to_is_not_run(store, part, bits):
    path = store / part
    path.chmod(mode(path) | bits)
    with pytest.raises(InputError, match='others can write to it.*chmod'):
        read(store)


@root_only
@pytest.mark.parametrize('part', ['', KEY, f'{KEY}/plan', f'{KEY}/record.json', '..'])
def test_what_belongs_to_another_user_is_not_run(store, part):
    os.chown(store / part, 12345, -1)
    with pytest.raises(InputError, match='belongs to another user .uid 12345.'):
        read(store)


def test_a_parent_that_others_can_write_to_is_refused(tmp_path):
    parent = tmp_path / 'shared'
    parent.mkdir()
    parent.chmod(0o777)
    with pytest.raises(InputError, match=f'its parent {re.escape(str(parent))} others can write '
                       'to it.*go-w'):
        Store(parent / 'store')
    parent.chmod(0o1777)  # as /tmp is: nobody can replace what another has made there
    Store(parent / 'store')


@pytest.mark.parametrize('name, members, trusted', [
    ('me', [], True), ('me', ['me'], True), ('me', ['me', 'you'], False), ('staff', [], False)])
def test_a_parent_may_be_writable_to_a_group_that_is_its_owner_s_alone(
        tmp_path, monkeypatch, name, members, trusted):
    parent = tmp_path / 'workspace'
    parent.mkdir()
    parent.chmod(0o775)  # as with Ubuntu's umask of 002
    gid = parent.stat().st_gid
    monkeypatch.setattr(trust.pwd, 'getpwuid', lambda uid: SimpleNamespace(
        pw_name='me', pw_gid=gid))
    monkeypatch.setattr(trust.grp, 'getgrgid', lambda gid: SimpleNamespace(
        gr_name=name, gr_mem=members))
    if trusted:
        Store(parent / 'store')
        parent.chmod(0o777)
    with pytest.raises(InputError, match='its parent .* others can write to it'):
        Store(parent / 'store')


@pytest.mark.parametrize('part', [KEY, f'{KEY}/plan', f'{KEY}/record.json'])
def test_no_link_is_followed_out_of_the_store(store, tmp_path, part):
    (store / part).rename(tmp_path / 'elsewhere')
    (store / part).symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(InputError, match='cannot be read.*it is a link'):
        read(store)


@root_only
def test_a_link_to_a_store_is_followed_only_where_both_are_trusted(store, tmp_path):
    link = tmp_path / 'link'
    link.symlink_to(store)
    assert read(link)[1] == b'plan'
    os.lchown(link, 12345, -1)
    with pytest.raises(InputError, match='belongs to another user'):
        read(link)


@pytest.mark.parametrize('part', ['plan', 'record.json'])
def test_a_pipe_in_a_store_does_not_block(store, part):
    (store / KEY / part).unlink()
    os.mkfifo(store / KEY / part, 0o600)
    with pytest.raises(InputError, match='not a plain file'):
        read(store)


@pytest.mark.parametrize('key', ['..', '.', '', 'plan', KEY.upper(), KEY[:-1], '../store/' + KEY])
def test_what_is_no_key_is_not_looked_for(store, key):
    with pytest.raises(InputError, match='64 hexadecimal digits'):
        Store(store).plan(key)


def test_a_damaged_engine_is_replaced_by_publishing_it_again(store):
    (store / KEY / 'plan').chmod(0o666)
    assert Store(store).publish(record_of(), b'new').plan_sha256
    assert read(store)[1] == b'new' and mode(store / KEY / 'plan') == 0o600


@pytest.mark.parametrize('exchange', [True, False])
def test_a_killed_writer_leaves_the_old_engine_or_the_new_one(store, monkeypatch, exchange):
    if not exchange:  # as on a file system that cannot let two names change places
        monkeypatch.setattr('trt_segmentation.system.files._exchange', lambda one, other: False)
    rng = random.Random(0)
    kills = 100
    for trial in range(kills):
        pid = os.fork()
        if not pid:
            writer, number = Store(store), 0
            while True:
                number += 1
                with writer.lock(print):
                    writer.publish(record_of(), b'plan %d of %d' % (number, trial) * 5000)
        time.sleep(rng.random() * 0.02)  # any moment will do
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if exchange:
            read(store)  # by a node that may not write
        with Store(store).lock(print):  # which puts back what was put aside
            pass
        record, plan = read(store)
        assert record.key == KEY and plan.startswith(b'plan')
        assert sorted(os.listdir(store)) == ['.lock', KEY]


def test_a_store_on_a_disk_without_a_place_for_it_is_one_line(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(InputError, match='cannot be made'):
        Store(tmp_path / 'file' / 'store')
    with pytest.raises(InputError, match='cannot be made|not a directory'):
        Store(tmp_path / 'file')
    assert not Path(tmp_path / 'nothing').exists()


@pytest.mark.parametrize('mask', [0o077, 0o277, 0o777])
def test_a_umask_that_takes_all_rights_takes_none_from_the_store(tmp_path, mask):
    path = tmp_path / 'a' / 'store'
    with umask(mask):
        Store(path).publish(record_of(), b'plan')
    assert mode(path) == mode(path / KEY) == mode(path.parent) == 0o700
    assert mode(path / KEY / 'plan') == 0o600


@root_only
def test_inside_a_user_namespace_the_owners_of_parents_are_outside(store, monkeypatch):
    os.chown(store.parent, 65534, -1)
    with pytest.raises(InputError, match='its parent .* belongs to another user .uid 65534.'):
        read(store)
    with pytest.raises(InputError, match='or root; name another with --store$'):
        read(store)  # what is another's is not to be taken from him
    monkeypatch.setattr(trust, '_outside', lambda: 65534)
    assert read(store)[1] == b'plan'
    os.chown(store, 65534, -1)  # of the store itself the owner must be known
    with pytest.raises(InputError, match='belongs to another user .uid 65534.'):
        read(store)


def test_a_user_without_a_home_is_told_to_name_a_store(monkeypatch):
    def no_home():
        raise RuntimeError('Could not determine home directory.')

    for name in ('TRT_SEGMENTATION_STORE', 'XDG_CACHE_HOME'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, 'home', no_home)
    with pytest.raises(InputError, match='no home directory; name one with --store'):
        Store()
