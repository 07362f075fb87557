# SPDX-License-Identifier: Apache-2.0
"""The published table, for this machine: benchmarks/feet.py."""

import json
from pathlib import Path
import subprocess
import sys

import pytest

from trt_segmentation.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[2] / 'benchmarks'))
from feet import metres_per_second, published_table  # noqa: E402


@pytest.mark.parametrize(('text', 'value'), [
    ('35mph', 35 * 1609.344 / 3600), ('50km/h', 50 / 3.6), ('50 kmh', 50 / 3.6), ('14m/s', 14)])
def test_speeds(text, value):
    assert metres_per_second(text) == pytest.approx(value)


@pytest.mark.parametrize('text', ['', '35', 'mph', '-3mph', '0mph', '1.2.3mph', '3 knots'])
def test_what_is_no_speed_is_refused(text):
    with pytest.raises(InputError, match='expected for instance 35mph'):
        metres_per_second(text)


def test_the_published_frame_travels_about_twelve_feet():
    """242 ms at 35 mph, as the publication has it."""
    frame = {'p50': 242.0, 'p99': 250.0}
    result = {'engines': {'opencv': {'stages': {'total': frame}},
                          'int8': {'stages': {'total': {'p50': 24.2, 'p99': 30.0}}}}}
    evaluation = {'engines': {'fp32': {'mean_class_iou': 0.484, 'mean_category_iou': 0.769},
                              'int8': {'mean_class_iou': 0.481, 'mean_category_iou': 0.768}}}
    first, second = published_table(result, '35mph', evaluation)
    assert first['feet'] == pytest.approx(12.4, abs=0.05)
    assert first['metres'] == pytest.approx(0.242 * 15.6464)
    assert (first['class_iou'], second['class_iou']) == (0.484, 0.481)
    assert second['speedup'] == pytest.approx(10)
    assert second['category_iou'] == 0.768


def test_the_script_prints_the_table(tmp_path):
    total = {'p50': 24.2, 'p99': 30.0}
    (tmp_path / 'benchmark.json').write_text(json.dumps({'schema': 1, 'engines': {
        'fp32': {'stages': {'total': total}, 'samples_ms': {'total': [24.2]}}}}))
    (tmp_path / 'evaluation.json').write_text(json.dumps({'engines': {
        'fp32': {'mean_class_iou': 0.4321, 'mean_category_iou': 0.7}}}))
    script = Path(__file__).parents[2] / 'benchmarks' / 'feet.py'
    done = subprocess.run(
        [sys.executable, script, tmp_path / 'benchmark.json', '--evaluation',
         tmp_path / 'evaluation.json', '--speed', '50km/h', '--format', 'markdown'],
        capture_output=True, text=True, check=True)
    assert '| fp32 | 43.21 | 70.00 | 24.20 | 30.00 | 1.00 | 0.34 | 1.1 |' in done.stdout
    bad = subprocess.run([sys.executable, script, tmp_path / 'nothing.json'],
                         capture_output=True, text=True, check=False)
    assert bad.returncode == 2 and 'nothing.json' in bad.stderr
