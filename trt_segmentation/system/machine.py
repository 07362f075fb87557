# SPDX-License-Identifier: Apache-2.0
"""What this machine is, and how fast and how hot it runs just now."""

from __future__ import annotations

from collections.abc import Mapping
import os
from pathlib import Path
import platform
import subprocess

_CGROUP = Path('/sys/fs/cgroup')
_GPU_NOW = ('clocks.sm', 'clocks.mem', 'temperature.gpu', 'power.draw', 'utilization.gpu')


def describe() -> dict[str, str]:
    """Return processor, cores, memory, system and GPU in words; what is not known is left out."""
    found = {
        'processor': _processor(),
        'cores': str(len(os.sched_getaffinity(0))),
        'memory': f'{os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30:.0f} GB',
        'system': f'{platform.system()} {platform.release()} {platform.machine()}',
        'board': _text(Path('/proc/device-tree/model')),  # Jetson and DRIVE
        'gpu': _nvidia_smi('name', 'driver_version', 'memory.total'),
    }
    return {key: value for key, value in found.items() if value}


def available_bytes() -> int | None:
    """
    Return how much memory could be used now; None if the system does not say.

    Of a container, what its limit leaves: cached files are given back when memory is asked for
    (cgroup-v2.rst and memory.rst of the kernel's documentation).
    """
    found = [int(line.split()[1]) << 10 for line in _text(Path('/proc/meminfo')).splitlines()
             if line.startswith('MemAvailable:')]
    for limit, used, cached in (
            ('memory.max', 'memory.current', 'inactive_file'),
            ('memory/memory.limit_in_bytes', 'memory/memory.usage_in_bytes',
             'total_inactive_file')):
        values = _text(_CGROUP / limit), _text(_CGROUP / used)
        if all(value.isdigit() for value in values):  # else there is no limit
            counts = dict(line.split() for line in _text(
                (_CGROUP / used).parent / 'memory.stat').splitlines())
            found.append(int(values[0]) - int(values[1]) + int(counts.get(cached, 0)))
    return max(min(found), 0) if found else None


def state() -> dict[str, str]:
    """
    Return clocks, temperatures and load as they are now; what cannot be read is left out.

    Of the processor: MHz of the slowest and the fastest core, the frequency governor. Of thermal
    zones: degrees Celsius. Of an NVIDIA GPU: what nvidia-smi says.
    """
    clocks = [int(_text(path)) / 1000 for path in Path('/sys/devices/system/cpu').glob(
        'cpu[0-9]*/cpufreq/scaling_cur_freq') if _text(path).isdigit()]
    if not clocks:
        clocks = [float(line.rpartition(':')[2]) for line in _text(
            Path('/proc/cpuinfo')).splitlines() if line.startswith('cpu MHz')]
    found = {
        'cpu_mhz': f'{min(clocks):.0f} to {max(clocks):.0f}' if clocks else '',
        'governor': _text(Path('/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor')),
        'load': ' '.join(f'{value:.2f}' for value in os.getloadavg()),
        'gpu': _nvidia_smi(*_GPU_NOW),
    }
    for zone in sorted(Path('/sys/class/thermal').glob('thermal_zone*')):
        value = _text(zone / 'temp')
        if value.lstrip('-').isdigit():
            found[f'{_text(zone / "type") or zone.name}_celsius'] = f'{int(value) / 1000:.1f}'
    return {key: value for key, value in found.items() if value}


def load(found: Mapping[str, str]) -> float:
    """Return the mean number of busy processes that a `state` tells; 0 if it tells none."""
    return float((found.get('load') or '0').split()[0])


def _processor() -> str:
    """Return the processor's name."""
    for line in _text(Path('/proc/cpuinfo')).splitlines():
        if line.lower().startswith('model name'):
            return line.partition(':')[2].strip()
    return platform.processor()


def _nvidia_smi(*fields: str) -> str:
    """Return what nvidia-smi says of the GPUs, or ''."""
    try:
        query = subprocess.run(
            ['nvidia-smi', f'--query-gpu={",".join(fields)}', '--format=csv,noheader'],
            capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ''
    return '; '.join(query.stdout.strip().splitlines())


def _text(path: Path) -> str:
    """Return the text of a small file, or ''."""
    try:
        return path.read_text(errors='replace').strip().strip('\0')
    except OSError:
        return ''
