"""Moments at which tests let replicas be lost; nothing ever happens there otherwise."""

from __future__ import annotations

import enum
from typing import Any

from tensair_dask.pubsub.faults import injected

__all__ = ["Moment", "reach"]


class Moment(enum.Enum):
    """When a fault strikes; inject it with `tensair_dask.pubsub.faults.inject`."""

    BUILT = "a replica is built, and takes no part yet"
    FLUSHING = "the stream is held, and gradients are still under way"
    SUBSCRIBED = "a new replica hears its peers, and the stream is held"
    KEPT = "a replica has kept its model for new ones"
    COPYING = "replicas are about to take over the model of one"
    SEEN_OFF = "a replica that leaves has handed over what it learned"
    INHERITING = "an heir is about to take over the model of the last one"
    SEALED = "the others have told what they have of one that is gone"


def reach(moment: Moment, replica: Any = None) -> None:
    """Do what is injected here, if anything: it is called with the replica's handle."""
    if injected and (fault := injected.get(moment)) is not None:
        fault(replica)
