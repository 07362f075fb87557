# SPDX-License-Identifier: Apache-2.0
"""ROS domains: one that nothing else on this machine uses."""

from __future__ import annotations

import errno
import functools
import random
import socket

from trt_segmentation.errors import InputError

# 0 is everybody's; from 102 on, DDS's ports lie where Linux takes those of outgoing connections.
_DOMAINS = range(1, 102)
_FIRST_PORT, _PORTS = 7400, 250  # of domain 0, and of each (RTPS 2.5, 9.6.2: PB and DG)
# An abstract name (unix(7)): the kernel gives it to one process, and forgets it with that.
_NAME = '\0trt_segmentation/ros_domain/{}'
_reserved: list[socket.socket] = []


@functools.cache
def reserve() -> int:
    """
    Return this process's domain, which no other uses, as far as ports show, and none reserves.

    It is kept until the process ends.

    :raises InputError: if none is left
    """
    for number in random.SystemRandom().sample(_DOMAINS, len(_DOMAINS)):
        name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            name.bind(_NAME.format(number))
        except OSError:
            name.close()
            continue
        if _is_free(number):
            _reserved.append(name)
            return number
        name.close()
    raise InputError(f'all ROS domains from {_DOMAINS[0]} to {_DOMAINS[-1]} are used on this '
                     'machine: end what is left of other nodes or tests')


def _is_free(domain: int) -> bool:
    """
    Tell whether all ports of a domain are free.

    Whoever began first may have ended, and left another participant with the next ports.
    """
    first = _FIRST_PORT + _PORTS * domain
    for port in range(first, first + _PORTS):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(('127.0.0.1', port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise InputError('127.0.0.1 cannot be used, over which nodes of one machine '
                                     f'talk: {error.strerror}; run: ip link set lo up') from None
                return False
    return True
