"""Code of PyTorch users is learned as in a plain loop, or refused with advice.

Each entry of docs/what-works.md that says "works" is here, or where it says.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from distributed.utils_test import gen_cluster
from helpers import spread
from learners import data, learner
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

import tensair_dask as ta
from tensair_dask.batches.batch import MiniBatch
from tensair_dask.errors import BatchError, LossError, ShapeError

two = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60
)
SGD = functools.partial(torch.optim.SGD, lr=0.1)


class Clamped(torch.autograd.Function):
    """Clamps forward, and lets half of the gradient pass backward."""

    @staticmethod
    def forward(ctx, x):
        return x.clamp(-1, 1)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 0.5


class OfFunction(nn.Module):
    """A linear layer, and a function of its output."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(3, 2), function

    def forward(self, x):
        return self.function(self.layer, x)


def mixed(layer, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return layer(x)


def checkpointed(layer, x, reentrant):
    x = x.clone().requires_grad_()
    return checkpoint(layer, x, use_reentrant=reentrant)


class FrozenStatistics(nn.Sequential):
    """Keeps its BatchNorm in evaluation mode."""

    def train(self, mode: bool = True):
        super().train(mode)
        self[0].eval()
        return self


def clipping():
    model = nn.Linear(3, 2)
    model.weight.register_hook(lambda gradient: gradient.clamp(-0.01, 0.01))
    return model


def stepping_in_backward():
    """The optimizer is in the hooks, as for models that hardly fit."""

    def step(parameter):
        with torch.no_grad():
            parameter.add_(parameter.grad, alpha=-0.1)
        parameter.grad = None

    model = nn.Linear(3, 2)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    return model


def normed(norm):
    return lambda: nn.Sequential(norm(nn.Linear(3, 3)), nn.Linear(3, 2))


def pruned():
    model = nn.Linear(3, 2)
    prune.l1_unstructured(model, "weight", amount=0.5)
    return model


def quantisation_aware():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).train()
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    return torch.ao.quantization.prepare_qat(model)


def batch_norm():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


MODELS = {
    "custom autograd": lambda: OfFunction(lambda layer, x: Clamped.apply(layer(x))),
    "autocast": lambda: OfFunction(mixed),
    "checkpoint": lambda: OfFunction(functools.partial(checkpointed, reentrant=False)),
    "reentrant": lambda: OfFunction(functools.partial(checkpointed, reentrant=True)),
    "frozen BatchNorm": lambda: FrozenStatistics(nn.BatchNorm1d(3), nn.Linear(3, 2)),
    "eval mode": lambda: batch_norm().eval(),
    "BatchNorm": batch_norm,
    "hook on a parameter": clipping,
    "optimizer in backward": stepping_in_backward,
    "weight_norm": normed(parametrizations.weight_norm),
    "spectral_norm": normed(parametrizations.spectral_norm),
    "orthogonal": normed(parametrizations.orthogonal),
    "old spectral_norm": normed(nn.utils.spectral_norm),
    "pruned": pruned,
    "quantisation-aware": quantisation_aware,
    "double": lambda: nn.Sequential(nn.Linear(3, 2)).double(),
    "complex": lambda: OfFunction(lambda layer, x: layer(x.cfloat()).abs()).to(
        torch.complex64
    ),
    "traced": lambda: torch.jit.trace(nn.Linear(3, 2), torch.rand(8, 3)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_it_is_learned_as_in_a_plain_loop(name):
    ours = learner(MODELS[name])
    torch.manual_seed(0)
    plain = MODELS[name]()
    optimizer = SGD(plain.parameters())
    x, y = data()
    if name == "double":
        x = x.double()
    for _ in range(5):
        ours.learn(x, y, 8)
        optimizer.zero_grad()
        functional.cross_entropy(plain(x), y).backward()
        optimizer.step()
    state, expected = ours.model.state_dict(), plain.state_dict()
    for key, value in state.items():
        torch.testing.assert_close(value, expected[key])
    said = ours.notices.take()
    assert bool(said) == (name == "optimizer in backward")  # that updates are shared
    again = learner(MODELS[name])  # as a replica that joins
    snapshot = ours.snapshot()
    again.load(snapshot["model"], snapshot["optimizers"])
    torch.testing.assert_close(again.predict(x), ours.predict(x))


def test_tables_of_bags_take_rows_that_are_filled_up():
    def build():
        torch.manual_seed(0)
        bag = nn.EmbeddingBag(10, 4, mode="sum", padding_idx=0, sparse=True)
        return nn.Sequential(bag, nn.Linear(4, 2))

    ours = learner(build)
    ragged = [[1, 2, 3], [4], [5, 6]]
    padded = torch.zeros(3, 3, dtype=int)
    for row, bag in zip(padded, ragged, strict=True):
        row[: len(bag)] = torch.tensor(bag)
    ours.learn(padded, torch.tensor([0, 1, 0]), 3)
    expected = ours.model[0](torch.arange(1, 7), torch.tensor([0, 3, 4]))
    found = ours.model[0](padded)
    torch.testing.assert_close(found, expected)


def test_sequences_are_padded_and_packed_within_the_model():
    class Packing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells, self.layer = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, padded, lengths):
            packed = nn.utils.rnn.pack_padded_sequence(
                padded, lengths.cpu(), batch_first=True, enforce_sorted=False
            )
            _, last = self.cells(packed)
            return self.layer(last[0])

    ours = learner(Packing)
    x = torch.rand(2, 5, 3), torch.tensor([5, 2])
    ours.learn(x, torch.tensor([0, 1]), 2)
    x[0][1, 2:] = 100.0  # what fills up is not seen
    assert ours.predict(x)[1].abs().max() < 10


OFFSETS = np.array([0, 3, 4])


@pytest.mark.parametrize(
    ("x", "said"),
    [
        ((np.arange(6), OFFSETS), "padding_idx"),
        ((torch.arange(6), torch.from_numpy(OFFSETS)), "padding_idx"),
        ({"input": np.arange(6), "offsets": OFFSETS}, "padding_idx"),
        (nn.utils.rnn.pack_sequence([torch.ones(3, 1), torch.ones(2, 1)]), "pack_pad"),
        ([np.zeros(3), np.zeros(5)], "numpy.stack"),
        ([[1.0, 2.0], [3.0]], "one shape"),
        (torch.nested.nested_tensor([torch.ones(3), torch.ones(2)]), "to_padded"),
        ((np.zeros((3, 2)), None), "is None"),
        ((np.zeros((3, 2)), 0.5), "counts the samples"),
    ],
)
def test_what_has_no_row_for_each_sample_is_refused_with_what_to_give(x, said):
    with pytest.raises(BatchError, match=said):
        MiniBatch.of(x, np.zeros(3, int))


def test_rows_of_two_arguments_that_differ_get_no_advice_about_bags():
    with pytest.raises(ShapeError) as raised:
        MiniBatch.of((np.zeros((3, 2)), np.zeros((4, 2))), np.zeros(3, int))
    assert "padding_idx" not in str(raised.value)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda p, y: (functional.cross_entropy(p, y), p.mean()), "Add them up"),
        (lambda p, y: {"a": functional.cross_entropy(p, y)}, "Add them up"),
        (lambda p, y: functional.cross_entropy(p, y, reduction="none"), "Reduce it"),
    ],
)
def test_several_losses_are_to_be_added_up(loss, said):
    with pytest.raises(LossError, match=said):
        learner(loss=loss).learn(*data(), 8)


def test_several_outputs_and_targets_make_one_loss():
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(3, 2), nn.Linear(3, 1)

        def forward(self, x):
            return {"kind": self.left(x), "size": self.right(x)[:, 0]}

    def loss(output, y):
        kind = functional.cross_entropy(output["kind"], y["kind"])
        return kind + 0.1 * functional.mse_loss(output["size"], y["size"])

    x, y = data()
    ours = learner(Heads, loss=loss)
    ours.learn(x, {"kind": y, "size": torch.rand(8)}, 8)
    assert ours.notices.take() == {}


def test_outputs_may_be_distributions_whose_likelihood_is_the_loss():
    class Normal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            mean, scale = self.layer(x).unbind(1)
            return torch.distributions.Normal(mean, scale.exp())

    x, y = data()
    ours = learner(
        Normal,
        loss=lambda output, y: -output.log_prob(y).mean(),
        metrics={"error": lambda output, y: (output.mean - y).abs().mean()},
    )
    losses = [ours.learn(x, y.float(), 8)[0].loss for _ in range(30)]
    assert losses[-1] < losses[0]
    assert ours.notices.take() == {}


def test_groups_of_parameters_have_settings_of_their_own():
    def optimizer(parameters):
        weight, bias = parameters
        groups = [{"params": [weight], "lr": 0.0}, {"params": [bias]}]
        return torch.optim.SGD(groups, lr=0.1)

    ours = learner(optimizer=optimizer)
    weight, bias = (each.detach().clone() for each in ours.model.parameters())
    ours.learn(*data(), 8)
    assert torch.equal(ours.model.weight, weight)
    assert not torch.equal(ours.model.bias, bias)


@two()
async def test_what_hooks_do_to_gradients_and_parameters_reaches_the_peers(c, s, a, b):
    x, y = (each.numpy() for each in data())
    for model in (clipping, stepping_in_backward):
        arguments = {"loss": functional.cross_entropy, "optimizer": SGD}
        async with ta.Trainer(c, model=model, **arguments) as trainer:
            for _ in range(20):
                assert (await trainer.train(x, y)).learned
            await trainer.drain()
            states = await trainer.state_dicts()
            assert spread(states) < 1e-5
            torch.manual_seed(0)
            start = model().weight.detach()
            assert not torch.equal(next(iter(states.values()))["weight"], start)
