# SPDX-License-Identifier: Apache-2.0
"""The GPU's side of segmentation: memory, the fused kernels, and the segmenter around them."""
