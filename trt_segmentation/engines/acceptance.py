# SPDX-License-Identifier: Apache-2.0
"""The acceptance: does an engine give the float network's masks on the golden frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from trt_segmentation.bundles import form, golden
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.evaluation.metrics import Confusion
from trt_segmentation.networks.layers import int8_share, Layer
from trt_segmentation.segmenters.segmenter import Segmenter
from trt_segmentation.system import files

# A class that covers less of the golden frames than this is too small to judge by.
_MIN_CLASS_SHARE = 0.001


def examine(bundle: Bundle, segmenter: Segmenter, layers: Iterable[Layer], precision: str, *,
            allow_float: bool = False) -> dict[str, Any]:
    """
    Return the acceptance part of a record; `allow_float` waives min_int8_share.

    Its keys: `basis` (hash of what it was judged by), `frames` (name and sha256 of each mask the
    engine gave), `agreement`, `classes`, `int8_share`, `failures`, a list of sentences that is
    empty if the engine passed, and `waived`, those that were not counted because somebody said so.
    """
    limits = bundle.spec.acceptance
    confusion = Confusion(bundle.spec.labels)
    frames = []
    for name, image, mask in golden.read(bundle.golden_path):
        classes = segmenter.segment(image, ('classes',)).classes
        confusion.add(mask, classes)
        frames.append({'name': name, 'sha256': files.sha256_bytes(classes.tobytes())})
    if not frames:  # that it runs at all is not proven then either
        segmenter.segment(np.zeros((*bundle.spec.input.size, 3), np.uint8), ('classes',))
    share = int8_share(layers)
    shares = confusion.class_share
    classes = {name: agreement for name, agreement in confusion.class_agreement.items()
               if shares[name] >= _MIN_CLASS_SHARE}
    failures = []
    # Not `<`: the agreement of masks that ignore every pixel is nan.
    if frames and not confusion.agreement >= limits.min_agreement:
        failures.append(f'agreement {confusion.agreement:.4f} is below min_agreement '
                        f'{limits.min_agreement}')
    failures += [
        f'agreement of class {name} {agreement:.4f} is below min_class_agreement '
        f'{limits.min_class_agreement}'
        for name, agreement in classes.items() if agreement < limits.min_class_agreement
    ]
    waived = []
    if precision == 'int8' and share < limits.min_int8_share:
        (waived if allow_float else failures).append(
            f'{share:.1%} of the convolution work is in INT8, below min_int8_share '
            f'{limits.min_int8_share}')
    return {
        'basis': basis(bundle),
        'frames': frames,
        'agreement': confusion.agreement if frames else None,
        'classes': classes,
        'int8_share': share,
        'failures': failures,
        'waived': waived,
    }


def basis(bundle: Bundle) -> str:
    """Return the hash of all that an acceptance was judged by, besides the plan."""
    spec = bundle.spec
    return files.sha256_json({
        'golden': [files.sha256_file(path) for image in golden.paths(bundle.golden_path)
                   for path in (image, image.with_suffix('.mask.png'))],
        'acceptance': form.contract(spec.acceptance),
        'input': form.contract(spec.input),
        'output': form.contract(spec.output),
        'labels': spec.labels.to_dict(),
    })


def self_test(segmenter: Segmenter, images: Mapping[str, bytes]) -> str:
    """
    Run the golden frames again; return '' if each mask is the one of the accepted engine.

    Otherwise return a sentence that names the first frame that differs.

    :param images: what `golden.contents` returned when the engine was opened
    """
    expected = {frame['name']: frame['sha256']
                for frame in segmenter.record.get('acceptance', {}).get('frames', ())}
    if not expected:
        return 'the engine was built without golden frames, so there is nothing to compare with'
    for name, data in images.items():
        classes = segmenter.segment(golden.decode(data), ('classes',)).classes
        if files.sha256_bytes(classes.tobytes()) != expected.pop(name, None):
            return f'golden frame {name}: the mask is not the one of the accepted engine'
    return f'golden frame {min(expected)} is missing' if expected else ''
