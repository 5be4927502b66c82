"""Trainer: the user's handle on a model that learns from a stream."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import math
import platform
import sys
import time
import uuid
import weakref
from collections import OrderedDict
from collections.abc import (
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import dask
import pandas as pd
from distributed import Client

from tensair_dask import config
from tensair_dask._common.checks import flag, shown
from tensair_dask._common.functions import changed, described, name_of, settings_of
from tensair_dask._common.held import Held
from tensair_dask._common.loops import is_awaited, is_running_here
from tensair_dask._common.notices import Notices
from tensair_dask._common.other_libraries import (
    checked_call,
    no_such_method,
    no_such_setting,
)
from tensair_dask._common.score_columns import columns
from tensair_dask._common.serial_queue import OneByOne
from tensair_dask._common.user_functions import OPTIMIZERS, as_called, doubts
from tensair_dask.batches.batch import ABSENT, Block, as_refusal, made_of, refusing
from tensair_dask.batches.column_names import ColumnNames
from tensair_dask.batches.copies import as_values
from tensair_dask.batches.predictions import (
    Prediction,
    as_batch,
    unknown_type,
    why_no_inputs,
    without_batch_axis,
)
from tensair_dask.checkpoints import Checkpoint
from tensair_dask.coordinator.barrier import Interventions
from tensair_dask.coordinator.calls import Calls, closed_error, late_error
from tensair_dask.coordinator.checkpointing import Every, Path, Saving
from tensair_dask.coordinator.dead_letters import DeadLetter, DeadLetters, Letters
from tensair_dask.coordinator.dispatcher import Dispatcher, Lane, Limits, Pending
from tensair_dask.coordinator.drift_response import Adapting
from tensair_dask.coordinator.ledger import Entry, Ledger, marks_of
from tensair_dask.coordinator.membership.autoscale import Demand, LagScaling, cluster_of
from tensair_dask.coordinator.membership.keep import Membership
from tensair_dask.coordinator.on_error import is_raised, policy_for
from tensair_dask.coordinator.refused import Refused, kind_of, told
from tensair_dask.coordinator.start import ReplicaHandle, Starter
from tensair_dask.coordinator.unclosed import Unclosed
from tensair_dask.drift import Detector
from tensair_dask.drift.convergence import Convergence
from tensair_dask.drift.modes import Modes, as_convergence, as_detector, as_watch
from tensair_dask.drift.policies import Policy, as_policy
from tensair_dask.errors import (
    BatchError,
    ConfigurationError,
    EventLoopError,
    RaisedError,
    RecordError,
    SchedulerLostError,
    TensairError,
)
from tensair_dask.exchange.settings import Settings, Share
from tensair_dask.exchange.wire import unpack
from tensair_dask.observe.dashboard.plugin import NAME as DASHBOARD
from tensair_dask.observe.dashboard.plugin import TrainingDashboard
from tensair_dask.observe.live_view import Monitor
from tensair_dask.observe.snapshot import dashboard_link, look_at
from tensair_dask.observe.telemetry.counters import plain
from tensair_dask.observe.telemetry.curves import COLUMNS as OF_CURVES
from tensair_dask.observe.telemetry.curves import Curves
from tensair_dask.observe.telemetry.events import KINDS, TOPIC, Event, Events
from tensair_dask.observe.telemetry.reporter import Reporter
from tensair_dask.replica.clipping import as_clipping
from tensair_dask.replica.combinations import check_arguments
from tensair_dask.replica.learner import Recipe, to_arrays
from tensair_dask.replica.placement import Wish
from tensair_dask.reports import COLUMNS, History, Report

if TYPE_CHECKING:
    from tensair_dask.observe.figures.run import Plot

__all__ = ["ReplicaInfo", "Trainer"]

logger = logging.getLogger(__name__)


class ReplicaInfo(NamedTuple):
    """One replica, as the client knew it at its latest report.

    Attributes
    ----------
    address
        Of its worker.
    steps
        Mini-batches that it has learned itself.
    samples
        Rows in them.
    staleness
        Mean over the newest gradient messages that it applied.
    alive
        False once its worker was lost.
    version
        Gradients that its model holds, its own and its peers'.
    device
        Name of the torch device.
    """

    address: str
    steps: int
    samples: int
    staleness: float
    alive: bool
    version: int
    device: str


class Trainer:
    """Trains one model on a Dask cluster from mini-batches as they come.

    Replicas of the model live on the workers as Dask actors. Each mini-batch is
    learned by one replica, which publishes the gradient to the others, worker to
    worker (decentralized asynchronous SGD, arXiv 2211.10280).

    With an ordinary client every method blocks; with an asynchronous one (or within
    a coroutine on the client's event loop) every method returns an awaitable. Use
    ``with`` or ``async with``, or `close` it.

    Parameters
    ----------
    client
        Connected to a Dask cluster that has tensair_dask installed on the scheduler
        and on every worker.
    model
        A class or function that builds a `torch.nn.Module` when called without
        arguments. Called on each worker. It may be defined in a notebook, or in a
        module that only the client has.
    loss
        ``loss(prediction, y)``, a scalar tensor.
    optimizer
        Called with the trainable parameters, for example
        ``functools.partial(torch.optim.SGD, lr=0.05)``. For a model with tables
        made with ``sparse=True`` it may be a dict of two, ``"sparse"`` for the
        tables and ``"dense"`` for all else, since `torch.optim.SparseAdam` takes
        only the former and most others only the latter.
    schedule
        Of the learning rates, by the *clock*: the number of gradients that the model
        holds, those of all replicas together. A function of that number that gives a
        factor for the rates that the optimizer was built with, ``lambda gradients:
        0.9999 ** gradients``; or what builds a scheduler of
        `torch.optim.lr_scheduler` when called with the optimizer,
        ``functools.partial(StepLR, step_size=1000)``, which makes a step for each
        gradient. All optimizers follow it. Replicas that join, take over a model or
        go on from a checkpoint are where its clock is. A rate that a policy or `apply`
        changes goes on from there, multiplied by what the schedule does.
    clip_gradients
        Of each mini-batch, before a step is made of them and before anything is
        shared: a number, to which the norm of all gradients together is cut, or a pair
        ``("value", 0.5)``, which cuts off each element. None: they are left as they
        are.
    metrics
        By name, ``(prediction, y) -> scalar`` or torchmetrics objects; computed for
        every mini-batch before it is learned. One that returns a dict, as a
        `torchmetrics.MetricCollection` does, makes columns ``name.key``. Where one
        raises, the score is NaN, the mini-batch is learned all the same, and a warning
        and an event say it once.
    replicas
        How many: ``"all"`` for one on each worker, also on those that come later; a
        number; or a pair ``(least, most)`` for one on each worker within these
        bounds. As many are kept as workers come, go, and are lost.
    share
        What replicas publish. ``"gradient"``: each receiver puts it through its own
        optimizer, as in the paper; exact for plain SGD. ``"update"``: the change that
        the sender's optimizer made, which is a sum, so that replicas agree with any
        optimizer, at the price of one more copy of the parameters. None: gradients
        where that is exact (`torch.optim.SGD` without momentum, weight decay, hooks or
        a schedule, for a model without half precision and ``max_norm``), else updates;
        the attribute `share` tells which. ``"gradient"`` where it is not exact warns.
    compression
        Of what is published: ``"none"``, ``"bfloat16"`` or ``"float16"`` (half the
        bytes), ``"int8"`` (a quarter). What rounding leaves out is kept and sent
        later, and `drain` sends all of it, exactly.
    staleness
        How long after it was computed a gradient is applied by the peers at the
        latest, in seconds or as ``"100ms"``; None for
        ``tensair.exchange.staleness``. Later means fewer messages.
    device
        ``"auto"``: CUDA where a worker has it, spread over the GPUs of a host, else
        the CPU. Or the name of a torch device.
    seed
        Of torch, ``numpy.random`` and ``random``. Set before the model is built, so
        that all replicas begin alike, and once more before training begins, for what
        draws random numbers then, such as dropout: each replica draws others. With one
        replica in a worker process of its own a run on the CPU repeats itself; with
        several, gradients come in another order each time. Where replicas share a
        process, or are in that of the client (``processes=False``), training is not
        seeded: these generators belong to a whole process. Dask itself draws from
        ``random``, now and then.
    keep_predictions
        Whether reports carry the predictions they were scored by.
    max_in_flight
        Mini-batches that may lie unreported at one replica; None for
        ``tensair.dispatch.max-in-flight``. Fewer mean less delay and earlier
        back-pressure.
    name
        What people call it, on the dashboard for example; None for the name of what
        builds the model.
    mode
        When to train; None: that of the checkpoint where it goes on from one, else
        ``"always"``. ``"always"``: on everything. ``"never"``: only predict and
        score, whatever ``on_drift`` is; drifts are told only. No parameter is
        trained; what a model writes in ``forward`` also in ``eval()``, such as a
        counter in a buffer, it writes as ever. ``"auto"``: train until the loss has
        converged, then only predict and score, and train again when the stream has
        drifted. All replicas switch at the same mini-batch, and each switch is one of
        the `events`.
    detector
        What finds drift, one of `tensair_dask.drift`, or its name. None is OPTWIN in
        mode auto, and no detection in the others. By name or by default OPTWIN has
        confidence 0.998: a false alarm costs a training. In mode auto it looks while
        the model only predicts, in the others all the time. An object is used itself,
        by one open trainer.
    watch
        What the detector is given: ``"loss"``, the name of a metric, or a function of
        a `Report`. Larger must be worse. DDM takes errors only, not losses.
    convergence
        When the loss has converged; None for ``Convergence()``. Each trainer takes a
        copy that has seen nothing.
    on_drift
        What is done beside training on drift, which only a detector finds:
        ``"train"`` (nothing), ``"raise-learning-rate"``, ``"restore"``, a policy of
        `tensair_dask.adaptation` with its arguments, or a function
        ``(model, optimizers, drift)`` that changes the model in place.
    checkpoint_to
        Folder for checkpoints, on any file system that fsspec knows, the newest of
        which are kept. If there are some already, it must go on from there; see
        `Trainer.restore`. Records are then let go of by their sources (a Kafka offset
        is committed) when a checkpoint holds them, not when they are learned.
    checkpoint_every
        How often: a whole number of mini-batches, or a time such as ``"10s"``. None:
        only when `save` is called, and at the end.
    scores
        By name, what scores the stream beside the trainer, such as `Prequential`
        objects: their state is in the checkpoints.
    restore, or_begin
        See `Trainer.restore`.

    Raises
    ------
    ConfigurationError, NoWorkersError, ModelError, OptimizerError
        If the replicas cannot be built.
    PackageMissingError, SchedulerLostError
        If the cluster cannot be used.

    Notes
    -----
    *Buffers*, such as BatchNorm's running statistics, are not exchanged: each replica
    keeps those of the mini-batches that it saw itself, and `predict` and `state_dict`
    use those of one replica. *Frozen parameters* are neither trained nor sent; those
    that the model writes itself, such as a moving average, are as buffers.
    *Parameters shared by several modules* are trained and sent once. *Scoring* uses
    the forward pass that training makes, in training mode: with dropout or BatchNorm
    it is noisier than an evaluation; use `evaluate` for that. Mini-batches that are
    only predicted are scored in evaluation mode.
    """

    @checked_call(
        "Trainer",
        "For example Trainer(client, model=build_model, "
        "loss=torch.nn.functional.cross_entropy, "
        "optimizer=functools.partial(torch.optim.SGD, lr=0.05)).",
    )
    def __init__(
        self,
        client: Client,
        *,
        model: Callable[[], Any],
        loss: Callable[[Any, Any], Any],
        optimizer: Callable[[Any], Any] | Mapping[str, Callable[[Any], Any]],
        schedule: Callable[[Any], Any] | None = None,
        clip_gradients: float | tuple[str, float] | None = None,
        metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
        replicas: int | tuple[int, int] | str | None = "all",
        share: Share | None = None,
        compression: str = "none",
        staleness: float | str | None = None,
        device: str = "auto",
        seed: int = 0,
        keep_predictions: bool = False,
        max_in_flight: int | None = None,
        name: str | None = None,
        mode: str | None = None,
        detector: Detector | str | None = None,
        watch: str | Callable[[Report], float] = "loss",
        convergence: Convergence | None = None,
        on_drift: Policy | str | Callable[..., Any] = "train",
        checkpoint_to: Path | None = None,
        checkpoint_every: Every | None = None,
        scores: Mapping[str, Any] | None = None,
        restore: Path | None = None,
        or_begin: bool = False,
    ) -> None:
        _check_arguments(client, model, loss, optimizer, metrics)
        _check_schedule(schedule)
        device, seed, keep_predictions = check_arguments(
            device=device,
            seed=seed,
            keep_predictions=keep_predictions,
            restore=restore,
            or_begin=or_begin,
            checkpoint_to=checkpoint_to,
            checkpoint_every=checkpoint_every,
            max_in_flight=max_in_flight,
            metrics=metrics,
            scores=scores,
        )
        # When there is somewhere to write it down.
        said = doubts(loss, metrics or {}, schedule)
        self._to_say = [*config.check(), *_annotated(), *said]
        self._follows_loss = convergence is not None
        self.client = client
        self.run_id = uuid.uuid4().hex
        self.name = str(name or _name_of(model))
        self.dead_letters = DeadLetters(int(config.get("dead-letters")))
        self._recipe = Recipe(
            model,
            loss,
            optimizer,
            dict(metrics or {}),
            share,
            seed,
            keep_predictions,
            schedule,
            as_clipping(clip_gradients),
        )
        names = columns(metrics or {})
        wish = Wish.of(replicas)
        settings = Settings.configured(share, compression, staleness)
        self._given_mode = mode
        first_mode = "always" if mode is None else mode
        watching = as_detector(detector, first_mode)
        modes = Modes(
            first_mode,
            watching,
            as_convergence(convergence),
            as_policy(on_drift),
            as_watch(watch, metrics or {}, watching),
            int(config.get("drift.reorder")),
            name_of(watch),
            {} if isinstance(watch, str) else settings_of(watch),
        )
        self._history = History(int(config.get("history")), names)
        self._refused = Refused()
        self._column_names = ColumnNames()
        # How the arrays of x hang together in what was learned.
        self._structures: set[Any] = set()
        # Of the sources that it learns from: how to hear no more of them.
        self._heard: dict[Letters[Any], Callable[[], None]] = {}
        self._events = Events()
        self._notices = Notices()
        self._unclosed: Unclosed | None = None
        self._curves = Curves(
            names,
            self._now,
            config.get_seconds("curves.interval"),
            int(config.get("curves.rows")),
        )
        self._dispatcher = Dispatcher(
            self.run_id,
            _limits(max_in_flight),
            self._observe,
            self._lost,
            self.say_once,
        )
        self._shown = bool(config.get("dashboard.enabled"))
        # Mini-batches that streams dropped since too many waited.
        self.dropped = 0
        # Of the streams that it learns from, until it is closed.
        self.nodes: set[Any] = set()
        # By which nodes of streams hold it, until it is closed.
        self.holders: weakref.WeakSet[Held[Trainer]] = weakref.WeakSet()
        self._handles: list[ReplicaHandle] = []
        self._shared = share or ""
        self._calls = Calls(self._handles, self._dispatcher)
        interventions = Interventions(self._calls, self._dispatcher)
        self._starter = Starter(
            client,
            self.run_id,
            self._recipe,
            device,
            settings,
            self.name if self._shown else None,
        )
        self._membership = Membership(
            client,
            self._starter,
            wish,
            self._handles,
            self._calls,
            interventions,
            self._dispatcher,
            self._note,
            self._admitted,
        )
        self._adapting = Adapting(modes, interventions, self._events.append, self._log)
        self._last_counts: dict[str, Any] = {}
        self._keeps = checkpoint_to is not None
        self._ledger = Ledger(self._keeps, int(config.get("checkpoints.unsaved")))
        self._saving = Saving(
            checkpoint_to,
            checkpoint_every,
            interventions,
            self._membership.look,
            modes,
            self._ledger,
            dict(scores or {}),
            self._facts,
            functools.partial(self._note, "note"),
        )
        of_metrics = {
            f"metrics[{key!r}]": each for key, each in (metrics or {}).items()
        }
        self._functions = described({"loss": loss, **of_metrics, "schedule": schedule})
        # No function, and told in the same way.
        clipping = {"clip_gradients": repr(clip_gradients)}
        self._functions["the trainer"] = {"name": "Trainer", "settings": clipping}
        self._restore = restore, or_begin
        self._goes_on = False
        self._awaited: set[asyncio.Future[Report]] = set()
        self._predictions_each = _max_predictions()
        self._most_predictions = 0
        self._predicting = asyncio.Semaphore(0)
        self._index = 0
        # Mini-batches with a place in a source that are not learned everywhere, by
        # index, in order; an ordered dict finds its first one at once.
        self._under_way: OrderedDict[int, None] = OrderedDict()
        self._state = "new"
        if (text := _claim(watching, self)) and restore is None:
            self._to_say.append(text)
        _warn_of_no_detector(modes, watch)
        self._monitor: Monitor | None = None
        self._scaling: LagScaling | None = None
        self._forgetting = OneByOne("Forgetting an evaluation that was broken off")
        self._starting: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._reporter = Reporter(
            client,
            (DASHBOARD, TrainingDashboard()),
            {
                "run_id": self.run_id,
                "name": plain(self.name),
                "client": client.id,
                "metrics": [plain(each) for each in names],
                "target": None if wish.most == math.inf else int(wish.most),
            },
            self._told,
        )
        if not client.asynchronous:
            try:
                client.sync(self._start)
            except BaseException:
                # Ctrl-C, say: nobody gets this trainer, so nobody would close it.
                if not self._client_is_closed:
                    client.loop.add_callback(self._close)
                raise

    # ---- the start ------------------------------------------------------------------

    async def _start(self) -> Trainer:
        if self._state == "closed":
            raise closed_error()
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._start_replicas())
        await asyncio.shield(self._starting)
        return self

    async def _start_replicas(self) -> None:
        try:
            if self._shown:
                await self._reporter.open()
            await self._membership.start()
            await self._membership.hear()  # what they share, and have to say
            self._adapting.interventions.modules = self._starter.modules
            self._adapting.interventions.changes = self._starter.changes
            for text in (*self._to_say, *_left_open(self)):
                self.say_once(text, text)
            await self._go_on()
            self._tell_unused()
            for scores in self._saving.scores.values():
                self.scored_by(scores)
            await self._adapting.start()
        except BaseException:
            self._state = "closed"
            await self._membership.close()
            for handle in self._handles:
                handle.release()
            # A cluster that closes now would ask what is still being built to leave.
            await self._starter.released(config.get_seconds("timeouts.release"))
            await self._reporter.close({})
            raise
        self._membership.watch()
        self._unclosed = Unclosed(self.client, self.run_id, self._left_open)
        self._curves.begin()
        self._state = "open"
        _open.setdefault(self.client, weakref.WeakSet()).add(self)

    def _tell_unused(self) -> None:
        if self._follows_loss and self.mode != "auto":
            self.say_once(
                "convergence",
                "convergence= was given, and is looked at in mode 'auto' only: the "
                f"mode is {self.mode!r}, which does not end training where the loss "
                "has settled. Give mode='auto', or call trainer.set_mode('auto').",
            )

    def _admitted(self) -> None:
        """Let more predictions be under way, if there are more replicas than ever."""
        most = self._predictions_each * self._membership.count
        for _ in range(most - self._most_predictions):
            self._most_predictions += 1
            self._predicting.release()

    async def _go_on(self) -> None:
        """Go on from a checkpoint, if there is one; see that more can be written."""
        path, or_begin = self._restore
        checkpoint = None
        if path is not None:
            checkpoint = await self._saving.load(path, or_begin)
        await self._saving.check(None if checkpoint is None else path)
        if checkpoint is not None:
            notices = await self._saving.restore(checkpoint)
            self._goes_on = True
            notices += self._compared(checkpoint)
            self._column_names.load_state_dict(checkpoint.columns)
            self._index = checkpoint.index
            self._note("note", f"going on from {checkpoint.describe()}")
            for text in notices:
                self.say_once(text, text)
            self._hold_to_mode()
        elif path is not None:
            text = await self._saving.nothing_at(path)
            self.say_once("begins anew", text)
        if or_begin and not self._keeps:
            self.say_once(
                "or_begin",
                "or_begin=True was given without checkpoint_to=: only trainer.save() "
                "writes what the next start could go on from. Give checkpoint_to= the "
                "same folder.",
            )

    def _compared(self, checkpoint: Checkpoint) -> list[str]:
        """Say which functions are others than those that the checkpoint was made with.

        One of before they were kept says nothing of them.
        """
        if not checkpoint.functions:
            return []
        same_python = checkpoint.versions.get("python") == platform.python_version()
        was = {"the trainer": self._functions["the trainer"], **checkpoint.functions}
        found = changed(was, self._functions, same_python)
        if not found:
            return []
        return [
            f"Other settings were given than when the checkpoint was saved: "
            f"{'; '.join(found)}. Those that were given hold."
        ]

    def _hold_to_mode(self) -> None:
        """Let a mode that was given hold over the checkpoint's; say which does."""
        given, saved = self._given_mode, self.mode
        if given is not None and given != saved:
            for switch in self._adapting.modes.set_mode(given, self._index):
                self._adapting.switched(switch)
            self.say_once(
                "mode",
                f"mode={given!r} was given and holds; the checkpoint was saved in mode "
                f"{saved!r}. Leave mode out to go on in that of the checkpoint.",
            )
        elif given is None and saved != "always":
            self.say_once(
                "mode",
                f"The mode is {saved!r}, that of the checkpoint, as none was given. "
                "Give mode= for another, or call trainer.set_mode.",
            )

    def _facts(self) -> dict[str, Any]:
        """What a checkpoint is told besides the state of the model."""
        oldest = next(iter(self._under_way), self._index)
        return {
            "name": self.name,
            "index": self._index,
            "columns": self._column_names.state_dict(),
            "functions": self._functions,
            "counters": {
                "emitted": self._index,
                "dead_letters": self.dead_letters.total,
                "again": self._index - oldest,
            },
        }

    def _now(self) -> dict[str, float]:
        """What each row of the curves is told besides the reports."""
        alive = sum(lane.alive for lane in self._dispatcher.lanes)
        return {
            "backlog": self.backlog,
            "lag": self._lag(),
            "replicas": alive,
        }

    def _told(self) -> dict[str, Any]:
        """What the scheduler is told once a second."""
        told = {
            "state": "starting" if self._state == "new" else "open",
            "emitted": self.emitted,
            "backlog": self.backlog,
            "lag": self._lag(),
            "dead_letters": self.dead_letters.total,
            "dropped": self.dropped,
            "mode": self.mode,
            "phase": self.phase,
            "metrics": [plain(each) for each in self._curves.metrics],
            "share": self.share,
        }
        if self._handles:
            told["target"] = self._membership.target
        return told

    def __await__(self) -> Generator[Any, None, Trainer]:
        return self._open().__await__()

    async def _open(self) -> Trainer:
        try:
            return await self._start()
        except asyncio.CancelledError:
            await self._close()  # nobody gets it, so nobody would
            raise

    async def _ready(self) -> None:
        if self._state == "new":
            await self._start()
        if self._state != "open":
            raise closed_error()
        if self._client_is_closed:
            raise self._client_closed()

    def _client_closed(self) -> SchedulerLostError:
        return SchedulerLostError(
            "The Dask client is closed, so the trainer cannot reach the cluster. Keep "
            "the client open as long as the trainer."
        )

    # ---- learning -------------------------------------------------------------------

    @checked_call(
        "trainer.train",
        "It learns one mini-batch, trainer.train(x, y); of a loader of them: for x, y "
        "in loader: trainer.train(x, y). A stream is learned by stream.train(trainer).",
    )
    def train(self, x: Any, y: Any) -> Any:
        """Learn one mini-batch and return its report.

        Parameters
        ----------
        x
            Array or tensor of shape (samples, ...), or a tuple (positional arguments
            of the model) or dict (keyword arguments) of them.
        y
            Array or tensor, or a tuple or dict of them, given to the loss.

        Returns
        -------
        report
            A `Report`. If the mini-batch was refused, its ``error`` says why; call
            ``report.raise_for_error()`` to raise it.

        Raises
        ------
        TrainerClosedError, NoReplicasError, TensairTimeoutError
            If it could not be learned for reasons of the system.
        """
        x, y = self._given((x, y))
        return self._sync(self._train, x, y)

    def _given(self, item: Any) -> Any:
        """Take the values of what a call is given that may begin after it returns."""
        return as_values(item) if self.client.asynchronous else item

    async def _train(self, x: Any, y: Any) -> Report:
        await self._ready()
        done: asyncio.Future[Report] = asyncio.get_running_loop().create_future()

        def deliver(report: Report) -> None:
            if not done.done():
                done.set_result(report)

        rest = self.feed((x, y), lambda pair: pair, deliver)
        if rest is not None:
            await rest
        self._awaited.add(done)
        try:
            seconds = config.get_seconds("timeouts.request")
            async with asyncio.timeout(seconds):
                report = await done
        except TimeoutError:
            raise late_error("A report", seconds, "request") from None
        finally:
            self._awaited.discard(done)
        if report.error is not None and not isinstance(report.error, BatchError):
            raise report.error
        return report

    def feed(
        self,
        item: Any,
        collate: Callable[[Any], tuple[Any, Any]],
        deliver: Callable[[Report], Awaitable[Any] | None],
        settle: Callable[[], Any] | None = None,
        metadata: Sequence[Any] = (),
        on_error: str = "dead-letter",
        is_value: bool = False,
    ) -> Awaitable[None] | None:
        """Take one item of a stream; for stream nodes, on the client's event loop.

        Parameters
        ----------
        item
            What the stream gave; kept in the dead letters if it is refused.
        collate
            Makes ``(x, y)`` of it, or a `MiniBatch`.
        deliver
            Called once with the report; what it returns is awaited before the
            mini-batch's place is given to another.
        settle
            Called once when the item may be forgotten: its report has passed, all
            replicas hold its gradient and, where there are checkpoints, one that is
            written does. Never, if all replicas were lost, or its error is to be
            raised.
        metadata
            Of streamz: holds where its records were in their sources.
        on_error
            What is done if it is refused; see `tensair_dask.coordinator.on_error`.
        is_value
            Whether its arrays are no one else's; else they are copied, since who has
            given them may change them, or use them again for the next one.

        Returns
        -------
        rest
            None if a replica had room at once, else an awaitable that ends when one
            has: awaiting it is the back-pressure.
        """
        settled = None
        if settle is not None:
            self._ledger.emitted(metadata)
            settled = functools.partial(self._ledger.settled, Entry(metadata, settle))
        index = self._index
        self._index += 1
        if settled is not None:
            self._under_way[index] = None
            settled = functools.partial(self._settle, index, settled)
        try:
            if not is_value:
                item = as_values(item)
            batch = made_of(item, collate, not is_value, self._column_names.batch)
        except BaseException as failure:
            error = RaisedError.caught(failure)
            nothing: Any = None
            refused = Pending(
                index, nothing, item, deliver, settled, metadata, on_error
            )
            return self._refuse(refused, error)
        self._structures.add(batch.kind[0])
        batch.learn = self._adapting.modes.learns
        pending = Pending(index, batch, item, deliver, settled, metadata, on_error)
        if self._state == "open" and self._dispatcher.offer(pending):
            return None
        return self._feed_when_ready(pending)

    def _settle(self, index: int, settled: Callable[[], Any]) -> None:
        del self._under_way[index]
        settled()

    async def _feed_when_ready(self, pending: Pending) -> None:
        await self._ready()
        await self._dispatcher.submit(pending)

    def _refuse(self, refused: Pending, error: Exception) -> Awaitable[None] | None:
        """Report an item that is no mini-batch, without asking a replica."""
        error = as_refusal(error)
        report = Report.refused(refused.index, 0, error)
        report.time = time.time()
        self._observe(refused, report)
        return _hand_over(refused, report)

    def _observe(self, pending: Pending, report: Report) -> None:
        self._saving.noticed(report.index)
        self._history.append(report)
        self._curves.observe(report, pending.taken)
        if self._adapting.modes.watches:
            sound = report if report.error is None else None
            self._adapting.observe(report.index, sound, self._index)
        if report.error is None:
            self._refused.learned(report.samples)
            return
        # What was refused here was at no replica, where the first may still be.
        self._misfit(report.error, 0 if pending.batch is None else 1)
        if is_raised(report.error, pending.on_error):
            pending.settle = None  # its source is to read it again
        self._bury(
            DeadLetter(
                report.index,
                pending.item,
                report.error,
                report.replica,
                report.time,
                tuple(marks_of(pending.metadata)),
            ),
            pending.on_error,
        )

    def _misfit(self, error: TensairError, itself: int = 0) -> None:
        """Let other frames decide on the columns, if the first do not fit the model.

        Parameters
        ----------
        error
            Of what was refused.
        itself
            How many of those that are under way are that one.
        """
        if not self._refused.sound and self._dispatcher.backlog <= itself:
            self._column_names.refused(error)
            self._structures.clear()

    def _bury(
        self, letter: DeadLetter, on_error: str, *, is_question: bool = False
    ) -> None:
        error = letter.error
        is_kept = policy_for(error, on_error) == "dead-letter"
        is_batch = letter.index >= 0
        what = f"Mini-batch {letter.index}" if is_batch else "A record"
        if is_question:  # it was not to be learned
            what = "What was to be predicted"
        else:
            self._refused.refuse(error, is_batch=is_batch, is_kept=is_kept)
        if is_kept:
            self.say_once(f"refused: {kind_of(error)}", told(what, error))
            self.dead_letters.append(letter)
        else:
            self.dead_letters.pass_over()

    def _tell_refused(self, at_the_end: bool = False) -> None:
        """Warn where nothing was learned, or less than half."""
        if text := self._refused.news(at_the_end):
            logger.warning("%s", text)
            self._note("note", text)

    def refuse_record(
        self,
        record: Any,
        error: RecordError,
        settle: Callable[[], Any],
        metadata: Sequence[Any],
        on_error: str,
    ) -> None:
        """Take in a record that is no part of any mini-batch; for stream nodes.

        Parameters
        ----------
        record, error
            What was refused, and why.
        settle, metadata, on_error
            As in `feed`.
        """
        marks = tuple(marks_of(metadata))
        letter = DeadLetter(-1, record, error, "", time.time(), marks)
        self._bury(letter, on_error)
        if not is_raised(error, on_error):
            self.pass_over(settle, metadata)

    def refuse_question(
        self,
        item: Any,
        error: BatchError | RecordError,
        metadata: Sequence[Any],
        on_error: str,
    ) -> None:
        """Take in what cannot be predicted, and was not to be learned; for nodes.

        Parameters
        ----------
        item, error
            What was refused, and why.
        metadata, on_error
            As in `feed`.
        """
        marks = tuple(marks_of(metadata))
        letter = DeadLetter(-1, item, error, "", time.time(), marks)
        self._bury(letter, on_error, is_question=True)

    def pass_over(self, settle: Callable[[], Any], metadata: Sequence[Any]) -> None:
        """Be done with records that will not be learned; for stream nodes.

        Parameters
        ----------
        settle, metadata
            As in `feed`.
        """
        self._ledger.emitted(metadata)
        self._ledger.settled(Entry(metadata, settle))

    def reads(self, tracker: Any) -> None:
        """Take note of a source that a stream is learned from; for stream nodes.

        Parameters
        ----------
        tracker
            Tells its positions.

        Raises
        ------
        ConfigurationError
            If another source of the same name is open.
        """
        self._look(functools.partial(self._ledger.reads, tracker))
        tracker.tell(self)

    def told(self, text: str) -> None:
        """Write down as an event what a source says; for sources."""
        if not self._client_is_closed:
            self.client.loop.add_callback(self._note, "note", text)

    def hears(self, letters: Letters[Any]) -> None:
        """Count what a source refuses of a stream that is learned; for stream nodes.

        Parameters
        ----------
        letters
            Its dead letters.
        """

        def refuse(letter: Any) -> None:
            self.client.loop.add_callback(self._hear, letter.error)

        if letters not in self._heard:
            self._heard[letters] = letters.subscribe(refuse)

    def _hear(self, error: TensairError) -> None:
        self._refused.refuse(error, is_batch=False, is_kept=True)
        text = told("A record", error, "the dead_letters of the source")
        self.say_once(f"refused: {kind_of(error)}", text)

    # ---- replicas -------------------------------------------------------------------

    def scale(
        self,
        replicas: int | tuple[int, int] | str,
        timeout: float | str | None = None,
    ) -> Any:
        """Change how many replicas there are, while they learn; nothing is lost.

        Returns when as many are there as are wished for. New ones take over the model
        of a peer; those that are too many learn what they have, and leave. Workers are
        neither started nor ended: that is the matter of the cluster.

        Parameters
        ----------
        replicas
            As in `Trainer`: a number, ``"all"``, or a pair ``(least, most)``.
        timeout
            Seconds, or a string such as ``"1 minute"``; None for
            ``tensair.timeouts.start``.

        Raises
        ------
        TensairTimeoutError
            If they are not there in time; what was begun goes on.
        NoReplicasError
            If none is alive.
        """
        return self._sync(self._scale, replicas, timeout)

    async def _scale(self, replicas: Any, timeout: float | str | None = None) -> None:
        await self._ready()
        seconds = config.get_seconds("timeouts.start", timeout)
        await self._stop_adapting()
        await self._membership.scale(Wish.of(replicas), seconds)

    def adapt(
        self,
        minimum: int = 1,
        maximum: int = 8,
        target_lag: float | str | None = None,
        lag: Callable[[], float] | None = None,
        cluster: Any = None,
    ) -> Any:
        """Start workers when the stream lags, and end some when they idle.

        Each worker gets a replica. Before a worker is ended its replica hands over what
        it has learned. Use this, not ``cluster.adapt()``: Dask does not count training
        as work. It goes on until `scale` is called, or the trainer is closed, which
        leaves the cluster as it is.

        Parameters
        ----------
        minimum, maximum
            Bounds on the number of workers.
        target_lag
            In seconds, or as ``"500ms"``: beyond it workers are started. None for
            ``tensair.replicas.lag``.
        lag
            Called on the client's event loop, gives the lag in seconds, for example
            that of a Kafka consumer; None for how long the oldest mini-batch waits. A
            source that is slowed by back-pressure lags outside of the trainer, which
            only the source knows.
        cluster
            Has ``scale`` and ``scale_down``, as all clusters of Dask and dask-jobqueue;
            None for that of the client.

        Raises
        ------
        ConfigurationError
            If there is no cluster to scale, or the bounds make no sense.
        """
        wish = Wish.of((minimum, maximum))
        seconds = config.get_seconds("replicas.lag", target_lag)
        if seconds <= 0:
            raise ConfigurationError(
                f"target_lag={target_lag!r} was given; a time above 0 is allowed."
            )
        cluster = cluster_of(self.client, cluster)
        idle = config.get_seconds("replicas.idle")
        demand = Demand(wish.least, int(wish.most), seconds, idle)
        return self._sync(self._adapt, demand, lag, cluster)

    async def _adapt(
        self, demand: Demand, lag: Callable[[], float] | None, cluster: Any
    ) -> None:
        await self._ready()
        await self._stop_adapting()
        self._scaling = LagScaling(
            self.client,
            cluster,
            demand,
            lag or self._lag,
            self._membership,
            self._dispatcher,
            functools.partial(self._note, "note"),
        )

    async def _stop_adapting(self) -> None:
        scaling, self._scaling = self._scaling, None
        if scaling is not None:
            await scaling.close()

    # ---- adapting -------------------------------------------------------------------

    @property
    def mode(self) -> str:
        """``"always"``, ``"never"`` or ``"auto"``; see `set_mode`."""
        return self._adapting.modes.mode

    @property
    def phase(self) -> str:
        """``"training"``, or ``"predicting"`` if nothing is learned for now."""
        return self._adapting.modes.phase

    @property
    def drifts(self) -> pd.DataFrame:
        """The drifts that were detected, in order.

        ``time``, ``index`` (the mini-batch at which it was detected), ``detector``,
        ``before`` and ``after`` (means of what is watched), ``magnitude`` (their
        difference in standard deviations of what was before).
        """
        return self._look(self._adapting.frame)

    def set_mode(self, mode: str) -> Any:
        """Change the mode, from the next mini-batch on.

        Parameters
        ----------
        mode
            ``"always"``, ``"never"`` or ``"auto"``. The last one starts by training,
            and needs no detector: without one, OPTWIN is taken.

        Raises
        ------
        ConfigurationError
            If there is no such mode.
        """
        return self._sync(self._set_mode, mode)

    async def _set_mode(self, mode: str) -> None:
        await self._ready()
        for switch in self._adapting.modes.set_mode(mode, self._index):
            self._adapting.switched(switch)

    def apply(self, function: Callable[..., Any]) -> Any:
        """Change the model, or its optimizers, on all replicas while it trains.

        The stream is held for a moment, every gradient is applied everywhere, one
        replica is changed, and the others take over its model and optimizer state.

        It may also change the structure: a class more, a layer thawed, a layer more.
        Then it is called on each replica, also on those that join later
        (``tensair.replicas.changes`` of them are kept), and must do the same on all.
        The optimizer follows: parameters that stay keep their state, others begin
        without; new ones belong to its group if it has one, else put them into one. A
        restored model grows by itself to what a checkpoint has of the layers that
        ``model`` builds; layers that are new must be built by ``model``.

        Parameters
        ----------
        function
            ``function(model, optimizers)``, which changes them in place, on a worker:
            ``lambda model, optimizers: model.head.reset_parameters()``, or a learning
            rate in ``optimizers[0].param_groups``. It is called once, with the whole
            model. The optimizers are given to a second parameter without a default, or
            to one that is called ``optimizers``, be it the first; ``function(model)``
            does without. What it changes beside these is changed on a worker: weights
            that it copies into a model of the client's arrive nowhere. Copy out with
            `state_dict`, or return them.

        Returns
        -------
        answer
            What the function returned, on one replica: numbers, texts, tensors as
            arrays, tuples, lists and dicts of these. For anything else None, which is
            said. ``trainer.apply(lambda model, _: model.head.weight.norm())`` reads.

        Raises
        ------
        ModelError, OptimizerError
            If nothing is left to train, if a new parameter has no place in the
            optimizers, or if replicas would have other structures.
        KilledReplicasError
            If it ends the processes in which it is called.
        CallError
            If it cannot be called with these.
        Exception
            What the function raises. The models are then as they were.
        """
        return self._sync(self._apply, function)

    async def _apply(self, function: Callable[..., Any]) -> Any:
        await self._ready()
        called = as_called(function, "trainer.apply", [("optimizers", OPTIMIZERS)])
        changed = await self._adapting.interventions.change(called, self._index)
        name = getattr(function, "__name__", type(function).__name__)
        if changed.answer.idle:
            self.say_once(
                f"idle {name}",
                f"{name}, which was given to trainer.apply, has changed nothing and "
                "returned nothing. It was called once, with the whole model, and not "
                "with each layer as torch's Module.apply calls one: for that give "
                f"lambda model, _: model.apply({name}).",
            )
        if changed.layout is not None:
            self._note("note", f"{name} has changed the structure of the model")
        if dropped := changed.answer.dropped:
            self.say_once(
                f"answer {name}",
                f"apply gives None for what {name} returned: {dropped}. It gives "
                "numbers, texts, tensors (as arrays), and tuples, lists and dicts of "
                "these, of no more than 64 MiB.",
            )
        packed = changed.answer.packed
        return None if packed is None else unpack(packed)

    # ---- asking ---------------------------------------------------------------------

    def predict(self, x: Any, details: bool = False) -> Any:
        """Predict with the model as it is now, while training goes on.

        The replica answers between two mini-batches: it first applies what has come
        from its peers, and the answer waits for one step at most. What was emitted and
        is not learned yet is not in it: call `drain` first for that.

        Parameters
        ----------
        x
            As in `train`.
        details
            Whether to return a `Prediction`: besides the value, which version of the
            model it is from, how old that was, and which replica answered.

        Returns
        -------
        prediction
            What the model returns in evaluation mode, of numpy arrays if ``x`` was
            given as such, else of tensors on the CPU. Named tuples, dataclasses and
            dicts of a class of their own stay such where that can be imported here;
            else they are tuples and dicts, which is said once.

        Raises
        ------
        BatchError
            If the model cannot take ``x``; `KilledReplicasError` if it ends the
            processes that answer: it is then put to no further one, and never to the
            last.

        Notes
        -----
        Many may be asked for at once; ``tensair.predictions.max-in-flight`` of them
        are under way for each replica, the others wait. For many records at a time,
        one call with a mini-batch of them costs least.
        """
        return self._sync(self._predict_given, self._given(x), flag("details", details))

    def predict_one(self, record: Any, details: bool = False) -> Any:
        """Predict for one record, given and answered without the batch axis.

        Parameters
        ----------
        record
            As a stream gives it to ``Stream.partition``: a number, an array or a
            tensor, a list of numbers, a row of a frame (also as a frame), or a tuple
            (positional arguments of the model) or dict (keyword arguments) of them.
            Python floats become float32.
        details
            As in `predict`.

        Returns
        -------
        prediction
            As in `predict`; every array or tensor of it without its first axis.

        Raises
        ------
        BatchError
            If the model cannot take the record, or its output has no batch axis.
        """
        return self._sync(
            self._predict_one, self._given(record), flag("details", details)
        )

    async def _predict_given(self, x: Any, details: bool = False) -> Any:
        self._tell_of_pair(x)
        return await self._predict(x, details)

    def _tell_of_pair(self, x: Any) -> None:
        """Say that what was given to be predicted may be a pair (x, y)."""
        if why := why_no_inputs(x, self._structures):
            self.say_once(
                "predicted pair",
                f"trainer.predict: {why}. If it is a pair (x, y), give x only; if the "
                "others are arguments of the model, a dict by their names says so.",
            )

    async def _predict(self, x: Any, details: bool = False) -> Any:
        prediction = await self._prediction(x)
        return prediction if details else prediction.value

    async def _predict_one(self, record: Any, details: bool = False) -> Any:
        with refusing():
            x = as_batch(record)
        self._tell_of_pair(x)
        prediction = await self._prediction(x)
        value = without_batch_axis(prediction.value)
        return replace(prediction, value=value) if details else value

    async def _prediction(self, x: Any) -> Prediction:
        await self._ready()
        with refusing():
            block = Block.join(self.run_id, [self._column_names.batch(x, ABSENT)])
            as_tensors = _has_tensors(x)
        async with self._predicting:
            await self._ready()  # it may have been closed meanwhile
            try:
                packed = await self._calls.ask_any("predict", block)
            except TensairError as error:
                self._misfit(error)
                raise
        answer = Prediction(**unpack(packed, self._miss_type))
        if as_tensors:
            return answer
        return replace(answer, value=to_arrays(answer.value))

    def _miss_type(self, name: str) -> None:
        self.say_once(name, unknown_type(name))

    @checked_call(
        "trainer.evaluate", "It takes mini-batches: trainer.evaluate([(x, y)])."
    )
    def evaluate(self, batches: Iterable[tuple[Any, Any]]) -> Any:
        """Score held-out mini-batches in evaluation mode, without learning from them.

        The model is that of this moment. What was emitted and is not learned yet
        (``trainer.backlog``) is not in it: call `drain` first to score that, too.

        Parameters
        ----------
        batches
            Pairs ``(x, y)``.

        Returns
        -------
        scores
            A dict with ``loss``, ``samples`` and each metric: means over all
            mini-batches; torchmetrics objects give their own value.

        Raises
        ------
        BatchError
            If a mini-batch cannot be scored, or there is none.

        Notes
        -----
        Mini-batches are weighted by the targets that count, as if all were one, for
        torch's losses of classes (``ignore_index``, ``weight``) and for
        `tensair_dask.metrics`. Losses that are sums (``reduction="sum"``, or ``.sum()``
        at their end) are added up. Others, and metrics, are weighted by samples;
        a metric may return a `tensair_dask.metrics.Mean`, which has its own weight.
        Mini-batches whose metric is NaN are left out of its mean. A metric that keeps
        something from call to call is copied as it was given, for each mini-batch.
        """
        return self._sync(self._evaluate, batches)

    async def _evaluate(self, batches: Iterable[tuple[Any, Any]]) -> dict[str, float]:
        await self._ready()
        session = uuid.uuid4().hex
        handle = self._calls.least_loaded()
        count = 0
        try:
            with refusing():
                iterator = iter(batches)
            for pair in iterator:
                try:
                    if hasattr(pair, "shape"):  # its rows would be x and y
                        raise TypeError("it is an array")
                    x, y = pair
                except Exception as error:
                    raise BatchError(
                        f"evaluate was given a {type(pair).__name__} where a "
                        "mini-batch should be: give pairs (x, y), for example "
                        "evaluate([(x, y)])."
                    ) from RaisedError.unless_fit(error)
                with refusing():
                    block = Block.join(self.run_id, [self._column_names.batch(x, y)])
                await self._calls.ask(handle, "evaluate", block, session)
                count += 1
            if not count:
                raise BatchError(
                    f"evaluate was given a {type(batches).__name__} without a single "
                    "mini-batch: there is nothing to score. A generator gives what it "
                    "has once; make a list of it to evaluate on it again."
                )
            scores = await self._calls.ask(handle, "evaluate", None, session)
            with contextlib.suppress(TensairError):  # it may be lost: there is a score
                self._dispatcher.hear(await self._calls.ask(handle, "status"))
        except BaseException:
            if handle.lane.alive:
                self._forgetting.do(
                    functools.partial(self._calls.ask, handle, "forget", session)
                )
            raise
        scores["samples"] = int(scores["samples"])
        return scores

    def state_dict(self) -> Any:
        """Parameters and buffers of one replica, after it applied what has arrived.

        Call `drain` first for a state that holds everything that was emitted.

        Returns
        -------
        state
            As of ``model.state_dict()``, tensors on the CPU.
        """
        return self._sync(self._state_dict)

    async def _state_dict(self) -> dict[str, Any]:
        await self._ready()
        return unpack(await self._calls.ask_any("state_dict"))

    def state_dicts(self) -> Any:
        """Like `state_dict`, of every living replica, by the address of its worker.

        Further replicas of the same worker have ``#2``, ``#3`` behind the address.
        """
        return self._sync(self._state_dicts)

    async def _state_dicts(self) -> dict[str, dict[str, Any]]:
        await self._ready()
        states = await self._calls.ask_each("state_dict")
        return dict(
            zip(_names(list(states)), map(unpack, states.values()), strict=True)
        )

    # ---- checkpoints ----------------------------------------------------------------

    def save(self, path: Path | None = None) -> Any:
        """Write a checkpoint now, while training goes on.

        It holds the model, the states of the optimizers, mode, detector and scores, and
        the positions of the sources. It appears whole or not at all. What was emitted
        and is not learned yet is not in it, nor in the positions: a restored stream
        gives it again, if its sources know positions. Call `drain` first for all.

        Parameters
        ----------
        path
            Of the file, on any file system that fsspec knows; None to add it to the
            folder ``checkpoint_to``.

        Returns
        -------
        path
            Of the file.

        Raises
        ------
        CheckpointError
            If it cannot be written.
        """
        return self._sync(self._save, path)

    async def _save(self, path: Path | None) -> str:
        await self._ready()
        written = await self._saving.save(path)
        await self._membership.hear()  # what there was to say about it
        return written

    @classmethod
    def restore(
        cls, path: Path, client: Client, *, or_begin: bool = False, **arguments: Any
    ) -> Trainer:
        """Make a trainer that goes on from a checkpoint.

        Give the model, loss and optimizer that it was saved with: a checkpoint holds
        values only, and cannot run code. The settings of the optimizer (learning rate,
        momentum) are those of the checkpoint, as torch has it, not those given; change
        them with `apply`. A ``schedule``, given again, goes on at the clock of the
        checkpoint. A ``mode`` that is given holds; else it is that of the checkpoint.
        Give the sources `positions`, so that they are read from where the
        model stands; `events` tells how many mini-batches may be learned twice.

        Parameters
        ----------
        path
            Of a checkpoint, or of a folder, of which the newest is taken that is whole.
        client
            As in `Trainer`.
        or_begin
            Whether to begin anew where there is no checkpoint: a program that is
            started again by itself can then always call this.
        arguments
            As in `Trainer`.

        Raises
        ------
        CheckpointError
            If there is none, if none is whole, or if it does not fit.
        ConfigurationError
            If ``path`` is None.
        """
        if path is None:
            raise ConfigurationError(
                "path=None was given; the path of a checkpoint or of a folder is "
                "allowed, for example Trainer.restore('checkpoints', client, ...). "
                "Trainer(client, ...) begins anew."
            )
        return cls(client, restore=path, or_begin=or_begin, **arguments)

    @property
    def positions(self) -> dict[str, dict[str, int]]:
        """From where each source has to be read, by what the model has learned.

        By the name of the source, then by partition, the next offset. Those of a
        restored trainer are the checkpoint's until its sources are there: give it to
        them. What a source has given counts when all replicas have applied it.
        """
        return self._look(self._ledger.positions)

    @property
    def last_checkpoint(self) -> str:
        """Path of the newest checkpoint in ``checkpoint_to``; empty if there is none.

        That is, of those that this trainer has written.
        """
        return self._saving.last_path

    def exchange_stats(self) -> Any:
        """Statistics of the exchange of every living replica, by address.

        Returns
        -------
        stats
            For each replica: messages and bytes ``sent`` and ``received``, mean, p95
            and maximum of ``staleness`` (gradients) and of ``age`` (seconds from the
            computation of the oldest gradient of a message to its application) over
            the newest 1,000 messages, the pacing ``interval`` and the ``cost`` of one
            publication in seconds; messages ``refused``, and for each reason that
            occurred how many of them, such as ``refused_layout``.
        """
        return self._sync(self._exchange_stats)

    async def _exchange_stats(self) -> dict[str, dict[str, float]]:
        await self._ready()
        stats = await self._calls.ask_all("statistics")
        return dict(zip(_names(list(stats)), stats.values(), strict=True))

    @property
    def replicas(self) -> list[ReplicaInfo]:
        """All replicas, as of their latest reports; `drain` brings them up to date."""
        infos = []
        for handle in self._handles:
            lane = handle.lane
            status = lane.status
            infos.append(
                ReplicaInfo(
                    handle.place.address,
                    status.steps if status else 0,
                    status.samples if status else 0,
                    status.staleness if status else 0.0,
                    lane.alive and not handle.is_lost,
                    status.version if status else 0,
                    handle.place.device,
                )
            )
        return infos

    @property
    def share(self) -> str:
        """What replicas publish: ``"gradient"`` or ``"update"``; empty at the start."""
        known = (each.lane.status for each in self._handles if each.lane.alive)
        return next((each.share for each in known if each is not None), self._shared)

    @property
    def history(self) -> pd.DataFrame:
        """The newest reports as a DataFrame, in order of completion.

        ``error`` is None, or says why the mini-batch was refused. ``attrs["refused"]``
        is what `refused` gives.
        """
        frame = self._history.frame()
        frame.attrs["refused"] = self.refused
        return frame

    @property
    def refused(self) -> dict[str, int]:
        """How many mini-batches and records were refused, by the name of the error."""
        return self._refused.by_kind()

    @property
    def curves(self) -> pd.DataFrame:
        """The whole run as a DataFrame: speed, loss, metrics, staleness, backlog.

        One row a stretch, which ends at ``time`` (UTC) and lasts ``seconds``: a quarter
        of a second, or longer where steps or the run are, since memory is bounded.
        What lies between any two rows is exact. Stretches with nothing to learn are
        there, with speed 0 and no loss.

        ``samples_per_second``, ``steps_per_second`` (mini-batches), ``loss`` and each
        metric are means over the stretch; ``loss_min`` and ``loss_max`` those of a
        single mini-batch. ``staleness`` is the mean over the steps that came after
        stale gradients, and ``staleness_max`` the largest. ``backlog`` and ``lag``
        are the largest that were seen. ``dead_letters``, ``replicas`` (alive),
        ``steps`` and ``samples`` are how many there were at its end.
        """
        return self._look(self._curves.frame)

    @property
    def status(self) -> str:
        """``"starting"``, ``"open"`` or ``"closed"``."""
        return "starting" if self._state == "new" else self._state

    @property
    def dashboard_link(self) -> str | None:
        """Link to the training on Dask's dashboard, or to the dashboard; or None."""
        dashboard, training = self._look(lambda: dashboard_link(self))
        return training or dashboard

    def plot(self, title: str | None = None) -> Plot:
        """Draw `curves` and `events` as they are now.

        Parameters
        ----------
        title
            Above the panels; None for the name of the trainer.

        Returns
        -------
        plot
            Shows itself in a notebook; ``plot.save("plot.html")`` writes a page that
            opens without a network.
        """
        from tensair_dask.observe.figures.run import Plot

        metrics = self._curves.metrics
        return Plot(self.curves, self.events, metrics, title or self.name)

    def monitor(self) -> Monitor:
        """Show how training goes, in place, once a second until the trainer closes.

        In a notebook below the cell, in a script at the bottom of the terminal. It
        does not wait: feed the trainer in the next lines or cells. It ends with
        ``.stop()``, when the trainer is closed, or when the kernel is interrupted;
        it never disturbs the training.
        """
        if self._monitor is not None:
            self._monitor.stop()
        self._monitor = Monitor(self)
        self._look(self._monitor.start)
        return self._monitor

    @property
    def backlog(self) -> int:
        """Mini-batches that were given and have been neither reported nor dropped."""
        return self._dispatcher.backlog + self._queued

    @property
    def _queued(self) -> int:
        return sum(node.queued for node in list(self.nodes))

    @property
    def emitted(self) -> int:
        """Mini-batches that were given, also those that were dropped or refused."""
        return self._index + self.dropped + self._queued

    @property
    def lag(self) -> float:
        """Seconds that the oldest of these has waited."""
        return self._look(self._lag)

    def _lag(self) -> float:
        in_streams = (node.lag() for node in list(self.nodes))
        return max(self._dispatcher.lag(), *in_streams, 0.0)

    @property
    def events(self) -> pd.DataFrame:
        """What happened while it trained.

        Columns are ``time``, ``kind``, ``text``, ``index`` (of the mini-batch, -1 where
        there is none) and ``replica``. Kinds are ``"drift"`` (detected), ``"policy"``
        (what was done about it), ``"mode"`` (the model learns, or only predicts, from
        now on), ``"joined"``, ``"left"`` and ``"lost"`` (a replica), and whatever
        `mark` was given.
        """
        return self._events.frame()

    def mark(self, text: str, kind: str = "note") -> Any:
        """Mark this moment, in `events` and across the curves of the dashboard.

        Parameters
        ----------
        text
            What happened, for people.
        kind
            ``"note"``, ``"drift"`` or ``"mode"``; each has a colour of its own.

        Raises
        ------
        ConfigurationError
            If there is no such kind.
        """
        if kind not in KINDS:
            raise ConfigurationError(
                f"kind={kind!r} was given; allowed are {', '.join(map(repr, KINDS))}."
            )
        event = Event(kind, plain(text, 1000), index=self._index)
        return self._sync(self._mark, event)

    async def _mark(self, event: Event) -> None:
        await self._ready()
        self._events.append(event)
        await self._log(event)

    async def _log(self, event: Event) -> None:
        """Write an event into Dask's event log, where the dashboard reads it."""
        await self.client.log_event(TOPIC, {"run_id": self.run_id, **event.plain()})

    def _lost(self, lane: Lane) -> None:
        self._membership.lost(lane)

    def say_once(self, key: str, text: str) -> None:
        """Warn, and write an event down, unless the same key was said before.

        For stream nodes and replicas, on the client's event loop.

        Parameters
        ----------
        key
            What it is about.
        text
            What was given, what is allowed, and what to do.
        """
        if self._notices.say(key, text):
            for said in self._notices.take().values():
                logger.warning("%s", said)
                self._note("note", said)

    def tell(self, key: str, text: str) -> None:
        """As `say_once`, from any thread; for stream nodes."""
        if not self._client_is_closed:
            self.client.loop.add_callback(self.say_once, key, text)

    @property
    def keeps(self) -> bool:
        """Whether it writes checkpoints by itself, with the positions of sources."""
        return self._keeps

    @property
    def is_closed(self) -> bool:
        """Whether it takes no more."""
        return self._state == "closed"

    def _note(self, kind: str, text: str, replica: str = "") -> None:
        """Write an event down, and tell the dashboard what that does not see itself."""
        if kind in ("joined", "lost"):
            event = Event(kind, text, index=self._index, replica=replica)
            self._events.append(event)
        else:
            self._adapting.tell(kind, text, self._index, replica)

    # ---- the end --------------------------------------------------------------------

    def drain(self, timeout: float | str | None = None) -> Any:
        """Wait until everything emitted is applied everywhere (a barrier).

        What waits in nodes before the trainer comes as well: a ``partition`` or a timed
        window passes on what it holds, full or not; a ``buffer``, ``map_async`` and the
        newest item of ``latest`` are waited for. What other nodes keep (``collect``, a
        ``zip`` without partners) is said, with its number.

        Parameters
        ----------
        timeout
            Seconds, or a string such as ``"1 minute"``; None for
            ``tensair.timeouts.drain``.

        Raises
        ------
        TensairTimeoutError
            If it takes longer.
        BatchError
            Of a mini-batch that was refused, if its stream has ``on_error="raise"`` and
            no ``emit`` has raised it. All else is applied.
        StreamError
            If a node of a stream that it learns from has ended. What had passed that
            node is applied.
        """
        return self._sync_with_streams(self._drain, timeout)

    async def _drain(self, timeout: float | str | None = None) -> None:
        await self._drain_all(timeout)
        for node in list(self.nodes):
            node.tell_waiting(at_the_end=False)

    async def _drain_all(self, timeout: float | str | None = None) -> None:
        await self._ready()
        if self._dispatcher.is_delivering:
            raise EventLoopError(
                "drain was awaited in what takes the reports, such as the sink of a "
                "stream: it would wait for the report that is being taken. Await it "
                "where the stream is fed, or start it there with "
                "asyncio.create_task(...)."
            )
        seconds = config.get_seconds("timeouts.drain", timeout)
        end = time.monotonic() + seconds

        def left() -> float:
            return max(0.01, round(end - time.monotonic(), 2))

        if self._nodes_hold:
            await self._pass_on_held(left())
        for node in list(self.nodes):
            await node.emptied(left())
        settled = False
        while not settled:
            # What a replica had that is lost meanwhile is learned again.
            sent_again = self._dispatcher.redispatched
            await self._apply_everywhere(left)
            settled = self._membership.settled
            settled &= self._dispatcher.redispatched == sent_again
        self._tell_refused()
        self._tell_not_scored()
        for node in list(self.nodes):
            node.check()

    async def _pass_on_held(self, timeout: float) -> None:
        """Take in what waits in the nodes of streams before the trainer's own."""
        end = time.monotonic() + timeout
        for node in list(self.nodes):
            await node.pass_on_held(max(0.01, end - time.monotonic()))

    async def _apply_everywhere(self, left: Callable[[], float]) -> None:
        """Wait until all is reported, and what was learned is in all models."""
        await self._dispatcher.drained(left())
        for node in list(self.nodes):
            node.rested()
        await self._adapting.settled(left())
        await self._membership.recovered(left())
        seconds = left()
        await self._calls.ask_all("flush", seconds, timeout=seconds)
        # Those that flushed first have applied the others' last messages meanwhile.
        await self._membership.look()

    async def _finish(self) -> None:
        """Lose nothing: neither what is under way, nor what no checkpoint holds."""
        await self._drain_all()
        await self._saving.finish()
        await self._membership.hear()  # what there was to say about it

    def close(self) -> Any:
        """End the replicas. What was emitted and not reported is given up.

        What waits in a ``partition``, or another node before the trainer, is learned if
        that takes no longer than ``tensair.timeouts.close``.

        Idempotent. Call `drain` first to lose nothing, and `save`, or use ``with``,
        which does both.
        """
        if not self.client.asynchronous and self._holds_up_a_stream:
            # What its nodes hold cannot be passed on by a loop that is held up.
            return self._sync(functools.partial(self._close, learn_held=False))
        return self._sync(self._close)

    async def _close(self, learn_held: bool = True) -> None:
        if self._closing is None:
            if self._state == "closed":  # it could not start
                return
            if not (learn_held and self._nodes_hold):
                self._take_no_more()
            self._closing = asyncio.ensure_future(self._end())
        # To the end, also if who waits for it is interrupted.
        await asyncio.shield(self._closing)

    @property
    def _nodes_hold(self) -> bool:
        """Whether something waits in the nodes of streams that can be learned yet."""
        if not self.nodes or self._state != "open" or self._client_is_closed:
            return False
        return any(node.holds for node in list(self.nodes))

    def scored_by(self, scores: Any) -> None:
        """Take note of what scores it; say if that counts for another trainer yet."""
        try:
            owner = _scored.get(scores)
            _scored[scores] = weakref.ref(self)
        except TypeError:  # an object of the user's own without weak references
            return
        records = getattr(scores, "records", 0)
        restored = self._goes_on and any(
            each is scores for each in self._saving.scores.values()
        )
        if owner is None or owner() is self or not records or restored:
            return
        self.tell(
            f"scores of another {id(scores)}",
            f"The scores ({type(scores).__name__}) hold {records:,} records of another "
            "trainer, and count on from there: what they tell is of both. Give each "
            "trainer scores of its own, made anew.",
        )

    def _tell_not_scored(self) -> None:
        """Say which of scores= have got nothing, although something was learned."""
        if not self._refused.sound:
            return
        for name, scores in self._saving.scores.items():
            if getattr(scores, "touched", True) or any(
                getattr(node, "_scores", None) is scores for node in self.nodes
            ):
                continue
            self.say_once(
                f"not scored {name}",
                f"scores[{name!r}] has scored nothing: scores= of a trainer keeps "
                "them in its checkpoints, and feeds them nothing. Give them to the "
                "stream as well, source.predict_then_train(trainer, scores), or call "
                "scores.add(y, prediction).",
            )

    def _take_no_more(self) -> None:
        if self._unclosed is not None:
            self._unclosed.end()
        self._tell_refused(at_the_end=True)
        self._tell_not_scored()
        while self._heard:
            self._heard.popitem()[1]()
        for node in list(self.nodes):
            node.tell_waiting(at_the_end=True)
            node.closed()
        self._curves.end()
        self._state = "closed"

    async def _learn_held(self) -> None:
        seconds = config.get_seconds("timeouts.close")
        end = time.monotonic() + seconds
        try:
            await self._pass_on_held(seconds)
            await self._dispatcher.drained(max(0.01, end - time.monotonic()))
        except TensairError as error:
            logger.warning("Closed before all was learned: %s", error)

    async def _end(self) -> None:
        if self._state != "closed":
            await self._learn_held()
            self._take_no_more()
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait([self._starting])
        await self._stop_adapting()
        await self._membership.close()
        await self._saving.close()
        alive = [each for each in self._handles if each.lane.alive]
        if self._client_is_closed:
            alive = []
        await self._dispatcher.close()
        await self._adapting.close()
        await self._adapting.interventions.close()
        await self._forgetting.close()
        for report in self._awaited:
            if not report.done():
                report.set_exception(closed_error())
        limit = config.get_seconds("timeouts.close")
        closing = [asyncio.ensure_future(handle.call("close")) for handle in alive]
        if closing:
            _, unfinished = await asyncio.wait(closing, timeout=limit)
            for task in unfinished:
                logger.warning("A replica did not close within %g s", limit)
                task.cancel()
            await asyncio.gather(*closing, return_exceptions=True)
        self._last_counts = _last_counts(alive, closing)
        await self._reporter.close(
            {
                handle.name: (handle.place.address, self._last_counts[handle.name])
                for handle in alive
                if handle.name in self._last_counts
            }
        )
        for handle in self._handles:
            handle.release()
        self.nodes.clear()
        for holder in self.holders:
            holder.let_go()
        if self._monitor is not None:
            await self._monitor.ended()

    @property
    def _client_is_closed(self) -> bool:
        return self.client.status in ("closed", "closing")

    def __enter__(self) -> Trainer:
        if self.client.asynchronous:
            raise ConfigurationError(
                "The client is asynchronous: use 'async with Trainer(...)'."
            )
        return self

    def _tell_unsaved(self) -> None:
        """Say what is lost where a block has raised."""
        why = (
            "none is written where the block raises or is interrupted. Call "
            "trainer.save() there, within the block, to keep what was learned, or give "
            "checkpoint_every=."
        )
        if text := self._saving.unsaved(self._index, why):
            self.say_once("unsaved", text)

    def _left_open(self, what: str) -> None:
        """Say what is lost where a trainer was not closed; on any thread."""
        if self._state != "open":
            return
        self._membership.expect_the_end()
        waiting = self.backlog
        lost = [f"{waiting:,} mini-batches were not learned."] if waiting else []
        if any(node.holds for node in list(self.nodes)):
            lost.append("Nodes of streams before it, such as partition, held items.")
        if unsaved := self._saving.unsaved(self._index, "the last one is not written."):
            lost.append(unsaved)
        if not lost:
            return
        text = (
            f"Trainer {self.name!r} was still open when {what}. {' '.join(lost)} Leave "
            "it through 'with Trainer(...) as trainer:', which waits for all that was "
            "emitted, and saves; or call trainer.drain(), trainer.save() and "
            "trainer.close()."
        )
        logger.warning("%s", text)
        self._events.append(Event("note", text, index=self._index))

    def __exit__(self, kind: Any, *rest: Any) -> None:
        try:
            if kind is None and self._state == "open":
                self._sync_with_streams(self._finish)
            elif self._state == "open" and not self._client_is_closed:
                self._look(self._tell_unsaved)
        finally:
            self.close()

    async def __aenter__(self) -> Trainer:
        return await self._open()

    async def __aexit__(self, kind: Any, *rest: Any) -> None:
        try:
            if kind is None and self._state == "open":
                await self._finish()
            elif self._state == "open":
                self._tell_unsaved()
        finally:
            await self._close()

    def _repr_html_(self) -> str:
        from tensair_dask.observe import notebook

        return notebook.draw(self._look(lambda: look_at(self)))

    if not TYPE_CHECKING:  # or any attribute would pass for one that there is

        def __getattr__(self, name: str) -> Any:
            if name in dir(type(self)):  # a property that has raised an AttributeError
                return object.__getattribute__(self, name)
            raise no_such_method(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # Those of its own change with each mini-batch: no look at the others for these.
        if not name.startswith("_") and not hasattr(type(self), name):
            _check_set(name, value)
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        alive = sum(info.alive for info in self.replicas)
        # Those that have left on purpose are not missing.
        gone = (each.lane.leaving and not each.lane.alive for each in self._handles)
        there = len(self._handles) - sum(gone)
        shares = f"share {self.share!r}, " if self.share else ""
        refused = f", {self.dead_letters.total} refused" * bool(self.dead_letters.total)
        return (
            f"<Trainer: {self._state}, {alive} of {there} replicas alive, "
            f"{shares}{self._index} mini-batches{refused}, backlog {self.backlog}>"
        )

    # ---- talking to replicas --------------------------------------------------------

    def _sync(self, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        if self._client_is_closed and not self.client.asynchronous:
            if getattr(function, "func", function) == self._close:
                self._curves.end()
                self._state = "closed"
                return None
            raise self._client_closed()
        client = self.client
        # A coroutine of the client's loop may await it. A plain function there would
        # get a coroutine in the place of the answer, and wait for nothing.
        on_its_loop = client.asynchronous and not client._asynchronous
        if on_its_loop and not is_awaited(_caller()):
            raise EventLoopError(
                "A method of the trainer was called in a plain function that runs on "
                "the event loop of its client, as those in the sink or map of a stream "
                "do: it would wait for the loop that it holds up. Await it in a "
                "coroutine, async def use(report): ... await "
                "trainer.evaluate(batches), with .sink(use); or call it in another "
                "thread."
            )
        return client.sync(_contained, function, *args)

    def _sync_with_streams(
        self, function: Callable[..., Awaitable[Any]], *args: Any
    ) -> Any:
        """Call what waits for streams to take their reports, on their own loops."""
        if not self.client.asynchronous and self._holds_up_a_stream:
            raise EventLoopError(
                "The trainer's client belongs to another thread, and so this call "
                "blocks until all is learned; a stream of the trainer runs on the "
                "event loop of this thread, which would wait meanwhile, with the "
                "reports that it is to take. Await it there: await asyncio.to_thread("
                "trainer.drain). Or let all run on one loop: client = await "
                "Client(..., asynchronous=True), and await trainer.drain()."
            )
        return self._sync(function, *args)

    @property
    def _holds_up_a_stream(self) -> bool:
        """Whether a call that blocks this thread would hold up a stream's loop."""
        return any(is_running_here(node.loop.asyncio_loop) for node in list(self.nodes))

    def _look(self, function: Callable[[], Any]) -> Any:
        """Call it on the client's event loop, to which all that is here belongs."""
        if self.client.asynchronous or self._client_is_closed:
            return function()

        async def look() -> Any:
            return function()

        return self.client.sync(look)


async def _contained(function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Let what user code raises in a call be raised by the call, and end no loop.

    It runs there to make items: those of a generator, or ``__array__`` of one.
    """
    try:
        return await function(*args)
    except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
        raise RaisedError.caught(error) from error.__cause__


# Between who calls a method and what it does.
_BETWEEN = (
    __name__,
    "tensair_dask._common.other_libraries",
    "tensair_dask.streams.node",
    "tensair_dask.streams.train_node",
)


def _caller() -> FrameType | None:
    """Give the frame from which one of the methods here was called."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals["__name__"] in _BETWEEN:
        frame = frame.f_back
    return frame


# What may not be set later, but for what the trainer holds itself.
_ARGUMENTS = {*inspect.signature(Trainer.__init__).parameters} - {"client", "name"}


def _check_set(name: str, value: Any) -> None:
    """Refuse what is set on a trainer that would change nothing."""
    if name in _ARGUMENTS:
        why = (
            "the replicas have been built with what Trainer(...) was given. Make a new "
            "trainer, restored from a checkpoint of this one, or change the model and "
            "the settings of its optimizers with trainer.apply."
        )
    elif advice := no_such_setting(name):
        why = f"a Trainer has no such setting. {advice[0].upper()}{advice[1:]}."
    else:
        return
    raise ConfigurationError(
        f"trainer.{name} = {shown(value)} was set, and would change nothing: {why}"
    )


def _hand_over(refused: Pending, report: Report) -> Awaitable[None] | None:
    """Deliver the report of what never went to a replica, and let go of it."""

    def settle() -> None:
        if refused.settle is not None:
            refused.settle()

    async def finish(rest: Awaitable[Any]) -> None:
        try:
            await rest
        except Exception as error:
            logger.error(
                "What receives the reports raised; the stream goes on",
                exc_info=RaisedError.unless_fit(error),
            )
        settle()

    try:
        rest = refused.deliver(report)
    except BaseException as error:
        logger.error(
            "What receives the reports raised; the stream goes on",
            exc_info=RaisedError.unless_fit(RaisedError.caught(error)),
        )
        rest = None
    if rest is not None:
        return finish(rest)
    settle()
    return None


# Which trainer was scored last by an object.
_scored: weakref.WeakKeyDictionary[Any, weakref.ref[Trainer]] = (
    weakref.WeakKeyDictionary()
)

# The trainers of each client that were opened.
_open: weakref.WeakKeyDictionary[Client, weakref.WeakSet[Trainer]] = (
    weakref.WeakKeyDictionary()
)


def _left_open(trainer: Trainer) -> Iterator[str]:
    """Say that trainers of the same name are open, as if a cell was run again."""
    others = [
        each
        for each in list(_open.get(trainer.client, ()))
        if each._state == "open" and each.name == trainer.name
    ]
    if not others:
        return
    held = sum(info.alive for each in others for info in each.replicas)
    yield (
        f"{len(others)} other trainer(s) of the name {trainer.name!r} are open on this "
        f"client, and hold {held} replica(s) on the workers. If a cell was run again "
        "that makes the trainer, call trainer.close() before it makes another, or use "
        "with Trainer(...) as trainer: ...; those that no variable names any more end "
        "with client.close(). If all of them are meant, give each a name=."
    )


# Whose a detector is: it would mix the streams of two.
_watchers: weakref.WeakKeyDictionary[Detector, weakref.ref[Trainer]] = (
    weakref.WeakKeyDictionary()
)


def _claim(detector: Detector | None, trainer: Trainer) -> str:
    """Let a detector be a trainer's, until this is closed; say if it begins anew."""
    if detector is None:
        return ""
    owner = _watchers.get(detector)
    other = None if owner is None else owner()
    if other is not None and other._state != "closed":
        kind = type(detector).__name__
        raise ConfigurationError(
            f"detector is {kind}, which watches the trainer {other.name!r} already, "
            "that is not closed; it would mix their streams. Give each trainer one of "
            f"its own, such as tensair_dask.drift.{kind}(), or close the other."
        )
    _watchers[detector] = weakref.ref(trainer)
    if owner is None or not detector.observed:
        return ""
    # What it knows is of the losses of another model.
    seen = detector.observed
    detector.reset()
    kind = type(detector).__name__
    return (
        f"detector={kind} has watched a trainer that is closed: it begins anew, "
        f"without the {seen:,} values that it had seen there. Restore a checkpoint to "
        "go on with them."
    )


def _annotated() -> Iterator[str]:
    """Say what of Dask's annotations has no effect on replicas."""
    if "workers" in (given := dask.get_annotations()):
        yield (
            f"dask.annotate(workers={shown(given['workers'])}) has no effect on a "
            "trainer, which places its replicas itself, one on each worker: say with "
            "replicas= how many there are to be, or give the client of a cluster that "
            "has these workers only."
        )


def _warn_of_no_detector(modes: Modes, watch: Any) -> None:
    """Say what will have no effect: in mode auto it would, so it is no error."""
    ignored = ["on_drift="] * modes.policy.acts + ["watch="] * (watch != "loss")
    if ignored and not modes.watches:
        logger.warning(
            "%s given, but without a detector nothing looks for drift in mode %r, "
            "until set_mode('auto'). Give one, for example detector='optwin'.",
            " and ".join(ignored) + (" is" if len(ignored) == 1 else " are"),
            modes.mode,
        )


def _limits(max_in_flight: int | None) -> Limits:
    return Limits(
        batches=int(config.get("dispatch.max-in-flight", max_in_flight)),
        nbytes=config.get_bytes("dispatch.max-in-flight-bytes"),
        unconfirmed_nbytes=config.get_bytes("dispatch.max-unconfirmed-bytes"),
        unconfirmed=int(config.get("dispatch.max-unconfirmed-records")),
        seconds=config.get_seconds("dispatch.max-in-flight-time"),
        message_seconds=config.get_seconds("dispatch.message-time"),
        message_nbytes=config.get_bytes("dispatch.message-bytes"),
        messages=int(config.get("dispatch.messages-in-flight")),
        losses=int(config.get("dispatch.allowed-losses")),
        room=config.get_seconds("timeouts.room"),
    )


def _max_predictions() -> int:
    """How many predictions may be under way for each replica."""
    return int(config.get("predictions.max-in-flight"))


def _check_arguments(
    client: Any,
    model: Any,
    loss: Any,
    optimizer: Any,
    metrics: Any,
) -> None:
    if not isinstance(client, Client):
        raise ConfigurationError(
            f"client is a {type(client).__name__}; give a connected Dask client, for "
            "example Trainer(dask.distributed.Client(), model=...)."
        )
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
    if metrics is not None and not (
        isinstance(metrics, Mapping) and all(callable(m) for m in metrics.values())
    ):
        raise ConfigurationError(
            "metrics must map names to callables (prediction, target) -> scalar, for "
            "example metrics={'accuracy': tensair_dask.metrics.accuracy}."
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


def _name_of(model: Any) -> str:
    name = getattr(getattr(model, "func", model), "__name__", "")
    return name if name and name != "<lambda>" else "model"


def _last_counts(
    handles: list[ReplicaHandle], closing: Sequence[asyncio.Future[Any]]
) -> dict[str, Any]:
    """What the replicas answered when they were closed, by name."""
    return {
        handle.name: work.result()
        for handle, work in zip(handles, closing, strict=True)
        if work.done() and not work.cancelled() and work.exception() is None
    }


def _has_tensors(x: Any) -> bool:
    values = x.values() if isinstance(x, Mapping) else x
    if hasattr(x, "detach"):
        return True
    return isinstance(x, (Mapping, tuple, list)) and any(
        hasattr(value, "detach") for value in values
    )


def _names(handles: list[ReplicaHandle]) -> list[str]:
    names: list[str] = []
    for handle in handles:
        address = handle.place.address
        same = sum(name.partition("#")[0] == address for name in names)
        names.append(f"{address}#{same + 1}" if same else address)
    return names
