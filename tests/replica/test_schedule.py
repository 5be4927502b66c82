"""Learning rates follow the number of gradients that a model holds."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import pytest
import torch
from helpers import RATE, class_data, classes, linear, linear_data, spread, train_all
from lab import cluster
from torch.optim import lr_scheduler

import tensair_dask as ta
from tensair_dask._common.notices import Notices
from tensair_dask.adaptation import RaiseLearningRate
from tensair_dask.errors import BatchError, ConfigurationError, OptimizerError
from tensair_dask.replica.schedule import Schedule

part = functools.partial


def falling(gradients: int) -> float:
    return 1 / (1 + gradients)


def sequence(optimizer: Any) -> Any:
    warm_up = lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5)
    rest = lr_scheduler.CosineAnnealingLR(optimizer, 20)
    return lr_scheduler.SequentialLR(optimizer, [warm_up, rest], [5])


class Own(lr_scheduler.LRScheduler):
    """Goes on from the rate that it finds, as many do."""

    def get_lr(self) -> list[float]:
        if not self.last_epoch:
            return [group["lr"] for group in self.optimizer.param_groups]
        return [group["lr"] * 0.9 for group in self.optimizer.param_groups]


FACTORIES = {
    "lambda": part(lr_scheduler.LambdaLR, lr_lambda=falling),
    "step": part(lr_scheduler.StepLR, step_size=4),
    "milestones": part(lr_scheduler.MultiStepLR, milestones=[3, 7]),
    "constant": part(lr_scheduler.ConstantLR, factor=0.3, total_iters=6),
    "linear": part(lr_scheduler.LinearLR, start_factor=0.2, total_iters=9),
    "exponential": part(lr_scheduler.ExponentialLR, gamma=0.9),
    "polynomial": part(lr_scheduler.PolynomialLR, total_iters=15, power=2.0),
    "cosine": part(lr_scheduler.CosineAnnealingLR, T_max=10),
    "restarts": part(lr_scheduler.CosineAnnealingWarmRestarts, T_0=4, T_mult=2),
    "one cycle": part(lr_scheduler.OneCycleLR, max_lr=0.5, total_steps=40),
    "cyclic": part(
        lr_scheduler.CyclicLR, base_lr=0.1, max_lr=0.5, step_size_up=3, mode="exp_range"
    ),
    "multiplied": part(lr_scheduler.MultiplicativeLR, lr_lambda=lambda k: 0.95),
    "a sequence": sequence,
    "one of the user's": Own,
}


def optimizer(**options: Any) -> torch.optim.Optimizer:
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    groups = [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.3}]
    return torch.optim.SGD(groups, **{"lr": 0.2, "momentum": 0.5, **options})


def rates(*optimizers: torch.optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for each in optimizers for group in each.param_groups]


def alone(factory: Any, steps: int) -> list[list[float]]:
    """The rates that torch gives after each step."""
    one = optimizer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = factory(one)
        reported = [rates(one)]
        for _ in range(steps):
            scheduler.step()
            reported.append(rates(one))
    return reported


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize(
    "counts",
    [range(31), (0, 3, 4, 11, 30), (30, 2, 2, 17)],
    ids=["each", "jumps", "back"],
)
def test_schedulers_of_torch_give_the_rates_that_they_give_alone(name, counts):
    expected = alone(FACTORIES[name], 30)
    one = optimizer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule = Schedule(FACTORIES[name], [one], Notices())
        for count in counts:
            schedule.follow(count)
            assert rates(one) == pytest.approx(expected[count], rel=1e-6), count


@pytest.mark.parametrize("name", ["one cycle", "cyclic"])
def test_schedulers_that_move_the_momentum_do_so(name):
    one, reference = optimizer(), optimizer()
    schedule = Schedule(FACTORIES[name], [one], Notices())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = FACTORIES[name](reference)
        for _ in range(7):
            scheduler.step()
    schedule.follow(7)
    for mine, theirs in zip(one.param_groups, reference.param_groups, strict=True):
        assert mine["momentum"] == pytest.approx(theirs["momentum"]) != 0.5


def test_a_function_gives_a_factor_for_all_groups_of_all_optimizers():
    one, two = optimizer(), optimizer(lr=1.0)
    schedule = Schedule(falling, [one, two], Notices())
    assert rates(one, two) == pytest.approx([0.2, 0.3, 1.0, 0.3])
    schedule.follow(9)
    assert rates(one, two) == pytest.approx([0.02, 0.03, 0.1, 0.03])


def test_a_rate_may_be_a_tensor():
    one = optimizer(lr=torch.tensor(0.2))
    rate = one.param_groups[0]["lr"]
    Schedule(falling, [one], Notices()).follow(1)
    assert one.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(0.1)


@pytest.mark.parametrize("given", [falling, FACTORIES["exponential"], Own])
def test_rates_that_are_changed_by_hand_go_on_from_there(given):
    one = optimizer()
    schedule = Schedule(given, [one], Notices())
    schedule.follow(3)
    before = rates(one)
    one.param_groups[0]["lr"] *= 4
    schedule.keep_changes()
    schedule.follow(4)
    after_one = alone(given, 4)[4] if given is not falling else [0.2 / 5, 0.3 / 5]
    assert rates(one) == pytest.approx([4 * after_one[0], after_one[1]])
    schedule.follow(3)
    assert rates(one) == pytest.approx([4 * before[0], before[1]])


def test_a_state_that_is_taken_over_goes_on_where_its_clock_is():
    one = optimizer()
    schedule = Schedule(Own, [one], Notices())
    schedule.follow(3)
    one.param_groups[1]["lr"] *= 2
    schedule.keep_changes()
    other = optimizer(lr=7.0)
    taken = Schedule(Own, [other], Notices())
    taken.follow(9)
    other.load_state_dict(one.state_dict())
    taken.begin()
    assert rates(other) == rates(one)
    schedule.follow(8)
    taken.follow(8)
    assert rates(other) == pytest.approx(rates(one))


def test_a_one_cycle_that_has_ended_stays_at_its_last_rate():
    one = optimizer()
    schedule = Schedule(FACTORIES["one cycle"], [one], Notices())
    schedule.follow(39)
    last = rates(one)
    schedule.follow(1000)
    assert rates(one) == last == pytest.approx(alone(FACTORIES["one cycle"], 39)[39])


@pytest.mark.parametrize("counts", [range(200), (0, 39, 40, 41, 500), (77,)])
def test_that_one_cycle_has_ended_is_said_once_when_it_is_over(counts):
    notices = Notices()
    schedule = Schedule(FACTORIES["one cycle"], [optimizer()], notices)
    reported = []
    for count in counts:
        schedule.follow(count)
        reported += [(count, text) for text in notices.take().values()]
    ((when, text),) = reported
    assert when == next(count for count in counts if count >= 40)
    assert "OneCycleLR has total_steps=40" in text
    assert f"holds {when} gradients, those of all replicas" in text
    assert "2e-06" in text


def stops(gradients: int) -> float:
    return max(0.0, 1 - gradients / 50)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (stops, "the function stops"),
        (part(lr_scheduler.LambdaLR, lr_lambda=stops), "LambdaLR"),
        (part(lr_scheduler.PolynomialLR, total_iters=50), "PolynomialLR"),
        (part(lr_scheduler.MultiplicativeLR, lr_lambda=stops), "MultiplicativeLR"),
    ],
)
@pytest.mark.parametrize("step", [1, 7])
def test_rates_that_stay_at_0_are_said_once(given, named, step):
    notices = Notices()
    schedule = Schedule(given, [optimizer()], notices)
    for count in range(0, 140, step):
        schedule.follow(count)
    assert notices.take() == {}
    for count in range(140, 400, step):
        schedule.follow(count)
    (said,) = notices.take().values()
    assert named in said
    assert "nothing is learned" in said


@pytest.mark.parametrize("name", [name for name in FACTORIES if name != "one cycle"])
def test_schedules_without_an_end_say_nothing(name):
    notices = Notices()
    schedule = Schedule(FACTORIES[name], [optimizer()], notices)
    for count in range(500):
        schedule.follow(count)
    expected = [] if name != "polynomial" else ["schedule-idle"]
    assert list(notices.take()) == expected


@pytest.mark.parametrize("wrong", [-0.5, math.nan, math.inf])
@pytest.mark.parametrize("kind", [lr_scheduler.LambdaLR, lr_scheduler.MultiplicativeLR])
def test_rates_that_are_none_are_refused(kind, wrong):
    given = part(kind, lr_lambda=lambda k: wrong if k == 3 else 1.0)
    schedule = Schedule(given, [optimizer()], Notices())
    schedule.follow(2)
    with pytest.raises(OptimizerError, match="holds 3 gradients; a finite number"):
        schedule.follow(3)


def test_what_rounding_leaves_below_0_is_0():
    one = optimizer()
    given = part(lr_scheduler.LambdaLR, lr_lambda=lambda k: -1e-17 if k else 1.0)
    Schedule(given, [one], Notices()).follow(1)
    assert rates(one) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda gradients: -1.0, "returned -1"),
        (lambda gradients: math.nan, "returned nan"),
        (lambda optimizer: optimizer.param_groups, "returned a list"),
        (lr_scheduler.StepLR, "step_size"),
        (part(lr_scheduler.ReduceLROnPlateau, patience=3), "asks for a score"),
    ],
)
def test_what_is_no_schedule_is_refused_at_the_start(given, said):
    with pytest.raises(OptimizerError, match=said):
        Schedule(given, [optimizer()], Notices())


@pytest.mark.parametrize(
    "given", [lambda gradients: 1 / (3 - gradients), lambda k: -1.0 if k == 3 else 1.0]
)
def test_a_schedule_that_fails_later_names_itself_and_the_count(given):
    schedule = Schedule(given, [optimizer()], Notices())
    schedule.follow(2)
    with pytest.raises(OptimizerError, match=r"schedule\(3\)"):
        schedule.follow(3)


# ---- on replicas --------------------------------------------------------------------


def learners(trainer: Any, workers: Any) -> list[Any]:
    held = {key: each for w in workers for key, each in w.state.actors.items()}
    return [held[handle.key].learner for handle in trainer.session.replicas.alive()]


async def rates_now(trainer: Any, workers: Any) -> list[float]:
    """Of each replica, the rate of its next step."""
    reported = []
    held = {key: each for w in workers for key, each in w.state.actors.items()}
    for handle in trainer.session.replicas.alive():
        replica = held[handle.key]
        version = replica.exchange.clock.version
        await replica.thread.call(part(replica.learner.follow, version))
        reported.extend(rates(*replica.learner.optimizers))
    return reported


@pytest.mark.parametrize(
    "given", [falling, FACTORIES["lambda"], FACTORIES["step"], Own]
)
def test_all_replicas_are_where_the_clock_is(given, tmp_path):
    @cluster(2)
    async def run(c, s, *workers):
        data = class_data(60)
        arguments = classes(schedule=given, replicas=1)
        plain = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        reference = Schedule(given, [plain], Notices())

        def expected(gradients: int, factor: float = 1.0) -> Any:
            reference.follow(gradients)
            return pytest.approx([factor * rates(plain)[0]] * 2, rel=1e-5)

        async with ta.Trainer(c, **arguments) as trainer:
            assert trainer.share == "update"
            await train_all(trainer, data[:20])
            await trainer.scale(2)  # one joins
            assert await rates_now(trainer, workers) == expected(20)
            await train_all(trainer, data[20:50])
            assert await rates_now(trainer, workers) == expected(50)
            await trainer.apply(lambda model, optimizers: None)  # one takes over
            assert await rates_now(trainer, workers) == expected(50)
            assert spread(await trainer.state_dicts()) <= 1e-5
            await trainer.apply(halve)
            await trainer.save(tmp_path / "file")
        again = ta.Trainer.restore(tmp_path / "file", c, **{**arguments, "replicas": 2})
        async with again as trainer:
            assert await rates_now(trainer, workers) == expected(50, 0.5)
            await train_all(trainer, data[50:])
            assert await rates_now(trainer, workers) == expected(60, 0.5)

    run()


def halve(model: Any, optimizers: Any) -> None:
    for group in optimizers[0].param_groups:
        group["lr"] /= 2


@cluster(2)
async def test_what_is_learned_is_what_one_process_learns(c, s, a, b):
    # Linear: each gradient counts with the rate of its place in the order of learning.
    data = linear_data(30)
    async with ta.Trainer(c, **linear(schedule=falling, replicas=1)) as trainer:
        for x, y in data:
            await trainer.train(x, y)
        total = sum(
            falling(place) * (y.astype("float64").T @ x.astype("float64"))
            for place, (x, y) in enumerate(data)
        )
        state = await trainer.state_dict()
        expected = torch.from_numpy(1.0 - RATE * total)
        assert torch.allclose(state["weight"].double(), expected, atol=1e-5)


@cluster(2)
async def test_a_policy_raises_the_rates_of_a_schedule_and_takes_that_back(c, s, *w):
    policy = RaiseLearningRate(4.0, batches=10)

    def from_zero(gradients: int) -> float:
        return 0.0 if gradients < 10 else falling(gradients)

    def raised(model, optimizers):
        policy.on_drift(model, optimizers, None)

    def undone(model, optimizers):
        policy.undo(model, optimizers, None)

    async with ta.Trainer(c, **classes(schedule=from_zero)) as trainer:
        await trainer.apply(raised)  # also while the rate is 0
        await train_all(trainer, class_data(20))
        assert await rates_now(trainer, w) == pytest.approx([0.4 / 21] * 2)
        await trainer.apply(undone)
        await train_all(trainer, class_data(20))
        assert await rates_now(trainer, w) == pytest.approx([0.1 / 41] * 2)


@cluster(2)
async def test_a_model_of_before_goes_on_at_the_clock_of_now(c, s, *workers):
    async with ta.Trainer(c, **classes(schedule=falling)) as trainer:
        await train_all(trainer, class_data(10))
        snapshot = await trainer.session.barrier.snapshot()
        await train_all(trainer, class_data(10))
        await trainer.apply(halve)
        await trainer.session.barrier.restore(snapshot)
        assert await rates_now(trainer, workers) == pytest.approx([0.1 / 21] * 2)


@cluster(1)
async def test_a_rate_that_is_set_while_the_schedule_is_at_zero_is_said(c, s, a):
    async with ta.Trainer(c, **classes(schedule=lambda gradients: 0.0)) as trainer:
        await trainer.apply(lambda model, optimizers: set_to(optimizers, 0.5))
        await trainer.drain()
        assert any("has no effect" in text for text in trainer.events["text"])


def set_to(optimizers: Any, rate: float) -> None:
    optimizers[0].param_groups[0]["lr"] = rate


@cluster(1)
async def test_a_checkpoint_of_a_schedule_that_is_not_given_again_is_said(
    c, s, a, tmp_path
):
    async with ta.Trainer(c, **classes(schedule=falling)) as trainer:
        await train_all(trainer, class_data(5))
        await trainer.save(tmp_path / "file")
    async with ta.Trainer.restore(tmp_path / "file", c, **classes()) as trainer:
        await trainer.drain()
        assert any("schedule= again" in text for text in trainer.events["text"])


@cluster(1)
async def test_schedules_that_cannot_be_used_are_refused_at_the_start(c, s, a):
    with pytest.raises(ConfigurationError, match="schedule is a float"):
        ta.Trainer(c, **classes(schedule=0.1))
    with pytest.raises(OptimizerError, match="asks for a score"):
        await ta.Trainer(c, **classes(schedule=lr_scheduler.ReduceLROnPlateau))


@cluster(1)
async def test_a_schedule_that_fails_refuses_what_would_be_learned_with_it(c, s, a):
    async with ta.Trainer(c, **classes(schedule=lambda k: 1 / (2 - k))) as trainer:
        reports = [await trainer.train(x, y) for x, y in class_data(4)]
        assert [report.error is None for report in reports] == [
            True,
            True,
            False,
            False,
        ]
        assert "schedule(2) raised ZeroDivisionError" in str(reports[2].error)


@cluster(2)
async def test_both_optimizers_of_a_model_follow(c, s, *workers):
    arguments = linear(
        model=lambda: torch.nn.Sequential(
            torch.nn.EmbeddingBag(9, 4, sparse=True), torch.nn.Linear(4, 3)
        ),
        loss=torch.nn.functional.cross_entropy,
        optimizer={
            "dense": part(torch.optim.Adam, lr=0.1),
            "sparse": part(torch.optim.SparseAdam, lr=0.2),
        },
        schedule=falling,
    )
    words = torch.randint(0, 9, (8, 3))
    async with ta.Trainer(c, **arguments) as trainer:
        await train_all(trainer, [(words, words.sum(1) % 3)] * 9)
        assert await rates_now(trainer, workers) == pytest.approx([0.01, 0.02] * 2)
        assert spread(await trainer.state_dicts()) <= 1e-5


@cluster(2)
async def test_users_hear_of_the_end_of_a_schedule_and_of_rates_that_are_none(
    c, s, a, b
):
    cycle = part(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=20)
    async with ta.Trainer(c, **classes(schedule=cycle)) as trainer:
        await train_all(trainer, class_data(40))
        (text,) = trainer.events.text[trainer.events.kind == "note"]
        assert "total_steps=20" in text
    falls = part(lr_scheduler.LambdaLR, lr_lambda=lambda k: 1 - k / 10)
    async with ta.Trainer(c, **classes(schedule=falls, replicas=1)) as trainer:
        reports = await train_all(trainer, class_data(15))
        errors = [report.error for report in reports if report.error is not None]
        assert len(errors) == 4
        assert all(isinstance(each, BatchError) for each in errors)
        assert "LambdaLR" in str(errors[0])
