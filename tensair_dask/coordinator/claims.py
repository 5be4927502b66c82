"""What belongs to one trainer at a time: detectors, scores, the names of trainers."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tensair_dask.drift import Detector
from tensair_dask.errors import ConfigurationError

if TYPE_CHECKING:
    from distributed import Client

    from tensair_dask.coordinator.session import Session

__all__ = ["claim_detector", "claim_scores", "open_sessions_like", "opened"]

# Whose a detector is: it would mix the streams of two.
_watchers: weakref.WeakKeyDictionary[Detector, weakref.ref[Session]] = (
    weakref.WeakKeyDictionary()
)

# Which trainer was scored last by an object.
_scored: weakref.WeakKeyDictionary[Any, weakref.ref[Session]] = (
    weakref.WeakKeyDictionary()
)

# The trainers of each client that were opened.
_open: weakref.WeakKeyDictionary[Client, weakref.WeakSet[Session]] = (
    weakref.WeakKeyDictionary()
)


def claim_detector(detector: Detector | None, session: Session) -> str:
    """Let a detector be a trainer's, until this is closed; say if it begins anew.

    Raises
    ------
    ConfigurationError
        If it is another open trainer's.
    """
    if detector is None:
        return ""
    owner = _watchers.get(detector)
    other = None if owner is None else owner()
    kind = type(detector).__name__
    if other is not None and other.state != "closed":
        raise ConfigurationError(
            f"detector is {kind}, which watches the trainer {other.name!r} already, "
            "that is not closed; it would mix their streams. Give each trainer one of "
            f"its own, such as tensair_dask.drift.{kind}(), or close the other."
        )
    _watchers[detector] = weakref.ref(session)
    if owner is None or not detector.observed:
        return ""
    # What it knows is of the losses of another model.
    seen = detector.observed
    detector.reset()
    return (
        f"detector={kind} has watched a trainer that is closed: it begins anew, "
        f"without the {seen:,} values that it had seen there. Restore a checkpoint to "
        "go on with them."
    )


def claim_scores(
    scores: Any, session: Session, say: Callable[[str, str], None]
) -> None:
    """Take note of what scores a trainer; say if that counts for another yet.

    Parameters
    ----------
    scores
        Such as a `Prequential`.
    session
        Of the trainer.
    say
        Called with key and text of what the user is to know.
    """
    try:
        owner = _scored.get(scores)
        _scored[scores] = weakref.ref(session)
    except TypeError:  # an object of the user's own without weak references
        return
    records = getattr(scores, "records", 0)
    if owner is None or owner() is session or not records:
        return
    if session.restored(scores):
        return
    say(
        f"scores of another {id(scores)}",
        f"The scores ({type(scores).__name__}) hold {records:,} records of another "
        "trainer, and count on from there: what they tell is of both. Give each "
        "trainer scores of its own, made anew.",
    )


def opened(session: Session) -> None:
    """Take note of a trainer that is open."""
    _open.setdefault(session.client, weakref.WeakSet()).add(session)


def open_sessions_like(session: Session) -> Iterator[str]:
    """Say that trainers of the same name are open, as if a cell was run again."""
    others = [
        each
        for each in list(_open.get(session.client, ()))
        if each.state == "open" and each.name == session.name
    ]
    if not others:
        return
    held = sum(info.alive for each in others for info in each.replicas.infos())
    yield (
        f"{len(others)} other trainer(s) of the name {session.name!r} are open on this "
        f"client, and hold {held} replica(s) on the workers. If a cell was run again "
        "that makes the trainer, call trainer.close() before it makes another, or use "
        "with Trainer(...) as trainer: ...; those that no variable names any more end "
        "with client.close(). If all of them are meant, give each a name=."
    )
