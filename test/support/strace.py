# SPDX-License-Identifier: Apache-2.0
"""What a process and its children asked of the kernel, as strace writes it down."""

from __future__ import annotations

import re
import shutil

_PATH = shutil.which('strace')
STRACE = [_PATH, '-f', '--seccomp-bpf', '-q', '-s', '200', '-e',
          'trace=connect,sendto,sendmsg,sendmmsg,openat,open,creat,mkdir,mkdirat', '-o'
          ] if _PATH else []
"""Put it, and a file for the trace, before a command; empty where there is no strace."""

# The kernel's own, which are no files, and what a library writes to share memory.
_NO_FILES = ('/dev/null', '/dev/shm', '/proc/')


def asked(trace: str) -> list[str]:
    """Return the lines that speak to another host, or to a server of names on this one."""
    return [line for line in trace.splitlines()
            if re.search(r'(connect|sendto|sendmsg|sendmmsg)\(', line)
            and re.search(r'AF_INET|htons\(53\)', line)]


def written(trace: str) -> list[str]:
    """Return the paths of files that were opened for writing, and of directories made."""
    found = re.findall(r'(?:open(?:at)?\([^"]*"([^"]*)", [A-Z_|]*(?:O_WRONLY|O_RDWR|O_CREAT)'
                       r'|creat\("([^"]*)"|mkdir(?:at)?\([^"]*"([^"]*)").*\) = \d', trace)
    return [path for path in map(''.join, found) if not path.startswith(_NO_FILES)]
