# SPDX-License-Identifier: Apache-2.0
"""What the package says of itself, in each place that says it."""

from __future__ import annotations

import json
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import pytest
import yaml

import trt_segmentation
from trt_segmentation.errors import counted

ROOT = Path(__file__).parents[2]


def setup(*options: str) -> list[str]:
    run = subprocess.run([sys.executable, 'setup.py', '--quiet', *options], cwd=ROOT, text=True,
                         capture_output=True, check=True)
    return run.stdout.splitlines()


def test_one_version_and_one_licence():
    package = ElementTree.parse(ROOT / 'package.xml').getroot()
    assert setup('--version', '--license') == [trt_segmentation.__version__, 'Apache-2.0']
    assert package.findtext('version') == trt_segmentation.__version__
    assert package.findtext('license') == 'Apache-2.0'
    newest = re.search(r'^## (\S+)', (ROOT / 'CHANGELOG.md').read_text(), re.MULTILINE)
    assert newest.group(1) == trt_segmentation.__version__


def test_the_hook_of_colcon_is_where_setup_puts_it():
    hooks = json.loads((ROOT / 'colcon.pkg').read_text())['hooks']
    source = (ROOT / 'setup.py').read_text()
    assert hooks == ['share/trt_segmentation/hook/commands.dsv']
    assert "(f'share/{package_name}/hook', ['resource/commands.dsv'])" in source


def constraints(name: str) -> set[str]:
    """Return the releases, as name==version with its marker."""
    lines = (ROOT / 'constraints' / name).read_text().splitlines()
    return {line.removesuffix('\\').strip() for line in lines if re.match(r'[A-Za-z]', line)}


def test_the_constraints_with_and_without_hashes_are_the_same():
    assert constraints('desk.txt') == constraints('desk-hashes.txt')
    text = (ROOT / 'constraints/desk-hashes.txt').read_text()
    for entry in re.split(r'\n(?=[A-Za-z])', text)[1:]:
        assert re.search(r'--hash=sha256:[0-9a-f]{64}\b', entry), entry.splitlines()[0]


REQUIREMENTS = """
import json, setuptools
from distutils.core import run_setup
found = run_setup('setup.py', stop_after='init')
extras = [name for extra in ('ros', 'cpu', 'test') for name in found.extras_require[extra]]
print(json.dumps([*found.install_requires, *extras]))
"""


def test_the_constraints_fit_what_setup_asks_for():
    from packaging.requirements import Requirement
    run = subprocess.run([sys.executable, '-c', REQUIREMENTS], cwd=ROOT, text=True,
                         capture_output=True, check=True)
    pinned = {}
    for line in constraints('desk.txt'):
        requirement = Requirement(line)
        pinned.setdefault(requirement.name, []).append(next(iter(requirement.specifier)).version)
    for requirement in map(Requirement, json.loads(run.stdout)):
        name = requirement.name.lower().replace('_', '-')
        assert name in pinned, f'run: make constraints ({name} is not there)'
        for version in pinned[name]:
            assert version in requirement.specifier, f'run: make constraints ({name} {version})'


def test_numpy_2_stays_away_from_distributions_that_are_built_for_1():
    from packaging.requirements import Requirement
    requirement, = (Requirement(line) for line in constraints('ros.txt'))
    assert requirement.name == 'numpy'
    for python, allowed in (('3.10', False), ('3.11', False), ('3.12', False), ('3.13', True),
                            ('3.14', True)):
        applies = requirement.marker.evaluate({'python_version': python})
        assert applies is not allowed, python
    assert '1.26.4' in requirement.specifier and '2.0.0' not in requirement.specifier


def test_the_forms_of_github_are_yaml():
    for path in (ROOT / '.github').rglob('*.yml'):
        assert yaml.safe_load(path.read_text()), path


@pytest.mark.parametrize(('number', 'words', 'said'), [
    (0, ('frame',), '0 frames'), (1, ('frame',), '1 frame'), (2, ('frame',), '2 frames'),
    (1, ('class', 'classes'), '1 class'), (2, ('class', 'classes'), '2 classes')])
def test_what_is_counted_has_its_plural(number, words, said):
    assert counted(number, *words) == said


@pytest.mark.skipif(not shutil.which('make'), reason='of the Makefile')
def test_an_environment_that_was_made_for_something_else_is_made_anew(tmp_path):
    for name in ('Makefile', 'setup.py', 'setup.cfg', 'pyproject.toml'):
        shutil.copy(ROOT / name, tmp_path)

    def makes(*words, **variables):
        environ = {name: value for name, value in os.environ.items() if not name.startswith(
            ('MAKE', 'MFLAGS', 'AMENT_'))}
        done = subprocess.run(['make', *words, f'PYTHON={sys.executable}'], cwd=tmp_path,
                              env={**environ, **variables}, capture_output=True, text=True,
                              check=True)
        return re.findall('-m venv .*', done.stdout)

    assert [line.split() for line in makes('-n', 'setup')] == [['-m', 'venv', '.venv']]
    (tmp_path / '.venv').mkdir()
    makes('--touch', 'setup')
    assert makes('-n', 'test') == []
    sourced = {'AMENT_PREFIX_PATH': '/opt/ros/jazzy'}
    assert [line.split() for line in makes('-n', 'test', **sourced)] == [
        ['-m', 'venv', '--system-site-packages', '--clear', '.venv']]
    os.utime(tmp_path / 'setup.py', (2**31, 2**31))  # newer: what it asks for is added
    assert [line.split() for line in makes('-n', 'setup')] == [['-m', 'venv', '.venv']]
