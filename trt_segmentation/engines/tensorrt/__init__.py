# SPDX-License-Identifier: Apache-2.0
"""TensorRT and TensorRT-RTX: the graph they get, the build, the proof, the engine."""
