# SPDX-License-Identifier: Apache-2.0
"""What reports say of where their figures come from."""

from __future__ import annotations

import shlex

import pytest

from trt_segmentation import reports


@pytest.mark.parametrize('given, shown', [
    ('/home/anna/secret project/drives', '.../drives'),
    ('~/bundles/mine', '.../mine'),
    ('--images=/home/anna/drives/', '--images=.../drives'),
    ('--limit=0.3', '--limit=0.3'),
    ('my_bundle', 'my_bundle'),
    ('drives/day 1', 'drives/day 1'),
    ('--count', '--count'),
])
def test_no_directories_above_what_was_named(given, shown, monkeypatch):
    monkeypatch.setenv('HOME', '/home/anna')
    monkeypatch.setattr('sys.argv', ['/home/anna/venv/bin/trt-segmentation', 'evaluate', given])
    found = reports.provenance()
    assert shlex.split(found['command']) == ['trt-segmentation', 'evaluate', shown]
    assert 'anna' not in str(found)


def test_a_bundle_goes_by_its_name(tmp_path):
    class Bundle:
        path, sha256, model_sha256 = tmp_path / 'fcn', 'a', 'b'

    assert reports.provenance(Bundle)['bundle'] == 'fcn'
