# SPDX-License-Identifier: Apache-2.0
"""The float network's activations, counted image by image: in this process or on workers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
import math

import numpy as np

from trt_segmentation.bundles import manifest
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.spec import Spec
from trt_segmentation.calibration.calibrator import count, Counted, NotFinite, Wanted
from trt_segmentation.calibration.observer import Observation, Observer
from trt_segmentation.engines.workers import Identity, Place, processor, Workers
from trt_segmentation.recordings.pictures import Picture
from trt_segmentation.segmenters.preprocessing import Preprocessor
from trt_segmentation.system import cores
from trt_segmentation.system.kept import Kept
from trt_segmentation.system.spread import spread

_SAMPLE = 1 << 15  # pixels of an output that classes are counted in


@dataclass(frozen=True)
class Seen:
    """
    What the float network makes of an image.

    counted: None if it is not finite; then `reason` says where
    pixels: int64 (256,), those of a sample of its output by train id
    """

    counted: Counted | None
    pixels: np.ndarray
    reason: str = ''


UNSEEN = Seen(None, np.zeros(256, np.int64))


class Observing:
    """A bundle's float network, ready to see images."""

    def __init__(self, bundle: Bundle, wanted: Wanted, observer: Observer,
                 pool: Executor):
        """
        Take the network.

        :param wanted: what is looked at besides ranges and histograms
        :param pool: threads that count
        """
        self._spec, self._wanted = bundle.spec, wanted
        self._observer, self._pool = observer, pool
        self._preprocess = Preprocessor(bundle.spec.input)

    def __call__(self, pixels: np.ndarray) -> Seen:
        """Look at one image: BGR uint8 (height, width, 3)."""
        outputs: list[np.ndarray] = []
        found = np.zeros(256, np.int64)
        try:
            counted = count(_noting(self._observer(self._preprocess(pixels)), outputs),
                            self._observer.activations, self._wanted, self._pool)
        except NotFinite as error:
            return Seen(None, found, str(error))
        for output in outputs:
            found += _train_ids(self._spec, output)
        return Seen(counted, found)


def observer_of(bundle: Bundle) -> Observer:
    """Return the observer of a bundle's network."""
    return Observer(bundle.model_path, bundle.spec.input.tensor, bundle.spec.input.size,
                    bundle.spec.calibration.exclude, output=bundle.spec.output.tensor)


def identity_of(observer: Observer) -> Identity:
    """Return what runs in this process: the float network on a provider of ONNX Runtime."""
    return Identity({'float network': ('onnxruntime', 'fp32', observer.provider)}, {},
                    manifest.versions(), processor())


class Watching:
    """A bundle's float network on workers, which must be alike."""

    def __init__(self, bundle: Bundle, wanted: Wanted, workers: Workers):
        """Ask one of them what runs there: `identity`."""
        self._workers = workers
        self._network = _Network(workers.place(bundle), wanted)
        self.identity = workers.call(_identify, self._network)

    def __call__(self, pictures: Iterable[Picture], processors: set[str]
                 ) -> Iterator[tuple[Picture, Seen]]:
        """
        Yield pictures in their order with what the float network makes of them.

        :param processors: gets the names of those that computed it
        :raises InputError: for a worker that runs what may give other activations
        """
        jobs = (_Job(picture, self._network) for picture in pictures)
        for job, (identity, seen) in spread(
                self._workers.executor, _look, jobs, ahead=self._workers.number + 2,
                named=lambda job: job.picture.name):
            self.identity.check(identity)
            processors.add(identity.processor)
            yield job.picture, seen


@dataclass(frozen=True)
class _Network:
    """A float network that a worker is to observe."""

    place: Place
    wanted: Wanted

    def __str__(self) -> str:
        """Return where it is."""
        return self.place.path


@dataclass(frozen=True)
class _Job:
    """An image for a worker."""

    picture: Picture
    network: _Network


def _identify(network: _Network) -> Identity:
    """Tell what runs a network; in a worker."""
    with _kept.of(network) as (_, identity):
        return identity


def _look(job: _Job) -> tuple[Identity, Seen]:
    """Look at an image; in a worker."""
    with _kept.of(job.network) as (observing, identity):
        return identity, observing(job.picture.pixels)


def _open(network: _Network, stack: ExitStack) -> tuple[Observing, Identity]:
    """Open the network; in a worker."""
    # It is being changed by the one who asks, who has verified it and says its hash.
    bundle = network.place.open(verify=False)
    pool = stack.enter_context(ThreadPoolExecutor(cores.cores()))
    observer = observer_of(bundle)
    return Observing(bundle, network.wanted, observer, pool), identity_of(observer)


_kept = Kept(_open)


def _noting(observations: Iterable[Observation], outputs: list[np.ndarray]
            ) -> Iterator[Observation]:
    """Yield what is observed of an image, and keep the network's output."""
    for observation in observations:
        if observation.output is not None:
            outputs.append(observation.output)
        yield observation


def _train_ids(spec: Spec, output: np.ndarray) -> np.ndarray:
    """Return how many pixels of a sample of an output have each train id: int64 (256,)."""
    step = max(1, math.isqrt(output.shape[-1] * output.shape[-2] // _SAMPLE))
    sample = output[..., ::step, ::step]
    channels = sample.argmax(axis=1) if spec.output.kind == 'logits' else sample.astype(np.int64)
    known = channels[(channels >= 0) & (channels < len(spec.labels.labels))]
    return np.bincount(spec.labels.train_ids[known.ravel()], minlength=256)
