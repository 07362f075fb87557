# SPDX-License-Identifier: Apache-2.0
"""What every test session has."""

from support.shm import shared_memory_as_found

__all__ = ['shared_memory_as_found']
