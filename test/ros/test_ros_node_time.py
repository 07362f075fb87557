# SPDX-License-Identifier: Apache-2.0
"""What the node says of stamps that do not fit its time depends on what that time comes from."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip('rclpy', reason="it is the node's")

from trt_segmentation.ros import node_time
from trt_segmentation.ros.node_time import NodeTime


class World:
    """A node's surroundings: its clock, who publishes /clock, and the machine's seconds."""

    def __init__(self, monkeypatch, recorded):
        self.ns, self.publishers, self.seconds = 0, 0, 1000.0
        clock = SimpleNamespace(now=lambda: SimpleNamespace(nanoseconds=self.ns),
                                ros_time_is_active=recorded)
        monkeypatch.setattr(node_time, 'monotonic', lambda: self.seconds)
        self.time = NodeTime(SimpleNamespace(get_clock=lambda: clock,
                                             count_publishers=self._count))

    def _count(self, topic):
        assert topic == '/clock'
        return self.publishers

    def passes(self, seconds, moving, look=1.0):
        for _ in range(round(seconds / look)):
            self.seconds += look
            self.ns += round(look * 1e9) if moving else 0
            self.time.look()


@pytest.mark.parametrize(('behind_s', 'words'), [
    (0.8, 'lies 0.8 s behind this'), (-1.8, 'lies 1.8 s ahead of this'),
    (-7199.0, '7199.0 s ahead'), (9000.0, '2.5 hours behind'), (1.7e9, '19675.9 days behind')])
def test_on_the_systems_clock_it_says_how_far_and_on_which_side(behind_s, words, monkeypatch):
    text = World(monkeypatch, recorded=False).time.foreign(behind_s)
    assert words in text and 'set use_sim_time and publish /clock' in text


def test_nobody_who_has_set_use_sim_time_is_told_to_set_it(monkeypatch):
    """From no /clock at all to one that runs, stands and is lost."""
    world = World(monkeypatch, recorded=True)
    texts = [world.time.foreign(-1.7e9)]
    assert 'no /clock has come: nobody publishes it' in texts[0] and '--clock' in texts[0]
    world.publishers = 1
    texts.append(world.time.foreign(-1.7e9))
    assert 'no /clock has come: it has a publisher' in texts[1]
    world.passes(10, moving=True)
    texts.append(world.time.foreign(-1.8))
    assert 'lies 1.8 s ahead of /clock' in texts[2] and 'more slowly' in texts[2]
    world.passes(5, moving=False)
    texts.append(world.time.foreign(-5.0))
    assert 'no /clock for 5.0 s' in texts[3] and 'late or lost' in texts[3]
    world.publishers = 0
    texts.append(world.time.foreign(-5.0))
    assert 'its publisher has ended' in texts[4]
    assert not any('set use_sim_time and' in text or 'days' in text for text in texts)
    world.passes(1, moving=True)
    assert 'ahead of /clock' in world.time.foreign(-1.0)


def test_who_could_not_look_does_not_say_that_time_stands(monkeypatch):
    """The node takes no /clock while it opens an engine."""
    world = World(monkeypatch, recorded=True)
    world.passes(5, moving=True)
    world.passes(60, moving=False, look=60)
    assert 'no /clock for' not in world.time.foreign(1.0)


def test_frames_that_are_too_old_have_a_remedy_for_either_clock(monkeypatch):
    assert 'more slowly' in World(monkeypatch, recorded=True).time.against_age
    assert 'camera' in World(monkeypatch, recorded=False).time.against_age
