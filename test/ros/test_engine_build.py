# SPDX-License-Identifier: Apache-2.0
"""The child that builds: what it imports, and where from."""

import os
import time

from trt_segmentation.ros.engine_build import EngineBuild
from trt_segmentation.ros.supervisor import Kind


def test_the_child_imports_nothing_from_the_working_directory(tmp_path, monkeypatch):
    for name in ('numpy', 'yaml', 'argparse', 'cv2', 'trt_segmentation'):
        (tmp_path / f'{name}.py').write_text(
            'import pathlib; pathlib.Path(__file__).with_name("imported").touch()')
    monkeypatch.chdir(tmp_path)
    # An empty entry and a relative one mean the working directory too.
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(['', '.', os.environ.get('PYTHONPATH', '')]))
    lines = []
    build = EngineBuild('bundle', 'onnxruntime', 'fp32', 'store', None, lines.append)
    while not build.ended():
        time.sleep(0.01)
    kind, reason = build.outcome()
    assert kind is Kind.LATER
    # Names are taken from where the node was started all the same.
    assert f'{tmp_path}/bundle: no such bundle directory' in reason, (reason, lines)
    assert not (tmp_path / 'imported').exists()
