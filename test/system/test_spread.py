# SPDX-License-Identifier: Apache-2.0
"""Spreading: each item once and in order, on any executor, whoever is killed."""

from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import active_children, get_context
import os
import random
import signal
import threading
import time

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
from support import work

from trt_segmentation.errors import CheckFailed, InputError
from trt_segmentation.system.processes import Processes, workers_for
from trt_segmentation.system.spread import spread

WORKERS = 3


@pytest.fixture(scope='module')
def processes():
    with Processes(WORKERS, 1) as executor:
        yield executor


@pytest.fixture
def children():
    """Return a function that returns the processes that the test has started and that live."""
    before = active_children()
    return lambda: [child for child in active_children() if child not in before]


class Shuffled(Executor):
    """An executor that ends its calls in an order of its own, and loses some of them."""

    def __init__(self, seed, losses):
        self.random = random.Random(seed)
        self.losses = losses
        self.pending = []
        self.most = 0

    def submit(self, function, /, *args):
        future = Future()
        self.pending.append((future, function, args))
        return future

    def run(self, flying):
        """End one call at random; called when the caller would begin to wait."""
        self.most = max(self.most, len(flying))
        if not self.pending:
            return
        future, function, args = self.pending.pop(self.random.randrange(len(self.pending)))
        if self.losses and self.random.random() < 0.3:
            self.losses -= 1
            future.cancel()
            future.set_running_or_notify_cancel()
        else:
            future.set_result(function(*args))


@given(seed=st.integers(0, 2**32), count=st.integers(0, 30), ahead=st.integers(1, 7),
       losses=st.integers(0, 7), ordered=st.booleans())
@settings(deadline=None)
def test_each_item_comes_once_in_any_order_of_the_workers(seed, count, ahead, losses, ordered):
    executor = Shuffled(seed, losses)
    found = list(spread(executor, work.square, iter(range(count)), ahead=ahead, ordered=ordered,
                        watch=executor.run))
    assert sorted(found) == [(i, i * i) for i in range(count)]
    assert not ordered or found == sorted(found)
    assert executor.most <= ahead


@pytest.mark.parametrize('executor', [ThreadPoolExecutor, ProcessPoolExecutor])
def test_any_executor_will_do(executor):
    options = {'mp_context': get_context('spawn')} if executor is ProcessPoolExecutor else {}
    with executor(2, **options) as workers:
        assert list(spread(workers, work.square, range(9), ahead=4)) == [
            (i, i * i) for i in range(9)]


def test_no_more_is_taken_than_may_be_on_its_way(processes):
    taken = []

    def source():
        for i in range(50):
            taken.append(i)
            yield i

    for number, (item, result) in enumerate(spread(processes, work.large, source(), ahead=4)):
        assert (item, result) == (number, bytes([number]) * (1 << 20))
        assert len(taken) <= number + 1 + 4


def test_processes_share_the_cores_that_they_are_given(processes):
    assert {result for _, result in spread(processes, work.share, range(4), ahead=4)} == {
        (1, 1, 1)}


def test_an_error_of_an_item_ends_it_and_the_workers_go_on(processes):
    with pytest.raises(InputError, match='no 7'):
        list(spread(processes, work.refused, [7], ahead=2))
    assert list(spread(processes, work.square, [2], ahead=2)) == [(2, 4)]


def test_killed_workers_lose_nothing_and_count_nothing_twice(children):
    """Ten times a worker is killed, in the middle of what it does and says."""
    kills, found = 0, []
    with Processes(WORKERS, 1) as executor:
        for item, result in spread(executor, work.large, range(40), ahead=2 * WORKERS):
            assert result == bytes([item]) * (1 << 20)
            found.append(item)
            if kills < 10 and item % 3 == 0:
                kills += work.kill_one(kills, children)
    assert kills == 10
    assert found == list(range(40))
    assert not children()


@pytest.mark.parametrize('seed', range(4))
def test_a_worker_that_is_killed_when_all_is_done_keeps_nobody(seed, children):
    """It may hold the lock for which the others wait."""
    with Processes(WORKERS, 1) as executor:
        list(spread(executor, work.large, range(2 * WORKERS), ahead=2 * WORKERS))
        work.kill_one(seed, children)
    assert not children()


@pytest.mark.parametrize('late', [False, True])
def test_a_call_at_the_moment_when_the_pool_breaks_is_made_in_another(monkeypatch, late):
    """It fails at what is closed already; or it comes too late to be told that it is lost."""
    plain, calls = ProcessPoolExecutor.submit, []

    def submit(pool, *given):
        calls.append(given)
        if len(calls) > 1:
            return plain(pool, *given)
        if not late:
            raise ValueError('bad value(s) in fds_to_keep')
        pool._broken = 'a process was terminated'
        return Future()

    monkeypatch.setattr(ProcessPoolExecutor, 'submit', submit)
    with Processes(1, 1) as executor:
        assert executor.submit(work.square, 3).result() == 9
    assert len(calls) == 2


def test_an_item_that_kills_its_worker_each_time_is_named_and_no_other_is_lost():
    found = []
    with pytest.raises(CheckFailed, match=r'^item 3: 8 workers were lost with it'), \
            Processes(2, 1) as executor:
        found.extend(spread(executor, work.deadly, range(3), ahead=4))
        found.extend(spread(executor, work.deadly, [3, 4, 5], ahead=4,
                            named=lambda item: f'item {item}'))
    assert found == [(0, 0), (1, 1), (2, 2)]


def test_an_interruption_ends_the_workers_at_once(children):
    """Where they are in their work does not matter: what is large would take minutes."""
    with pytest.raises(KeyboardInterrupt), Processes(2, 1) as executor:
        for _ in spread(executor, work.square, range(10**6), ahead=4):
            raise KeyboardInterrupt
    assert not children()


def test_the_end_of_cancelled_calls_is_quiet(monkeypatch):
    """The pool of Python 3.11 fails at them where it sees its workers lost before its own end."""
    errors, shutdown = [], ProcessPoolExecutor.shutdown

    def late(pool, *args, **kwargs):
        time.sleep(0.5)
        shutdown(pool, *args, **kwargs)

    monkeypatch.setattr(ProcessPoolExecutor, 'shutdown', late)
    monkeypatch.setattr(threading, 'excepthook', errors.append)
    with pytest.raises(KeyboardInterrupt), Processes(2, 1) as executor:
        for _ in spread(executor, work.square, range(1000), ahead=8):
            raise KeyboardInterrupt
    assert not errors


def test_ctrl_c_reaches_no_process_not_even_one_that_is_still_starting(children):
    with Processes(1, 1) as executor:
        future = executor.submit(work.square, 3)
        (child,) = children()
        os.kill(child.pid, signal.SIGINT)
        assert future.result() == 9
        os.kill(child.pid, signal.SIGINT)
        assert executor.submit(work.square, 4).result() == 16
        assert children() == [child]


@pytest.mark.parametrize('asked, items, enough, expected', [
    (1, 100, 1, 1), (7, 100, 1, 7), (7, 3, 1, 3), (None, 3, 4, 1), (None, 0, 4, 1)])
def test_as_many_processes_as_were_asked_for_or_are_worth_it(asked, items, enough, expected):
    assert workers_for(asked, items, enough) == expected


def test_no_processes_are_refused():
    with pytest.raises(InputError, match='--jobs: found 0, expected 1 or more'):
        workers_for(0, 5, 1)
