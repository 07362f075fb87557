# SPDX-License-Identifier: Apache-2.0
"""What keeps images from arriving: each middleware's profile, the kernel's limits, memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import os
from pathlib import Path
import shlex
import socket
from xml.etree import ElementTree

from trt_segmentation.system import environment, shared_memory

MIN_SEGMENT = 32 << 20
"""Bytes of a process's segment that 1920x1080 images in three channels at 30 Hz need."""

MIN_SHARED_MEMORY = 256 << 20
"""Bytes that /dev/shm must have: a segment for each of three processes that speak of images."""

MIN_RECEIVE_BUFFER = 16 << 20
"""Bytes of net.core.rmem_max: two images of 1920x1080 in three channels, which come as packets."""

MIN_FRAGMENT_MEMORY = 64 << 20
"""Bytes of net.ipv4.ipfrag_high_thresh: packets above 1500 bytes are put together there."""

_ZENOH_PORT = 7447  # of the router that a session looks for by default
_PROC_SYS = Path('/proc/sys')


def problems(environ: Mapping[str, str], name: str = '') -> list[str]:
    """
    Return why images would be lost or late, one sentence each, with what to do.

    :param name: of the RMW implementation; by default the one that the environment chooses
    """
    name = name or environ.get('RMW_IMPLEMENTATION') or 'rmw_fastrtps_cpp'
    look: dict[str, Callable[[Mapping[str, str]], list[str]]] = {
        'fastrtps': fastdds_problems, 'cyclonedds': cyclonedds_problems,
        'zenoh': zenoh_problems}
    return [problem for part, function in look.items() if part in name
            for problem in function(environ)]


def notes(environ: Mapping[str, str], name: str, system: Path = _PROC_SYS) -> list[str]:
    """Return what costs time, or matters between machines only; as `problems` does."""
    found = []
    if 'zenoh' not in name and (size := _setting(
            'net/ipv4/ipfrag_high_thresh', system)) < MIN_FRAGMENT_MEMORY:
        found.append(f'net.ipv4.ipfrag_high_thresh is {size >> 20} MB: images from or to another '
                     f'machine may be lost; sysctl -w net.ipv4.ipfrag_high_thresh='
                     f'{MIN_FRAGMENT_MEMORY} net.ipv4.ipfrag_time=3')
    if 'zenoh' in name and 'shared_memory' not in _zenoh_settings(environ):
        found.append('no setting of shared memory: rmw_zenoh has it off by default in some '
                     'releases, and images then go through TCP: export ZENOH_CONFIG_OVERRIDE='
                     "'transport/shared_memory/enabled=true' for every process")
    if not any(part in name for part in ('fastrtps', 'cyclonedds', 'zenoh')):
        found.append(f'{name}: its limits are not known here; measure what arrives with '
                     'ros2 topic hz')
    return found


def fastdds_problems(environ: Mapping[str, str],
                     memory: Path = shared_memory.DIRECTORY) -> list[str]:
    """Return what keeps images from arriving over Fast DDS."""
    found = []
    variables = environment.PROFILE_VARIABLES
    profiles = {environ[name] for name in variables if environ.get(name)}
    if not profiles:
        found.append(f'{variables[0]} is not set, so images above 512 KB are lost or late: '
                     'before every process that publishes or takes images, run: '
                     f'{environment.command()}')
    for profile in sorted(profiles):
        if reason := _fastdds_profile_problem(Path(profile)):
            found.append(f'{profile}: {reason}')
    size, free = shared_memory.space(memory)
    if size < MIN_SHARED_MEMORY:
        found.append(f'{memory} has {size >> 20} MB, so Fast DDS silently goes without shared '
                     f'memory: give it {MIN_SHARED_MEMORY >> 20} MB (docker run --shm-size=256m)')
    elif free < MIN_SEGMENT:
        found.append(f'{memory} has {free >> 20} MB left of {size >> 20}, so Fast DDS silently '
                     'goes without shared memory: see what lies there')
    return found


def cyclonedds_problems(environ: Mapping[str, str], system: Path = _PROC_SYS,
                        memory: Path = shared_memory.DIRECTORY) -> list[str]:
    """Return what keeps images from arriving over Cyclone DDS."""
    found = []
    profile = environment.config_path('cyclonedds.xml')
    given = environ.get('CYCLONEDDS_URI', '')
    if not given:
        found.append('CYCLONEDDS_URI is not set, so an image goes as thousands of small packets '
                     'and some are lost: before every process that publishes or takes images, '
                     f'run: export CYCLONEDDS_URI={shlex.quote(f"file://{profile}")}')
    for uri in filter(None, [given] if given.startswith('<') else given.split(',')):
        if reason := _cyclonedds_profile_problem(uri.strip(), memory):
            found.append(f'CYCLONEDDS_URI: {uri}: {reason}')
    size = _setting('net/core/rmem_max', system)
    if size < MIN_RECEIVE_BUFFER:
        found.append(f'net.core.rmem_max is {size / 2**20:.1f} MB, less than two images: packets '
                     f'are lost before they are read: sysctl -w net.core.rmem_max={64 << 20}, '
                     'and the same in /etc/sysctl.d')
    return found


def zenoh_problems(environ: Mapping[str, str],
                   router: Callable[[], bool] | None = None) -> list[str]:
    """Return what keeps images from arriving over Zenoh."""
    found = []
    uri = environ.get('ZENOH_SESSION_CONFIG_URI', '')
    if uri and not Path(uri.removeprefix('file://')).is_file():
        found.append(f'ZENOH_SESSION_CONFIG_URI: {uri}: no such file')
    own_way = uri or 'connect' in _zenoh_settings(environ)
    if not own_way and not (router or _router_answers)():
        found.append(f'no Zenoh router answers at localhost:{_ZENOH_PORT}, so nodes do not find '
                     'each other: ros2 run rmw_zenoh_cpp rmw_zenohd')
    return found


def _fastdds_profile_problem(profile: Path) -> str:
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
            f'compare it with {environment.config_path("fastdds.xml")}')


def _cyclonedds_profile_problem(uri: str, memory: Path) -> str:
    """Return why a profile of Cyclone DDS does not carry images, or ''."""
    try:  # as Cyclone opens it: what follows file:// is a path, with no character encoded
        root = (ElementTree.fromstring(uri) if uri.startswith('<') else ElementTree.parse(
            uri.removeprefix('file://')).getroot())
    except (OSError, ElementTree.ParseError) as error:
        return f'cannot be read: {error}'
    for element in root.iter():
        element.tag = element.tag.rpartition('}')[2]  # without the namespace
    if root.tag not in ('CycloneDDS', 'Domain'):
        return f'its root is <{root.tag}>, expected <CycloneDDS>'
    # Humble's and Jazzy's Cyclone has the first, later ones the second; both are iceoryx.
    wanted = [(node.findtext('Enable') or '').strip().lower() in ('true', '1')
              for node in root.iter('SharedMemory')]
    wanted += [node.get('name') == 'iox' for node in root.iter('PubSubMessageExchange')]
    if any(wanted) and not any(memory.glob('*iceoryx_mgmt')):
        return 'it wants shared memory, but no RouDi runs, without which no node starts: iox-roudi'
    return ''


def _zenoh_settings(environ: Mapping[str, str]) -> str:
    """Return the text of all that configures a session of Zenoh."""
    text = environ.get('ZENOH_CONFIG_OVERRIDE', '')
    uri = environ.get('ZENOH_SESSION_CONFIG_URI', '')
    try:
        return text + (Path(uri.removeprefix('file://')).read_text(
            encoding='utf-8', errors='replace') if uri else '')
    except OSError:
        return text


def _router_answers() -> bool:
    """Tell whether something takes connections where Zenoh's router does."""
    try:
        with socket.create_connection(('localhost', _ZENOH_PORT), timeout=1):
            return True
    except OSError:
        return False


def _setting(name: str, system: Path) -> int:
    """Return a setting of the kernel; what cannot be read counts as large enough."""
    try:
        return int((system / name).read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
