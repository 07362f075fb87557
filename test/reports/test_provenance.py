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
    ('/home/anna/date=2027-01-01/drive', '.../drive'),
    ('--images=/home/anna/date=2027-01-01/drive', '--images=.../drive'),
    ('--engine=int8=~/engine', '--engine=int8=.../engine'),
    ('my_bundle', 'my_bundle'),
    ('drives/day 1', 'drives/day 1'),
    ('--count', '--count'),
])
def test_no_directories_above_what_was_named(given, shown, monkeypatch):
    monkeypatch.setenv('HOME', '/home/anna')
    monkeypatch.setattr('sys.argv', ['/home/anna/venv/bin/trt-segmentation', 'evaluate', given])
    found = reports.provenance()
    assert shlex.split(found['command']) == ['trt-segmentation', 'evaluate', shown]
    assert 'anna' not in str({**found, 'host': ''})  # which may be of hers


def test_a_bundle_goes_by_its_name(tmp_path):
    class Bundle:
        path, sha256, model_sha256 = tmp_path / 'fcn', 'a', 'b'

    assert reports.provenance(Bundle)['bundle'] == 'fcn'


@pytest.mark.parametrize('paths, text, shown', [
    (('/home/anna/drives/', None), '3 from /home/anna/drives/', '3 from .../drives/'),
    (('/home/anna/bag',), '/home/anna/bag/bag_0.mcap: cut short', '.../bag/bag_0.mcap: cut short'),
    (('drives',), '3 pictures from drives, on /front/image_raw', None)])
def test_what_was_named_by_its_whole_path_is_shown_by_its_name(paths, text, shown):
    assert reports.without_directories(text, *paths) == (shown or text)
