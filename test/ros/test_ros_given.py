# SPDX-License-Identifier: Apache-2.0
"""Parameters of a wrong type are refused, and sections that are for no node of this name named."""

from __future__ import annotations

import os
import subprocess
import sys

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


@pytest.mark.parametrize('rule, words', [
    ('share:=1', 'a number with a decimal point: write 1.0'), ('age:=3e2', 'integer: write 300'),
    ("age:='300'", 'integer: write 300'), ('age:=300.5', 'an integer'),
    ('age:=.nan', 'an integer'), ('age:=true', 'an integer'), ('strict:=1', 'true or false'),
    ('transport:=1', 'a text, in quotes'), ('cameras:=front', 'as [front, rear]')])
def test_what_to_write_is_said(rule, words):
    with pytest.raises(InputError) as caught:
        given.check(['node', '--ros-args', '-p', rule], TYPES)
    assert str(caught.value).endswith(words)


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


RENAMED = ('-r', '__ns:=/car', '--remap', '__node:=seg')


@pytest.mark.parametrize('rules, key, here', [
    ((), '/**', True), ((), 'segmentation', True), ((), '/segmentation', True),
    ((), '/*', True), ((), '/**/segmentation', True), ((), 'neighbour', False),
    ((), '/car/segmentation', False), ((), '/*/segmentation', False),
    (RENAMED, '/car/seg', True), (RENAMED, 'car/seg', True), (RENAMED, '/**/seg', True),
    (RENAMED, '/*/seg', True), (RENAMED, '/car/*', True), (RENAMED, '/**', True),
    (RENAMED, '/segmentation', False), (RENAMED, '/seg', False), (RENAMED, '/car/segm', False),
    (('-r', 'segmentation:__node:=seg'), '/seg', True),
    (('-r', 'other:__node:=seg'), '/segmentation', True),
    (('-r', '__name:=seg', '-r', '__node:=x', '-r', 'seg:__ns:=/a/b'), '/a/b/seg', True)])
def test_parameter_files(rules, key, here, tmp_path):
    path = tmp_path / 'a.yaml'
    path.write_text(f'{key}:\n  ros__parameters:\n    age: abc\n')
    argv = ['node', '--ros-args', *rules, '--params-file', str(path)]
    if here:
        with pytest.raises(InputError, match='a.yaml'):
            given.check(argv, TYPES)
        assert given.passed_over(argv) == []
    else:
        given.check(argv, TYPES)
        sentence, = given.passed_over(argv)
        assert f'{path}: no section of it is for this node' in sentence
        assert sentence.endswith(f'it has /{key.strip("/")}')


@pytest.mark.parametrize('keys, words', [
    (['/**', '/segmentatoin'], 'section /segmentatoin is not for this node, /segmentation'),
    (['/segmentaton', '/camera'], 'it has /segmentaton'),
    (['/a', '/b', '/c', '/d'], 'it has /a, /b, /c'),
    (['/**', '/camera'], ''), (['/segmentation', '/segmentation2'], ''), ([], '')])
def test_sections_of_other_nodes_are_named_where_this_one_may_be_meant(keys, words, tmp_path):
    path = tmp_path / 'a.yaml'
    path.write_text(''.join(f'{key}:\n  ros__parameters: {{age: 1}}\n' for key in keys))
    found = given.passed_over(['node', '--ros-args', '--params-file', str(path)])
    assert len(found) == bool(words) and all(sentence.endswith(words) or words in sentence
                                             for sentence in found)


def test_a_parameter_file_is_utf_8_whatever_the_locale_is(tmp_path):
    path = tmp_path / 'a.yaml'
    path.write_text('# für später\n/camera:\n  ros__parameters: {age: 1}\n', encoding='utf-8')
    said = subprocess.check_output(
        [sys.executable, '-c', 'import sys; from trt_segmentation.ros import given; '
         'print(*given.passed_over(sys.argv[1:]))', 'node', '--ros-args', '--params-file', path],
        env={**os.environ, 'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'})
    assert said.rstrip().endswith(b'it has /camera')


@pytest.mark.parametrize('text', [None, '', '[', 'a: 1', '/**: 3', '/**: {ros__parameters: 3}'])
def test_files_that_are_none_are_left_to_ros(text, tmp_path):
    path = tmp_path / 'a.yaml'
    if text is not None:
        path.write_text(text)
    given.check(['node', '--ros-args', '--params-file', str(path)], TYPES)


NAMES = ['image', 'front/image', '~/class_mask', '/diagnostics']


@pytest.mark.parametrize('rules', [(), RENAMED])
@pytest.mark.parametrize('rule, near', [
    ('imag:=/y', 'image'), ('fornt/image:=/y', 'front/image'), ('~/clas_mask:=/y', '~/class_mask'),
    ('image:=/y', ''), ('~/class_mask:=/y', ''), ('/diagnostics:=/y', ''), ('tf:=/y', ''),
    ('/diagnostic:=/y', '/diagnostics'), ('image', ''), ('neighbour:imag:=/y', '')])
def test_a_remapping_of_what_the_node_nearly_has_is_named(rule, near, rules):
    found = given.missed(['node', '--ros-args', *rules, '-r', rule, '-p', 'x:=1'], NAMES)
    assert len(found) == bool(near)
    assert all(sentence.startswith(f'-r {rule}: this node has no topic ')
               and sentence.endswith(f'did you mean {near}?') for sentence in found)


@pytest.mark.parametrize('rule, named', [
    ('/segmentation/class_msk', 1), ('segmentation:imag', 1), ('/car/imag', 0), ('/imag', 1)])
def test_a_remapping_is_compared_as_ros_completes_it(rule, named):
    found = given.missed(['node', '--ros-args', '-r', f'{rule}:=/y', '-p', 'x:=1'], NAMES)
    assert len(found) == named
