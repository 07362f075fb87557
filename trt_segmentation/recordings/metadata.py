# SPDX-License-Identifier: Apache-2.0
"""What a recording's metadata.yaml promises (rosbag2, versions 1 to 10)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
import re
from typing import Any

import yaml

from trt_segmentation.errors import one_line

NAME = 'metadata.yaml'
CAPTURED = re.compile(r'capture_([0-9]{6,})\.mcap')
"""What files are called in a directory of captured frames, which has no metadata.yaml."""

_MAX_BYTES = 16 << 20
_LOADER = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)


@dataclass
class Metadata:
    """
    What the file says.

    files: names of the files with messages, in their order; empty if it does not say
    counts: messages of each topic
    problem: why it cannot be read, or ''
    """

    files: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    problem: str = ''


def read(directory: Path) -> Metadata:
    """Read a recording's metadata.yaml; what is wrong with it costs nothing but its promises."""
    path = directory / NAME
    try:
        if path.stat().st_size > _MAX_BYTES:
            return Metadata(problem=f'{path}: larger than {_MAX_BYTES >> 20} MiB; it is not read')
        document: Any = yaml.load(path.read_text(encoding='utf-8'), _LOADER)  # noqa: S506 - safe
        information = document['rosbag2_bagfile_information']
        # No str() of anything: a few lines of YAML can stand for a list of a billion.
        found = Metadata([Path(name).name for name in information['relative_file_paths']])
        for entry in information['topics_with_message_count']:
            topic = entry['topic_metadata']['name']
            found.counts[topic] = found.counts.get(topic, 0) + int(entry['message_count'])
        return found
    except FileNotFoundError:
        if any(CAPTURED.fullmatch(file.name) for file in directory.iterdir()):
            return Metadata()
        return Metadata(problem=f'{path} is missing, as after a crash; all files are read')
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError,
            AttributeError, RecursionError) as error:
        kind = 'a key is missing: ' if isinstance(error, KeyError) else ''
        return Metadata(problem=f'{path}: cannot be read: {kind}{one_line(error)}')
