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
    shards: int = 0  # that must end level; 0: as many as connections
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
    "kafka": Contender(
        "plain loop that reads Kafka",
        "kafka_loop",
        ("plain",),
        warmup=15,
        settings="one process, a record is a mini-batch; broker: tansu, in memory",
        unfair="a bridge from socket to topic, and the broker, are counted too",
    ),
    "kafka-replicas-2": Contender(
        "**tensair_dask, 2 replicas, from Kafka**",
        "kafka_loop",
        ("ours",),
        warmup=15,
        settings="as from the socket; `from_kafka_records`, a record is a mini-batch",
        unfair="a bridge from socket to topic, and the broker, are counted too",
    ),
    "streamz": Contender(
        "streamz scatter, map, gather",
        "streamz_map",
        settings="LocalCluster, 2 worker processes, a model each; buffer of 8",
        unfair="no exchange: two models, which never meet",
    ),
    "bytewax": Contender(
        "bytewax `stateful_map`",
        "bytewax_flow",
        connections=2,
        heavy=True,
        settings="2 processes with 1 worker, a socket and a model each",
        unfair="no exchange: two models, which never meet",
    ),
    "river": Contender(
        "River with deep-river",
        "river_loop",
        heavy=True,
        settings="one process, `learn_many` of a data frame",
        unfair="one process",
    ),
    "ray": Contender(
        "Ray, asynchronous parameter server",
        "ray_server",
        heavy=True,
        settings="2 workers and a parameter server, as in Ray's examples",
    ),
    "spark": Contender(
        "Spark Structured Streaming, `foreachBatch`",
        "spark_batches",
        text=True,
        heavy=True,
        warmup=30,
        settings="local[2], socket source, no trigger interval, model on the driver",
        unfair="one model in one process; lines of text",
    ),
    "flink": Contender(
        "PyFlink, process mode, no exchange",
        "flink_map",
        text=True,
        heavy=True,
        warmup=30,
        settings="2 subtasks, a model each; bundles of 16 or 50 ms",
        unfair="no exchange: two models, which never meet; lines of text",
    ),
    "flink-gloo": Contender(
        "PyFlink, process mode, gradients over gloo",
        "flink_map",
        ("gloo",),
        shards=2,
        text=True,
        heavy=True,
        warmup=30,
        settings="2 subtasks in lockstep; bundles of 16 or 50 ms",
        unfair="lines of text",
    ),
}
