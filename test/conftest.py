# SPDX-License-Identifier: Apache-2.0
"""What every test session has."""

import os
import signal

from hypothesis import settings
from support.shm import shared_memory_as_found

from trt_segmentation.system import environment

__all__ = ['shared_memory_as_found']

# Some tests import ONNX Runtime by themselves, as an independent program; it would write into the
# home directory and look for a host.
os.environ['ORT_DISABLE_TELEMETRY'] = '1'
# On a machine with a GPU too the tests are of the CPU's path, but for those that name a backend.
if 'TRT_SEGMENTATION_BACKEND' not in os.environ:
    os.environ['CUDA_VISIBLE_DEVICES'] = ''

# How long an example may take depends on the machine, and on what else it does.
settings.register_profile('no deadline', deadline=None)
settings.load_profile('no deadline')

# Nodes of the tests hear and reach this machine only, over Fast DDS with the profile that comes
# with the package, whatever the shell is set up for.
_ALONE = {name: value for name, value in environment.alone(os.environ).items()
          if name not in environment.PROFILE_VARIABLES}
os.environ.clear()
os.environ.update(_ALONE, RMW_IMPLEMENTATION='rmw_fastrtps_cpp')


def pytest_sessionstart(session):
    """
    Let Ctrl-C end the session also where a tested command takes it for its own.

    A shell's background job ignores it, and so would each process that a test interrupts.
    """
    def interrupt(number, frame):
        session.shouldstop = 'interrupted'
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)
