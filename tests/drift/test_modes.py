"""When the model learns: the state of a trainer's mode."""

from __future__ import annotations

import dataclasses
import logging
import math

import numpy as np
import pytest
from helpers import Above

import tensair_dask as ta
from tensair_dask.adaptation import Convergence, Drift, Modes, RaiseLearningRate
from tensair_dask.checkpoints import Checkpoint
from tensair_dask.checkpoints.format import decode, encode
from tensair_dask.drift import ADWIN, DDM, OPTWIN
from tensair_dask.drift.modes import (
    PolicyEnded,
    Settled,
    Switch,
    Unwatched,
    as_convergence,
    as_detector,
)
from tensair_dask.drift.policies import KeepTraining, RestoreLastGood
from tensair_dask.drift.watch import as_watch
from tensair_dask.errors import CheckpointError, ConfigurationError
from tensair_dask.reports import Report


def modes(mode: str = "auto", policy=None, **overrides) -> Modes:
    arguments = {
        "detector": Above(),
        "convergence": Convergence(epoch=5, epochs=2),
        "policy": policy or KeepTraining(),
        "watch": as_watch("loss", {}),
        "reorder": 100,
    }
    return Modes(mode, **{**arguments, **overrides})


def go_on(modes: Modes, losses, start: int = 0, ahead: int = 1) -> list:
    """Report one mini-batch after the other; ``ahead`` are submitted already.

    What follows from drift is done at once.
    """
    happened = []
    for index, loss in enumerate(losses, start):
        for each in modes.observe(index, Report(index, loss, {}, 8), index + ahead):
            happened.append(each)
            if isinstance(each, Drift) and modes.answers:
                modes.begin(each)
            elif isinstance(each, PolicyEnded) and each.drift == modes.begun.drift:
                modes.end()
    return happened


def test_auto_trains_until_the_loss_has_converged_and_then_predicts():
    auto = modes()
    assert auto.learns
    happened = go_on(auto, [1.0] * 10)
    assert happened[-1] == Switch(10, "predicting", "the loss has settled at 1")
    assert auto.phase == "predicting"
    assert not auto.learns


def test_a_loss_that_settles_above_where_it_began_is_warned_of(caplog):
    auto = modes()
    with caplog.at_level(logging.WARNING):
        switch = go_on(auto, [1.0] * 5 + [3.0] * 15)[-1]
    assert "above the 1 at which training began" in switch.why
    assert "lower the learning rate" in caplog.text


def test_auto_trains_again_when_the_stream_drifts():
    auto = modes()
    go_on(auto, [1.0] * 20)
    drift, switch = go_on(auto, [11.0], start=20)
    assert drift == Drift(0.0, 20, "Above", 1.0, 11.0, 5.0)
    assert switch == Switch(21, "training", "the stream has drifted")
    assert auto.learns
    assert isinstance(go_on(auto, [5.0] * 10, start=21)[-1], Switch)


def test_a_rise_while_auto_trains_is_a_drift_too_and_training_goes_on():
    auto = modes(policy=RaiseLearningRate(2, batches=8))
    drift, *rest = go_on(auto, [1.0, 1.2, 0.8, 1.1, 0.9, *[3.0, 3.2, 2.8, 3.1, 2.9]])
    assert (drift.index, drift.detector) == (9, "Convergence")
    assert (drift.before, drift.after) == pytest.approx((1, 3))
    assert drift.magnitude == pytest.approx(2 / np.std([1.0, 1.2, 0.8, 1.1, 0.9]))
    assert rest == []
    assert auto.learns
    assert auto.begun.drift == drift
    happened = go_on(auto, [2.9, 1.8, 1.2, 1.1, 1.0, *[1.0] * 10], start=10)
    ended, settled, switch = happened
    assert ended == PolicyEnded(17, drift)
    assert settled == Settled(24)
    assert switch.why == "the loss has settled at 1"


def test_a_rise_to_less_than_training_began_with_is_no_drift():
    """A model that overshoots is still better than it was, and learns on."""
    auto = modes()
    assert go_on(auto, [9.0] * 5 + [1.0] * 5 + [3.0] * 5) == []
    _, switch = go_on(auto, [1.0] * 10, start=15)
    assert switch.phase == "predicting"


def test_what_a_policy_does_to_the_loss_while_auto_trains_is_no_second_drift():
    """Layers that are made anew in the epoch after: the loss is that of a new model."""
    auto = modes()
    drift, *rest = go_on(auto, [1.0] * 5 + [3.0] * 5 + [6.0] * 5)
    assert drift.index == 9
    assert rest == []


def test_the_detector_sees_nothing_while_auto_trains():
    auto = modes()
    assert go_on(auto, [50.0] * 9) == []


def test_it_is_shown_the_newest_epoch_before_it_is_to_look():
    auto = modes()
    go_on(auto, [1.0, 1.0, 1.0, 1.0, 1.0, 0.98, 0.99, 1.0, 1.01, 1.02])
    assert auto.phase == "predicting"
    assert sorted(auto.detector.seen) == [0.98, 0.99, 1.0, 1.01, 1.02]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("highest", [0.0, 0.1, 0.5])
def test_a_drift_right_after_convergence_is_found(seed, highest):
    """Also where the loss has fallen all through the newest epoch."""
    random = np.random.default_rng(seed)
    convergence = Convergence(epoch=100, factor=0.999)
    auto = modes(detector=OPTWIN(confidence=0.998), convergence=convergence)
    levels = np.concatenate([np.full(100, 2.3), np.linspace(highest, 0.01, 100)])
    losses = levels * random.gamma(4, 0.25, 200)
    assert go_on(auto, losses)[-1].phase == "predicting"
    drift, _ = go_on(auto, random.gamma(4, 0.25, 40), start=200)[:2]
    assert drift.index < 230


def test_a_drift_right_after_a_steady_epoch_is_found():
    auto = modes(detector=OPTWIN(), convergence=Convergence(epoch=40))
    losses = np.random.default_rng(0).normal(1.0, 0.1, 80)
    assert go_on(auto, losses)[-1].phase == "predicting"
    drift, _ = go_on(auto, losses[:60] + 1.0, start=80)
    assert drift.index < 110


def test_what_was_learned_after_convergence_and_before_the_switch_is_looked_at():
    auto = modes()
    go_on(auto, [1.0] * 10, ahead=100)  # predicting from 109 on
    drift, switch = go_on(auto, [1.0] * 50 + [50.0], start=10, ahead=100)
    assert (drift.index, switch.index) == (60, 160)


def test_what_was_only_predicted_does_not_count_for_convergence():
    auto = modes()
    go_on(auto, [1.0] * 20)
    go_on(auto, [11.0], start=20, ahead=30)  # training from 50 on
    assert go_on(auto, [5.0] * 29, start=21, ahead=30) == []
    assert auto.convergence.level != auto.convergence.level


def test_the_detector_begins_afresh_after_a_switch():
    auto = modes()
    go_on(auto, [1.0] * 13)
    assert auto.detector.seen == [1.0] * 8
    go_on(auto, [11.0], start=13)
    go_on(auto, [2.0] * 11, start=14)
    assert auto.detector.seen == [2.0] * 6


def test_reports_in_any_order_are_seen_in_the_order_of_submission():
    always = modes("always")
    for index in (3, 1, 2):
        report = Report(index, float(index), {}, 8)
        assert list(always.observe(index, report, 5)) == []
    list(always.observe(0, Report(0, 0.0, {}, 8), 5))
    assert always.detector.seen == [0.0, 1.0, 2.0, 3.0]


def test_refused_mini_batches_are_passed_over():
    always = modes("always")
    list(always.observe(0, None, 1))
    go_on(always, [1.0], start=1)
    assert always.detector.seen == [1.0]


def test_always_detects_and_goes_on_to_train():
    always = modes("always")
    (drift,) = go_on(always, [1.0, 2.0, 12.0])
    assert isinstance(drift, Drift)
    assert always.learns
    assert go_on(always, [12.0], start=3)[0].index == 3


def test_never_detects_and_never_trains():
    never = modes("never")
    assert not never.learns
    (drift,) = go_on(never, [1.0, 12.0])
    assert isinstance(drift, Drift)
    assert not never.learns


def test_in_never_no_policy_is_to_be_carried_out_or_ended():
    never = modes("never", RaiseLearningRate(batches=5))
    assert not never.answers
    assert len(go_on(never, [12.0] + [1.0] * 20)) == 1


@pytest.mark.parametrize("mode", ["always", "never"])
def test_without_a_detector_there_is_nothing_to_watch(mode):
    assert not modes(mode, detector=None).watches
    assert modes(mode).watches


def test_a_policy_that_lasts_is_ended_after_its_time():
    always = modes("always", RaiseLearningRate(batches=5))
    (drift,) = go_on(always, [12.0])
    assert go_on(always, [1.0] * 4, start=1) == []
    assert go_on(always, [1.0], start=5) == [PolicyEnded(5, drift)]
    assert go_on(always, [1.0] * 20, start=6) == []


def test_it_is_ended_when_the_loss_has_converged():
    auto = modes(policy=RaiseLearningRate(batches=1000))
    go_on(auto, [1.0] * 10)
    drift, _ = go_on(auto, [12.0], start=10)
    happened = go_on(auto, [1.0] * 10, start=11)
    assert happened[0] == PolicyEnded(20, drift)
    assert happened[-1].phase == "predicting"


def test_it_is_ended_before_it_is_begun_again():
    always = modes("always", RaiseLearningRate(batches=1000))
    (first,) = go_on(always, [12.0])
    second, ended = go_on(always, [13.0], start=1)
    assert ended.drift == first
    assert second.index == 1


def test_only_what_was_begun_is_kept_in_a_checkpoint():
    always = modes("always", RaiseLearningRate(batches=5))
    (drift,) = always.observe(0, Report(0, 12.0, {}, 8), 1)
    assert always.state_dict(1)["lasting"] is None
    always.begin(drift)
    assert always.state_dict(1)["lasting"]["index"] == 4
    ended = go_on(always, [1.0] * 4, 1) + list(
        always.observe(5, Report(5, 1.0, {}, 8), 6)
    )
    assert ended == [PolicyEnded(5, drift)]  # decided, and not done yet
    assert always.state_dict(6)["lasting"]["index"] == -1
    always.end()
    assert always.state_dict(6)["lasting"] is None


def test_moments_for_snapshots_come_while_all_is_well():
    always = modes("always", RestoreLastGood(every=10))
    assert go_on(always, [1.0] * 25) == [Settled(10), Settled(20)]
    auto = modes("auto", RestoreLastGood(every=10))
    assert Settled(9) in go_on(auto, [1.0] * 10)


def test_the_mode_can_be_changed():
    mode = modes("always", detector=None)
    (switch,) = mode.set_mode("never", 7)
    assert switch == Switch(7, "predicting", "the mode was set to never")
    assert mode.set_mode("never", 8) == []
    (switch,) = mode.set_mode("auto", 9)
    assert switch.phase == "training"
    assert isinstance(mode.detector, OPTWIN)


def test_a_mode_that_begins_to_watch_begins_where_the_stream_is():
    mode = modes("always", detector=None)
    mode.set_mode("auto", 100_000)
    late = Report(99_999, 50.0, {}, 8)
    assert list(mode.observe(99_999, late, 100_001)) == []
    happened = go_on(mode, [1.0] * 10, start=100_000)
    assert happened[-1].phase == "predicting"


def test_a_value_that_the_detector_refuses_is_skipped_and_said_once(caplog):
    always = modes("always")
    with caplog.at_level(logging.WARNING):
        (unwatched,) = go_on(always, [-1.0, -2.0, 1.0])
    assert isinstance(unwatched, Unwatched)
    assert "DriftError: -1.0 is below 0" in unwatched.describe()
    assert always.detector.seen == [1.0]
    (record,) = caplog.records
    assert "Mini-batch 0 cannot be watched for drift" in record.getMessage()
    assert "-1.0 is below 0" in record.getMessage()


def test_a_drift_says_itself_in_a_line():
    drift = Drift(0.0, 1234, "OPTWIN", 0.5, 2.0, 3.0)
    said = "OPTWIN at mini-batch 1,234: from 0.5 to 2 (+3.0 standard deviations)"
    assert drift.describe() == said


def test_what_is_watched_may_be_a_metric_or_a_function():
    report = Report(0, 0.5, {"accuracy": 0.9}, 8)
    metrics = {"accuracy": None}
    assert as_watch("loss", metrics)(report) == 0.5
    assert as_watch("accuracy", metrics)(report) == 0.9
    assert as_watch(lambda r: 1 - r.metrics["accuracy"], metrics)(report) < 0.11
    with pytest.raises(ConfigurationError, match="allowed are 'loss', 'accuracy'"):
        as_watch("precision", metrics)


class Recall:
    """As torchmetrics say it."""

    higher_is_better = True

    def __eq__(self, other):
        return Recall()

    __hash__ = None


def test_a_metric_of_which_more_is_better_is_not_watched():
    for name, metric in (
        ("accuracy", ta.metrics.accuracy),
        ("right", ta.metrics.binary_accuracy),
        ("recall", Recall()),
    ):
        said = rf"Give watch=lambda report: 1 - report.metrics\['{name}'\]"
        with pytest.raises(ConfigurationError, match=said):
            as_watch(name, {name: metric})
    lower = Recall()
    lower.higher_is_better = False
    assert as_watch("wrong", {"wrong": lower})(Report(0, 0.5, {"wrong": 2}, 8)) == 2


def test_losses_are_no_errors_for_a_detector_of_errors():
    said = r"DDM, which takes errors .* Give watch=lambda report: 1 - report.metrics"
    with pytest.raises(ConfigurationError, match=rf"{said}\['accuracy'\] and metrics="):
        as_watch("loss", {}, DDM())
    metrics = {"right": ta.metrics.accuracy}
    with pytest.raises(ConfigurationError, match=rf"{said}\['right'\], or take"):
        as_watch("loss", metrics, DDM())
    assert as_watch("loss", {}, ADWIN())(Report(0, 0.5, {}, 8)) == 0.5
    assert as_watch(lambda report: report.loss, {}, DDM())


def test_each_trainer_has_a_convergence_of_its_own():
    given = Convergence(epoch=5, epochs=2)
    own = as_convergence(given)
    go_on(modes(convergence=own), [50.0] * 7)
    assert given.state_dict() != own.state_dict()
    assert repr(as_convergence(own).state_dict()) == repr(given.state_dict())
    assert isinstance(as_convergence(None), Convergence)
    with pytest.raises(ConfigurationError, match=r"convergence='x' .*epoch=100"):
        as_convergence("x")


def test_detectors_may_be_named():
    assert isinstance(as_detector("optwin", "always"), OPTWIN)
    assert isinstance(as_detector(None, "auto"), OPTWIN)
    assert as_detector(None, "always") is None
    with pytest.raises(ConfigurationError, match="detector is a float"):
        as_detector(0.5, "always")
    with pytest.raises(ConfigurationError, match=r"class; give .*drift.ADWIN\(\)"):
        as_detector(ADWIN, "always")


def test_a_detector_of_river_is_distinguished_from_ours():
    drift = pytest.importorskip("river.drift")
    said = r"a river\.drift\.\w+\.ADWIN; .*'adwin', .* tensair_dask.drift.ADWIN\(\)"
    with pytest.raises(ConfigurationError, match=said):
        as_detector(drift.ADWIN(), "always")


def test_unknown_modes_are_refused():
    with pytest.raises(ConfigurationError, match="'always', 'never', 'auto'"):
        modes("sometimes")
    with pytest.raises(ConfigurationError, match="needs a detector"):
        modes("auto", detector=None)


def test_a_drift_without_a_split_has_no_magnitude():
    class Unsplit(Above):
        def _observe(self, value: float) -> bool:
            return value > 10

    always = modes("always", detector=Unsplit())
    (drift,) = go_on(always, [11.0])
    assert math.isnan(drift.magnitude)


def stored(state):
    """Put a state into a file as a checkpoint does, and read it back."""
    return decode(b"".join(encode(Checkpoint({}, adaptation=state)))).adaptation


def a_stream_that_drifts():
    """Losses that fall and settle, rise at 300 and at 600, and fall again."""
    random = np.random.default_rng(3)
    falling = 1.0 + 4.0 * 0.97 ** np.arange(300)
    return np.concatenate([falling] * 3) + random.normal(0, 0.1, 900)


def counted_from(start, happening):
    """What another counts who has begun to count so many mini-batches later."""
    changed = {"index": happening.index - start}
    if isinstance(happening, PolicyEnded):
        changed["drift"] = counted_from(start, happening.drift)
    return dataclasses.replace(happening, **changed)


@pytest.mark.parametrize("place", [0, 7, 150, 299, 303, 310, 320, 450, 603, 899])
@pytest.mark.parametrize("mode", ["auto", "always", "never"])
@pytest.mark.parametrize("anew", [False, True], ids=["goes on", "counts anew"])
def test_a_state_goes_on_where_the_stream_was(mode, place, anew):
    def made():
        policy = RaiseLearningRate(batches=15)
        convergence = Convergence(epoch=20)
        return modes(mode, policy, detector=OPTWIN(), convergence=convergence)

    losses = a_stream_that_drifts()
    original, other = made(), made()
    go_on(original, losses[:place])
    first = 0 if anew else place
    other.load_state_dict(stored(original.state_dict(place)), first)
    happened = go_on(original, losses[place:], start=place)
    same = [counted_from(place - first, each) for each in happened]
    assert go_on(other, losses[place:], start=first) == same
    assert (other.mode, other.phase) == (original.mode, original.phase)
    if mode == "auto" and place < 300:
        kinds = {type(each) for each in happened}
        assert kinds == {Drift, Switch, PolicyEnded, Settled}


def test_the_mode_of_a_state_is_the_one_that_was_set():
    was = modes("always", detector=None)
    was.set_mode("auto", 5)
    go_on(was, [1.0] * 20, start=5)
    now = modes("never", detector=None)
    now.load_state_dict(stored(was.state_dict(25)), 25)
    assert (now.mode, now.phase) == ("auto", "predicting")
    assert now.detector.observed == was.detector.observed > 0


def test_the_detector_stays_the_object_that_the_user_has():
    detector = OPTWIN()
    was, now = modes("always", detector=OPTWIN()), modes("always", detector=detector)
    go_on(was, [1.0] * 20)
    now.load_state_dict(was.state_dict(20), 20)
    assert now.detector is detector
    assert detector.observed == 20


def test_a_detector_that_comes_new_begins_afresh():
    was, now = modes("always", detector=None), modes("always", detector=OPTWIN())
    now.load_state_dict(was.state_dict(20), 20)
    go_on(now, [1.0] * 3, start=20)
    assert now.detector.observed == 3


def test_what_is_reported_late_from_before_the_checkpoint_is_passed_over():
    was, now = modes("always"), modes("always")
    now.load_state_dict(was.state_dict(100), 100)
    assert list(now.observe(99, Report(99, 50.0, {}, 8), 101)) == []
    go_on(now, [1.0], start=100)
    assert now.detector.seen == [1.0]


def test_the_first_snapshot_after_a_restart_is_due_at_once():
    was = modes("always", RestoreLastGood(every=10))
    now = modes("always", RestoreLastGood(every=10))
    now.load_state_dict(was.state_dict(100), 100)
    assert go_on(now, [1.0] * 12, start=100) == [Settled(100), Settled(110)]


def test_a_state_of_something_else_is_refused_and_changes_nothing():
    was = modes("always", RaiseLearningRate(batches=50), detector=OPTWIN())
    go_on(was, [1.0, 1.1] * 30 + [9.0] * 30)
    assert was.state_dict(90)["lasting"] is not None
    state = was.state_dict(90)
    for other, said in (
        ({"detector": ADWIN()}, "that of an OPTWIN, and this is an ADWIN"),
        ({"convergence": Convergence(epoch=7)}, r"epoch=5 \(here 7\)"),
        ({}, "while RaiseLearningRate lasted.*KeepTraining.*on_drift="),
    ):
        now = modes("auto", **{"detector": OPTWIN(), **other})
        with pytest.raises(CheckpointError, match=said):
            now.load_state_dict(state, 90)
        assert (now.mode, now.detector.observed) == ("auto", 0)
    now = modes("auto")
    for nonsense in ({}, {**state, "mode": "sometimes"}, {**state, "newest": [None]}):
        with pytest.raises(CheckpointError):
            now.load_state_dict(nonsense, 90)
    assert now.mode == "auto"
