# SPDX-License-Identifier: Apache-2.0
"""ROS domains: one that nothing else on this machine uses."""

from __future__ import annotations

import random
import socket

# 0 is everybody's; from 102 on, DDS's ports lie where Linux takes those of outgoing connections.
_DOMAINS = range(1, 102)
_reserved: list[socket.socket] = []


def reserve() -> int:
    """
    Return a domain that no process uses, as far as its ports show, and that nobody else reserves.

    It is kept until this process ends. If none is left, it is one that others use.
    """
    numbers = random.SystemRandom().sample(_DOMAINS, len(_DOMAINS))
    for number in numbers:
        # An abstract name (unix(7)): the kernel gives it to one process, and forgets it then.
        name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            name.bind(f'\0trt_segmentation/ros_domain/{number}')
        except OSError:
            name.close()
            continue
        _reserved.append(name)
        if _is_free(number):
            return number
        _reserved.pop().close()
    return numbers[0]


def _is_free(domain: int) -> bool:
    """Tell whether the ports of a domain's first participant are free (RTPS 2.5, 9.6.2)."""
    for offset in (10, 11):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(('127.0.0.1', 7400 + 250 * domain + offset))
            except OSError:
                return False
    return True
