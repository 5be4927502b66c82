"""PyFlink in process mode: two subtasks of a map, each with a model of its own.

Flink holds the model as the operator's state between `open` and `close`. With
``gloo`` the subtasks average the gradients of each step, as dl-on-flink does.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import torch.distributed as dist
from pyflink.common import Configuration, Types
from pyflink.datastream import (
    DataStream,
    MapFunction,
    RuntimeContext,
    StreamExecutionEnvironment,
)

from open_loop.learner import Learner
from open_loop.wire import Acks, from_line

SUBTASKS = 2


class Learn(MapFunction):
    """Learns each line."""

    def __init__(self, rendezvous: str | None) -> None:
        self._rendezvous = rendezvous

    def open(self, runtime_context: RuntimeContext) -> None:
        """Make the model, and join the group."""
        self._learner, self._acks = Learner(), Acks()
        if self._rendezvous:
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
            dist.init_process_group(
                "gloo",
                init_method=f"file://{self._rendezvous}",
                rank=runtime_context.get_index_of_this_subtask(),
                world_size=SUBTASKS,
            )

    def map(self, value: str) -> int:
        """Learn one line."""
        index, x, y = from_line(value)
        loss = self._learner.gradients(x, y)
        if self._rendezvous:
            for parameter in self._learner.model.parameters():
                dist.all_reduce(parameter.grad)
                parameter.grad /= SUBTASKS
        self._learner.optimizer.step()
        self._acks.learned(index, loss)
        return index


def main(rendezvous: str | None) -> None:
    os.environ["_python_worker_execution_mode"] = "process"  # noqa: SIM112
    configuration = Configuration()
    for key, value in {
        "python.execution-mode": "process",
        "python.executable": sys.executable,
        "python.client.executable": sys.executable,
        "python.fn-execution.bundle.size": "16",
        "python.fn-execution.bundle.time": "50",
        "rest.port": "0",
    }.items():
        configuration.set_string(key, value)
    environment = StreamExecutionEnvironment.get_execution_environment(configuration)
    environment.set_parallelism(SUBTASKS)
    lines = DataStream(
        environment._j_stream_execution_environment.socketTextStream(
            "127.0.0.1", int(os.environ["OPEN_LOOP_DATA"])
        )
    )
    learned = lines.rebalance().map(Learn(rendezvous), Types.LONG())
    learned.filter(lambda _: False).print()
    environment.execute("open loop")


if __name__ == "__main__":
    if sys.argv[1:] == ["gloo"]:
        with tempfile.TemporaryDirectory() as folder:
            main(str(Path(folder) / "rendezvous"))
    else:
        main(None)
