# SPDX-License-Identifier: Apache-2.0
"""Recordings and pictures: what is read of other people's files and messages."""
