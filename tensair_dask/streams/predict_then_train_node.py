"""`Stream.predict_then_train`: every item is answered, scored, and learned then."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from streamz import Stream

from tensair_dask._common.checks import allow, shown, whole
from tensair_dask.batches.copies import as_values
from tensair_dask.batches.outputs import contents
from tensair_dask.errors import (
    BatchError,
    ConfigurationError,
    KilledReplicasError,
    NonFiniteError,
    RaisedError,
    TensairError,
)
from tensair_dask.prequential import Prequential
from tensair_dask.prequential.common_label import CommonLabel
from tensair_dask.prequential.delayed_labels import Delay, UntilDue
from tensair_dask.prequential.inputs import as_seconds
from tensair_dask.reports import Report
from tensair_dask.streams.node import (
    OrderedNode,
    form_of,
    resolve_after,
)
from tensair_dask.streams.record_form import Pairs
from tensair_dask.trainer import Trainer

__all__ = ["predict_then_train"]


@dataclass(slots=True)
class _Asked:
    """A mini-batch that was predicted, and waits for its labels to be learned.

    Attributes
    ----------
    item, pair
        What the stream gave, and ``(x, y)`` of it.
    samples
        Rows.
    metadata
        References that are held until its report has passed.
    key
        Of its predictions in the scores; None where these have none.
    moments
        When each of its records came, on the clock of the delay.
    prediction
        What the model returned; None where it could not.
    deadly
        Why it is not learned: replicas were lost with its prediction.
    """

    item: Any = field(repr=False)
    pair: tuple[Any, Any] = field(repr=False)
    samples: int
    metadata: Sequence[Any]
    key: Hashable | None
    moments: list[float]
    prediction: Any = field(default=None, repr=False)

    @property
    def moment(self) -> float:
        """When the last of its records came."""
        return max(self.moments)

    deadly: KilledReplicasError | None = None


@Stream.register_api()
class predict_then_train(OrderedNode):
    """Predict every mini-batch when it comes; learn it when its labels have come.

    Parameters
    ----------
    upstream
        As in `train`.
    trainer
        An open `Trainer`.
    scores
        A `Prequential` without a delay of its own, which scores the predictions; its
        baselines guess for one record after the other, each knowing the labels that
        had come before that record. None for none.
    delay
        How much later than the records their labels come: records as a whole number,
        or a time (``"2h"``, a timedelta, seconds as a float), which needs ``moment``.
        A mini-batch is learned as a whole, when the label of its last record has come.
        None for at once.
    collate
        As in `train`.
    decide
        ``decide(output) -> y_pred``, which makes of the model's output what ``scores``
        takes: labels, numbers or probabilities. By default the arg max over the classes
        where the output is two-dimensional, else its values.
    moment
        ``moment(item)``, when the records of an item came: seconds or a date, one for
        all of them or one for each.
    pending
        Records that may wait for their labels. Mini-batches beyond are refused, with a
        `BatchError` in their report; ``on_error`` says what is done with them.
    on_error
        As in `train`.

    Attributes
    ----------
    unscored
        Records whose prediction could not be scored; the first reason is logged.

    Notes
    -----
    Emits a `Report` for each mini-batch that was learned, as `train` does; its
    ``prediction`` is what was predicted when the mini-batch came. ``flush`` learns
    what still waits at the end of a stream; `Trainer.drain` does not, and says how many
    records wait.

    Each mini-batch is asked for at a replica and, later, sent to be learned: two
    messages. Without a delay, and with a trainer that has ``keep_predictions=True``,
    one is enough: the mini-batch is scored by the forward pass that training makes (in
    training mode, so with dropout).

    Back-pressure: the awaited ``emit`` returns when the mini-batch was predicted, and
    replicas had room for all whose labels came with it. References in streamz
    ``metadata`` are held until the report has passed through the stream, so also while
    the labels are waited for.

    What `train` would refuse is refused here: a report with its ``error`` comes when
    its labels come, or at once if the item is no mini-batch.
    """

    def __init__(
        self,
        upstream: Stream,
        trainer: Trainer,
        scores: Prequential | None = None,
        delay: Any = None,
        collate: Callable[[Any], tuple[Any, Any]] | None = None,
        decide: Callable[[Any], Any] | None = None,
        moment: Callable[[Any], Any] | None = None,
        pending: int = 100_000,
        on_error: str = "dead-letter",
        **kwargs: Any,
    ) -> None:
        _check_kinds(trainer, scores, collate=collate, decide=decide, moment=moment)
        pending = whole("pending", pending, 1, 100_000)
        later = Delay.of(0 if delay is None else delay)
        _check_delay(later, delay, scores, moment, pending)
        self.read_by = collate
        super().__init__(upstream, trainer, on_error=on_error, **kwargs)
        self.scores = scores
        self._delay, self._later = later, delay
        self._collate = collate or Pairs(form_of(upstream))
        self._decide = (
            _decided if decide is None else functools.partial(_made_by, decide)
        )
        self._labels = CommonLabel() if scores is not None else None
        if scores is not None:
            trainer.session.scored_by(scores)
        self._moment = moment
        self._pending = pending
        self._one_pass = (
            delay is None and trainer.session.options.recipe.keep_predictions
        )
        self._held: UntilDue[_Asked] = UntilDue()
        self._records = 0
        self._now = -math.inf
        # In one pass: what there is to score, by number, until all before has come.
        self._number = 0
        self._settled = 0
        self._outcomes: dict[int, tuple[Any, Any, int] | None] = {}
        self.unscored = 0

    @property
    def waiting(self) -> int:
        """Records that wait for their labels."""
        return self._held.waiting

    def report_waiting(self, at_the_end: bool) -> None:
        """Say also how many records wait for their labels."""
        super().report_waiting(at_the_end)
        if not self.waiting:
            return
        count = f"{self.waiting} records of predict_then_train(delay={self._later!r})"
        if at_the_end:
            text = f"{count} still waited for their labels, and were not learned."
        else:
            text = f"{count} wait for their labels, and are not learned yet."
        self.intake.say_once(
            f"labels awaited {id(self)} {at_the_end}",
            f"{text} Where no more items come, call flush() of that node before "
            "drain(), and before the end of `with`: it lets their labels come.",
        )

    def flush(self) -> Any:
        """Let all labels come that the delay holds back, as at the end of a stream.

        Awaitable where the trainer's methods are. Returns when replicas had room for
        all of it; `Trainer.drain` waits until it is learned.
        """
        return self.trainer.session.sync_with_streams(self._flush)

    async def _flush(self) -> None:
        if self._passing:
            await asyncio.wait([self._passing[-1]])
        await self._answer(math.inf)

    def _take(self, x: Any, metadata: Sequence[Any]) -> Awaitable[Any] | None:
        if self._one_pass:
            return self._train_at_once(x, metadata)
        number, self._number = self._number, self._number + 1
        x = self._value(x)
        try:
            pair = self._collate(x)
            if not isinstance(self._collate, Pairs):  # it may use its arrays again
                pair = as_values(pair)
            names = self.intake.column_names
            samples = names.batch(*pair, owned=True).samples
            pair = names.ordered(*pair)  # y is scored here
            moments = self._moments_of(x, samples)
        except BaseException as error:
            return self._refuse(x, RaisedError.caught(error), metadata)
        asked = _Asked(x, pair, samples, metadata, (id(self), number), moments)
        self._records += samples
        return self._pass_through(asked)

    def _moments_of(self, item: Any, samples: int) -> list[float]:
        """When each record of an item came, on the clock of the delay."""
        if not self._delay.in_time:
            return [float(self._records + at) for at in range(samples)]
        assert self._moment is not None
        return as_seconds(self._moment(item), samples)

    def _refuse(
        self, item: Any, error: Exception, metadata: Sequence[Any]
    ) -> Awaitable[Any] | None:
        """Let the trainer report what is no mini-batch, or must not wait."""

        def refuse(_: Any) -> tuple[Any, Any]:
            raise error

        return self._feed(item, refuse, metadata)

    # ---- a question now, the answer later ------------------------------------------

    async def _pass_through(self, asked: _Asked) -> None:
        before, room = self._queue_up()
        passed = self._passing[-1]
        try:
            if room is not None:
                await asyncio.wait([room])
            if before is None or before.done():
                # The labels that come with it, before it is predicted.
                await self._arrive(asked)
            await self._predict(asked)
            if before is not None:  # replicas answer in any order
                await asyncio.wait([before])
            await self._arrive(asked)
            await self._hold(asked)
        finally:
            resolve_after(before, passed)

    async def _arrive(self, asked: _Asked) -> None:
        self._now = max(self._now, asked.moment)
        await self._answer(self._now)

    async def _predict(self, asked: _Asked) -> None:
        try:
            asked.prediction = await self.trainer.session.inference.predict(
                asked.pair[0]
            )
        except BatchError as error:
            # Learning refuses it as well, and reports it.
            if isinstance(error, KilledReplicasError):
                asked.deadly = error  # to learn it would end further ones
            self._not_scored(asked.samples, error)

    async def _hold(self, asked: _Asked) -> None:
        if self._delay.amount and self._held.waiting + asked.samples > self._pending:
            error = BatchError(
                f"{self._held.waiting} records wait for their labels, and pending="
                f"{self._pending} may. Give predict_then_train a shorter delay=, or a "
                "larger pending=."
            )
            rest = self._refuse(asked.item, error, asked.metadata)
            if rest is not None:
                await rest
            return
        self._foresee(asked)
        self._held.put(asked.moment + self._delay.amount, asked.samples, asked)
        await self._answer(self._now)

    def _foresee(self, asked: _Asked) -> None:
        """Let the baselines guess for one record after the other; keep all guesses."""
        scores, prediction, key = self.scores, asked.prediction, asked.key
        asked.key = None
        if scores is None:
            return
        labels, later = asked.pair[1], self._delay.amount
        if prediction is None:
            # Nothing is scored, but its labels come, if they are any.
            with contextlib.suppress(TensairError):
                scores.foreseen(labels, None, key, asked.moments, later)
            return
        try:
            guess = self._decide(prediction)
            self._compare(labels, guess)
            scores.foreseen(labels, guess, key, asked.moments, later)
        except BaseException as error:
            self._not_scored(asked.samples, RaisedError.caught(error))
        else:
            asked.key = key

    async def _answer(self, now: float) -> None:
        """Score and learn what has its labels by now."""
        while self._held.waiting and self._held.next_due <= now:
            _, asked = self._held.take_first()
            self._score(asked)
            rest = self._learn(asked)
            if rest is not None:
                await rest

    def _score(self, asked: _Asked) -> None:
        if self.scores is None or asked.key is None:
            return
        try:
            self.scores.labelled(asked.key, asked.pair[1])
        except BaseException as error:
            self._not_scored(asked.samples, RaisedError.caught(error))

    def _learn(self, asked: _Asked) -> Awaitable[Any] | None:
        if asked.deadly is not None:
            return self._refuse(asked.item, asked.deadly, asked.metadata)

        def add_prediction(report: Report) -> None:
            report.prediction = asked.prediction

        return self._feed(
            asked.item, lambda _: asked.pair, asked.metadata, add_prediction, True
        )

    def _not_scored(self, records: int, error: Exception) -> None:
        if not self.unscored:
            self.intake.say_once(
                f"unscored {id(self)}",
                f"Predictions are not scored; the stream goes on: {error}",
            )
        self.unscored += records

    def _compare(self, labels: Any, guess: Any) -> None:
        """Say where labels and what is taken for the model's have none in common."""
        if self._labels is None:
            return
        if text := self._labels.compare(labels, guess):
            self.intake.say_once(f"no common label {id(self)}", text)
        if self._labels.is_settled:
            self._labels = None

    # ---- both in one pass ----------------------------------------------------------

    def _train_at_once(
        self, item: Any, metadata: Sequence[Any]
    ) -> Awaitable[Any] | None:
        number, self._number = self._number, self._number + 1
        targets: list[Any] = []

        def collate(given: Any) -> tuple[Any, Any]:
            x, y = self._collate(given)
            pair = self.intake.column_names.ordered(x, y)
            targets.append(as_values(pair[1]))  # scored when it has been learned
            return pair

        def score(report: Report) -> None:
            outcome = None
            if targets and report.error is None:
                outcome = targets[0], report.prediction, report.samples
            self._settle(number, outcome)

        rest = self._feed(item, collate, metadata, score)
        return None if rest is None else self._when_fed(rest, number)

    async def _when_fed(self, rest: Awaitable[Any], number: int) -> None:
        try:
            await rest
        except BaseException:
            self._settle(number, None)  # nobody will report it
            raise

    def _settle(self, number: int, outcome: tuple[Any, Any, int] | None) -> None:
        """Score in the order of the stream, whichever replica was faster."""
        if number < self._settled:
            return
        self._outcomes.setdefault(number, outcome)
        while self._settled in self._outcomes:
            ready = self._outcomes.pop(self._settled)
            self._settled += 1
            if ready is not None and self.scores is not None:
                y, prediction, samples = ready
                try:
                    guess = self._decide(prediction)
                    self._compare(y, guess)
                    self.scores.add(y, guess)
                except BaseException as error:
                    self._not_scored(samples, RaisedError.caught(error))


def _check_kinds(trainer: Any, scores: Any, **functions: Any) -> None:
    allow(
        isinstance(trainer, Trainer),
        f"trainer={shown(trainer)}",
        "give an open Trainer, for example tensair_dask.Trainer(client, ...)",
    )
    allow(
        scores is None or isinstance(scores, Prequential),
        f"scores={shown(scores)}",
        "give a Prequential, for example Prequential(river.metrics.Accuracy()), or "
        "None for no scores",
    )
    for name, function in functions.items():
        allow(
            function is None or callable(function),
            f"{name}={shown(function)}",
            "give a function, or leave it out",
        )


def _check_delay(
    later: Delay, delay: Any, scores: Any, moment: Any, pending: int
) -> None:
    if scores is not None and scores.delay is not None:
        raise ConfigurationError(
            "scores has a delay of its own; give the delay to predict_then_train, and "
            "Prequential(...) without one."
        )
    if later.in_time and moment is None:
        raise ConfigurationError(
            f"delay={delay!r} is a time, so the time of each item is needed: give "
            "moment=, a function of the item, or the delay in records (delay=500)."
        )
    if moment is not None and not later.in_time:
        raise ConfigurationError(
            f"moment= was given, and delay={delay!r} is no time, so that it would "
            'never be called: give the delay as a time, such as delay="2h", or leave '
            "moment= out."
        )
    if not later.in_time and later.amount > pending:
        raise ConfigurationError(
            f"delay={delay!r} records was given, and pending={pending} may wait; give "
            "a pending= that is larger by a mini-batch or more."
        )


def _made_by(decide: Callable[[Any], Any], output: Any) -> Any:
    """Call a function of the user's that says what is scored."""
    made = decide(output)
    if made is None:
        raise BatchError(
            f"decide ({getattr(decide, '__name__', shown(decide))}) returned None, and "
            "so there is nothing to score: let it return the labels, numbers or "
            "probabilities that it makes of the model's output."
        )
    return made


def _decided(output: Any) -> Any:
    """Arg max over the classes of two-dimensional outputs, else the values."""
    if contents(output) is not None and not isinstance(output, list):
        raise BatchError(
            f"The model returns several outputs, in a {type(output).__name__}; say "
            "which of them is scored with decide=, for example decide=lambda output: "
            f"output{_way_to_first(output)}.argmax(1)."
        )
    if hasattr(output, "detach"):
        output = output.detach().cpu().numpy()
    array = np.asarray(output)
    if array.ndim == 2 and array.shape[1] > 1:
        if not np.isfinite(array).all():  # the arg max would be the NaN
            raise NonFiniteError("The model's output is NaN or infinite.")
        return array.argmax(1)
    return array


def _way_to_first(output: Any) -> str:
    """Say how the first of several outputs is had."""
    name, _ = next(iter(contents(output) or [(0, None)]))
    if isinstance(output, tuple):
        fields = getattr(output, "_fields", ())
        return f".{fields[0]}" if fields else "[0]"
    return f"[{name!r}]" if isinstance(output, Mapping) else f".{name}"
