"""The structure of a model is changed while it learns, on all replicas."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import dask
import numpy as np
import pytest
import torch
from distributed import Worker
from distributed.utils_test import gen_cluster
from helpers import (
    CLASSES,
    FEATURES,
    class_data,
    classes,
    feed,
    spread,
    train_all,
    until,
)
from torch import nn

import tensair_dask as ta
from tensair_dask.errors import CheckpointError, ModelError, OptimizerError
from tensair_dask.replica.learner import Learner, Recipe

two = functools.partial(
    gen_cluster,
    client=True,
    nthreads=[("127.0.0.1", 1)] * 2,
    timeout=60,
    config={"tensair.replicas.watch": "20ms"},
)
one = functools.partial(
    gen_cluster,
    client=True,
    nthreads=[("127.0.0.1", 1)],
    timeout=60,
    config={"tensair.replicas.watch": "20ms"},
)
ADAM = functools.partial(torch.optim.Adam, lr=0.01)
MOMENTUM = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9)
SGD = functools.partial(torch.optim.SGD, lr=0.1)


class Net(nn.Module):
    """A frozen layer, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.classes: int | None = None
        self.body = nn.Linear(FEATURES, 8).requires_grad_(False)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.head(self.norm(self.body(x)))
        return scores if self.classes is None else scores.view(len(x), self.classes)


def a_class_more(model, optimizers):
    old = model.head
    model.head = nn.Linear(8, old.out_features + 1)
    with torch.no_grad():
        model.head.weight[:-1] = old.weight
        model.head.bias[:-1] = old.bias


def a_class_more_in_place(model, optimizers):
    """As many write it: by assigning to data, and putting it into the group."""
    head = model.head
    head.weight.data = torch.cat([head.weight.data, torch.zeros(1, 8)])
    head.bias.data = torch.cat([head.bias.data, torch.zeros(1)])
    optimizers[0].param_groups[0]["params"] = list(model.parameters())


def thaw(model, optimizers):
    model.body.requires_grad_(True)


def freeze(model, optimizers):
    model.norm.requires_grad_(False)


def a_layer_more(model, optimizers):
    model.head = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), model.head)


def a_layer_less(model, optimizers):
    model.norm = nn.Identity()


def anew(model, optimizers):
    model.head = nn.Linear(8, CLASSES)


CHANGES = [
    a_class_more,
    a_class_more_in_place,
    thaw,
    freeze,
    a_layer_more,
    a_layer_less,
    anew,
]


def learner(optimizer: Any = ADAM, model: Any = Net) -> Learner:
    loss = nn.functional.cross_entropy
    recipe = Recipe(model, loss, optimizer, {}, None, 0, False)
    return Learner(recipe, torch.device("cpu"))


def learn(made: Learner, count: int = 5, seed: int = 0) -> list[float]:
    return [
        made.learn(torch.from_numpy(x), torch.from_numpy(y), len(x))[0].loss
        for x, y in class_data(count, seed=seed)
    ]


# ---- one learner ------------------------------------------------------------------


def take_out_one(model, optimizers):
    optimizers[0].param_groups[0]["params"].pop(0)


def hold_the_last_only(model, optimizers):
    group = optimizers[0].param_groups[0]
    group["params"] = group["params"][-1:]


def thaw_and_hold_that_only(model, optimizers):
    model.body.requires_grad_(True)
    optimizers[0].param_groups[0]["params"] = list(model.body.parameters())


@pytest.mark.parametrize(
    "change", [take_out_one, hold_the_last_only, thaw_and_hold_that_only]
)
def test_what_is_taken_out_of_its_group_is_not_put_back_in_silence(change):
    made = learner(ADAM)
    learn(made)
    held = list(map(id, made.optimizers[0].param_groups[0]["params"]))
    with pytest.raises(OptimizerError, match=r"norm.weight.*requires_grad_\(False\)"):
        made.change(change)
    assert list(map(id, made.optimizers[0].param_groups[0]["params"])) == held
    learn(made)


def test_it_may_go_to_another_group():
    def change(model, optimizers):
        first = optimizers[0].param_groups[0]["params"].pop(0)
        optimizers[0].add_param_group({"params": [first], "lr": 0.0})

    made = learner(SGD)
    was = made.model.norm.weight.detach().clone()
    made.change(change)
    made.keep_change()
    learn(made)
    assert torch.equal(made.model.norm.weight, was)


@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM, ADAM])
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_kept_goes_on_as_it_was(change, optimizer):
    made = learner(optimizer)
    learn(made)
    kept = {
        id(parameter): (parameter.shape, dict(made.optimizers[0].state[parameter]))
        for parameter in made.arena.parameters
    }
    torch.manual_seed(1)
    assert made.change(change)
    made.keep_change()
    held = [
        each for group in made.optimizers[0].param_groups for each in group["params"]
    ]
    trained = [each for each in made.model.parameters() if each.requires_grad]
    assert list(map(id, held)) == list(map(id, trained))
    assert list(map(id, made.arena.parameters)) == list(map(id, trained))
    for parameter in made.model.parameters():
        shape, state = kept.get(id(parameter), (None, {}))
        stays = parameter.requires_grad and parameter.shape == shape
        now = made.optimizers[0].state.get(parameter, {})
        assert now == (state if stays else {})
    before = [each.detach().clone() for each in trained]
    losses = learn(made)
    assert all(np.isfinite(losses))
    assert not any(map(torch.equal, before, trained))


@pytest.mark.parametrize("change", CHANGES)
def test_a_grown_model_learns_as_one_that_was_built_so(change):
    made = learner(SGD)
    torch.manual_seed(1)
    made.change(change)

    def built() -> nn.Module:
        model = Net()
        torch.manual_seed(1)
        change(model, [SGD(model.parameters())])
        return model

    twin = learner(SGD, built)
    assert learn(made) == learn(twin)


def fail(model, optimizers):
    a_class_more(model, optimizers)
    thaw(model, optimizers)
    model.classes = 4
    raise ZeroDivisionError


def freeze_all(model, optimizers):
    model.requires_grad_(False)


def lazily(model, optimizers):
    model.head = nn.LazyLinear(3)


def of_another_dtype(model, optimizers):
    model.head.to(torch.float8_e4m3fn)


def check_dtypes(made: Learner) -> None:
    if any(each.dtype.itemsize < 2 for each in made.arena.parameters):
        raise ModelError("too few bits")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (fail, ZeroDivisionError),
        (freeze_all, ModelError),
        (lazily, ModelError),
        (of_another_dtype, (ModelError, RuntimeError, NotImplementedError)),
    ],
)
def test_after_a_change_that_fails_everything_is_as_before(change, error):
    made, twin = learner(), learner()
    for each in (made, twin):
        learn(each)
    with pytest.raises(error):
        made.change(change, lambda: check_dtypes(made))
    assert made.model.classes is None
    assert made.layout() == twin.layout()
    assert learn(made) == learn(twin)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_is_undone_leaves_nothing(change):
    made, twin = learner(), learner()
    for each in (made, twin):
        learn(each)
    made.change(change)
    made.undo_change()
    assert made.layout() == twin.layout()
    assert made.structure() == {}
    assert learn(made) == learn(twin)


def two_groups(parameters: Any) -> torch.optim.Optimizer:
    first, *rest = parameters
    return torch.optim.SGD([{"params": [first]}, {"params": rest, "lr": 0.01}], lr=0.1)


def test_a_group_is_asked_for_where_there_are_several():
    made = learner(two_groups)
    with pytest.raises(OptimizerError, match=r"'body\.weight' is new.*append"):
        made.change(thaw)

    def into_the_second(model, optimizers):
        thaw(model, optimizers)
        optimizers[0].param_groups[1]["params"] += model.body.parameters()

    assert made.change(into_the_second)
    assert len(made.optimizers[0].param_groups[1]["params"]) == 5
    learn(made)


def test_what_is_replaced_goes_to_the_group_of_what_was_there():
    made = learner(two_groups)
    assert made.change(a_class_more)
    group = made.optimizers[0].param_groups[1]["params"]
    assert any(each is made.model.head.weight for each in group)


def test_groups_may_be_split():
    made = learner(ADAM)
    learn(made)

    def split(model, optimizers):
        group = optimizers[0].param_groups[0]
        head = list(model.head.parameters())
        ids = set(map(id, head))
        group["params"] = [each for each in group["params"] if id(each) not in ids]
        optimizers[0].add_param_group({"params": head, "lr": 0.5})

    assert made.change(split)
    assert len(made.optimizers[0].state) == 4
    learn(made)


class Words(nn.Module):
    """A table of rows, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4, sparse=True)
        self.out = nn.Linear(4, 3)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.out(self.table(words))


def more_words(model, optimizers):
    old = model.table
    model.table = nn.Embedding(9, 4, sparse=True)
    with torch.no_grad():
        model.table.weight[:5] = old.weight
    model.out.requires_grad_(True)


def test_a_table_grows_and_stays_with_its_optimizer():
    kinds = {"dense": ADAM, "sparse": torch.optim.SparseAdam}
    made = learner(kinds, Words)
    assert made.change(more_words)
    words = torch.tensor([8, 7, 8])
    before = made.model.table.weight.detach().clone()
    made.learn(words, torch.tensor([0, 1, 2]), 3)
    moved = (made.model.table.weight != before).any(1)
    assert moved.tolist() == [False] * 7 + [True] * 2


# ---- replicas ---------------------------------------------------------------------


@two()
@pytest.mark.parametrize("optimizer", [SGD, ADAM])
@pytest.mark.parametrize("change", CHANGES)
async def test_all_replicas_are_changed_in_the_middle_of_a_stream(
    c, s, a, b, optimizer, change
):
    arguments = classes(model=Net, optimizer=optimizer)
    async with ta.Trainer(c, **arguments) as trainer:
        reports = feed(trainer, class_data(150))
        await until(lambda: len(reports) > 20)
        await trainer.apply(change)
        feed(trainer, class_data(100, seed=1), reports)
        await trainer.drain()
        assert len(reports) == 250
        assert all(report.error is None for report in reports)
        assert {info.version for info in trainer.replicas} == {250}
        assert sum(info.steps for info in trainer.replicas) == 250
        states = await trainer.state_dicts()
        trained = [
            {
                name: value
                for name, value in state.items()
                if "running" not in name and "num_batches" not in name
            }
            for state in states.values()
        ]
        assert spread(dict(enumerate(trained))) < 1e-4
        stats = await trainer.exchange_stats()
        assert all(each["refused"] == 0 for each in stats.values())


@two()
@pytest.mark.parametrize("compression", ["int8", "bfloat16"])
async def test_what_rounding_left_out_of_the_old_structure_is_not_lost(
    c, s, a, b, compression
):
    arguments = classes(model=Net, compression=compression)
    async with ta.Trainer(c, **arguments) as trainer:
        await train_all(trainer, class_data(60))
        await trainer.apply(a_class_more)
        await train_all(trainer, class_data(60))
        states = [
            {name: each for name, each in state.items() if "norm" not in name}
            for state in (await trainer.state_dicts()).values()
        ]
        assert states[0]["head.weight"].shape == (CLASSES + 1, 8)
        assert spread(dict(enumerate(states))) < 1e-4


@one()
async def test_a_replica_that_joins_later_has_the_new_structure(c, s, a):
    async with ta.Trainer(c, **classes(model=Net, optimizer=ADAM)) as trainer:
        await train_all(trainer, class_data(20))
        await trainer.apply(a_class_more)
        await trainer.apply(thaw)
        await trainer.apply(a_layer_more)
        await train_all(trainer, class_data(20))
        async with Worker(s.address, nthreads=1):
            await until(lambda: len(trainer.session.replicas.alive()) == 2)
            await train_all(trainer, class_data(40))
            first, second = (await trainer.state_dicts()).values()
            assert first.keys() == second.keys()
            assert torch.allclose(
                first["body.weight"], second["body.weight"], atol=1e-5
            )
            assert all(info.steps for info in trainer.replicas)


@one()
async def test_a_change_while_another_replica_is_built_reaches_it(c, s, a):
    async with ta.Trainer(c, **classes(model=Net)) as trainer:
        await train_all(trainer, class_data(5))
        newcomers = trainer.session.membership._joining
        build = newcomers._build

        async def build_and_change(places):
            built = await build(places)
            await trainer.apply(a_class_more)
            return built

        newcomers._build = build_and_change
        async with Worker(s.address, nthreads=1):
            await until(lambda: len(trainer.session.replicas.alive()) == 2)
            await train_all(trainer, class_data(20))
            assert (
                spread(
                    {
                        name: {"head": state["head.weight"]}
                        for name, state in (await trainer.state_dicts()).items()
                    }
                )
                < 1e-5
            )


@two()
async def test_a_change_that_fails_at_a_second_replica_is_undone_everywhere(c, s, a, b):
    threads: list[int] = []

    def only_once(model, optimizers):
        a_class_more(model, optimizers)
        threads.append(1)
        if len(threads) == 2:
            raise FileNotFoundError("not on this worker")

    async with ta.Trainer(c, **classes(model=Net)) as trainer:
        await train_all(trainer, class_data(20))
        before = await trainer.state_dict()
        with pytest.MonkeyPatch.context() as patch:
            # Within this process, so that both count together.
            patch.setattr("tensair_dask.replica.actor._unpickled", lambda *_: only_once)
            with pytest.raises(FileNotFoundError, match="not on this worker"):
                await trainer.apply(a_class_more)
        states = await trainer.state_dicts()
        for state in states.values():
            assert torch.allclose(state["head.weight"], before["head.weight"])
        reports = await train_all(trainer, class_data(20))
        assert all(report.error is None for report in reports)
        assert len(trainer.session.replicas.alive()) == 2


@two()
async def test_a_change_that_differs_between_replicas_is_undone_everywhere(c, s, a, b):
    calls: list[int] = []

    def ever_more(model, optimizers):
        calls.append(1)
        model.head = nn.Linear(8, CLASSES + len(calls))

    async with ta.Trainer(c, **classes(model=Net)) as trainer:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tensair_dask.replica.actor._unpickled", lambda *_: ever_more)
            with pytest.raises(ModelError, match=r"another structure.*'head\.weight'"):
                await trainer.apply(a_class_more)
        reports = await train_all(trainer, class_data(20))
        assert all(report.error is None for report in reports)
        state = await trainer.state_dict()
        assert state["head.weight"].shape == (CLASSES, 8)


@two()
@pytest.mark.parametrize("which", ["source", "other"])
async def test_a_replica_that_is_lost_meanwhile_does_not_stop_it(c, s, a, b, which):
    workers = {a.address: a, b.address: b}
    async with ta.Trainer(c, **classes(model=Net)) as trainer:
        await train_all(trainer, class_data(20))
        interventions = trainer.session.barrier
        alike = interventions._change_alike

        async def lose_one(others, change, changed):
            (source,), (other,) = changed, others
            lost = source if which == "source" else other
            if which == "source":
                await alike(others, change, changed)
            await workers[lost.place.address].close(reason="test")
            if which == "other":
                await alike(others, change, changed)

        interventions._change_alike = lose_one
        await trainer.apply(a_class_more)
        await train_all(trainer, class_data(20))
        (state,) = (await trainer.state_dicts()).values()
        assert state["head.weight"].shape == (CLASSES + 1, 8)


@two()
async def test_only_so_many_changes_are_kept(c, s, a, b):
    async with ta.Trainer(c, **classes(model=Net)) as trainer:
        with dask.config.set({"tensair.replicas.changes": 2}):
            await trainer.apply(a_class_more)
            await trainer.apply(a_class_more)
            with pytest.raises(ModelError, match=r"tensair\.replicas\.changes"):
                await trainer.apply(a_class_more)
            await trainer.apply(lambda model, optimizers: None)
        for state in (await trainer.state_dicts()).values():
            assert state["head.weight"].shape == (CLASSES + 2, 8)


# ---- checkpoints ------------------------------------------------------------------


def both(model, optimizers):
    a_class_more(model, optimizers)
    thaw(model, optimizers)
    model.classes = CLASSES + 1


@two()
@pytest.mark.parametrize(
    "change", [a_class_more, a_class_more_in_place, thaw, freeze, both]
)
@pytest.mark.parametrize("optimizer", [SGD, ADAM])
async def test_a_model_that_is_built_as_before_grows_to_what_was_saved(
    c, s, a, b, tmp_path, change, optimizer
):
    arguments = classes(model=Net, optimizer=optimizer)
    async with ta.Trainer(c, **arguments, replicas=1) as trainer:
        await train_all(trainer, class_data(20))
        await trainer.apply(change)
        await train_all(trainer, class_data(20))
        path = await trainer.save(tmp_path / "model.tensair")
        await train_all(trainer, class_data(20, seed=2))
        whole = await trainer.state_dict()
    async with ta.Trainer.restore(path, c, **arguments, replicas=1) as trainer:
        await train_all(trainer, class_data(20, seed=2))
        again = await trainer.state_dict()
        assert spread({"whole": whole, "again": again}) < 1e-5
        await trainer.scale(2)
        await train_all(trainer, class_data(20, seed=3))
        assert len({len(each) for each in await trainer.state_dicts()}) == 1


@two()
async def test_of_groups_that_were_saved_all_must_be_there(c, s, a, b, tmp_path):
    async with ta.Trainer(c, **classes(model=Net)) as trainer:
        await trainer.apply(thaw)
        await train_all(trainer, class_data(5))
        path = await trainer.save(tmp_path / "model.tensair")

    def without() -> nn.Module:
        model = Net()
        model.norm = nn.Identity()
        return model

    with pytest.raises(CheckpointError, match=r"'norm\.weight'.*Give the model="):
        await ta.Trainer.restore(path, c, **classes(model=without))


@two()
async def test_what_no_factory_builds_is_named_with_advice(c, s, a, b, tmp_path):
    async with ta.Trainer(c, **classes(model=Net)) as trainer:
        await trainer.apply(a_layer_more)
        await train_all(trainer, class_data(20))
        path = await trainer.save(tmp_path / "model.tensair")
        state = await trainer.state_dict()
        reported = trainer.events["text"]
        assert "a_layer_more has changed the structure of the model" in set(reported)
        assert reported.str.contains(r"'head\.0\.weight'.*builds them").sum() == 1
    with pytest.raises(CheckpointError, match=r"'head\.0\.weight'.*Give a model="):
        await ta.Trainer.restore(path, c, **classes(model=Net))

    def grown() -> nn.Module:
        model = Net()
        a_layer_more(model, [])
        return model

    async with ta.Trainer.restore(path, c, **classes(model=grown)) as trainer:
        again = await trainer.state_dict()
        assert all(torch.equal(state[name], again[name]) for name in state)
        await train_all(trainer, class_data(20))


@one()
async def test_the_good_model_of_a_policy_is_not_put_into_another_structure(c, s, a):
    async with ta.Trainer(c, **classes(model=Net)) as trainer:
        interventions = trainer.session.barrier
        snapshot = await interventions.snapshot()
        await trainer.apply(a_class_more)
        state = await trainer.state_dict()
        with pytest.raises(ModelError, match="another structure"):
            await interventions.restore(snapshot)
        again = await trainer.state_dict()
        assert all(torch.equal(state[name], again[name]) for name in state)
        await asyncio.sleep(0)


# ---- what checkpoints do not hold -------------------------------------------------


def with_a_hook(model, optimizers):
    a_class_more(model, optimizers)
    model.body.register_forward_hook(lambda module, inputs, output: output * 2)


def with_a_hook_of_a_parameter(model, optimizers):
    thaw(model, optimizers)
    model.norm.weight.register_hook(lambda gradient: gradient * 0.5)


def with_an_attribute(model, optimizers):
    a_class_more(model, optimizers)
    model.names = ["a", "b", "c", "d"]


def with_a_layer_without_parameters(model, optimizers):
    freeze(model, optimizers)
    model.body.dropout = nn.Dropout(0.1)


def with_another_class(model, optimizers):
    thaw(model, optimizers)
    model.__class__ = type("Other", (Net,), {})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (with_a_hook, "'body._forward_hooks'"),
        (with_a_hook_of_a_parameter, "'norm.weight.register_hook'"),
        (with_an_attribute, "'names'"),
        (with_a_layer_without_parameters, "'body.dropout'"),
        (with_another_class, "'__class__'"),
    ],
)
def test_what_changes_besides_the_structure_is_said_once(change, named):
    ours = learner()
    learn(ours)
    assert ours.change(change)
    assert not ours.notices.take()
    ours.keep_change()
    (said,) = (text for key, text in ours.notices.take().items() if "besides" in key)
    assert named in said
    assert "checkpoints do not hold it" in said


@pytest.mark.parametrize("change", [each for each in CHANGES if each != a_layer_less])
def test_a_change_of_the_structure_alone_says_nothing_of_it(change):
    ours = learner()
    learn(ours)
    assert ours.change(change)
    ours.keep_change()
    assert not any("besides" in key for key in ours.notices.take())


def test_what_a_change_that_is_undone_had_changed_is_not_said():
    ours = learner()
    assert ours.change(with_a_hook)
    ours.undo_change()
    assert ours.change(a_class_more)
    ours.keep_change()
    assert not any("besides" in key for key in ours.notices.take())
