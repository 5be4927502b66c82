"""The learner: one model, its loss and its optimizer, and what one step does.

Knows torch, nothing of Dask: a replica runs one on its thread.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import math
import operator
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch

from tensair_dask._common.notices import Notices
from tensair_dask._wording import in_words
from tensair_dask.batches.batch import Group, rebuild, width
from tensair_dask.batches.dense import why_not_dense
from tensair_dask.errors import (
    BatchError,
    ForwardError,
    LossError,
    ModelError,
    NonFiniteError,
    OptimizerError,
    StepError,
    TensairError,
)
from tensair_dask.exchange.accumulator import Changes
from tensair_dask.exchange.arena import Arena
from tensair_dask.exchange.finite import all_finite
from tensair_dask.exchange.frozen import Frozen
from tensair_dask.exchange.gradients import Gradients
from tensair_dask.exchange.settings import Share
from tensair_dask.exchange.ties import Ties
from tensair_dask.exchange.wire import pack
from tensair_dask.replica.answers import Answer
from tensair_dask.replica.as_built import as_built, differing
from tensair_dask.replica.attributes import Attributes, Habits, OptimizerAttributes
from tensair_dask.replica.clipping import Clipping
from tensair_dask.replica.combinations import check_optimizers, check_settings, left_out
from tensair_dask.replica.counted import Counted, counted
from tensair_dask.replica.criterion import Criterion
from tensair_dask.replica.hidden_state import StepHooks, hidden_state
from tensair_dask.replica.model_state import ModelState, copied, named_plainly
from tensair_dask.replica.optimizer_memory import OptimizerMemory
from tensair_dask.replica.optimizers import Stepper, why_not_linear
from tensair_dask.replica.randomness import Drawing, seeded
from tensair_dask.replica.refusals import explain, of_backward, of_loss
from tensair_dask.replica.rollback import Rollback
from tensair_dask.replica.schedule import Schedule, has_schedule
from tensair_dask.replica.scoring import Scoring, Totals, map_tensors, shapes
from tensair_dask.replica.structure import (
    Groups,
    Parameters,
    attributes_of,
    describe,
    groups_of,
    reconcile,
)
from tensair_dask.replica.unsuitable import Claim, refuse_wrapped, warn_of_layers

__all__ = ["Learner", "Recipe", "Step", "to_tensors"]

_SEVERAL = (tuple, list, Mapping)
_ADD_UP = (
    "Add them up, with weights: return ce + 0.1 * penalty. To see each of them, give "
    "it as one of metrics=, too."
)
_REDUCE = "Reduce it, for example with loss.mean()."
_A_TENSOR = (
    "It is differentiated: return the tensor itself, and leave .item(), float() and "
    ".numpy() away."
)
_BACKWARD = (
    "The loss, or the model, has called backward() itself: its gradients would count "
    "twice. Leave that away: it is done with what the loss returns."
)

PARAMETERS_NOT_FINITE = (
    "the parameters of the model are not, since a step before. No mini-batch can be "
    "learned any more. Begin anew, or go on from a checkpoint of before "
    "(Trainer.restore), with a lower learning rate, scaled inputs or clip_gradients=; "
    "or give finite values with trainer.apply."
)

T = TypeVar("T")

# Steps from one close look at all parameters to the next; there is one, too, whenever
# peers' gradients are applied or something is published.
LOOK = 64

# The first steps, after each of which is looked whether the model wrote into its
# parameters; and values of each parameter that are compared then.
FIRST = 8
SAMPLE = 256

OptimizerFactory: TypeAlias = Callable[[Any], torch.optim.Optimizer]


@dataclass(slots=True)
class Recipe:
    """What a learner is built from; travels to the workers.

    Attributes
    ----------
    model
        Called without arguments, returns a `torch.nn.Module`.
    loss
        Called as ``loss(prediction, target)``, returns a scalar tensor.
    optimizer
        Called with the trainable parameters, returns a `torch.optim.Optimizer`; or
        two of the kind, ``"dense"`` and ``"sparse"``.
    metrics
        By name, ``(prediction, target) -> scalar`` or torchmetrics objects.
    share
        ``"gradient"`` or ``"update"``: what is published; None for gradients where
        these are exact, else updates.
    seed
        For the factory, so that all replicas begin with the same parameters.
    keep_predictions
        Whether steps return the predictions they were scored by.
    schedule
        What the learning rates follow; None if they stay as they are.
    clipping
        Of the gradients of each mini-batch; None for none.
    """

    model: Callable[[], torch.nn.Module]
    loss: Callable[[Any, Any], torch.Tensor]
    optimizer: OptimizerFactory | Mapping[str, OptimizerFactory]
    metrics: Mapping[str, Callable[[Any, Any], Any]]
    share: Share | None
    seed: int
    keep_predictions: bool
    schedule: Callable[[Any], Any] | None = None
    clipping: Clipping | None = None


@dataclass(slots=True)
class Step:
    """The outcome of learning one mini-batch, or of only scoring it."""

    loss: float
    metrics: list[float | None]
    samples: int
    seconds: float
    prediction: Any = None


class Learner:
    """Builds the model and learns mini-batches, one at a time.

    Belongs to one thread.

    Parameters
    ----------
    recipe
        What to build.
    device
        Where the model lives.

    Attributes
    ----------
    drawing
        A context for whatever may draw random numbers.
    notices
        What the user is to be told once; the thread passes it on.
    hidden_state
        What hooks of the optimizers keep that a `snapshot` does not hold, in words.
    share
        ``"gradient"`` or ``"update"``: what is published, and what peers publish.
    moves
        Whether calling the model may change its parameters.
    is_inexact
        Whether gradients are shared, and do not tell how the model moves, although it
        was left to the replicas to choose.

    Raises
    ------
    ModelError, OptimizerError
        If a factory raises or builds something else.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.device = device
        self.notices = Notices()
        self.drawing = Drawing()
        self._recipe = recipe
        self.model, ties = _build_model(recipe, device)
        refuse_wrapped(self.model)
        warn_of_layers(self.model, self.notices)
        self.arena = Arena(self.model, ties)
        self.claim = Claim(self.arena.parameters)
        tied = ties.ids
        self._frozen = Frozen(self.model, tied)
        self._as_built = as_built(self.model, tied)
        if ties.left:
            self.notices.say("ties", _left_behind(ties.left, device))
        if not self.arena.parameters:
            raise ModelError(
                f"{type(self.model).__name__} has no parameter that requires a "
                "gradient: there is nothing to train. Leave at least one unfrozen."
            )
        self._state = ModelState(self.model, device)
        self._state_was_checked = False
        self._looks = -1
        self._steps = 0
        self.optimizers = _build_optimizers(recipe, self.arena)
        self._memories = [OptimizerMemory(each) for each in self.optimizers]
        check_optimizers(self.optimizers, self.arena)
        check_settings(self.optimizers)
        self._tell_what_is_not_used()
        # Now: torch adds to the defaults of those that take over a state. And only what
        # its groups hold: one that wraps another may have defaults of its own.
        self._needed = [
            set(each.defaults).intersection(*each.param_groups)
            for each in self.optimizers
        ]
        self._kinds = _kinds(recipe, self.arena)
        self._built = self._described()
        self._attributes = attributes_of(self.model)
        self._undo: Callable[[], None] | None = None
        self._besides: list[str] = []
        self._answer = Answer()
        self.hidden_state = hidden_state(self.optimizers)
        self._schedule: Schedule | None = None
        # Whether `follow` is to be called.
        self.follows = recipe.schedule is not None
        if recipe.schedule is not None:
            self._schedule = Schedule(recipe.schedule, self.optimizers, self.notices)
        self.moves = _with_max_norm(self.model) is not None
        self.is_inexact = False
        self._differentiates = False
        self._settle()
        self.criterion = Criterion(recipe.loss, device, self.notices)
        # Until they know what changes from one mini-batch to the next.
        self._learning_habits: list[Any] = [
            self.criterion,
            Habits.of_model(self.model, self.notices, tied),
            Habits.of_generators(self.model, self.notices),
        ]
        self._score = Scoring(recipe.metrics, self.notices, device)
        if not self._stepper.is_plain:
            self._see_that_it_steps()
        # The last mini-batch that was learned, to tell users what is allowed.
        self.learned_kind: tuple[Any, ...] | None = None

    @property
    def metric_names(self) -> list[str]:
        """Names of the scores, in the order of ``Step.metrics``; more may come."""
        return self._score.names

    def _tell_what_is_not_used(self) -> None:
        if names := left_out(self.model, self.optimizers):
            self.notices.say(
                "left out",
                f"The optimizer holds no {_some(names)}: what is not frozen, and in no "
                "group, is not trained. Freeze it with requires_grad_(False) in the "
                "model factory, or give it to the optimizer.",
            )
        given = self._recipe.optimizer
        kinds = {"dense": self.arena.dense, "sparse": self.arena.tables}
        for kind in given if isinstance(given, Mapping) else ():
            if not kinds[kind]:
                self.notices.say(
                    f"unused {kind}",
                    f"optimizer[{kind!r}] is not used: the model has no {kind} "
                    "parameters. Those are sparse that are the weights of embeddings "
                    "made with sparse=True.",
                )

    def learn(self, x: Any, y: Any, samples: int) -> tuple[Step, Changes]:
        """Score one mini-batch, then learn from it.

        Parameters
        ----------
        x, y
            Tensors on the learner's device, or tuples or dicts of them.
        samples
            Rows of the mini-batch.

        Returns
        -------
        step, changes
            ``changes`` are the gradients.

        Raises
        ------
        BatchError
            If the mini-batch cannot be learned; the parameters are then unchanged.
        """
        start = time.perf_counter()
        parameters = self.arena.parameters
        writes = self._stepper.writes()
        before = self._some_values()
        stepping = False
        try:
            prediction, loss, value = self._assess(x, y)
            metrics = self._score(prediction, y)
            kept = self._kept(prediction)
            for parameter in parameters:
                if parameter.grad is not None:
                    raise LossError(_BACKWARD)
            try:
                loss.backward()
            except RuntimeError as error:
                raise of_backward(error, prediction, y) from error
            changed = self._check_parameters()
            self._check_gradients(value)
            if self._recipe.clipping is not None:
                self._recipe.clipping.clip(parameters)
            changed = changed or self._stepper.writes() != writes
            if changed or (before is not None and self._differ(before)):
                self._saw_it_move()
            if not self._state_was_checked:
                self._check_state()
            if self._learning_habits:
                self._look_at_habits()
            # Last of all: what raises behind it would refuse what is learned.
            stepping = True
            changes = self._stepper.step_locally()
        except BaseException:
            # What the model itself has changed by then stays, and is to be shared.
            if not stepping and self._stepper.writes() != writes:
                self._saw_it_move()
            raise
        finally:
            for parameter in parameters:
                parameter.grad = None
        return self._told(start, value, metrics, samples, kept), changes

    def gradients(self, x: Any, y: Any) -> list[torch.Tensor | None]:
        """Differentiate by the dense parameters, and learn nothing of it.

        In evaluation mode, so that batch norm does not count the mini-batch.

        Parameters
        ----------
        x, y
            As in `learn`.

        Returns
        -------
        gradients
            As a step would get them, clipped; in the order of ``arena.dense``.

        Raises
        ------
        Exception
            What the model or the loss raises.
        """
        parameters = self.arena.dense
        with evaluating(self.model, *self.criterion.modules):
            loss = self.criterion(self.forward(x), y)
            given = torch.autograd.grad(loss, parameters, allow_unused=True)
        if self._recipe.clipping is None:
            return list(given)
        try:
            for parameter, gradient in zip(parameters, given, strict=True):
                parameter.grad = gradient
            self._recipe.clipping.clip(parameters)
            return [parameter.grad for parameter in parameters]
        finally:
            for parameter in parameters:
                parameter.grad = None

    def _look_at_habits(self) -> None:
        """Tell, by the first steps, what changes that nobody saves."""
        for habits in self._learning_habits:
            habits.look()
        self._learning_habits = [
            each for each in self._learning_habits if not each.knows
        ]

    def _check_state(self) -> None:
        """Tell at the first step what would come out at the first checkpoint."""
        self._state_was_checked = True
        try:
            state = self._state.copy()
            self._state.check(state)
            pack(state)
        except BaseException as error:
            told = error if isinstance(error, TensairError) else in_words(error)
            self.notices.say(
                "state",
                "The state of the model cannot be taken over: no checkpoint can be "
                f"saved, and no replica can join. {told}",
            )

    @property
    def rates(self) -> list[float]:
        """The learning rates of the groups of all optimizers."""
        groups = [group for each in self.optimizers for group in each.param_groups]
        return [float(group["lr"]) for group in groups]

    def follow(self, version: int) -> None:
        """Set the learning rates to where the schedule has them; call it before steps.

        Parameters
        ----------
        version
            Gradients that the model holds, its own and its peers'.

        Raises
        ------
        OptimizerError
            If the schedule raises.
        """
        if self._schedule is not None:
            self._schedule.follow(version)

    def score(self, x: Any, y: Any, samples: int) -> Step:
        """Score one mini-batch in evaluation mode, and learn nothing from it.

        Parameters and errors are those of `learn`.
        """
        start = time.perf_counter()
        with evaluating(self.model, *self.criterion.modules):
            prediction, _, value = self.ungraded(lambda: self._assess(x, y))
            with torch.no_grad():
                metrics = self._score(prediction, y)
            kept = self._kept(prediction)
        return self._told(start, value, metrics, samples, kept)

    def ungraded(self, call: Callable[[], T]) -> T:
        """Call model or loss for no step, and so without recording gradients.

        But some differentiate themselves, by their inputs say (a penalty on that
        gradient, forces of an energy): these are found when they fail, and then called
        with gradients.
        """
        if not self._differentiates:
            try:
                with torch.no_grad():
                    return call()
            except BatchError as error:
                if "does not require grad" not in str(error.__cause__):
                    raise
        with torch.enable_grad():
            answer = call()
        self._differentiates = True
        return answer

    def _assess(self, x: Any, y: Any) -> tuple[Any, torch.Tensor, float]:
        """Predict, and compare with the target: prediction, loss, and its value."""
        prediction = self.forward(x)
        loss = self._loss(prediction, y)
        value = loss.item()
        if value - value != 0.0:  # NaN or infinite
            raise NonFiniteError(
                f"The loss is {value}, although the mini-batch is finite: "
                f"{self._why_not_finite(prediction, y)}"
            )
        return prediction, loss, value

    def _why_not_finite(self, prediction: Any, y: Any) -> str:
        if not self.is_finite():
            return PARAMETERS_NOT_FINITE
        _, seen = counted(lambda: self.criterion(prediction, y))
        if seen.counts is False:
            return (
                "none of its targets counts, since the loss leaves them out (its "
                "ignore_index), and the mean of nothing is no number. Leave such "
                "mini-batches out of the stream, or make them larger."
            )
        if isinstance(prediction, torch.Tensor) and all_finite([prediction]):
            return (
                "and so is the prediction. The loss overflows on these, has no value "
                "there (as a logarithm at 0), or is a mean of nothing (as where a mask "
                "leaves all out); or training has diverged. Lower the learning rate, "
                "scale the inputs, or add a small number under the logarithm."
            )
        return (
            "the model or the loss overflows on it, or training has diverged. Lower "
            "the learning rate, or scale the inputs."
        )

    def _check_gradients(self, loss: float) -> None:
        gradients = [
            gradient
            for each in self.arena.parameters
            if (gradient := each.grad) is not None
        ]
        if not all_finite(gradients):
            raise NonFiniteError(
                f"The gradient is not finite, although the loss is ({loss}): the loss "
                "has no derivative there, as a square root has none at 0, or its "
                "derivative overflows. Add a small number under the root, for example, "
                "or scale the inputs."
            )

    def _told(
        self,
        start: float,
        loss: float,
        metrics: list[float | None],
        samples: int,
        kept: Any,
    ) -> Step:
        return Step(loss, metrics, samples, time.perf_counter() - start, kept)

    def _kept(self, prediction: Any) -> Any:
        """Copy a prediction for its report: an array, or packed if it is of several."""
        if not self._recipe.keep_predictions:
            return None
        try:
            arrays = to_arrays(prediction)
            return arrays if type(arrays) is np.ndarray else pack(arrays, typed=True)
        except BaseException as error:  # watching does not decide what is learned
            self.notices.say(
                f"prediction kept {type(error).__name__}",
                f"The model returned {shapes(prediction)}, of which reports cannot "
                f"carry a copy ({in_words(error)}): report.prediction is "
                "None. The mini-batch is learned all the same.",
            )
            return None

    def change(
        self,
        function: Callable[[Any, Sequence[Any]], Any],
        check: Callable[[], None] = lambda: None,
    ) -> bool:
        """Call a function with model and optimizers; it may change both.

        Parameters
        ----------
        function
            It may put other parameters in the place of those that are trained, add
            some, freeze and thaw some: the optimizers follow.
        check
            Called if it did, to see whether the new ones will do.

        Returns
        -------
        restructured
            Whether it did. The change can be undone, until it is kept.

        Raises
        ------
        ModelError, OptimizerError
            If nothing is left to train, if a new parameter has no place in the
            optimizers, or if hooks were attached to these, which cannot be copied.
        Exception
            What it raises. Model and optimizers are then as they were.
        """
        hooks = StepHooks(self.optimizers)
        settings = OptimizerAttributes(self.optimizers)
        attributes = Attributes(self.model, self.arena.ties.ids)
        before = Rollback(self.model, self.optimizers)
        undo = self._undoing(before, attributes, settings)
        held = _held(self.optimizers)
        was = self._described()
        was_finite = self.is_finite()
        try:
            given = list(self.optimizers)
            returned = function(self.model, given)
            _check_answer(returned, self.model, self.optimizers)
            _check_kept(given, self.optimizers)
            known = [*self.model.modules(), *self.optimizers, given]
            self._answer = Answer.of(returned, known, to_arrays)
            check_settings(self.optimizers)
            hooks.check()
            settings.check()
            _check_held(held, self.optimizers, self.model)
            restructured = self._described() != was or not self._is_in_place()
            if returned is None and not restructured and not before.is_needed():
                self._answer = Answer(idle=True)
            if restructured:
                self._besides = attributes.besides()
                self._restructure(*was)
                check()
            else:
                attributes.check()
                if self._schedule is not None:
                    self._schedule.keep_changes()
            if was_finite and not self.is_finite():
                raise ModelError(
                    "The function has made parameters NaN or infinite. The model is "
                    "as it was; give finite values."
                )
            self._settle()
            if restructured and not self._stepper.is_plain:
                self._see_that_it_steps()
            self._frozen.begin()
        except BaseException:
            self._besides = []
            undo()
            raise
        finally:
            # Those of its own backward() are no gradients of a mini-batch.
            for parameter in self.model.parameters():
                parameter.grad = None
        self._undo = undo
        return restructured

    def take_answer(self) -> Answer:
        """Give what the function of the last `change` has returned, once."""
        answer, self._answer = self._answer, Answer()
        return answer

    def undo_change(self) -> None:
        """Undo the last `change`, if it was not kept."""
        undo, self._undo = self._undo, None
        self._besides = []
        if undo is not None:
            undo()

    def keep_change(self) -> None:
        """Let go of what `undo_change` would need: a copy of all there was."""
        self._undo = None
        self._tell_of_new_layers()
        besides, self._besides = self._besides, []
        if besides:
            told = _some(besides)
            self.notices.say(f"besides {told}", _not_saved(told))

    def _undoing(
        self, before: Rollback, attributes: Attributes, settings: OptimizerAttributes
    ) -> Callable[[], None]:
        """Give what puts everything back to where it is now."""
        arena, share = self.arena, self.share

        def undo() -> None:
            attributes.restore()
            settings.restore()
            before.restore()
            arena.ties.follow()
            self._claim_parameters(arena)
            self._state.grown()
            if self._schedule is not None:
                self._schedule.begin()
            self._settle(share)

        return undo

    def _described(self) -> tuple[Parameters, Groups]:
        return describe(self.model), groups_of(self.model, self.optimizers)

    def _is_in_place(self) -> bool:
        """Whether the parameters are the same objects still; values are brought back.

        One that was put in the place of another begins without a state of the
        optimizer, and so is a change of structure.
        """
        known = {id(each) for each in self.arena.parameters}
        if any(
            each.requires_grad and id(each) not in known
            for each in self.model.parameters()
        ):
            return False
        if not self.arena.homes.hold():
            self.arena.homes.mend()
        return True

    def _restructure(self, was: Parameters, were_in: Groups) -> None:
        """Let optimizers and arena follow; what is kept keeps its state."""
        self.model.to(self.device)
        ties = self._same_ties()
        held = {id(each) for each in self.arena.parameters}
        trained = {id(each) for each in self.model.parameters() if each.requires_grad}
        moved = ties.moved_out(held, trained)
        for parameter in self.model.parameters():
            parameter.grad = None
            if id(parameter) in held.difference(trained, moved):
                parameter.data = parameter.data.clone()  # or it would keep the buffer
        reconcile(self.model, self.optimizers, was, were_in, self._kinds)
        self._claim_parameters(Arena(self.model, ties))
        if not self.arena.parameters:
            raise ModelError(
                "The function has frozen all parameters: nothing would be trained. "
                "Leave one as it is, or call trainer.set_mode('never')."
            )
        check_optimizers(self.optimizers, self.arena)
        self._state.grown()
        self._state_was_checked = False
        self.moves = self.moves or _with_max_norm(self.model) is not None
        if self._schedule is not None:
            self._schedule.begin()

    def _same_ties(self) -> Ties:
        """Find what shares memory, and see that it is what the factory has tied.

        Raises
        ------
        ModelError
            If not: a model that is built as before could not take over checkpoints.
        """
        ties = Ties(self.model)
        others = ties.described ^ self.arena.ties.described
        if others:
            names = sorted({name for each in others for name, _ in each})
            raise ModelError(
                f"The function has tied {_some(names)}, or has cut a tie between them: "
                "these are tensors that share memory, as after b.weight.data = "
                "a.weight.data. Only the model factory can do that; but one parameter "
                "may be used in both places: model.b.weight = model.a.weight."
            )
        return ties

    def _tell_of_new_layers(self) -> None:
        """Say what a checkpoint can be restored with, if that is not what was given."""
        new = [name for name in describe(self.model) if name not in self._built[0]]
        if new:
            self.notices.say(
                "new layers",
                f"The model has {_some(new)} now, for which its factory builds no "
                "layer. Checkpoints hold them, and can be restored only with a model= "
                "that builds them: one, for example, that calls the same function.",
            )

    def _claim_parameters(self, arena: Arena) -> None:
        self.claim.release()
        self.arena = arena
        self.claim = Claim(arena.parameters)
        self._frozen = Frozen(self.model, arena.ties.ids)

    def structure(self) -> dict[str, Any]:
        """Tell how parameters and groups differ from what the factory has built.

        Returns
        -------
        structure
            Arguments of `reshape`; empty if they do not differ.
        """
        parameters, groups = self._described()
        if (parameters, groups) == self._built:
            return {}
        return {
            "parameters": _others(parameters, self._built[0]),
            "groups": groups,
            "attributes": _others(attributes_of(self.model), self._attributes),
        }

    def layout(self) -> str:
        """Tell all on which replicas must agree to exchange gradients, in order."""
        return json.dumps(self._described())

    def _settle(self, share: Share | None = None) -> None:
        """See how to step, and what to share, with the optimizers as they are now.

        Parameters
        ----------
        share
            What a peer shares whose model was taken over; None to decide it here.
        """
        self._stepper = Stepper(self.optimizers, self.arena)
        reason = self._why_inexact()
        asked = self._recipe.share
        if share is None:
            share = asked or ("gradient" if reason is None else "update")
        self.share: Share = share
        self.is_inexact = False
        if asked == "gradient" and reason is not None:
            self.notices.say(
                "share",
                f"share='gradient' was given, and {reason}: each replica makes its own "
                "step of its peers' gradients, and these steps differ. So the replicas "
                "drift apart, by as much as they learn in a few hundred mini-batches, "
                "and learn something else than one would alone. Leave share out, or "
                "give share='update': it sends what the steps have changed, which "
                "they agree on, and takes one more copy of the parameters.",
            )

    def _why_inexact(self) -> str | None:
        """Say why gradients do not tell how the model moves; None if they do."""
        for optimizer in self.optimizers:
            if reason := why_not_linear(optimizer):
                return reason
        if self._schedule is not None:
            return "the rates follow a schedule, which replicas follow at other moments"
        if rounded := {
            str(each.dtype).removeprefix("torch.")
            for each in self.arena.parameters
            if each.dtype.itemsize < 4
        }:
            kinds = " and ".join(sorted(rounded))
            return f"{kinds} parameters are rounded, by each replica in another order"
        if (name := _with_max_norm(self.model)) is not None:
            return f"{name or 'the model'} has max_norm, which changes rows in forward"
        return "the model changes its own parameters in forward" if self.moves else None

    def _some_values(self) -> list[torch.Tensor] | None:
        """Copy a few values of each parameter, at the first steps and now and then.

        torch does not count what is written through ``parameter.data``.
        """
        self._steps += 1
        if self.moves or (self._steps > FIRST and self._steps % LOOK):
            return None
        return [
            each.detach().reshape(-1)[:: max(1, each.numel() // SAMPLE)].clone()
            for each in self.arena.parameters
        ]

    def _differ(self, before: list[torch.Tensor]) -> bool:
        return not all(
            torch.equal(
                was, each.detach().reshape(-1)[:: max(1, each.numel() // SAMPLE)]
            )
            for was, each in zip(before, self.arena.parameters, strict=True)
        )

    def _saw_it_move(self) -> None:
        """Take note that the model changes its parameters besides the steps."""
        if not self.moves and self.share == "update":
            self.notices.say(
                "moves",
                "The model changes its own parameters when it is called. Replicas add "
                "up what each of them changes: right where values are kept within "
                "bounds, wrong where each sets the same new value, such as an "
                "initialisation from the first mini-batch, which then counts once a "
                "replica. Set such values in the model factory, or in buffers.",
            )
        self.moves = True
        if self.share == "gradient":
            self._settle(self.share)
            self.is_inexact = self._recipe.share is None

    def share_updates(self) -> None:
        """Share updates from now on; all peers must, too."""
        self._settle("update")

    def apply(self, gradients: Gradients) -> None:
        """Apply the sum of other replicas' gradients (or updates).

        Raises
        ------
        StepError
            If the optimizer does; nothing was changed.
        """
        self.keep_whole()
        try:
            self._stepper.apply(self.share, gradients)
        except StepError as error:
            self.notices.say(
                "step of peers",
                f"Gradients of peers could not be applied. {error} It is tried again; "
                "a replica that cannot apply them takes over the model of a peer.",
            )
            raise

    def keep_whole(self) -> None:
        """See that the parameters lie where the exchange looks for them.

        Call it before the exchange reads or changes them.
        """
        try:
            self._bring_back()
        except ModelError as error:
            self.notices.say(
                "restructured",
                f"The model has changed its parameters while it answered: {error} It "
                "has those that it had.",
            )

    def _check_parameters(self) -> bool:
        self._looks += 1
        if self._frozen.eager or not self._looks % LOOK:
            self._look_at_frozen()
        if self._looks % LOOK and self.arena.homes.seem_to_hold():
            return False
        try:
            return self._bring_back()
        except ModelError as error:
            self._looks = -1  # it may do so each time
            raise ForwardError(
                f"The model has changed its parameters while it ran: {error}"
            ) from error

    def _look_at_frozen(self) -> None:
        if written := self._frozen.written():
            self.notices.say("frozen", _each_its_own(written))

    def _bring_back(self) -> bool:
        """Bring back parameters that lie elsewhere; whether they have other values."""
        homes = self.arena.homes
        if homes.hold():
            return False
        moved, thawed = homes.mend()
        if moved:
            self.notices.say("moved", _moved(moved))
        if thawed:
            self.notices.say("thawed", _thawed(thawed))
        return homes.changed

    def forward(self, x: Any) -> Any:
        """Call the model: a tuple as positional, a dict as keyword arguments."""
        try:
            if isinstance(x, tuple):
                return self.model(*x)
            if isinstance(x, dict):
                return self.model(**x)
            return self.model(x)
        except BatchError:
            raise
        except BaseException as error:
            raise ForwardError(f"The model raised {in_words(error)}") from error

    def predict(self, x: Any) -> Any:
        """Predict in evaluation mode; returns copies of the tensors on the CPU.

        Raises
        ------
        ModelError
            If one of them is not dense.
        """

        def to_cpu(tensor: torch.Tensor) -> torch.Tensor:
            if why := why_not_dense(tensor, "it"):
                raise ModelError(f"The model gives {why}")
            answer = tensor.detach().cpu()
            # It may be a parameter, a state that the model keeps, or what it was given:
            # neither is the caller's, and it may be read only when a step is under way.
            return answer.clone() if answer.device == tensor.device else answer

        with self.drawing, evaluating(self.model):
            answer = self.ungraded(lambda: self.forward(x))
            return map_tensors(to_cpu, answer)

    def _loss(self, prediction: Any, y: Any) -> torch.Tensor:
        try:
            loss = self.criterion(prediction, y)
        except BaseException as error:
            raise of_loss(error, prediction, y) from error
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise LossError(
                f"The loss returned {shapes(loss)}; a scalar tensor is needed. "
                + _advice_on_loss(loss)
            )
        return loss

    def evaluation(self) -> Evaluation:
        """Begin an evaluation on held-out mini-batches."""
        return Evaluation(self, self._score.totals())

    def state_dict(self) -> dict[str, Any]:
        """Copy the model's parameters and buffers to the CPU."""
        return copied(self.model.state_dict())

    def snapshot(self) -> dict[str, Any]:
        """Copy all that a peer needs to go on from here.

        Raises
        ------
        ModelError
            If a model that has just been built could not take it over.
        """
        state = self._state.copy()
        self._state.check(state)
        return {
            "model": state,
            "made": self._state.made(),
            "structure": self.structure(),
            "optimizers": [
                copy.deepcopy(optimizer.state_dict()) for optimizer in self.optimizers
            ],
            "attributes": [each.take() for each in self._memories],
            "share": self.share,
            "as_built": self._as_built,
        }

    def compare_built(self, theirs: Mapping[str, Any], of_checkpoint: bool) -> None:
        """Say what the factory has set here to other values than elsewhere.

        Parameters
        ----------
        theirs
            As in a `snapshot`.
        of_checkpoint
            Whether it is of an earlier run. Plain numbers may have been changed since,
            on purpose.
        """
        if names := differing(self._as_built, theirs, only_arrays=of_checkpoint):
            key = "built otherwise before" if of_checkpoint else "built otherwise"
            self.notices.say(key, _built_otherwise(names, of_checkpoint))

    def say_what_is_hidden(self) -> None:
        """Tell what a copy for a checkpoint or a newcomer does not hold."""
        if self.hidden_state is not None:
            self.notices.say(
                "hidden-state",
                f"Step hooks of the optimizer keep a state of their own: "
                f"{self.hidden_state}. It is neither in checkpoints nor copied to "
                "replicas that join: there it begins anew. Give schedule= for learning "
                "rates and clip_gradients= for clipping; or let the optimizer save it, "
                "with register_state_dict_post_hook and "
                "register_load_state_dict_pre_hook.",
            )
        if left := [name for each in self._memories for name in each.left()]:
            self.notices.say(
                "optimizer memory",
                f"The optimizer keeps {_some(left)} in attributes. Tensors, arrays, "
                "numbers and texts, in lists, dicts and objects, are saved and copied "
                "to replicas that join; that is not: there it is as it was built. If "
                "it matters, keep it in optimizer.state[parameter], or as such values.",
            )

    def is_finite(self) -> bool:
        """Whether no trained parameter is NaN or infinite."""
        with torch.no_grad():
            return all_finite([*self.arena.buffers, *self.arena.tables])

    def load(
        self,
        state: Mapping[str, Any],
        optimizers: Sequence[Any],
        share: Share | None = None,
        made: Collection[str] = (),
        attributes: Sequence[Any] = (),
    ) -> None:
        """Take over a peer's parameters, buffers and optimizer state.

        Parameters
        ----------
        state, optimizers, made, attributes
            As in a `snapshot`; a checkpoint of before they were kept has no
            attributes.
        share
            What the peer shares; None for what is right for this state.

        Raises
        ------
        ModelError
            If a buffer has no place here.
        OptimizerError
            If the state is of an optimizer of another kind, which torch takes in
            without a word. What is here is then half taken over.
        Exception
            Of torch, if something else does not fit; the same holds.
        """
        self._state.put(state, made, self.arena.ties)
        self._frozen.begin()
        for optimizer, needed, its_state in zip(
            self.optimizers, self._needed, optimizers, strict=True
        ):
            optimizer.load_state_dict(dict(its_state))
            _check_groups(optimizer, needed)
        self._put_attributes(attributes)
        if self._schedule is not None:
            self._schedule.begin()
        elif has_schedule(self.optimizers):
            self.notices.say(
                "no-schedule",
                "The optimizer state is of a run with a schedule, and none was given: "
                "the learning rates stay where that run has left them. Give the same "
                "schedule= again, or set them with trainer.apply.",
            )
        self._settle(share)

    def _put_attributes(self, attributes: Sequence[Any]) -> None:
        left = [
            name
            for memory, its in zip(self._memories, attributes, strict=False)
            for name in memory.put(its)
        ]
        if left:
            self.notices.say(
                "optimizer memory here",
                f"The optimizer has kept {_some(left)} in attributes, objects that "
                "it makes while it steps. Only those that are there when it is built "
                "can be filled here: build them in its __init__, or keep tensors and "
                "numbers in lists and dicts.",
            )

    def settings(self) -> list[dict[str, Any]]:
        """Settings of the groups of the optimizers, but for what a schedule sets."""
        leave_out = {"params", "param_names"}
        if self._schedule is not None or self._recipe.schedule is not None:
            leave_out |= {"lr", "initial_lr"}
        return [
            {name: value for name, value in group.items() if name not in leave_out}
            for optimizer in self.optimizers
            for group in optimizer.param_groups
        ]

    def compare_settings(self, given: list[dict[str, Any]]) -> None:
        """Say which settings were given and do not hold, after a state was loaded."""
        differ = {
            name: f"{name}={now[name]!r} (given: {was[name]!r})"
            for was, now in zip(given, self.settings(), strict=False)
            for name in was
            if name in now and str(was[name]) != str(now[name])
        }
        if differ:
            self.notices.say(
                "settings",
                "The settings of the optimizer are those of the checkpoint, as torch "
                f"has it: {', '.join(differ.values())}. To change them, use "
                "trainer.apply(lambda model, optimizers: "
                "optimizers[0].param_groups[0].update(lr=...)).",
            )

    def try_step(self) -> None:
        """See that the optimizers can step with the state that they have taken over.

        Some of another kind have the same settings (Adamax those of Adam), and miss
        what they keep of each parameter only when they step. Nothing is changed.

        Raises
        ------
        OptimizerError
            If one cannot.
        """
        try:
            self._try_step()
        except BaseException as error:
            kinds = ", ".join(type(each).__name__ for each in self.optimizers)
            raise OptimizerError(
                f"The optimizer state is not of {kinds}, which cannot step with it "
                f"({in_words(error)}). Load it into the optimizer that "
                "it was saved from."
            ) from error

    def _see_that_it_steps(self) -> None:
        """Refuse, at the start, optimizers that would refuse every mini-batch."""
        try:
            self._try_step()
        except BaseException as error:
            kinds = ", ".join(type(each).__name__ for each in self.optimizers)
            raise OptimizerError(
                f"{kinds} cannot step with this model ({in_words(error)}). "
                f"{_advice(self.arena)}"
            ) from error

    def _try_step(self) -> None:
        """Step with gradients of zeros, of the kinds that the model will give; undone.

        Raises
        ------
        Exception
            What an optimizer raises.
        """
        arena = self.arena
        tied = _parameters_of_layers(self.model)
        try:
            for parameter in arena.dense:
                parameter.grad = torch.zeros_like(parameter)
            for table in arena.tables:
                zeros = torch.zeros_like(table) if id(table) in tied else _no_row(table)
                table.grad = zeros
            self._stepper.try_step()
        finally:
            for parameter in arena.parameters:
                parameter.grad = None
            self._settle(self.share)

    def refusal(self, error: BatchError, group: Group, samples: int) -> BatchError:
        """Say what was given and what is allowed; see `explain`."""
        return explain(error, group.kind, samples, self.learned_kind, self.model)


class Evaluation:
    """Loss and metrics over held-out mini-batches, in evaluation mode."""

    def __init__(self, learner: Learner, totals: Totals) -> None:
        self._learner = learner
        self._samples = 0
        self._loss = 0.0
        self._weight = 0.0
        self._not_finite = 0
        self._batches = 0
        self._totals = totals

    def add(self, x: Any, y: Any, samples: int) -> None:
        """Score one mini-batch."""
        learner = self._learner
        modules = learner.model, *learner.criterion.modules
        with learner.drawing, evaluating(*modules):
            prediction, loss, seen = learner.ungraded(lambda: self._compare(x, y))
            self._take(loss, seen, samples)
            with torch.no_grad():
                self._totals.add(
                    map_tensors(torch.Tensor.detach, prediction), y, samples
                )
        self._samples += samples

    def _compare(self, x: Any, y: Any) -> tuple[Any, float, Counted]:
        prediction = self._learner.forward(x)
        loss, seen = counted(lambda: self._learner._loss(prediction, y))
        return prediction, loss.item(), seen

    def _take(self, loss: float, seen: Counted, samples: int) -> None:
        self._batches += 1
        if seen.counts is False and math.isnan(loss):
            return  # the mean of nothing
        self._not_finite += not math.isfinite(loss)
        if seen.sums:
            self._loss += loss
            self._weight = 1.0
            return
        weight = samples if seen.weight is None else seen.weight
        if seen.weight is None and seen.leaves_out:
            self._learner.notices.say(
                "evaluate leaves out",
                "The loss leaves targets out (its ignore_index), and is more than the "
                "mean over the others: evaluate weights the losses of mini-batches by "
                "all of their samples. Where that matters, evaluate one mini-batch, or "
                "mini-batches in which as many targets count.",
            )
        self._loss += weight * loss
        self._weight += weight

    def result(self) -> dict[str, float]:
        """Means weighted by what counts; torchmetrics objects give their own value."""
        if self._not_finite:
            self._learner.notices.say(
                "evaluate not finite",
                f"The loss of {self._not_finite} of the {self._batches} mini-batches "
                "that evaluate was given is NaN or infinite, and so is the mean.",
            )
        # The mean of nothing is no number.
        result = {
            "loss": self._loss / (self._weight or math.nan),
            "samples": float(self._samples),
        }
        return result | self._totals.result()


def _advice_on_loss(returned: Any) -> str:
    """Advise who has a loss that returns something else than one number's tensor."""
    if isinstance(returned, _SEVERAL):
        return _ADD_UP
    if isinstance(returned, (int, float, np.number, np.ndarray)):
        return _A_TENSOR
    return _REDUCE


def _build_model(recipe: Recipe, device: torch.device) -> tuple[torch.nn.Module, Ties]:
    """Build the model, and find its ties before it is moved: that would cut them."""
    with seeded(recipe.seed):
        try:
            model = recipe.model()
        except BaseException as error:
            raise ModelError(
                f"The model factory raised {in_words(error)}. It is "
                "called without arguments on the worker and must return a "
                "torch.nn.Module."
            ) from error
    if not isinstance(model, torch.nn.Module):
        raise ModelError(
            f"The model factory returned {type(model).__name__}; it must return a "
            "torch.nn.Module. Give the class or a function that builds the model, "
            "for example model=lambda: Net(hidden=64)."
        )
    ties = Ties(model)
    try:
        return model.to(device), ties
    except Exception as error:
        raise ModelError(
            f"The model cannot be moved to {device}: {in_words(error)}. The factory "
            "must build it with its values, not on the device 'meta' for example."
        ) from error


def _check_answer(
    answer: Any, model: torch.nn.Module, optimizers: Sequence[Any]
) -> None:
    """Refuse what a function returns as if anybody took it."""
    if inspect.isawaitable(answer) or inspect.isgenerator(answer):
        if not isinstance(answer, asyncio.Future):
            answer.close()  # type: ignore[union-attr]
        raise ModelError(
            "The function is a coroutine or a generator function, of which nobody "
            "awaits or takes anything: nothing of it was run. Give an ordinary "
            "function (model, optimizers)."
        )
    if isinstance(answer, torch.nn.Module) and all(
        answer is not each for each in model.modules()
    ):
        raise ModelError(
            f"The function returned another module ({type(answer).__name__}), which "
            "does not take the place of the model. Change the model in place, for "
            "example with model.load_state_dict(other.state_dict()) or "
            "model.head = torch.nn.Linear(8, 4)."
        )
    several = answer if isinstance(answer, (tuple, list)) else (answer,)
    for each in several:
        if isinstance(each, torch.optim.Optimizer) and each not in optimizers:
            raise OptimizerError(
                f"The function returned another optimizer ({type(each).__name__}), "
                f"which does not take the place of {type(optimizers[0]).__name__}. "
                "Change settings in optimizers[0].param_groups; for an optimizer of "
                "another kind save the model, and load it into that of another "
                "trainer."
            )


def _check_kept(given: Sequence[Any], optimizers: Sequence[Any]) -> None:
    if len(given) == len(optimizers) and all(map(operator.is_, given, optimizers)):
        return
    raise OptimizerError(
        "The function has put other optimizers in the place of those that step the "
        "model. Change their settings, in optimizers[0].param_groups; for an optimizer "
        "of another kind save the model, and load it into that of another trainer."
    )


def _held(optimizers: Sequence[torch.optim.Optimizer]) -> list[torch.nn.Parameter]:
    return [
        parameter
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]


def _check_held(
    held: Sequence[torch.nn.Parameter],
    optimizers: Sequence[torch.optim.Optimizer],
    model: torch.nn.Module,
) -> None:
    """Refuse to take what is trained out of the optimizers, and to leave it so."""
    now = set(map(id, _held(optimizers)))
    names = {id(each): name for name, each in named_plainly(model).items()}
    taken = [
        names[id(each)]
        for each in held
        if each.requires_grad and id(each) in names and id(each) not in now
    ]
    if taken:
        raise OptimizerError(
            f"The function has taken {_some(taken)} out of the groups of the "
            "optimizer, and left it in the model. If it is not to be trained any "
            "more, freeze it: model.layer.weight.requires_grad_(False); the optimizer "
            "follows. If it is to have other settings, put it into another group."
        )


def _build_optimizers(recipe: Recipe, arena: Arena) -> list[torch.optim.Optimizer]:
    if not isinstance(recipe.optimizer, Mapping):
        return [_build_optimizer(recipe.optimizer, arena.parameters)]
    kinds = {"dense": arena.dense, "sparse": arena.tables}
    for kind, parameters in kinds.items():
        if parameters and kind not in recipe.optimizer:
            raise OptimizerError(
                f"The model has {kind} parameters, and optimizer= names none for "
                f"them: {sorted(recipe.optimizer)}. Give both, for example "
                "optimizer={'dense': torch.optim.Adam, 'sparse': "
                "torch.optim.SparseAdam}."
            )
    return [
        _build_optimizer(recipe.optimizer[kind], parameters)
        for kind, parameters in kinds.items()
        if parameters
    ]


def _others(now: Mapping[str, Any], built: Mapping[str, Any]) -> dict[str, Any]:
    """Give what is not as it was built."""
    nothing = object()
    return {key: each for key, each in now.items() if built.get(key, nothing) != each}


def _kinds(recipe: Recipe, arena: Arena) -> list[str]:
    """Of which kind each optimizer is; empty if one holds all."""
    if not isinstance(recipe.optimizer, Mapping):
        return []
    kinds = {"dense": arena.dense, "sparse": arena.tables}
    return [kind for kind, parameters in kinds.items() if parameters]


def _build_optimizer(
    factory: OptimizerFactory, parameters: list[torch.nn.Parameter]
) -> torch.optim.Optimizer:
    try:
        optimizer = factory(parameters)
    except BaseException as error:
        raise OptimizerError(
            f"The optimizer factory raised {in_words(error)}. It is "
            "called with the trainable parameters, for example "
            "optimizer=functools.partial(torch.optim.SGD, lr=0.05)."
        ) from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise OptimizerError(
            f"The optimizer factory returned {type(optimizer).__name__}; it must "
            "return a torch.optim.Optimizer, for example "
            "optimizer=functools.partial(torch.optim.SGD, lr=0.05)."
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise OptimizerError(
            "LBFGS evaluates the loss several times a step, which a stream does not "
            "allow. Use a first-order optimizer, for example torch.optim.Adam."
        )
    return optimizer


def _advice(arena: Arena) -> str:
    if arena.tables:
        return (
            "The gradients of embeddings that were made with sparse=True are rows, and "
            "few optimizers take these: give two, for example optimizer={'dense': "
            "torch.optim.Adam, 'sparse': torch.optim.SparseAdam}; or make the "
            "embeddings with sparse=False, as where one is also used as a dense layer."
        )
    return (
        "It is stepped once a mini-batch, without a closure, and with gradients that "
        "are dense: use an optimizer that does with these, for example "
        "torch.optim.Adam."
    )


def _parameters_of_layers(model: torch.nn.Module) -> set[int]:
    """Ids of the parameters that others than sparse embeddings hold.

    A table that is tied to a dense layer has a dense gradient.
    """
    return {
        id(parameter)
        for module in model.modules()
        if not getattr(module, "sparse", False)
        for parameter in module._parameters.values()
    }


def _no_row(table: torch.Tensor) -> torch.Tensor:
    """Make a sparse gradient of a table that touches its first row, with zeros."""
    rows = min(1, len(table))
    ids = torch.zeros((1, rows), dtype=torch.int64, device=table.device)
    return torch.sparse_coo_tensor(
        ids,
        table.new_zeros((rows, *table.shape[1:])),
        table.shape,
        check_invariants=False,
    )


def _check_groups(optimizer: torch.optim.Optimizer, needed: set[str]) -> None:
    """See that a state that was taken over has all settings of the optimizer."""
    for group in optimizer.param_groups:
        if missing := sorted(needed - set(group)):
            raise OptimizerError(
                f"The state is not of {type(optimizer).__name__}, which needs "
                f"{', '.join(missing)}; it holds {', '.join(sorted(group))}."
            )


def _with_max_norm(model: torch.nn.Module) -> str | None:
    """Name an embedding that keeps its rows short, in forward, if there is one."""
    for name, module in model.named_modules():
        if getattr(module, "max_norm", None) is not None:
            return name
    return None


def _moved(names: list[str]) -> str:
    return (
        f"The model puts other tensors in the place of {_some(names)} while it runs, "
        "as parameter.data = ..., module.to(...), flatten_parameters() and "
        "load_state_dict(assign=True) do. Their values are copied back each time to "
        "where peers' gradients are applied, and nothing is lost; that costs a copy. "
        "Change values in place, for example with parameter.copy_(...), within "
        "torch.no_grad()."
    )


def _thawed(names: list[str]) -> str:
    return (
        f"The model asks for gradients of {_some(names)} while it runs, which were "
        "frozen when training began: they are frozen again, and not trained. Thaw "
        "them in the model factory, or with trainer.apply(lambda model, optimizers: "
        "model.layer.requires_grad_(True))."
    )


def _each_its_own(names: list[str]) -> str:
    return (
        f"The model, or a hook, writes into {_some(names)} while it learns: parameters "
        "that are frozen, as those of a target network or of a moving average are. "
        "They are neither trained nor exchanged. As with buffers, each replica has its "
        "own, of the mini-batches that it has learned itself, and replicas differ in "
        "them; predict, state_dict and checkpoints take those of one replica, and so "
        "does a replica that joins. If they are to agree, copy from time to time with "
        "trainer.apply(lambda model, optimizers: "
        "model.target.load_state_dict(model.net.state_dict())), which does so on all "
        "replicas, or give replicas=1."
    )


def _not_saved(names: str) -> str:
    return (
        f"The function has changed {names} besides the structure of the model: "
        "attributes, hooks or layers without parameters. All replicas have that, also "
        "those that join, which call the function, too. But checkpoints do not hold "
        "it, and a trainer that is restored begins without it. Give a model= then that "
        "builds it: one, for example, that calls the same function."
    )


def _left_behind(names: list[str], device: torch.device) -> str:
    return (
        f"{_some(names)} shared memory with parameters of the model, and cannot follow "
        f"them to {device}: as in a plain loop, it keeps the values of the start. Take "
        "it from the parameter in forward, or make it a buffer."
    )


def _built_otherwise(names: list[str], of_checkpoint: bool) -> str:
    where = "in the run of the checkpoint" if of_checkpoint else "on another replica"
    return (
        f"The model factory has made {_some(names)} otherwise than {where}. That is no "
        "parameter and no buffer that is saved, so that each keeps its own: the models "
        "compute different functions of the same parameters. Where a layer, or a "
        "setting, was changed on purpose, that is all. seed= holds for "
        "torch, numpy.random and random, not for generators of one's own, the time and "
        "the order of sets. Make it a buffer: self.register_buffer(name, tensor); or "
        "give a generator in the factory a fixed seed."
    )


def _some(names: list[str]) -> str:
    told = ", ".join(map(repr, names[:3]))
    return told if len(names) <= 3 else f"{told} and {len(names) - 3} others"


@contextmanager
def evaluating(*models: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode, then every module back to the mode that it had."""
    trained = [each for model in models for each in model.modules() if each.training]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module in trained:
            module.training = True


def to_arrays(tree: Any) -> Any:
    """Copy tensors to numpy; those of a dtype that it lacks become float32.

    Raises
    ------
    ModelError
        If one is not dense.
    """

    def convert(tensor: torch.Tensor) -> np.ndarray:
        if why := why_not_dense(tensor, "it"):
            raise ModelError(f"The model gives {why}")
        tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
        if tensor.dtype == torch.bfloat16 or "float8" in str(tensor.dtype):
            tensor = tensor.float()
        return np.array(tensor.numpy())

    return map_tensors(convert, tree)


def to_tensors(group: Group, device: torch.device) -> Iterator[tuple[Any, Any, int]]:
    """Give a group's mini-batches as tensors ``(x, y, samples)``, without a copy."""
    x_structure, y_structure, bits, _ = group.kind
    columns = []
    for leaf, is_bits in zip(group.leaves, bits, strict=True):
        if not leaf.flags.writeable:
            leaf = leaf.copy()  # torch cannot promise not to write
        tensor = torch.from_numpy(leaf)
        if is_bits:
            tensor = tensor.view(torch.bfloat16)
        columns.append(tensor.to(device).split(group.lengths))
    split = width(x_structure)
    for position, samples in enumerate(group.lengths):
        leaves = [column[position] for column in columns]
        x = rebuild(leaves[:split], x_structure)
        y = None
        if len(leaves) > split:
            y = rebuild(leaves[split:], y_structure)
        yield x, y, samples


# Of a bfloat16: where all of these are set it is NaN or infinite.
EXPONENT = np.int16(0x7F80)


def non_finite(group: Group) -> list[int]:
    """Positions of the mini-batches of a group that hold a NaN or an infinity."""
    suspects = [
        leaf
        for leaf, is_bits in zip(group.leaves, group.kind[2], strict=True)
        # A sum is finite unless an element is not, or it overflows: one cheap pass
        # over the whole group, and a close look only where it raises suspicion.
        if leaf.dtype.kind in "fc" and not is_bits and not np.isfinite(_sum(leaf))
    ]
    bits = [
        leaf
        for leaf, is_bits in zip(group.leaves, group.kind[2], strict=True)
        if is_bits
    ]
    found: list[int] = []
    if not suspects and not bits:
        return found
    start = 0
    for position, length in enumerate(group.lengths):
        rows = slice(start, start + length)
        if not all(np.isfinite(leaf[rows]).all() for leaf in suspects) or not all(
            (leaf[rows] & EXPONENT != EXPONENT).all() for leaf in bits
        ):
            found.append(position)
        start += length
    return found


def _sum(leaf: np.ndarray) -> Any:
    with np.errstate(all="ignore"):
        return leaf.sum()
