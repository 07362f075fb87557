# SPDX-License-Identifier: Apache-2.0
"""Bundles: a network with its contract, its calibration and its golden frames."""
