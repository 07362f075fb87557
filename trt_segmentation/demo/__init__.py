# SPDX-License-Identifier: Apache-2.0
"""A sample network and the drawn road scenes that it was trained on."""
