# SPDX-License-Identifier: Apache-2.0
"""The report of a calibration: one page that shows whether to trust it."""


def html(bundle, document, calibrator, impressions):
    return '<!DOCTYPE html>'
