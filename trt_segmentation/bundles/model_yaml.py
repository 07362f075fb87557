# SPDX-License-Identifier: Apache-2.0
"""The text of a new bundle's model.yaml: every value with what it means and where it is from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
import math
from typing import Any

import yaml

from trt_segmentation.bundles.labels import CITYSCAPES, LabelSet
from trt_segmentation.bundles.spec import AcceptanceSpec, InputSpec, OutputSpec
from trt_segmentation.networks.model import Tensor


def model_yaml(name: str, source: InputSpec, target: OutputSpec, labels: LabelSet,
               described_input: Tensor, described_output: Tensor, origins: Mapping[str, str],
               share: float | None, source_of_preset: str = '') -> str:
    """
    Return the text of model.yaml.

    :param described_input, described_output: the network's own tensors
    :param origins: by key where a value is from, if nobody gave it: 'assumed', 'preset pidnet'
    :param share: how much of the work can be in INT8; None if that is unknown
    :param source_of_preset: the repository and files that a preset's values are from
    """
    def line(key: str, value: Any, comment: str) -> str:
        mark = f' ({origins[key]})' if key in origins else ''
        return f'  {key}: {_yaml(value)}'.ljust(37) + f'  # {comment}{mark}'

    acceptance = asdict(AcceptanceSpec(min_int8_share=min_int8_share(share)))
    comments = {} if share is None else {
        'min_int8_share': f'{share:.1%} of the work can be in INT8'}
    return '\n'.join([
        f'# What {_yaml(name)} takes and gives. A value that is not the training one is the most',
        "# common cause of bad masks; those marked (assumed) are this package's defaults.",
        *([f'# Those marked (preset ...) are from {source_of_preset}.']
          if source_of_preset else []),
        'version: 1',
        f'model: {_yaml(name)}',
        '',
        'input:',
        line('tensor', source.tensor, str(described_input)),
        line('size', list(source.size), 'height, width'),
        line('color', source.color, 'bgr or rgb: the order of the channels, mean and scale'),
        line('mean', list(source.mean), 'tensor = (pixel - mean) * scale, pixel 0..255'),
        line('scale', list(source.scale), 'one value a channel'),
        line('fit', source.fit, 'of other images: stretch, letterbox or crop'),
        line('interpolation', source.interpolation, 'nearest, linear or area'),
        '',
        'output:',
        line('tensor', target.tensor, str(described_output)),
        line('kind', target.kind, 'logits, at any stride, or class_ids'),
        line('upsample', target.upsample, 'half_pixel, align_corners or nearest'),
        '',
        '# One entry for each output channel, or cityscapes; train_id 255 is ignored.'
        + (f' ({origins["labels"]})' if 'labels' in origins else ''),
        'labels: cityscapes' if labels == CITYSCAPES else 'labels:',
        *([] if labels == CITYSCAPES else [f'  - {_yaml(entry)}' for entry in labels.to_dict()]),
        '',
        'calibration:',
        line('ranges', {}, 'a fixed amax by tensor, instead of a measured one'),
        line('exclude', [], 'nodes that stay in floating point'),
        '',
        '# What an engine must reach on the golden frames before it may run.',
        'acceptance:',
        *(line(key, value, comments[key]) if key in comments else f'  {key}: {value}'
          for key, value in acceptance.items()),
        '',
    ])


def _yaml(value: Any) -> str:
    """Return a value as YAML in one line."""
    text: str = yaml.safe_dump([value], default_flow_style=True, width=1 << 20, sort_keys=False,
                          allow_unicode=True)
    return text.strip()[1:-1]


def min_int8_share(share: float | None) -> float:
    """Return the default, or where a network cannot reach it, 95% of what it can."""
    if share is None:
        return AcceptanceSpec.min_int8_share
    return min(AcceptanceSpec.min_int8_share, math.floor(share * 95) / 100)
