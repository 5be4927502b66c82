"""Which replica runs on which worker, device and number of threads."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tensair_dask._common.checks import is_whole
from tensair_dask.errors import ConfigurationError, NoWorkersError

__all__ = ["Place", "ReplicaCount", "WorkerFacts", "place_more", "place_replicas"]


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
    ready
        Whether it can begin a task at once: it is not busy.
    devices
        Of the replicas that are there, of this trainer and of others.
    paused
        Whether Dask lets it begin nothing for now, since it has too much in memory.
    """

    address: str
    host: str
    nthreads: int
    gpus: int = 0
    visible: str | None = None
    job: str | None = None
    ready: bool = True
    devices: tuple[str, ...] = ()
    paused: bool = False


@dataclass(frozen=True)
class Place:
    """Where one replica runs, and on what."""

    address: str
    device: str
    torch_threads: int


@dataclass(frozen=True)
class ReplicaCount:
    """How many replicas are requested, as the cluster grows and shrinks.

    Attributes
    ----------
    least, most
        Between them, as many as there are workers.
    """

    least: int
    most: float

    @classmethod
    def of(cls, replicas: Any) -> ReplicaCount:
        """Make one of ``"all"`` (or None), a number, or a pair of them.

        Raises
        ------
        ConfigurationError
            If it is anything else.
        """
        if replicas is None or replicas == "all":
            return cls(1, math.inf)
        if is_whole(replicas, 1):
            return cls(replicas, replicas)
        if isinstance(replicas, (tuple, list)) and len(replicas) == 2:
            least, most = replicas
            if is_whole(least, 1) and is_whole(most, 1) and least <= most:
                return cls(least, most)
        raise ConfigurationError(
            f"replicas={replicas!r} was given; allowed are 'all' for one on each "
            "worker, a whole number from 1, or a pair of them such as (1, 8) for one "
            "on each worker within these bounds; ReplicaConfig(count=...) takes the "
            "same."
        )

    def count(self, workers: int) -> int:
        """How many are requested on so many workers."""
        return int(min(max(workers, self.least), self.most))


def place_more(
    workers: Sequence[WorkerFacts],
    present: Sequence[Place],
    count: int,
    device: str,
) -> list[Place]:
    """Place further replicas, on the workers that have the fewest.

    Parameters
    ----------
    workers
        All workers of the cluster that may be used.
    present
        Where the replicas are that there are.
    count
        How many are to come.
    device
        As in `place_replicas`.

    Returns
    -------
    places
        One for each, if there are workers at all.
    """
    if not workers:
        return []
    load = Counter(place.address for place in present)
    chosen: list[WorkerFacts] = []
    order = _spread(workers)
    for _ in range(count):
        worker = min(order, key=lambda each: load[each.address])
        load[worker.address] += 1
        chosen.append(worker)
    devices = [device] * count
    if device == "auto":
        devices = _devices(chosen, workers, present)
    return [
        Place(worker.address, name, max(1, worker.nthreads // load[worker.address]))
        for worker, name in zip(chosen, devices, strict=True)
    ]


def place_replicas(
    workers: Sequence[WorkerFacts], replicas: int, device: str
) -> list[Place]:
    """Place replicas on workers: one each, unless more are asked for than there are.

    Parameters
    ----------
    workers
        All workers of the cluster.
    replicas
        How many.
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
    """
    if not workers:
        raise NoWorkersError(
            "The cluster has no workers; a replica needs one. Start workers first, for "
            "example: cluster.scale(2), or on the command line: dask worker ADDRESS."
        )
    chosen = _spread(workers)
    assigned = [chosen[number % len(chosen)] for number in range(replicas)]
    per_worker = Counter(worker.address for worker in assigned)
    devices = [device] * replicas
    if device == "auto":
        devices = _devices(assigned, workers)
    return [
        Place(
            worker.address,
            name,
            max(1, worker.nthreads // per_worker[worker.address]),
        )
        for worker, name in zip(assigned, devices, strict=True)
    ]


def _spread(workers: Sequence[WorkerFacts]) -> list[WorkerFacts]:
    """Take the hosts in turn, so that few replicas land on many machines.

    But first of all those that can begin at once, and of these the emptiest.
    """
    by_host: dict[str, list[WorkerFacts]] = defaultdict(list)
    for worker in workers:
        by_host[worker.host].append(worker)
    rounds = max(len(each) for each in by_host.values())
    in_turn = [
        each[turn]
        for turn in range(rounds)
        for each in by_host.values()
        if turn < len(each)
    ]
    return sorted(in_turn, key=lambda each: (not each.ready, len(each.devices)))


def _devices(
    assigned: Sequence[WorkerFacts],
    workers: Sequence[WorkerFacts],
    present: Sequence[Place] = (),
) -> list[str]:
    # Workers that see the same devices share them: the one with the fewest replicas is
    # next. Where each has a list of its own (dask-cuda rotates it), its first one is
    # meant.
    load: Counter[tuple[Any, str]] = Counter()
    for worker in workers:
        own = Counter(each.device for each in present if each.address == worker.address)
        for device, count in (own | Counter(worker.devices)).items():
            load[_shared(worker), device] += count
    devices = []
    for worker in assigned:
        names = [f"cuda:{number}" for number in range(worker.gpus)] or ["cpu"]
        shared = _shared(worker)
        device = min(names, key=lambda name: load[shared, name])
        load[shared, device] += 1
        devices.append(device)
    return devices


def _shared(worker: WorkerFacts) -> tuple[str | None, ...]:
    """Name the set of devices that a worker sees."""
    if worker.visible is None:
        return (worker.host,)
    return (worker.host, worker.visible, worker.job)
