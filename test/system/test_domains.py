# SPDX-License-Identifier: Apache-2.0
"""Domains of ROS: nobody else's, and forgotten with their process."""

import socket
import subprocess
import sys

from trt_segmentation.system import domains

RESERVE = """
from trt_segmentation.system import domains
print(domains.reserve(), flush=True)
input()
"""


def test_a_domain_that_somebody_uses_is_not_taken(monkeypatch):
    monkeypatch.setattr(domains, '_reserved', [])
    used, *free = numbers = [domains.reserve() for _ in range(3)]
    for name in domains._reserved:
        name.close()
    domains._reserved.clear()
    monkeypatch.setattr(domains, '_DOMAINS', numbers)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as participant:
        participant.bind(('0.0.0.0', 7400 + 250 * used + 10))
        assert {domains.reserve(), domains.reserve()} == set(free)
        assert domains.reserve() in numbers  # none is left
    for name in domains._reserved:
        name.close()


def test_processes_that_start_at_once_take_different_ones_until_they_end():
    processes = [subprocess.Popen([sys.executable, '-c', RESERVE], text=True,
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                 for _ in range(12)]
    numbers = [int(process.stdout.readline()) for process in processes]
    assert len(set(numbers)) == 12 and set(numbers) <= set(range(1, 102))
    for process in processes:
        process.communicate('\n')
    for number in numbers:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as name:
            name.bind(f'\0trt_segmentation/ros_domain/{number}')
