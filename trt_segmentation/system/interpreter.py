# SPDX-License-Identifier: Apache-2.0
"""
Which Python runs the node, and what it can import: tried in a process of its own.

A library that is installed may be of no use: built for another NumPy, for another Python, or with
a shared library missing. Some of these end the process that imports them. So each is imported, by
the interpreter that the node gets, where that harms nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
import os
from pathlib import Path
import re
import shutil
import signal
import subprocess
import sys

from trt_segmentation.system import files

_PATIENCE_SECONDS = 600.0  # for twenty imports that a cold disk may read gigabytes for

# Prints, for each module: what it begins with, and then its version or its error.
_IMPORT = r"""
import importlib, importlib.metadata, os, sys
out = os.fdopen(os.dup(1), 'w', encoding='utf-8')
os.dup2(2, 1)  # what a module prints is not an answer
for name in sys.argv[1:]:
    print('try', name, sep='\t', file=out, flush=True)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = name == error.name or name.startswith(f'{error.name}.')
        print('missing' if missing else 'broken', error, sep='\t', file=out, flush=True)
    except BaseException as error:
        text = ' '.join(str(error).split()) or type(error).__name__
        print('broken', text[:200], sep='\t', file=out, flush=True)
    else:
        version = getattr(module, '__version__', None)
        if not isinstance(version, str):
            try:
                version = importlib.metadata.version(name.partition('.')[0])
            except importlib.metadata.PackageNotFoundError:
                version = ''
        print('ok', version, sep='\t', file=out, flush=True)
"""

_START_NODE = r"""
import os, sys
out = os.fdopen(os.dup(1), 'w', encoding='utf-8')
os.dup2(2, 1)
import rclpy
print(rclpy.get_rmw_implementation_identifier(), file=out, flush=True)
# It leaves no log file behind.
rclpy.init(args=['doctor', '--ros-args', '--disable-external-lib-logs'])
node = rclpy.create_node('trt_segmentation_doctor')
print('started', file=out, flush=True)
node.destroy_node()
rclpy.shutdown()
"""


@dataclass(frozen=True)
class Imported:
    """
    What importing a module gave.

    version: of a module that can be imported, if it says one
    error: why it cannot be imported, else ''
    missing: whether it is not installed at all
    """

    version: str = ''
    error: str = ''
    missing: bool = False


@dataclass(frozen=True)
class Middleware:
    """
    What starting a ROS node gave.

    name: of the RMW implementation that was loaded; '' if none was
    error: why no node can be started, else ''
    """

    name: str = ''
    error: str = ''


def node_interpreter(environ: Mapping[str, str]) -> Path:
    """Return the Python that `ros2 run` takes for the node; without a workspace, this one."""
    for prefix in environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep):
        script = Path(prefix) / 'lib/trt_segmentation/segmentation_node'
        try:
            with script.open('rb') as file:
                first, second = (file.readline(1024).decode(errors='replace') for _ in range(2))
        except OSError:
            continue
        # Where the path has blanks, or is too long for the kernel.
        by_shell = re.match(r"'''exec' (\"?)([^\"\n]+)\1 \"\$0\"", second)
        if first == '#!/bin/sh\n' and by_shell:
            return Path(by_shell[2])
        words = first.removeprefix('#!').split()
        if words[:1] == ['/usr/bin/env'] and len(words) > 1:
            found = shutil.which(words[1], path=environ.get('PATH'))
            return Path(found or sys.executable)
        if words and first.startswith('#!'):
            return Path(words[0])
    return Path(sys.executable)


def imports(interpreter: Path, modules: Iterable[str], environ: Mapping[str, str]
            ) -> dict[str, Imported]:
    """Return, for each module, what importing it with an interpreter gives; it writes nothing."""
    left, found = list(modules), {}
    while left:
        with files.temporary_directory() as directory:
            # The first writes a device id and asks for a host, the second a list of fonts.
            quiet = {'ORT_DISABLE_TELEMETRY': '1', 'MPLCONFIGDIR': directory}
            lines, end = _run(interpreter, [_IMPORT, *left], {**environ, **quiet})
        for name, line in zip(left, [line for line in lines if not line.startswith('try\t')]):
            kind, _, text = line.partition('\t')
            found[name] = (Imported(version=text) if kind == 'ok'
                           else Imported(error=text, missing=kind == 'missing'))
        left = [name for name in left if name not in found]
        if left:  # this one took the process with it
            found[left[0]] = Imported(error=f'importing it {end}')
            left = left[1:]
    return found


def start_node(interpreter: Path, environ: Mapping[str, str]) -> Middleware:
    """Load the RMW implementation that the environment chooses, and start a node for a moment."""
    # It looks for nobody: a doctor is not seen on the vehicle's network (from Iron on).
    alone = {**environ, 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'OFF'}
    lines, end = _run(interpreter, [_START_NODE], alone)
    if 'started' in lines:
        return Middleware(name=lines[0])
    return Middleware(name=lines[0] if lines else '', error=f'starting a node {end}')


def _run(interpreter: Path, arguments: Sequence[str], environ: Mapping[str, str]
         ) -> tuple[list[str], str]:
    """Run a program; return the lines that it printed, and in words how it ended."""
    try:
        run = subprocess.run([interpreter, '-c', *arguments], env=dict(environ), text=True,
                             errors='replace', capture_output=True, stdin=subprocess.DEVNULL,
                             timeout=_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b''
        text = output if isinstance(output, str) else output.decode(errors='replace')
        return text.splitlines(), f'takes more than {_PATIENCE_SECONDS:.0f} s'
    except OSError as error:
        return [], f'fails: {interpreter}: {error.strerror}'
    end = (f'ends the process with {signal.Signals(-run.returncode).name}' if run.returncode < 0
           else f'ends the process with code {run.returncode}')
    last = next((line for line in reversed(run.stderr.splitlines()) if line.strip()), '')
    return run.stdout.splitlines(), f'{end}: {last.strip()[:300]}' if last else end
