# SPDX-License-Identifier: Apache-2.0
"""Taking a calibrated network out of its bundle, as the files that other programs read."""
