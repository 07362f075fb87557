# SPDX-License-Identifier: Apache-2.0
"""Exporting: write a target's files, with what was proven of them, at once or not at all."""

from __future__ import annotations

from dataclasses import asdict, dataclass
import os
from pathlib import Path

from trt_segmentation import __version__
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.engines.acceptance import examine
from trt_segmentation.engines.onnxruntime import OnnxRuntimeEngine
from trt_segmentation.errors import InputError
from trt_segmentation.export.networks import Networks
from trt_segmentation.export.targets import check, TARGETS
from trt_segmentation.segmenters.cpu import CpuSegmenter
from trt_segmentation.system import files

RECORD_NAME = 'export.json'


@dataclass(frozen=True)
class Exported:
    """
    What an export was made from, and what was proven of it.

    agreement: share 0..1 of the golden frames' pixels with the float network's class; None if
        the bundle has no golden frames
    int8_share: share 0..1 of the multiply-accumulates between Q/DQ pairs; None if that is unknown
    refused: the bundle's limits that it does not keep, a sentence each
    only_class: the class beside which golden frames show a trace of others, which proves
        nothing; or ''
    not_run: what nobody has run
    """

    target: str
    files: tuple[str, ...]
    model_sha256: str
    cache_sha256: str
    golden_frames: int
    agreement: float | None
    int8_share: float | None
    refused: tuple[str, ...]
    only_class: str
    not_run: str
    package_version: str


def export(bundle: Bundle, target: str, output: str | os.PathLike[str]) -> Exported:
    """
    Write the files that a program takes into a new directory, with SHA256SUMS.

    :param target: one of `targets.TARGETS`
    :param output: the directory to make; it must not exist
    :raises InputError: for an unknown target, an existing directory, a bundle without a
        calibration, or a contract that the program cannot keep
    """
    if target not in TARGETS:
        raise InputError(f'target: found {target!r}, expected one of {", ".join(TARGETS)}')
    output = Path(output)
    if output.exists():
        raise InputError(f'{output}: exists already; name a new directory')
    check(bundle.spec, target)
    chosen, networks = TARGETS[target], Networks(bundle)
    contents = chosen.files(networks)
    engine = OnnxRuntimeEngine(networks.cpu if chosen.fused else networks.quantized, 'int8',
                               unfused=not chosen.fused)
    with CpuSegmenter(bundle.spec, engine) as segmenter:
        proof = examine(bundle, segmenter, networks.layers, 'int8')
    record = Exported(
        target, tuple(contents), bundle.model_sha256, files.sha256_file(bundle.cache_path),
        len(proof.frames), proof.agreement, proof.int8_share,
        tuple(failure.text for failure in proof.failures), proof.only_class, chosen.not_run,
        __version__)
    with files.atomic_directory(output) as directory:
        for name, content in contents.items():
            path = directory / name
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
            if path.suffix == '.sh':
                path.chmod(0o755)
        (directory / RECORD_NAME).write_text(files.canonical_json(asdict(record)) + '\n')
        files.write_sums(directory)
    return record
