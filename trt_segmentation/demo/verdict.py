# SPDX-License-Identifier: Apache-2.0
"""What became of the demo's frames, and what of it is wrong on any machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trt_segmentation.demo.passage import CLASS_TOPIC, COLOR_TOPIC, nothing_came, Passage
from trt_segmentation.errors import counted
from trt_segmentation.recordings import bags
from trt_segmentation.system import files

MAX_LOSS = 0.01  # of class IoU, from the float network to INT8
# Of a frame that a machine has no time for. Any other cause is a fault.
_CAUSES_OF_SPEED = ('replaced', 'late_before_inference', 'late_before_publishing')


@dataclass(frozen=True)
class Expected:
    """What the pipeline without DDS gives for a frame: frame_id and hashes of both masks."""

    frame_id: str
    masks: Mapping[str, str]

    @classmethod
    def of(cls, frame_id: str, classes: np.ndarray, color: np.ndarray) -> Expected:
        """Return it for masks, uint8 (height, width) and (height, width, 3)."""
        return cls(frame_id, {CLASS_TOPIC: _digest(classes), COLOR_TOPIC: _digest(color)})


@dataclass(frozen=True)
class Delivery:
    """
    Where the frames of a passage went; `sent` is the sum of all others but `identical`.

    delivered: both masks arrived
    identical: of these, both masks and frame_id are those of the pipeline without DDS
    not_taken: replaced by a newer one, or lost, before the node saw them
    dropped: by the node, by cause
    masks_lost: the node published both masks, and DDS lost one before the recorder took it
    """

    sent: int
    delivered: int
    identical: int
    not_taken: int
    dropped: dict[str, int]
    masks_lost: int


def account(passage: Passage, expected: Mapping[int, Expected]) -> tuple[Delivery, list[str]]:
    """
    Return where the frames of a passage went, and what of that is wrong on any machine.

    :param expected: by header stamp
    """
    published, received = passage.count('published'), passage.count('received')
    delivered, dropped = passage.delivered, passage.dropped
    wrong = _differences(passage, expected) if delivered else {}
    delivery = Delivery(
        sent=len(passage.sent), delivered=len(delivered),
        identical=len(delivered) - len(wrong),
        not_taken=len(passage.sent) - received, dropped=dropped,
        masks_lost=published - len(delivered))
    problems = []
    if not delivered:
        return delivery, [nothing_came(passage)]
    if wrong:
        problems.append(
            f'{len(wrong)} of {counted(len(delivered), "frame")} gave something else than the '
            f'pipeline without DDS, first the one of stamp {min(wrong)} '
            f'({wrong[min(wrong)]}); the masks: {passage.masks}')
    if received > len(passage.sent) or received != published + sum(dropped.values()):
        problems.append(
            f'the counts do not add up: {counted(len(passage.sent), "frame was", "frames were")} '
            f'sent, the node took {received}, published {published} and dropped '
            f'{sum(dropped.values())}; what it said: {passage.log}')
    if faults := {cause: count for cause, count in dropped.items()
                  if cause not in _CAUSES_OF_SPEED}:
        problems.append(f'the node dropped frames for another cause than time: {faults}; what it '
                        f'said: {passage.log}')
    for topic, arrivals in passage.received.items():
        missing = published - len(arrivals)
        if missing > passage.lost.get(topic, 0) or missing < 0:
            problems.append(
                f'the node says that it published {counted(published, "frame")}, of which '
                f'{len(arrivals)} came on {topic}, and DDS reports '
                f'{passage.lost.get(topic, 0)} lost; what the node said: {passage.log}')
        if foreign := set(arrivals) - set(passage.sent):
            problems.append(f'{counted(len(foreign), "mask")} on {topic} with a stamp that no '
                            f'frame had, {min(foreign)} for instance')
    return delivery, problems


def accuracy_problems(accuracy: Mapping[str, Mapping[str, float]]) -> list[str]:
    """
    Return what is wrong with the accuracy on held-out scenes.

    :param accuracy: `class_iou` by engine, one of which is 'fp32'
    """
    limit = accuracy['fp32']['class_iou'] - MAX_LOSS
    return [f'class IoU of {name} is {row["class_iou"]:.4f}, of the float network '
            f'{accuracy["fp32"]["class_iou"]:.4f}: more than {MAX_LOSS} lost'
            for name, row in accuracy.items() if not row['class_iou'] >= limit]


def _differences(passage: Passage, expected: Mapping[int, Expected]) -> dict[int, str]:
    """Return the delivered frames that are not as expected, by stamp, and what differs."""
    found: dict[int, list[str]] = {}
    delivered = set(passage.delivered)
    for topic, frame in bags.read_images(passage.masks, [CLASS_TOPIC, COLOR_TOPIC]):
        if frame.stamp_ns not in delivered:
            continue
        wanted, name = expected[frame.stamp_ns], topic.rpartition('/')[2]
        if frame.frame_id != wanted.frame_id:
            found.setdefault(frame.stamp_ns, []).append(
                f'frame_id {frame.frame_id!r} of {name}, not {wanted.frame_id!r}')
        elif _digest(frame.image) != wanted.masks[topic]:
            found.setdefault(frame.stamp_ns, []).append(f'another {name}')
    return {stamp: ', '.join(sorted(words)) for stamp, words in found.items()}


def _digest(mask: np.ndarray) -> str:
    """Return the hash of a mask's shape and pixels."""
    return files.sha256_bytes(str(mask.shape).encode() + np.ascontiguousarray(mask).tobytes())
