# SPDX-License-Identifier: Apache-2.0
"""What is known of a built engine: what it depends on, and how it was judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from trt_segmentation.bundles import form
from trt_segmentation.bundles.labels import only_class
from trt_segmentation.errors import InputError
from trt_segmentation.networks.layers import Layer
from trt_segmentation.system import files

SCHEMA = 3
_FIRST_SCHEMA = 2
"""Of 0.1.0: failures are sentences, classes that were not judged are not named, and no hash."""

AGREEMENT = 'agreement'
CLASS_AGREEMENT = 'class_agreement'
NOTHING_JUDGED = 'nothing_judged'
INT8_SHARE = 'int8_share'
INT8_UNKNOWN = 'int8_unknown'
OTHER = 'other'


@dataclass(frozen=True)
class Inputs:
    """
    All that a plan depends on; what does not apply to it is None and no part of its key.

    identity: of library and machine, as the backend says it
    model, cache: sha256 of the ONNX file and of the calibration cache
    size: (height, width) of the input tensor
    exclude: nodes that the contract keeps in float
    equalized: sha256 of the network that stands in for the model in INT8, if one does
    max_batch: how many images at once it was built for, if more than one
    """

    backend: str
    identity: Mapping[str, str | bool | int | float]
    graph_revision: int
    model: str
    size: tuple[int, int]
    precision: str
    cache: str | None = None
    exclude: tuple[str, ...] | None = None
    quantization: str | None = None
    equalized: str | None = None
    max_batch: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {key: list(value) if isinstance(value, tuple) else value
                for key, value in asdict(self).items() if value is not None}

    @property
    def key(self) -> str:
        """Return the name of the plan in a store: the hash of all this."""
        return files.sha256_json(self.to_json())

    @property
    def version(self) -> str:
        """Return the version of the library, or '' if the backend names none."""
        return str(self.identity.get('version', ''))


@dataclass(frozen=True)
class Failure:
    """
    One limit that an engine did not keep.

    kind: one of the constants above
    text: the sentence that a user reads
    subject: the class, where it is about one
    """

    kind: str
    text: str
    subject: str = ''


@dataclass(frozen=True)
class Frame:
    """A golden frame: its name, and the sha256 of the class mask that the accepted engine gave."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Figures:
    """
    What an engine was measured to be.

    agreement: share 0..1 of the golden pixels with a class, the float network's or the engine's,
        that have the same one; None if there are none to judge by
    classes: the same for each class that was judged
    int8_share: share 0..1 of the convolution work that runs in INT8; None if it is not known
    """

    agreement: float | None
    classes: Mapping[str, float]
    int8_share: float | None


@dataclass(frozen=True)
class Vehicle(Figures):
    """What the vehicle's INT8 arithmetic gives on the same frames, computed on a host's CPU."""

    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class Acceptance(Figures):
    """
    How an engine was judged.

    basis: hash of what it was judged by, besides the plan
    frames: the golden frames
    failures: the limits that it did not keep; none if it passed
    waived: those that were not counted because somebody said so
    pixels: of each class of the contract, how many golden pixels have it
    vehicle: where a host's CPU was judged, what the vehicle's arithmetic gives; else None
    """

    basis: str = ''
    frames: tuple[Frame, ...] = ()
    failures: tuple[Failure, ...] = ()
    waived: tuple[Failure, ...] = ()
    pixels: Mapping[str, int] = field(default_factory=dict)
    vehicle: Vehicle | None = None

    @property
    def unproven_classes(self) -> tuple[str, ...]:
        """Return the classes that no golden frame shows, or too little of, to judge by."""
        return tuple(name for name in self.pixels if name not in self.classes)

    @property
    def only_class(self) -> str:
        """Return the class of several beside which golden frames show a trace of others, or ''."""
        return only_class(self.pixels)


@dataclass(frozen=True)
class Batch:
    """
    What was measured of a batch size: images in, masks out.

    size: how many images
    frame_ms: milliseconds for each of them
    differs: how its masks differ from those of the images one by one; '' if they do not
    """

    size: int
    frame_ms: float
    differs: str = ''


_FASTER = 0.98  # of the time of images in turn; less of a gain is noise


@dataclass(frozen=True)
class Record:
    """
    All that a store knows of an engine.

    bundle: the directory that it was built from
    built: date and time, ISO 8601, UTC
    layers: the network's weighted layers, with what each one runs in
    log: noteworthy lines of the build
    timing_cache_sha256: of what the kernels were chosen by; None where the library has none
    batches: the measured batch sizes, ascending from 1; none if it was built for one image
    vouched: the record's own hash was right; one of 0.1.0 has none, so it proves nothing
    """

    inputs: Inputs
    bundle: str
    built: str
    build_seconds: float
    package_version: str
    layers: tuple[Layer, ...]
    log: tuple[str, ...]
    acceptance: Acceptance
    timing_cache_sha256: str | None = None
    batches: tuple[Batch, ...] = ()
    plan_sha256: str = ''
    vouched: bool = True

    @property
    def key(self) -> str:
        """Return the plan's name in a store."""
        return self.inputs.key

    @property
    def precision(self) -> str:
        """Return what the engine was built as."""
        return self.inputs.precision

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Return 1 and, ascending, the sizes that take less time a frame, for the same masks."""
        return 1, *(batch.size for batch in self.batches
                    if batch.size > 1 and not batch.differs
                    and batch.frame_ms < _FASTER * self.batches[0].frame_ms)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values, with a hash of them."""
        values = {'schema': SCHEMA, 'key': self.key, **asdict(self),
                  'inputs': self.inputs.to_json()}
        del values['vouched']
        values['acceptance']['unproven_classes'] = list(self.acceptance.unproven_classes)
        return {**values, 'sha256': files.sha256_json(values)}

    @classmethod
    def from_json(cls, values: Any, where: str) -> Record:
        """
        Return the record of plain values.

        :param where: the file, for messages
        :raises InputError: for another schema, an unknown or missing key, a value of another
            type, a hash that is not that of the values, or a key that is not that of the inputs
        """
        if not isinstance(values, dict):
            raise InputError(f'{where}: expected the record of an engine')
        values = dict(values)
        schema, key = values.pop('schema', None), values.pop('key', None)
        if schema == SCHEMA:
            vouched = values.pop('sha256', None)
            if vouched != _hash({'schema': schema, 'key': key, **values}):
                raise InputError(f'{where}: its hash is not that of its content')
            if isinstance(values.get('acceptance'), dict):  # follows from the rest
                values['acceptance'] = {name: value for name, value in values['acceptance'].items()
                                        if name != 'unproven_classes'}
        elif schema == _FIRST_SCHEMA:
            values = _from_first(values)
        else:
            raise InputError(f'{where}: schema: found {schema!r}, expected {SCHEMA}')
        if 'vouched' in values:
            raise InputError(f'{where}: unknown key vouched')
        record = form.record(cls, {**values, 'vouched': schema == SCHEMA}, where)
        if record.key != key:
            raise InputError(f'{where}: its key is not the hash of its inputs')
        return record


def _hash(values: dict[str, Any]) -> str:
    """Return the hash of plain values, or '' where they have none (nan)."""
    try:
        return files.sha256_json(values)
    except ValueError:
        return ''


def _from_first(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a record of 0.1.0 in today's form."""
    acceptance = values.get('acceptance')
    if isinstance(acceptance, dict):
        values['acceptance'] = {**acceptance, **{
            name: [{'kind': OTHER, 'text': text} for text in acceptance[name]]
            for name in ('failures', 'waived') if isinstance(acceptance.get(name), list)}}
    return values
