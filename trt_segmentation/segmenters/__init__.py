# SPDX-License-Identifier: Apache-2.0
"""Segmenters: from an image to masks, on the CPU or on the GPU."""
