# SPDX-License-Identifier: Apache-2.0
"""
The command `trt-segmentation`: one verb a module of this package.

A verb's module has a docstring whose first line is its help, `EXAMPLE` (a command line that
works), `add_arguments(parser)` and `main(args) -> int`. Exit codes: 0 done, 1 the check it was
asked for failed, 2 wrong use or bad input, 130 interrupted (143 by SIGTERM).
"""

from __future__ import annotations

import argparse
import codecs
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from io import TextIOWrapper
import os
from pathlib import Path
from pkgutil import iter_modules
import shlex
import signal
import sys
from typing import Any, TYPE_CHECKING

from trt_segmentation import __version__
from trt_segmentation.errors import (
    command_line,
    counted,
    InputError,
    nearest,
    one_line,
    SegmentationError,
)
from trt_segmentation.system import arguments, files

if TYPE_CHECKING:
    from trt_segmentation.bundles.bundle import Bundle
    from trt_segmentation.engines import Dla
    from trt_segmentation.engines.workers import Workers

PROGRAM = 'trt-segmentation'
_ENGINE = {'backend': 'auto', 'precision': 'int8', 'store': None, 'gpu': '', 'dla_core': None,
           'gpu_fallback': False}
_ESCAPED = 'trt_segmentation.escaped'  # how standard output and error treat what they lack
_FEW = 3  # images that are named one by one in the next command
_TOO_FEW = 10  # images to calibrate with, for tuning to be what is missing
_EPILOG = """\
A network of yours: init, preview, calibrate, evaluate; on the vehicle: build, then the node,
segmentation_node. To see all of it without any: demo. When something does not work: doctor.
Each COMMAND has --help with an example, which `help COMMAND` shows too. Exit codes: 0 done, 1 the
check it was asked for failed, 2 wrong use or bad input, 130 interrupted (143 by SIGTERM).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    name = ' '.join([PROGRAM, *words[:1]])
    if sys.stdout is None:  # the caller closed it, and the next file that is opened would take it
        print(f'{name}: standard output is closed; send to /dev/null what is not wanted',
              file=sys.stderr)
        return 2
    try:
        try:
            return _run(name, words)
        finally:
            sys.stdout.flush()  # here, so that a full disk is met where it is handled
    except KeyboardInterrupt as interrupt:
        print(f'{name}: interrupted', file=sys.stderr)
        return 128 + (*interrupt.args, signal.SIGINT)[0]  # as a shell says which signal it was
    except OSError as error:
        if _output_works():
            raise
        _drop_output()
        print(f'{name}: standard output cannot be written: {error.strerror or error}',
              file=sys.stderr)
        return 2


def _run(name: str, words: Sequence[str]) -> int:
    """Run one command; print the error that ends it; return its exit code."""
    try:
        if not words:
            _parser().print_help(sys.stderr)
            return 2
        if words[0] == 'help':
            words = [*words[1:2], '--help']
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):
                # A name that the terminal's encoding lacks must not end a command after its work.
                stream.reconfigure(errors=_ESCAPED)
        args = _parser(words[:1]).parse_args(words)
        if gpu := getattr(args, 'gpu', ''):
            from trt_segmentation.cuda import device  # needs NumPy, and doctor must not
            device.select(gpu)
        status: int = args.main(args)
        return status
    except SegmentationError as error:
        print(f'{name}: {error}', file=sys.stderr)
        return error.exit_code
    except ImportError as error:
        if (error.name or '').startswith('trt_segmentation'):
            raise
        print(f'{name}: {error.name or "a library"} cannot be imported: {one_line(error)}; what '
              'each part needs, and what to do: trt-segmentation doctor', file=sys.stderr)
        return 2


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """Escape what an encoding lacks; of a path's bytes what they mean, as `files.readable`."""
    assert isinstance(error, UnicodeEncodeError)
    text = files.readable(error.object[error.start:error.end])
    return text.encode(error.encoding, 'backslashreplace').decode(error.encoding), error.end


codecs.register_error(_ESCAPED, _escaped)


def _output_works() -> bool:
    """Tell whether standard output takes one more line, and what is still in its buffer."""
    try:
        print(flush=True)
    except OSError:
        return False
    return True


def _drop_output() -> None:
    """Send what is left for standard output nowhere: Python writes it again when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def add_format(parser: argparse.ArgumentParser, *more: str) -> None:
    """Add --format to a command that reports figures, as text, as JSON, and in more ways."""
    parser.add_argument('--format', choices=('text', 'json', *more), default='text',
                        help='how figures are printed to standard output (default: text)')


def add_gpu(parser: argparse.ArgumentParser) -> None:
    """Add the choice of the GPU to a command that uses one."""
    parser.add_argument('--gpu', metavar='INDEX|UUID', default='',
                        help='which GPU, as nvidia-smi --list-gpus shows them (default: the '
                             'first that CUDA shows)')


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the choice of backend, precision, store and device to a command that runs an engine."""
    from trt_segmentation.engines import BACKENDS, PRECISIONS
    parser.add_argument('--backend', choices=('auto', *BACKENDS),
                        help='what builds and runs the engine (default: the best there is)')
    parser.add_argument('--precision', choices=(*PRECISIONS, 'auto'),
                        help='auto takes INT8 unless FP32 is faster here (default: int8)')
    parser.add_argument('--store', metavar='DIR',
                        help='where built engines live (default: $TRT_SEGMENTATION_STORE, else '
                             "the user's cache directory)")
    add_gpu(parser)
    parser.add_argument('--dla-core', type=int, metavar='N',
                        help='run on this deep learning accelerator of a Jetson or DRIVE instead '
                             'of the GPU (backend tensorrt; nobody has run it on one yet)')
    parser.add_argument('--gpu-fallback', action='store_true',
                        help='let layers that the DLA cannot run use the GPU')
    parser.set_defaults(**_ENGINE)


def engine_choice(args: argparse.Namespace) -> dict[str, Any]:
    """Return what was chosen by the arguments of `add_engine`, and is not what goes without."""
    return {name: getattr(args, name) for name, default in _ENGINE.items()
            if getattr(args, name) != default}


def engine_words(args: argparse.Namespace) -> list[str]:
    """Return the words that choose the same engine again."""
    return [word for name, value in engine_choice(args).items()
            for word in (f'--{name.replace("_", "-")}', *([] if value is True else [str(value)]))]


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Add the choice of who does the work to a command that has many items of it."""
    parser.add_argument('--jobs', type=int, metavar='N',
                        help='work in so many processes, which share the cores; the result does '
                             'not depend on it (default: what the machine has, as far as it is '
                             'worth it; on a GPU one process, and N threads that decode)')
    parser.add_argument('--dask', metavar='ADDRESS',
                        help='work on the workers of a Dask cluster: its scheduler, as '
                             'tcp://HOST:8786, or its scheduler file; paths are as they read them')


@contextmanager
def workers_of(args: argparse.Namespace, items: int, enough: int, *, alone: bool = False,
               store: str | None = None, gpu: bool = False) -> Iterator[Workers | None]:
    """
    Yield who does the work, by the arguments of `add_jobs`; None for this process alone.

    :param items: how many there are; enough: as many as are worth a process
    :param alone: whether no other process of this machine can help
    :param store: the engines' store; gpu: whether Dask's items need a GPU where there are some
    """
    if args.dask is not None:
        if args.jobs is not None:
            raise InputError('--jobs and --dask: give one of them; a cluster has its own number '
                             'of workers')
        from trt_segmentation.engines.cluster import connect
        with connect(args.dask, store=store, gpu=gpu) as workers:
            yield workers
        return
    from trt_segmentation.engines.workers import Workers
    from trt_segmentation.system import cores
    from trt_segmentation.system.processes import Processes, workers_for
    number = workers_for(args.jobs, items, enough)
    if alone or number == 1:
        yield None
        return
    with Processes(number, max(1, cores.cores() // number)) as executor:
        yield Workers(executor, number)


def dla_of(args: argparse.Namespace) -> Dla | None:
    """Return the accelerator that the arguments of `add_engine` name; None for the GPU."""
    from trt_segmentation.engines import Dla
    if args.dla_core is None:
        if args.gpu_fallback:
            raise InputError('--gpu-fallback goes with --dla-core')
        return None
    return Dla(args.dla_core, args.gpu_fallback)


def new_file(text: str, *, parents: bool = False, folder: bool = False) -> str:
    """
    Return the path of a file to write, of a link what it leads to, whose place nothing takes.

    For argparse, so that it is refused before any work.

    :param parents, folder: as `check_writable` takes them
    """
    path = os.path.realpath(text) if os.path.islink(text) else text
    files.check_writable(path, parents=parents, folder=folder)
    return path


def new_place(text: str) -> str:
    """Return the path of a directory or a recording to make, with its parents; for argparse."""
    return new_file(text, parents=True, folder=True)


def share(text: str) -> float:
    """Return a share 0..1; for argparse."""
    value = arguments.number(text.removesuffix('%'))
    if text.endswith('%') or not 0 <= value <= 1:
        as_share = f': write {value / 100:g}' if 1 < value <= 100 else ''
        raise argparse.ArgumentTypeError(f'found {text}, expected a share 0..1{as_share}')
    return value


def say(verb: str, line: str) -> None:
    """Tell what is known before the work, or beside its result; that is standard output's."""
    print(f'{PROGRAM} {verb}: {line}', file=sys.stderr)


def size(bundle: Bundle) -> str:
    """Return the size of the network's images, in words."""
    height, width = bundle.spec.input.size
    return f'network {width}x{height}'


def written(args: argparse.Namespace, *paths: object) -> None:
    """Print what a command has written; beside standard output where that is a document."""
    text = ', '.join(map(str, paths))
    if args.format == 'text':
        print(f'written    {text}')
    else:
        say(args.command, f'written {text}')


def next_step(bundle: str, images: Sequence[str] = ('DIRECTORY',), store: str | None = None
              ) -> str:
    """
    Return the command that leads a bundle on to an engine that is proven, or to its node.

    :param images: those that were given to this command
    :param store: the store that was, if one was
    """
    from trt_segmentation.bundles import manifest
    from trt_segmentation.bundles.bundle import CACHE_NAME, GOLDEN_NAME, MANIFEST_NAME
    if not (Path(bundle) / CACHE_NAME).exists():
        return command_line('calibrate', bundle, '--images', *few(images))
    if not (Path(bundle) / GOLDEN_NAME).exists():
        document = Path(bundle) / MANIFEST_NAME
        if document.exists() and manifest.read(document).images:
            images = ('OTHER',)  # those that were given may be what it was calibrated with
        return command_line('golden', bundle, '--images', *few(images))
    backend, precision = _built_here(bundle, store)
    if backend:
        chosen = {'store': store, 'precision': precision}
        return node_step(bundle, backend, {name: value for name, value in chosen.items()
                                           if value != _ENGINE[name]})
    return command_line('build', bundle, *(('--store', store) if store else ()))


def _built_here(bundle: str, store: str | None) -> tuple[str, str]:
    """Return backend and precision of a proven engine of a bundle; '' twice if there is none."""
    from trt_segmentation.bundles.bundle import Bundle
    from trt_segmentation.engines import choose_backend
    from trt_segmentation.engines.opening import newest_proven
    from trt_segmentation.engines.store import Store
    try:
        backend, opened = choose_backend(), Bundle.open(bundle)
        storage = Store(store, writable=False)
        for precision in ('int8', 'auto'):
            if newest_proven(opened, backend, precision, storage) is not None:
                return backend.name, precision
    except InputError:  # `build` says it
        pass
    return '', ''


def node_step(bundle: str, backend: str, choice: Mapping[str, Any], there: str = '') -> str:
    """
    Return the command of a node that runs an engine which was built.

    :param choice: what was chosen of it, as `engine_choice` returns it, or max_batch
    :param there: what is next for a vehicle, if its engine would not be accepted as this one was
    """
    words, parameters = ['segmentation_node', bundle, '--camera', 'TOPIC'], []
    for name, value in choice.items():
        if name in ('store', 'backend'):
            words += [f'--{name}', value]
        else:
            parameters += ['-p', f'{name}:={"true" if value is True else value}']
    node = shlex.join([*words, *['--ros-args'] * bool(parameters), *parameters])
    if backend != 'onnxruntime':
        return node
    # The CPU's engine is made on a host, mostly, and the bundle goes on to the vehicle.
    precision = f' with --precision {choice["precision"]}' if 'precision' in choice else ''
    return (f'here: {node}; '
            + (f'for a vehicle: {there}' if there else
               f'on a vehicle: copy the bundle there, and build it{precision}'))


def after_refusal(bundle: str, tuned: bool, images: Sequence[str] = ('DIRECTORY',),
                  used: int | None = None) -> str:
    """
    Return what may help where INT8 is refused.

    :param tuned: whether --tune was tried
    :param images: those that were given to this command
    :param used: how many the bundle was calibrated with, if that was now
    """
    if used is not None and used < _TOO_FEW:
        return (command_line('calibrate', bundle, '--images', 'DIRECTORY')
                + f'  (with more than {counted(used, "image")})')
    if tuned:
        return command_line('build', bundle, '--precision', 'auto')
    return command_line('calibrate', bundle, '--images', *few(images), '--tune')


def few(images: Sequence[str]) -> Sequence[str]:
    """Return images as they were given; of many, as of a shell's glob, what they are all in."""
    if len(images) <= _FEW:
        return images
    directories = {os.path.dirname(image) or '.' for image in images}
    one = len(directories) == 1 and all(map(os.path.exists, directories))  # and no URL
    return [*directories] if one else ['IMAGES']


def print_json(value: Any) -> None:
    """Print figures as JSON; a number that does not exist (nan) becomes null."""
    from trt_segmentation.reports import json_text
    print(json_text(value), end='')


def _parser(asked: Sequence[str] = ()) -> argparse.ArgumentParser:
    """
    Return the parser with a subparser for each verb module.

    :param asked: the verb, if it is known: importing the others would take a second
    """
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description='INT8 semantic segmentation: calibrate, build, prove, run.',
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    verbs = parser.add_subparsers(dest='command', required=True, metavar='COMMAND',
                                  parser_class=arguments.Parser)
    names = [info.name for info in iter_modules(__path__)]
    options = parser._option_string_actions
    for word in asked:
        if not word.startswith('-') and word not in names:
            parser.error(f'no command {word!r} (there are {", ".join(names)})'
                         + nearest(word, names))
        if word.startswith('--') and not any(option.startswith(word) for option in options):
            parser.error(f'no option {word}{arguments.nearest_option(word, options)}')
    for name in [name for name in names if name in asked] or names:
        verb = import_module(f'{__name__}.{name}')
        summary = (verb.__doc__ or '').strip().partition('\n')[0]  # none under python -OO
        sub = verbs.add_parser(
            name, help=summary, description=verb.__doc__,
            epilog=f'example:\n  {verb.EXAMPLE}',
            formatter_class=argparse.RawDescriptionHelpFormatter)
        verb.add_arguments(sub)
        sub.set_defaults(main=verb.main)
    return parser
