"""Modes and drift, on a real cluster in one event loop."""

from __future__ import annotations

import asyncio
import enum
import functools
import logging

import numpy as np
import pytest
import torch
from distributed.utils_test import gen_cluster
from helpers import (
    FEATURES,
    Above,
    class_data,
    classes,
    linear,
    linear_data,
    spread,
    until,
)

import tensair_dask as ta
from tensair_dask.adaptation import Convergence, RaiseLearningRate, Reinitialise
from tensair_dask.checkpoints import Store
from tensair_dask.drift import ADWIN
from tensair_dask.drift.policies import RestoreLastGood
from tensair_dask.errors import ConfigurationError
from tensair_dask.observe.telemetry.events import TOPIC

one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)
two = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60
)

# Progress is measured by the loss after a swap, which is high: with a larger factor
# training can end half way down.
CONVERGENCE = Convergence(epoch=50, epochs=3, factor=0.02)


def auto(**overrides):
    arguments = {"mode": "auto", "convergence": CONVERGENCE, "detector": Above(1.0)}
    # Else each replica corrects the model by itself after a swap, in some 50 of these
    # short steps, and the sum of both corrections overshoots.
    arguments["staleness"] = "1ms"
    arguments["optimizer"] = functools.partial(torch.optim.SGD, lr=0.2)
    return classes(**{**arguments, **overrides})


def spikes():
    """What sees a loss that no steady stream has."""
    return Above(2.0, rest=200)


class Point(enum.Enum):
    """Where a policy fails."""

    DESCRIBE = "describe"
    ON_DRIFT = "on_drift"
    UNDO = "undo"


class Failing(RaiseLearningRate):
    """Raises the rate for 20 mini-batches, but for one point."""

    def __init__(self, point: Point) -> None:
        super().__init__(5, batches=20)
        self.point = point.value

    def __getattribute__(self, name):
        if name == super().__getattribute__("__dict__").get("point"):
            raise ZeroDivisionError(f"injected into {name}")
        return super().__getattribute__(name)


def rate_at(worker) -> float:
    (replica,) = worker.state.actors.values()
    return replica.learner.optimizers[0].param_groups[0]["lr"]


def answers_of(trainer) -> list[str]:
    return trainer.events.query("kind == 'policy'").text.tolist()


def steady(count: int = 4000):
    """So many new records, and enough in each mini-batch, that losses are steady."""
    return class_data(count, samples=64)


def swapped(data):
    """The same with other labels."""
    return [(x, (y + 1) % 3) for x, y in data]


async def stream(trainer, data, window: int = 20) -> list:
    """Emit with a few under way at a time, as a stream does."""
    reports = []
    for start in range(0, len(data), window):
        part = data[start : start + window]
        reports += await asyncio.gather(*(trainer.train(x, y) for x, y in part))
    return reports


async def until_phase(trainer, phase: str, data) -> list:
    reports = []
    for start in range(0, len(data), 20):
        if trainer.phase == phase:
            return reports
        reports += await stream(trainer, data[start : start + 20])
    raise AssertionError(f"never {phase}: {trainer.events}")


@two()
async def test_auto_trains_predicts_detects_and_trains_again(c, s, a, b):
    data = steady()
    async with ta.Trainer(c, **auto()) as trainer:
        assert (trainer.mode, trainer.phase) == ("auto", "training")
        first = await until_phase(trainer, "predicting", data)
        assert all(report.learned for report in first[:100])
        settled = await stream(trainer, data[:300])
        assert not any(report.learned for report in settled)
        level = np.mean([report.loss for report in settled])
        again = await until_phase(trainer, "training", swapped(data))
        (drift,) = trainer.drifts.itertuples()
        assert next(r.loss for r in again if r.index == drift.index) > 2 * level
        await until_phase(trainer, "predicting", swapped(data))
        learned = await stream(trainer, swapped(data[:100]))
        assert np.mean([report.loss for report in learned]) < 0.5
        events = trainer.events
        switches = events[events.kind == "mode"].text.str.partition(" ")[0].tolist()
        assert switches == ["predicting", "training", "predicting"]
        assert drift.detector == "Above"
        assert drift.after > drift.before
        assert drift.magnitude > 0
        detected = events[events.kind == "drift"]
        assert detected["index"].tolist() == [drift.index]
        decided = events[events.kind == "policy"]
        assert decided.text.tolist() == ["train on"]
        assert events.time.is_monotonic_increasing


@two()
async def test_all_replicas_switch_at_the_same_mini_batch(c, s, a, b):
    data = steady()
    async with ta.Trainer(c, **auto()) as trainer:
        await until_phase(trainer, "predicting", data)
        await until_phase(trainer, "training", swapped(data))
        await trainer.drain()
        events, history = trainer.events, trainer.history
    history = history.sort_values("index")
    assert history.replica.nunique() == 2
    off, on = events[events.kind == "mode"]["index"]
    learned = history.set_index("index")["learned"]
    assert learned.loc[: off - 1].all()
    assert not learned.loc[off : on - 1].any()
    assert learned.loc[on:].all()


@two()
async def test_nothing_changes_while_it_only_predicts(c, s, a, b):
    data = class_data(40)
    async with ta.Trainer(c, **classes()) as trainer:
        await stream(trainer, data)
        await trainer.set_mode("never")
        await trainer.drain()
        before = await trainer.state_dicts()
        steps = sum(info.steps for info in trainer.replicas)
        await stream(trainer, data)
        await trainer.drain()
        after = await trainer.state_dicts()
        assert spread(after) < 1e-5
        assert all(
            torch.equal(before[name][key], after[name][key])
            for name in before
            for key in before[name]
        )
        assert sum(info.steps for info in trainer.replicas) == steps
        samples = int(trainer.curves["samples"].iloc[-1])
        assert samples == 16 * len(trainer.history)


@one()
async def test_never_only_predicts_in_evaluation_mode(c, s, a):
    class Dropping(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(FEATURES, 3)

        def forward(self, x):
            return torch.nn.functional.dropout(self.layer(x), 0.9, self.training)

    arguments = classes(model=Dropping, mode="never", keep_predictions=True)
    metrics = {"accuracy": ta.metrics.accuracy}
    (x, y), *_ = class_data(1)
    async with ta.Trainer(c, **arguments, metrics=metrics) as trainer:
        assert trainer.phase == "predicting"
        reports = await stream(trainer, [(x, y)] * 30)
        assert len({report.loss for report in reports}) == 1
        assert not any(report.learned for report in reports)
        prediction = await trainer.predict(x)
        assert np.allclose(reports[0].prediction, prediction)
        right = (prediction.argmax(1) == y).mean()
        assert reports[0].metrics["accuracy"] == pytest.approx(right)
        loss = torch.nn.functional.cross_entropy(
            torch.as_tensor(prediction), torch.as_tensor(y)
        )
        assert reports[0].loss == pytest.approx(loss.item(), abs=1e-6)


@one()
async def test_a_bad_mini_batch_is_refused_while_it_only_predicts(c, s, a):
    async with ta.Trainer(c, **classes(mode="never")) as trainer:
        bad = np.full((2, FEATURES), np.nan, "float32")
        report = await trainer.train(bad, np.zeros(2, int))
        assert isinstance(report.error, ta.errors.NonFiniteError)
        assert not report.learned
        wide = np.zeros((2, FEATURES + 1), "float32")
        report = await trainer.train(wide, np.zeros(2, int))
        assert isinstance(report.error, ta.errors.BatchError)
        assert len(trainer.dead_letters) == 2
        report = await trainer.train(wide[:, 1:], np.zeros(2, int))
        assert report.error is None


@one()
async def test_the_mode_can_be_changed_while_it_trains(c, s, a):
    data = class_data(40)
    async with ta.Trainer(c, **classes()) as trainer:
        assert all(report.learned for report in await stream(trainer, data))
        await trainer.set_mode("never")
        assert not any(report.learned for report in await stream(trainer, data))
        await trainer.set_mode("auto")
        assert all(report.learned for report in await stream(trainer, data))
        assert (trainer.mode, trainer.phase) == ("auto", "training")
        await trainer.drain()
        assert len(trainer.events) == 2
        with pytest.raises(ConfigurationError, match="'always', 'never', 'auto'"):
            await trainer.set_mode("sometimes")


@two()
async def test_always_with_a_detector_answers_drift_and_trains_on(c, s, a, b):
    data = class_data(100)
    policy = Reinitialise("2")
    arguments = auto(mode="always", detector=spikes(), on_drift=policy)
    async with ta.Trainer(c, **arguments) as trainer:
        await stream(trainer, data * 2)
        assert trainer.drifts.empty
        await stream(trainer, swapped(data))
        await trainer.drain()
        assert len(trainer.drifts) == 1
        decided = trainer.events.query("kind == 'policy'")
        assert decided.text.iloc[0].startswith("re-initialise 2 (0.")
        assert trainer.history["learned"].all()
        assert spread(await trainer.state_dicts()) < 1e-5


@one()
@pytest.mark.parametrize("schedule", [None, lambda gradients: 1.0])
async def test_the_rate_is_raised_for_a_while(c, s, a, schedule):
    data = class_data(100)
    rates = []
    policy = RaiseLearningRate(3, batches=25)
    arguments = auto(
        mode="always", detector=spikes(), on_drift=policy, schedule=schedule
    )
    async with ta.Trainer(c, **arguments) as trainer:
        (replica,) = a.state.actors.values()

        def rate():
            return replica.learner.optimizers[0].param_groups[0]["lr"]

        await stream(trainer, data * 2)
        rates.append(rate())
        for part in range(60):
            if not trainer.drifts.empty:
                break
            await stream(trainer, swapped(data[part : part + 2]), window=1)
        await trainer.drain()
        rates.append(rate())
        await stream(trainer, swapped(data[:40]), window=1)
        await trainer.drain()
        rates.append(rate())
        texts = trainer.events.query("kind == 'policy'").text.tolist()
    assert rates == pytest.approx([0.2, 0.6, 0.2])
    assert texts[0].startswith("learning rate times 3 for 25 mini-batches (0.")
    assert "ended after 25 mini-batches" in texts[1]


@two()
async def test_the_last_good_model_is_restored(c, s, a, b):
    data = class_data(100)
    arguments = auto(mode="always", detector=spikes(), on_drift=RestoreLastGood(50))
    async with ta.Trainer(c, **arguments) as trainer:
        await stream(trainer, data * 3)
        before = await trainer.evaluate(data[:10])
        noise = [(x, np.random.default_rng(0).permutation(y)) for x, y in data]
        for part in range(50):
            if not trainer.drifts.empty:
                break
            await stream(trainer, swapped(noise[part : part + 5]), window=5)
        await trainer.drain()
        after = await trainer.evaluate(data[:10])
        assert after["loss"] < before["loss"] + 0.1
        assert spread(await trainer.state_dicts()) == 0.0
        decided = trainer.events.query("kind == 'policy'")
        assert decided.text.iloc[0].startswith("restore the last good model (0.")


@one()
async def test_a_users_function_is_called_with_the_drift(c, s, a):
    def to_magnitude(model, optimizers, drift):
        with torch.no_grad():
            model[2].bias.fill_(drift.magnitude)

    data = class_data(100)
    arguments = auto(mode="always", detector=spikes(), on_drift=to_magnitude)
    async with ta.Trainer(c, **arguments) as trainer:
        await stream(trainer, data * 2)
        for part in range(0, 100, 2):
            if not trainer.drifts.empty:
                break
            await stream(trainer, swapped(data[part : part + 2]), window=1)
        await trainer.drain()
        bias = (await trainer.state_dict())["2.bias"]
        (drift,) = trainer.drifts.itertuples()
        assert torch.allclose(bias, torch.tensor(drift.magnitude).float(), atol=1.0)


@one()
async def test_a_policy_that_fails_is_reported_and_the_stream_goes_on(c, s, a):
    def fail(model, optimizers, drift):
        raise ZeroDivisionError("no way")

    data = class_data(100)
    arguments = auto(mode="always", detector=spikes(), on_drift=fail)
    async with ta.Trainer(c, **arguments) as trainer:
        await stream(trainer, data * 2 + swapped(data))
        await trainer.drain()
        decided = trainer.events.query("kind == 'policy'")
        assert "call fail: FAILED, ZeroDivisionError: no way" in decided.text.iloc[0]
        assert trainer.history["learned"].all()


@one()
async def test_a_policy_that_changes_an_attribute_is_refused_as_apply_is(c, s, a):
    def louder(model, optimizers, drift):
        model.act = torch.relu

    data = class_data(100)
    arguments = auto(mode="always", detector=spikes(), on_drift=louder)
    async with ta.Trainer(c, **arguments) as trainer:
        await stream(trainer, data * 2 + swapped(data))
        await trainer.drain()
        decided = trainer.events.query("kind == 'policy'")
        assert (
            "FAILED, ModelError: The function has changed 'act'"
            in (decided.text.iloc[0])
        )
        assert trainer.history["learned"].all()


@pytest.mark.parametrize("point", Point)
@one()
async def test_wherever_a_policy_fails_the_event_gives_the_true_rate(c, s, a, point):
    data = class_data(50)
    arguments = auto(mode="always", detector=spikes(), on_drift=Failing(point))
    async with ta.Trainer(c, **arguments) as trainer:
        await stream(trainer, data * 4)
        await stream(trainer, swapped(data))
        await trainer.drain()
        *before, failed = answers_of(trainer)
        assert failed.endswith(
            f"FAILED, ZeroDivisionError: injected into {point.value}"
        )
        assert failed.startswith("Failing" if point is Point.DESCRIBE else "learning")
        assert len(before) == (point is Point.UNDO)
        assert rate_at(a) == pytest.approx(1.0 if point is Point.UNDO else 0.2)
        state = trainer.session.drift_response.modes.state_dict(0)
        assert (state["lasting"] is not None) == (point is Point.UNDO)


@pytest.mark.parametrize("method", ["snapshot", "restore"])
@one()
async def test_a_snapshot_that_fails_is_reported(c, s, a, method, monkeypatch):
    async def fail(*args):
        raise TimeoutError("injected")

    data = class_data(50)
    arguments = auto(mode="always", detector=spikes(), on_drift=RestoreLastGood(50))
    async with ta.Trainer(c, **arguments) as trainer:
        interventions = trainer.session.barrier
        monkeypatch.setattr(interventions, method, fail)
        await stream(trainer, data * 4)
        await stream(trainer, swapped(data))
        await trainer.drain()
        reported = answers_of(trainer)
    what = "RestoreLastGood: a snapshot" if method == "snapshot" else "restore the last"
    assert reported[0].startswith(what)
    assert "FAILED, TimeoutError: injected" in reported[0]


@two()
async def test_in_mode_never_a_drift_is_reported_and_nothing_is_changed(c, s, a, b):
    data = class_data(50)
    for policy in (Reinitialise("2"), RaiseLearningRate(5, batches=20)):
        arguments = auto(mode="always", detector=Above(2.0), on_drift=policy)
        async with ta.Trainer(c, **arguments) as trainer:
            await stream(trainer, data * 4)
            await trainer.set_mode("never")
            await trainer.drain()
            before = await trainer.state_dicts()
            await stream(trainer, [(5 * x, y) for x, y in swapped(data)])
            await trainer.drain()
            after = await trainer.state_dicts()
            assert not trainer.drifts.empty
            assert answers_of(trainer) == []
            assert rate_at(a) == pytest.approx(0.2)
        for name, state in before.items():
            assert all(torch.equal(state[key], after[name][key]) for key in state)


@one()
async def test_a_value_that_cannot_be_watched_is_reported_once(c, s, a):
    def typo(report):
        return report.metrics["acc"]

    arguments = classes(mode="always", detector="optwin", watch=typo)
    async with ta.Trainer(c, **arguments) as trainer:
        await stream(trainer, class_data(10))
        (text,) = trainer.events.query("kind == 'note'").text
    assert text == "Mini-batch 0 cannot be watched for drift: KeyError: 'acc'"


@one()
async def test_a_checkpoint_says_whether_its_model_has_been_changed(c, s, a, tmp_path):
    data = class_data(50)
    policy = RaiseLearningRate(5, batches=1000)
    arguments = auto(mode="always", detector=spikes(), on_drift=policy)
    async with ta.Trainer(c, **arguments) as trainer:
        await stream(trainer, data * 4)
        alone = trainer.session.barrier.alone
        async with alone:  # as when a policy is just being carried out
            await stream(trainer, swapped(data)[:20])
            assert len(trainer.drifts) == 1
            saving = asyncio.ensure_future(trainer.save(tmp_path / "model"))
            await until(lambda: len(alone._waiters or ()) == 2)
        path = await saving
        await trainer.drain()
    checkpoint, _ = Store(path).load()
    assert checkpoint.adaptation["lasting"]["drift"]["magnitude"] > 0
    (optimizer,) = checkpoint.optimizers
    assert optimizer["param_groups"][0]["lr"] == pytest.approx(1.0)


@one()
async def test_two_trainers_that_are_given_one_convergence_have_a_copy_each(c, s, a):
    async with (
        ta.Trainer(c, **auto()) as first,
        ta.Trainer(c, **auto()) as second,
    ):
        await stream(first, class_data(70))
        seen = first.session.drift_response.modes.convergence
        assert seen.level == seen.level
        assert second.session.drift_response.modes.convergence.level != seen.level
        assert CONVERGENCE.level != CONVERGENCE.level


@one()
async def test_a_detector_watches_one_open_trainer(c, s, a):
    detector = ADWIN()
    async with ta.Trainer(c, **linear(detector=detector, name="first")):
        with pytest.raises(ConfigurationError, match=r"trainer 'first' already.*ADWIN"):
            ta.Trainer(c, **linear(detector=detector))
    async with ta.Trainer(c, **linear(detector=detector)) as trainer:
        assert trainer.session.drift_response.modes.detector is detector


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"on_drift": "restore"}, "on_drift= is given, but without a detector"),
        ({"watch": len, "on_drift": "restore"}, "on_drift= and watch= are given"),
        ({"watch": len, "mode": "auto"}, ""),
        ({"watch": len, "detector": "adwin"}, ""),
        ({}, ""),
    ],
)
@one()
async def test_what_has_no_effect_without_a_detector_is_warned_of(
    c, s, a, arguments, words, caplog
):
    with caplog.at_level(logging.WARNING, "tensair_dask"):
        ta.Trainer(c, **linear(**arguments))
    said = [
        each.getMessage()
        for each in caplog.records
        if each.name == "tensair_dask.drift.drift_config"
    ]
    assert len(said) == bool(words)
    assert words in "".join(said)


@one()
async def test_a_policy_is_checked_for_a_mode_that_is_set_later(c, s, a):
    with pytest.raises(ConfigurationError, match="no such layer"):
        await ta.Trainer(c, **classes(on_drift=Reinitialise("head")))
    while a.state.actors:
        await asyncio.sleep(0.01)


@one()
async def test_a_policy_that_the_model_does_not_allow_is_refused_at_the_start(c, s, a):
    arguments = auto(on_drift=Reinitialise("head"))
    with pytest.raises(ConfigurationError, match="no such layer"):
        await ta.Trainer(c, **arguments)
    while a.state.actors:
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mode": "sometimes"}, "mode='sometimes'"),
        ({"detector": "nose"}, "nose"),
        ({"detector": 3}, "detector is a int"),
        ({"watch": "precision"}, "watch='precision'"),
        ({"on_drift": "panic"}, "on_drift='panic'"),
        ({"convergence": "x"}, "convergence='x'"),
        ({"detector": "ddm"}, "takes errors or error rates"),
    ],
)
@one()
async def test_wrong_arguments_are_refused(c, s, a, arguments, words):
    with pytest.raises(ConfigurationError, match=words):
        ta.Trainer(c, **linear(**arguments))


@one()
async def test_options_of_mode_auto_are_reported_in_other_modes(c, s, a):
    def reported(trainer):
        return [each for each in trainer.events.text if "convergence= was" in each]

    for mode in ("always", "never", None):
        given = linear(convergence=CONVERGENCE, mode=mode)
        async with ta.Trainer(c, **given) as trainer:
            [text] = reported(trainer)
            assert repr(mode or "always") in text
    for given in (linear(convergence=CONVERGENCE, mode="auto"), linear()):
        async with ta.Trainer(c, **given) as trainer:
            assert not reported(trainer)


@one()
async def test_what_happens_is_written_into_dasks_event_log(c, s, a):
    data = steady()
    async with ta.Trainer(c, **auto()) as trainer:
        await until_phase(trainer, "predicting", data)
        await until_phase(trainer, "training", swapped(data))
        await trainer.drain()
        logged = [event for _, event in await c.get_events(TOPIC)]
        ours = [each for each in logged if each.get("run_id") == trainer.run_id]
        kinds = [each["kind"] for each in ours if "kind" in each]
        assert kinds == ["mode", "drift", "mode", "policy"]


@one()
async def test_a_trainer_may_be_closed_while_a_policy_is_carried_out(c, s, a):
    data = class_data(100)
    arguments = auto(mode="always", detector=spikes(), on_drift=Reinitialise("2"))
    trainer = await ta.Trainer(c, **arguments)
    await stream(trainer, data * 2)
    for part in range(100):
        if not trainer.drifts.empty:
            break
        await stream(trainer, swapped(data[part : part + 1]), window=1)
    assert not trainer.drifts.empty
    await trainer.close()


@one()
async def test_without_detection_reports_are_not_kept(c, s, a):
    async with ta.Trainer(c, **linear()) as trainer:
        await stream(trainer, linear_data(50))
        assert trainer.session.drift_response.modes._order._next == 0
        assert not trainer.session.drift_response.modes._order._early


def test_with_an_ordinary_client_the_same_calls_block():
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=1, processes=False, dashboard_address=None, protocol="tcp"
        ) as cluster,
        Client(cluster) as client,
        ta.Trainer(client, **classes(mode="never")) as trainer,
    ):
        (x, y), *_ = class_data(1)
        assert not trainer.train(x, y).learned
        trainer.set_mode("always")
        assert trainer.train(x, y).learned
        trainer.apply(lambda model, optimizers: model[2].reset_parameters())
        assert trainer.drifts.empty
        assert trainer.phase == "training"


ENDS = [SystemExit(1), GeneratorExit(), asyncio.CancelledError()]


@pytest.mark.parametrize("error", ENDS, ids=lambda error: type(error).__name__)
def test_what_is_watched_may_raise_what_ends_a_program(error):
    @one()
    async def run(c, s, a):
        def watch(report):
            raise error

        arguments = classes(mode="always", detector=Above(1.0), watch=watch)
        async with ta.Trainer(c, **arguments) as trainer:
            for x, y in class_data(3):
                assert (await trainer.train(x, y)).error is None
            await trainer.drain()
            reported = trainer.events["text"].tolist()
            assert sum(type(error).__name__ in text for text in reported) == 1

    run()


@pytest.mark.parametrize("error", ENDS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("place", ["function", "factor"])
def test_an_answer_to_drift_may_raise_what_ends_a_program(place, error):
    @two()
    async def run(c, s, *workers):
        def fails(*_):
            raise error

        answer = fails if place == "function" else RaiseLearningRate(fails)
        arguments = classes(mode="always", detector=Above(-1.0), on_drift=answer)
        arguments["watch"] = lambda report: 1.0
        async with ta.Trainer(c, **arguments) as trainer:
            for x, y in class_data(3):
                assert (await trainer.train(x, y)).error is None
            await trainer.drain()
            reported = [text for text in trainer.events["text"] if "FAILED" in text]
            assert reported
            assert all(type(error).__name__ in text for text in reported)
            assert len(trainer.session.replicas.alive()) == 2

    run()
