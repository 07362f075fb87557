# SPDX-License-Identifier: Apache-2.0
"""The names of image topics, as image_transport has them; needs no ROS."""

from __future__ import annotations

import re

TOPIC = re.compile(r'(~/|/)?[A-Za-z_]\w*(/[A-Za-z_]\w*)*', re.ASCII)
"""What can be the name of a topic."""

COMPRESSED_SUFFIX = '/compressed'


def image_topic(topic: str) -> tuple[str, dict[str, str]]:
    """Return what `image` is remapped to, and the parameters that a compressed topic asks for."""
    base = topic.removesuffix(COMPRESSED_SUFFIX)
    return (base, {'transport': 'compressed'}) if base not in ('', topic) else (topic, {})
