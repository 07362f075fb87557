# SPDX-License-Identifier: Apache-2.0
"""The node as a process over real DDS, and the peer in the tests that talks to it."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Sequence
import contextlib
import os
from pathlib import Path
import signal
import subprocess
import sys
import tempfile
from time import monotonic
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
import numpy as np
from rcl_interfaces.srv import DescribeParameters, GetParameters, SetParameters
import rclpy
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import Trigger

from trt_segmentation.system import domains, environment
from trt_segmentation.system.processes import can_bind

PATIENCE = 120.0  # seconds for anything that is waited for; the waits end when it happens
ASK_AGAIN = 6.0  # seconds after which a service is asked once more
_GET_STATE = '/segmentation/get_state'
DOMAIN = str(domains.reserve())
# Each user's own, in a directory that all may write to.
LOG_DIRECTORY = f'{tempfile.gettempdir()}/trt_segmentation_test_log_{os.getuid()}'
RELIABLE = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.RELIABLE)
ALL = QoSProfile(depth=100, reliability=QoSReliabilityPolicy.RELIABLE)
BEST_EFFORT = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)


def environ() -> dict[str, str]:
    """Return the environment of every process of a test."""
    path = os.pathsep.join(filter(None, (os.environ.get('PYTHONPATH'),
                                         str(Path(__file__).parents[2]))))
    return {**environment.completed(os.environ), 'ROS_DOMAIN_ID': DOMAIN, 'PYTHONPATH': path,
            'ROS_LOG_DIR': os.environ.get('ROS_LOG_DIR', LOG_DIRECTORY)}


class NodeProcess:
    """The node in a process of its own."""

    def __init__(self, log: Path, *, module: str | Path = 'trt_segmentation.ros.node',
                 arguments: tuple[str, ...] = (), before: Sequence[str] = (),
                 **parameters: Any):
        """
        Start it with the given parameters; what it logs goes to a file.

        :param before: words before its command line, as of strace
        """
        words = [str(module)] if isinstance(module, Path) else ['-m', module]
        for name, value in parameters.items():
            text = {True: 'true', False: 'false'}.get(value, value) if isinstance(
                value, bool) else value
            arguments = (*arguments, '-p', f'{name}:={text}')
        self.log_path = log
        # The kernel ends it with a session that is killed: it would go on to publish in a domain
        # that nothing reserves any more.
        bound = ['setpriv', '--pdeathsig', 'KILL'] if can_bind() else []
        with log.open('w') as file:
            self._process = subprocess.Popen(
                [*bound, *before, sys.executable, *words, '--ros-args', *arguments], env=environ(),
                stdout=file, stderr=subprocess.STDOUT,
                # In a shell's background job it would be born deaf to Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self.log_path.read_text()

    def running(self) -> bool:
        """Tell whether it runs."""
        return self._process.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait for its end; return its exit code."""
        return self._process.wait(PATIENCE)

    def stop(self) -> int:
        """End it as ros2 launch does; return its exit code."""
        if self.running():
            self.signal(signal.SIGINT)
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise

    def __enter__(self) -> NodeProcess:
        """Return itself."""
        return self

    def __exit__(self, *exception) -> None:
        """End it."""
        self.stop()


class Peer:
    """A ROS node in the test's process: publishes images, collects masks and diagnostics."""

    def __init__(self):
        """Join the domain."""
        os.environ.update({name: value for name, value in environ().items() if name in (
            *environment.PROFILE_VARIABLES, 'ROS_DOMAIN_ID', 'ROS_LOG_DIR')})
        self.context = rclpy.Context()
        self.context.init()
        self.node = rclpy.create_node('peer', context=self.context)
        self.executor = rclpy.executors.SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.messages: dict[str, list] = defaultdict(list)
        self.statuses: dict[str, dict[str, str]] = {}
        self.reports = 0
        self._subscriptions: dict[str, Any] = {}
        self._clients: dict[str, Any] = {}
        self._stamp = 0
        self.node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)

    def close(self) -> None:
        """Leave."""
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.shutdown()

    def _on_diagnostics(self, array: DiagnosticArray) -> None:
        self.reports += 1
        for status in array.status:
            self.statuses[status.name] = {
                'level': str(status.level[0]), 'message': status.message,
                **{pair.key: pair.value for pair in status.values}}

    def spin(self, seconds: float = 0.05) -> None:
        """Let callbacks run once."""
        self.executor.spin_once(timeout_sec=seconds)

    def wait(self, condition: Callable[[], Any], what: str = '', node: NodeProcess | None = None
             ) -> Any:
        """Wait until something is true; fail after PATIENCE, or when the node has ended."""
        deadline = monotonic() + PATIENCE
        while not (value := condition()):
            if node is not None and not node.running():
                raise AssertionError(f'the node has ended: {node.log[-2000:]}')
            if monotonic() > deadline:
                raise AssertionError(f'waited in vain: {what}; {self.statuses}; '
                                     f'{node.log[-2000:] if node else ""}')
            self.spin()
        return value

    def status(self, task: str = 'node', name: str = 'segmentation') -> dict[str, str]:
        """Return the last status of the node, or of an image topic."""
        return self.statuses.get(f'{name}: {task}', {})

    def wait_for_state(self, state: str, node: NodeProcess) -> dict[str, str]:
        """Wait until diagnostics show a state; return the node's status."""
        self.wait(lambda: self.status().get('state') == state, f'state {state}', node)
        return self.status()

    def wait_for_reason(self, text: str, node: NodeProcess) -> dict[str, str]:
        """Wait until it has failed, for a reason that holds a text; return the node's status."""
        def failed():
            reason = self.status().get('reason')
            return reason and text in reason and self.status()['state'] != 'configuring'
        self.wait(failed, f'a reason with {text!r}', node)
        return self.status()

    def wait_for_reports(self, count: int = 2) -> None:
        """Wait for some more diagnostics."""
        wanted = self.reports + count
        self.wait(lambda: self.reports >= wanted, 'diagnostics')

    def subscribe(self, topic: str, message_type: type = Image, qos=ALL) -> None:
        """Collect a topic's messages in `messages[topic]`."""
        if topic not in self._subscriptions:
            self._subscriptions[topic] = self.node.create_subscription(
                message_type, topic, self.messages[topic].append, qos)

    def unsubscribe(self, topic: str) -> None:
        """Collect them no more."""
        self.node.destroy_subscription(self._subscriptions.pop(topic))

    def publisher(self, topic: str = '/image', message_type: type = Image, qos=RELIABLE):
        """Return a publisher."""
        return self.node.create_publisher(message_type, topic, qos)

    def wait_for_match(self, publisher, node: NodeProcess, *topics: str, task: str = '/image'
                       ) -> None:
        """Wait until the node hears the publisher, and knows of our subscriptions to topics."""
        self.wait(lambda: publisher.get_subscription_count() > 0, 'a subscriber', node)
        names = [topic.removeprefix('/segmentation/') for topic in topics]
        self.wait(lambda: all(int(self.status(task).get(f'subscribers_{name}', 0)) > 0
                              for name in names), f'subscribers of {names}', node)
        self.wait(lambda: int(self.status(task).get('publishers', 0)) > 0, 'a publisher', node)

    def now(self) -> int:
        """Return the time in nanoseconds; later at each call, so that it names a frame."""
        self._stamp = max(self._stamp + 1, self.node.get_clock().now().nanoseconds)
        return self._stamp

    def send(self, publisher, pixels: np.ndarray, encoding: str = 'bgr8', *,
             stamp_ns: int | None = None, frame_id: str = 'camera') -> int:
        """Publish an image; return its stamp in nanoseconds."""
        stamp = self.now() if stamp_ns is None else stamp_ns
        publisher.publish(image_message(pixels, encoding, stamp, frame_id))
        return stamp

    def masks_of(self, topic: str, stamp_ns: int) -> list:
        """Return the collected messages of a frame."""
        return [message for message in self.messages[topic] if stamp_of(message) == stamp_ns]

    def wait_for_mask(self, topic: str, stamp_ns: int, node: NodeProcess):
        """Wait for a frame's message on a topic."""
        return self.wait(lambda: self.masks_of(topic, stamp_ns), f'{topic} of {stamp_ns}',
                         node)[0]

    def exchange(self, publisher, pixels: np.ndarray, topic: str, node: NodeProcess,
                 encoding: str = 'bgr8'):
        """Send frames of one picture until one comes back as a mask; return the mask."""
        sent: set[int] = set()
        moment = 0.0

        def answered():
            nonlocal moment
            if monotonic() - moment > 0.3:  # a frame may be dropped on a machine that is busy
                moment = monotonic()
                sent.add(self.send(publisher, pixels, encoding))
            return [message for message in self.messages[topic] if stamp_of(message) in sent]

        return self.wait(answered, f'a mask on {topic}', node)[0]

    # Services

    def call(self, service_type: type, name: str, request, node: NodeProcess | None = None):
        """
        Call a service and return its response.

        A server that has not heard of the client yet drops its response. So each client is kept,
        and what can be asked twice without harm is asked again after some seconds.
        """
        once = service_type in (ChangeState, Trigger)
        if name not in self._clients:
            self._clients[name] = self.node.create_client(service_type, name)
            if once:
                # The node hears of clients in their order: when it answers another one, which
                # asks again and again, it knows this one.
                self._clients.pop(_GET_STATE, None)
                self.state(node)
        client = self._clients[name]
        self.wait(client.service_is_ready, f'service {name}', node)
        futures = [client.call_async(request)]
        moment = monotonic()

        def answered():
            nonlocal moment
            if not once and monotonic() - moment > ASK_AGAIN:
                moment = monotonic()
                futures.append(client.call_async(request))
            return next((future for future in futures if future.done()), None)

        return self.wait(answered, f'response of {name}', node).result()

    def transition(self, name: str, node: NodeProcess) -> bool:
        """Ask for a lifecycle transition; return whether it succeeded."""
        number = getattr(Transition, f'TRANSITION_{name.upper()}')
        request = ChangeState.Request(transition=Transition(id=number))
        return self.call(ChangeState, '/segmentation/change_state', request, node).success

    def state(self, node: NodeProcess) -> str:
        """Return the lifecycle state that the node's service tells."""
        return self.call(GetState, _GET_STATE, GetState.Request(), node).current_state.label

    def set_parameter(self, name: str, value: Any, node: NodeProcess) -> tuple[bool, str]:
        """Set a parameter; return whether it was taken, and the reason."""
        request = SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg()])
        result = self.call(SetParameters, '/segmentation/set_parameters', request, node).results[0]
        return result.successful, result.reason

    def get_parameter(self, name: str, node: NodeProcess) -> Any:
        """Return a parameter's value."""
        value = self.call(GetParameters, '/segmentation/get_parameters',
                          GetParameters.Request(names=[name]), node).values[0]
        return rclpy.parameter.parameter_value_to_python(value)

    def describe_parameter(self, name: str, node: NodeProcess):
        """Return a parameter's descriptor."""
        return self.call(DescribeParameters, '/segmentation/describe_parameters',
                         DescribeParameters.Request(names=[name]), node).descriptors[0]


@contextlib.contextmanager
def peer():
    """Yield a peer that leaves at the end."""
    result = Peer()
    try:
        yield result
    finally:
        result.close()


def image_message(pixels: np.ndarray, encoding: str, stamp_ns: int, frame_id: str = 'camera'
                  ) -> Image:
    """Return an image message with its rows one after the other."""
    message = Image(height=pixels.shape[0], width=pixels.shape[1], encoding=encoding,
                    step=pixels.nbytes // len(pixels), data=array('B', pixels.tobytes()))
    message.header.frame_id = frame_id
    set_stamp(message, stamp_ns)
    return message


def compressed_message(data: bytes, stamp_ns: int, format_: str = 'png') -> CompressedImage:
    """Return a compressed image message."""
    message = CompressedImage(format=format_, data=array('B', data))
    set_stamp(message, stamp_ns)
    return message


def set_stamp(message, stamp_ns: int) -> None:
    """Set a message's stamp."""
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)


def stamp_of(message) -> int:
    """Return a message's stamp in nanoseconds."""
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def pixels_of(message: Image) -> np.ndarray:
    """Return the pixels of a mono8 or bgr8 message that has no padding."""
    channels = {'mono8': (), 'bgr8': (3,)}[message.encoding]
    return np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, *channels)
