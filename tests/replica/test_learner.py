"""One learner, no cluster: what a step does, and what it refuses."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import pytest
import torch
from learners import CPU, SGD, data, generator, learner
from torch import nn

from tensair_dask.batches.batch import Block, MiniBatch
from tensair_dask.errors import (
    BatchError,
    ForwardError,
    LossError,
    ModelError,
    NonFiniteError,
    OptimizerError,
)
from tensair_dask.exchange.finite import all_finite
from tensair_dask.exchange.gradients import Gradients
from tensair_dask.replica.learner import Learner


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD,
        functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
        functools.partial(torch.optim.Adam, lr=0.01),
    ],
    ids=["sgd", "momentum", "adam"],
)
@pytest.mark.parametrize("share", ["gradient", "update"])
def test_steps_are_those_of_a_plain_loop(optimizer, share):
    ours = learner(mlp, optimizer=optimizer, share=share)
    torch.manual_seed(0)
    plain = mlp()
    stepper = optimizer(plain.parameters())
    x, y = data()
    for _ in range(20):
        step, _ = ours.learn(x, y, len(x))
        stepper.zero_grad()
        loss = nn.functional.cross_entropy(plain(x), y)
        assert step.loss == pytest.approx(loss.item(), abs=1e-6)  # before learning
        loss.backward()
        stepper.step()
    for mine, theirs in zip(ours.model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


@pytest.mark.parametrize(
    "optimizer",
    [SGD, functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)],
    ids=["over the arena", "torch's own"],
)
def test_gradients_of_peers_go_through_the_receivers_own_optimizer(optimizer):
    one, two = learner(optimizer=optimizer), learner(optimizer=optimizer)
    x, y = data()
    _, changes = one.learn(x, y, 8)
    buffers = one.arena.layout.zeros(CPU)
    for view, change in zip(
        one.arena.layout.views(buffers), changes.dense, strict=True
    ):
        view.copy_(change)
    two.apply(Gradients(buffers))
    for mine, theirs in zip(
        one.model.parameters(), two.model.parameters(), strict=True
    ):
        assert torch.allclose(mine, theirs)


def test_updates_of_peers_are_added_as_they_are():
    adam = functools.partial(torch.optim.Adam, lr=0.1)
    two = learner(optimizer=adam, share="update")
    before = [buffer.clone() for buffer in two.arena.buffers]
    updates = [torch.rand_like(buffer) for buffer in before]
    two.apply(Gradients(updates))
    for was, now, update in zip(before, two.arena.buffers, updates, strict=True):
        assert torch.allclose(now, was + update)


class Branches(nn.Module):
    """Uses one of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(3, 2)
        self.right = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.left(x) if x.sum() > 0 else self.right(x)


def test_a_parameter_without_a_gradient_does_not_move_here_or_at_a_peer():
    decay = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.5)
    one, two = learner(Branches, optimizer=decay), learner(Branches, optimizer=decay)
    x, y = data()
    _, changes = one.learn(x, y, 8)
    right = [two.model.right.weight.detach().clone(), one.model.right.weight.detach()]
    assert changes.dense[2] is None
    buffers = one.arena.layout.zeros(CPU)
    two.apply(Gradients(buffers, frozenset({0, 1})))
    assert torch.equal(right[0], right[1])
    assert torch.equal(two.model.right.weight, right[0])
    assert not torch.equal(two.model.left.weight, right[0])  # decayed


def test_frozen_layers_stay_and_shared_weights_are_trained_once():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Linear(3, 3)
            self.frozen.requires_grad_(False)
            self.one = nn.Linear(3, 3, bias=False)
            self.two = nn.Linear(3, 3, bias=False)
            self.two.weight = self.one.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(self.frozen(x)))

    ours = learner(Tied)
    frozen = ours.model.frozen.weight.clone()
    was = ours.model.one.weight.clone()
    _, changes = ours.learn(*data(), 8)
    assert len(changes.dense) == 1
    assert torch.equal(ours.model.frozen.weight, frozen)
    assert torch.allclose(ours.model.two.weight, was - 0.1 * changes.dense[0])


def test_several_inputs_are_positional_or_keyword_arguments():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
            return self.layer(left - right)

    ours = learner(Two)
    x, y = data()
    ours.learn((x, x / 2), y, 8)
    ours.learn({"right": x / 2, "left": x}, y, 8)
    with pytest.raises(ForwardError, match="TypeError"):
        ours.learn({"wrong": x}, y, 8)


def test_prediction_is_made_in_evaluation_mode_and_modes_are_put_back():
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.9))
        model.append(nn.Linear(4, 2))
        model[1].eval()  # a user's choice
        return model

    ours = learner(build)
    x, _ = data()
    assert torch.equal(ours.predict(x), ours.predict(x))
    assert [module.training for module in ours.model] == [True, False, True, True]


def test_a_stateful_metric_gives_the_value_of_each_mini_batch_alone():
    torchmetrics = pytest.importorskip("torchmetrics")
    metric = torchmetrics.Accuracy(task="multiclass", num_classes=2)
    plain = lambda p, y: (p.argmax(1) == y).float().mean()  # noqa: E731
    ours = learner(metrics={"theirs": metric, "plain": plain})
    x, y = data(32)
    for part in range(4):
        rows = slice(8 * part, 8 * part + 8)
        step, _ = ours.learn(x[rows], y[rows], 8)
        assert step.metrics[0] == pytest.approx(step.metrics[1])
    evaluation = ours.evaluation()
    for part in range(4):
        rows = slice(8 * part, 8 * part + 8)
        evaluation.add(x[rows], y[rows], 8)
    scores = evaluation.result()
    expected = (ours.predict(x).argmax(1) == y).float().mean().item()
    assert scores["theirs"] == pytest.approx(expected)
    assert scores["plain"] == pytest.approx(expected)
    assert scores["samples"] == 32


def test_predictions_are_kept_on_request():
    ours = learner(keep_predictions=True)
    x, y = data()
    expected = ours.predict(x)
    step, _ = ours.learn(x, y, 8)
    assert np.allclose(step.prediction, expected)


def raises(*_: Any) -> Any:
    raise RuntimeError("no luck")


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        ({"loss": raises}, LossError, "no luck"),
        ({"loss": lambda p, y: (p - 1) ** 2}, LossError, "scalar tensor is needed"),
        ({"loss": lambda p, y: 3.0}, LossError, "a float"),
        ({"loss": lambda p, y: p.detach().sum()}, LossError, "depend on"),
        ({"loss": lambda p, y: p.sum() * float("inf")}, NonFiniteError, "diverged"),
        ({"model": lambda: Junk(None)}, LossError, "NoneType"),
        ({"model": lambda: Junk("text")}, LossError, "str"),
    ],
)
def test_a_step_that_cannot_be_taken_is_refused_and_changes_nothing(
    overrides, error, words
):
    ours = learner(**overrides)
    before = [p.detach().clone() for p in ours.model.parameters()]
    with pytest.raises(error, match=words) as raised:
        ours.learn(*data(), 8)
    assert isinstance(raised.value, BatchError)
    for was, now in zip(before, ours.model.parameters(), strict=True):
        assert torch.equal(was, now)
        assert now.grad is None


def rooted(prediction: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Finite at 0, where its derivative is not."""
    return (prediction - prediction.detach()).square().sum().sqrt()


@pytest.mark.parametrize("sparse", [False, True])
def test_a_step_whose_gradient_is_not_finite_is_refused_and_changes_nothing(sparse):
    build = functools.partial(nn.EmbeddingBag, 20, 2, sparse=True) if sparse else mlp
    ours = learner(build, loss=rooted)
    x, y = (torch.zeros(8, 3, dtype=torch.int64), None) if sparse else data()
    before = copy.deepcopy(ours.state_dict())
    with pytest.raises(NonFiniteError, match=r"gradient is not finite.*loss is \(0\.0"):
        ours.learn(x, y, 8)
    for name, now in ours.state_dict().items():
        assert torch.equal(before[name], now)
    assert all(each.grad is None for each in ours.arena.parameters)


def test_a_gradient_whose_sum_overflows_is_finite():
    huge = torch.full((4,), 3e38)
    assert all_finite([huge, huge])
    assert not all_finite([huge, torch.tensor([float("-inf")])])
    assert all_finite([])


def exits(*_: Any) -> None:
    raise SystemExit(3)


class Junk(nn.Module):
    """A model that returns the wrong thing."""

    def __init__(self, what: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.what = what

    def forward(self, x: torch.Tensor) -> Any:
        return self.what


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        ({"model": raises}, ModelError, "no luck.*called without arguments"),
        ({"model": exits}, ModelError, "SystemExit: 3"),
        ({"model": lambda: "text"}, ModelError, "returned str"),
        ({"model": lambda: nn.LazyLinear(2)}, ModelError, "lazy"),
        ({"model": nn.Identity}, ModelError, "nothing to train"),
        ({"optimizer": raises}, OptimizerError, "no luck.*trainable parameters"),
        ({"optimizer": exits}, OptimizerError, "SystemExit: 3"),
        ({"optimizer": lambda p: None}, OptimizerError, "NoneType"),
        ({"optimizer": torch.optim.LBFGS}, OptimizerError, "first-order"),
    ],
)
def test_factories_that_build_nothing_useful_are_refused(overrides, error, words):
    with pytest.raises(error, match=words):
        learner(**overrides)


@pytest.mark.parametrize(
    ("x", "y", "error", "words"),
    [
        (np.zeros((4, 3)), np.zeros(4, int), "DtypeError", r"astype\('float32'\)"),
        (np.zeros((4, 9), "f4"), np.zeros(4, int), "ShapeError", r"x \(4, 9\) float32"),
        (np.zeros((4, 3), "f4"), np.zeros(4, "f4"), "DtypeError", "int64"),
    ],
)
@pytest.mark.parametrize("learned_before", [False, True])
def test_a_refusal_says_what_was_given_and_what_is_allowed(
    x, y, error, words, learned_before
):
    ours = learner()
    if learned_before:
        good = MiniBatch.of(np.zeros((4, 3), "f4"), np.zeros(4, int))
        ours.learned_kind = good.kind
    group = Block.join("run", [MiniBatch.of(x, y)]).groups[0]
    with pytest.raises(BatchError) as raised:
        ours.learn(torch.from_numpy(x), torch.from_numpy(y), 4)
    refusal = ours.refusal(raised.value, group, 4)
    assert type(refusal).__name__ == error
    assert "Given: x (4, " in str(refusal)
    assert pytest.importorskip("re").search(words, str(refusal))
    if learned_before:
        assert "Learned before: x (n, 3) float32" in str(refusal)


def test_all_learners_of_a_seed_begin_alike_and_leave_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    one, two = learner(mlp, seed=7), learner(mlp, seed=7)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(one.model[0].weight, two.model[0].weight)
    assert not torch.equal(one.model[0].weight, learner(mlp, seed=8).model[0].weight)


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD,
        functools.partial(torch.optim.Adagrad, lr=0.1),
    ],
)
@pytest.mark.parametrize("share", ["gradient", "update"])
def test_sparse_tables_learn_as_in_a_plain_loop(optimizer, share):
    def build() -> nn.Module:
        return nn.Sequential(nn.EmbeddingBag(20, 4, sparse=True), nn.Linear(4, 2))

    ours = learner(build, optimizer=optimizer, share=share)
    torch.manual_seed(0)
    plain = build()
    stepper = optimizer(plain.parameters())
    x, y = torch.randint(0, 20, (8, 3)), torch.randint(0, 2, (8,))
    for _ in range(5):
        _, changes = ours.learn(x, y, 8)
        stepper.zero_grad()
        nn.functional.cross_entropy(plain(x), y).backward()
        stepper.step()
        assert len(changes.rows) == 1
    assert torch.allclose(ours.model[0].weight, plain[0].weight, atol=1e-6)


def words_and_layer() -> nn.Module:
    return nn.Sequential(nn.EmbeddingBag(20, 4, sparse=True), nn.Linear(4, 2))


ADAMS = {
    "sparse": functools.partial(torch.optim.SparseAdam, lr=0.1),
    "dense": functools.partial(torch.optim.Adam, lr=0.1),
}


def test_tables_and_layers_can_have_an_optimizer_each():
    ours = learner(words_and_layer, optimizer=ADAMS)
    torch.manual_seed(0)
    plain = words_and_layer()
    steppers = [
        ADAMS["sparse"](list(plain[0].parameters())),
        ADAMS["dense"](list(plain[1].parameters())),
    ]
    x, y = torch.randint(0, 20, (8, 3)), torch.randint(0, 2, (8,))
    for _ in range(5):
        ours.learn(x, y, 8)
        plain.zero_grad()
        nn.functional.cross_entropy(plain(x), y).backward()
        for stepper in steppers:
            stepper.step()
    for mine, theirs in zip(ours.model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_the_state_of_both_optimizers_is_taken_over():
    one, two = (learner(words_and_layer, optimizer=ADAMS) for _ in range(2))
    x, y = torch.randint(0, 20, (8, 3)), torch.randint(0, 2, (8,))
    one.learn(x, y, 8)
    states = [each.state_dict() for each in one.optimizers]
    two.load(one.state_dict(), copy.deepcopy(states))  # as it arrives from a peer
    for each in (one, two):
        each.learn(x, y, 8)
    first, second = one.model.parameters(), two.model.parameters()
    for mine, theirs in zip(first, second, strict=True):
        assert torch.allclose(mine, theirs)


@pytest.mark.parametrize("other", ["Adam", "RMSprop", "AdamW", "Adagrad", "Adadelta"])
def test_the_state_of_another_optimizer_is_refused(other):
    one = learner()
    ours = learner(optimizer=getattr(torch.optim, other))
    with pytest.raises(OptimizerError, match=rf"not of {other}, which needs \w+.*lr"):
        ours.load(**copy.deepcopy(taken(one)))


def test_a_state_of_the_same_settings_with_which_no_step_is_possible_is_refused():
    one = learner(optimizer=torch.optim.Adam)
    two = learner(optimizer=torch.optim.Adamax)
    one.learn(*data(), 8)
    two.load(**copy.deepcopy(taken(one)))
    with pytest.raises(OptimizerError, match=r"not of Adamax.*KeyError: 'exp_inf'"):
        two.try_step()


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("kind", ["SGD", "Adam", "Adagrad", "NAdam", "ASGD", "Rprop"])
def test_to_try_a_step_changes_nothing(kind, steps):
    one, two = (learner(optimizer=getattr(torch.optim, kind)) for _ in range(2))
    for each in (one, two):
        for _ in range(steps):
            each.learn(*data(), 8)
    two.try_step()
    for each in (one, two):
        each.learn(*data(), 8)
    for mine, theirs in zip(one.arena.buffers, two.arena.buffers, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "Adafactor", "Adagrad", "NAdam"])
def test_the_state_of_the_same_optimizer_is_taken_over_again_and_again(kind):
    optimizer = getattr(torch.optim, kind)
    one, two = (learner(optimizer=optimizer) for _ in range(2))
    for _ in range(3):
        one.learn(*data(), 8)
        two.load(**copy.deepcopy(taken(one)))
    one.learn(*data(), 8)
    two.learn(*data(), 8)
    for mine, theirs in zip(one.arena.buffers, two.arena.buffers, strict=True):
        assert torch.equal(mine, theirs)


def test_settings_of_the_optimizer_are_those_that_are_taken_over():
    one = learner(optimizer=functools.partial(torch.optim.SGD, lr=0.5, momentum=0.9))
    two = learner()
    two.load(**copy.deepcopy(taken(one)))
    (group,) = two.optimizers[0].param_groups
    assert (group["lr"], group["momentum"]) == (0.5, 0.9)


def taken(one: Learner) -> dict[str, Any]:
    """Arguments of `load`, from a snapshot."""
    snapshot = one.snapshot()
    return {"state": snapshot["model"], "optimizers": snapshot["optimizers"]}


def test_a_missing_optimizer_is_reported():
    with pytest.raises(OptimizerError, match=r"has sparse parameters.*'sparse': torch"):
        learner(words_and_layer, optimizer={"dense": SGD})
    learner(mlp, optimizer={"dense": SGD})  # has no table


def test_sparse_adam_alone_trains_a_model_of_tables():
    ours = learner(
        lambda: nn.EmbeddingBag(20, 2, sparse=True), optimizer=ADAMS["sparse"]
    )
    x, y = torch.randint(0, 20, (8, 3)), torch.randint(0, 2, (8,))
    losses = [ours.learn(x, y, 8)[0].loss for _ in range(5)]
    assert losses == sorted(losses, reverse=True)


class Restless(nn.Module):
    """Does something to itself whenever it is called in training mode."""

    def __init__(self, do: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.do = do

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.do(self)
        return self.frozen(self.layer(x))


def nothing(model):
    pass


def assign_data(model):
    model.layer.weight.data = model.layer.weight.data.clone()


def assign_state(model):
    model.load_state_dict(model.state_dict(), assign=True)


def thaw(model):
    model.frozen.requires_grad_(True)


def layer_anew(model):
    old, model.layer = model.layer, nn.Linear(3, 2)
    model.layer.load_state_dict(old.state_dict())


@pytest.mark.parametrize("share", ["gradient", "update"])
@pytest.mark.parametrize("optimizer", [SGD, torch.optim.Adam])
@pytest.mark.parametrize("do", [assign_data, assign_state, thaw, layer_anew])
def test_a_model_that_moves_its_parameters_learns_as_one_that_does_not(
    do, optimizer, share
):
    ours, plain = (
        learner(lambda do=each: Restless(do), optimizer=optimizer, share=share)
        for each in (do, nothing)
    )
    x, y = data()
    for _ in range(5):
        for each in (ours, plain):
            each.learn(x, y, 8)
            gradients = [torch.full_like(one, 0.1) for one in each.arena.buffers]
            each.apply(Gradients(gradients))
    for mine, theirs in zip(
        ours.model.parameters(), plain.model.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)
    said, said_of_plain = (
        set(each.notices.take()) - {"share"}  # of gradients that Adam is given
        for each in (ours, plain)
    )
    assert len(said) == 1
    assert not said_of_plain


def test_a_layer_that_appears_while_it_runs_is_refused_with_advice():
    def append(model):
        model.late = nn.Linear(2, 2)

    ours = learner(lambda: Restless(append))
    for _ in range(2):
        with pytest.raises(ForwardError, match=r"'late.weight' has appeared.*factory"):
            ours.learn(*data(), 8)


def test_a_model_that_restructures_itself_to_answer_goes_on_as_it_was():
    class Growing(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.training:
                self.weight = nn.Parameter(torch.zeros(5, 3))
                return x
            return super().forward(x)

    ours = learner(lambda: Growing(3, 2))
    x, y = data()
    ours.predict(x)
    ours.apply(Gradients([torch.zeros_like(each) for each in ours.arena.buffers]))
    assert "restructured" in ours.notices.take()
    ours.learn(x, y, 8)


class NeedsClosure(torch.optim.SGD):
    """As optimizers that look ahead do."""

    def step(self, closure: Any = None) -> Any:
        return closure() + super().step()


class Tied(nn.Module):
    """A table that is the last layer, too, so that its gradient is dense."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4, sparse=True)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(x))


def table() -> nn.Module:
    return nn.EmbeddingBag(20, 2, sparse=True)


class Beside(nn.Module):
    """A table beside a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = table()
        self.head = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("model", "optimizer", "words"),
    [
        (table, torch.optim.Adam, "sparse gradients.*'sparse': torch.optim.SparseAdam"),
        (table, torch.optim.RMSprop, "RMSprop cannot step.*sparse=False"),
        (None, torch.optim.SparseAdam, "dense gradients.*torch.optim.Adam"),
        (None, functools.partial(NeedsClosure, lr=0.1), "without a closure"),
        (Beside, {"dense": SGD, "sparse": torch.optim.Adam}, "SGD, Adam cannot step"),
        (Beside, torch.optim.SparseAdam, "dense gradients"),
    ],
)
def test_an_optimizer_that_cannot_step_with_the_model_is_refused_at_the_start(
    model, optimizer, words
):
    with pytest.raises(OptimizerError, match=words):
        learner(model, optimizer=optimizer)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop])
def test_a_table_that_is_tied_to_a_layer_steps_as_a_layer(kind):
    ours = learner(Tied, optimizer=kind)
    before = ours.state_dict()
    y = torch.arange(8) % 5
    ours.learn(y, y, 8)
    assert not torch.equal(before["table.weight"], ours.state_dict()["table.weight"])


def test_to_see_at_the_start_that_it_steps_leaves_no_trace():
    calls: list[str] = []

    class Counting(torch.optim.SGD):
        steps = 0

        def step(self, closure: Any = None) -> None:
            self.steps += 1
            super().step()

    def build(parameters: Any) -> Any:
        optimizer = Counting(parameters, lr=0.1, momentum=0.9, weight_decay=0.5)
        optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
        optimizer.register_step_post_hook(lambda *_: calls.append("after"))
        return optimizer

    ours, plain = learner(optimizer=build), learner()
    (optimizer,) = ours.optimizers
    assert (calls, optimizer.steps, dict(optimizer.state)) == ([], 0, {})
    assert all(parameter.grad is None for parameter in ours.arena.parameters)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name])
    ours.learn(*data(), 8)
    assert {"before", "after"} == set(calls)
    assert optimizer.steps == 1


async def asynchronous(model, optimizers):
    model.weight.zero_()


def swap(model, optimizers):
    optimizers[0] = torch.optim.Adam(model.parameters())


def spoil(model, optimizers):
    with torch.no_grad():
        model.bias.fill_(float("nan"))


@pytest.mark.parametrize(
    ("function", "error", "said"),
    [
        (asynchronous, ModelError, "ordinary function"),
        (generator, ModelError, "ordinary function"),
        (lambda model, optimizers: nn.Linear(3, 2), ModelError, "in place"),
        (swap, OptimizerError, "Change their settings"),
        (lambda model, optimizers: optimizers.clear(), OptimizerError, "settings"),
        (spoil, ModelError, "finite values"),
    ],
)
def test_a_change_that_would_be_ignored_or_end_the_run_is_refused(
    function, error, said
):
    ours = learner()
    before = [each.detach().clone() for each in ours.model.parameters()]
    optimizers = list(ours.optimizers)
    with pytest.raises(error, match=said):
        ours.change(function)
    assert all(map(torch.equal, before, ours.model.parameters()))
    assert ours.optimizers == optimizers
    ours.learn(*data(), 8)


def test_a_change_may_return_the_model_or_what_it_likes():
    ours = learner()
    ours.change(lambda model, optimizers: model.requires_grad_(True))
    ours.change(lambda model, optimizers: model.load_state_dict(model.state_dict()))
    ours.change(lambda model, optimizers: 3)


def test_a_model_that_has_diverged_may_be_changed():
    ours = learner()
    with torch.no_grad():
        ours.model.bias.fill_(float("nan"))
    ours.change(lambda model, optimizers: None)
    ours.change(lambda model, optimizers: model.reset_parameters())
    assert ours.is_finite()
