# SPDX-License-Identifier: Apache-2.0
"""What is said of each middleware's profile and limits."""

from __future__ import annotations

from pathlib import Path
import shlex
import shutil
import socket
import subprocess
from xml.etree import ElementTree

import pytest

from trt_segmentation.system import environment, middleware

CONFIG = Path(__file__).parents[2] / 'config'
LARGE = CONFIG.parent  # any directory on a disk is large enough to stand for /dev/shm
FASTDDS = {'FASTDDS_DEFAULT_PROFILES_FILE': str(CONFIG / 'fastdds.xml')}
CYCLONE = {'CYCLONEDDS_URI': f'file://{CONFIG}/cyclonedds.xml'}


def kernel(path: Path, **settings: int) -> Path:
    """Write settings as /proc/sys has them."""
    names = {'rmem_max': 'net/core/rmem_max', 'fragments': 'net/ipv4/ipfrag_high_thresh'}
    for name, value in {'rmem_max': 1 << 26, 'fragments': 1 << 27, **settings}.items():
        file = path / names[name]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'{value}\n')
    return path


def test_each_middleware_has_its_own_rules():
    assert any('PROFILES_FILE' in text for text in middleware.problems({}))
    assert any('PROFILES_FILE' in text for text in middleware.problems(
        CYCLONE, 'rmw_fastrtps_dynamic_cpp'))
    found = middleware.problems({'RMW_IMPLEMENTATION': 'rmw_cyclonedds_cpp'})
    assert any('CYCLONEDDS_URI' in text for text in found)
    assert not any('PROFILES_FILE' in text for text in found)
    assert middleware.problems({'RMW_IMPLEMENTATION': 'rmw_connextdds'}) == []
    assert 'not known' in middleware.notes({}, 'rmw_connextdds')[-1]


def test_fast_dds_in_the_recommended_environment():
    assert middleware.fastdds_problems(FASTDDS, LARGE) == []


@pytest.mark.parametrize('content, expected', [
    (None, 'cannot be read'),
    ('<dds', 'cannot be read'),
    ('<dds/>', 'no shared-memory transport'),
    ('SMALL', 'no shared-memory transport'),
])
def test_a_profile_of_fast_dds_that_does_not_carry_images(content, expected, tmp_path):
    profile = tmp_path / 'own.xml'
    if content == 'SMALL':
        content = (CONFIG / 'fastdds.xml').read_text()
        content = content.replace(content.partition('segment_size>')[2].partition('<')[0], '5000')
    if content is not None:
        profile.write_text(content)
    found, = middleware.fastdds_problems({'FASTDDS_DEFAULT_PROFILES_FILE': str(profile)}, LARGE)
    assert str(profile) in found and expected in found


def test_fast_dds_without_a_profile_is_told_the_full_path_of_ours():
    found, = middleware.fastdds_problems({}, LARGE)
    assert 'FASTDDS_DEFAULT_PROFILES_FILE is not set' in found
    assert found.endswith(': . ' + shlex.quote(f'{CONFIG}/environment.sh'))


@pytest.mark.parametrize('look, variable', [
    (middleware.fastdds_problems, 'FASTDDS_DEFAULT_PROFILES_FILE'),
    (middleware.cyclonedds_problems, 'CYCLONEDDS_URI')])
def test_what_is_advised_works_in_a_shell_where_the_path_has_blanks(
        look, variable, tmp_path, monkeypatch):
    place = tmp_path / 'Mein B\u00fcro %2F#1'
    shutil.copytree(CONFIG, place)
    monkeypatch.setattr(environment, 'config_path', lambda name: place / name)
    advice = look({})[0].rpartition('run: ')[2]
    run = subprocess.run(['bash', '-c', f'{advice} && env'], text=True, capture_output=True)
    assert run.returncode == 0, run.stderr
    values = dict(line.split('=', 1) for line in run.stdout.splitlines() if '=' in line)
    assert Path(values[variable].removeprefix('file://')).is_file()
    assert not any('cannot be read' in problem for problem in look(values))


def test_fast_dds_without_shared_memory(tmp_path):
    found, = middleware.fastdds_problems(FASTDDS, tmp_path / 'none')
    assert '0 MB' in found and '--shm-size' in found


def test_cyclone_dds_in_the_recommended_environment(tmp_path):
    assert middleware.cyclonedds_problems(CYCLONE, kernel(tmp_path)) == []
    inline = {'CYCLONEDDS_URI': '<CycloneDDS/>'}
    assert middleware.cyclonedds_problems(inline, kernel(tmp_path)) == []
    assert middleware.notes(CYCLONE, 'rmw_cyclonedds_cpp', kernel(tmp_path)) == []


@pytest.mark.parametrize('uri, expected', [
    ('', 'export CYCLONEDDS_URI=' + shlex.quote(f'file://{CONFIG}/cyclonedds.xml')),
    ('file:///nonexistent.xml', 'cannot be read'),
    ('/nonexistent.xml', 'cannot be read'),
    (f'file://{CONFIG}/fastdds.xml', 'expected <CycloneDDS>'),
    (f'file://{CONFIG}/cyclonedds.xml,/nonexistent.xml', 'cannot be read'),
])
def test_a_profile_of_cyclone_dds_that_is_of_no_use(uri, expected, tmp_path):
    found, = middleware.cyclonedds_problems({'CYCLONEDDS_URI': uri}, kernel(tmp_path))
    assert expected in found


@pytest.mark.parametrize('wanted', [
    '<SharedMemory><Enable>true</Enable></SharedMemory>',
    '<General><Interfaces><PubSubMessageExchange name="iox"/></Interfaces></General>'])
def test_shared_memory_of_cyclone_dds_needs_its_daemon(wanted, tmp_path):
    limits, memory = kernel(tmp_path / 'sys'), tmp_path / 'shm'
    memory.mkdir()
    environ = {'CYCLONEDDS_URI':
               f'<CycloneDDS xmlns="https://cdds.io/config"><Domain>{wanted}</Domain></CycloneDDS>'}
    found, = middleware.cyclonedds_problems(environ, limits, memory)
    assert 'iox-roudi' in found
    (memory / 'iceoryx_mgmt').touch()  # RouDi's own memory
    assert middleware.cyclonedds_problems(environ, limits, memory) == []
    off = {'CYCLONEDDS_URI': environ['CYCLONEDDS_URI'].replace('>true<', '>false<').replace(
        '"iox"', '"other"')}
    assert middleware.cyclonedds_problems(off, limits, tmp_path) == []


def test_the_kernels_limits(tmp_path):
    small = kernel(tmp_path, rmem_max=212992, fragments=4 << 20)
    found, = middleware.cyclonedds_problems(CYCLONE, small)
    assert 'net.core.rmem_max is 0.2 MB' in found and 'sysctl -w net.core.rmem_max=' in found
    for name in ('rmw_cyclonedds_cpp', 'rmw_fastrtps_cpp'):
        found, = middleware.notes(CYCLONE, name, small)
        assert 'ipfrag_high_thresh is 4 MB' in found
    assert not any('ipfrag' in text for text in middleware.notes({}, 'rmw_zenoh_cpp', small))


def test_a_kernel_that_does_not_say(tmp_path):
    assert middleware.cyclonedds_problems(CYCLONE, tmp_path) == []


def test_zenoh_needs_a_router(tmp_path):
    found, = middleware.zenoh_problems({}, lambda: False)
    assert 'rmw_zenohd' in found
    assert middleware.zenoh_problems({}, lambda: True) == []
    own = {'ZENOH_CONFIG_OVERRIDE': 'connect/endpoints=["tcp/10.0.0.1:7447"]'}
    assert middleware.zenoh_problems(own, lambda: False) == []
    lost = {'ZENOH_SESSION_CONFIG_URI': str(tmp_path / 'none.json5')}
    found, = middleware.zenoh_problems(lost, lambda: False)
    assert 'no such file' in found


def test_a_router_of_zenoh_is_one_that_takes_connections(monkeypatch):
    with socket.create_server(('localhost', 0)) as server:
        monkeypatch.setattr(middleware, '_ZENOH_PORT', server.getsockname()[1])
        assert middleware.zenoh_problems({}) == []
    with socket.socket() as nobody:  # else another process might take the port
        nobody.bind(('localhost', 0))
        monkeypatch.setattr(middleware, '_ZENOH_PORT', nobody.getsockname()[1])
        found, = middleware.zenoh_problems({})
    assert 'no Zenoh router answers' in found


def test_zenoh_without_shared_memory_is_noted(tmp_path):
    assert any('shared memory' in text for text in middleware.notes({}, 'rmw_zenoh_cpp'))
    config = tmp_path / 'session.json5'
    config.write_bytes(b'// f\xfcr Kameras\n{transport: {shared_memory: {enabled: true}}}')
    for environ in ({'ZENOH_SESSION_CONFIG_URI': str(config)},
                    {'ZENOH_CONFIG_OVERRIDE': 'transport/shared_memory/enabled=true'}):
        assert middleware.notes(environ, 'rmw_zenoh_cpp') == []


def test_the_profile_for_cyclone_dds_is_well_formed():
    """Whether Cyclone takes it is tried in test_cyclonedds_takes_its_profile."""
    root = ElementTree.parse(CONFIG / 'cyclonedds.xml').getroot()
    assert root.tag == '{https://cdds.io/config}CycloneDDS'


def test_cyclonedds_takes_its_profile(monkeypatch):
    """Cyclone refuses a profile with an element or a value that it does not know."""
    domain = pytest.importorskip('cyclonedds.domain', reason='pip install cyclonedds')
    text = (CONFIG / 'cyclonedds.xml').read_text()
    domain.Domain(101, text[text.index('<CycloneDDS'):])
    with pytest.raises(Exception, match='DDS'):
        domain.Domain(100, '<CycloneDDS><Domain><General><Bad>1</Bad></General></Domain>'
                           '</CycloneDDS>')


def test_paths_of_the_profiles_are_full():
    for name in ('environment.sh', 'fastdds.xml', 'cyclonedds.xml'):
        assert environment.config_path(name).is_absolute()
