"""Models that cannot be what they are meant to be in a replica."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch

from tensair_dask._common.notices import Notices
from tensair_dask.errors import ModelError

__all__ = ["Claim", "refuse_wrapped", "warn_of_layers"]

_PARALLEL = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)

# The parameter's attribute that says whose it is.
_OWNER = "_tensair_owner"


def refuse_wrapped(model: torch.nn.Module) -> None:
    """Refuse what spreads a model over devices or processes itself.

    Raises
    ------
    ModelError
        If it is such a module, or holds one.
    """
    for module in model.modules():
        kind = type(module).__name__
        if isinstance(module, _PARALLEL) or kind == "FullyShardedDataParallel":
            raise ModelError(
                f"The model is, or holds, a {kind}, which spreads it over devices or "
                "processes itself. Replicas do that here, one on each worker, and "
                "exchange what they learn: return the module that is within it."
            )
    if any(type(each).__name__ == "DTensor" for each in model.parameters()):
        raise ModelError(
            "The model has parameters that are sharded (DTensor), as fully_shard "
            "makes them. A replica holds all of a model, on one worker: return it "
            "without that."
        )


def warn_of_layers(model: torch.nn.Module, notices: Notices) -> None:
    """Say which layers do less here than their name says."""
    if any(isinstance(each, torch.nn.SyncBatchNorm) for each in model.modules()):
        notices.say(
            "SyncBatchNorm",
            "The model has SyncBatchNorm layers, which have no process group here: "
            "each replica takes the statistics of its own mini-batches, as BatchNorm "
            "does. GroupNorm or LayerNorm need none.",
        )


class Claim:
    """Parameters that are one learner's own, until it lets go of them.

    A factory that returns the same module each time it is called would give replicas of
    one process the same parameters: each would apply what the other has applied.

    Parameters
    ----------
    parameters
        Of the model.

    Raises
    ------
    ModelError
        If another learner trains them.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        self._parameters = list(parameters)
        for each in self._parameters:
            owner: Any = getattr(each, _OWNER, None)
            if owner is not None and owner() is not None:
                raise ModelError(
                    "The model factory returned parameters that another replica of "
                    "this process trains already: it must build a new model each time "
                    "it is called. Build the module within the factory, or return "
                    "copy.deepcopy(module)."
                )
        for each in self._parameters:
            setattr(each, _OWNER, weakref.ref(self))

    def release(self) -> None:
        """Let others have them."""
        for each in self._parameters:
            if hasattr(each, _OWNER):
                delattr(each, _OWNER)
        self._parameters = []
