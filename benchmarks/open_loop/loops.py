"""What a user would write in PyTorch's own ways; processes read a socket each."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import torch.multiprocessing as mp
from torch import nn

from open_loop.learner import Learner, workload
from open_loop.wire import Acks, data_socket, stream


def learn_all(model: nn.Module | None = None) -> None:
    """Learn what comes, one mini-batch after the other."""
    learner, acks = Learner(model), Acks()
    for index, x, y in stream(data_socket()):
        acks.learned(index, learner.learn(x, y))


def learn_in_lockstep(rank: int, rendezvous: str) -> None:
    """Average the gradients of each step with the other process."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2
    )
    learn_all(DistributedDataParallel(workload().seeded_model()))


def _hogwild(rank: int, model: nn.Module) -> None:
    learn_all(model)


def _free(rank: int) -> None:
    learn_all()


def main(kind: str) -> None:
    if kind == "plain":
        learn_all()
    elif kind == "free":
        mp.spawn(_free, nprocs=2)
    elif kind == "hogwild":
        mp.spawn(_hogwild, (workload().seeded_model().share_memory(),), nprocs=2)
    else:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(learn_in_lockstep, (str(Path(folder) / "rendezvous"),), nprocs=2)


if __name__ == "__main__":
    main(sys.argv[1])
