# SPDX-License-Identifier: Apache-2.0
"""Evaluation: how good masks are, how long they take, what a recording gives."""
