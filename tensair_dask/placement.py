"""Which replica runs on which worker, device and number of threads."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tensair_dask.errors import ConfigurationError, NoWorkersError

__all__ = ["Place", "WorkerFacts", "place_replicas"]


@dataclass(frozen=True)
class WorkerFacts:
    """What a worker says of itself before replicas are placed.

    Attributes
    ----------
    address
        Where it listens.
    host
        Name of its machine: the GPUs of one host are shared by its workers.
    nthreads
        Of the Dask worker.
    gpus
        CUDA devices that the worker's process sees.
    visible
        Its CUDA_VISIBLE_DEVICES; None if that is not set.
    job
        Id of its batch job, if it has one. Two jobs on one host may see the same
        numbers of devices and mean different ones.
    """

    address: str
    host: str
    nthreads: int
    gpus: int = 0
    visible: str | None = None
    job: str | None = None


@dataclass(frozen=True)
class Place:
    """Where one replica runs, and on what."""

    address: str
    device: str
    torch_threads: int


def place_replicas(
    workers: Sequence[WorkerFacts], replicas: int | None, device: str
) -> list[Place]:
    """Place replicas on workers: one each, unless more are asked for than there are.

    Parameters
    ----------
    workers
        All workers of the cluster.
    replicas
        How many; None for one on each worker.
    device
        ``"auto"``: CUDA where a worker has it, spread over the GPUs of its host, else
        the CPU. Any other name of a torch device is taken as it is.

    Returns
    -------
    places
        One for each replica. On the CPU, the replicas of a worker share its
        ``nthreads``.

    Raises
    ------
    NoWorkersError
        If there are no workers.
    ConfigurationError
        If ``replicas`` is not positive.
    """
    if not workers:
        raise NoWorkersError(
            "The cluster has no workers; a replica needs one. Start workers first, for "
            "example: cluster.scale(2), or on the command line: dask worker ADDRESS."
        )
    if replicas is not None and (not isinstance(replicas, int) or replicas < 1):
        raise ConfigurationError(
            f"replicas={replicas!r} was given; a whole number from 1, or None for one "
            "on each worker, is allowed."
        )
    chosen = _spread(workers)
    count = len(chosen) if replicas is None else replicas
    assigned = [chosen[number % len(chosen)] for number in range(count)]
    per_worker = Counter(worker.address for worker in assigned)
    devices = _devices(assigned) if device == "auto" else [device] * count
    return [
        Place(
            worker.address,
            name,
            max(1, worker.nthreads // per_worker[worker.address]),
        )
        for worker, name in zip(assigned, devices, strict=True)
    ]


def _spread(workers: Sequence[WorkerFacts]) -> list[WorkerFacts]:
    """Take the hosts in turn, so that few replicas land on many machines."""
    by_host: dict[str, list[WorkerFacts]] = defaultdict(list)
    for worker in workers:
        by_host[worker.host].append(worker)
    rounds = max(len(each) for each in by_host.values())
    return [
        each[turn]
        for turn in range(rounds)
        for each in by_host.values()
        if turn < len(each)
    ]


def _devices(assigned: Sequence[WorkerFacts]) -> list[str]:
    # Workers that see the same devices take turns at them. Where each has a list of
    # its own (dask-cuda rotates it), its first one is meant.
    turns: Counter[tuple[str | None, ...]] = Counter()
    devices = []
    for worker in assigned:
        if not worker.gpus:
            devices.append("cpu")
            continue
        shared: tuple[str | None, ...] = (worker.host,)
        if worker.visible is not None:
            shared = (worker.host, worker.visible, worker.job)
        devices.append(f"cuda:{turns[shared] % worker.gpus}")
        turns[shared] += 1
    return devices
