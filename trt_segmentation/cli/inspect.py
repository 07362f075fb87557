# SPDX-License-Identifier: Apache-2.0
"""
Say what a calibration cache, a bundle or a built engine contains, and check it.

Exit code 1 if a check fails: caches that differ, a network that is not covered.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, TYPE_CHECKING

from trt_segmentation.cli import add_format, new_file, next_step, print_json, say, written
from trt_segmentation.errors import command_line, counted, InputError

if TYPE_CHECKING:
    from trt_segmentation.bundles.bundle import Bundle
    from trt_segmentation.engines.record import Acceptance

EXAMPLE = 'trt-segmentation inspect calibration.cache --model fcn.onnx'

_READS_NO_CACHES = 11  # the first TensorRT without calibrators

_TAKES = ('inspect takes a calibration cache, a bundle directory, or the directory of a built '
          'engine in the store')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument('path', metavar='CACHE|BUNDLE|ENGINE',
                        help="a cache in TensorRT's text format, a bundle directory, or a built "
                             "engine's directory in the store")
    parser.add_argument('--against', metavar='CACHE', help='compare with this cache')
    parser.add_argument('--model', metavar='MODEL.onnx',
                        help='check which tensors of this network the cache covers')
    parser.add_argument('--rewrite', metavar='FILE', type=new_file,
                        help='write the cache anew, with the header of --tensorrt')
    parser.add_argument('--tensorrt', metavar='VERSION', default='',
                        help='the TensorRT that is to accept the rewritten cache, like 10.3.0 '
                             '(default: the installed one)')
    add_format(parser)


def main(args: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    path = Path(args.path)
    if path.is_dir() and any((args.against, args.model, args.rewrite, args.tensorrt)):
        raise InputError(f'{path}: a directory; --against, --model, --rewrite and --tensorrt go '
                         f'with a cache, as {path / "calibration.cache"}')
    if path.is_dir() and (path / 'record.json').exists():
        return _engine(path, args.format)
    if path.is_dir():
        _check_bundle(path)
        return _bundle(path, args.format)
    if path.suffix.lower() == '.onnx':
        raise InputError(f'{path}: a network; {_TAKES}; make a bundle of it with: '
                         + command_line('init', path, 'BUNDLE'))
    return _cache(path, args)


def _check_bundle(path: Path) -> None:
    """Raise InputError for a directory that has nothing of a bundle."""
    from trt_segmentation.bundles.bundle import SPEC_NAME
    from trt_segmentation.recordings.pictures import SUFFIXES
    from trt_segmentation.system.files import SUMS_NAME
    try:
        names = [child.name for child in path.iterdir()]
    except OSError:
        return  # opening the bundle says it
    if SPEC_NAME in names or SUMS_NAME in names:
        return
    if any(name.lower().endswith(SUFFIXES) for name in names):
        step = ('what a network sees in these pictures is shown by: '
                + command_line('preview', 'BUNDLE', '--images', path))
    else:
        step = 'make a bundle with: ' + command_line('init', 'MODEL.onnx', 'BUNDLE')
    raise InputError(f'{path}: no {SPEC_NAME} in it; {_TAKES}; {step}')


def _cache(path: Path, args: argparse.Namespace) -> int:
    """Print a cache, and what it was to be checked for."""
    from trt_segmentation.bundles import cache
    from trt_segmentation.networks import activations as graph
    from trt_segmentation.networks import model as onnx_model
    from trt_segmentation.networks.placement import quantized_tensors
    found = cache.Cache.read(path)
    figures: dict[str, Any] = {
        'header': {'version': found.version, 'algorithm': found.algorithm},
        'tensors': {name: {'amax': found.amax(name), 'scale': scale}
                    for name, scale in found.usable().items()},
        'unusable': {name: repr(scale) for name, scale in found.unusable().items()},
    }
    failed = False
    if args.against:
        difference = cache.compare(found, cache.Cache.read(args.against))
        figures['against'] = {'identical': difference.identical,
                              'same_header': difference.same_header,
                              'only_here': difference.only_first,
                              'only_there': difference.only_second,
                              'changed': difference.changed}
        failed |= not difference.identical
    if args.model:
        other = _other_network(path, args.model)
        models = [onnx_model.load(each) for each in (args.model, other) if each is not None]
        result = cache.coverage(found, [layer for model in models
                                        for layer in graph.layers(model)])
        needed = frozenset[str]().union(*map(quantized_tensors, models))
        figures['coverage'] = {
            'with': None if other is None else other.name,
            'covered': result.covered, 'missing': result.missing, 'stale': result.stale,
            'float_layers': sorted({layer for name, layers in result.missing.items()
                                    if name in needed for layer in layers})}
        failed |= bool(figures['coverage']['float_layers'])
    if args.rewrite:
        version = args.tensorrt or _installed_tensorrt()
        rewritten = found.with_header(version, found.algorithm)
        rewritten.write(args.rewrite)
        if int(version.split('.')[0]) >= _READS_NO_CACHES:
            export = command_line('export', 'BUNDLE', '--for', 'tensorrt-11', '--output', 'DIR')
            say('inspect', f'warning: TensorRT {version} reads no calibration caches; a network '
                f'with the scales in it is written by: {export}')
        figures['rewritten'] = {'file': args.rewrite, 'version': rewritten.version}
        written(args, f'{args.rewrite}: version {rewritten.version}')
    if args.format == 'json':
        print_json(figures)
    else:
        _print_cache(figures)
    return int(failed)


def _other_network(cache: Path, model: str) -> Path | None:
    """
    Return a bundle's other network, which its cache has the tensors of as well.

    :returns: the derived one if `model` is the original, or the other way round; None if the
        cache is no bundle's, or the model not one of it
    """
    from trt_segmentation.bundles import manifest
    from trt_segmentation.bundles.bundle import CACHE_NAME, MANIFEST_NAME
    from trt_segmentation.system.files import sha256_file
    directory = cache.resolve().parent
    if cache.resolve().name != CACHE_NAME or not (directory / MANIFEST_NAME).exists():
        return None
    try:
        document = manifest.read(directory / MANIFEST_NAME)
    except InputError:  # it may be another tool's
        return None
    derived = document.equalization and document.equalization.network
    networks = {each.sha256: directory / each.file for each in (document.model, derived) if each}
    if networks.pop(sha256_file(model), None) is not None:
        for sha256, other in networks.items():
            if other.is_file() and sha256_file(other) == sha256:
                return other
    return None


def _print_cache(figures: dict[str, Any]) -> None:
    """Print the cache as a table, then the results of the checks."""
    from trt_segmentation.reports import text_table
    header = figures['header']
    if 'against' in figures:
        against = figures['against']
        number = sum(len(against[key]) for key in ('only_here', 'only_there', 'changed'))
        print('identical' if against['identical'] else
              f'different  in {counted(number, "scale") if number else "the header"}')
    print(f'header     version {header["version"]}, {header["algorithm"]}')
    rows = [[name, f'{tensor["amax"]:.6g}', f'{tensor["scale"]:.6g}']
            for name, tensor in figures['tensors'].items()]
    print(text_table(['tensor', 'amax', 'scale'], rows))
    for name, scale in figures['unusable'].items():
        print(f'unusable   {name}: {scale}')
    if 'against' in figures:
        for side in ('here', 'there'):
            for name in against[f'only_{side}']:
                print(f'only {side:5} {name}')
        for name, first, second in against['changed']:
            print(f'changed    {name}: {first:.6g} here, {second:.6g} there')
        if not against['same_header']:
            print('changed    the header')
    if 'coverage' in figures:
        result = figures['coverage']
        print(f'coverage   {len(result["covered"])} covered, {len(result["missing"])} missing, '
              f'{len(result["stale"])} stale'
              + (f' (with the tensors of {result["with"]})' if result['with'] else ''))
        for name, layers in result['missing'].items():
            print(f'missing    {name}: used by {", ".join(layers)}')
        for name in result['stale']:
            print(f'stale      {name}: no tensor of this network')
        if result['float_layers']:
            print(f'float      {counted(len(result["float_layers"]), "layer")} left in float: '
                  f'{", ".join(result["float_layers"])}')


def _bundle(path: Path, output: str) -> int:
    """Print a bundle; opening it checks it."""
    from trt_segmentation.bundles.bundle import Bundle, exposed
    from trt_segmentation.bundles.names import check_names
    from trt_segmentation.engines.acceptance import shown
    from trt_segmentation.engines.summary import only_class
    bundle = Bundle.open(path)
    check_names(bundle)
    proof = shown(bundle)
    figures = _bundle_figures(bundle, proof)
    if output == 'json':
        print_json(figures)
        return 0
    _print_bundle(bundle, figures['calibration'])
    print(f'golden     {counted(len(proof.frames), "frame")}')
    if proof.unproven_classes:
        print('unproven   no golden frame shows enough of these to judge an engine by: '
              + ', '.join(proof.unproven_classes))
    if proof.only_class:
        print(f'unproven   {only_class(proof.only_class, path)}')
    print('checked    files, manifest and network fit together')
    if reason := exposed(path):
        print(f'warning    {reason}')
    look = command_line('preview', path, '--images', 'DIRECTORY')
    print('next       ' + (look if proof.only_class else next_step(str(path))))
    return 0


def _bundle_figures(bundle: Bundle, proof: Acceptance) -> dict[str, Any]:
    """Return what is in a bundle as JSON values, after comparing cache, manifest and network."""
    from trt_segmentation.bundles import form, manifest
    from trt_segmentation.calibration.adoption import coverage
    spec = bundle.spec
    figures: dict[str, Any] = {
        'model': {'file': spec.model, 'sha256': bundle.model_sha256},
        'input': {'tensor': spec.input.tensor, 'size': spec.input.size, 'fit': spec.input.fit,
                  'sha256': spec.input.sha256},
        'output': {'tensor': spec.output.tensor, 'kind': spec.output.kind},
        'classes': [label.name for label in spec.labels.classes],
        'golden': len(proof.frames),
        'golden_pixels': dict(proof.pixels),
        'unproven_classes': list(proof.unproven_classes),
        'calibration': None,
    }
    if bundle.cache_path.exists():
        cache, document = manifest.verify(bundle)
        result = coverage(bundle, cache)
        figures['calibration'] = {
            'date': document.date, 'method': document.method, 'images': len(document.images),
            'adopted': document.adopted and form.plain(document.adopted),
            'derived': document.equalization.chosen if document.equalization else '',
            'equalized': [*document.equalization.tensors] if document.equalization else [],
            'tensors': len(cache.scales), 'missing': result.missing, 'stale': result.stale}
    return figures


def _print_bundle(bundle: Bundle, calibration: dict[str, Any] | None) -> None:
    """Print what a bundle's network is and how it was calibrated."""
    from trt_segmentation.bundles import manifest
    spec = bundle.spec
    print(f'model      {spec.model}, sha256 {bundle.model_sha256}')
    print(f'input      {spec.input.tensor}, {spec.input.size[1]}x{spec.input.size[0]}, '
          f'{spec.input.color}, {spec.input.fit}')
    print(f'output     {spec.output.tensor}, {spec.output.kind}, '
          f'{counted(len(spec.labels.classes), "class", "classes")}')
    if calibration is None:
        print('calibrated no')
    elif calibration['adopted']:
        print(f'calibrated by another tool: {calibration["adopted"]["file"]}, adopted '
              f'{calibration["date"]}')
    else:
        print(f'calibrated {calibration["date"]}, {calibration["method"]}, '
              f'{counted(calibration["images"], "image")}')
    if calibration is not None:
        print(f'scales     {calibration["tensors"]}, {len(calibration["missing"])} missing, '
              f'{len(calibration["stale"])} stale')
        if calibration['derived']:
            print(f'derived    {manifest.int8_network(bundle).file}: {calibration["derived"]} '
                  f'({counted(len(calibration["equalized"]), "tensor")})')


def _engine(path: Path, output: str) -> int:
    """Print a built engine's record, after comparing the plan with it."""
    from trt_segmentation.engines.store import Store
    from trt_segmentation.engines.summary import describe
    store = Store(path.absolute().parent, writable=False)
    record, _ = store.engine(path.absolute().name)
    if output == 'json':
        print_json(record.to_json())
    else:
        print('\n'.join(describe(record)))
    return 0


def _installed_tensorrt() -> str:
    """Return the version of the TensorRT that is installed here."""
    from importlib.metadata import PackageNotFoundError, version
    try:
        return version('tensorrt')
    except PackageNotFoundError:
        raise InputError('TensorRT is not installed here; name the version that is to accept '
                         'the cache, as in: --tensorrt 10.3.0') from None
