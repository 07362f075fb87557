# SPDX-License-Identifier: Apache-2.0
"""What a machine, or a container on it, leaves to a process."""

from pathlib import Path

import pytest

from trt_segmentation.system import machine

MIB = 1 << 20


@pytest.mark.parametrize('files, expected', [
    ({}, 8192), ({'memory.max': 'max\n', 'memory.current': f'{900 * MIB}\n'}, 8192),
    ({'memory.max': f'{2048 * MIB}\n', 'memory.current': f'{1500 * MIB}\n',
      'memory.stat': f'anon {100 * MIB}\ninactive_file {1000 * MIB}\n'}, 1548),
    ({'memory.max': f'{100 * MIB}\n', 'memory.current': f'{200 * MIB}\n'}, 0),
    ({'memory.max': f'{64 << 40}\n', 'memory.current': '0\n'}, 8192),
    ({'memory/memory.limit_in_bytes': f'{512 * MIB}\n',
      'memory/memory.usage_in_bytes': f'{500 * MIB}\n',
      'memory/memory.stat': f'inactive_file {MIB}\ntotal_inactive_file {200 * MIB}\n'}, 212)])
def test_a_containers_limit_counts_without_what_it_gives_back(files, expected, tmp_path,
                                                              monkeypatch):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    text = machine._text
    monkeypatch.setattr(machine, '_CGROUP', tmp_path)
    monkeypatch.setattr(machine, '_text', lambda path: f'MemAvailable: {8 << 20} kB' if
                        path == Path('/proc/meminfo') else text(path))
    assert machine.available_bytes() == expected * MIB
