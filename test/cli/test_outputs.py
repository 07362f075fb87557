# SPDX-License-Identifier: Apache-2.0
"""Paths that a command writes to are refused before its work."""

from __future__ import annotations

import pytest

from trt_segmentation.cli import main

# BUNDLE, CACHE and the like are not there: whatever looks at them first would say so instead.
COMMANDS = [
    'export BUNDLE --for onnxruntime --output {}', 'init MODEL.onnx {}',
    'inspect CACHE --rewrite {} --tensorrt 10.3', 'preview BUNDLE --images IMAGES --output {}.png',
    'replay BUNDLE --bag BAG --output {}', 'replay BUNDLE --bag BAG --report {}',
    'replay BUNDLE --bag BAG --record-golden {}']


@pytest.mark.parametrize('command', COMMANDS)
def test_an_output_below_a_file_is_refused_first(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'text').touch()
    assert main(command.format('text/new').split()) == 2
    line, = capsys.readouterr().err.splitlines()
    assert ': text/new' in line and line.endswith('cannot be written: Not a directory')
