# SPDX-License-Identifier: Apache-2.0
"""The environment for images, its shell form, and what the doctor says of it."""

from __future__ import annotations

from importlib import metadata
import importlib.util
import json
import os
from pathlib import Path
import shlex
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from trt_segmentation.system import environment

CONFIG = Path(__file__).parents[2] / 'config'
# The values measured to carry 2048x1024 images at 30 Hz without loss.
EXPECTED = {
    'FASTDDS_DEFAULT_PROFILES_FILE': str(CONFIG / 'fastdds.xml'),
    'FASTRTPS_DEFAULT_PROFILES_FILE': str(CONFIG / 'fastdds.xml'),
    'MALLOC_MMAP_THRESHOLD_': '268435456',
    'MALLOC_TRIM_THRESHOLD_': '1073741824',
    'MALLOC_TOP_PAD_': '67108864',
}


def installed(monkeypatch, version: str) -> None:
    """Let another version of rclpy be installed, or none."""
    def answer(name: str) -> str:
        assert name == 'rclpy'
        if not version:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(environment.metadata, 'version', answer)


@pytest.mark.parametrize('version', ['3.3.16', '7.1.6', '', 'strange'])
def test_variables_are_those_that_were_measured(version, monkeypatch):
    installed(monkeypatch, version)
    assert environment.variables() == EXPECTED


@pytest.mark.parametrize('version', ['9.1.2', '10.0.0'])
def test_fast_dds_3_does_not_get_the_name_that_it_warns_of(version, monkeypatch):
    installed(monkeypatch, version)
    assert environment.variables() == {name: value for name, value in EXPECTED.items()
                                       if not name.startswith('FASTRTPS')}


@pytest.mark.parametrize('name', environment.PROFILE_VARIABLES)
def test_the_users_own_settings_stay(name, monkeypatch):
    """A profile of the user's is not overruled by ours under Fast DDS's other name for it."""
    installed(monkeypatch, '7.1.6')
    own = {name: '/own.xml', 'HOME': '/root', 'MALLOC_TOP_PAD_': '1'}
    malloc = {key: value for key, value in EXPECTED.items() if key.startswith('MALLOC')}
    assert environment.completed(own) == {**malloc, **own}


@pytest.mark.parametrize('shell, distribution', [
    ('bash', ''), ('bash', 'humble'), ('bash', 'jazzy'), ('bash', 'kilted'), ('bash', 'lyrical'),
    ('sh', ''), ('sh', 'kilted')])
def test_the_shell_snippet_sets_the_same(shell, distribution, tmp_path):
    expected = dict(EXPECTED)
    if distribution in ('kilted', 'lyrical'):
        del expected['FASTRTPS_DEFAULT_PROFILES_FILE']
    # sh knows no name for a sourced file: the place for vehicles is taken.
    place = '/etc/trt_segmentation' if shell == 'sh' else str(tmp_path / 'config')
    expected = {name: value.replace(str(CONFIG), place) for name, value in expected.items()}
    environ = {'PATH': python_that_has(tmp_path, ''), 'ROS_DISTRO': distribution}
    if not distribution:
        del environ['ROS_DISTRO']
    found = sourced(shell, environ, tmp_path)
    assert {name: value for name, value in found.items() if name in EXPECTED} == expected
    assert not [name for name in found if name.startswith('_trt')]


@pytest.mark.parametrize('version', ['7.1.6', '9.1.2', '10.0.0'])
def test_without_a_distribution_the_shell_snippet_looks_at_rclpy_s_version(version, tmp_path):
    found = sourced('bash', {'PATH': python_that_has(tmp_path, version)}, tmp_path)
    assert ('FASTRTPS_DEFAULT_PROFILES_FILE' in found) == (version == '7.1.6')
    assert found['FASTDDS_DEFAULT_PROFILES_FILE'] == str(tmp_path / 'config/fastdds.xml')


@pytest.mark.parametrize('place', ['.venv/bin', '../../bin'])  # of a clone, of what was installed
@pytest.mark.parametrize('version', ['7.1.6', '9.1.2'])
def test_without_a_distribution_it_looks_into_the_environment_that_it_belongs_to(place, version,
                                                                                 tmp_path):
    """Which need not be on the PATH: a program of it may be started by its path."""
    home = tmp_path / 'share/trt_segmentation'
    for directory in (home, home / place, tmp_path / 'path'):
        directory.mkdir(parents=True, exist_ok=True)
    python_that_has(home / place, version)
    found = sourced('bash', {'PATH': python_that_has(tmp_path / 'path', '')}, home)
    assert ('FASTRTPS_DEFAULT_PROFILES_FILE' in found) == (version == '7.1.6')


def python_that_has(directory: Path, version: str) -> str:
    """Return a PATH with a python3 beside which a version of rclpy is installed, or none."""
    library = directory / 'library' / f'rclpy-{version}.dist-info'
    if version:
        library.mkdir(parents=True)
        (library / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: rclpy\n'
                                          f'Version: {version}\n')
    python = directory / 'python3'
    python.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(library.parent))} '
                      f'exec {shlex.quote(sys.executable)} -S "$@"\n')
    python.chmod(0o755)
    return f'{directory}:/usr/bin:/bin'


def sourced(shell: str, environ: dict[str, str], directory: Path) -> dict[str, str]:
    """Return the environment of a shell that has sourced the snippet, in a directory's config."""
    config = shutil.copytree(CONFIG, directory / 'config')
    snippet = shlex.quote(f'{config}/environment.sh')
    run = subprocess.run([shell, '-c', f'set -eu; . {snippet} && env'], text=True,
                         capture_output=True, check=True, env=environ, cwd=directory)
    return dict(line.split('=', 1) for line in run.stdout.splitlines() if '=' in line)


def test_the_profile_has_the_transports_that_were_measured():
    namespace = {'dds': 'http://www.eprosima.com'}
    root = ElementTree.parse(CONFIG / 'fastdds.xml').getroot()
    transports = {node.findtext('dds:type', None, namespace): node
                  for node in root.iterfind('.//dds:transport_descriptor', namespace)}
    assert set(transports) == {'SHM', 'UDPv4'}
    # Two images of 3840x2160 in three channels, and one of them in one piece.
    assert int(transports['SHM'].findtext('dds:segment_size', None, namespace)) == 67108864
    assert int(transports['SHM'].findtext('dds:maxMessageSize', None, namespace)) == 33554432
    participant = root.find('.//dds:participant', namespace)
    assert participant.get('is_default_profile') == 'true'
    assert participant.findtext('.//dds:useBuiltinTransports', None, namespace) == 'false'
    used = [node.text for node in participant.iterfind('.//dds:userTransports/*', namespace)]
    assert sorted(used) == sorted(
        node.findtext('dds:transport_id', None, namespace) for node in transports.values())


def test_missing_malloc_settings_are_named():
    assert environment.missing_malloc_settings(EXPECTED) == []
    assert environment.missing_malloc_settings({'MALLOC_TOP_PAD_': '1'}) == [
        'MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_']


def doctor(environ: dict[str, str]) -> tuple[int, dict]:
    run = subprocess.run([sys.executable, '-m', 'trt_segmentation', 'doctor', '--format', 'json'],
                         env=environ, text=True, capture_output=True)
    assert run.stderr == ''
    return run.returncode, json.loads(run.stdout)


def texts(report: dict, level: str, name: str = '') -> list[str]:
    return [found['text'] for found in report['findings']
            if found['level'] == level and name in ('', found['name'])]


def bare() -> dict[str, str]:
    return {name: value for name, value in os.environ.items()
            if name not in EXPECTED and name != 'RMW_IMPLEMENTATION'}


def test_the_doctor_ends_with_1_where_images_would_be_lost(tmp_path):
    environ = {**bare(), 'TRT_SEGMENTATION_STORE': str(tmp_path / 'store')}
    code, report = doctor(environ)
    assert code == 1 and report['healthy'] is False
    assert any('FASTDDS_DEFAULT_PROFILES_FILE' in text for text in texts(report, 'problem'))
    code, report = doctor({**environ, **EXPECTED})
    assert code == (1 if texts(report, 'problem') else 0)
    assert not any('PROFILES' in text for text in texts(report, 'problem'))
    names = {found['name'] for found in report['findings']}
    assert {'machine', 'interpreter', 'core', 'ros', 'dds', 'shared memory', 'file', 'gpu',
            'backend onnxruntime', 'store'} <= names
    # What a user without a workspace looks for.
    assert {str(CONFIG / name) for name in ('environment.sh', 'fastdds.xml', 'cyclonedds.xml')
            } == set(texts(report, 'ok', 'file'))


def test_the_doctor_does_not_believe_the_name_of_a_middleware():
    """PyPI has Fast DDS alone, so this one cannot be loaded; the node would end with code 102."""
    code, report = doctor({**bare(), 'RMW_IMPLEMENTATION': 'rmw_cyclonedds_cpp'})
    if importlib.util.find_spec('rmw_cyclonedds_cpp') is None and not os.environ.get('ROS_DISTRO'):
        problem, = texts(report, 'problem', 'dds')
        assert code == 1 and 'RMW_IMPLEMENTATION=rmw_cyclonedds_cpp cannot be used' in problem
    assert any('CYCLONEDDS_URI' in text for text in texts(report, 'problem', 'images'))


@pytest.mark.parametrize('module, part', [
    ('numpy', 'core'), ('cv2', 'core'), ('rclpy', 'ros'), ('onnx', 'engines'),
    ('rosbags', 'recordings')])
def test_the_doctor_imports_what_the_node_will(module, part, tmp_path):
    (tmp_path / f'{module}.py').write_text('raise ImportError("built for another world")')
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get('PYTHONPATH'))))
    code, report = doctor({**bare(), **EXPECTED, 'PYTHONPATH': path})
    assert code == 1
    assert any('is installed but of no use: ' in text and module in text
               for text in texts(report, 'problem', part))


def test_the_doctor_looks_where_ros2_run_does(tmp_path):
    """The installed script's interpreter counts, whatever runs the doctor."""
    script = tmp_path / 'lib/trt_segmentation/segmentation_node'
    script.parent.mkdir(parents=True)
    empty = tmp_path / 'empty'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', empty], check=True)
    # As pip writes it where the path has blanks, or is too long for the kernel.
    script.write_text(f'#!/bin/sh\n\'\'\'exec\' "{empty}/bin/python3" "$0" "$@"\n\' \'\'\'\n')
    environ = {name: value for name, value in bare().items() if name != 'PYTHONPATH'}
    path = str(CONFIG.parent)
    code, report = doctor({**environ, **EXPECTED, 'AMENT_PREFIX_PATH': str(tmp_path),
                           'PYTHONPATH': path})
    assert code == 1
    found, = texts(report, 'ok', 'interpreter')
    assert str(empty) in found and sys.executable in found
    assert any('numpy' in text for text in texts(report, 'problem', 'core'))


def test_the_doctor_refuses_a_store_that_others_can_write(tmp_path):
    store = tmp_path / 'store'
    store.mkdir()
    store.chmod(0o777)
    code, report = doctor({**os.environ, **EXPECTED, 'TRT_SEGMENTATION_STORE': str(store)})
    assert code == 1
    assert [found['level'] for found in report['findings'] if found['name'] == 'store'] == [
        'problem']
