# SPDX-License-Identifier: Apache-2.0
"""
The environment that camera images need: a Fast DDS profile and settings of malloc.

Both work only as environment variables of a process that starts, and the process that publishes
images needs them as much as the node. Commands, launch files and tests take them from here.
"""

from __future__ import annotations

from collections.abc import Mapping
import ctypes
import os
from pathlib import Path
import sys
from xml.etree import ElementTree

PROFILE_VARIABLES = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
"""Fast DDS 3 (Kilted and later) reads the first, Fast DDS 2 (Humble, Jazzy) the second."""

# An image's buffer stays in the process instead of going back to the kernel after each message:
# mapping it anew costs more than copying the image.
_MALLOC = {
    'MALLOC_MMAP_THRESHOLD_': str(256 << 20),
    'MALLOC_TRIM_THRESHOLD_': str(1 << 30),
    'MALLOC_TOP_PAD_': str(64 << 20),
}

# The same by the numbers of mallopt(3), for a process that runs already.
_MALLOPT = {-3: 256 << 20, -1: 1 << 30, -2: 64 << 20}

MIN_SHARED_MEMORY = 256 << 20
"""Bytes that /dev/shm must have: one 128 MB segment for each of two processes."""

MIN_SEGMENT = 32 << 20
"""Bytes of a process's segment that 2048x1024 images in three channels at 30 Hz need."""


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


def variables() -> dict[str, str]:
    """Return the variables for a process that publishes or takes images."""
    profile = str(config_path('fastdds.xml'))
    return {**dict.fromkeys(PROFILE_VARIABLES, profile), **_MALLOC}


def completed(environ: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of an environment with `variables`; what was set before stays."""
    return {**variables(), **environ}


def keep_memory() -> None:
    """Let this process keep the memory of images from one to the next, as `variables` do."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # not glibc: only slower
    for parameter, value in _MALLOPT.items():
        mallopt(parameter, value)


def problems(environ: Mapping[str, str], shared_memory: Path = Path('/dev/shm')) -> list[str]:
    """
    Return why images would be lost or late between processes of this environment.

    Each entry is a sentence with what to do; it is empty if there is nothing to mend, or if the
    middleware is another one than Fast DDS.
    """
    if 'fastrtps' not in environ.get('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp'):
        return []
    found = []
    profiles = {environ[name] for name in PROFILE_VARIABLES if environ.get(name)}
    if not profiles:
        found.append(f'{PROFILE_VARIABLES[0]} is not set, so images above 512 KB are lost or '
                     'late: export it (config/environment.sh) for every process that publishes '
                     'or takes images')
    for profile in sorted(profiles):
        if reason := _profile_problem(Path(profile)):
            found.append(f'{profile}: {reason}')
    size = shared_memory_size(shared_memory)
    if size < MIN_SHARED_MEMORY:
        found.append(f'{shared_memory} has {size >> 20} MB, so Fast DDS silently goes without '
                     f'shared memory: give it {MIN_SHARED_MEMORY >> 20} MB '
                     '(docker run --shm-size=256m)')
    return found


def missing_malloc_settings(environ: Mapping[str, str]) -> list[str]:
    """Return the names of malloc's settings that are not set; without them images cost more."""
    return sorted(name for name in _MALLOC if name not in environ)


def shared_memory_size(path: Path = Path('/dev/shm')) -> int:
    """Return the size in bytes of the file system for shared memory; 0 if there is none."""
    try:
        status = os.statvfs(path)
    except OSError:
        return 0
    return status.f_blocks * status.f_frsize


def _profile_problem(profile: Path) -> str:
    """Return why a Fast DDS profile does not carry images, or ''."""
    try:
        root = ElementTree.parse(profile).getroot()
    except (OSError, ElementTree.ParseError) as error:
        return f'cannot be read: {error}'
    for element in root.iter():
        element.tag = element.tag.rpartition('}')[2]  # without the namespace
    for transport in root.iter('transport_descriptor'):
        segment = transport.findtext('segment_size', '0').strip()
        if (transport.findtext('type', '').strip() == 'SHM' and segment.isdigit()
                and int(segment) >= MIN_SEGMENT):
            return ''
    return (f'has no shared-memory transport with a segment of {MIN_SEGMENT >> 20} MB or more; '
            'compare it with config/fastdds.xml')
