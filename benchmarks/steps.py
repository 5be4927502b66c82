"""What the parts of one training step cost: optimizer, gradients, memory allocator.

Compares PyTorch's SGD in its three implementations with SGD over an arena (all
parameters are views into one buffer), ways to empty gradients, and glibc's allocator
as it comes, as Dask's nanny sets it, and with `mallopt` undoing that::

    python benchmarks/steps.py --models 85k,1.1m,cnn
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from measure import Load, Spread, child_environment
from memory import keep_memory
from torch import nn
from torch.nn.functional import cross_entropy
from workloads import LEARNING_RATE, WORKLOADS, load_pool

Parts = tuple[Callable[[], object], Callable[[], object]]  # empty gradients, update

# What Dask's nanny puts into the environment of the workers that it starts.
DASK_TRIM = {"MALLOC_TRIM_THRESHOLD_": "65536"}
ALLOCATORS: dict[str, tuple[dict[str, str], bool]] = {
    "glibc": ({}, False),
    "glibc + mallopt": ({}, True),
    "Dask's nanny": (DASK_TRIM, False),
    "Dask's nanny + mallopt": (DASK_TRIM, True),
}


def arena(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Make all parameters views into one buffer, all gradients into another."""
    parameters = list(model.parameters())
    values = torch.cat([p.detach().reshape(-1) for p in parameters])
    gradients = torch.zeros_like(values)
    start = 0
    for p in parameters:
        end = start + p.numel()
        p.data = values[start:end].view(p.shape)
        p.grad = gradients[start:end].view(p.shape)
        start = end
    return values, gradients


def _sgd(model: nn.Module, **options: bool) -> Parts:
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, **options)
    return optimizer.zero_grad, optimizer.step


def _sgd_kept(model: nn.Module) -> Parts:
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    return lambda: optimizer.zero_grad(set_to_none=False), optimizer.step


def _foreach(model: nn.Module) -> Parts:
    parameters = list(model.parameters())

    def empty() -> None:
        for p in parameters:
            p.grad = None

    def update() -> None:
        with torch.no_grad():
            gradients = [p.grad for p in parameters]
            torch._foreach_add_(parameters, gradients, alpha=-LEARNING_RATE)

    return empty, update


def _arena(model: nn.Module) -> Parts:
    values, gradients = arena(model)
    return gradients.zero_, lambda: values.add_(gradients, alpha=-LEARNING_RATE)


def _arena_gathered(model: nn.Module) -> Parts:
    """Let autograd make new gradients, and copy them into the arena afterwards."""
    values, gradients = arena(model)
    parameters = list(model.parameters())

    def empty() -> None:
        for p in parameters:
            p.grad = None

    def update() -> None:
        torch.cat([p.grad.reshape(-1) for p in parameters], out=gradients)
        values.add_(gradients, alpha=-LEARNING_RATE)

    return empty, update


def _arena_published(model: nn.Module) -> Parts:
    """Besides learning, sum the gradient into an outbox, as a replica does."""
    values, gradients = arena(model)
    outbox = torch.zeros_like(gradients)

    def update() -> None:
        values.add_(gradients, alpha=-LEARNING_RATE)
        outbox.add_(gradients)

    return gradients.zero_, update


def _gathered_published(model: nn.Module) -> Parts:
    """Sum the gradients into an outbox from where autograd has put them."""
    _, gradients = arena(model)
    parameters = list(model.parameters())
    outbox = [p.grad for p in parameters]  # views into one buffer
    gradients.zero_()

    def empty() -> None:
        for p in parameters:
            p.grad = None

    def update() -> None:
        with torch.no_grad():
            found = [p.grad for p in parameters]
            torch._foreach_add_(parameters, found, alpha=-LEARNING_RATE)
            torch._foreach_add_(outbox, found)

    return empty, update


def _arena_sgd(model: nn.Module) -> Parts:
    """Keep the user's own optimizer: SGD over one parameter that is the whole arena."""
    values, gradients = arena(model)
    flat = nn.Parameter(values)
    flat.grad = gradients
    optimizer = torch.optim.SGD([flat], lr=LEARNING_RATE)
    return gradients.zero_, optimizer.step


VARIANTS: dict[str, Callable[[nn.Module], Parts]] = {
    "SGD, default": _sgd,
    "SGD, default, zero_grad(set_to_none=False)": _sgd_kept,
    "SGD(foreach=True)": lambda model: _sgd(model, foreach=True),
    "SGD(fused=True)": lambda model: _sgd(model, fused=True),
    "torch._foreach_add_": _foreach,
    "arena, grad.zero_(), add_": _arena,
    "arena, grad=None, cat, add_": _arena_gathered,
    "arena, add_ and sum into an outbox": _arena_published,
    "grad=None, _foreach_add_ to both": _gathered_published,
    "arena, torch.optim.SGD over one tensor": _arena_sgd,
}


def _microseconds(part: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        part()
    return 1e6 * (time.perf_counter() - start) / repeats


def measure(workload: str, pool: Path, rounds: int, seconds: float) -> None:
    """Take turns between the variants in this process, and print JSON."""
    torch.set_num_threads(1)
    pairs = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in load_pool(pool)]
    batches = itertools.cycle(pairs)
    variants = []
    for name, build in VARIANTS.items():
        model = WORKLOADS[workload].seeded_model()
        variants.append((name, model, *build(model)))
    results: dict[str, dict[str, list[float]]] = {
        name: {"step": [], "empty": [], "update": [], "faults": []} for name in VARIANTS
    }
    for _ in range(rounds):
        for name, model, empty, update in variants:

            def step(model=model, empty=empty, update=update) -> None:
                x, y = next(batches)
                empty()
                loss = cross_entropy(model(x), y)
                loss.backward()
                update()
                loss.item()

            for _ in range(3):
                step()
            steps = max(5, int(1e6 * seconds / _microseconds(step, 3)))
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            result = results[name]
            result["step"].append(_microseconds(step, steps))
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
            result["faults"].append(faults / steps)
            result["update"].append(_microseconds(update, 100))
            result["empty"].append(_microseconds(empty, 100))
    click.echo(json.dumps(results))


def _in_fresh_process(arguments: list[str], extra: dict[str, str]) -> dict[str, dict]:
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        env=child_environment() | extra,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@click.command(help=__doc__)
@click.option("--models", default=",".join(WORKLOADS), show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--seconds", default=0.5, show_default=True, help="Per variant, round.")
@click.option("--pool", type=Path, hidden=True)
@click.option("--mallopt", is_flag=True, hidden=True)
def main(
    models: str, rounds: int, seconds: float, pool: Path | None, mallopt: bool
) -> None:
    if pool is not None:
        if mallopt:
            keep_memory()
        measure(models, pool, rounds, seconds)
        return
    for model in models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pool.npz"
            WORKLOADS[model].write_pool(path)
            for allocator, (extra, undo) in ALLOCATORS.items():
                arguments = [f"--models={model}", f"--pool={path}"]
                arguments += [f"--rounds={rounds}", f"--seconds={seconds}"]
                load = Load()
                found = _in_fresh_process(arguments + ["--mallopt"] * undo, extra)
                other = load.stop()["other_cores"]
                click.echo(f"\n{model}, {allocator} (other load {other:.2f} cores)")
                click.echo(
                    f"{'':44}{'steps/s':>9}{'us/step':>9}{'range':>18}"
                    f"{'update us':>11}{'empty us':>10}{'faults':>9}"
                )
                for name, parts in found.items():
                    step = Spread.of(parts["step"])
                    median = {k: Spread.of(v).median for k, v in parts.items()}
                    click.echo(
                        f"{name:44}{1e6 / step.median:9.1f}{step.median:9.0f}"
                        f"{f'{step.low:.0f} to {step.high:.0f}':>18}"
                        f"{median['update']:11.1f}{median['empty']:10.1f}"
                        f"{median['faults']:9.1f}"
                    )
    click.echo(f"\nLoad average: {os.getloadavg()}")


if __name__ == "__main__":
    main()
