# SPDX-License-Identifier: Apache-2.0
"""Changing one value in the text of a model.yaml; comments and the rest stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
import json

import yaml


def with_exclude(text: str, exclude: Sequence[str]) -> str:
    """
    Return the text with calibration.exclude set.

    :param text: a valid model.yaml
    :param exclude: names of nodes that stay in float
    """
    value = json.dumps(list(exclude))  # JSON's lists of strings are YAML's
    key, calibration = _find(yaml.compose(text, yaml.SafeLoader), 'calibration')
    if key is None:
        return f'{text.rstrip()}\n\ncalibration:\n  exclude: {value}\n'
    if not isinstance(calibration, yaml.MappingNode):  # the key with nothing behind it
        return _put(text, key, calibration, f'{{exclude: {value}}}')
    old_key, old = _find(calibration, 'exclude')
    if old_key is not None:
        return _put(text, old_key, old, value)
    if calibration.flow_style:
        at = calibration.start_mark.index + 1
        comma = ', ' if calibration.value else ''
        return f'{text[:at]}exclude: {value}{comma}{text[at:]}'
    first = calibration.value[0][0].start_mark
    return f'{text[:first.index]}exclude: {value}\n{" " * first.column}{text[first.index:]}'


def _find(mapping: yaml.MappingNode, name: str) -> tuple[yaml.Node | None, yaml.Node | None]:
    """Return a key of a mapping and its value."""
    return next(((key, value) for key, value in mapping.value if key.value == name),
                (None, None))


def _put(text: str, key: yaml.Node, old: yaml.Node, value: str) -> str:
    """Return the text with the value of a key replaced."""
    # A block's own end is where the next thing begins, comments between them included.
    last = old.value[-1] if isinstance(old, yaml.SequenceNode) and old.value else old
    end = last.end_mark.index if not getattr(old, 'flow_style', True) else old.end_mark.index
    return f'{text[:key.end_mark.index]}: {value}{text[end:]}'
