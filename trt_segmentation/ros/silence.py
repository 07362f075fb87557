# SPDX-License-Identifier: Apache-2.0
"""Why a camera has no masks: each cause in one sentence, with what to do."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher

from rclpy.node import Node
from rclpy.qos import qos_check_compatible, QoSCompatibility, QoSProfile
from rclpy.topic_endpoint_info import TopicEndpointInfo

from trt_segmentation.recordings.topics import COMPRESSED_IMAGE, IMAGE
from trt_segmentation.ros.statistics import PUBLISHED, RECEIVED
from trt_segmentation.ros.topics import COMPRESSED_SUFFIX

_NAMES = 3  # that are proposed
_WITH = 'with --camera, with image:= of a launch file, or by remapping image'
_LOOKS = 4  # the causes of the drops are counted over so many looks, a second apart


@dataclass(frozen=True)
class Figures:
    """
    What is known of a camera's frames beside their counts.

    age_ms: of the last frame, by its stamp, when the worker began it; None before
    foreign: why the last stamp is from another clock, if it is, and what to do
    against_age: what to do about frames that are too old
    processing_ms: how long the last frame took; None before
    malformed: why the last malformed message was none
    max_age_ms: the limit
    """

    age_ms: float | None
    foreign: str
    against_age: str
    processing_ms: float | None
    malformed: str
    max_age_ms: int


def no_images(node: Node, topic: str, taken: str, qos: QoSProfile | None, given: str = '') -> str:
    """
    Return why no image can come on a topic, as far as the graph tells; '' if one can.

    :param topic: the absolute name that is subscribed to
    :param taken: the type that is subscribed to
    :param qos: the subscription's
    :param given: the topic's name before remapping, which rclpy remaps when it is asked; '' for
        the absolute one
    """
    infos = node.get_publishers_info_by_topic(given or topic)
    if not infos:
        return _no_publisher(node, topic, taken)
    if taken not in {info.topic_type for info in infos}:
        return _other_type(topic, taken, infos[0])
    if qos is None:
        return ''
    for info in infos:
        reason = _misfit(info.qos_profile, qos)
        if info.topic_type == taken and not reason:
            return ''
    return (f'{_name(infos[0])} publishes {topic} with a QoS that does not fit '
            f'({reason}): set reliability to auto, or change its QoS')


def no_listener(node: Node, topics: Mapping[str, QoSProfile],
                given: Mapping[str, str] | None = None) -> str:
    """
    Return which subscriber of the masks hears none of them for its QoS, or ''.

    :param given: the topics' names before remapping, as `no_images` has it
    """
    for topic, qos in topics.items():
        for info in node.get_subscriptions_info_by_topic((given or {}).get(topic, topic)):
            if reason := _misfit(qos, info.qos_profile):
                return (f'{_name(info)} subscribes to {topic} with a QoS that does not fit '
                        f'({reason}), so it hears nothing: change its QoS to '
                        'reliable or best effort, volatile')
    return ''


def namesake(node: Node, topic: str, given: str = '') -> str:
    """Return that another node publishes the masks too, or ''; `given` as in `no_images`."""
    names = [_name(info) for info in node.get_publishers_info_by_topic(given or topic)]
    if len(names) < 2:
        return ''
    return (f'{len(names)} nodes publish {topic} ({", ".join(sorted(set(names)))}): end the other '
            'one, or give this one another name (-r __node:=NAME) or namespace')


class Drops:
    """Tells why frames come and no mask goes, from the counts over the last seconds."""

    def __init__(self) -> None:
        """Start without having looked."""
        self._counts: deque[Mapping[str, int]] = deque(maxlen=_LOOKS)

    def look(self, counts: Mapping[str, int], figures: Figures) -> str:
        """
        Return why all frames of the last seconds were dropped; '' if one was published.

        :param counts: of all events so far; call it every second
        """
        self._counts.append(dict(counts))
        if len(self._counts) < _LOOKS:
            return ''
        new = Counter(counts)
        new.subtract(self._counts[0])
        if new[PUBLISHED] or not new[RECEIVED]:
            return ''
        causes = Counter({event.removeprefix('dropped_'): count for event, count in new.items()
                          if event.startswith('dropped_') and event != 'dropped_replaced'
                          and count > 0})
        if not causes:
            return ''
        (cause, count), = causes.most_common(1)
        which = (f'the last {new[RECEIVED]} images, {count} of them' if new[RECEIVED] > 1
                 else 'the last image, which was')
        return _dropped(cause, f'no mask of {which}', figures)


def _dropped(cause: str, which: str, figures: Figures) -> str:
    """
    Return the sentence for the cause of most drops.

    :param which: what it begins with: how many they are
    """
    limit = figures.max_age_ms
    if cause == 'late_before_inference':
        return (f'{which} too old on arrival (the last one {figures.age_ms or 0:.0f} ms, '
                f'max_frame_age_ms is {limit}): set max_frame_age_ms above that, or '
                f'{figures.against_age}')
    if cause == 'late_before_publishing':
        return (f'{which} too old with masks ready: processing takes '
                f'{figures.processing_ms or 0:.0f} ms, max_frame_age_ms is {limit}: use a '
                f'faster precision or machine, a higher max_frame_age_ms, or '
                f'{figures.against_age}')
    if cause == 'foreign_stamp':
        return (f'{which} with stamps of another clock, which strict_stamps drops: '
                f'{figures.foreign}; or set strict_stamps to false')
    if cause.startswith('malformed_'):
        return f'{which} malformed: {figures.malformed}'
    if cause == 'not_ready':
        return 'the engine has not been proven since it failed'
    return f'{which} dropped: {cause}'


def _no_publisher(node: Node, topic: str, taken: str) -> str:
    """Return that nobody publishes a topic, with the nearest names that somebody does."""
    names = [name for name, types in node.get_topic_names_and_types()
             if {IMAGE, COMPRESSED_IMAGE} & set(types) and name != topic
             and not name.startswith(f'{node.get_fully_qualified_name()}/')
             and node.count_publishers(name)]
    text = f'nobody publishes {topic}'
    if topic.endswith(2 * COMPRESSED_SUFFIX):
        return (f'{text}: with transport compressed, {COMPRESSED_SUFFIX} is added to the name; '
                f'name {topic.removesuffix(2 * COMPRESSED_SUFFIX)} {_WITH}')
    if not names:
        return f'{text}, nor any other image in this domain: look at the camera, ROS_DOMAIN_ID'
    return f'{text}; published are {", ".join(nearest(topic, names))}: name one {_WITH}'


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Return the names that are most like a name, the most like first."""
    return sorted(names, key=lambda other: (
        -SequenceMatcher(None, name, other).ratio(), other))[:_NAMES]


def _other_type(topic: str, taken: str, info: TopicEndpointInfo) -> str:
    """Return that a topic has another type."""
    text = f'{_name(info)} publishes {topic} as {info.topic_type}, but {taken} is taken: '
    if info.topic_type == COMPRESSED_IMAGE and taken == IMAGE:
        return (f'{text}set transport to compressed and name '
                f'{topic.removesuffix(COMPRESSED_SUFFIX)} {_WITH}')
    if info.topic_type == IMAGE and taken == COMPRESSED_IMAGE:
        return f'{text}set transport to raw'
    return f'{text}name the topic of the images {_WITH}'


def _name(info: TopicEndpointInfo) -> str:
    """Return the name of the node of an endpoint."""
    return f'{info.node_namespace.rstrip("/")}/{info.node_name}'


def _misfit(offered: QoSProfile, requested: QoSProfile) -> str:
    """Return why a subscription hears nothing of a publisher, or ''."""
    # Only these two: what an endpoint does not care for has different values here and there.
    compatibility, reason = qos_check_compatible(*(
        QoSProfile(depth=1, reliability=qos.reliability, durability=qos.durability)
        for qos in (offered, requested)))
    if compatibility != QoSCompatibility.ERROR:
        return ''
    return ' '.join(reason.split()).strip('; ')
