"""Modes: decide from the reports whether the model learns or only predicts."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import math
import random
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tensair_dask._wording import in_words
from tensair_dask.drift import OPTWIN, Detector, Shift, make
from tensair_dask.drift.convergence import Convergence
from tensair_dask.drift.policies import Policy
from tensair_dask.drift.reorder import InOrder
from tensair_dask.drift.watch import Watch
from tensair_dask.errors import (
    CheckpointError,
    ConfigurationError,
    DriftError,
    RaisedError,
    TensairError,
)
from tensair_dask.reports import Report

__all__ = [
    "MODES",
    "PREDICTING",
    "TRAINING",
    "Drift",
    "Modes",
    "PolicyEnded",
    "Settled",
    "Switch",
    "Unwatched",
    "as_convergence",
    "as_detector",
    "check_mode",
]

logger = logging.getLogger(__name__)

# When to train; as TensAIR calls them ALWAYS_TRAIN, NEVER_TRAIN and AUTOMATIC.
MODES = ("always", "never", "auto")

TRAINING = "training"
PREDICTING = "predicting"


@dataclass(frozen=True)
class Drift:
    """A drift that was detected.

    Attributes
    ----------
    time
        When, in seconds since the epoch.
    index
        The mini-batch at which it was detected, in the order of submission.
    detector
        Name of the detector; ``"Convergence"`` for a rise while the model learns.
    before, after
        Mean of what is watched (the loss most often) before and after the change,
        as the detector has split it.
    magnitude
        Their difference in standard deviations of what was before; NaN if unknown.
    """

    time: float
    index: int
    detector: str
    before: float
    after: float
    magnitude: float

    def describe(self) -> str:
        """Say it in one line."""
        return (
            f"{self.detector} at mini-batch {self.index:,}: from {self.before:.4g} to "
            f"{self.after:.4g} ({self.magnitude:+.1f} standard deviations)"
        )


@dataclass(frozen=True)
class Switch:
    """From mini-batch ``index`` on, the phase is another one."""

    index: int
    phase: str
    why: str


@dataclass(frozen=True)
class PolicyEnded:
    """What a policy began is to be undone."""

    index: int
    drift: Drift


@dataclass(frozen=True)
class Settled:
    """All is well at this mini-batch: a good moment for a snapshot."""

    index: int


@dataclass(frozen=True)
class Unwatched:
    """The detector cannot be given its value of this mini-batch, nor of its like."""

    index: int
    why: str

    def describe(self) -> str:
        """Say it in one line."""
        return f"Mini-batch {self.index:,} cannot be watched for drift: {self.why}"


class Modes:
    """The state of a trainer's mode: which phase it is in, and why it leaves it.

    It sees one merged stream of reports, in the order in which the mini-batches were
    submitted, whichever replica scored them. A switch holds from a mini-batch on:
    those submitted later travel with the word whether to learn them, so that all
    replicas switch at the same place of the stream.

    Belongs to the client's event loop; knows neither Dask nor torch.

    Parameters
    ----------
    mode
        One of `MODES`.
    detector
        What finds drift; None for none.
    convergence
        When training may end in mode auto.
    policy
        What is done on drift.
    watch
        What the detector is given of each report.
    reorder
        Reports that may wait for an earlier one; see `InOrder`.

    Attributes
    ----------
    begun
        What a policy has really begun on the model, and has not undone; None for
        nothing. See `begin`.
    """

    def __init__(
        self,
        mode: str,
        detector: Detector | None,
        convergence: Convergence,
        policy: Policy,
        watch: Watch,
        reorder: int,
    ) -> None:
        self.mode = check_mode(mode)
        if mode == "auto" and detector is None:
            raise ConfigurationError(
                "mode='auto' needs a detector, and detector=None was given: without "
                "one it would never train again. Leave detector out for OPTWIN."
            )
        self.detector = detector
        self.convergence = convergence
        self.policy = policy
        self.phase = PREDICTING if mode == "never" else TRAINING
        self._watch = watch
        self._reorder = reorder
        self._order: InOrder[Report] = InOrder(reorder)
        # The first mini-batch of the phase, and the first that was reported.
        self._since = self._first = 0
        # What the detector would have been given of the newest epoch of training.
        self._newest: deque[float] = deque(maxlen=convergence.epoch)
        # What is to be undone, and when, if it is begun at all.
        self._lasting: PolicyEnded | None = None
        self.begun: PolicyEnded | None = None
        self._snapshot = policy.every or math.inf
        self._complained = False

    @property
    def learns(self) -> bool:
        """Whether a mini-batch that is submitted now is to be learned."""
        return self.phase == TRAINING

    @property
    def watches(self) -> bool:
        """Whether reports are of any interest."""
        return self.detector is not None or self.mode == "auto"

    @property
    def answers(self) -> bool:
        """Whether the policy is carried out: what never learns is never changed."""
        return self.mode != "never"

    def begin(self, drift: Drift) -> None:
        """Take in that the policy has really changed the model."""
        if self.policy.lasts is not None:
            self.begun = PolicyEnded(drift.index + self.policy.lasts, drift)

    def end(self) -> None:
        """Take in that this has been undone."""
        self.begun = None

    def set_mode(self, mode: str, index: int) -> list[Switch]:
        """Change the mode; ``index`` is that of the next mini-batch."""
        check_mode(mode)
        if not self.watches:  # until now no report has come
            self._order = InOrder(self._reorder, start=index)
            self._since = self._first = index
        if mode == "auto" and self.detector is None:
            self.detector = default_detector()
        self.mode = mode
        phase = PREDICTING if mode == "never" else TRAINING
        if mode == "auto":
            self.convergence.reset()
        if phase == self.phase:
            return []
        return [self._switch(phase, index, f"the mode was set to {mode}")]

    def observe(
        self, index: int, report: Report | None, submitted: int
    ) -> Iterator[Any]:
        """Take in a report; give what follows from it.

        Parameters
        ----------
        index
            Of its mini-batch.
        report
            None for a mini-batch that was refused.
        submitted
            The index of the next mini-batch: what is decided holds from there.

        Yields
        ------
        happening
            `Drift`, `Switch`, `PolicyEnded`, `Settled` or `Unwatched`.
        """
        for each in self._order.put(index, report):
            if each.index >= self._first:
                yield from self._follow(each, submitted)

    def state_dict(self, index: int) -> dict[str, Any]:
        """Copy the state as plain values, for a checkpoint.

        Reports that wait for an earlier one are not in it: copy it when every
        mini-batch has been reported.

        Parameters
        ----------
        index
            That of the next mini-batch. Places of the stream are counted from there, as
            another trainer may count anew.
        """
        lasting = self.begun and _moved(self.begun, -index)
        return {
            "mode": self.mode,
            "phase": self.phase,
            "detector": self.detector and self.detector.state_dict(),
            "watched": self._watch.name,
            "watched_with": dict(self._watch.settings),
            "convergence": self.convergence.state_dict(),
            "policy": type(self.policy).__name__,
            "lasting": lasting and dataclasses.asdict(lasting),
            "since": self._since - index,
            "newest": list(self._newest),
        }

    def load_state_dict(self, state: Mapping[str, Any], index: int) -> list[str]:
        """Go on where that was of which this is the `state_dict`.

        The mode is that of the state, which may have been set since the trainer was
        made (`set_mode` gives another, from there on); so is the detector that came
        with it. Policy and what is watched are
        functions, which no state can hold: give the same. Where another quantity is
        watched, the detector begins anew: what it knows is of the old one.

        Parameters
        ----------
        state
            What `state_dict` has returned.
        index
            That of the next mini-batch; those before it will not be reported.

        Returns
        -------
        notices
            What could not be taken over, in sentences.

        Raises
        ------
        CheckpointError
            If the state is that of another detector or convergence, of other
            parameters, or a policy lasts in it that is not this one's; this one is
            then as it was.
        """
        detector = self.detector
        try:
            mode = check_mode(state["mode"])
            phase, since = str(state["phase"]), index + int(state["since"])
            if state["detector"] is not None:
                # Without one of its own it was given the default by `set_mode`.
                detector = detector or _default_for(state["detector"])
                copy.deepcopy(detector).load_state_dict(state["detector"])
            copy.deepcopy(self.convergence).load_state_dict(state["convergence"])
            newest = [float(value) for value in state["newest"]]
            lasting = self._loaded(state["lasting"], state["policy"], index)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The state of the mode is none ({in_words(error)}); "
                "give what Modes.state_dict() has returned."
            ) from error
        # From here on nothing fails: it has been tried.
        notices = []
        if detector is not None and state["detector"] is not None:
            was = self._watch.as_saved(state)
            if was == self._watch:
                detector.load_state_dict(state["detector"])
            else:
                newest = []
                detector.reset()
                notices.append(
                    f"watch= is {self._watch.describe()} and was {was.describe()} "
                    f"when the checkpoint was saved: {type(detector).__name__} begins "
                    "anew, since what it knows is of the latter. Give the same to go "
                    "on with it."
                )
        self.convergence.load_state_dict(state["convergence"])
        self.detector = (
            default_detector() if mode == "auto" and not detector else (detector)
        )
        self.mode, self.phase, self._since = mode, phase, since
        self._newest = deque(newest, maxlen=self.convergence.epoch)
        self._lasting = self.begun = lasting
        self._first = index
        self._order = InOrder(self._reorder, start=index)
        # Snapshots are no part of a checkpoint: the first is due at once.
        self._snapshot = math.inf if self.policy.every is None else index
        return notices

    def _loaded(self, lasting: Any, policy: str, index: int) -> PolicyEnded | None:
        """What a policy has begun and is to be undone."""
        if lasting is None:
            return None
        if type(self.policy).__name__ != policy or self.policy.lasts is None:
            raise CheckpointError(
                f"The checkpoint was taken while {policy} lasted, which is to be "
                f"undone, and the policy is {type(self.policy).__name__}; restore with "
                "the on_drift= that it was saved with."
            )
        ended = PolicyEnded(int(lasting["index"]), Drift(**lasting["drift"]))
        return _moved(ended, index)

    def _follow(self, report: Report, submitted: int) -> Iterator[Any]:
        if self._lasting is not None and report.index >= self._lasting.index:
            yield self._ended(report.index)
        if self.mode == "auto" and self.phase == TRAINING:
            if report.index >= self._since:
                yield from self._train(report, submitted)
        elif self.detector is not None:
            yield from self._look(report, submitted)

    def _train(self, report: Report, submitted: int) -> Iterator[Any]:
        """See whether training in mode auto may end, or the stream drifts meanwhile."""
        try:
            self._newest.append(self._watch(report))
        except BaseException as error:  # said when it is to be looked at
            RaisedError.caught(error)
        settled = self.convergence.update(report.loss)
        if (rise := self.convergence.rise) is not None:
            # Other data is learned now, by a model that the policy may have changed.
            self.convergence.forget_epochs()
            yield from self._found(_drift(report, self.convergence, rise))
        if not settled:
            return
        if self._lasting is not None:
            yield self._ended(report.index)
        yield Settled(report.index)
        yield self._switch(PREDICTING, submitted, self._settled())
        self._prime()

    def _settled(self) -> str:
        """Say where the loss has settled; a model that has diverged settles, too."""
        convergence = self.convergence
        text = f"the loss has settled at {convergence.level:.4g}"
        if not convergence.rose:
            return text
        text += (
            f", above the {convergence.began:.4g} at which training began: it may have "
            "diverged; if so, lower the learning rate"
        )
        logger.warning("In mode auto %s", text)
        return text

    def _prime(self) -> None:
        """Show the detector what it is to compare with.

        With no past it would take the stream as it is from now on for the past: a
        drift that comes at once would never be found.
        """
        assert self.detector is not None
        values = list(self._newest)
        # In order, a loss that still falls at the end of training would be a change
        # for the better, with which a detector forgets what was before.
        random.Random(0).shuffle(values)
        for value in values:
            with contextlib.suppress(DriftError):
                self.detector.update(value)

    def _look(self, report: Report, submitted: int) -> Iterator[Any]:
        """Give the detector its value, and answer a drift."""
        if (yield from self._detects(report)):
            assert self.detector is not None
            shift = self.detector.shift
            yield from self._found(_drift(report, self.detector, shift))
            if self.mode == "auto":
                yield self._switch(TRAINING, submitted, "the stream has drifted")
        elif report.index >= self._snapshot:
            self._snapshot = report.index + (self.policy.every or math.inf)
            yield Settled(report.index)

    def _found(self, drift: Drift) -> Iterator[Any]:
        yield drift
        if self.answers:
            yield from self._plan_end(drift)

    def _plan_end(self, drift: Drift) -> Iterator[PolicyEnded]:
        """See that what a policy begins now is undone, once."""
        if self._lasting is not None:  # before it is begun again
            yield self._ended(drift.index)
        if self.policy.lasts is not None:
            self._lasting = PolicyEnded(drift.index + self.policy.lasts, drift)

    def _ended(self, index: int) -> PolicyEnded:
        assert self._lasting is not None
        drift, self._lasting = self._lasting.drift, None
        return PolicyEnded(index, drift)

    def _detects(self, report: Report) -> Generator[Any, None, bool]:
        assert self.detector is not None
        try:
            return self.detector.update(self._watch(report))
        except BaseException as failure:
            error = RaisedError.caught(failure)
            if not self._complained:  # once: every mini-batch would say the same
                self._complained = True
                why = in_words(error)
                unwatched = Unwatched(report.index, why)
                logger.warning(
                    "%s; others like it are skipped without a word",
                    unwatched.describe(),
                )
                yield unwatched
            return False

    def _switch(self, phase: str, index: int, why: str) -> Switch:
        self.phase = phase
        self._since = index
        self.convergence.reset()
        if phase == TRAINING:
            self._newest.clear()
        elif self.detector is not None:
            self.detector.reset()
        return Switch(index, phase, why)


def _drift(report: Report, found_by: Any, shift: Shift | None) -> Drift:
    nan = math.nan
    return Drift(
        report.time,
        report.index,
        type(found_by).__name__,
        shift.before if shift else nan,
        shift.after if shift else nan,
        shift.magnitude if shift else nan,
    )


def _moved(ended: PolicyEnded, by: int) -> PolicyEnded:
    """Count mini-batches from elsewhere."""
    drift = dataclasses.replace(ended.drift, index=ended.drift.index + by)
    return PolicyEnded(ended.index + by, drift)


def check_mode(mode: Any) -> str:
    """Return the mode if there is such a one.

    Raises
    ------
    ConfigurationError
        If there is not.
    """
    if mode not in MODES:
        raise ConfigurationError(
            f"mode={mode!r} was given; allowed are {', '.join(map(repr, MODES))}."
        )
    return str(mode)


def as_detector(given: Any, mode: str) -> Detector | None:
    """Make a detector of what a user may give: a detector, a name, or None.

    None is `default_detector` where the mode needs one, and so is ``"optwin"``.
    """
    if given is None:
        return default_detector() if mode == "auto" else None
    if isinstance(given, str):
        made = make(given)
        return default_detector() if isinstance(made, OPTWIN) else made
    if isinstance(given, Detector):
        return given
    kind = given if isinstance(given, type) else type(given)
    ours = _own(kind.__name__)
    said = "class" if kind is given else _full_name(kind)
    raise ConfigurationError(
        f"detector is a {said}; give a name such as {ours.lower()!r}, or a detector "
        f"such as tensair_dask.drift.{ours}()."
    )


def _own(name: str) -> str:
    """Find the detector of ours that has this name, or the one to begin with."""
    try:
        return type(make(name)).__name__
    except TensairError:
        return OPTWIN.__name__


def _full_name(kind: type) -> str:
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return module + kind.__qualname__


def default_detector() -> Detector:
    """OPTWIN, surer than its own default: a false alarm costs a training.

    A small network in mode auto, labels swapped three times, 16 runs: confidence 0.99
    raised 11 false alarms in 39,000 mini-batches that were predicted, and found swaps
    after 8 mini-batches; 0.998 raised none in 42,000, and took 11.
    """
    return OPTWIN(confidence=0.998)


def _default_for(state: Any) -> Detector:
    """Make the default detector for a state, where none was given."""
    detector = default_detector()
    kind = state["class"]
    if kind != type(detector).__name__:
        raise CheckpointError(
            f"The checkpoint holds the state of the detector {kind}, and detector= was "
            f"not given. Give the one that it was saved with, for example "
            f"detector={kind.lower()!r}."
        )
    return detector


def as_convergence(given: Any) -> Convergence:
    """Make of what a user may give a rule that has seen nothing: each trainer's own."""
    if given is None:
        return Convergence()
    if isinstance(given, Convergence):
        return given.fresh()
    raise ConfigurationError(
        f"convergence={given!r} was given; give for example "
        "tensair_dask.adaptation.Convergence(epoch=100, epochs=2, factor=0.02)."
    )


COLUMNS = tuple(field.name for field in dataclasses.fields(Drift))
