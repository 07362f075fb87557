# SPDX-License-Identifier: Apache-2.0
"""What TensorRT's refusals mean: its own words name a line of its source, not what to do."""

from __future__ import annotations

from dataclasses import dataclass
import re

_SHOWN = 300  # characters of the library's own text


@dataclass(frozen=True)
class Refusal:
    """
    A refusal that is known.

    pattern: found in the library's text; its groups may stand in `cause` as {0}, {1}
    cause: why
    remedy: what to do
    """

    pattern: re.Pattern[str]
    cause: str
    remedy: str


_FLOAT = 'build with --precision fp16'

REFUSALS = tuple(Refusal(re.compile(pattern, re.IGNORECASE | re.DOTALL), cause, remedy)
                 for pattern, cause, remedy in (
    (r'CHECK\(dtype == myelinTypeFloat [^)]*\) failed',
     'this TensorRT-RTX has no INT8 convolutions',
     f'install tensorrt-rtx 1.7 or later, or {_FLOAT}'),
    (r'Target GPU SM (\d+) is not supported|Unsupported SM\b',
     'this version of the library does not run on this GPU',
     'install one that names this GPU in its support matrix (NVIDIA: TensorRT, Support Matrix)'),
    (r'Cannot compile for target\S* (\S+?),? because the model contains HW-specific datatypes: '
     r'(\w+)',
     'the GPU {0} has no {1}', _FLOAT),
    (r'out ?of ?memory|insuffici?ent memory|cudaErrorMemoryAllocation|'
     r'Requested amount of GPU memory',
     'the GPU has too little free memory',
     'end what else uses it, or limit what the builder tries with --workspace-mib'),
    (r'Could not find any implementation for node (.+?)(?:\.\)|\.?$|, try)',
     'the library has no kernel on this GPU for {0}, in the types that it must have',
     'keep that node in float (calibration.exclude in model.yaml), give the builder more memory '
     '(--workspace-mib), or install a newer version'),
    (r'No importer registered for op: (\w+)|could not find plugin:? (\w+)|'
     r'Plugin not found, are the plugin name',
     'the library does not know an operator of the network',
     'export the network with operators that it knows (onnx-tensorrt, docs/operators.md), or '
     'install a newer version'),
    (r'plan file is not compatible with this version|Version tag does not match',
     'another version of the library built the engine',
     'build it anew with: trt-segmentation build BUNDLE'),
    (r'plan file is generated on an incompatible device',
     'the engine was built on another GPU',
     'build it here with: trt-segmentation build BUNDLE'),
    (r'Magic tag does not match|Serialization assertion \S+ failed',
     'the plan is damaged, or no plan of this library',
     'build it anew with: trt-segmentation build BUNDLE --force'),
    (r'Calibration table does not match calibrator algorithm',
     "the cache's header names another calibration method or version",
     'adopt it with: trt-segmentation adopt BUNDLE CACHE, or build with --quantization explicit'),
    (r'CUDA driver version is insufficient|cudaErrorInsufficientDriver|'
     r'CUDA initialization failure with error:? 35',
     'the NVIDIA driver is older than the CUDA that the library was made with',
     'install a newer driver, or an older version of the library'),
    (r'no CUDA-capable device|cudaErrorNoDevice|CUDA initialization failure with error:? 100',
     'the CUDA driver finds no GPU', 'is CUDA_VISIBLE_DEVICES right?'),
    (r'BuildCanceled', 'the build was stopped', 'start it again'),
))


def explained(text: str) -> str:
    """Return the library's text, after what it means and what to do where that is known."""
    text = ' '.join(text.split())
    for refusal in REFUSALS:
        if match := refusal.pattern.search(text):
            cause = refusal.cause.format(*match.groups())
            return f'{cause}; {refusal.remedy} (the library: {_cut(text)})'
    return text


def _cut(text: str) -> str:
    """Return a text without its middle where it is long."""
    if len(text) <= _SHOWN:
        return text
    return f'{text[:_SHOWN // 2]} ... {text[-_SHOWN // 2:]}'
