# SPDX-License-Identifier: Apache-2.0
"""Domains of ROS: nobody else's, and forgotten with their process."""

import errno
import socket
import subprocess
import sys
import uuid

import pytest

from trt_segmentation.errors import InputError
from trt_segmentation.system import domains

# With names of their own, since other tests may take what these give back.
RESERVE = """
import sys
from trt_segmentation.system import domains
domains._NAME = '\\0' + sys.argv[1]
print(domains.reserve(), flush=True)
input()
"""


@pytest.fixture
def name():
    """Return the form of names that only this test takes."""
    return f'\0trt_segmentation/test_domains/{uuid.uuid4()}/{{}}'


@pytest.fixture
def another(monkeypatch, name):
    """Return a function that reserves as one more process would."""
    monkeypatch.setattr(domains, '_NAME', name)
    monkeypatch.setattr(domains, '_reserved', [])
    yield domains.reserve.__wrapped__
    for reserved in domains._reserved:
        reserved.close()


# RTPS 2.5, 9.6.2: d0, where all hear; d1 and d3, each + 2 * participant.
@pytest.mark.parametrize('port', [0, 10, 11 + 2 * 7])
def test_a_domain_that_somebody_uses_is_not_taken(monkeypatch, another, port):
    # Where no other test looks for one, and the kernel takes no ports from (32768 to 60999).
    monkeypatch.setattr(domains, '_DOMAINS', range(215, 232))
    used, *free = numbers = [another() for _ in range(3)]
    for reserved in domains._reserved:
        reserved.close()
    monkeypatch.setattr(domains, '_DOMAINS', numbers)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as participant:
        participant.bind(('0.0.0.0', 7400 + 250 * used + port))
        assert {another(), another()} == set(free)
        with pytest.raises(InputError, match='all ROS domains from .* are used on this machine'):
            another()


def test_a_machine_whose_own_address_is_off_is_not_said_to_be_full(monkeypatch, another):
    """As in a network namespace in which nobody has set `lo` up."""
    class Socket(socket.socket):
        def bind(self, address):
            if self.family == socket.AF_INET:
                raise OSError(errno.EADDRNOTAVAIL, 'Cannot assign requested address')
            super().bind(address)

    monkeypatch.setattr(socket, 'socket', Socket)
    with pytest.raises(InputError, match='127.0.0.1 cannot be used.*Cannot assign.*lo up$'):
        another()


def test_a_process_has_one():
    assert domains.reserve() == domains.reserve()


def test_processes_that_start_at_once_take_different_ones_until_they_end(name):
    processes = [subprocess.Popen([sys.executable, '-c', RESERVE, name[1:]], text=True,
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                 for _ in range(12)]
    numbers = [int(process.stdout.readline()) for process in processes]
    assert len(set(numbers)) == 12 and set(numbers) <= set(range(1, 102))
    for process in processes:
        process.communicate('\n')
    for number in numbers:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reserved:
            reserved.bind(name.format(number))
