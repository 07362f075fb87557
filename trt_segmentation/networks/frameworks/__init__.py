# SPDX-License-Identifier: Apache-2.0
"""Networks of TensorFlow and PyTorch as ONNX: converted by these, in a process of their own."""
