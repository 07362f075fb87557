# SPDX-License-Identifier: Apache-2.0
"""Paths that a command writes to are refused before its work."""

from __future__ import annotations

import pytest

from trt_segmentation.cli import _parser, main

# BUNDLE, CACHE and the like are not there: whatever looks at them first would say so instead.
COMMANDS = [
    'export BUNDLE --for onnxruntime --output {}', 'init MODEL.onnx {}',
    'inspect CACHE --rewrite {} --tensorrt 10.3', 'preview BUNDLE --images IMAGES --output {}.png',
    'replay BUNDLE --bag BAG --output {}', 'replay BUNDLE --bag BAG --report {}',
    'replay BUNDLE --bag BAG --record-golden {}']


@pytest.mark.parametrize('command', COMMANDS)
def test_an_output_that_is_a_link_is_what_it_leads_to(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'there').mkdir()
    words = command.format('link').split()
    output, = (word for word in words if word.startswith('link'))
    (tmp_path / output).symlink_to(f'there/{output}')
    args = _parser(words[:1]).parse_args(words)
    assert str(tmp_path / 'there' / output) in vars(args).values()


def test_a_link_stays_where_its_target_is_written(tmp_path):
    old, link, new = tmp_path / 'old', tmp_path / 'link', tmp_path / 'new'
    old.write_text('TRT-8601-EntropyCalibration2\na: 3f800000\n')
    new.write_text('what was there')
    link.symlink_to('new')
    assert main(['inspect', str(old), '--rewrite', str(link), '--tensorrt', '10.3']) == 0
    assert link.is_symlink() and new.read_text().startswith('TRT-100300-')


@pytest.mark.parametrize('command', COMMANDS)
def test_an_output_below_a_file_is_refused_first(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'text').touch()
    assert main(command.format('text/new').split()) == 2
    line, = capsys.readouterr().err.splitlines()
    assert ': text/new' in line and line.endswith('cannot be written: Not a directory')
