# SPDX-License-Identifier: Apache-2.0
"""What rcl itself refuses of the arguments becomes one line that names what is to be written."""

from __future__ import annotations

import pytest

pytest.importorskip('rclpy', reason='its errors are put in words')
import rclpy

from trt_segmentation.ros import refused


def words_for(*arguments: str, capfd) -> str:
    """Return the words for what rcl raises for these arguments; it must log nothing."""
    with pytest.raises(RuntimeError) as caught, refused.said_once():
        rclpy.Context().init(['node', '--ros-args', *arguments])
    assert refused.MARK in str(caught.value)
    assert capfd.readouterr() == ('', '')
    words = refused.in_words(str(caught.value))
    assert '\n' not in words and '/src/' not in words.replace(arguments[-1], '')
    return words


PARAMETER, REMAPPING = 'expected -p NAME:=VALUE', 'expected -r FROM:=TO'


@pytest.mark.parametrize(('arguments', 'first', 'second'), [
    ('-p x', "-p x: found no ':='; ", PARAMETER), ('--param n:x', '--param n:x: fo', PARAMETER),
    ('-p :=3', '-p :=3: expected', PARAMETER), ('-p x:=', '-p x:=: expected', PARAMETER),
    ('-p', '-p: nothing follows it; ', PARAMETER), ('-p x:=[', '-p x:=[: Error', PARAMETER),
    ("-p it's", "-p it's: found", PARAMETER), ('-r x', "-r x: found no ':='; ", REMAPPING),
    ("--remap a'.b", "--remap a'.b: found", REMAPPING), ('-r', '-r: nothing', REMAPPING),
    ('--params-file', '--params-file: nothing follows', 'ros__parameters'),
    ('--log-level loud', '--log-level loud: ', 'debug, info, warn, error or fatal'),
    ('--log-level', '--log-level: nothing follows', 'debug, info'),
    ('-e', '-e: nothing follows', 'a name'),
])
def test_what_was_found_and_what_is_expected(arguments, first, second, capfd):
    words = words_for(*arguments.split(), capfd=capfd)
    assert words.startswith(first) and second in words


@pytest.mark.parametrize(('data', 'reason'), [
    (None, 'it cannot be read (No such file or directory)'),
    (b'a: \xff\n', 'unacceptable character #x00ff'),
    (b'a: [1\n', "line 2: expected ',' or ']'"),
    (b'a:\n\tb: 1\n', 'line 2: found character'),
    (b'segmentation:\n  bundle: x\n', 'at line 2'),  # which is YAML: rcl's own reason
    (b'- a\n', 'at line 1'),
])
def test_what_is_wrong_with_a_file(data, reason, tmp_path, capfd):
    path = tmp_path / 'a file.yaml'
    if data is not None:
        path.write_bytes(data)
    words = words_for('--params-file', str(path), capfd=capfd)
    assert words.startswith(f'--params-file {path}: ') and reason in words
    assert words.endswith('expected a YAML file with NODE: {ros__parameters: {NAME: VALUE}}')


def test_what_rcl_may_say_one_day_is_still_one_line():
    assert refused.in_words("failed: Couldn't parse\nanything") == "failed: Couldn't parse"


def test_levels_that_somebody_asks_for_stay():
    logging, context = rclpy.logging, rclpy.Context()
    with refused.said_once():
        context.init(['node', '--ros-args', '--log-level', 'rcl:=debug'])
    try:
        assert logging.get_logger_effective_level('rcl') == logging.LoggingSeverity.DEBUG
    finally:
        context.shutdown()
        logging.set_logger_level('rcl', logging.LoggingSeverity.UNSET)
    assert logging.get_logger_effective_level('rcl') == logging.LoggingSeverity.INFO
