# SPDX-License-Identifier: Apache-2.0
"""The names of rclpy that are not promised to stay, and what the node takes them for."""

from __future__ import annotations

import inspect

import pytest

pytest.importorskip('rclpy', reason='they are names of rclpy')
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode
from rclpy.subscription import Subscription
from rclpy.waitable import Waitable
from sensor_msgs.msg import Image
from support.ros_peer import environ

from trt_segmentation.ros.intake import Intake


@pytest.fixture
def node(monkeypatch):
    """Return a node in a context of its own, with an override that it does not declare."""
    monkeypatch.setenv('ROS_DOMAIN_ID', environ()['ROS_DOMAIN_ID'])
    context = rclpy.Context()
    context.init(args=['--ros-args', '-p', 'misspelt:=3'])
    node = LifecycleNode('names', context=context)
    yield node
    # It keeps what rclpy's own destroy_node() leaves, and with it its part of shared memory.
    node._state_machine.destroy_when_not_in_use()
    node.destroy_node()
    context.shutdown()


def test_the_lifecycle_state_is_a_number_and_a_name(node):
    """Guards SegmentationNode._state."""
    assert node._state_machine.current_state[1] == 'unconfigured'
    node.trigger_configure()
    assert node._state_machine.current_state[1] == 'inactive'


def test_the_service_of_the_transitions_has_a_callback_that_can_be_replaced(node):
    """Guards SegmentationNode._answer_impossible_transitions."""
    assert callable(node._service_change_state.callback)
    node._service_change_state.callback = node._service_change_state.callback


def test_the_executor_can_be_woken(node):
    """Guards SegmentationNode._wake."""
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    assert node.executor is executor
    executor.wake()
    executor.shutdown()


def test_a_subscription_gives_one_message_with_what_is_known_of_it(node):
    """Guards Intake: what the executor does with a subscription."""
    subscription = node.create_subscription(Image, 'x', lambda message: None, 1)
    assert isinstance(subscription, Subscription) and subscription.msg_type is Image
    publisher = node.create_publisher(Image, 'x', 1)
    taken = None
    for _ in range(100_000):
        publisher.publish(Image(height=7))
        with subscription.handle:
            taken = subscription.handle.take_message(subscription.msg_type, False)
        if taken is not None:
            break
    message, info = taken
    assert message.height == 7 and info['received_timestamp'] > 0
    assert 'source_timestamp' in info


def test_a_waitable_has_the_methods_that_the_intake_has():
    """Guards Intake."""
    for name in ('get_num_entities', 'add_to_wait_set', 'is_ready', 'take_data', 'execute',
                 '__enter__', '__exit__'):
        assert callable(getattr(Waitable, name))
    assert inspect.iscoroutinefunction(Waitable.execute)


def test_the_worker_takes_the_newest_message_without_an_executor(node):
    """Guards Intake.take: rclpy's wait set by itself, in another thread than the executor's."""
    intake = Intake(node, lambda: True, lambda waiting: 1, lambda frames: None)
    assert intake.take() is None
    subscriptions = []
    for camera in (0, 1):
        subscriptions.append(node.create_subscription(
            Image, f'x{camera}', lambda message: None, 1, callback_group=intake.group))
        intake.add(subscriptions[-1], camera, lambda message, info: message.height, print)
    publisher = node.create_publisher(Image, 'x1', 1)
    taken, height = None, 0
    while taken is None:
        height += 1
        publisher.publish(Image(height=height))
        taken = intake.take()
    assert 1 <= taken[0] <= height and len(taken) == 1
    intake.remove(subscriptions[1])
    node.destroy_subscription(subscriptions[1])
    publisher.publish(Image(height=1))
    assert intake.take() is None


def test_a_message_that_waits_to_be_taken_leaves_the_executor_asleep(node):
    """
    Guards Intake: while the worker is busy nothing of a camera may be in the wait set.

    The events of a subscription share a condition with its data: one of them in the wait set, and
    the executor turns over as fast as it can.
    """
    rounds, free = [], False

    class Counting(Intake):
        def get_num_entities(self):
            rounds.append(1)
            return super().get_num_entities()

    heard = []
    intake = Counting(node, lambda: free, lambda waiting: 1, heard.extend)
    subscription = node.create_subscription(Image, 'x', lambda message: None, 1,
                                            callback_group=intake.group)
    intake.add(subscription, 0, lambda message, info: message.height, heard.append)
    publisher = node.create_publisher(Image, 'x', 1)
    executor = SingleThreadedExecutor(context=node.context)
    executor.add_node(node)
    for height in range(200):
        publisher.publish(Image(height=height))
        executor.spin_once(timeout_sec=0.005)
    assert heard == [] and len(rounds) < 2000  # it would be ten thousands
    free = True
    while not heard:
        executor.spin_once(timeout_sec=0.1)
    assert heard == [199]  # the newest, and it alone
    executor.shutdown()
