# SPDX-License-Identifier: Apache-2.0
"""Parameters of a wrong type are refused, whatever else is given under the same name."""

from __future__ import annotations

import pytest

from trt_segmentation.errors import InputError
from trt_segmentation.ros import given

TYPES = {'age': int, 'strict': bool, 'share': float, 'transport': str, 'cameras': list}


@pytest.mark.parametrize('rule', [
    'age:=abc', 'age:=300.5', 'age:=true', 'age:="300"', 'age:=1_000', 'age:=2026-11-27',
    'strict:=maybe', 'strict:=1',
    'share:=much', 'share:=1', 'transport:=1', 'transport:=on', 'cameras:=front',
    'cameras:=[1, 2]', 'segmentation:age:=abc', '/segmentation:age:=abc', '/**:age:=abc'])
@pytest.mark.parametrize('option', ['-p', '--param'])
def test_a_wrong_type_is_named(option, rule):
    with pytest.raises(InputError, match=f'parameter {rule.partition(":=")[0].split(":")[-1]}: '):
        given.check(['node', '--ros-args', option, rule, '-p', 'x:=1'], TYPES)


@pytest.mark.parametrize('rule', [
    'age:=300', 'age:=0x10', 'strict:=yes', 'strict:=y', 'strict:=off', 'share:=0.5',
    'share:=2e-1', 'share:=.inf', 'share:=08', 'share:=5.', 'transport:=2026-11-27',
    'transport:=1_000', 'transport:=12:30', 'transport:==', 'transport:=raw',
    "transport:='1'", 'cameras:=[front, rear]',
    'cameras:=[]', 'age:=', 'other:=1', 'neighbour:age:=abc', 'age:=[', 'age'])
def test_the_right_type_and_what_ros_judges_pass(rule):
    given.check(['node', '--ros-args', '-p', rule], TYPES)


def test_outside_of_ros_arguments_nothing_is_read():
    given.check(['node', '-p', 'age:=abc', '--ros-args', '-p', 'age:=1', '--', '-p', 'age:=b'],
                TYPES)


@pytest.mark.parametrize('key, refused', [
    ('/**', True), ('segmentation', True), ('/segmentation', True), ('neighbour', False)])
def test_parameter_files(key, refused, tmp_path):
    path = tmp_path / 'a.yaml'
    path.write_text(f'{key}:\n  ros__parameters:\n    age: abc\n')
    argv = ['node', '--ros-args', '--params-file', str(path)]
    if refused:
        with pytest.raises(InputError, match='a.yaml'):
            given.check(argv, TYPES)
    else:
        given.check(argv, TYPES)


@pytest.mark.parametrize('text', [None, '', '[', 'a: 1', '/**: 3', '/**: {ros__parameters: 3}'])
def test_files_that_are_none_are_left_to_ros(text, tmp_path):
    path = tmp_path / 'a.yaml'
    if text is not None:
        path.write_text(text)
    given.check(['node', '--ros-args', '--params-file', str(path)], TYPES)
