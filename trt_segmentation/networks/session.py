# SPDX-License-Identifier: Apache-2.0
"""Running a network on the CPU with ONNX Runtime."""

from __future__ import annotations

import os
from pathlib import Path
import threading
from time import process_time
from types import ModuleType
from typing import Any

import numpy as np

from trt_segmentation.errors import InputError, missing_library, one_line
from trt_segmentation.system import cores
from trt_segmentation.system.files import readable

FIRST_RUN_S = 120.0
"""CPU time that a network that was never run may take; the slowest take a few seconds."""


def import_onnxruntime() -> ModuleType:
    """
    Return the `onnxruntime` module, which asks nobody anything and writes no file of its own.

    :raises InputError: with what to install, if it is missing
    """
    # Its telemetry, on by default, writes a device id into the home directory and asks DNS for a
    # host; whether it does is decided once, when the library is loaded.
    os.environ['ORT_DISABLE_TELEMETRY'] = '1'
    try:
        import onnxruntime
    except ImportError:
        raise missing_library('onnxruntime', 'Running a network on the CPU', 'cpu') from None
    module: ModuleType = onnxruntime
    return module


class Endless(InputError):
    """Report a network that did not end in the time that a run of it had."""


class Session:
    """An ONNX model in an ONNX Runtime session on the CPU."""

    def __init__(self, model: bytes | str | os.PathLike[str], *, unfused: bool = False,
                 optimized: Path | None = None):
        """
        Open a session.

        :param model: a serialized ONNX model, or the path of one
        :param unfused: run each Q/DQ pair and each layer between them as they are written, in
            float arithmetic on rounded values, instead of fused integer kernels
        :param optimized: write the graph that really runs to this file
        :raises InputError: if ONNX Runtime is missing or refuses the model
        """
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = cores.threads()
        # A spinning pool takes the core from the node's other thread between two frames.
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        if unfused:
            options.add_session_config_entry('session.disable_quant_qdq', '1')
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        try:  # whatever the locale says
            source = model if isinstance(model, bytes) else os.fsencode(model).decode()
        except UnicodeDecodeError:
            raise InputError(f'{readable(str(model))}: ONNX Runtime takes no path with bytes that '
                             'are not UTF-8; rename what has them, or move the network') from None
        try:
            self._session: Any = ort.InferenceSession(source, options, ['CPUExecutionProvider'])
        except Exception as error:  # its exceptions share no base class of their own
            name = 'the model' if isinstance(model, bytes) else model
            raise InputError(f'{name}: ONNX Runtime refuses it: {one_line(error)}') from None
        self._input = self._session.get_inputs()[0]
        self._outputs = [output.name for output in self._session.get_outputs()]

    def infer(self, tensor: np.ndarray, limit_s: float | None = None) -> dict[str, np.ndarray]:
        """
        Run the network, image by image where its batch dimension is fixed.

        :param tensor: what the network's first input takes, any batch size
        :param limit_s: seconds, and of the process's CPU time as many, after which a run of one
            batch is stopped: of a network that was never run before, a loop may have no end
        :returns: every output by name
        :raises InputError: if the network cannot run on it; `Endless` if not in that time
        """
        batch = self._input.shape[0]
        if isinstance(batch, int) and batch != len(tensor):
            if batch != 1:
                raise InputError(
                    f'input {self._input.name!r}: its batch size is fixed at {batch}; '
                    'expected 1 or a symbolic one'
                )
            parts = [self._run(tensor[i:i + 1], limit_s) for i in range(len(tensor))]
            return {name: np.concatenate([part[name] for part in parts])
                    for name in self._outputs}
        return self._run(tensor, limit_s)

    def close(self) -> None:
        """Free the session."""
        self._session = None

    def _run(self, tensor: np.ndarray, limit_s: float | None) -> dict[str, np.ndarray]:
        """Run the session on a batch that it takes."""
        options = import_onnxruntime().RunOptions()
        ended = threading.Event()
        if limit_s is not None:
            options.log_severity_level = 4  # the error says it
            threading.Thread(target=_stop_late, args=(options, limit_s, ended),
                             daemon=True).start()
        try:
            outputs = self._session.run(self._outputs, {self._input.name: tensor}, options)
        except Exception as error:  # its exceptions share no base class of their own
            if options.terminate:
                raise Endless(f'the network has not ended after {limit_s:g} s of work: a loop in '
                              'it may have no end; export it without loops') from None
            shape = 'x'.join(map(str, tensor.shape))
            raise InputError(f'the network cannot run on input {self._input.name!r} of shape '
                             f'{shape}: {one_line(error)}') from None
        finally:
            ended.set()
        return dict(zip(self._outputs, outputs))


def _stop_late(options: Any, limit_s: float, ended: threading.Event) -> None:
    """Stop a run after so much CPU time of this process, which may take long to get it."""
    begin = process_time()
    left = limit_s
    while left > 0:
        if ended.wait(left):
            return
        left = limit_s - (process_time() - begin)
    options.terminate = True
