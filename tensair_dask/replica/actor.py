"""Replica: the Dask actor that holds one long-lived copy of the model."""

from __future__ import annotations

import copy
import functools
import json
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cloudpickle
import torch
from distributed.worker import get_worker

from tensair_dask._wording import in_words
from tensair_dask.batches.batch import Block
from tensair_dask.errors import (
    BatchError,
    CheckpointError,
    ClusterError,
    ConfigurationError,
    ForwardError,
    ModelError,
    PackageMissingError,
    ReplicaLostError,
    TensairError,
    TrainerClosedError,
)
from tensair_dask.exchange.exchange import Exchange, Holding
from tensair_dask.exchange.settings import ExchangeConfig
from tensair_dask.exchange.wire import Packed, pack, unpack
from tensair_dask.observe.telemetry.counters import plain
from tensair_dask.observe.telemetry.events import LEAVING, TOPIC
from tensair_dask.observe.telemetry.worker import WorkerTelemetry
from tensair_dask.replica.allocator import keep_freed_memory
from tensair_dask.replica.answers import Answer
from tensair_dask.replica.combinations import check_parameters
from tensair_dask.replica.departure import Departure
from tensair_dask.replica.idle_callbacks import calm
from tensair_dask.replica.learner import Evaluation, Learner, to_tensors
from tensair_dask.replica.placement import Place
from tensair_dask.replica.randomness import seed_training, seeded
from tensair_dask.replica.rollback import Rollback
from tensair_dask.replica.thread import Outcome, Status, TrainingThread
from tensair_dask.replica.worker_departures import LEAVING_TOPIC, Departures

__all__ = ["RECIPE", "Change", "Peer", "Replica", "ReplicaPlan"]

# What travels to the workers, in messages to people.
RECIPE = "The model, loss, optimizer or metrics"


@dataclass(frozen=True)
class Change:
    """A change of the model on all replicas.

    Attributes
    ----------
    function
        Pickled: ``function(model, optimizers)``.
    seed
        For torch while it runs.
    layout
        Of the parameters afterwards; None where it is not known.
    """

    function: bytes
    seed: int
    layout: str | None = None


@dataclass(frozen=True)
class Changed:
    """What a change has come to.

    Attributes
    ----------
    layout
        Of the parameters, if these are others now; None if not. It can then be undone
        until it is kept: see `Replica.end_change`.
    answer
        What the function has returned.
    """

    layout: str | None = None
    answer: Answer = field(default_factory=Answer)


@dataclass(frozen=True)
class ReplicaPlan:
    """What one replica is told when it is made.

    Attributes
    ----------
    run_id
        Run of the trainer.
    name
        Of this replica in the run; the origin of its gradients.
    place
        Worker, device, threads.
    recipe
        The pickled `Recipe`.
    settings
        Of the exchange; None for what the worker has configured.
    trainer
        What people call the trainer; None if heartbeats shall not tell of it.
    token
        Proves to the other replicas of the run that this is one; see `GradientMessage`.
    changes
        Of the structure, since the run began: made when it is built.
    client
        Process of the client, whose random numbers are left alone; None to seed none.
    """

    run_id: str
    name: str
    place: Place
    recipe: bytes
    settings: ExchangeConfig | None = None
    trainer: str | None = None
    token: str = ""
    changes: tuple[Change, ...] = ()
    client: str | None = None


@dataclass(frozen=True)
class Peer:
    """Where another replica is found: its worker and its actor key."""

    address: str
    key: str


class Replica:
    """A model, its optimizer, and the loop that trains it, on one Dask worker.

    All methods are coroutines on the worker's event loop and leave the work to the
    replica's own thread, so that neither torch nor a full queue ever blocks a worker.
    """

    def __init__(self, plan: ReplicaPlan) -> None:
        self._plan = plan
        self._worker = get_worker()
        self._evaluations: dict[str, Evaluation] = {}
        self._learner: Learner | None = None
        self._exchange: Exchange | None = None
        self._kept: dict[str, Any] | None = None
        self._closing = False
        self._departures: Departures | None = None
        worker = self._worker
        self.thread = TrainingThread(
            f"tensair-{plan.name}",
            worker.loop.asyncio_loop,
            plan.place.torch_threads if plan.place.device == "cpu" else None,
            lambda: worker.status.name not in ("closed", "failed"),
        )
        self.departure = Departure(plan.name, plan.place.address, self.thread)
        # Dask drops an actor (its client is gone, say) by dropping the last reference
        # to it: the thread and the subscription must not outlive it.
        weakref.finalize(self, self.thread.stop)

    async def build(self) -> None:
        """Build the model and the optimizer.

        Raises
        ------
        ModelError, OptimizerError, PackageMissingError, ConfigurationError
            If they cannot be built here.
        """
        keep_freed_memory()
        calm(self._worker)
        plan = self._plan
        try:
            learner = await self.thread.call(lambda: _build(plan))
        except BaseException:
            self.thread.stop()  # the error's traceback holds this actor for a while
            raise
        exchange = Exchange(
            plan.run_id,
            plan.name,
            learner.arena,
            learner.apply,
            self.thread.wake,
            plan.settings,
            learner.keep_whole,
            token=plan.token,
        )
        exchange.publish_as(learner.share)
        weakref.finalize(self, exchange.abandon)
        self._learner, self._exchange = learner, exchange
        self.thread.attach(learner, exchange)
        if plan.trainer is not None:
            telemetry = WorkerTelemetry.of(self._worker)
            telemetry.add(plan.run_id, plan.name, self.report_counts)
        self._departures = Departures.of(self._worker)
        self._departures.add(plan.run_id, plan.name, self.leave)

    async def join(self, adopting: bool = False, replicas: int = 1) -> None:
        """Subscribe to the peers' gradients and make the own ones known.

        Parameters
        ----------
        adopting
            Whether a peer's model is still to be taken over (`adopt`), of the moment
            at which this is called.
        replicas
            How many join at the same time.
        """
        await self.exchange.join(self._worker, adopting, replicas)

    async def adopt(
        self, peer: Peer, kept: bool = False, gives_on: bool = False
    ) -> None:
        """Take over a peer's model, optimizer state and clock.

        Parameters
        ----------
        peer
            Another replica of the run.
        kept
            Whether to take what it kept (`keep`), not what it has now.
        gives_on
            Whether to keep the same for others.

        Raises
        ------
        ClusterError
            If the peer is lost, ends, or leaves; and nothing more specific, which is
            said of the replica that is asked.
        """
        try:
            answer = await self._worker.rpc(peer.address).actor_execute(
                function="kept" if kept else "snapshot",
                actor=peer.key,
                args=[],
                kwargs={},
            )
        except (OSError, KeyError) as error:
            raise ClusterError(
                f"The replica on {peer.address} was lost before "
                f"{self._plan.place.address} had taken over its model."
            ) from error
        if answer["status"] != "OK":
            raised = answer["exception"]
            if isinstance(raised, (ReplicaLostError, TrainerClosedError)):
                # As it is, it would say that this replica leaves, or is lost.
                raise ClusterError(
                    f"The replica on {peer.address} has gone before "
                    f"{self._plan.place.address} had taken over its model: {raised}"
                ) from raised
            raise raised
        snapshot = unpack(answer["result"])

        def take_over() -> None:
            # Before parts of it are part of the model.
            keeping = copy.deepcopy(snapshot) if gives_on else None
            self._load(snapshot)
            self._kept = keeping
            self.learner.compare_built(snapshot["as_built"], of_checkpoint=False)
            self.exchange.adopted(
                Holding(
                    snapshot["clock"],
                    snapshot["taken"],
                    frozenset(snapshot["sealed"]),
                )
            )

        await self.thread.call(take_over)
        self.exchange.forget_sealed()

    async def restore(self, snapshot: Packed) -> None:
        """Take over a packed `snapshot` of before, but for its clock.

        Raises
        ------
        ModelError
            If the structure was changed since; nothing is taken over then.
        """

        def take_over() -> None:
            values = unpack(snapshot)
            if values["structure"] != self.learner.structure():
                raise ModelError(
                    "The model has another structure now than when it was copied: "
                    "there is no way back to it."
                )
            self._load(values)
            self.exchange.replaced()

        await self.thread.call(take_over)

    async def go_on_from(self, snapshot: Any) -> None:
        """Take over a packed `snapshot` of an earlier run, with its clock.

        Raises
        ------
        CheckpointError
            If it does not fit the model or its optimizers.
        """

        def take_over() -> None:
            before = Rollback(self.learner.model, self.learner.optimizers)
            values = unpack(snapshot)
            given = self.learner.settings()
            try:
                self._load(values)
                self.learner.try_step()
                self.learner.compare_settings(given)
                self.learner.compare_built(values["as_built"], of_checkpoint=True)
            except BaseException as error:
                before.restore()
                model, optimizers = self.learner.model, self.learner.optimizers
                kinds = ", ".join(type(each).__name__ for each in (model, *optimizers))
                raise CheckpointError(
                    f"The checkpoint does not fit {kinds}: {type(error).__name__}: "
                    f"{error} Restore it with the model and the optimizer that it was "
                    "saved with."
                ) from error
            self.learner.say_what_is_hidden()
            self.exchange.adopted(Holding(values["clock"], values["taken"]))

        await self.thread.call(take_over)

    def _load(self, snapshot: dict[str, Any]) -> None:
        # There is none in a checkpoint: what comes of it goes to the peers.
        share = snapshot.get("share")
        made = snapshot.get("made", ())
        attributes = snapshot.get("attributes", ())
        self.learner.load(
            snapshot["model"], snapshot["optimizers"], share, made, attributes
        )
        self.exchange.publish_as(self.learner.share)

    async def change(
        self, function: bytes, seed: int, layout: str | None = None
    ) -> Changed:
        """Let a pickled ``function(model, optimizers)`` change both.

        Parameters
        ----------
        function
            Pickled.
        seed
            For torch while it runs.
        layout
            What a peer has returned whose structure this has changed; None if none
            has been changed yet.

        Returns
        -------
        changed
            Its layout is None if the structure is as it was.

        Raises
        ------
        ModelError
            If the structure differs from that of the peer.
        Exception
            What the function raises; model and optimizers are then as they were.
        """
        return await self.thread.call(
            functools.partial(self._change, Change(function, seed, layout))
        )

    def _change(self, change: Change) -> Changed:
        learner, exchange = self.learner, self.exchange
        learner.follow(exchange.clock.version)
        if not _restructured(self._plan, learner, change) and change.layout is None:
            learner.keep_change()
            exchange.publish_as(learner.share)
            exchange.replaced()
            return Changed(None, learner.take_answer())
        self._settle_exchange()
        return Changed(learner.layout(), learner.take_answer())

    def _settle_exchange(self) -> None:
        self.exchange.restructured(self.learner.arena)
        self.exchange.publish_as(self.learner.share)
        self.exchange.replaced()

    async def end_change(self, kept: bool) -> None:
        """Keep the last change of the structure, or undo it."""

        def run() -> None:
            if kept:
                self.learner.keep_change()
            else:
                self.learner.undo_change()
                self._settle_exchange()

        await self.thread.call(run)

    async def repeat(self, changes: Sequence[Change]) -> None:
        """Make changes of the structure that peers have made while this was built.

        Raises
        ------
        ModelError
            If they do not give what they gave there.
        """

        def run() -> None:
            for change in changes:
                _repeat(self._plan, self.learner, change)
            self._settle_exchange()

        await self.thread.call(run)

    async def share_updates(self) -> None:
        """Share updates from now on; see `Exchange.publish_as`."""

        def run() -> None:
            self.learner.share_updates()
            self.exchange.publish_as(self.learner.share)
            self.exchange.replaced()

        await self.thread.call(run)

    async def check(self, function: bytes) -> None:
        """Call a pickled ``function(model)``, which raises if it does not like it."""

        def run() -> None:
            _unpickled(function, self._plan, "The policy")(self.learner.model)

        await self.thread.call(run)

    async def snapshot(self) -> Packed:
        """Give parameters, buffers, optimizer state and clock, packed.

        Raises
        ------
        ReplicaLeavingError
            If it leaves: it does not hear any more what its peers learn.
        """
        if not self.departure.alone:
            self.departure.check()
        return pack(await self.thread.call(self._copy))

    async def checkpoint(self) -> Packed | None:
        """Give a `snapshot` that is worth a file; None if it has missed gradients.

        Raises
        ------
        CheckpointError
            If its parameters are not finite, or no model could take its state over.
        ReplicaLeavingError
            If it leaves.
        """
        if not self.departure.alone:
            self.departure.check()
        try:
            copied = await self.thread.call(self._copy_whole)
            return None if copied is None else pack(copied)
        except ModelError as error:
            raise CheckpointError(
                f"No checkpoint can be saved, since none could restore it. {error}"
            ) from error

    async def keep(self, last: bool = False) -> None:
        """Keep a `snapshot` of now, for `kept`; training may then go on.

        Parameters
        ----------
        last
            Whether no peer is left that knows more, even if there was one when this
            replica left.

        Raises
        ------
        ReplicaLeavingError
            If it leaves, and is not the last.
        """
        await self.departure.copying(last)
        self._kept = await self.thread.call(self._copy_for_others)

    async def kept(self) -> Packed:
        """Give what was kept."""
        return pack(self._kept)

    async def let_go(self, joined: bool) -> None:
        """Forget what was kept for newcomers.

        Parameters
        ----------
        joined
            Whether any has taken it over. If this replica leaves already, that one is
            its heir; if it leaves later, it waits for one as any other does.
        """
        self._kept = None
        if joined and self.departure.begun:
            self.departure.set_free()

    async def set_free(self) -> None:
        """Forget what was kept; nobody waits for the model any more: it may end."""
        self._kept = None
        self.departure.set_free()

    def _copy(self) -> dict[str, Any]:
        holding = self.exchange.holding()
        return {
            **self.learner.snapshot(),
            "clock": holding.clock,
            "taken": holding.taken,
            "sealed": sorted(holding.sealed),
        }

    def _copy_for_others(self) -> dict[str, Any]:
        self.learner.say_what_is_hidden()
        return self._copy()

    def _copy_whole(self) -> dict[str, Any] | None:
        # Its peers take for applied what it had to refuse.
        if self.exchange.is_behind:
            return None
        # Buffers may hold what they like: a mask is made of infinities.
        if not self.learner.is_finite():
            raise CheckpointError(
                "The parameters are not finite (NaN or infinite): training has "
                "diverged. Nothing was written, and the checkpoints before are kept: "
                "restore one of them, with a lower learning rate or scaled inputs."
            )
        self.learner.say_what_is_hidden()
        return self._copy()

    async def seal(self, origins: Sequence[str]) -> Holding:
        """Apply nothing more of lost peers, and tell whose gradients are held."""
        holding = await self.thread.call(lambda: self.exchange.seal(origins))
        self.exchange.forget_sealed()
        return holding

    async def is_finite(self) -> bool:
        """Whether none of its parameters is NaN or infinite."""
        return await self.thread.call(self.learner.is_finite)

    async def overlook(self, clock: dict[str, int]) -> None:
        """Go on without gradients of peers that nobody has any more."""
        await self.thread.call(lambda: self.exchange.overlook(clock))

    async def wait_for_peers(self, replicas: int, timeout: float) -> None:
        """Wait until so many replicas of the run know each other."""
        await self.exchange.wait_for_peers(replicas, timeout)

    async def learn(self, block: Block) -> Outcome:
        """Learn a block of mini-batches, in order.

        Raises
        ------
        ClusterError
            If the block is of another run.
        ReplicaLeavingError
            If the replica leaves; nothing of the block was learned.
        """
        self._check_run(block)
        self.departure.check()
        with self.departure.answering():
            return await self.thread.learn(block)

    async def predict(self, block: Block) -> Packed:
        """Predict for the single mini-batch of a block: a packed `Prediction`.

        Raises
        ------
        BatchError
            If the model cannot take it.
        ReplicaLeavingError
            If the replica leaves.
        ModelError
            If it returns what does not travel.
        """
        self._check_run(block)
        self.departure.check()
        learner, exchange = self.learner, self.exchange

        def run() -> Packed:
            self._before_calling()
            group = block.groups[0]
            x, _, samples = next(to_tensors(group, learner.device))
            version = exchange.clock.version
            age = time.monotonic() - exchange.changed
            try:
                value = learner.predict(x)
            except BaseException as error:
                raise _explained(learner, error, group, samples) from error
            packed = pack(
                {
                    "value": value,
                    "version": version,
                    "age": age,
                    "replica": self._plan.place.address,
                },
                typed=True,
            )
            self.thread.counters.predictions += samples
            return packed

        with self.departure.answering():
            return await self.thread.call(run)

    async def evaluate(self, block: Block | None, session: str) -> dict[str, float]:
        """Score a block for an evaluation; with None, end it and give the result.

        Raises
        ------
        ReplicaLeavingError
            If the replica leaves, and the evaluation has not begun.
        """
        if session not in self._evaluations:
            self.departure.check()
        learner = self.learner

        def run() -> dict[str, float]:
            self._before_calling()
            evaluation = self._evaluations.pop(session, None) or learner.evaluation()
            if block is None:
                return evaluation.result()
            for group in block.groups:
                for x, y, samples in to_tensors(group, learner.device):
                    try:
                        evaluation.add(x, y, samples)
                    except BaseException as error:
                        raise _explained(learner, error, group, samples) from error
            self._evaluations[session] = evaluation
            return {}

        with self.departure.answering():
            return await self.thread.call(run)

    async def forget(self, session: str) -> None:
        """Forget an evaluation that was broken off, after what it was given."""
        await self.thread.call(lambda: self._evaluations.pop(session, None))

    async def state_dict(self) -> Packed:
        """Give the packed state_dict, after applying what has arrived."""
        return await self.thread.call(lambda: pack(self.learner.state_dict()))

    async def flush(self, timeout: float) -> Status:
        """Publish what has gathered and wait until every peer has applied it."""
        await self.thread.call(self.exchange.publish_all)
        try:
            await self.exchange.flushed(timeout)
        except TrainerClosedError as error:
            if self.thread.failure is not None:  # by which it has left
                raise self.thread.failure from error
            raise
        return await self.status()

    async def statistics(self) -> dict[str, float]:
        """Statistics of the exchange."""
        return self.exchange.statistics()

    async def status(self) -> Status:
        """How the replica stands."""
        return await self.thread.call(self.thread.status)

    async def leave(self, timeout: float) -> Status:
        """Learn and answer what is here, hand it to the peers, and leave the run.

        From now on new work raises `ReplicaLeavingError`. What was not begun in half
        the time does so, too. Can be asked for again, and does nothing then.

        Parameters
        ----------
        timeout
            Seconds.

        Raises
        ------
        TensairTimeoutError
            If it takes longer.
        """
        # For the client, which may have nothing to send just now; and for the pages.
        plan = self._plan
        self._worker.log_event(LEAVING_TOPIC, (plan.run_id, plan.name))
        told = {"run_id": plan.run_id, "kind": LEAVING, "replica": plan.name}
        self._worker.log_event(TOPIC, told)
        await self.departure.leave(self.exchange, timeout)
        if self.thread.has_ended:
            return self.thread.status()
        return await self.status()

    async def close(self) -> dict[str, Any]:
        """End the thread, deliver what it published, and leave the exchange.

        Returns
        -------
        counts
            The last ones, as heartbeats carry them; empty if it was never built.
        """
        self._closing = True
        self.departure.set_free()
        if self._departures is not None:
            self._departures.remove(self._plan.run_id, self._plan.name)
        await self.thread.stopped()
        if self._exchange is None:
            return {}
        self.learner.claim.release()
        self.learner.drawing.end()
        await self._exchange.leave()
        return self.counts()

    def counts(self) -> dict[str, Any]:
        """Everything that the replica counts, as heartbeats carry it."""
        exchange = self.exchange
        return {
            # Of both, `refused` counts something: mini-batches are what is asked for.
            **exchange.statistics(),
            **self.thread.counters.snapshot(),
            "version": exchange.clock.version,
            "device": self._plan.place.device,
            "trainer": plain(self._plan.trainer),
        }

    def report_counts(self) -> dict[str, Any] | None:
        """What heartbeats carry: `counts`; None if it cannot go on."""
        failed = self.thread.has_ended and not self._closing
        return None if failed else self.counts()

    @property
    def device(self) -> str:
        """Name of the torch device that it was placed on."""
        return self._plan.place.device

    @property
    def learner(self) -> Learner:
        """The learner, once it is built."""
        assert self._learner is not None, "build() comes first"
        return self._learner

    @property
    def exchange(self) -> Exchange:
        """The exchange, once the model is built."""
        assert self._exchange is not None, "build() comes first"
        return self._exchange

    def _before_calling(self) -> None:
        """Have the peers told of it, if calling the model changes its parameters."""
        if self.learner.moves:
            self.exchange.before_step()

    def _check_run(self, block: Block) -> None:
        if block.run_id != self._plan.run_id:
            raise ClusterError(
                f"A mini-batch of run {block.run_id!r} reached a replica of run "
                f"{self._plan.run_id!r}; it was refused. Use the trainer that is open."
            )


def _unpickled(payload: bytes, plan: ReplicaPlan, what: str) -> Any:
    try:
        return cloudpickle.loads(payload)
    except ImportError as error:
        raise PackageMissingError(
            f"Worker {plan.place.address} cannot import {error.name!r}, which is "
            f"needed. {what} refers to it. Install it on the workers, for example: "
            f"pip install {(error.name or '').partition('.')[0]}."
        ) from error
    except BaseException as error:
        raise ModelError(
            f"{what} cannot be unpickled on worker {plan.place.address}: "
            f"{in_words(error)}. The client and the workers should have "
            "the same versions of Python and torch."
        ) from error


def _build(plan: ReplicaPlan) -> Learner:
    recipe = _unpickled(plan.recipe, plan, RECIPE)
    try:
        device = torch.device(plan.place.device)
        torch.empty(0, device=device)
    except BaseException as error:
        raise ConfigurationError(
            f"device={plan.place.device!r} cannot be used on worker "
            f"{plan.place.address}: {error}. Use 'auto', 'cpu' or a CUDA device that "
            "the worker has."
        ) from error
    learner = Learner(recipe, device)
    _check_parameters(plan, learner)
    for change in plan.changes:
        _repeat(plan, learner, change)
    if plan.client is not None:
        seed_training(recipe.seed, plan.name, learner.drawing, plan.client)
    return learner


def _check_parameters(plan: ReplicaPlan, learner: Learner) -> None:
    settings = plan.settings or ExchangeConfig()
    check_parameters(learner.model, learner.arena, settings.compression)


def _restructured(plan: ReplicaPlan, learner: Learner, change: Change) -> bool:
    """Change a learner; whether its structure is another then, as it must be."""
    function = _unpickled(change.function, plan, "The function")
    with seeded(change.seed):
        restructured = learner.change(
            function, lambda: _check_parameters(plan, learner)
        )
    if change.layout is not None and learner.layout() != change.layout:
        difference = _difference(learner.layout(), change.layout)
        learner.undo_change()
        raise ModelError(
            "The function has given this replica another structure than its peer: "
            f"{difference}. It is called once on each replica, also on those that "
            "join later, and must do the same on all: let it depend on no file, no "
            "clock, and no value of the model."
        )
    return restructured


def _repeat(plan: ReplicaPlan, learner: Learner, change: Change) -> None:
    _restructured(plan, learner, change)
    learner.keep_change()


def _difference(mine: str, theirs: str) -> str:
    ours, others = (json.loads(each)[0] for each in (mine, theirs))
    for name in {**ours, **others}:
        if ours.get(name) != others.get(name):
            return f"{name!r} is {ours.get(name)} here and {others.get(name)} there"
    return "the parameters are in other groups of the optimizers"


def _explained(learner: Learner, error: BaseException, group: Any, samples: int) -> Any:
    if not isinstance(error, TensairError):
        error = ForwardError(f"The model's answer cannot be used: {in_words(error)}")
    if isinstance(error, BatchError):
        return learner.refusal(error, group, samples)
    return error
