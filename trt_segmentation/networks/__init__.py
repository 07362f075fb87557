# SPDX-License-Identifier: Apache-2.0
"""Networks: reading ONNX, one view of a graph, and writing a calibration into it."""
