"""What the measurements of `scaling.py` say of one mini-batch, and of one gradient."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["FULL", "Figures", "figures"]

# Part of the cores in use from which on nobody gets a CPU when it wants one.
FULL = 0.85

Measured = dict[str, Any]  # as `scaling.py` writes it


@dataclass(frozen=True)
class Figures:
    """CPU in seconds.

    Attributes
    ----------
    model, transport, replicas, step, gradient_bytes
        What was measured.
    replica_cpu
        Of a mini-batch at its replica, with all that the replica does meanwhile.
    exchange_loop, exchange_threads
        What of it the exchange takes: more than where nothing is sent.
    client_cpu, scheduler_cpu
        Of a mini-batch there.
    delivered, merged, received_bytes
        Of all replicas together, for each mini-batch.
    exchange_memory
        Bytes that a replica takes more than where nothing is sent.
    rate
        Mini-batches of one replica, of those that its steps alone would allow.
    cores
        In use, by all processes of the machine.
    full
        Whether that is too much for times to be right.
    """

    model: str
    transport: str
    replicas: int
    step: float
    gradient_bytes: int
    replica_cpu: float
    exchange_loop: float
    exchange_threads: float
    client_cpu: float
    scheduler_cpu: float
    delivered: float
    merged: float
    received_bytes: float
    exchange_memory: float
    rate: float
    cores: float
    full: bool

    @property
    def exchange_cpu(self) -> float:
        """CPU that the exchange takes of a replica for each mini-batch."""
        return self.exchange_loop + self.exchange_threads

    @property
    def delivery_cpu(self) -> float:
        """CPU of a delivered gradient at both ends, to its application."""
        return self.exchange_cpu / self.delivered if self.delivered else 0.0

    @property
    def share(self) -> float:
        """Part of a replica's time, on one core, that the exchange takes."""
        own = self.step + self.replica_cpu
        return self.exchange_cpu / own

    @property
    def efficiency(self) -> float:
        """Mini-batches a second on one core, of those of a replica alone."""
        return 1 - self.share


def figures(rows: Iterable[Measured], cores: int) -> list[Figures]:
    """Compare each measurement with that of replicas that send nothing.

    Raises
    ------
    ValueError
        If that is missing for a model and a number of replicas.
    """
    rows = list(rows)
    silent = {(r["model"], r["replicas"]): r for r in rows if r["transport"] == "none"}
    answer = []
    for row in rows:
        key = (row["model"], row["replicas"])
        if key not in silent:
            raise ValueError(f"{key} was not measured without an exchange.")
        answer.append(_figures(row, silent[key], cores))
    return answer


def _figures(row: Measured, silent: Measured, cores: int) -> Figures:
    learning = row["learning"]
    count = learning["minibatches"]
    loop, threads = (_cpu(row, key) for key in ("loop_cpu", "threads_cpu"))
    in_use = learning["cores"] + learning["other_cores"]
    ideal = row["replicas"] * learning["seconds"] / row["step"]
    return Figures(
        *(row[key] for key in ("model", "transport", "replicas", "step")),
        gradient_bytes=row["gradient_bytes"],
        replica_cpu=loop + threads,
        exchange_loop=loop - _cpu(silent, "loop_cpu"),
        exchange_threads=threads - _cpu(silent, "threads_cpu"),
        client_cpu=_cpu(row, "client_cpu"),
        scheduler_cpu=_cpu(row, "scheduler_cpu"),
        delivered=learning["received"] / count,
        merged=learning["conflated"] / count,
        received_bytes=learning["received_bytes"] / count,
        exchange_memory=row["exchange_memory"] - silent["exchange_memory"],
        rate=count / ideal,
        cores=in_use,
        full=in_use > FULL * cores,
    )


def _cpu(row: Measured, key: str) -> float:
    """CPU of a mini-batch."""
    learning = row["learning"]
    return learning[key] / learning["minibatches"]
