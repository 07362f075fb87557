# SPDX-License-Identifier: Apache-2.0
"""The sample network, and the drawn road scenes that it was trained on."""

from pathlib import Path

#: The sample network's bundle, not calibrated.
BUNDLE = Path(__file__).parent / 'bundle'
