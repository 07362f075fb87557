# SPDX-License-Identifier: Apache-2.0
"""
Say what this machine has and what that allows.

Exits with 1 if something would keep the node from running, or images from reaching it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from importlib import import_module, metadata
from importlib.util import find_spec
import os
from pathlib import Path
import platform
import shutil
import subprocess
from typing import NamedTuple

from trt_segmentation.cli import add_format, print_json
from trt_segmentation.errors import SegmentationError
from trt_segmentation.system import environment

EXAMPLE = 'trt-segmentation doctor --format json'


class Finding(NamedTuple):
    """
    One thing that was looked at.

    level: 'ok', 'none' (not there, which leaves out what needs it) or 'problem'
    """

    name: str
    level: str
    text: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_format(parser)


def main(args: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    findings = list(examine())
    healthy = all(finding.level != 'problem' for finding in findings)
    if args.format == 'json':
        print_json({'healthy': healthy, 'findings': [found._asdict() for found in findings]})
    else:
        for finding in findings:
            print(f'{finding.level:8} {finding.name:16} {finding.text}')
        print('the node can run here' if healthy else 'mend what is marked: problem')
    return 0 if healthy else 1


def examine() -> Iterator[Finding]:
    """Look at everything, one finding after the other."""
    yield Finding('machine', 'ok', f'{platform.machine()}, {os.cpu_count()} CPUs, '
                  f'Python {platform.python_version()}')
    yield from _ros()
    yield from _dds()
    yield from _gpu()
    yield from _engines()
    yield _store()


def _ros() -> Iterator[Finding]:
    """Look at the ROS client library and the messages."""
    if find_spec('rclpy') is None:
        yield Finding('ros', 'problem', 'no rclpy: source a ROS 2 distribution, or '
                      "pip install 'trt_segmentation[ros]'; calibrate, build, evaluate and replay "
                      'work without')
        return
    distribution = os.environ.get('ROS_DISTRO')
    yield Finding('ros', 'ok', f'rclpy {_version("rclpy")}'
                  + (f' of {distribution}' if distribution else ', no distribution sourced'))
    missing = [name for name in ('sensor_msgs', 'diagnostic_msgs', 'lifecycle_msgs', 'std_srvs')
               if find_spec(name) is None]
    if missing:
        yield Finding('messages', 'problem', f'missing: {", ".join(missing)}')
    if find_spec('vision_msgs') is None:
        yield Finding('vision_msgs', 'none', 'labels are published as JSON only')


def _dds() -> Iterator[Finding]:
    """Look at what carries the images."""
    middleware = os.environ.get('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp (default)')
    found = environment.problems(os.environ)
    yield from (Finding('dds', 'problem', problem) for problem in found)
    if not found:
        yield Finding('dds', 'ok', f'{middleware}, /dev/shm has '
                      f'{environment.shared_memory_size() >> 20} MB')
    if missing := environment.missing_malloc_settings(os.environ):
        yield Finding('malloc', 'none', f'{", ".join(missing)} not set: an image costs twice the '
                      'time; export them (config/environment.sh)')
    yield Finding('domain', 'ok', f'ROS_DOMAIN_ID={os.environ.get("ROS_DOMAIN_ID", "0")}')


def _gpu() -> Iterator[Finding]:
    """Look at the GPU and the libraries that reach it."""
    from trt_segmentation.engines import nvidia_device
    device = nvidia_device()
    if not device:
        yield Finding('gpu', 'none', 'no NVIDIA device; networks run on the CPU')
        return
    yield Finding('gpu', 'ok', f'{device}: {_gpu_name()}')
    for module in ('tensorrt', 'pycuda'):
        yield _library(module)


def _engines() -> Iterator[Finding]:
    """Look at each backend, and at the one that `auto` takes."""
    from trt_segmentation.engines import BACKENDS, choose_backend
    for name in BACKENDS:
        yield _attempt(f'backend {name}', 'none', lambda name=name: choose_backend(name))
    yield _attempt('backend auto', 'problem', choose_backend)


def _attempt(name: str, level: str, choose: Callable) -> Finding:
    """Return what choosing a backend gives: its identity, or why it cannot be used."""
    try:
        backend = choose()
        identity = ', '.join(f'{key} {value}' for key, value in backend.identity().items())
    except SegmentationError as error:
        return Finding(name, level, str(error))
    return Finding(name, 'ok', f'{backend.name}: {identity}')


def _store() -> Finding:
    """Look at where built engines live."""
    from trt_segmentation.engines.store import Store
    try:
        store = Store()
    except SegmentationError as error:
        return Finding('store', 'problem', str(error))
    free = shutil.disk_usage(store.path).free
    return Finding('store', 'ok', f'{store.path}, {free / 1e9:.1f} GB free')


def _library(module: str) -> Finding:
    """Look at an optional library by importing it: a broken one is found out only so."""
    try:
        version = getattr(import_module(module), '__version__', '')
    except ImportError as error:
        return Finding(module, 'none', str(error))
    return Finding(module, 'ok', str(version or _version(module)))


def _gpu_name() -> str:
    """Return the GPU's name and driver as nvidia-smi says, or the board's name."""
    board = Path('/proc/device-tree/model')  # Jetson and DRIVE have no nvidia-smi for their GPU
    if board.exists():
        return board.read_text().strip('\0\n')
    try:
        query = subprocess.run(
            ['nvidia-smi', '--query-gpu=name,driver_version,memory.total',
             '--format=csv,noheader'], capture_output=True, text=True, timeout=20, check=True)
        return query.stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f'nvidia-smi: {error}'


def _version(package: str) -> str:
    """Return an installed package's version, or '?'."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return '?'
