"""The options of a trainer: objects, and the keywords that are short for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import dask
from distributed import Client

from tensair_dask import config
from tensair_dask._common.checks import allow, flag, shown, whole
from tensair_dask._common.user_functions import doubts
from tensair_dask.checkpoints.checkpoint_config import CheckpointConfig
from tensair_dask.coordinator.run_options import RunOptions
from tensair_dask.drift.drift_config import DriftConfig
from tensair_dask.errors import ConfigurationError
from tensair_dask.exchange.settings import ExchangeConfig
from tensair_dask.observe.telemetry.curves import COLUMNS as OF_CURVES
from tensair_dask.replica.clipping import as_clipping
from tensair_dask.replica.learner import Recipe
from tensair_dask.replica.replica_config import ReplicaConfig
from tensair_dask.reports import COLUMNS

__all__ = [
    "CheckpointConfig",
    "DriftConfig",
    "ExchangeConfig",
    "ReplicaConfig",
    "check_client",
    "restoring",
    "run_options",
]


class _Group(NamedTuple):
    """An object of options.

    Attributes
    ----------
    kind
        Its class.
    short
        Keywords of a trainer that are short for its fields, and the fields.
    bare
        The field that a value stands for which is no such object; empty for none.
    """

    kind: type[Any]
    short: Mapping[str, str]
    bare: str = ""


def _same(*names: str) -> dict[str, str]:
    return dict(zip(names, names, strict=True))


_GROUPS = {
    "replicas": _Group(ReplicaConfig, _same("device", "max_in_flight"), "count"),
    "exchange": _Group(ExchangeConfig, _same("share", "compression", "staleness")),
    "drift": _Group(
        DriftConfig, _same("mode", "detector", "watch", "convergence", "on_drift")
    ),
    "checkpoints": _Group(
        CheckpointConfig,
        {
            "checkpoint_to": "to",
            "checkpoint_every": "every",
            **_same("scores", "restore", "or_begin"),
        },
        "to",
    ),
}


def run_options(given: Mapping[str, Any]) -> RunOptions:
    """Check the arguments of a trainer, and make of them what a run is made from.

    Parameters
    ----------
    given
        The arguments, by name; see `Trainer`.

    Raises
    ------
    ConfigurationError
        If one is not allowed, or is given twice.
    """
    model, loss, optimizer = given["model"], given["loss"], given["optimizer"]
    metrics, schedule = given["metrics"], given["schedule"]
    _check_functions(model, loss, optimizer, metrics)
    _check_schedule(schedule)
    whole("seed", given["seed"], -(1 << 63), 0, (1 << 64) - 1)
    objects = {name: _as_object(name, given) for name in _GROUPS}
    exchange: ExchangeConfig = objects["exchange"]
    recipe = Recipe(
        model,
        loss,
        optimizer,
        dict(metrics or {}),
        exchange.share,
        int(given["seed"]),
        flag("keep_predictions", given["keep_predictions"]),
        schedule,
        as_clipping(given["clip_gradients"]),
    )
    said = (*config.check(), *_annotated(), *doubts(loss, metrics or {}, schedule))
    name = str(given["name"] or _name_of(model))
    return RunOptions(name, recipe, **objects, doubts=said)


def _as_object(name: str, given: Mapping[str, Any]) -> Any:
    """Make an object of options from itself, or from keywords that are short for it."""
    kind, short, bare = _GROUPS[name]
    value = given[name]
    fields = {
        field: given[key]
        for key, field in short.items()
        if given[key] is not None and given[key] is not False
    }
    if isinstance(value, kind):
        if fields:
            key = next(key for key, field in short.items() if field in fields)
            raise ConfigurationError(
                f"{key}={shown(given[key])} was given beside {name}="
                f"{kind.__name__}(...). Give it there: "
                f"{name}={kind.__name__}({short[key]}=...)."
            )
        return value
    if value is not None:
        if not bare:
            raise ConfigurationError(
                f"{name}={shown(value)} was given; give {name}={kind.__name__}(...), "
                f"or its fields as keywords: {', '.join(short)}."
            )
        if bare in fields:
            key = next(key for key, field in short.items() if field == bare)
            raise ConfigurationError(
                f"{key}={shown(given[key])} was given, and {name}={shown(value)}, "
                "which is the same. Give one of them."
            )
        fields[bare] = value
    return kind(**fields)


def restoring(arguments: dict[str, Any], path: Any, or_begin: bool) -> dict[str, Any]:
    """Let a trainer with these arguments go on from a checkpoint.

    Raises
    ------
    ConfigurationError
        If they say themselves from which.
    """
    checkpoints = arguments.get("checkpoints")
    other = arguments.get("restore")
    if isinstance(checkpoints, CheckpointConfig):
        other = checkpoints.restore
    if other is not None:
        raise ConfigurationError(
            f"restore={shown(other)} was given to Trainer.restore({shown(path)}, ...). "
            "A trainer goes on from one checkpoint: leave restore= out, and give its "
            "path first."
        )
    if isinstance(checkpoints, CheckpointConfig):
        checkpoints = replace(checkpoints, restore=path, or_begin=or_begin)
        return {**arguments, "checkpoints": checkpoints}
    return {**arguments, "restore": path, "or_begin": or_begin}


# ---- what is checked -----------------------------------------------------------------


def check_client(client: Any) -> Client:
    """Give a client back.

    Raises
    ------
    ConfigurationError
        If it is none.
    """
    if not isinstance(client, Client):
        raise ConfigurationError(
            f"client is a {type(client).__name__}; give a connected Dask client, for "
            "example Trainer(dask.distributed.Client(), model=...)."
        )
    return client


def _check_functions(model: Any, loss: Any, optimizer: Any, metrics: Any) -> None:
    optimizers = {"optimizer": optimizer}
    if isinstance(optimizer, Mapping):
        optimizers = {f"optimizer[{key!r}]": value for key, value in optimizer.items()}
        if not optimizer or not set(optimizer) <= {"dense", "sparse"}:
            raise ConfigurationError(
                f"optimizer is a dict of {sorted(map(str, optimizer))}; the keys "
                "'dense' and 'sparse' are allowed."
            )
    callables = {"model": model, "loss": loss, **optimizers}
    for name, value in callables.items():
        if not callable(value):
            raise ConfigurationError(
                f"{name} is a {type(value).__name__}, which cannot be called. "
                + _EXAMPLES[name.partition("[")[0]]
            )
    _check_classes(loss, metrics)
    if hasattr(model, "named_parameters") and not isinstance(model, type):
        raise ConfigurationError(
            "model is a module that is built already; give what builds it, so that "
            "every worker builds its own. " + _EXAMPLES["model"]
        )
    _check_metrics(metrics)


def _check_metrics(metrics: Any) -> None:
    if metrics is not None and not (
        isinstance(metrics, Mapping) and all(callable(m) for m in metrics.values())
    ):
        raise ConfigurationError(
            "metrics must map names to callables (prediction, target) -> scalar, for "
            "example metrics={'accuracy': tensair_dask.metrics.accuracy}."
        )
    for each in metrics or ():
        allow(
            isinstance(each, str) and bool(each),
            f"metrics={{{shown(each)}: ...}}",
            "the names of metrics are texts",
        )
    if taken := {*COLUMNS, *OF_CURVES} & set(metrics or ()):
        raise ConfigurationError(
            f"metrics={sorted(taken)} was given, which are columns of trainer.history "
            "or trainer.curves already. Give other names."
        )


def _check_schedule(schedule: Any) -> None:
    if schedule is None or callable(schedule):
        return
    raise ConfigurationError(
        f"schedule is a {type(schedule).__name__}, which cannot be called. Give a "
        "function of the number of gradients, for example schedule=lambda gradients: "
        "0.999 ** gradients; or what builds a scheduler of torch when called with the "
        "optimizer, for example schedule=functools.partial(torch.optim.lr_scheduler."
        "StepLR, step_size=1000)."
    )


def _check_classes(loss: Any, metrics: Any) -> None:
    """See that a loss, or a metric, is no class that would have to be called first."""
    given = {"loss": loss}
    if isinstance(metrics, Mapping):
        given |= {f"metrics[{name!r}]": metric for name, metric in metrics.items()}
    for name, value in given.items():
        kind = getattr(value, "func", value)  # of a partial
        if isinstance(kind, type):
            raise ConfigurationError(
                f"{name} is the class {kind.__name__}, which would be called with "
                "(prediction, y) to make an object. Give an object of it, made with "
                f"the settings that it needs: {kind.__name__}(...)."
            )


_EXAMPLES = {
    "model": "For example model=lambda: torch.nn.Linear(8, 2).",
    "loss": "For example loss=torch.nn.functional.cross_entropy.",
    "optimizer": "For example optimizer=functools.partial(torch.optim.SGD, lr=0.05).",
}


def _annotated() -> Iterator[str]:
    """Say what of Dask's annotations has no effect on replicas."""
    if "workers" in (given := dask.get_annotations()):
        yield (
            f"dask.annotate(workers={shown(given['workers'])}) has no effect on a "
            "trainer, which places its replicas itself, one on each worker: say with "
            "replicas= how many there are to be, or give the client of a cluster that "
            "has these workers only."
        )


def _name_of(model: Any) -> str:
    name = getattr(getattr(model, "func", model), "__name__", "")
    return name if name and name != "<lambda>" else "model"
