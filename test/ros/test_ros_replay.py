# SPDX-License-Identifier: Apache-2.0
"""Node and replay give identical masks for one bag."""

from time import monotonic

import cv2
import numpy as np
import pytest
from support.bundles import foreign_bundle, scene

pytest.importorskip('rclpy', reason='the node needs ROS')
from rclpy.serialization import deserialize_message
from rosbags.rosbag2 import Reader
from sensor_msgs.msg import Image
from support.ros_peer import NodeProcess, peer, pixels_of, stamp_of

from trt_segmentation.cli import main
from trt_segmentation.recordings import bags

START = 1_700_000_000_000_000_000
TOPICS = '/segmentation/class_mask', '/segmentation/color_mask'


def padded(image, step):
    """Return the rows of an image with bytes between them."""
    rows = np.full((image.shape[0], step), 77, np.uint8)
    rows[:, :image[0].nbytes] = image.reshape(image.shape[0], -1)
    return rows


def encoded(image, encoding):
    """Return pixels of an encoding; their content need not be the image's."""
    if encoding == 'mono8':
        return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    if encoding == 'bgra8':
        return cv2.cvtColor(image, cv2.COLOR_BGR2BGRA)
    part = {'rgb8': image[..., ::-1], 'bayer_rggb8': image[..., 1],
            'yuv422_yuy2': image[..., :2]}.get(encoding, image)
    return np.ascontiguousarray(part)


def send(message, publisher, other, node):
    """Publish a frame until both masks have come."""
    stamp, moment = stamp_of(message), 0.0

    def answered():
        nonlocal moment
        if monotonic() - moment > 0.5:  # the node may drop a frame where it is busy
            moment = monotonic()
            publisher.publish(message)
        return all(other.masks_of(topic, stamp) for topic in TOPICS)

    other.wait(answered, f'masks of {message.encoding}', node)


def write_bag(path):
    """Write frames as cameras send them: encodings, odd sizes, padded rows."""
    with bags.Writer(path) as writer:
        for i, (encoding, size, step) in enumerate((
                ('bgr8', (96, 160), 0), ('rgb8', (121, 203), 0), ('bgr8', (121, 203), 640),
                ('mono8', (120, 200), 0), ('bayer_rggb8', (120, 200), 0),
                ('bgra8', (61, 333), 0), ('yuv422_yuy2', (120, 200), 0), ('bgr8', (200, 90), 0))):
            image = scene(40 + i, (max(size[0], 60), max(size[1], 100)))[0][:size[0], :size[1]]
            pixels = encoded(image, encoding)
            message = bags.image_message(pixels, encoding, START + i, f'camera{i}')
            if step:
                message.step, message.data = step, padded(pixels, step).reshape(-1)
            writer.write('/camera/image_raw', message, START + i * 50_000_000)
    return path


def test_one_bag_gives_the_same_masks_through_dds_and_through_replay(tmp_path):
    bundle = foreign_bundle(tmp_path)
    bag = write_bag(tmp_path / 'bag')
    assert main(['replay', str(bundle), '--store', str(tmp_path / 'store'), '--bag', str(bag),
                 '--output', str(tmp_path / 'masks')]) == 0
    replayed = {}
    for topic, frame in bags.read_images(tmp_path / 'masks'):
        replayed[topic, frame.stamp_ns] = frame
    assert len(replayed) == 2 * 8

    with Reader(bag) as reader:
        messages = [deserialize_message(bytes(data), Image) for _, _, data in reader.messages()]
    assert len(messages) == 8
    options = {'bundle': bundle, 'store': tmp_path / 'store', 'backend': 'onnxruntime',
               'max_frame_age_ms': 5000}
    with NodeProcess(tmp_path / 'log', **options) as node, peer() as other:
        publisher = other.publisher()
        for topic in TOPICS:
            other.subscribe(topic)
        other.wait_for_state('active', node)
        other.wait_for_match(publisher, node, *TOPICS)
        for message in messages:
            send(message, publisher, other, node)
            stamp = stamp_of(message)
            for topic in TOPICS:
                expected = replayed[topic, stamp]
                for mask in other.masks_of(topic, stamp):
                    assert mask.header.frame_id == expected.frame_id == message.header.frame_id
                    np.testing.assert_array_equal(pixels_of(mask), expected.image)
