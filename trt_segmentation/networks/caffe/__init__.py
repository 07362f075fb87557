# SPDX-License-Identifier: Apache-2.0
"""Networks of Caffe as ONNX: their two files, and what each layer computes."""
