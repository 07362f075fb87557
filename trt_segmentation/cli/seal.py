# SPDX-License-Identifier: Apache-2.0
"""
Vouch for a bundle after a change by hand: check it and write SHA256SUMS anew.

The cache must still fit the network and the preprocessing of model.yaml.
"""

from __future__ import annotations

import argparse

EXAMPLE = 'trt-segmentation seal my_bundle'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument('bundle', metavar='BUNDLE', help='the bundle directory')


def main(args: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    from trt_segmentation.bundles.bundle import Bundle
    from trt_segmentation.bundles.manifest import cache_of
    bundle = Bundle.open(args.bundle, verify=False)
    with bundle.lock():
        if bundle.cache_path.exists():
            cache_of(bundle)
        bundle.write_sums()
    print(f'{bundle.path}: sealed')
    return 0
