# SPDX-License-Identifier: Apache-2.0
"""Which Python the node gets, and what is said of libraries that cannot be imported there."""

from __future__ import annotations

import os
from pathlib import Path
import sys

import pytest

from trt_segmentation.system import interpreter
from trt_segmentation.system.interpreter import Imported

PYTHON = Path(sys.executable)


def modules(path: Path, **sources: str) -> dict[str, str]:
    """Write modules; return an environment in which they can be imported."""
    for name, source in sources.items():
        (path / f'{name}.py').write_text(source)
    return {**os.environ, 'PYTHONPATH': str(path)}


def test_each_kind_of_library_is_told_apart(tmp_path):
    environ = modules(
        tmp_path,
        good='__version__ = "1.2"', nameless='', noisy='print("ok\\t9.9")\n__version__ = "3"',
        half='import nowhere_to_be_found',
        abi='raise ImportError("built for\\nanother NumPy")',
        leaves='import os; os._exit(102)', crashes='import os; os.kill(os.getpid(), 11)',
        says_why='import sys, os; print("no such RMW", file=sys.stderr); sys.stderr.flush(); '
                 'os._exit(3)',
        quits='raise SystemExit(4)')
    found = interpreter.imports(PYTHON, [
        'good', 'leaves', 'nameless', 'crashes', 'says_why', 'not_there', 'not_there.inside',
        'half', 'abi', 'quits', 'noisy', 'json'], environ)
    assert found.pop('json').error == ''
    assert found == {
        'good': Imported('1.2'), 'nameless': Imported(''), 'noisy': Imported('3'),
        'leaves': Imported(error='importing it ends the process with code 102'),
        'crashes': Imported(error='importing it ends the process with SIGSEGV'),
        'says_why': Imported(error='importing it ends the process with code 3: no such RMW'),
        'not_there': Imported(error="No module named 'not_there'", missing=True),
        'not_there.inside': Imported(error="No module named 'not_there'", missing=True),
        'half': Imported(error="No module named 'nowhere_to_be_found'"),
        'abi': Imported(error='built for another NumPy'),
        'quits': Imported(error='4'),
    }


def test_an_interpreter_that_is_not_there_is_named():
    found = interpreter.imports(Path('/nonexistent/python'), ['json'], os.environ)
    assert '/nonexistent/python: No such file' in found['json'].error


@pytest.mark.parametrize('first, expected', [
    ('#!/usr/bin/python3', '/usr/bin/python3'),
    ('#!/opt/venv/bin/python3 -E', '/opt/venv/bin/python3'),
    ('#!/usr/bin/env python3', 'ON THE PATH'),
    ('#!/bin/sh\n\'\'\'exec\' "/my venv/bin/python3" "$0" "$@"', '/my venv/bin/python3'),
    ('#!/bin/sh\n\'\'\'exec\' /opt/long/bin/python3 "$0" "$@"', '/opt/long/bin/python3'),
    ('#!/bin/sh\n\'\'\'exec\' "', '/bin/sh'),
    ('\x7fELF', str(PYTHON)),
    ('', str(PYTHON)),
])
def test_the_nodes_interpreter_is_that_of_the_installed_script(first, expected, tmp_path):
    script = tmp_path / 'install/lib/trt_segmentation/segmentation_node'
    script.parent.mkdir(parents=True)
    script.write_text(f'{first}\nimport sys\n')
    on_path = tmp_path / 'bin/python3'
    on_path.parent.mkdir()
    on_path.touch(mode=0o755)
    environ = {'AMENT_PREFIX_PATH': f'/opt/ros/none:{tmp_path}/install',
               'PATH': f'{on_path.parent}:/usr/bin'}
    assert interpreter.node_interpreter(environ) == Path(
        expected.replace('ON THE PATH', str(on_path)))


def test_without_a_workspace_it_is_this_one():
    assert interpreter.node_interpreter({'PATH': '/usr/bin'}) == PYTHON


def test_a_node_is_started_with_the_middleware_that_is_chosen():
    pytest.importorskip('rclpy', reason='starts a ROS node')
    environ = {name: value for name, value in os.environ.items() if name != 'RMW_IMPLEMENTATION'}
    environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 100)
    found = interpreter.start_node(PYTHON, environ)
    assert found.name.startswith('rmw_') and found.error == ''
    found = interpreter.start_node(PYTHON, {**environ, 'RMW_IMPLEMENTATION': 'rmw_nonsense_cpp'})
    assert found.name == '' and 'rmw_nonsense_cpp' in found.error


def test_a_node_that_cannot_be_started_says_why(tmp_path):
    environ = modules(tmp_path, rclpy="""
def get_rmw_implementation_identifier():
    return 'rmw_some_cpp'
def init(args):
    raise RuntimeError('no network')
""")
    found = interpreter.start_node(PYTHON, environ)
    assert found.name == 'rmw_some_cpp'
    assert found.error.endswith('code 1: RuntimeError: no network')
