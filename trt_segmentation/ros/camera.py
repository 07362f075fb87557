# SPDX-License-Identifier: Apache-2.0
"""One camera: its topics, its figures and its health."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
import re
from time import monotonic, monotonic_ns, time_ns
from types import SimpleNamespace
from typing import Any

from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image

from trt_segmentation.errors import InputError
from trt_segmentation.recordings.image_messages import check
from trt_segmentation.recordings.limits import MalformedImage
from trt_segmentation.ros import native, silence
from trt_segmentation.ros.camera_info import InfoInput
from trt_segmentation.ros.health import InputHealth, OutputHealth
from trt_segmentation.ros.input import Input
from trt_segmentation.ros.intake import Intake, Sequence
from trt_segmentation.ros.node_time import NodeTime
from trt_segmentation.ros.outputs import CAMERA_INFO, CLASS_MASK, Outputs
from trt_segmentation.ros.parameters import COMPRESSED
from trt_segmentation.ros.statistics import PUBLISHED, RECEIVED, Statistics

_LOG_SECONDS = 5.0
_STALL_SECONDS = 2.0
_DIGITS = re.compile('[0-9]+')  # they change from second to second, and the trouble does not


@dataclass
class Frame:
    """A frame: whose it is, its message, and when it came on the steady clock."""

    camera: Camera
    message: Image | CompressedImage
    arrived_ns: int

    @property
    def stamp_ns(self) -> int:
        """Return the frame's stamp in nanoseconds."""
        stamp = self.message.header.stamp
        return stamp.sec * 1_000_000_000 + stamp.nanosec


class Camera:
    """
    What belongs to one camera.

    name: its namespace, '' for the only camera of a node without `cameras`
    topic: the absolute, remapped topic of its images
    sequence: counts what the middleware replaced
    info: its CameraInfo, heard while somebody subscribes to ours
    trouble: why there are no masks, or nobody hears them; '' if nothing is known
    size: (height, width) of the last image; size_changes: how often it was another one
    age_ms: of the last frame, as `silence.Figures` has it
    behind_s: how far the last stamp lay behind the node's time, negative if ahead
    malformed: why the last malformed message was none
    looked_ns: when the masks' health was looked at, on the steady clock
    processed_at: when the last frame was through, published or late; steady clock, seconds
    delayed_since: when frames began to take longer than allowed, on the steady clock in seconds;
        None if the last one did not
    """

    def __init__(self, node: Node, intake: Intake, index: int, name: str,
                 settings: SimpleNamespace, masks: Collection[str], time: NodeTime,
                 on_gpu: bool):
        """
        Create the output topics, without listening to the input yet.

        :param intake: takes the images, when it is this camera's turn
        :param index: the intake's number of this camera
        :param masks: what the segmenter offers
        :param time: by which frames age
        :param on_gpu: whether images may come on the GPU
        """
        self._node, self._intake, self._index, self._time = node, intake, index, time
        self.name = name
        self.sequence = Sequence()
        self.statistics = Statistics()
        self.input_health = InputHealth()
        self.output_health = OutputHealth()
        self.trouble = self.malformed = self._told = ''
        self.size: tuple[int, int] | None = None
        self.size_changes = 0
        self.age_ms: float | None = None
        self.behind_s = 0.0
        self._drops = silence.Drops()
        self.looked_ns = 0
        self.last_published: Published | None = None
        self.processed_at = 0.0
        self.delayed_since: float | None = None
        prefix = f'~/{name}/' if name else '~/'
        base = f'{name}/' if name else ''
        compressed = settings.transport == COMPRESSED
        name = f'{base}image'
        if compressed:
            name = _compressed_name(name, node)
        self.topic = node.resolve_topic_name(name)
        self._input = Input(node, intake, index, name, CompressedImage if compressed else Image,
                            settings.reliability, self._on_image, self._on_untakeable,
                            native.subscription_options(node) if on_gpu and not compressed else {})
        self._settings = settings
        self.info = InfoInput(node, f'{base}camera_info')
        self._started = 0.0
        self._publisher_since: float | None = None
        self._logged: dict[str, float] = {}
        # Last: nobody would take its topics away if anything else failed.
        self.outputs = Outputs(node, prefix, masks, settings.mask_deadline_ms)

    def start(self) -> None:
        """Listen, if somebody listens to the masks or the camera is not lazy."""
        if not self._input.subscribed and not self.idle:
            self.sequence = Sequence()
            self._input.start()
            self._started = monotonic()

    def stop(self) -> None:
        """Listen no more."""
        self._input.stop()
        self.info.listen(False)
        self.trouble = ''

    def close(self) -> None:
        """Listen no more, and take the output topics away."""
        self.stop()
        for publisher in self.outputs:
            self._node.destroy_publisher(publisher)

    @property
    def idle(self) -> bool:
        """Tell whether the camera is lazy and nobody subscribes to its masks."""
        return self._settings.lazy and not self.outputs.wanted()

    def look_at_subscribers(self) -> None:
        """Listen as long as somebody subscribes, if the camera is lazy."""
        if self.idle:
            self.stop()
        else:
            self.start()

    def follow(self) -> None:
        """Adapt to who publishes and subscribes; call it every second while active."""
        self._input.follow()
        self.info.listen(self._input.subscribed and CAMERA_INFO in self.outputs.wanted())
        self.trouble = self._look_for_trouble()
        # A camera that pauses again and again is said once, until there is something else to say.
        if (sentence := _DIGITS.sub('', self.trouble)) not in ('', self._told):
            self._told = sentence
            self._node.get_logger().warning(f'{self.topic}: {self.trouble}')

    @property
    def listens(self) -> bool:
        """Tell whether it is subscribed to its images."""
        return self._input.subscribed

    @property
    def reliability(self) -> str:
        """Return the reliability of the subscription."""
        return self._input.reliability

    def publishers(self) -> int:
        """Return how many publish its images."""
        return self._input.publishers()

    def gap_seconds(self) -> float | None:
        """Return for how long no image has come, None while none is waited for."""
        if not self._input.subscribed:
            return None
        since, now = self.statistics.seconds_since(RECEIVED), monotonic()
        listening = now - self._started
        # While the engine works, nobody looks whether an image has come.
        unseen = now - self._intake.empty_at(self._index)
        return max(0.0, (listening if since is None else min(since, listening)) - unseen)

    def drop(self, cause: str, text: str) -> None:
        """Count a dropped frame and log its cause at a limited rate."""
        self.statistics.count(f'dropped_{cause}')
        if cause.startswith('malformed_'):
            self.malformed = text
        now = monotonic()
        if now - self._logged.get(cause, -_LOG_SECONDS) >= _LOG_SECONDS:
            self._logged[cause] = now
            self._node.get_logger().warning(f'{self.topic}: frame dropped: {text}')

    def foreign_stamp(self) -> None:
        """Count a stamp of another clock; warn of the first one."""
        self.statistics.count('foreign_stamp')
        self.warn_once('foreign_stamp', self._time.foreign(self.behind_s))

    def warn_once(self, cause: str, text: str) -> None:
        """Log a warning, the first time only."""
        if cause not in self._logged:
            self._logged[cause] = monotonic()
            self._node.get_logger().warning(f'{self.topic}: {text}')

    def processed(self, stage_ms: dict[str, float], batch_size: int) -> None:
        """Note how long a frame took, and in which batch, whether its masks were late or not."""
        self.processed_at = monotonic()
        if stage_ms['processing'] <= self._settings.max_allowed_processing_time_ms:
            self.delayed_since = None
        elif self.delayed_since is None:
            self.delayed_since = self.processed_at - stage_ms['processing'] * 1e-3
        self.statistics.add_times(stage_ms)
        self.statistics.add_batch(batch_size)

    def published(self, pipeline_latency_ms: float | None) -> None:
        """Note that a frame's masks were published; the latency is None if it is not known."""
        last, now = self.last_published, monotonic()
        self.statistics.count(PUBLISHED)
        self.last_published = Published(
            moment=now, pipeline_latency_ms=pipeline_latency_ms,
            cyclic_time_ms=(now - last.moment) * 1e3 if last else None)

    def _on_image(self, message: Image | CompressedImage, info: Mapping[str, Any]
                  ) -> Frame | None:
        """Return a message as a frame, or None if it is malformed; in the executor's thread."""
        missed = self.sequence.missed(info)
        self.statistics.count_all({RECEIVED: missed + 1, 'dropped_replaced': missed})
        try:
            # Here, so that the worker stays free for a good frame.
            height, width = check(message)
        except MalformedImage as error:
            self.drop(f'malformed_{error.cause}', str(error))
            return None
        if height * width > self._settings.max_image_pixels:
            self.drop('malformed_absurd_size', f'the size is {width}x{height}; max_image_pixels '
                      f'is {self._settings.max_image_pixels}')
            return None
        if self.size and self.size != (height, width):
            self.size_changes += 1
            self.warn_once('size_changes', f'the size of the images has changed from '
                           f'{self.size[1]}x{self.size[0]} to {width}x{height}; masks have the '
                           'size of their frame')
        self.size = height, width
        now = monotonic_ns()
        return Frame(self, message, now - self._waited_ns(info, now))

    def _waited_ns(self, info: Mapping[str, Any], now_ns: int) -> int:
        """Return how long a message has waited in the middleware, nanoseconds."""
        # By the system's clock, which may jump: it came after it was last seen that none waits.
        most = max(0, now_ns - int(self._intake.empty_at(self._index) * 1e9))
        received_ns = info.get('received_timestamp')
        return min(max(0, time_ns() - received_ns), most) if received_ns else most

    def _on_untakeable(self, error: Exception) -> None:
        """Count a message that cannot be deserialized."""
        self.statistics.count(RECEIVED)
        self.drop('malformed_serialization', f'it cannot be deserialized: {error}')

    def _look_for_trouble(self) -> str:
        """Return why there are no masks, or nobody hears them, if that can be told."""
        if not self._input.subscribed:
            return ''
        found = self._drops.look(self.statistics.counts(), silence.Figures(
            self.age_ms, self._time.foreign(self.behind_s), self._time.against_age,
            self.statistics.last_times().get('processing'), self.malformed,
            self._settings.max_frame_age_ms))
        # Discovery takes its time.
        if not found and self._seconds_without_image() >= _STALL_SECONDS:
            found = silence.no_images(self._node, self.topic, self._input.type_name,
                                      self._input.qos, self._input.name) or self._stall()
        mask, given = self.outputs.topics[CLASS_MASK], self.outputs.given
        return (found or silence.namesake(self._node, mask, given[mask])
                or silence.no_listener(self._node, self.outputs.qos(), given))

    def _seconds_without_image(self) -> float:
        """Return for how long no image has come although it listens and a publisher is there."""
        if not self.publishers():
            self._publisher_since = None
            return self.gap_seconds() or 0.0
        if self._publisher_since is None:
            self._publisher_since = monotonic()
        # A publisher that has just come may take its time.
        return min(self.gap_seconds() or 0.0, monotonic() - self._publisher_since)

    def _stall(self) -> str:
        """Return what keeps images away where everything else fits."""
        gap = self._seconds_without_image()
        heard = self.statistics.seconds_since(RECEIVED)
        if (heard is not None and self._publisher_since is not None
                and heard < monotonic() - self._publisher_since):
            return (f'no image came for {gap:.0f} s, though its publisher is there and was heard '
                    'before: it has stalled, or publishes less often than error_input_gap_ms')
        return (f'a publisher is there, but no image came for {gap:.0f} s; if it publishes, its '
                'process lacks the Fast DDS profile (config/environment.sh), or is of another '
                'user than this node, or /dev/shm is too small; trt-segmentation doctor checks '
                'the first and the last')


def _compressed_name(image: str, node: Node) -> str:
    """
    Return the name by which compressed images are subscribed to.

    A remapping names the image topic; what image_transport puts beside it follows, unless a rule
    names that itself.

    :raises InputError: if remapping the image topic leads to a name that is remapped again
    """
    own = f'{image}/compressed'
    if node.resolve_topic_name(own) != node.resolve_topic_name(own, only_expand=True):
        return own
    beside = f'{node.resolve_topic_name(image)}/compressed'
    if (again := node.resolve_topic_name(beside)) != beside:
        raise InputError(f'remapping: {image} leads to {beside}, and that is remapped to {again}; '
                         f'remap {own} itself')
    return beside


@dataclass(frozen=True)
class Published:
    """
    The last frame whose masks were published.

    moment: when, on the steady clock, seconds
    pipeline_latency_ms: from its stamp to then, on the node's clock; None if the stamp is from
        another clock
    cyclic_time_ms: since the frame before; None for the first
    """

    moment: float
    pipeline_latency_ms: float | None
    cyclic_time_ms: float | None
