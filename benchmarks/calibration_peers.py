# SPDX-License-Identifier: Apache-2.0
"""
Quantize a network with another project's tool; `calibration.py --peer NAME=PYTHON` calls this.

It runs in an environment that has the tool and needs nothing of this package:

    python calibration_peers.py PEER METHOD MODEL INPUT IMAGES.npy OUTPUT

The last line that it prints is JSON: seconds, CPU seconds and the peak of memory.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

ADAROUND_ITERATIONS = 30  # of each layer; its default of 10000 takes hours on a CPU


def modelopt(method: str, model: str, name: str, images: np.ndarray, output: str) -> None:
    """Quantize with NVIDIA's ModelOpt: pip install 'nvidia-modelopt[onnx]'."""
    from modelopt.onnx.quantization import quantize
    quantize(model, quantize_mode='int8', calibration_method=method, output_path=output,
             calibration_data={name: images}, calibration_eps=['cpu'],
             high_precision_dtype='fp32', log_level='ERROR')


def nncf(method: str, model: str, name: str, images: np.ndarray, output: str) -> None:
    """Quantize with NNCF's ONNX backend: pip install nncf onnx onnxruntime."""
    import nncf as tool
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
    import onnx
    advanced = AdvancedQuantizationParameters(
        disable_bias_correction=method == 'none')
    quantized = tool.quantize(
        onnx.load(model), tool.Dataset([{name: image[None]} for image in images]),
        preset=tool.QuantizationPreset.PERFORMANCE, subset_size=len(images),
        fast_bias_correction=method == 'fast', advanced_parameters=advanced)
    onnx.save(quantized, output)


def aimet(method: str, model: str, name: str, images: np.ndarray, output: str) -> None:
    """Quantize with AIMET: pip install aimet-onnx."""
    from aimet_onnx import apply_adaround, int8, QuantizationSimModel
    from aimet_onnx.cross_layer_equalization import equalize_model
    import onnx
    network = onnx.load(model)
    inputs = [{name: image[None]} for image in images]
    if 'cle' in method:
        equalize_model(network)
    with TemporaryDirectory() as directory:
        config = Path(directory, 'config.json')
        config.write_text(json.dumps({
            'defaults': {'ops': {'is_output_quantized': 'True', 'is_symmetric': 'True'},
                         'params': {'is_quantized': 'True', 'is_symmetric': 'True'},
                         'per_channel_quantization': 'True'},
            'params': {'bias': {'is_quantized': 'False'}}, 'op_type': {},
            'supergroups': [{'op_list': ['Conv', 'Relu']}, {'op_list': ['Add', 'Relu']}],
            'model_input': {'is_input_quantized': 'True'}, 'model_output': {}}))
        simulated = QuantizationSimModel(
            network, param_type=int8, activation_type=int8, config_file=str(config),
            quant_scheme=method.partition('-')[0], providers=['CPUExecutionProvider'])
        if 'adaround' in method:
            apply_adaround(simulated, inputs, num_iterations=ADAROUND_ITERATIONS)
        simulated.compute_encodings(inputs)
        onnx.save(simulated.to_onnx_qdq(
            prequantize_constants=True, force_activation_as='signed'), output)


def inc(method: str, model: str, name: str, images: np.ndarray, output: str) -> None:
    """
    Quantize with neural-compressor.

    pip install neural-compressor six onnxruntime 'onnx<1.19': 3.7.1 needs what newer ones lack
    """
    from neural_compressor import PostTrainingQuantConfig, quantization, set_workspace

    class Loader:
        batch_size = 1

        def __iter__(self):
            for image in images:
                yield {name: image[None]}, 0

    kinds = {'activation': {'algorithm': [method], 'scheme': ['sym'], 'dtype': ['int8']},
             'weight': {'scheme': ['sym'], 'dtype': ['int8'], 'granularity': ['per_channel']}}
    with TemporaryDirectory() as directory:
        set_workspace(directory)  # it would be a folder where one stands
        quantized = quantization.fit(
            model, PostTrainingQuantConfig(
                quant_format='QDQ', calibration_sampling_size=[len(images)],
                op_type_dict={'Conv': kinds}), calib_dataloader=Loader())
        quantized.save(output)


def main() -> None:
    """Do what the arguments ask for."""
    peers = {'modelopt': modelopt, 'nncf': nncf, 'aimet': aimet, 'inc': inc}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('peer', choices=peers)
    parser.add_argument('method', help='a name of the tool for how it calibrates')
    parser.add_argument('model', help='the ONNX file')
    parser.add_argument('input', help="the name of the network's input")
    parser.add_argument('images', metavar='IMAGES.npy', help='what to calibrate with')
    parser.add_argument('output', help='the ONNX file to write')
    args = parser.parse_args()
    tool = peers[args.peer]
    try:
        import numpy as np
        images = np.load(args.images, mmap_mode='r')
        started, cpu_started = perf_counter(), process_time()
        tool(args.method, args.model, args.input, images, args.output)
    except ImportError as error:
        needs = ' '.join((tool.__doc__ or '').split())
        parser.exit(2, f'calibration_peers: {str(error).splitlines()[0]}. {needs}\n')
    peak = next(line for line in Path('/proc/self/status').read_text().splitlines()
                if line.startswith('VmHWM'))
    print()
    print(json.dumps({'seconds': perf_counter() - started,
                      'cpu_seconds': process_time() - cpu_started,
                      'peak_mb': int(peak.split()[1]) * 1024 / 1e6}))


if __name__ == '__main__':
    main()
