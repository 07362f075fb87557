# SPDX-License-Identifier: Apache-2.0
"""The environment for images, its shell form, and what the doctor says of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
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
LARGE = CONFIG.parent  # any directory on a disk is large enough to stand for /dev/shm


def test_variables_are_those_that_were_measured():
    assert environment.variables() == EXPECTED


def test_the_users_own_settings_stay():
    own = {'FASTDDS_DEFAULT_PROFILES_FILE': '/own.xml', 'HOME': '/root'}
    assert environment.completed(own) == {**EXPECTED, **own}


@pytest.mark.parametrize('shell', ['bash', 'sh'])
def test_the_shell_snippet_sets_the_same(shell, tmp_path):
    if shell == 'sh':  # knows no name for a sourced file: the place for vehicles is taken
        expected = {name: value.replace(str(CONFIG), '/etc/trt_segmentation')
                    for name, value in EXPECTED.items()}
    else:
        expected = EXPECTED
    run = subprocess.run([shell, '-c', f'. {CONFIG}/environment.sh && env'], text=True,
                         capture_output=True, check=True, env={'PATH': os.environ['PATH']},
                         cwd=tmp_path)
    found = dict(line.split('=', 1) for line in run.stdout.splitlines() if '=' in line)
    assert {name: found[name] for name in expected} == expected
    assert not [name for name in found if name.startswith('_trt')]


def test_the_profile_has_the_transports_that_were_measured():
    namespace = {'dds': 'http://www.eprosima.com'}
    root = ElementTree.parse(CONFIG / 'fastdds.xml').getroot()
    transports = {node.findtext('dds:type', None, namespace): node
                  for node in root.iterfind('.//dds:transport_descriptor', namespace)}
    assert set(transports) == {'SHM', 'UDPv4'}
    assert int(transports['SHM'].findtext('dds:segment_size', None, namespace)) == 134217728
    participant = root.find('.//dds:participant', namespace)
    assert participant.get('is_default_profile') == 'true'
    assert participant.findtext('.//dds:useBuiltinTransports', None, namespace) == 'false'
    used = [node.text for node in participant.iterfind('.//dds:userTransports/*', namespace)]
    assert sorted(used) == sorted(
        node.findtext('dds:transport_id', None, namespace) for node in transports.values())


def test_nothing_to_mend_in_the_recommended_environment():
    assert environment.problems(EXPECTED, LARGE) == []


def test_another_middleware_has_its_own_rules():
    assert environment.problems({'RMW_IMPLEMENTATION': 'rmw_cyclonedds_cpp'}, LARGE) == []


def test_each_fault_is_named(tmp_path):
    def problems(changes, shared_memory=LARGE):
        environ = {**EXPECTED, **changes}
        found = environment.problems({k: v for k, v in environ.items() if v}, shared_memory)
        assert len(found) == 1, found
        return found[0]

    unset = dict.fromkeys(environment.PROFILE_VARIABLES)
    assert 'FASTDDS_DEFAULT_PROFILES_FILE is not set' in problems(unset)
    assert 'missing.xml' in problems(
        dict.fromkeys(environment.PROFILE_VARIABLES, str(tmp_path / 'missing.xml')))
    small = tmp_path / 'small.xml'
    small.write_text((CONFIG / 'fastdds.xml').read_text().replace('134217728', '524288'))
    assert 'segment' in problems(dict.fromkeys(environment.PROFILE_VARIABLES, str(small)))
    small.write_text('<dds')
    assert 'cannot be read' in problems(dict.fromkeys(environment.PROFILE_VARIABLES, str(small)))
    assert '0 MB' in problems({}, tmp_path / 'none')


def test_missing_malloc_settings_are_named():
    assert environment.missing_malloc_settings(EXPECTED) == []
    assert environment.missing_malloc_settings({'MALLOC_TOP_PAD_': '1'}) == [
        'MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_']


def doctor(environ: dict[str, str]) -> tuple[int, dict]:
    run = subprocess.run([sys.executable, '-m', 'trt_segmentation', 'doctor', '--format', 'json'],
                         env=environ, text=True, capture_output=True)
    assert run.stderr == ''
    return run.returncode, json.loads(run.stdout)


def test_the_doctor_ends_with_1_where_images_would_be_lost(tmp_path):
    environ = {name: value for name, value in os.environ.items() if name not in EXPECTED}
    environ['TRT_SEGMENTATION_STORE'] = str(tmp_path / 'store')
    code, report = doctor(environ)
    assert code == 1 and report['healthy'] is False
    texts = [found['text'] for found in report['findings'] if found['level'] == 'problem']
    assert any('FASTDDS_DEFAULT_PROFILES_FILE' in text for text in texts)
    code, report = doctor({**environ, **EXPECTED})
    texts = [found['text'] for found in report['findings'] if found['level'] == 'problem']
    assert code == (1 if texts else 0)
    assert not any('PROFILES' in text for text in texts)
    names = {found['name'] for found in report['findings']}
    assert {'machine', 'ros', 'gpu', 'backend onnxruntime', 'store'} <= names


def test_the_doctor_refuses_a_store_that_others_can_write(tmp_path):
    store = tmp_path / 'store'
    store.mkdir()
    store.chmod(0o777)
    code, report = doctor({**os.environ, **EXPECTED, 'TRT_SEGMENTATION_STORE': str(store)})
    assert code == 1
    assert [found['level'] for found in report['findings'] if found['name'] == 'store'] == [
        'problem']
