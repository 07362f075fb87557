# SPDX-License-Identifier: Apache-2.0
"""Run the command line as `python -m trt_segmentation`."""

import sys

from trt_segmentation.start import command

sys.exit(command())
