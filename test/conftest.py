# SPDX-License-Identifier: Apache-2.0
"""What every test session has."""

import os

from support.shm import shared_memory_as_found

__all__ = ['shared_memory_as_found']

# Some tests import ONNX Runtime by themselves, as an independent program; it would write into the
# home directory and look for a host.
os.environ['ORT_DISABLE_TELEMETRY'] = '1'
