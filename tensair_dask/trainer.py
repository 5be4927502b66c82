"""Trainer: the user's handle on a model that learns from a stream."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
from distributed import Client

from tensair_dask import config
from tensair_dask._common.checks import flag, shown
from tensair_dask._common.other_libraries import (
    checked_call,
    no_such_method,
    no_such_setting,
)
from tensair_dask.batches.copies import as_values
from tensair_dask.checkpoints.checkpoint_config import Every, Path
from tensair_dask.coordinator.membership.autoscale import Demand, cluster_of
from tensair_dask.coordinator.replica_group import ReplicaInfo
from tensair_dask.coordinator.session import Session
from tensair_dask.drift import Detector
from tensair_dask.drift.convergence import Convergence
from tensair_dask.drift.policies import Policy
from tensair_dask.errors import ConfigurationError
from tensair_dask.exchange.settings import Share
from tensair_dask.observe.live_view import Monitor
from tensair_dask.observe.snapshot import dashboard_link, look_at
from tensair_dask.observe.telemetry.events import KINDS
from tensair_dask.options import (
    CheckpointConfig,
    DriftConfig,
    ExchangeConfig,
    ReplicaConfig,
    check_client,
    restoring,
    run_options,
)
from tensair_dask.replica.placement import ReplicaCount
from tensair_dask.reports import Report

if TYPE_CHECKING:
    from tensair_dask.observe.figures.run import Plot

__all__ = ["ReplicaInfo", "Trainer"]


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
        How many: ``"all"`` (the default) for one on each worker, also on those that
        come later; a number; or a pair ``(least, most)`` for one on each worker within
        these bounds. Or a `ReplicaConfig`.
    exchange
        What replicas publish to each other, and how often: an `ExchangeConfig`.
    drift
        When the model learns, and what follows from drift: a `DriftConfig`.
    checkpoints
        A folder for checkpoints, or a `CheckpointConfig`.
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
    name
        What people call it, on the dashboard for example; None for the name of what
        builds the model.
    device, max_in_flight
        Short for the fields of `ReplicaConfig`.
    share, compression, staleness
        Short for the fields of `ExchangeConfig`.
    mode, detector, watch, convergence, on_drift
        Short for the fields of `DriftConfig`.
    checkpoint_to, checkpoint_every, scores, restore, or_begin
        Short for ``to``, ``every`` and so on of `CheckpointConfig`.

    Attributes
    ----------
    client
        As given.
    name, run_id
        What people call it, and what is unique.
    dead_letters
        The newest mini-batches and records that were refused, with their errors.
    session
        What is behind it; for those who extend tensair_dask.

    Raises
    ------
    ConfigurationError, NoWorkersError, ModelError, OptimizerError
        If the replicas cannot be built; also where the same is given twice.
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
        replicas: int | tuple[int, int] | str | ReplicaConfig | None = None,
        exchange: ExchangeConfig | None = None,
        drift: DriftConfig | None = None,
        checkpoints: Path | CheckpointConfig | None = None,
        seed: int = 0,
        keep_predictions: bool = False,
        name: str | None = None,
        device: str | None = None,
        max_in_flight: int | None = None,
        share: Share | None = None,
        compression: str | None = None,
        staleness: float | str | None = None,
        mode: str | None = None,
        detector: Detector | str | None = None,
        watch: str | Callable[[Report], float] | None = None,
        convergence: Convergence | None = None,
        on_drift: Policy | str | Callable[..., Any] | None = None,
        checkpoint_to: Path | None = None,
        checkpoint_every: Every | None = None,
        scores: Mapping[str, Any] | None = None,
        restore: Path | None = None,
        or_begin: bool = False,
    ) -> None:
        given = dict(locals())  # first of all: the arguments, by name
        self.client = check_client(client)
        self.session = Session(client, run_options(given))
        self.name = self.session.name
        self.run_id = self.session.run_id
        self.dead_letters = self.session.intake.dead_letters
        self._monitor: Monitor | None = None
        if not client.asynchronous:
            try:
                client.sync(self.session.start)
            except BaseException:
                # Ctrl-C, say: nobody gets this trainer, so nobody would close it.
                self.session.lifecycle.soon(self.session.close)
                raise

    def __await__(self) -> Generator[Any, None, Trainer]:
        return self._open().__await__()

    async def _open(self) -> Trainer:
        await self.session.open()
        return self

    def _sync(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.session.lifecycle.sync(function, *args)

    def _given(self, item: Any) -> Any:
        """Take the values of what a call is given that may begin after it returns."""
        return as_values(item) if self.client.asynchronous else item

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
        return self._sync(self.session.train, x, y)

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
        return self.session.sync_with_streams(self.session.drain, timeout)

    # ---- replicas -------------------------------------------------------------------

    def scale(
        self,
        replicas: int | tuple[int, int] | str,
        timeout: float | str | None = None,
    ) -> Any:
        """Change how many replicas there are, while they learn; nothing is lost.

        Returns when there are as many as requested. New ones take over the model
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
        return self._sync(self.session.scale, replicas, timeout)

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
        wanted = ReplicaCount.of((minimum, maximum))
        seconds = config.get_seconds("replicas.lag", target_lag)
        if seconds <= 0:
            raise ConfigurationError(
                f"target_lag={target_lag!r} was given; a time above 0 is allowed."
            )
        cluster = cluster_of(self.client, cluster)
        idle = config.get_seconds("replicas.idle")
        demand = Demand(wanted.least, int(wanted.most), seconds, idle)
        return self._sync(self.session.scale_by_lag, demand, lag, cluster)

    @property
    def replicas(self) -> list[ReplicaInfo]:
        """All replicas, as of their latest reports; `drain` brings them up to date."""
        return self.session.replicas.infos()

    @property
    def share(self) -> str:
        """What replicas publish: ``"gradient"`` or ``"update"``; empty at the start."""
        return self.session.share

    def exchange_stats(self) -> Any:
        """Statistics of the exchange of every living replica, by address.

        Returns
        -------
        stats
            For each replica: messages and bytes ``sent`` and ``received``, mean, p95
            and maximum of ``staleness`` (gradients) and of ``age`` (seconds from the
            computation of the oldest gradient of a message to its application) over
            the newest 1,000 messages; the ``interval`` in seconds between two
            publications of a busy replica, and the ``cost`` of each in seconds of CPU
            time; of how many peers it shares the memory (``shared_memory``); messages
            ``refused``, and for each reason that occurred how many of them, such as
            ``refused_layout``.
        """
        return self._sync(self.session.inference.exchange_stats)

    # ---- drift ----------------------------------------------------------------------

    @property
    def mode(self) -> str:
        """``"always"``, ``"never"`` or ``"auto"``; see `set_mode`."""
        return self.session.drift_response.modes.mode

    @property
    def phase(self) -> str:
        """``"training"``, or ``"predicting"`` if nothing is learned for now."""
        return self.session.drift_response.modes.phase

    @property
    def drifts(self) -> pd.DataFrame:
        """The drifts that were detected, in order.

        ``time``, ``index`` (the mini-batch at which it was detected), ``detector``,
        ``before`` and ``after`` (means of what is watched), ``magnitude`` (their
        difference in standard deviations of what was before).
        """
        return self._look(self.session.drift_response.frame)

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
        return self._sync(self.session.set_mode, mode)

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
        return self._sync(self.session.apply, function)

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
        details = flag("details", details)
        return self._sync(self.session.inference.predict_given, self._given(x), details)

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
        details = flag("details", details)
        return self._sync(
            self.session.inference.predict_one, self._given(record), details
        )

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
        return self._sync(self.session.inference.evaluate, batches)

    def state_dict(self) -> Any:
        """Parameters and buffers of one replica, after it applied what has arrived.

        Call `drain` first for a state that holds everything that was emitted.

        Returns
        -------
        state
            As of ``model.state_dict()``, tensors on the CPU.
        """
        return self._sync(self.session.inference.state_dict)

    def state_dicts(self) -> Any:
        """Like `state_dict`, of every living replica, by the address of its worker.

        Further replicas of the same worker have ``#2``, ``#3`` behind the address.
        """
        return self._sync(self.session.inference.state_dicts)

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
        return self._sync(self.session.save, path)

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
        return cls(client, **restoring(arguments, path, or_begin))

    @property
    def positions(self) -> dict[str, dict[str, int]]:
        """From where each source has to be read, by what the model has learned.

        By the name of the source, then by partition, the next offset. Those of a
        restored trainer are the checkpoint's until its sources are there: give it to
        them. What a source has given counts when all replicas have applied it.
        """
        return self._look(self.session.intake.ledger.positions)

    @property
    def last_checkpoint(self) -> str:
        """Path of the newest checkpoint in ``checkpoint_to``; empty if there is none.

        That is, of those that this trainer has written.
        """
        return self.session.checkpointing.last_path

    # ---- what has been learned ------------------------------------------------------

    @property
    def history(self) -> pd.DataFrame:
        """The newest reports as a DataFrame, in order of completion.

        ``error`` is None, or says why the mini-batch was refused. ``attrs["refused"]``
        is what `refused` gives.
        """
        frame = self.session.recording.history.frame()
        frame.attrs["refused"] = self.refused
        return frame

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
        return self._look(self.session.recording.curves.frame)

    @property
    def refused(self) -> dict[str, int]:
        """How many mini-batches and records were refused, by the name of the error."""
        return self.session.intake.refused.by_kind()

    @property
    def events(self) -> pd.DataFrame:
        """What happened while it trained.

        Columns are ``time``, ``kind``, ``text``, ``index`` (of the mini-batch, -1 where
        there is none) and ``replica``. Kinds are ``"drift"`` (detected), ``"policy"``
        (what was done about it), ``"mode"`` (the model learns, or only predicts, from
        now on), ``"joined"``, ``"left"`` and ``"lost"`` (a replica), and whatever
        `mark` was given.
        """
        return self.session.events.log.frame()

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
        return self._sync(self.session.mark, kind, text)

    # ---- how it stands --------------------------------------------------------------

    @property
    def status(self) -> str:
        """``"starting"``, ``"open"`` or ``"closed"``."""
        return "starting" if self.session.state == "new" else self.session.state

    @property
    def backlog(self) -> int:
        """Mini-batches that were given and have been neither reported nor dropped."""
        return self.session.intake.backlog

    @property
    def emitted(self) -> int:
        """Mini-batches that were given, also those that were dropped or refused."""
        return self.session.intake.emitted

    @property
    def dropped(self) -> int:
        """Mini-batches that streams dropped, since too many waited."""
        return self.session.intake.dropped

    @property
    def lag(self) -> float:
        """Seconds that the oldest of the backlog has waited."""
        return self._look(self.session.intake.lag)

    def _look(self, function: Callable[[], Any]) -> Any:
        return self.session.lifecycle.look(function)

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

        metrics = self.session.recording.curves.metrics
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

    # ---- the end --------------------------------------------------------------------

    def close(self) -> Any:
        """End the replicas. What was emitted and not reported is given up.

        What waits in a ``partition``, or another node before the trainer, is learned if
        that takes no longer than ``tensair.timeouts.close``.

        Idempotent. Call `drain` first to lose nothing, and `save`, or use ``with``,
        which does both.
        """
        lifecycle = self.session.lifecycle
        if not self.client.asynchronous:
            if lifecycle.client_is_closed:
                return self.session.give_up()
            # What its nodes hold cannot be passed on by a loop that is held up.
            learn_held = not self.session.intake.would_hold_up_a_stream
            return self._sync(self._close, learn_held)
        return self._sync(self._close)

    async def _close(self, learn_held: bool = True) -> None:
        await self.session.close(learn_held)
        if self._monitor is not None:
            await self._monitor.ended()

    def __enter__(self) -> Trainer:
        if self.client.asynchronous:
            raise ConfigurationError(
                "The client is asynchronous: use 'async with Trainer(...)'."
            )
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        session = self.session
        try:
            if kind is None and session.state == "open":
                self.session.sync_with_streams(session.finish)
            elif session.state == "open" and not session.lifecycle.client_is_closed:
                self._look(session.warn_unsaved)
        finally:
            self.close()

    async def __aenter__(self) -> Trainer:
        return await self._open()

    async def __aexit__(self, kind: Any, *rest: Any) -> None:
        try:
            if kind is None and self.session.state == "open":
                await self.session.finish()
            elif self.session.state == "open":
                self.session.warn_unsaved()
        finally:
            await self._close()

    # ---- how it looks ---------------------------------------------------------------

    def _repr_html_(self) -> str:
        from tensair_dask.observe import notebook

        return notebook.draw(self._look(lambda: look_at(self)))

    def __repr__(self) -> str:
        alive = sum(info.alive for info in self.replicas)
        handles = self.session.replicas.handles
        # Those that have left on purpose are not missing.
        gone = (each.lane.leaving and not each.lane.alive for each in handles)
        there = len(handles) - sum(gone)
        shares = f"share {self.share!r}, " if self.share else ""
        refused = f", {self.dead_letters.total} refused" * bool(self.dead_letters.total)
        return (
            f"<Trainer: {self.session.state}, {alive} of {there} replicas alive, "
            f"{shares}{self.session.events.index} mini-batches{refused}, "
            f"backlog {self.backlog}>"
        )

    if not TYPE_CHECKING:  # or any attribute would pass for one that there is

        def __getattr__(self, name: str) -> Any:
            if name in dir(type(self)):  # a property that has raised an AttributeError
                return object.__getattribute__(self, name)
            raise no_such_method(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            _check_set(name, value)
        super().__setattr__(name, value)


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
