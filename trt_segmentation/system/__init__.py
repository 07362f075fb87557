# SPDX-License-Identifier: Apache-2.0
"""The system: files, directories, memory, libraries, middleware and progress."""
