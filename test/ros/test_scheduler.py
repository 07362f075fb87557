# SPDX-License-Identifier: Apache-2.0
"""
Which frames go into the next batch: the real intake, over random arrivals.

DDS is played by mailboxes that keep the newest message of each camera, the executor by calling the
intake as rclpy does, and the worker by a flag. What is expected comes from a model of a few lines:
when each camera was served last, and what lies in its mailbox.
"""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

pytest.importorskip('rclpy', reason='the intake waits with rclpy')

from trt_segmentation.ros import intake
from trt_segmentation.ros.intake import Intake

CAMERAS = 5


class Mailbox:
    """A subscription of depth 1, as the intake sees one."""

    def __init__(self):
        self.message = None
        self.handle = self
        self.msg_type = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        """Nothing to release."""

    def take_message(self, msg_type, raw):
        message, self.message = self.message, None
        if isinstance(message, Exception):
            raise message
        return None if message is None else (message, {})


class WaitSet:
    """Tells which of the mailboxes that were added have something."""

    def __init__(self):
        self._added = []

    def add_subscription(self, handle):
        self._added.append(handle)
        return len(self._added) - 1

    def clear_entities(self):
        """There are none."""

    def wait(self, timeout):
        assert timeout == 0  # the worker waits for nothing

    def is_ready(self, kind, index):
        return self._added[index].message is not None


class Node:
    """The intake over mailboxes, with a worker that is free or not."""

    def __init__(self, sizes):
        self.free, self.batches, self.failed = True, [], []
        self.intake = Intake(
            SimpleNamespace(add_waitable=lambda waitable: None, context=SimpleNamespace(
                handle=None)), lambda: self.free,
            lambda waiting: max(size for size in sizes if size <= waiting), self._offered)
        self.mailboxes = [Mailbox() for _ in range(CAMERAS)]
        for camera, mailbox in enumerate(self.mailboxes):
            self.intake.add(mailbox, camera, lambda message, info: message, self.failed.append)

    def _offered(self, frames):
        self.batches.append(frames)
        self.free = False

    def turn(self, by_worker=False):
        """Do what the executor does in one round, or the worker when it has done a batch."""
        if by_worker:
            if self.free and (frames := self.intake.take()) is not None:
                self._offered(frames)
            return
        wait_set = WaitSet()
        self.intake.get_num_entities()
        self.intake.add_to_wait_set(wait_set)
        if self.intake.is_ready(wait_set):
            self.intake.take_data()


@pytest.fixture(autouse=True, scope='module')
def mailboxes_are_waited_for():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intake, '_rclpy', SimpleNamespace(WaitSet=lambda *numbers: WaitSet()))
        yield


ARRIVALS = st.lists(st.tuples(st.sets(st.integers(0, CAMERAS - 1)), st.booleans(), st.booleans()),
                    max_size=60)
SIZES = st.sets(st.integers(2, CAMERAS + 3)).map(lambda sizes: (1, *sorted(sizes)))


@settings(deadline=None, max_examples=200)
@given(arrivals=ARRIVALS, sizes=SIZES)
def test_who_waits_the_longest_goes_first_and_nobody_waits_for_a_batch_to_fill(arrivals, sizes):
    """In each step images come, perhaps the worker becomes free, and it or the executor looks."""
    node, served, waits_since = Node(sizes), {}, {}
    for step, (came, done, by_worker) in enumerate(arrivals):
        for camera in came:
            node.mailboxes[camera].message = camera, step  # the newest replaces
            waits_since.setdefault(camera, len(node.batches))
        node.free |= done
        free, before = node.free, len(node.batches)
        waiting = {camera for camera, box in enumerate(node.mailboxes) if box.message}
        newest = {camera: node.mailboxes[camera].message for camera in waiting}
        node.turn(by_worker)
        if not (free and waiting):
            assert len(node.batches) == before  # nothing is taken that could not be begun
            continue
        batch = node.batches[-1]
        taken = [camera for camera, _ in batch]
        assert len(node.batches) == before + 1
        assert len(taken) == len(set(taken)) == max(n for n in sizes if n <= len(waiting))
        assert batch == [newest[camera] for camera in taken]
        left = waiting - set(taken)
        assert all(served.get(camera, -1) <= served.get(other, -1)
                   for camera in taken for other in left)
        for camera in taken:
            # Whoever waited saw each other camera served once at most.
            for other in range(CAMERAS):
                times = sum(other in [of for of, _ in one]
                            for one in node.batches[waits_since[camera]:-1])
                assert other == camera or times <= 1
            del waits_since[camera]
            served[camera] = step


@settings(deadline=None, max_examples=50)
@given(fast=st.integers(1, 4), dead=st.integers(0, CAMERAS - 1), sizes=SIZES,
       by_worker=st.booleans())
def test_a_fast_and_a_dead_camera_take_nothing_from_the_others(fast, dead, sizes, by_worker):
    """The worker is always busy; each other camera has a new image whenever it is looked for."""
    node = Node(sizes)
    living = [camera for camera in range(CAMERAS) if camera != dead]
    for step in range(40):
        for camera in living:
            for again in range(fast if camera == living[0] else 1):
                node.mailboxes[camera].message = camera, (step, again)
        node.free = True
        node.turn(by_worker)
    counts = [sum(camera in [of for of, _ in batch] for batch in node.batches)
              for camera in living]
    assert max(counts) - min(counts) <= 1


def test_a_message_that_cannot_be_taken_keeps_no_other_from_its_batch():
    node = Node((1, 2, 3))
    node.mailboxes[0].message, node.mailboxes[1].message = ValueError('broken'), (1, 'whole')
    node.turn()
    assert [str(error) for error in node.failed] == ['broken'] and node.batches == [[(1, 'whole')]]


def test_one_that_is_gone_when_it_is_taken_leaves_its_place_to_the_next():
    """As when its subscription was replaced by another one between waiting and taking."""
    node = Node((1,))
    wait_set = WaitSet()
    for camera in (0, 1):
        node.mailboxes[camera].message = camera, 'new'
    node.intake.get_num_entities()
    node.intake.add_to_wait_set(wait_set)
    assert node.intake.is_ready(wait_set)
    node.mailboxes[1].message = None
    node.intake.take_data()
    assert node.batches == [[(0, 'new')]]


def test_two_subscriptions_of_one_camera_give_one_frame():
    node, second = Node((1, 2)), Mailbox()
    node.intake.add(second, 0, lambda message, info: message, node.failed.append)
    node.mailboxes[0].message, second.message = (0, 'a'), (0, 'b')
    node.turn()
    assert node.batches == [[(0, 'a')]] and second.message == (0, 'b')
