# SPDX-License-Identifier: Apache-2.0
"""The shadow check of a configured node: its topic, what it keeps, what diagnostics say of it."""

from __future__ import annotations

from collections.abc import Callable
import json
from time import monotonic
from types import SimpleNamespace
from typing import Any

from rclpy.node import Node
from rclpy.qos import QoSProfile
from std_msgs.msg import String

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.engines.record import Record
from trt_segmentation.ros.capture import CaptureRing
from trt_segmentation.ros.shadow import Checked, Shadow
from trt_segmentation.ros.wanted import Wanted

SHADOW = 'shadow'
_LIVE = 'live agreement'
_STOP_S = 1.0  # that a check gets to finish; it ends by itself if it takes longer


class ClosedLoop:
    """What is there from one configuration to the next."""

    def __init__(self, node: Node, settings: SimpleNamespace, bundle: Bundle, record: Record,
                 free: Callable[[], bool], wanted: Wanted | None = None):
        """
        Start the shadow check.

        :param bundle, record: what serves
        :param free: tells whether the engine's thread could begin a frame and none waits
        :param wanted: the engine that is wanted, where a fallback serves
        """
        self._node, self._settings = node, settings
        name, warn = node.get_fully_qualified_name(), node.get_logger().warning
        self._publisher = node.create_publisher(String, f'~/{SHADOW}', QoSProfile(depth=10))
        self._ring = CaptureRing(settings, bundle.spec.labels, record.acceptance.unproven_classes,
                                 name, warn)
        self.shadow = Shadow(bundle, record, settings, free, self._on_check, warn,
                             self._ring.close, wanted)

    def close(self) -> None:
        """End the check, and take its topic away."""
        self.shadow.stop(_STOP_S)
        self._node.destroy_publisher(self._publisher)

    @property
    def disagreement(self) -> str:
        """Return that the masks agree too little with the float network's, or ''."""
        now, limit = self.shadow.live.now, self._settings.warn_live_agreement
        if now is None or now >= limit:
            return ''
        return (f'{_LIVE}: {now:.1%} of the pixels of the last frames have the class that '
                f'the float network gives them, less than {limit:.1%} (docs/closed-loop.md)')

    @property
    def checks(self) -> bool:
        """Tell whether frames are checked."""
        return bool(self._settings.shadow_period_s and self._settings.shadow_max_share)

    def may_return(self, fallen: str) -> bool:
        """
        Tell whether the engine that is wanted may take its place again.

        :param fallen: why a fallback serves: what disagreed must have agreed since
        """
        if not self.shadow.passed:
            return False
        return not fallen.startswith(_LIVE) or (self.shadow.live.now is not None
                                                and not self.disagreement)

    def warnings(self) -> list[str]:
        """Return what is wrong, in sentences."""
        found = []
        if text := self.disagreement:
            found.append(text)
        if self._ring.trouble:
            found.append(f'frames are not captured: {self._ring.trouble}')
        return found

    def values(self) -> dict[str, Any]:
        """Return the figures for diagnostics."""
        live = self.shadow.live.figures(monotonic())
        return {
            'shadow': self.shadow.state if self.checks else 'off',
            'shadow_trouble': self.shadow.trouble or None,
            'live_agreement': live.now,
            'live_agreement_p50': live.p50,
            'live_agreement_worst': live.worst,
            'live_agreement_frames': live.frames,
            'live_agreement_trend': live.trend,
            'live_agreement_by_class': ', '.join(
                f'{name} {value:.3f}' for name, value in sorted(
                    live.classes.items(), key=lambda item: item[1])) or None,
            **self._ring.figures,
            'capture_trouble': self._ring.trouble or None,
        }

    def _on_check(self, checked: Checked) -> None:
        """Keep the frame if it is worth it, and publish the figures; in the shadow's thread."""
        captured = self._ring.consider(checked)
        now = self.shadow.live.figures(monotonic()).now
        self._publisher.publish(String(data=json.dumps({
            **checked.figures, 'live_agreement': now, 'captured': captured})))
