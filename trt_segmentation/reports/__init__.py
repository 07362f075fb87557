# SPDX-License-Identifier: Apache-2.0
"""
Reports: one self-contained HTML file each, and the same figures as Markdown and text.

Every page extends `base.html` and ends with where its figures come from: command, versions,
hashes, machine.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from html import escape
from io import BytesIO
import json
import os
from pathlib import Path
import platform
import re
import shlex
import sys
from typing import Any
import warnings

from trt_segmentation import __version__
from trt_segmentation.bundles import manifest
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.engines import acceptance, summary
from trt_segmentation.errors import counted, InputError, missing_library
from trt_segmentation.system import machine
from trt_segmentation.system.files import readable
from trt_segmentation.system.libraries import import_matplotlib

Table = tuple[list[str], list[list[str]]]
"""The head of a table, and its rows."""

_TEMPLATES = Path(__file__).parent

_ON_CPU = {'onnxruntime': 'ONNX Runtime', 'opencv': 'OpenCV'}
_ON_GPU = {'tensorrt': 'TensorRT', 'tensorrt_rtx': 'TensorRT for RTX'}


@dataclass(frozen=True)
class Verdict:
    """
    What a report answers before anything else.

    kind: 'good', 'bad', 'warn', or '' for what is neither
    reasons: a sentence each
    """

    kind: str
    answer: str
    reasons: Sequence[str] = ()

    def lines(self) -> list[str]:
        """Return it as lines of text."""
        return [self.answer, *(f'  {reason}' for reason in self.reasons)]

    def markdown(self) -> str:
        """Return it in Markdown."""
        return '\n'.join([f'**{self.answer}**', *(f'- {reason}' for reason in self.reasons)])


def provenance(bundle: Bundle | None = None) -> dict[str, str]:
    """
    Return where figures come from: command, time, host, versions, hashes, machine.

    Reports are handed on, so what lies above a file or directory that was named, with the names of
    users and projects in it, is left out.
    """
    found = {
        'command': readable(shlex.join(
            ['trt-segmentation', *map(_without_directories, sys.argv[1:])])),
        'time': datetime.now(timezone.utc).isoformat(timespec='seconds'),
        'host': platform.node(),
        'trt_segmentation': __version__,
    }
    if bundle is not None:
        found['bundle'] = bundle.path.absolute().name
        found['bundle sha256'] = bundle.sha256
        found['network sha256'] = bundle.model_sha256
    return {**found, **manifest.versions(), **machine.describe()}


def without_directories(text: str, *paths: str | os.PathLike | None) -> str:
    """
    Return a text with each absolute path that was named, or begins so, as .../NAME.

    :param paths: what the command line named; None for what it did not
    """
    for path in paths:
        plain = readable(path or '').rstrip('/')
        if os.path.isabs(plain):
            text = text.replace(plain, f'.../{os.path.basename(plain)}')
    return text


def unproven(bundle: Bundle) -> list[str]:
    """
    Return what the golden frames of a bundle prove of no engine, a sentence each.

    With its path, for who reads the terminal; files get them `without_directories`.
    """
    return [f'no engine of this bundle is proven whole: {text}'
            for text in summary.unproven(acceptance.shown(bundle), bundle.path)]


def measured(backends: Collection[str]) -> list[str]:
    """
    Return whose arithmetic and time was measured, and what that says of a vehicle.

    :param backends: names, of engines that ran
    :returns: one sentence; none where no engine is known
    """
    cpu = ' and '.join(name for backend, name in _ON_CPU.items() if backend in backends)
    gpu = ' and '.join(name for backend, name in _ON_GPU.items() if backend in backends)
    if gpu:
        return [f"measured on this machine's GPU ({gpu})" + (f' and CPU ({cpu})' if cpu else '')
                + ': a vehicle with another GPU takes another time; measure there']
    if cpu:
        return [f"measured on this host's CPU ({cpu}, with kernels for this CPU): says nothing "
                "about the time of the vehicle's engine (TensorRT, on its GPU), whose INT8 masks "
                'differ in some pixels, too']
    return []


def _without_directories(argument: str) -> str:
    """Return an argument of the command line; an absolute path in it as .../NAME."""
    found = re.search('(?:^|(?<==))[/~]', argument)  # alone, or the value of an option
    if not found:
        return argument
    path = os.path.expanduser(argument[found.start():])
    return (f'{argument[:found.start()]}.../{Path(path).name}' if path.startswith('/')
            else argument)


def output_directory(path: str | os.PathLike) -> Path:
    """Return the directory that reports go into, made if needed; raises InputError."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f'{path}: cannot be made: {error.strerror}') from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f'{path}: not writable; name another directory')
    return path


def render(template: str, **values: Any) -> str:
    """
    Return a page.

    :param template: its name beside this file, as 'evaluation.html'
    :param values: what the template names; text in it is escaped
    """
    try:
        import jinja2
    except ImportError:
        raise missing_library('jinja2', 'Writing a report', 'cpu') from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True,
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(counted=counted, share=share, jpeg_uri=jpeg_uri, whole=whole)
    return environment.get_template(template).render(**values)


def new_figure(width: float, height: float):
    """Return a matplotlib figure of that size in inches, which needs no display."""
    try:
        import_matplotlib()
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_library('matplotlib', 'Plotting', 'cpu') from None
    return Figure((width, height), layout='constrained')


def figure_uri(figure: Any) -> str:
    """
    Return a matplotlib figure as an SVG picture for <img src>.

    Its text stays text, which a browser can write in all languages, and matplotlib cannot.
    """
    from matplotlib import rc_context
    out = BytesIO()
    # Equal figures, equal bytes.
    with rc_context({'svg.hashsalt': 'trt_segmentation', 'svg.fonttype': 'none'}), \
            warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph .* missing from', UserWarning)
        figure.savefig(out, format='svg', metadata={'Date': None})
    return f'data:image/svg+xml;base64,{base64.b64encode(out.getvalue()).decode()}'


def plain_numbers(axis: Any, *, symmetric: bool = False) -> None:
    """
    Write the numbers of a logarithmic axis as people do: 0.5, 20, 3,000.

    :param symmetric: the axis has 0, as matplotlib's symlog has
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, SymmetricalLogLocator
    if symmetric:
        axis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:,.10g}'))
    axis.set_minor_formatter(NullFormatter())


def jpeg_uri(data: bytes) -> str:
    """Return a JPEG file's bytes as a picture for <img src>."""
    return f'data:image/jpeg;base64,{base64.b64encode(data).decode()}'


def json_text(value: Any) -> str:
    """Return figures as JSON; a number that does not exist (nan) becomes null."""
    return json.dumps(_plain(value), indent=2, allow_nan=False) + '\n'


def whole(text: object) -> str:
    """Return a text as HTML in which no line ends at a hyphen, as in `--images`."""
    from markupsafe import Markup
    return Markup(' ').join(
        Markup('<span class="whole">{}</span>').format(word) if '-' in word else word
        for word in str(text).split(' '))


def share(value: float | None, digits: int = 2) -> str:
    """Return a share 0..1 in percent, without the sign; '-' if there is none."""
    return '-' if value is None or value != value else f'{100 * value:.{digits}f}'


def points(value: float | None) -> str:
    """Return a difference in points with its sign; '-' if there is none."""
    if value is None or value != value:
        return '-'
    text = f'{value:+.2f}'
    return '0.00' if float(text) == 0 else text


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """
    Return a table in Markdown; all columns but the first are right-aligned.

    What a cell has of HTML and of the table's own signs is escaped.
    """
    cells = [[escape(cell, quote=False).replace('|', '\\|') for cell in row]
             for row in (head, *rows)]
    lines = [cells[0], ['---', *['---:'] * (len(head) - 1)], *cells[1:]]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in columns; all but the first are right-aligned."""
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    return '\n'.join('  '.join([line[0].ljust(widths[0]), *(
        cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]).rstrip()
        for line in (head, *rows))


def facts(entries: Mapping[str, Any]) -> str:
    """Return names and values in Markdown, one a line."""
    return '\n'.join(f'- {name}: {value}' for name, value in entries.items())


def _plain(value: Any) -> Any:
    """Return `value` with None for each nan, which JSON does not have, and readable texts."""
    if isinstance(value, dict):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, str):
        return readable(value)
    return None if isinstance(value, float) and value != value else value
