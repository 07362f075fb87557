# SPDX-License-Identifier: Apache-2.0
"""
Say what this machine has and what that allows.

Exits with 1 if something would keep the node from running, or images from reaching it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module, metadata
import json
import os
from pathlib import Path
import platform
import shutil
import subprocess
import sys
from typing import Any, NamedTuple

from trt_segmentation.cli import add_format
from trt_segmentation.errors import command_line, counted, install, SegmentationError
from trt_segmentation.system import environment, interpreter, middleware, shared_memory

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
        # Not by `print_json`, which needs NumPy.
        print(json.dumps({'healthy': healthy,
                          'findings': [found._asdict() for found in findings]}, indent=2))
    else:
        problems = [finding.name for finding in findings if finding.level == 'problem']
        print('the node can run here' if healthy else
              f'mend what is marked problem: {", ".join(dict.fromkeys(problems))}')
        for finding in findings:
            print(f'{finding.level:8} {finding.name:16} {finding.text}')
        print('next     ' + (
            f'all of it at once: {command_line("demo")}; with a network of yours: '
            f'{command_line("init", "MODEL.onnx", "BUNDLE")}' if healthy else
            f'look again: {command_line("doctor")}'))
    return 0 if healthy else 1


def examine() -> Iterator[Finding]:
    """Look at everything, one finding after the other."""
    yield Finding('machine', 'ok', f'{platform.machine()}, {os.cpu_count()} CPUs, '
                  f'Python {platform.python_version()}')
    python = interpreter.node_interpreter(os.environ)
    other = '' if python == Path(sys.executable) else f'; this command runs in {sys.executable}'
    yield Finding('interpreter', 'ok', f'the node runs in {python}{other}')
    libraries = list(_libraries(python))
    yield from libraries
    if any(found.name == 'ros' and found.level == 'ok' for found in libraries):
        yield from _dds(python)
    yield _shared_memory()
    yield from _files()
    if any(found.name == 'core' and found.level == 'problem' for found in libraries):
        yield Finding('backend auto', 'problem', 'not looked at: it needs what core lacks')
        return
    yield from _gpu()
    yield from _engines()
    yield _store()


class Part(NamedTuple):
    """
    What some modules are for.

    needed: whether the node cannot run without
    cure: what brings one that is not installed
    """

    name: str
    modules: tuple[str, ...]
    needed: bool
    cure: str


_PARTS = (
    Part('core', ('numpy', 'cv2', 'yaml'), True,
         'apt install python3-numpy python3-opencv python3-yaml, or pip install them'),
    Part('ros', ('rclpy', 'rcl_interfaces.msg', 'sensor_msgs.msg', 'std_msgs.msg',
                 'diagnostic_msgs.msg', 'lifecycle_msgs.srv', 'rosgraph_msgs.msg',
                 'std_srvs.srv'), True,
         f'source a ROS 2 distribution, or {install("ros")}; calibrate, build, evaluate and '
         'replay work without'),
    Part('labels', ('vision_msgs.msg',), False, 'labels are published as JSON only'),
    Part('cv_bridge', ('cv_bridge',), False, 'rare encodings are converted by OpenCV'),
    Part('jpeg', ('simplejpeg',), False, 'pip install simplejpeg: damaged JPEG images are then '
         'told from good ones, which OpenCV alone cannot'),
    Part('engines', ('onnx', 'onnxruntime'), False,
         f'{install("cpu")}: to calibrate and to build engines'),
    Part('reports', ('matplotlib', 'PIL', 'jinja2', 'tqdm'), False,
         f'{install("cpu")}: for reports'),
    Part('recordings', ('rosbags.rosbag2', 'mcap'), False,
         f'{install("cpu")}: to read and write bags'),
)


def _libraries(python: Path) -> Iterator[Finding]:
    """Look at each part's libraries by importing them where the node would."""
    names = [name for part in _PARTS for name in part.modules]
    found = interpreter.imports(python, names, _without_rmw())
    for part in _PARTS:
        tried = {name: found[name] for name in part.modules}
        if broken := {name: was for name, was in tried.items() if was.error and not was.missing}:
            # cv_bridge alone is imported in a way that survives its failure.
            level = 'none' if part.name == 'cv_bridge' else 'problem'
            yield Finding(part.name, level, '; '.join(
                f'{name} is installed but of no use: {was.error}{_numpy_advice(found, was)}'
                for name, was in broken.items()))
        if missing := [name.partition('.')[0] for name, was in tried.items() if was.missing]:
            yield Finding(part.name, 'problem' if part.needed else 'none',
                          f'no {", ".join(missing)}: {part.cure}')
        if not missing and not broken:
            yield Finding(part.name, 'ok', ', '.join(
                f'{name.partition(".")[0]} {was.version}'.rstrip() for name, was in tried.items()))


def _without_rmw() -> dict[str, str]:
    """Return the environment without the choice of a middleware, which `_dds` tries by itself."""
    return {name: value for name, value in os.environ.items() if name != 'RMW_IMPLEMENTATION'}


def _numpy_advice(found: dict[str, interpreter.Imported], was: interpreter.Imported) -> str:
    """Return what to do about a library that was built for NumPy 1, where 2 is installed."""
    version = found['numpy'].version
    if not version.startswith('2.') or not any(
            word in was.error for word in ('numpy', 'ARRAY_API', 'multiarray')):
        return ''
    return f"; NumPy is {version}, and it was built for NumPy 1: pip install 'numpy<2'"


def _dds(python: Path) -> Iterator[Finding]:
    """Look at what carries the images, by starting a node with it."""
    chosen = os.environ.get('RMW_IMPLEMENTATION')
    found = interpreter.start_node(python, os.environ)
    if found.error and chosen and interpreter.start_node(python, _without_rmw()).name:
        package = chosen.replace('_', '-')
        yield Finding('dds', 'problem', f'RMW_IMPLEMENTATION={chosen} cannot be used: '
                      f'{found.error}; install it (apt install ros-DISTRIBUTION-{package}) or '
                      'unset the variable')
    elif found.error:
        yield Finding('dds', 'problem', found.error)
    else:
        distribution = os.environ.get('ROS_DISTRO')
        yield Finding('dds', 'ok', f'{found.name}{"" if chosen else " (default)"} starts a node'
                      + (f'; {distribution} is sourced' if distribution
                         else '; no distribution is sourced'))
    name = found.name or chosen or ''
    for problem in middleware.problems(os.environ, name):
        yield Finding('images', 'problem', problem)
    for note in middleware.notes(os.environ, name) if name else []:
        yield Finding('images', 'none', note)
    if missing := environment.missing_malloc_settings(os.environ):
        yield Finding('malloc', 'none', f'{", ".join(missing)} not set: an image costs twice the '
                      f'time in a camera of yours: {environment.command()}')
    yield Finding('domain', 'ok', f'ROS_DOMAIN_ID={os.environ.get("ROS_DOMAIN_ID", "0")}')


def _shared_memory() -> Finding:
    """Look at what Fast DDS has in shared memory, and at what nobody owns any more."""
    size, free = shared_memory.space()
    text = f'{shared_memory.DIRECTORY}: {free >> 20} of {size >> 20} MB free'
    segments = shared_memory.segments()
    kinds = {
        'in use': [found for found in segments if found.mine and found.owned],
        'without an owner, which the next start of the node removes':
            [found for found in segments if found.mine and not found.owned],
        'of other users': [found for found in segments if not found.mine],
    }
    for kind, some in kinds.items():
        if some:
            megabytes = sum(found.size for found in some) >> 20
            text += f'; {counted(len(some), "segment")} of Fast DDS, {megabytes} MB, {kind}'
    return Finding('shared memory', 'ok' if size else 'none', text)


def _files() -> Iterator[Finding]:
    """Name the profiles that this package ships."""
    for name in ('environment.sh', 'fastdds.xml', 'cyclonedds.xml'):
        try:
            yield Finding('file', 'ok', str(environment.config_path(name)))
        except FileNotFoundError as error:
            yield Finding('file', 'problem', str(error))


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
        yield _attempt(f'backend {name}', 'none', partial(choose_backend, name))
    yield _attempt('backend auto', 'problem', choose_backend)


def _attempt(name: str, level: str, choose: Callable[[], Any]) -> Finding:
    """Return what choosing a backend gives: its identity, or why it cannot be used."""
    try:
        backend = choose()
        identity = ', '.join(f'{key} {value}' for key, value in backend.identity().items())
    except SegmentationError as error:
        return Finding(name, level, str(error).removeprefix(f'{name} '))
    return Finding(name, 'ok', f'{backend.name}: {identity}')


def _store() -> Finding:
    """Look at where built engines live, or will when there is one."""
    from trt_segmentation.engines.store import default_path, Store
    try:
        path = default_path().absolute()
        there = next(each for each in (path, *path.parents) if os.path.lexists(each))
        Store(writable=there == path)
    except SegmentationError as error:
        return Finding('store', 'problem', str(error))
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding('store', 'problem', f'store {path}: cannot be made: {there} is not '
                                           'writable; name another with --store')
    free = shutil.disk_usage(there).free
    return Finding('store', 'ok', f'{path}, {free / 1e9:.1f} GB free'
                   + ('' if there == path else ', made with the first engine'))


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
