"""One run of a trainer, from start to close: makes its parts, and keeps their order."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from distributed import Client

from tensair_dask import config
from tensair_dask._common.score_columns import columns
from tensair_dask._common.user_functions import OPTIMIZERS, as_called
from tensair_dask.checkpoints.checkpoint_config import Path
from tensair_dask.coordinator.barrier import Barrier
from tensair_dask.coordinator.checkpointing import Checkpointing
from tensair_dask.coordinator.claims import (
    claim_detector,
    claim_scores,
    open_sessions_like,
    opened,
)
from tensair_dask.coordinator.dispatcher import Dispatcher
from tensair_dask.coordinator.drift_response import DriftResponse
from tensair_dask.coordinator.inference import Inference
from tensair_dask.coordinator.intake import Intake
from tensair_dask.coordinator.lifecycle import Lifecycle
from tensair_dask.coordinator.membership.autoscale import Demand, LagScaling
from tensair_dask.coordinator.membership.keep import Membership
from tensair_dask.coordinator.recording import Recording
from tensair_dask.coordinator.replica_group import (
    ReplicaGroup,
    closed_error,
    late_error,
)
from tensair_dask.coordinator.replica_handle import ReplicaHandle
from tensair_dask.coordinator.resumption import Resumption
from tensair_dask.coordinator.run_events import RunEvents
from tensair_dask.coordinator.run_options import RunOptions
from tensair_dask.coordinator.start import Starter
from tensair_dask.coordinator.status import Status
from tensair_dask.coordinator.unclosed import Unclosed
from tensair_dask.errors import BatchError, EventLoopError, TensairError
from tensair_dask.exchange.wire import unpack
from tensair_dask.observe.dashboard.plugin import NAME as DASHBOARD
from tensair_dask.observe.dashboard.plugin import TrainingDashboard
from tensair_dask.observe.telemetry.counters import plain
from tensair_dask.observe.telemetry.reporter import Reporter
from tensair_dask.replica.placement import ReplicaCount
from tensair_dask.reports import Report

__all__ = ["Session"]

logger = logging.getLogger(__name__)


class Session:
    """One run of a trainer: its parts, and the order in which they start and end.

    Belongs to the client's event loop, but for `lifecycle`, by which calls get there.

    Parameters
    ----------
    client
        Connected to a Dask cluster.
    options
        What the run is made from.

    Attributes
    ----------
    run_id
        Unique.
    lifecycle
        Whether it is open, and how calls get to its event loop.
    events
        What happens, and who hears it.
    dispatcher, replicas, starter, barrier, membership
        Where mini-batches go; the replicas; what starts, changes and keeps them.
    intake, inference
        What comes to the trainer, and what is asked of the replicas.
    drift_response, checkpointing
        What follows from drift, and what is written.
    recording
        What has been learned so far.
    status, reporter
        How it stands; what tells the scheduler.
    last_counts
        What the replicas answered when they were closed, by name.
    """

    def __init__(self, client: Client, options: RunOptions) -> None:
        self.client = client
        self.options = options
        self.name = options.name
        self.run_id = uuid.uuid4().hex
        self.last_counts: dict[str, Any] = {}
        recipe = options.recipe
        modes = options.drift.modes(recipe.metrics)
        self.lifecycle = Lifecycle(client, self.start)
        self.events = RunEvents(client, self.run_id)
        self.dispatcher = Dispatcher(self.run_id, options.limits(), self.events)
        self.replicas = ReplicaGroup(self.dispatcher)
        self._shown = bool(config.get("dashboard.enabled"))
        self.starter = Starter(
            client,
            self.run_id,
            recipe,
            options.replicas.device,
            options.exchange,
            self.name if self._shown else None,
        )
        self.barrier = Barrier(self.replicas, self.starter)
        self.membership = Membership(
            self.starter,
            self.replicas,
            self.barrier,
            options.replicas.wanted,
            self.events,
        )
        self.drift_response = DriftResponse(modes, self.barrier, self.events)
        keeps = options.checkpoints.to is not None
        self.intake = Intake(self.lifecycle, self.dispatcher, self.events, modes, keeps)
        self.inference = Inference(
            self.lifecycle, self.run_id, self.replicas, self.intake, self.events
        )
        self.checkpointing = Checkpointing(
            options.checkpoints,
            self.barrier,
            self.membership,
            modes,
            self.intake,
            self.events,
        )
        self.checkpointing.about = {
            "name": self.name,
            "functions": options.functions(),
        }
        self.status = Status(self)
        self.recording = Recording(columns(recipe.metrics), self.status.now)
        # In this order do they hear of a report.
        for each in (
            self.checkpointing,
            self.recording,
            self.drift_response,
            self.intake,
            self.inference,
            self.membership,
        ):
            self.events.subscribe(each)
        self._resumption = Resumption(
            options.checkpoints,
            self.checkpointing,
            self.drift_response,
            self.intake,
            self.events,
        )
        self.reporter = Reporter(
            client,
            (DASHBOARD, TrainingDashboard()),
            self.status.about(),
            self.status.state,
        )
        self._doubts = list(options.doubts)
        begins_anew = claim_detector(modes.detector, self)
        if begins_anew and options.checkpoints.restore is None:
            self._doubts.append(begins_anew)
        self._unclosed: Unclosed | None = None
        self._scaling: LagScaling | None = None
        self._awaited: set[asyncio.Future[Report]] = set()
        self._starting: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def state(self) -> str:
        """``"new"``, ``"open"`` or ``"closed"``."""
        return self.lifecycle.state

    @property
    def share(self) -> str:
        """What replicas publish; what was given, as long as none has said."""
        return self.replicas.share or self.options.exchange.share or ""

    def restored(self, scores: Any) -> bool:
        """Whether these scores were taken over from a checkpoint."""
        known = self.checkpointing.scores.values()
        return self._resumption.goes_on and any(each is scores for each in known)

    # ---- the start ------------------------------------------------------------------

    async def start(self) -> None:
        """Start the replicas, once; go on from a checkpoint.

        Raises
        ------
        TrainerClosedError
            If it was closed.
        TensairError
            If it cannot start; it is closed then.
        """
        if self.state == "closed":
            raise closed_error()
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._start())
        await asyncio.shield(self._starting)

    async def open(self) -> None:
        """Start; close where who waits for it is cancelled: nobody else would."""
        try:
            await self.start()
        except asyncio.CancelledError:
            await self.close()
            raise

    async def _start(self) -> None:
        try:
            if self._shown:
                await self.reporter.open()
            await self.membership.start()
            await self.membership.hear()  # what they share, and have to say
            for text in (*self._doubts, *open_sessions_like(self)):
                self.events.say_once(text, text)
            await self._resumption.begin(self.options.drift.mode)
            self._warn_unused()
            for scores in self.checkpointing.scores.values():
                self.scored_by(scores)
            await self.drift_response.start()
        except BaseException:
            await self._undo_start()
            raise
        self.membership.watch()
        self._unclosed = Unclosed(self.client, self.run_id, self._left_open)
        self.recording.curves.begin()
        self.lifecycle.state = "open"
        opened(self)

    async def _undo_start(self) -> None:
        self.lifecycle.state = "closed"
        await self.membership.close()
        for handle in self.replicas.handles:
            self.starter.release(handle)
        # A cluster that closes now would ask what is still being built to leave.
        await self.starter.released(config.get_seconds("timeouts.release"))
        await self.reporter.close({})

    def _warn_unused(self) -> None:
        mode = self.drift_response.modes.mode
        if self.options.drift.convergence is not None and mode != "auto":
            self.events.say_once(
                "convergence",
                "convergence= was given, and is looked at in mode 'auto' only: the "
                f"mode is {mode!r}, which does not end training where the loss "
                "has settled. Give mode='auto', or call trainer.set_mode('auto').",
            )

    # ---- one mini-batch --------------------------------------------------------------

    async def train(self, x: Any, y: Any) -> Report:
        """Learn one mini-batch, and wait for its report; see `Trainer.train`."""
        await self.lifecycle.ready()
        caller = _Caller()
        done = caller.report
        rest = self.intake.feed((x, y), lambda pair: pair, caller)
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

    # ---- what users change -----------------------------------------------------------

    async def scale(self, count: Any, timeout: float | str | None) -> None:
        """Change how many replicas there are; see `Trainer.scale`."""
        await self.lifecycle.ready()
        seconds = config.get_seconds("timeouts.start", timeout)
        await self._stop_scaling()
        await self.membership.scale(ReplicaCount.of(count), seconds)

    async def scale_by_lag(
        self, demand: Demand, lag: Callable[[], float] | None, cluster: Any
    ) -> None:
        """Start and end workers by the lag; see `Trainer.adapt`."""
        await self.lifecycle.ready()
        await self._stop_scaling()
        self._scaling = LagScaling(
            self.membership, cluster, demand, lag or self.intake.lag, self.events
        )

    async def _stop_scaling(self) -> None:
        scaling, self._scaling = self._scaling, None
        if scaling is not None:
            await scaling.close()

    async def set_mode(self, mode: str) -> None:
        """Change the mode; see `Trainer.set_mode`."""
        await self.lifecycle.ready()
        self.drift_response.set_mode(mode)

    async def apply(self, function: Callable[..., Any]) -> Any:
        """Let a function change all replicas; see `Trainer.apply`."""
        await self.lifecycle.ready()
        called = as_called(function, "trainer.apply", [("optimizers", OPTIMIZERS)])
        changed = await self.barrier.change(called, self.events.index)
        name = getattr(function, "__name__", type(function).__name__)
        if changed.answer.idle:
            self.events.say_once(
                f"idle {name}",
                f"{name}, which was given to trainer.apply, has changed nothing and "
                "returned nothing. It was called once, with the whole model, and not "
                "with each layer as torch's Module.apply calls one: for that give "
                f"lambda model, _: model.apply({name}).",
            )
        if changed.layout is not None:
            text = f"{name} has changed the structure of the model"
            self.events.note("note", text)
        if dropped := changed.answer.dropped:
            self.events.say_once(
                f"answer {name}",
                f"apply gives None for what {name} returned: {dropped}. It gives "
                "numbers, texts, tensors (as arrays), and tuples, lists and dicts of "
                "these, of no more than 64 MiB.",
            )
        packed = changed.answer.packed
        return None if packed is None else unpack(packed)

    async def save(self, path: Path | None) -> str:
        """Write a checkpoint; see `Trainer.save`."""
        await self.lifecycle.ready()
        written = await self.checkpointing.save(path)
        await self.membership.hear()  # what there was to say about it
        return written

    async def mark(self, kind: str, text: str) -> None:
        """Keep an event of the user's; see `Trainer.mark`."""
        await self.lifecycle.ready()
        await self.events.mark(kind, plain(text, 1000))

    def scored_by(self, scores: Any) -> None:
        """Take note of what scores it; say if that counts for another trainer yet."""
        claim_scores(scores, self, self.intake.say_once_soon)

    # ---- what users read -------------------------------------------------------------

    def _warn_not_scored(self) -> None:
        """Say which of scores= have got nothing, although something was learned."""
        if not self.intake.refused.sound:
            return
        for name, scores in self.checkpointing.scores.items():
            if getattr(scores, "touched", True) or any(
                getattr(node, "scores", None) is scores for node in self.intake.nodes
            ):
                continue
            self.events.say_once(
                f"not scored {name}",
                f"scores[{name!r}] has scored nothing: scores= of a trainer keeps "
                "them in its checkpoints, and feeds them nothing. Give them to the "
                "stream as well, source.predict_then_train(trainer, scores), or call "
                "scores.add(y, prediction).",
            )

    # ---- a barrier over the stream ---------------------------------------------------

    def sync_with_streams(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call what waits for streams to take their reports, on their own loops."""
        hold_up = self.intake.would_hold_up_a_stream
        if not self.client.asynchronous and hold_up:
            raise EventLoopError(
                "The trainer's client belongs to another thread, and so this call "
                "blocks until all is learned; a stream of the trainer runs on the "
                "event loop of this thread, which would wait meanwhile, with the "
                "reports that it is to take. Await it there: await asyncio.to_thread("
                "trainer.drain). Or let all run on one loop: client = await "
                "Client(..., asynchronous=True), and await trainer.drain()."
            )
        return self.lifecycle.sync(function, *args)

    async def drain(self, timeout: float | str | None = None) -> None:
        """Wait until everything emitted is applied everywhere; see `Trainer.drain`."""
        await self._drain(timeout)
        self.intake.report_waiting(at_the_end=False)

    async def _drain(self, timeout: float | str | None = None) -> None:
        await self.lifecycle.ready()
        if self.dispatcher.is_delivering:
            raise EventLoopError(
                "drain was awaited in what takes the reports, such as the sink of a "
                "stream: it would wait for the report that is being taken. Await it "
                "where the stream is fed, or start it there with "
                "asyncio.create_task(...)."
            )
        end = time.monotonic() + config.get_seconds("timeouts.drain", timeout)

        def left() -> float:
            return max(0.01, round(end - time.monotonic(), 2))

        if self._nodes_hold:
            await self.intake.pass_on_held(left())
        await self.intake.emptied(left)
        settled = False
        while not settled:
            # What a replica had that is lost meanwhile is learned again.
            sent_again = self.dispatcher.redispatched
            await self._apply_everywhere(left)
            settled = self.membership.settled
            settled &= self.dispatcher.redispatched == sent_again
        self.intake.warn_of_refused()
        self._warn_not_scored()
        self.intake.check()

    async def _apply_everywhere(self, left: Callable[[], float]) -> None:
        """Wait until all is reported, and what was learned is in all models."""
        await self.dispatcher.drained(left())
        self.intake.rested()
        await self.drift_response.settled(left())
        await self.membership.recovered(left())
        seconds = left()
        await self.replicas.ask_all("flush", seconds, timeout=seconds)
        # Those that flushed first have applied the others' last messages meanwhile.
        await self.membership.look()

    @property
    def _nodes_hold(self) -> bool:
        """Whether something waits in the nodes of streams that can be learned yet."""
        if self.state != "open" or self.lifecycle.client_is_closed:
            return False
        return self.intake.holds

    # ---- the end --------------------------------------------------------------------

    async def finish(self) -> None:
        """Lose nothing: neither what is under way, nor what no checkpoint holds."""
        await self._drain()
        await self.checkpointing.finish()
        await self.membership.hear()  # what there was to say about it

    async def close(self, learn_held: bool = True) -> None:
        """End the replicas, once; see `Trainer.close`.

        Parameters
        ----------
        learn_held
            Whether what waits in nodes before the trainer's own is learned first.
        """
        if self._closing is None:
            if self.state == "closed":  # it could not start
                return
            if not (learn_held and self._nodes_hold):
                self._take_no_more()
            self._closing = asyncio.ensure_future(self._end())
        # To the end, also if who waits for it is interrupted.
        await asyncio.shield(self._closing)

    def give_up(self) -> None:
        """Be closed, where the client is closed and nothing can be sent to anybody."""
        self.recording.curves.end()
        self.lifecycle.state = "closed"

    def _take_no_more(self) -> None:
        if self._unclosed is not None:
            self._unclosed.end()
        self._warn_not_scored()
        self.intake.take_no_more()
        self.give_up()

    async def _learn_held(self) -> None:
        seconds = config.get_seconds("timeouts.close")
        end = time.monotonic() + seconds
        try:
            await self.intake.pass_on_held(seconds)
            await self.dispatcher.drained(max(0.01, end - time.monotonic()))
        except TensairError as error:
            logger.warning("Closed before all was learned: %s", error)

    async def _end(self) -> None:
        if self.state != "closed":
            await self._learn_held()
            self._take_no_more()
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait([self._starting])
        await self._stop_scaling()
        await self.membership.close()
        await self.checkpointing.close()
        alive = [each for each in self.replicas.handles if each.lane.alive]
        if self.lifecycle.client_is_closed:
            alive = []
        await self.dispatcher.close()
        await self.drift_response.close()
        await self.events.close()
        await self.barrier.close()
        await self.inference.close()
        for report in self._awaited:
            if not report.done():
                report.set_exception(closed_error())
        await self._close_replicas(alive)
        for handle in self.replicas.handles:
            handle.release()
        self.intake.let_go()

    async def _close_replicas(self, alive: list[ReplicaHandle]) -> None:
        limit = config.get_seconds("timeouts.close")
        closing = [asyncio.ensure_future(handle.call("close")) for handle in alive]
        if closing:
            _, unfinished = await asyncio.wait(closing, timeout=limit)
            for task in unfinished:
                logger.warning("A replica did not close within %g s", limit)
                task.cancel()
            await asyncio.gather(*closing, return_exceptions=True)
        counts = self.last_counts = {
            handle.name: work.result()
            for handle, work in zip(alive, closing, strict=True)
            if work.done() and not work.cancelled() and work.exception() is None
        }
        await self.reporter.close(
            {
                handle.name: (handle.place.address, counts[handle.name])
                for handle in alive
                if handle.name in counts
            }
        )

    def warn_unsaved(self) -> None:
        """Say what is lost where a block has raised."""
        why = (
            "none is written where the block raises or is interrupted. Call "
            "trainer.save() there, within the block, to keep what was learned, or give "
            "checkpoint_every=."
        )
        if text := self.checkpointing.unsaved(why):
            self.events.say_once("unsaved", text)

    def _left_open(self, what: str) -> None:
        """Say what is lost where a trainer was not closed; on any thread."""
        if self.state != "open":
            return
        self.membership.expect_the_end()
        waiting = self.intake.backlog
        lost = [f"{waiting:,} mini-batches were not learned."] if waiting else []
        if self.intake.holds:
            lost.append("Nodes of streams before it, such as partition, held items.")
        if unsaved := self.checkpointing.unsaved("the last one is not written."):
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
        self.events.keep("note", text)


class _Caller:
    """Receives the report of a mini-batch for which a caller waits."""

    is_stream = False

    def __init__(self) -> None:
        self.report: asyncio.Future[Report] = asyncio.get_running_loop().create_future()

    def deliver(self, report: Report, metadata: Sequence[Any]) -> None:
        if not self.report.done():
            self.report.set_result(report)

    def let_go(self, metadata: Sequence[Any]) -> None:
        """Do nothing: it holds nothing else."""
