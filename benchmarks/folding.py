# SPDX-License-Identifier: Apache-2.0
"""
What the factors of equalized channels cost: each by a Mul, or folded where they can be.

    python benchmarks/folding.py BUNDLE ... [--runs 15]

CPU milliseconds of ONNX Runtime on one thread, FP32 and INT8, of three forms of a bundle's
network, lower quartile, all by turns: as it is; with a Mul in front of each convolution; and with
the factors in what makes the tensors, where `networks.equalize` can put them there. The factors
and the scales of INT8 are any: they change no time.

    PYTHONPATH=... python benchmarks/folding.py BUNDLE ... --kernels

counts the kernels that TensorRT-RTX's builder makes of the three in INT8, for a GPU of SM 8.6,
which need not be there; `make test-vehicle` installs such a builder.

    python3 benchmarks/folding.py BUNDLE ... --gpu

times them on a GPU in FP16 under TensorRT-RTX, by turns: the engine alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
import shutil
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from cpu import by_turns, session
import numpy as np

from trt_segmentation import reports
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.engines.build import build
from trt_segmentation.engines.onnxruntime import input_shapes
from trt_segmentation.engines.onnxruntime_choice import align_inputs
from trt_segmentation.engines.opening import open_segmenter
from trt_segmentation.engines.tensorrt import builder
from trt_segmentation.engines.tensorrt.graph import make_ready
from trt_segmentation.engines.tensorrt.layers import parse_dump
from trt_segmentation.engines.tensorrt.module import import_tensorrt
from trt_segmentation.networks import model as onnx_model
from trt_segmentation.networks.activations import activations
from trt_segmentation.networks.equalize import equalize, targets
from trt_segmentation.networks.float16 import to_float16
from trt_segmentation.networks.model import onnx
from trt_segmentation.networks.quantize import quantize
from trt_segmentation.system import scripts

FORMS = ('as it is', 'a Mul for each', 'folded')


def forms(bundle: Bundle) -> Iterator[onnx.ModelProto]:
    """Yield the three forms of a bundle's network, in the order of `FORMS`."""
    model = onnx_model.load(bundle.model_path)
    random = np.random.default_rng(0)
    factors = {name: 2.0 ** random.uniform(-1, 0, target.channels)
               for name, target in targets(model).items()}
    yield model
    shown = onnx.ModelProto.FromString(model.SerializeToString())
    for name in factors:  # what the network shows must keep its value
        shown.graph.output.append(onnx.helper.make_tensor_value_info(
            name, onnx.TensorProto.FLOAT, None))
    multiplied, _ = equalize(shown, factors)
    del multiplied.graph.output[len(model.graph.output):]
    yield multiplied
    yield equalize(model, factors)[0]


def muls(model: onnx.ModelProto) -> str:
    """Return how many Muls a network has."""
    return str(sum(node.op_type == 'Mul' for node in model.graph.node))


def int8(model: onnx.ModelProto, bundle: Bundle, flavor: str) -> onnx.ModelProto:
    """Return a network in INT8, with any scales."""
    return quantize(model, dict.fromkeys(activations(model), 0.05), flavor,
                    input_shapes=input_shapes(bundle)).model


def on_the_cpu(bundle: Bundle, runs: int) -> list[list[str]]:
    """Return a row for each form: its name, Muls, and CPU milliseconds in FP32 and INT8."""
    models = list(forms(bundle))
    sessions = {}
    for form, model in zip(FORMS, models):
        quantized = int8(model, bundle, 'onnxruntime')
        align_inputs(quantized)
        sessions[form], sessions[f'{form} int8'] = session(model), session(quantized)
    ms = by_turns(sessions, bundle, runs)
    return [[form, muls(model), f'{ms[form]:.1f}', f'{ms[f"{form} int8"]:.1f}']
            for form, model in zip(FORMS, models)]


def kernels(bundle: Bundle) -> list[list[str]]:
    """Return a row for each form: its name, Muls, and the kernels of its INT8 engine."""
    tensorrt = import_tensorrt('tensorrt_rtx')
    rows = []
    for form, model in zip(FORMS, forms(bundle)):
        graph = make_ready(to_float16(int8(model, bundle, 'tensorrt')), input_shapes(bundle))
        order = builder.Order(graph.SerializeToString(), fp16=True, int8=True, strongly_typed=True)
        built = builder.build(tensorrt, order, builder.Settings(compute_capability='SM86'))
        rows.append([form, muls(model), str(len(parse_dump(built.log.dump)))])
    return rows


def on_the_gpu(bundle: Bundle, runs: int) -> list[list[str]]:
    """Return a row for each form: its name, Muls, and milliseconds of its FP16 engine."""
    rows, engines = [], []
    with TemporaryDirectory() as directory, ExitStack() as stack:
        for number, (form, model) in enumerate(zip(FORMS, forms(bundle))):
            copy = Path(directory, str(number))
            copy.mkdir()
            shutil.copy(bundle.path / 'model.yaml', copy)
            onnx.save(model, copy / bundle.spec.model)
            opened = Bundle.open(copy, verify=False)
            options: dict[str, Any] = {'backend': 'tensorrt_rtx', 'precision': 'fp16',
                                       'store': Path(directory, 'store')}
            build(opened, **options, allow_unproven=True)
            engines.append(stack.enter_context(open_segmenter(opened, **options)).engine)
            rows.append([form, muls(model)])

        def once(engine: Any) -> None:
            with engine.device as device:
                engine.enqueue()
                device.synchronize()

        times: list[list[float]] = []
        for _ in range(runs):
            times.append([])
            for engine in engines:
                for _ in range(10):
                    once(engine)
                start = perf_counter()
                for _ in range(50):
                    once(engine)
                times[-1].append((perf_counter() - start) * 1e3 / 50)
        for row, ms in zip(rows, np.quantile(times, 0.25, axis=0)):
            row.append(f'{ms:.3f}')
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('bundles', nargs='+', type=Path, metavar='BUNDLE')
    parser.add_argument('--runs', type=int, default=15, help='timed turns (default: 15)')
    how = parser.add_mutually_exclusive_group()
    how.add_argument('--kernels', action='store_true', help='count the kernels of INT8 engines')
    how.add_argument('--gpu', action='store_true', help='time FP16 on a GPU')
    args = parser.parse_args()
    heads = (['kernels'] if args.kernels else ['FP16 ms'] if args.gpu
             else ['FP32 CPU ms', 'INT8 CPU ms'])
    measure = (kernels if args.kernels else partial(on_the_gpu, runs=args.runs) if args.gpu
               else partial(on_the_cpu, runs=args.runs))
    for path in args.bundles:
        rows = measure(Bundle.open(path, verify=False))
        print(path.name)
        print(reports.text_table(['form', 'Muls', *heads], rows), flush=True)


if __name__ == '__main__':
    scripts.end_in_a_line()
    main()
