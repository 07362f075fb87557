# SPDX-License-Identifier: Apache-2.0
"""
The environment that camera images need: a Fast DDS profile and settings of malloc.

Both work only as environment variables of a process that starts, and the process that publishes
images needs them as much as the node. Commands, launch files and tests take them from here.
"""

from __future__ import annotations

from collections.abc import Mapping
import ctypes
from importlib import metadata
import os
from pathlib import Path
import shlex
import sys

PROFILE_VARIABLES = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
"""Fast DDS 3 (Kilted and later) reads the first, Fast DDS 2 (Humble, Jazzy) the second."""

_FIRST_RCLPY_WITH_FASTDDS_3 = 9  # Kilted's; Jazzy's is 7

# What leads a process to other machines, or past the profile that it needs.
_STRAY = ('ROS_DISCOVERY_SERVER', 'ROS_STATIC_PEERS', 'ROS_SUPER_CLIENT', 'ROS_NAMESPACE',
          'FASTDDS_BUILTIN_TRANSPORTS')

# An image's buffer stays in the process instead of going back to the kernel after each message:
# mapping it anew costs more than copying the image.
_MALLOC = {
    'MALLOC_MMAP_THRESHOLD_': str(256 << 20),
    'MALLOC_TRIM_THRESHOLD_': str(1 << 30),
    'MALLOC_TOP_PAD_': str(64 << 20),
}

# The same by the numbers of mallopt(3), for a process that runs already.
_MALLOPT = {-3: 256 << 20, -1: 1 << 30, -2: 64 << 20}


def config_path(name: str) -> Path:
    """
    Return a file of this package's `config` directory, in the source tree or as installed.

    :raises FileNotFoundError: if it is in none of the places
    """
    places = [Path(__file__).parents[2] / 'config']
    for prefix in [*os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep), sys.prefix]:
        if prefix:
            places.append(Path(prefix) / 'share' / 'trt_segmentation' / 'config')
    for place in places:
        if (place / name).is_file():
            return place / name
    raise FileNotFoundError(f'{name}: in none of {", ".join(map(str, places))}')


def command() -> str:
    """Return what a shell is to run before a process that publishes or takes images."""
    return f'. {shlex.quote(str(config_path("environment.sh")))}'


def variables() -> dict[str, str]:
    """Return the variables for a process that publishes or takes images."""
    profile = str(config_path('fastdds.xml'))
    # Fast DDS 3 warns of the old name, each time that a process joins.
    names = PROFILE_VARIABLES[:1] if _has_fastdds_3() else PROFILE_VARIABLES
    return {**dict.fromkeys(names, profile), **_MALLOC}


def completed(environ: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of an environment with `variables`; what was set before stays."""
    added = variables()
    if any(environ.get(name) for name in PROFILE_VARIABLES):
        added = {name: value for name, value in added.items() if name not in PROFILE_VARIABLES}
    return {**added, **environ}


def alone(environ: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of an environment whose processes find others on this machine only."""
    return {**{name: value for name, value in environ.items() if name not in _STRAY},
            'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}


def _has_fastdds_3() -> bool:
    """Tell whether the installed ROS is known to come with Fast DDS 3."""
    try:
        return int(metadata.version('rclpy').partition('.')[0]) >= _FIRST_RCLPY_WITH_FASTDDS_3
    except (metadata.PackageNotFoundError, ValueError):
        return False


def keep_memory() -> None:
    """Let this process keep the memory of images from one to the next, as `variables` do."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # not glibc: only slower
    for parameter, value in _MALLOPT.items():
        mallopt(parameter, value)


def missing_malloc_settings(environ: Mapping[str, str]) -> list[str]:
    """Return the names of malloc's settings that are not set; without them images cost more."""
    return sorted(name for name in _MALLOC if name not in environ)
