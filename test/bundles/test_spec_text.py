# SPDX-License-Identifier: Apache-2.0
"""Changing calibration.exclude leaves everything else as it is."""

import pytest
import yaml

from trt_segmentation.bundles.spec import with_exclude

NODES = ['/head/Conv', 'a: b', 'quote"d']


@pytest.mark.parametrize('text', [
    'version: 1\nmodel: x.onnx\n',
    'version: 1\nmodel: x.onnx',
    'version: 1\ncalibration: {}\nmodel: x.onnx\n',
    'version: 1\ncalibration: {ranges: {}, exclude: []}   # note\nmodel: x.onnx\n',
    'version: 1\ncalibration: {ranges: {a: 1}}\nmodel: x.onnx\n',
    'calibration:\n  ranges: {a: 2}  # known\n  exclude: [old]   # these\nversion: 1\n',
    'calibration:\n  exclude:\n  - old\n  - older\n  # after\n  ranges: {}\nversion: 1\n',
    'calibration:\n    ranges:\n        a: 1\n# end\nversion: 1\n',
    'calibration:\nversion: 1\n',
    'version: 1\ncalibration:\n  exclude:\n',
])
def test_sets_the_value_and_nothing_else(text):
    changed = with_exclude(text, NODES)
    before, after = yaml.safe_load(text), yaml.safe_load(changed)
    expected = {**before, 'calibration': {**(before.get('calibration') or {}), 'exclude': NODES}}
    assert after == expected
    for comment in ('# note', '# known', '# these', '# after', '# end'):
        assert (comment in changed) == (comment in text)
    assert yaml.safe_load(with_exclude(changed, [])) == {
        **expected, 'calibration': {**expected['calibration'], 'exclude': []}}
