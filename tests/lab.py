"""Replicas as tests treat them: cut off, lost, compared with what they should be."""

from __future__ import annotations

from typing import Any

import torch
from distributed import Worker
from distributed.utils_test import gen_cluster
from helpers import expected_weight

EXACT = {"atol": 2e-4, "rtol": 0}


# Nothing leaves by itself: what is shared, and what is not, is up to the test.
SILENT = {"tensair.exchange.staleness": "1h", "tensair.replicas.watch": "20ms"}


def cluster(workers: int, **overrides: Any) -> Any:
    arguments = {
        "client": True,
        "nthreads": [("127.0.0.1", 1)] * workers,
        "timeout": 60,
        "config": {"tensair.replicas.watch": "20ms"},
    }
    return gen_cluster(**{**arguments, **overrides})


def handle_on(trainer: Any, worker: Worker) -> Any:
    (handle,) = (
        each
        for each in trainer.session.replicas.handles
        if each.place.address == worker.address and each.lane.alive
    )
    return handle


def addresses(trainer: Any) -> list[str]:
    return [handle.place.address for handle in trainer.session.replicas.alive()]


def exchange_of(trainer: Any, worker: Worker) -> Any:
    return worker.state.actors[handle_on(trainer, worker).key].exchange


def silence(pub: Any) -> None:
    """Let nothing that was published leave any more."""
    for link in pub._core.links.values():
        link.close()


def cut_off(trainer: Any, worker: Worker) -> None:
    """Lose a replica as SIGKILL would: nothing that it has leaves it any more."""
    silence(exchange_of(trainer, worker).pub)
    trainer.session.dispatcher.lose(handle_on(trainer, worker).lane, OSError("killed"))


async def assert_learned_once(trainer: Any, data: list[Any]) -> None:
    expected = expected_weight(data)
    states = await trainer.state_dicts()
    for state in states.values():
        assert torch.allclose(state["weight"].double(), expected, **EXACT)


async def refusals(trainer: Any) -> int:
    stats = await trainer.exchange_stats()
    return sum(each["refused"] for each in stats.values())


def not_on(forbidden: str) -> Any:
    """A model that cannot be built on this worker."""
    from distributed import get_worker
    from helpers import Linear

    if get_worker().address == forbidden:
        raise MemoryError("no room here")
    return Linear()
