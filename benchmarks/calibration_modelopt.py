# SPDX-License-Identifier: Apache-2.0
"""
Quantize a network with NVIDIA's ModelOpt; `calibration.py --modelopt PYTHON` calls this.

It runs in an environment of its own (pip install 'nvidia-modelopt[onnx]'), which needs nothing of
this package: python calibration_modelopt.py MODEL INPUT IMAGES.npy METHOD OUTPUT
"""

import json
from pathlib import Path
import sys
from time import perf_counter, process_time

from modelopt.onnx.quantization import quantize
import numpy as np

model, name, images, method, output = sys.argv[1:]
started, cpu_started = perf_counter(), process_time()
quantize(model, quantize_mode='int8', calibration_method=method, output_path=output,
         calibration_data={name: np.load(images)}, calibration_eps=['cpu'],
         high_precision_dtype='fp32', log_level='ERROR')
peak = next(line for line in Path('/proc/self/status').read_text().splitlines()
            if line.startswith('VmHWM'))
print(json.dumps({'seconds': perf_counter() - started,
                  'cpu_seconds': process_time() - cpu_started,
                  'peak_mb': int(peak.split()[1]) * 1024 / 1e6}))
