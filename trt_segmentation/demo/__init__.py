# SPDX-License-Identifier: Apache-2.0
"""The demo: the whole story on one machine, with the real node over real DDS."""
