# SPDX-License-Identifier: Apache-2.0
"""
Time networks on the CPU: INT8 beside FP32, and beside the choices that were not taken.

    python benchmarks/cpu.py [--avx2] [--runs 25] [--json FILE]

CPU milliseconds of one thread, lower quartile, all by turns in one process: other work on the
machine, which makes wall time useless, changes the ratio of CPU times little. The rows:

    fp32   the float network
    int8   what `build` makes: uint8 x int8, weights of 7 bits where products of 8 saturate
    plain  the same without the input's fourth channel
    s8s8   int8 x int8
    u8u8   uint8 x uint8: what session.x64quantprecision asks for

    python benchmarks/cpu.py --bundles BUNDLE ... [--avx2] [--runs 25]

does it for calibrated bundles: what `build` makes in INT8, and what `build --precision auto`
takes. Limits of agreement are set to 0 in copies of them, so that speed alone decides.

`--avx2` runs a copy of ONNX Runtime in which the detection of AVX-512 and VNNI is made to fail:
the instruction xgetbv, which tells what the operating system saves of the registers, is replaced
in the copy by one that names those of AVX alone, and the test of cpuid's bit for AVX-VNNI, which
newer CPUs have too, by one that never holds. So a CPU with VNNI runs the kernels of one without.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
import shutil
import subprocess
import sys
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import drawn
from networks import signed
import numpy as np
import yaml

from trt_segmentation import reports
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.engines.build import build
from trt_segmentation.engines.onnxruntime import input_shapes, quantized_network
from trt_segmentation.engines.onnxruntime_choice import align_inputs, keeps_products
from trt_segmentation.engines.store import Store
from trt_segmentation.networks import model as onnx_model
from trt_segmentation.networks.model import onnx
from trt_segmentation.networks.session import import_onnxruntime
from trt_segmentation.system import files, machine, scripts
from trt_segmentation.system.files import atomic_write

_XGETBV = bytes.fromhex('31c9 0f01d0')  # xor ecx, ecx; xgetbv
_AVX_ONLY = bytes.fromhex('31c9 6a0758')  # xor ecx, ecx; push 7; pop rax: x87, SSE and AVX
# mov eax, 7; mov ecx, 1; cpuid; test al, 0x10: AVX-VNNI, which CPUs without AVX-512 have too.
_AVX_VNNI = bytes.fromhex('b807000000 b901000000 0fa2 a810')
_NONE = bytes.fromhex('b807000000 b901000000 0fa2 a800')


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('--avx2', action='store_true', help='as on a CPU without AVX-512 and VNNI')
    parser.add_argument('--bundles', nargs='+', type=Path, metavar='BUNDLE',
                        help='calibrated ones, in place of the sample network')
    parser.add_argument('--runs', type=int, default=25, help='timed runs of each (default: 25)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the figures here too')
    args = parser.parse_args()
    if args.avx2:
        rest = [word for word in sys.argv if word != '--avx2']
        with TemporaryDirectory() as directory:
            patched_onnxruntime(Path(directory))
            path = os.pathsep.join([directory, *sys.path[1:]])
            sys.exit(subprocess.run([sys.executable, *rest],
                                    env={**os.environ, 'PYTHONPATH': path}).returncode)
    if args.bundles:
        found = {path.name: chosen(path, args.runs) for path in args.bundles}
        if args.json:
            atomic_write(args.json, reports.json_text(found))
        print(reports.text_table(
            ['CPU ms', 'fp32', 'int8', 'of fp32', 'auto takes', 'of fp32'],
            [[name, f'{row["fp32"]:.1f}', f'{row["int8"]:.1f}', f'{row["int8"] / row["fp32"]:.3f}',
              row['taken'], f'{row[row["taken"]] / row["fp32"]:.3f}']
             for name, row in found.items()]))
        return
    with TemporaryDirectory() as directory:
        # Speed needs no more scenes, and no better ranges.
        bundle = drawn.calibrated(Path(directory, 'bundle'), 10, 2, method='minmax')
        figures = measure(bundle, args.runs)
    if args.json:
        atomic_write(args.json, reports.json_text(figures))
    print(f'{figures["machine"].get("processor", "")}; products of 8 bits '
          f'{"are kept" if figures["keeps_products"] else "saturate, as without VNNI"}')
    print(reports.text_table(
        ['network', 'CPU ms', 'times faster than fp32'],
        [[name, f'{ms:.1f}', f'{figures["ms"]["fp32"] / ms:.2f}']
         for name, ms in figures['ms'].items()]))


def patched_onnxruntime(directory: Path) -> None:
    """Copy the installed ONNX Runtime into a directory, without its detection of VNNI."""
    package = Path(import_onnxruntime().__file__).parent
    shutil.copytree(package, directory / package.name)
    library, = (directory / package.name / 'capi').glob('onnxruntime_pybind11_state*.so')
    code = library.read_bytes()
    if not code.count(_XGETBV) or not code.count(_AVX_VNNI):
        sys.exit(f'{library.name}: no detection of VNNI in it; is it one for x86-64?')
    library.write_bytes(code.replace(_XGETBV, _AVX_ONLY).replace(_AVX_VNNI, _NONE))


def measure(bundle: Bundle, runs: int) -> dict[str, Any]:
    """Return CPU milliseconds by network."""
    wide = keeps_products()
    plain = quantized_network(bundle, 'onnxruntime', reduce_range=not wide).model
    eight = quantized_network(bundle, 'onnxruntime').model
    chosen = copy_of(plain)
    align_inputs(chosen)
    sessions = {
        'fp32': session(onnx_model.load(bundle.model_path)),
        'int8': session(chosen),
        'plain': session(plain),
        's8s8': session(signed(copy_of(eight)), {'session.qdqisint8allowed': '1'}),
        'u8u8': session(eight, {'session.x64quantprecision': '1'}),
    }
    return {'machine': machine.describe(), 'runs': runs, 'keeps_products': wide,
            'ms': by_turns(sessions, bundle, runs)}


def chosen(path: Path, runs: int) -> dict[str, Any]:
    """Return CPU milliseconds of a bundle's FP32 and INT8, which one is taken, and the log."""
    log: list[str] = []
    with TemporaryDirectory() as directory:
        copy = Path(shutil.copytree(path, Path(directory, 'bundle')))
        text = copy / 'model.yaml'
        document = yaml.safe_load(text.read_text())
        document['acceptance'] = {**(document.get('acceptance') or {}),
                                  'min_agreement': 0.0, 'min_class_agreement': 0.0}
        text.write_text(yaml.safe_dump(document))
        files.write_sums(copy)
        bundle, store = Bundle.open(copy), Path(directory, 'store')
        made = {precision: build(bundle, backend='onnxruntime', precision=precision, store=store,
                                 report=log.append) for precision in ('auto', 'fp32', 'int8')}
        sessions = {precision: session(onnx.load_from_string(
            Store(store).plan(made[precision].key))) for precision in ('fp32', 'int8')}
        return {'taken': made['auto'].record.precision, 'log': log,
                **by_turns(sessions, bundle, runs)}


def by_turns(sessions: dict[str, Any], bundle: Bundle, runs: int) -> dict[str, float]:
    """Return the CPU milliseconds of each session: the lower quartile."""
    name, shape = next(iter(input_shapes(bundle).items()))
    tensor = np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)
    times: dict[str, list[float]] = {key: [] for key in sessions}
    for _ in range(runs + 1):
        for key, each in sessions.items():
            start = process_time()
            each.run(None, {name: tensor})
            times[key].append((process_time() - start) * 1e3)
    return {key: float(np.quantile(values[1:], 0.25)) for key, values in times.items()}


def session(model: onnx.ModelProto, entries: dict[str, str] | None = None) -> Any:
    """Return a session of one thread."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    return ort.InferenceSession(model.SerializeToString(), options, ['CPUExecutionProvider'])


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a network."""
    return onnx.ModelProto.FromString(model.SerializeToString())


if __name__ == '__main__':
    scripts.end_in_a_line()
    main()
