"""What a user would write without this project, in PyTorch's own ways.

Every process runs one intra-op thread and reads every loss, as a trainer that reports
each mini-batch must. Mini-batches are tensors before the clock starts.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from memory import keep_memory
from slowed import slow_down
from torch import nn
from torch.nn.functional import cross_entropy
from workloads import LEARNING_RATE, WORKLOADS, Pool, load_pool

__all__ = [
    "ddp",
    "hogwild",
    "plain",
    "plain_accuracy",
    "plain_kept",
    "plain_twice",
    "plain_twice_kept",
]

Step = Callable[[], float]


def _tensors(
    pool: Pool, rank: int = 0, world: int = 1
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Cycle over every ``world``-th mini-batch, as a distributed sampler deals them."""
    mine = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in pool[rank::world]]
    return itertools.cycle(mine)


def _stepper(
    model: nn.Module, batches: Iterator[tuple[torch.Tensor, torch.Tensor]]
) -> Step:
    """Return the tutorial's training step: learn one mini-batch, return its loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)

    def step() -> float:
        x, y = next(batches)
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _run_for(step: Step, seconds: float) -> dict[str, float]:
    """Step until the time is over; the last step is counted with its own time."""
    count, losses = 0, 0.0
    cpu = time.process_time()
    start = now = time.perf_counter()
    while now - start < seconds:
        losses += step()
        count += 1
        now = time.perf_counter()
    return {
        "minibatches": count,
        "seconds": now - start,
        "rate": count / (now - start),
        "loss": losses / count,
        "cpu_us": 1e6 * (time.process_time() - cpu) / count,
    }


def _together(parts: list[dict[str, float]]) -> dict[str, float]:
    """Sum up processes that ran beside each other."""
    total = sum(part["minibatches"] for part in parts)

    def mean(key: str) -> float:
        return sum(part[key] * part["minibatches"] for part in parts) / total

    return {
        "minibatches": total,
        "seconds": max(part["seconds"] for part in parts),
        "rate": sum(part["rate"] for part in parts),
        "loss": mean("loss"),
        "cpu_us": mean("cpu_us"),
    }


def _two_processes(target: Callable[..., None], *args: Any) -> dict[str, float]:
    """Run ``target(rank, barrier, answers, *args)`` twice, side by side."""
    context = mp.get_context("spawn")
    barrier, answers = context.Barrier(2), context.SimpleQueue()
    processes = [
        context.Process(target=target, args=(rank, barrier, answers, *args))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"A process of {target.__name__} failed.")
    return _together([answers.get() for _ in processes])


def plain(
    workload: str, pool: Path, warmup: float, seconds: float, slowdown: float = 1.0
) -> dict[str, float]:
    """One process, one thread, one loop."""
    torch.set_num_threads(1)
    model = slow_down(WORKLOADS[workload].seeded_model(), slowdown)
    step = _stepper(model, _tensors(load_pool(pool)))
    _run_for(step, warmup)
    return _run_for(step, seconds)


def plain_kept(
    workload: str, pool: Path, warmup: float, seconds: float
) -> dict[str, float]:
    """The same, with the allocator told to keep memory, as our replicas tell it."""
    keep_memory()
    return plain(workload, pool, warmup, seconds)


def _free_running(
    rank: int,
    barrier: Any,
    answers: Any,
    workload: str,
    pool: Path,
    warmup: float,
    seconds: float,
    shared: nn.Module | None = None,
    kept: bool = False,
) -> None:
    if kept:
        keep_memory()
    torch.set_num_threads(1)
    model = WORKLOADS[workload].seeded_model() if shared is None else shared
    step = _stepper(model, _tensors(load_pool(pool), rank, 2))
    barrier.wait()
    _run_for(step, warmup)
    barrier.wait()
    answers.put(_run_for(step, seconds))


def plain_twice(
    workload: str, pool: Path, warmup: float, seconds: float
) -> dict[str, float]:
    """Two plain loops that know nothing of each other: the most two cores can do."""
    return _two_processes(_free_running, workload, pool, warmup, seconds)


def plain_twice_kept(
    workload: str, pool: Path, warmup: float, seconds: float
) -> dict[str, float]:
    """The same, with the allocator told to keep memory."""
    return _two_processes(_free_running, workload, pool, warmup, seconds, None, True)


def hogwild(
    workload: str, pool: Path, warmup: float, seconds: float
) -> dict[str, float]:
    """Two processes step on one model in shared memory, without locks."""
    model = WORKLOADS[workload].seeded_model().share_memory()
    return _two_processes(_free_running, workload, pool, warmup, seconds, model)


def _ddp_process(
    rank: int,
    barrier: Any,
    answers: Any,
    workload: str,
    pool: Path,
    warmup: float,
    seconds: float,
    rendezvous: str,
    slowdown: float = 1.0,
) -> None:
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2
    )
    own = slow_down(WORKLOADS[workload].seeded_model(), slowdown if rank else 1.0)
    model = DistributedDataParallel(own)
    step = _stepper(model, _tensors(load_pool(pool), rank, 2))

    def run(steps: int) -> dict[str, float]:
        dist.barrier()
        cpu, start = time.process_time(), time.perf_counter()
        losses = sum(step() for _ in range(steps))
        elapsed = time.perf_counter() - start
        return {
            "minibatches": steps,
            "seconds": elapsed,
            "rate": steps / elapsed,
            "loss": losses / steps,
            "cpu_us": 1e6 * (time.process_time() - cpu) / steps,
        }

    def steps_for(duration: float, rate: float) -> int:
        # Both must take the same number of steps, or the last would wait for ever.
        steps = torch.tensor([max(1, round(duration * rate))])
        dist.broadcast(steps, src=0)
        return int(steps.item())

    run(10)
    trial = run(20)
    trial = run(steps_for(warmup, trial["rate"]))
    result = run(steps_for(seconds, trial["rate"]))
    barrier.wait()
    answers.put(result)
    dist.destroy_process_group()


def ddp(
    workload: str, pool: Path, warmup: float, seconds: float, slowdown: float = 1.0
) -> dict[str, float]:
    """`DistributedDataParallel` over gloo; a step of both counts two mini-batches.

    With a ``slowdown``, the second process is slowed.
    """
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = str(Path(folder) / "rendezvous")
        return _two_processes(
            _ddp_process, workload, pool, warmup, seconds, rendezvous, slowdown
        )


def plain_accuracy(workload: str, pool: Path, minibatches: int) -> dict[str, Any]:
    """Score each mini-batch, then learn it: accuracy of each, in order."""
    torch.set_num_threads(1)
    model = WORKLOADS[workload].seeded_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    scores = []
    for x, y in itertools.islice(_tensors(load_pool(pool)), minibatches):
        optimizer.zero_grad()
        output = model(x)
        scores.append((output.argmax(1) == y).float().mean().item())
        cross_entropy(output, y).backward()
        optimizer.step()
    return {"accuracy": sum(scores) / len(scores), "scores": scores}
