# SPDX-License-Identifier: Apache-2.0
"""What the node does on a machine besides its work: it speaks DDS, and writes into its store."""

from __future__ import annotations

import os
from pathlib import Path
import re
import signal

import pytest

pytest.importorskip('rclpy', reason='the node needs ROS')

from support.ros import BACKEND, make_bundle, picture
from support.ros_peer import DOMAIN, NodeProcess, peer, RELIABLE
from support.strace import asked, STRACE, written

CLASS = '/segmentation/class_mask'
# DDS of one domain: these ports (7400 + 250 * domain + ..), or a group of multicast.
PORTS = range(7400 + 250 * int(DOMAIN), 7400 + 250 * (int(DOMAIN) + 1))


def own_addresses() -> set[str]:
    """Return the IPv4 addresses of this machine, as the kernel routes them."""
    return set(re.findall(r'\|-- (\S+)\n\s+/32 host LOCAL',
                          Path('/proc/net/fib_trie').read_text()))


@pytest.mark.skipif(not STRACE, reason='needs strace')
def test_a_node_that_builds_and_drives_asks_no_host_and_writes_into_its_store_alone(
        tmp_path, monkeypatch):
    home, store, trace = tmp_path / 'home', tmp_path / 'store', tmp_path / 'trace'
    for name in [name for name in os.environ if name.startswith(('XDG_', 'ORT_', 'MPL'))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv('HOME', str(home))
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path / 'log'))
    monkeypatch.setenv('PYTHONDONTWRITEBYTECODE', '1')
    home.mkdir()
    bundle = make_bundle(tmp_path / 'bundle')
    before = {path: path.stat().st_mtime_ns for path in bundle.rglob('*')}
    with NodeProcess(tmp_path / 'node.log', before=[STRACE[0], '-D', *STRACE[1:], str(trace)],
                     bundle=bundle, store=store, backend=BACKEND, precision='fp32',
                     max_frame_age_ms=10_000) as node:
        with peer() as other:
            other.subscribe(CLASS)
            publisher = other.publisher(qos=RELIABLE)
            other.wait_for_state('active', node)
            other.wait_for_match(publisher, node, CLASS)
            stamp = other.send(publisher, picture((64, 128), 1))
            other.wait(lambda: other.masks_of(CLASS, stamp), 'its mask', node)
            node.signal(signal.SIGTERM)
            assert node.wait() == 0
            other.wait(lambda: not traces_into(trace), 'the end of the trace')
    text = trace.read_text(errors='replace')
    assert 'onnxruntime' in text and 'htons' in text  # it has seen what it is to see
    strangers = [line for line in asked(text) if not speaks_dds(line)]
    assert strangers == []
    assert not re.search(r'"/etc/(resolv\.conf|hosts)"', text)  # nor is a name looked up
    outside = [path for path in written(text)
               if not Path(path).is_relative_to(store) and not path.startswith(
                   str(tmp_path / 'log'))]
    assert outside == []
    assert list(home.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in bundle.rglob('*')} == before


def traces_into(trace: Path) -> bool:
    """Tell whether strace still runs; it is in the node's group, and may end before the node."""
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        try:
            if os.fsencode(trace) in path.read_bytes().split(b'\0'):
                return True
        except OSError:
            continue  # it has just ended
    return False


def speaks_dds(line: str) -> bool:
    """Tell whether a line of the trace speaks to this domain on this machine, or to a group."""
    port, address = (re.search(pattern, line) for pattern in (
        r'htons\((\d+)\)', r'inet_addr\("([\d.]+)"\)'))
    return bool(port and address and int(port[1]) in PORTS and (
        address[1].startswith('239.255.') or address[1] in own_addresses()))
