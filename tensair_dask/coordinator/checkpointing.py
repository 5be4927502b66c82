"""A trainer's checkpoints, and the records that each of them lets go of."""

from __future__ import annotations

import functools
import logging
from typing import Any
from weakref import WeakKeyDictionary

from tensair_dask.checkpoints import Checkpoint, Checkpointer, FileCall, Store
from tensair_dask.checkpoints.checkpoint_config import CheckpointConfig, Path
from tensair_dask.coordinator.barrier import Barrier
from tensair_dask.coordinator.intake import Intake
from tensair_dask.coordinator.membership.keep import Membership
from tensair_dask.coordinator.pending import Pending
from tensair_dask.coordinator.run_events import RunEvents, Subscriber
from tensair_dask.drift.modes import Modes
from tensair_dask.errors import (
    CheckpointError,
    CheckpointMissingError,
    ModelError,
    OptimizerError,
)
from tensair_dask.exchange.wire import pack, unpack
from tensair_dask.replica.structure import reshape
from tensair_dask.reports import Report

__all__ = ["Checkpointing"]

logger = logging.getLogger(__name__)

# The origin of what was learned before a restart, in the clocks of the replicas.
BEFORE = "before"

# How often a replica is asked for one checkpoint; in between all are made whole.
ATTEMPTS = 3


class Checkpointing(Subscriber):
    """Takes checkpoints of a trainer, and puts one into it.

    A checkpoint is taken of one replica, between two of its mini-batches: the others
    do not notice, and nothing waits. It holds the gradients of all mini-batches that
    were known, when it was begun, to be applied everywhere; its positions are those of
    just these. So what is read again from there is what the model has not learned, and
    a little that it has: what was under way. Its counter "again" bounds how much.

    Belongs to the client's event loop.

    Parameters
    ----------
    settings
        Where checkpoints are written, how often, and what scores the stream.
    barrier
        Copies the model, and puts one into all replicas.
    membership
        Lets replicas that have missed gradients take over a model that holds them.
    modes
        Whether the model learns, and why.
    intake
        What is learned, and where it was read.
    events
        Gets an event for a checkpoint that could not be written.

    Attributes
    ----------
    about
        What else goes into each checkpoint: the name of the trainer, and the functions
        that it was made with.
    """

    def __init__(
        self,
        settings: CheckpointConfig,
        barrier: Barrier,
        membership: Membership,
        modes: Modes,
        intake: Intake,
        events: RunEvents,
    ) -> None:
        self.about: dict[str, Any] = {}
        self.scores = settings.scores
        self._store = settings.store()
        self._barrier = barrier
        self._membership = membership
        self._modes = modes
        self._intake = intake
        self._events = events
        # Whether the folder had too little room when the newest was written.
        self._crowded = False
        # Entries of the ledger that each checkpoint holds which is being written.
        self._held: WeakKeyDictionary[Checkpoint, int] = WeakKeyDictionary()
        # Mini-batches that the newest checkpoint holds for certain.
        self._safe = 0
        self._checkpointer = Checkpointer(
            self._store, settings.every, self._take, self._written, self._note_failure
        )

    def reported(self, pending: Pending, report: Report) -> None:
        """Begin a checkpoint if so many mini-batches have been reported."""
        self._checkpointer.noticed(report.index)

    @property
    def last_path(self) -> str:
        """The newest checkpoint of the folder that was written; empty if none was."""
        return self._checkpointer.last_path

    async def check(self, origin: Path | None) -> None:
        """See that the folder can be written to, and is this trainer's.

        Parameters
        ----------
        origin
            Path of the checkpoint that it goes on from; None if it begins anew.

        Raises
        ------
        CheckpointError
            If it cannot, or holds checkpoints that this trainer does not go on from.
        """
        store = self._store
        if store is None:
            return
        await FileCall("write", store.path, store.check).result()
        if origin is not None and store.holds(Store(origin)):
            return
        there = await FileCall("read", store.path, store.paths).result()
        if there:
            raise CheckpointError(
                f"{store.path} holds checkpoints of an earlier training, the newest "
                f"{there[-1]}, and those of this one would replace them. Go on from "
                f"them with Trainer.restore({store.path!r}, client, or_begin=True, "
                "...), or give an empty folder."
            )

    async def _take(self) -> Checkpoint:
        for _ in range(ATTEMPTS):
            # Alone: whether a policy has changed the model must be known of this one.
            async with self._barrier.alone:
                checkpoint = await self._taken()
            if checkpoint is not None:
                return checkpoint
            await self._membership.look()
        raise CheckpointError(
            "The replicas miss gradients of each other, again and again; see "
            "trainer.events and the logs of the workers. Save again later."
        )

    async def _taken(self) -> Checkpoint | None:
        """Take a checkpoint of one replica; None if it has missed gradients."""
        # In this order: what is in the ledger is in every model that is copied later.
        held = self._intake.ledger.take()
        positions = self._intake.ledger.positions()
        index = self._events.index
        adaptation = self._modes.state_dict(index)
        scores = {name: each.state_dict() for name, each in self.scores.items()}
        columns = self._intake.column_names.state_dict()
        counters = self._intake.counters()
        packed = await self._barrier.checkpoint()
        if packed is None:
            return None
        snapshot = unpack(packed)
        # What came meanwhile may be in this model as well.
        counters["again"] += self._events.index - index
        checkpoint = Checkpoint(
            model=snapshot["model"],
            made=snapshot["made"],
            structure=snapshot["structure"],
            as_built=snapshot["as_built"],
            optimizers=snapshot["optimizers"],
            attributes=snapshot["attributes"],
            clock=snapshot["clock"],
            adaptation=adaptation,
            scores=scores,
            positions=positions,
            index=index,
            columns=columns,
            counters=counters,
            **self.about,
        )
        self._held[checkpoint] = held
        return checkpoint

    def _written(self, checkpoint: Checkpoint, path: str, seconds: float) -> None:
        logger.debug("%s was written in %.2f s: %s", path, seconds, checkpoint)
        self._intake.ledger.saved(self._held[checkpoint])
        self._safe = max(self._safe, checkpoint.index - checkpoint.again)
        store = self._store
        if store is not None and store.crowded and not self._crowded:
            self._events.note(
                "note",
                f"{store.path} has no room for the {store.keep} checkpoints that "
                "tensair.checkpoints.keep says: older ones make room for the newest. "
                "Give it more room, or keep fewer",
            )
        self._crowded = store is not None and store.crowded

    def _note_failure(self, error: Exception) -> None:
        self._events.note("note", f"a checkpoint could not be written: {error}")

    async def save(self, path: Path | None) -> str:
        """Write a checkpoint now; see `Trainer.save`."""
        to = None if path is None else Store(path)
        own = self._store
        if to is not None and own is not None and to.is_numbered and own.holds(to):
            raise CheckpointError(
                f"path={to.path!r} was given, a name of the checkpoints that this "
                f"trainer numbers itself in {own.path}. Give another name, such as "
                f"{own.path}/model.tensair, or none to add one to the folder."
            )
        written = await self._checkpointer.write_now(to)
        await self._intake.ledger.released()
        return written

    def unsaved(self, why: str) -> str:
        """Say what is lost if no checkpoint is written any more; empty if nothing.

        Parameters
        ----------
        why
            There is none written.
        """
        index = self._events.index
        if self._store is None or index <= self._safe:
            return ""
        newest = f"; the newest is {self.last_path}" if self.last_path else ""
        return (
            f"Up to {index - self._safe:,} of {index:,} mini-batches are in no "
            f"checkpoint of {self._store.path}{newest}: {why}"
        )

    async def finish(self) -> None:
        """Write the last one to the folder, if there is a folder."""
        if self._store is not None:
            await self._checkpointer.write_now()
            await self._intake.ledger.released()

    async def close(self) -> None:
        """Write nothing more."""
        await self._checkpointer.close()

    # ---- going on --------------------------------------------------------------------

    async def nothing_at(self, path: Path) -> str:
        """Say that there is no checkpoint, and what else is there."""
        store = Store(path)
        others = await FileCall("read", store.path, store.others).result()
        return f"There is no checkpoint at {store.path}: begins anew. {others}".strip()

    async def load(self, path: Path, or_begin: bool) -> Checkpoint | None:
        """Read a checkpoint, or the newest of a folder.

        Parameters
        ----------
        path
            Of either.
        or_begin
            Whether None is given where there is none.
        """
        store = Store(path)
        try:
            checkpoint, found = await FileCall("read", store.path, store.load).result()
        except CheckpointMissingError:
            if or_begin:
                return None
            raise
        logger.info("Going on from %s: %s", found, checkpoint.describe())
        return checkpoint

    async def restore(self, checkpoint: Checkpoint) -> list[str]:
        """Put a checkpoint into all replicas, and into what adapts and scores.

        Returns
        -------
        notices
            What of it was not taken over, in sentences.

        Raises
        ------
        CheckpointError
            If it does not fit.
        """
        missing = sorted(set(self.scores) - set(checkpoint.scores))
        if missing:
            raise CheckpointError(
                f"scores={missing} was given, and the checkpoint holds "
                f"{sorted(checkpoint.scores)}; give the names that it was saved with."
            )
        version = sum(checkpoint.clock.values())
        snapshot = {
            "model": dict(checkpoint.model),
            "made": list(checkpoint.made),
            "as_built": dict(checkpoint.as_built),
            "optimizers": list(checkpoint.optimizers),
            "attributes": list(checkpoint.attributes),
            "clock": {BEFORE: version},
            "taken": {},
        }
        if checkpoint.structure:
            await self._grow(checkpoint.structure)
        await self._barrier.go_on_from(pack(snapshot))
        notices = self._modes.load_state_dict(checkpoint.adaptation, checkpoint.index)
        for name, each in self.scores.items():
            each.load_state_dict(checkpoint.scores[name])
        self._intake.ledger.restored(checkpoint.positions)
        self._safe = checkpoint.index
        if left := sorted(set(checkpoint.scores) - set(self.scores)):
            notices.append(
                f"The checkpoint holds scores of {left}, which are not gone on with: "
                "scores= was given without. The next checkpoints will not hold them; "
                "give them again to keep them."
            )
        return notices

    async def _grow(self, structure: dict[str, Any]) -> None:
        """Let the model have the structure of the one that was saved."""
        try:
            await self._barrier.change(functools.partial(reshape, **structure), seed=0)
        except (ModelError, OptimizerError) as error:
            raise CheckpointError(
                f"The checkpoint is of a model of another structure. {error}"
            ) from error
