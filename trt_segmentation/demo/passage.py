# SPDX-License-Identifier: Apache-2.0
"""One passage: a recording played to the real node over real DDS, and its masks recorded."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from trt_segmentation.demo.children import Child, PATIENCE, ros_environment, wait_until
from trt_segmentation.errors import CheckFailed, counted
from trt_segmentation.ros import statistics
from trt_segmentation.system import environment, middleware, shared_memory

IMAGE_TOPIC = '/camera/image_raw'
CLASS_TOPIC, COLOR_TOPIC = '/segmentation/class_mask', '/segmentation/color_mask'
RECORDED_RATE = 20.0  # frames per second of the recording
MAX_RATE = 30.0  # what a camera of a vehicle gives
_HEADROOM = 0.6  # of what comes through when more is sent than the machine carries
TRIAL_FRAMES = 60
_MAX_SECONDS, _MIN_FRAMES = 40.0, 20  # of the drive, on a machine that is slow


@dataclass(frozen=True)
class Passage:
    """
    What happened to the frames of one passage.

    rate: frames per second that were asked of the player
    sent: when each frame was sent, by header stamp; nanoseconds of the monotonic clock
    received: when its masks arrived, by topic and header stamp
    lost: how many masks of each topic DDS lost on their way to the recorder
    report: the node's own figures of its camera, as they stand in its diagnostics
    masks: the bag with the masks
    log: what the node said
    """

    rate: float
    sent: Mapping[int, int]
    received: Mapping[str, Mapping[int, int]]
    lost: Mapping[str, int]
    report: Mapping[str, str]
    masks: Path
    log: Path

    @property
    def delivered(self) -> list[int]:
        """Return the stamps of the frames whose masks both arrived, in order."""
        return sorted(set(self.sent).intersection(*self.received.values()))

    @property
    def dropped(self) -> dict[str, int]:
        """Return how many frames the node took and dropped, by cause."""
        return {key.removeprefix('dropped_'): int(value) for key, value in self.report.items()
                if key.startswith('dropped_') and value.isdigit() and int(value)}

    def count(self, key: str) -> int:
        """Return one of the node's counts; 0 if it has none."""
        value = self.report.get(key, '')
        return int(value) if value.isdigit() else 0

    def sent_per_second(self) -> float:
        """Return the rate at which the player got its frames out."""
        moments = sorted(self.sent.values())
        return 1e9 * (len(moments) - 1) / max(moments[-1] - moments[0], 1)

    def masks_per_second(self) -> float:
        """Return how many frames came through a second, from the first one sent; 0 if none."""
        stamps = self.delivered
        if not stamps:
            return 0.0
        last = max(arrivals[stamp] for arrivals in self.received.values() for stamp in stamps)
        return 1e9 * len(stamps) / max(last - min(self.sent.values()), 1)

    def latency_ms(self) -> dict[str, float]:
        """Return percentiles of the time from sending a frame to receiving its second mask."""
        times = [(max(arrivals[stamp] for arrivals in self.received.values()) - self.sent[stamp])
                 / 1e6 for stamp in self.delivered]
        return {f'p{p}': float(np.percentile(times, p)) for p in (50, 95, 99)} if times else {}

    def pace(self) -> str:
        """Return what processing took and what there was time for, in words."""
        took = self.report.get('processing_time_ms_p95')
        return (f'processing took {float(took):.0f} ms (p95), the period was '
                f'{1e3 / self.rate:.0f} ms' if took else
                f'no frame was processed, the period was {1e3 / self.rate:.0f} ms')


def passage(directory: Path, bundle: Path, store: Path, backend: str, bag: Path, rate: float,
            count: int) -> Passage:
    """
    Play the first frames of a bag to a node of its own, and record its masks.

    :param directory: is made, for logs, figures and the masks
    :param rate: frames per second; the bag has RECORDED_RATE
    :raises CheckFailed: if a process fails, or never gets ready
    """
    shared_memory.remove_abandoned_segments()
    directory.mkdir()
    # Not at home, where not every user may write.
    environ = {**ros_environment(), 'ROS_LOG_DIR': str(directory / 'ros_log')}
    parameters = {'bundle': str(bundle), 'store': str(store), 'backend': backend,
                  'build_missing': False, 'use_sim_time': True,
                  # Both ends are ours. Else it begins with best effort, until it sees the player.
                  'reliability': 'reliable',
                  # Ages are those of the recording's clock, which runs as fast as it is played.
                  'max_frame_age_ms': 10_000,
                  # On a vehicle these end a node that hangs; here, one on a machine under load.
                  'engine_timeout_ms': int(1e3 * PATIENCE), 'open_timeout_ms': int(1e3 * PATIENCE)}
    with ExitStack() as stack:
        node = Child(stack, 'node', 'trt_segmentation.ros.node', directory / 'node.log', environ,
                     '--ros-args', *ros_parameters(parameters))
        recorder = Child(stack, 'recorder', 'trt_segmentation.demo.recorder',
                         directory / 'recorder.log', environ, directory / 'masks', CLASS_TOPIC,
                         COLOR_TOPIC, '--report', directory / 'received.json', listen=True)
        wait_until(lambda: recorder.next_line(0.2).strip() == 'ready',
                   'the node to open its engine', [node, recorder])
        # Until it knows of the recorder, it would send its masks to nobody, and count them.
        wait_until(lambda: _hears_both(recorder.next_line(0.2)), 'the node to find the recorder',
                   [node, recorder])
        player = Child(stack, 'player', 'trt_segmentation.demo.player', directory / 'player.log',
                       environ, bag, '--topic', IMAGE_TOPIC, '--rate', rate / RECORDED_RATE,
                       '--count', count, '--sent', directory / 'sent.json')
        player.wait([node, recorder], at_least=count / rate)
        report = _settled(recorder, [node, recorder])
        node.stop()
        recorder.stop()
    received = json.loads((directory / 'received.json').read_text())
    return Passage(
        rate, _by_stamp(json.loads((directory / 'sent.json').read_text())),
        {topic: _by_stamp(stamps) for topic, stamps in received['received'].items()},
        received['lost'], report, directory / 'masks', directory / 'node.log')


def frames_at(rate: float, frames: int) -> int:
    """Return how many frames of a recording are played, so that a slow machine gets done too."""
    return max(min(frames, _MIN_FRAMES), min(frames, int(rate * _MAX_SECONDS)))


def rate_that_is_carried(trial: Passage) -> tuple[float, str]:
    """
    Return the rate to play at, by what came of a trial at MAX_RATE, and the reason in words.

    :raises CheckFailed: if nothing came
    """
    sent, came, speed = len(trial.sent), len(trial.delivered), trial.masks_per_second()
    if not came:
        raise CheckFailed(nothing_came(trial))
    if came == sent:
        return trial.rate, f'all {sent} frames of a trial at {trial.rate:g} Hz came through'
    rate = float(f'{_HEADROOM * speed:.2g}')
    return rate, (f'of {sent} frames at {trial.sent_per_second():.0f} Hz, {speed:.1f} a second '
                  f'came through ({trial.pace()}); {_HEADROOM:.0%} of that leaves room for what '
                  'else runs here')


def nothing_came(passage: Passage) -> str:
    """Return why no frame gave both masks, with what to do about it."""
    sent, taken = len(passage.sent), passage.count('received')
    text = f'0 of {counted(sent, "frame")} gave both masks: the node took {taken}'
    if passage.dropped:
        text += f' and dropped {causes(passage.dropped)} ({passage.pace()})'
    elif taken:
        text += f' and published {passage.count("published")}'
    if problems := middleware.problems({**os.environ, **environment.variables()}):
        return f'{text}; {problems[0]}'
    return f'{text}; what the node said: {passage.log}'


def causes(dropped: Mapping[str, int]) -> str:
    """Return counts by cause in words."""
    return ', '.join(f'{count} {cause.replace("_", " ")}' for cause, count in dropped.items())


def ros_parameters(parameters: Mapping[str, Any]) -> list[str]:
    """Return parameters as arguments; as JSON, since ROS reads each value as YAML."""
    return [word for name, value in parameters.items()
            for word in ('-p', f'{name}:={json.dumps(value, ensure_ascii=False)}')]


def _hears_both(line: str) -> bool:
    """Tell by a report of the camera whether the node knows subscribers of both masks."""
    report = json.loads(line) if line else {}
    return all(int(report.get(f'subscribers_{topic.rpartition("/")[2]}', 0))
               for topic in (CLASS_TOPIC, COLOR_TOPIC))


def _settled(recorder: Child, children: list[Child]) -> dict[str, str]:
    """Return the node's report once all that it took is published or dropped."""
    while recorder.next_line(0.01):  # reports from before the end of playing
        pass
    reports: list[dict[str, str]] = []

    def settled() -> bool:
        if line := recorder.next_line(0.2):
            reports.append(json.loads(line))
        return len(reports) > 1 and statistics.settled(*reports[-2:])

    wait_until(settled, 'the node to finish what it took', children)
    return reports[-1]


def _by_stamp(values: Mapping[str, int]) -> dict[int, int]:
    """Return the same with integer keys, which JSON does not have."""
    return {int(stamp): value for stamp, value in values.items()}
