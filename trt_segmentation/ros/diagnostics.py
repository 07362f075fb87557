# SPDX-License-Identifier: Apache-2.0
"""What the node says of itself on /diagnostics."""

from __future__ import annotations

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from trt_segmentation.ros.statistics import Statistics


def status(name: str, state: str, reason: str, statistics: Statistics) -> DiagnosticStatus:
    """Return the state of the node and the figures of its frames."""
    values = {'state': state, 'reason': reason,
              'input_rate_hz': f'{statistics.rate("received"):.1f}',
              'output_rate_hz': f'{statistics.rate("published"):.1f}'}
    values |= {event: str(count) for event, count in sorted(statistics.counts().items())}
    for stage, figures in statistics.percentiles().items():
        for quantile, value in zip(('p50', 'p95', 'p99'), figures):
            values[f'{stage}_ms_{quantile}'] = f'{value:.3f}'
    level = DiagnosticStatus.ERROR if reason else DiagnosticStatus.OK
    return DiagnosticStatus(level=level, name=f'{name.lstrip("/")}: segmentation',
                            message=reason or state, hardware_id='',
                            values=[KeyValue(key=key, value=value)
                                    for key, value in values.items()])
