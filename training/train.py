# SPDX-License-Identifier: Apache-2.0
"""Train the sample network on drawn scenes and write its ONNX file; see README.md beside this."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
import multiprocessing
import os
from pathlib import Path
import sys
import time

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs without being installed

from trt_segmentation.errors import install
from trt_segmentation.system import scripts

if __name__ == '__main__':
    scripts.end_in_a_line(install('cpu,train'))

import cv2
from network import CLASSES, Network, SCALE, SIZE, to_onnx
import numpy as np
import onnx
import onnxruntime
import torch
from torch.nn import functional

from trt_segmentation.bundles.labels import CITYSCAPES, IGNORE
from trt_segmentation.evaluation.metrics import Confusion
from trt_segmentation.sample import BUNDLE, scenes


def main() -> None:
    """Draw, train, write, evaluate."""
    arguments = parse_arguments()
    torch.manual_seed(arguments.seed)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False  # what is reported as FP32 is to be FP32
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    print(f'device: {torch.cuda.get_device_name() if device.type == "cuda" else "CPU"}, '
          f'PyTorch {torch.__version__}', flush=True)

    network = Network().to(device, memory_format=torch.channels_last)
    data = draw(scenes.TRAIN_SEEDS[:arguments.scenes], device, arguments.workers)
    fit(network, *data, steps=arguments.steps, batch=arguments.batch, rate=arguments.rate)
    del data

    network.eval()
    model = to_onnx(network)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, arguments.output)
    print(f'wrote {arguments.output}, {arguments.output.stat().st_size / 1e6:.2f} MB', flush=True)

    held_out = draw(scenes.HELD_OUT_SEEDS[:arguments.held_out], device, arguments.workers)
    check(model, network, held_out[0][:2])
    report(evaluate(network, *held_out), arguments.held_out)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    bundle = BUNDLE
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--output', type=Path, default=bundle / 'model.onnx')
    parser.add_argument('--scenes', type=int, default=12000, help='training scenes, 2 MB each')
    parser.add_argument('--steps', type=int, default=11000, help='optimizer steps')
    parser.add_argument('--batch', type=int, default=32, help='scenes a step')
    parser.add_argument('--rate', type=float, default=3e-3, help='highest learning rate')
    parser.add_argument('--held-out', type=int, default=500, help='scenes to evaluate on')
    parser.add_argument('--workers', type=int, default=os.cpu_count(),
                        help='processes that draw scenes')
    parser.add_argument('--seed', type=int, default=0, help='of the weights and the batches')
    return parser.parse_args()


def draw(seeds: range, device: torch.device, workers: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pictures (n, height, width, 3) and labels (n, height, width), both uint8."""
    start = time.monotonic()
    pictures = torch.empty((len(seeds), *SIZE, 3), dtype=torch.uint8, device=device)
    labels = torch.empty((len(seeds), *SIZE), dtype=torch.uint8, device=device)
    # Spawned, because a process that has used CUDA must not be forked.
    with multiprocessing.get_context('spawn').Pool(workers, cv2.setNumThreads, (1,)) as pool:
        for i, (picture, truth) in enumerate(pool.imap(scenes.scene, seeds, chunksize=4)):
            pictures[i], labels[i] = torch.from_numpy(picture), torch.from_numpy(truth)
    print(f'drew {len(seeds)} scenes in {time.monotonic() - start:.0f} s', flush=True)
    return pictures, labels


def batches(count: int, batch: int) -> Iterator[torch.Tensor]:
    """Yield indices of scenes without end, each scene once an epoch, in a new order each time."""
    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < batch:
            order = torch.cat([order, torch.randperm(count)])
        yield order[:batch]
        order = order[batch:]


def class_weights(labels: torch.Tensor) -> torch.Tensor:
    """Return weights that favor rare classes, but far less than their rarity would."""
    counts = torch.bincount(labels.flatten().int(), minlength=256)[:CLASSES].double()
    weights = (counts / counts.sum()).clamp(min=1e-6) ** -0.25
    return (weights / weights.mean()).float()


def full_size(logits: torch.Tensor) -> torch.Tensor:
    """Return logits at the size of the picture, upsampled as the bundle's model.yaml says."""
    return functional.interpolate(logits, SIZE, mode='bilinear', align_corners=False)


def fit(network: Network, pictures: torch.Tensor, labels: torch.Tensor, *, steps: int, batch: int,
        rate: float) -> None:
    """Train with AdamW, one cycle of the learning rate, and bfloat16 on a GPU."""
    device = pictures.device
    weights = class_weights(labels[:200]).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps,
                                                   pct_start=0.1)
    network.train()
    start = time.monotonic()
    for step, index in zip(range(1, steps + 1), batches(len(pictures), batch)):
        index = index.to(device)
        image = pictures[index].permute(0, 3, 1, 2).float()
        truth = labels[index].long()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == 'cuda'):
            logits = full_size(network(image))
            loss = functional.cross_entropy(logits, truth, weights, ignore_index=IGNORE)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps:
            seconds = time.monotonic() - start
            print(f'step {step} of {steps}: loss {loss.item():.4f}, '
                  f'{step * batch / seconds:.0f} scenes/s, {seconds:.0f} s', flush=True)


@torch.inference_mode()
def evaluate(network: Network, pictures: torch.Tensor, labels: torch.Tensor) -> Confusion:
    """Return the confusion matrix of the float32 network in inference mode."""
    confusion = Confusion(CITYSCAPES)
    for picture, truth in zip(pictures.split(10), labels.split(10)):
        prediction = full_size(network(picture.permute(0, 3, 1, 2).float())).argmax(dim=1)
        confusion.add(truth.cpu().numpy(), prediction.cpu().numpy().astype(np.uint8))
    return confusion


@torch.inference_mode()
def check(model: onnx.ModelProto, network: Network, pictures: torch.Tensor) -> None:
    """Stop unless the ONNX model gives the network's logits."""
    image = pictures.permute(0, 3, 1, 2).float()
    expected = network(image).cpu().numpy()
    session = onnxruntime.InferenceSession(model.SerializeToString(),
                                           providers=['CPUExecutionProvider'])
    normalized = ((image - network.mean) * SCALE).contiguous().cpu().numpy()
    found = session.run(['logits'], {'image': normalized})[0]
    error = np.abs(found - expected).max() / np.abs(expected).max()
    print(f'ONNX Runtime against PyTorch: largest difference {error:.1e} of the largest logit')
    if not error < 1e-3:
        raise SystemExit('the ONNX file does not do what the network does')


def report(confusion: Confusion, count: int) -> None:
    """Print the IoU of each class and category as Markdown tables, and their means."""
    for title, values, mean in (
            ('class', confusion.class_iou, confusion.mean_class_iou),
            ('category', confusion.category_iou, confusion.mean_category_iou)):
        print(f'\n| {title} | IoU, % |\n|---|---|')
        for name, value in values.items():
            print(f'| {name} | {100 * value:.1f} |')
        print(f'| **mean** | **{100 * mean:.2f}** |')
    print(f'\nFP32 on {count} held-out scenes: class IoU {100 * confusion.mean_class_iou:.2f}, '
          f'category IoU {100 * confusion.mean_category_iou:.2f}', flush=True)


if __name__ == '__main__':
    main()
