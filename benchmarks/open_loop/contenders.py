"""Who takes part, how each is started and set, and what is unfair to whom."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CONTENDERS", "Contender"]


@dataclass(frozen=True)
class Contender:
    """One system that learns a stream."""

    says: str
    module: str
    arguments: tuple[str, ...] = ()
    connections: int = 1
    text: bool = False  # it reads lines of text
    heavy: bool = False  # it runs in the environment of `make benchmark-env`
    warmup: float = 5.0  # seconds
    settings: str = "one process"
    unfair: str = ""


CONTENDERS = {
    "plain": Contender("plain PyTorch loop", "loops", ("plain",)),
    "plain-2": Contender(
        "two free-running plain loops",
        "loops",
        ("free",),
        connections=2,
        settings="2 processes, a socket each",
        unfair="two models, which never meet",
    ),
    "hogwild": Contender(
        "torch Hogwild",
        "loops",
        ("hogwild",),
        connections=2,
        settings="2 processes, a socket each, one model in shared memory",
        unfair="cannot leave one host; updates may get lost",
    ),
    "ddp": Contender(
        "DDP over gloo",
        "loops",
        ("ddp",),
        connections=2,
        settings="2 processes, a socket each; shards that end level",
    ),
    "replicas-1": Contender(
        "**tensair_dask, 1 replica**",
        "ours",
        ("1",),
        settings="LocalCluster, 1 worker process; all defaults",
        unfair="learned is when the report is back at the client",
    ),
    "replicas-2": Contender(
        "**tensair_dask, 2 replicas**",
        "ours",
        ("2",),
        settings="LocalCluster, 2 worker processes; all defaults",
        unfair="learned is when the report is back at the client",
    ),
}
