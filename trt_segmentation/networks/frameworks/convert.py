# SPDX-License-Identifier: Apache-2.0
"""Having a network converted by its own framework, in a process that ends with it."""

from __future__ import annotations

import json
import os
from pathlib import Path
import signal
import subprocess
import sys
from typing import Any

import numpy as np

from trt_segmentation.errors import InputError, missing_library
from trt_segmentation.networks.session import FIRST_RUN_S, Session

_NAMES = {'tensorflow': 'TensorFlow', 'pytorch': 'PyTorch'}
_LIMIT_S = 3600
_TOLERANCE = 1e-3  # of the largest value
# Their imports, threads and protocol buffers stay in that process; it finds what this one would.
_START = """
import json, sys
task = json.loads(sys.argv[1])
sys.path[:] = task['path']
from trt_segmentation.networks.frameworks.child import main
main(task)
"""


def convert(model: Path, framework: str, target: Path, *, size: tuple[int, int] | None,
            input_tensor: str | None, output_tensor: str | None) -> str:
    """
    Convert a network of TensorFlow or PyTorch, and compare the two on random pixels.

    :param framework: as `recognize.framework_of` returns it
    :param target: the ONNX file to write
    :param size: (height, width) of the input; needed where the file leaves them free
    :param input_tensor, output_tensor: of a frozen graph, where it is to be cut
    :returns: by what, in how many seconds, and how near the two are, in words
    :raises InputError: what the framework said, in one line; what to install without it
    """
    reference = target.with_name('reference.npz')
    task = {'framework': framework, 'model': os.path.abspath(model), 'onnx': str(target),
            'reference': str(reference), 'size': size,
            'input': input_tensor, 'target': output_tensor,
            'path': [os.path.abspath(entry) for entry in sys.path]}
    answer = _ask(task, target.parent, f'{model}: {_NAMES[framework]}')
    if 'missing' in answer:
        raise missing_library(answer['missing'], f'Converting a network of {_NAMES[framework]}',
                              framework)
    if 'wrong' in answer:
        raise InputError(f'{model}: {answer["wrong"]}')
    if 'error' in answer:
        raise InputError(f'{model}: {_NAMES[framework]} cannot convert it: {answer["error"]}')
    said = f'converted by {answer["versions"]} in {answer["seconds"]:.0f} s'
    if reason := answer.get('not_run'):
        said += f'; not compared, because {_NAMES[framework]} cannot run it here: {reason}'
    else:
        advice = 'export it to ONNX with a tool of your own'
        if training := answer.get('training'):
            advice = (f'it is in training mode, by its {training}: call eval() of the model '
                      'before torch.export.export')
        said += f'; {_compared(model, target, reference, _NAMES[framework], advice)}'
    return said


def _ask(task: dict[str, Any], directory: Path, who: str) -> dict[str, Any]:
    """Run the other process; return its answer."""
    environment = {
        **os.environ,
        'CUDA_VISIBLE_DEVICES': '', 'TF_CPP_MIN_LOG_LEVEL': '3', 'KERAS_BACKEND': 'tensorflow',
        'KERAS_HOME': str(directory),  # it writes its settings into the home directory else
        'TORCH_FORCE_WEIGHTS_ONLY_LOAD': '1',  # no code of an archive is run
    }
    try:
        run = subprocess.run([sys.executable, '-c', _START, json.dumps(task)], env=environment,
                             stdin=subprocess.DEVNULL, capture_output=True, text=True,
                             errors='replace', timeout=_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise InputError(f'{who} has not converted it in {_LIMIT_S} s') from None
    last = next((line for line in reversed(run.stdout.splitlines()) if line.startswith('{')), '')
    try:
        answer: dict[str, Any] = json.loads(last)
    except ValueError:
        how = (f'was ended by {signal.Signals(-run.returncode).name}, perhaps for want of memory'
               if run.returncode < 0 else f'ended with code {run.returncode}')
        error = next((line.strip() for line in reversed(run.stderr.splitlines()) if line.strip()),
                     '')
        raise InputError(f'{who} {how}{": " + error[:300] if error else ""}') from None
    return answer


def _compared(model: Path, converted: Path, reference: Path, who: str, advice: str) -> str:
    """
    Compare the ONNX file's outputs with the framework's own; return how far they are apart.

    :param advice: what to do if they are not alike
    """
    with np.load(reference) as arrays:
        values = {name: arrays[name] for name in arrays.files}
    session = Session(converted)
    found = session.infer(values.pop('input'), FIRST_RUN_S)
    session.close()
    worst = 0.0
    for key, expected in values.items():
        name = key.removeprefix('output:')
        if found[name].shape != expected.shape:
            raise InputError(f'{model}: converted, output {name!r} has the shape '
                             f'{list(found[name].shape)}, and {list(expected.shape)} in {who}')
        if expected.dtype.kind != 'f':
            error = float((found[name] != expected).mean())
        else:
            largest = max(float(np.abs(expected).max(initial=0)), 1e-6)
            error = float(np.abs(found[name] - expected).max(initial=0)) / largest
        if not error <= _TOLERANCE:
            raise InputError(f'{model}: converted, output {name!r} differs from what {who} gives '
                             f'on random pixels by {error:.2g} of the largest value; expected at '
                             f'most {_TOLERANCE:g}: {advice}')
        worst = max(worst, error)
    return f'on random pixels within {worst:.1g} of what {who} gives'
