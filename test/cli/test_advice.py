# SPDX-License-Identifier: Apache-2.0
"""Commands that messages tell people to type: complete, and with quoted paths."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
import re
import shlex

import pytest

import trt_segmentation
from trt_segmentation import cli

PACKAGE = Path(trt_segmentation.__file__).parent


def words_of(call: ast.Call) -> list[str]:
    """Return what a call of command_line joins; a value is X, and what may be there is not."""
    return [str(word.value) if isinstance(word, ast.Constant) else 'X' for word in call.args
            if not (isinstance(word, ast.Starred) and isinstance(word.value, ast.IfExp))]


def advice(tree: ast.AST) -> Iterator[list[str]]:
    """Yield the words of each command that stands behind a colon, or is made by command_line."""
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
              for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'command_line':
            yield words_of(node)
        text = ''
        if isinstance(node, ast.JoinedStr):
            text = ''.join(str(part.value) if isinstance(part, ast.Constant) else '{}'
                           for part in node.values)
        elif isinstance(node, ast.Constant) and id(node) not in inside:
            text = str(node.value)
        for command in re.findall(r': trt-segmentation\b([^,;()`]*)', text):
            yield shlex.split(command)


GIVEN = [pytest.param(words, id=f'{path.stem}: {" ".join(words)}')
         for path in sorted(PACKAGE.rglob('*.py'))
         for words in advice(ast.parse(path.read_text()))]


def test_many_commands_are_found():
    assert len(GIVEN) > 30


@pytest.mark.parametrize('words', GIVEN)
def test_a_command_in_a_message_is_complete(words):
    assert '{}' not in words, 'a value in a command goes through errors.command_line'
    parser = cli._parser(words[:1])
    verbs, = (action for action in parser._actions if isinstance(action.choices, dict))
    for action in verbs.choices[words[0]]._actions:
        action.choices = action.type = None  # X stands for any value
    parser.parse_args(words)
