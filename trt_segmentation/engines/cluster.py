# SPDX-License-Identifier: Apache-2.0
"""The workers of a Dask cluster: connecting to them, and sending them a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
import shlex
from typing import Any

from trt_segmentation.bundles import parcel
from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.engines.store import default_path
from trt_segmentation.engines.workers import Place, Workers
from trt_segmentation.errors import InputError, missing_library, one_line
from trt_segmentation.system import cores

_PATIENCE = '60s'  # for the scheduler, and for a first worker
_GPU = 'GPU'
"""The resource that workers with a GPU are started with: dask worker --resources "GPU=1"."""


@dataclass(frozen=True)
class DaskWorkers(Workers):
    """
    Workers of a cluster, to whom bundles are sent.

    client: of the cluster; store: the workers' own, None for each one's default
    """

    client: Any
    store: str | None

    def place(self, bundle: Bundle) -> Place:
        """Send a bundle to all workers, and to those that come later; return where it is there."""
        sent = parcel.pack(bundle)
        self.client.register_plugin(_plugin(sent, self.store), name=f'bundle {sent.sha256}')
        return Place(sent.sha256, bundle.sha256, sent=True, store=self.store)


@contextmanager
def connect(address: str, *, store: str | None, gpu: bool) -> Iterator[DaskWorkers]:
    """
    Yield the workers of a cluster.

    :param address: the scheduler's, as tcp://HOST:8786, or the path of its scheduler file
    :param store: the workers' own store; None for each worker's default
    :param gpu: whether the items need one: they then go to the workers that say that they have
        one, each to one of its own, if there are such workers
    :raises InputError: if Dask is not installed here, or no scheduler or worker answers
    """
    try:
        import distributed
    except ImportError:
        raise missing_library('distributed', '--dask', 'dask') from None
    given = {'scheduler_file' if _is_file(address) else 'address': address}
    try:
        client = distributed.Client(timeout=_PATIENCE, set_as_default=False, **given)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(f'--dask {address}: no scheduler answers: {one_line(error)}; start one '
                         'with: dask scheduler') from None
    with client:
        try:
            client.wait_for_workers(1, timeout=_PATIENCE)
        except (TimeoutError, OSError):
            raise InputError(f'--dask {address}: the scheduler has no workers after {_PATIENCE}; '
                             f'start some with: {worker_command(address)}') from None
        workers = client.scheduler_info(n_workers=-1)['workers'].values()
        with_gpu = [worker for worker in workers if worker.get('resources', {}).get(_GPU)]
        options = {'resources': {_GPU: 1}} if gpu and with_gpu else {}
        number = sum(worker['nthreads'] for worker in (with_gpu if options else workers))
        yield DaskWorkers(client.get_executor(pure=False, **options), number, client, store)


def worker_command(address: str) -> str:
    """Return the command that starts a worker of the scheduler at an address, or of its file."""
    option = ['--scheduler-file'] if _is_file(address) else []
    return shlex.join(['dask', 'worker', *option, address, '--nthreads', '1'])


def _is_file(address: str) -> bool:
    """Tell a scheduler's file from its address."""
    return address.endswith('.json')


def _plugin(sent: parcel.Parcel, store: str | None) -> Any:
    """Return what each worker does when it begins: to keep a bundle."""
    from distributed import WorkerPlugin

    class Keep(WorkerPlugin):  # type: ignore[misc]
        """Keeps a bundle in the worker's store, and the worker to its cores."""

        def setup(self, worker: Any) -> None:
            """Do so."""
            cores.take(worker.state.nthreads)
            parcel.unpack(sent, Path(store) if store else default_path())

    return Keep()
