# SPDX-License-Identifier: Apache-2.0
"""What the node's tests begin with; each module has its own, since some change what it holds."""

from __future__ import annotations

import pytest
from support.ros import BACKEND, built_bundle, direct_segmenter

SIZE = (64, 128)


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """Return the options of a node with a bundle whose engine is built."""
    path = tmp_path_factory.mktemp('built')
    bundle = built_bundle(path / 'bundle', path / 'store', size=SIZE)
    return {'bundle': bundle, 'store': path / 'store', 'backend': BACKEND,
            'precision': 'fp32', 'max_frame_age_ms': 5000}


@pytest.fixture(scope='module')
def direct(built):
    """Return the pipeline without DDS and without faults."""
    with direct_segmenter(built['bundle']) as segmenter:
        yield segmenter
