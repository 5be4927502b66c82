"""How far the parameters have moved since the last message to the peers."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

from tensair_dask.exchange.accumulator import Changes
from tensair_dask.exchange.arena import Arena
from tensair_dask.exchange.clock import VectorClock
from tensair_dask.exchange.gradients import Gradients
from tensair_dask.exchange.movement import Movement
from tensair_dask.exchange.rows import Rows


class Mixed(nn.Module):
    """A table beside a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 4, sparse=True)
        self.layer = nn.Linear(4, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.layer(self.table(ids))


class Mover:
    """A model that steps, and the movement that is gathered of it."""

    def __init__(self, optimizer: Any = None, build: Any = Mixed) -> None:
        torch.manual_seed(0)
        self.model = build()
        self.arena = Arena(self.model)
        self.movement = Movement("run", "a", self.arena)
        self.clock = VectorClock()
        optimizer = optimizer or functools.partial(torch.optim.SGD, lr=0.1)
        self.optimizer = optimizer(self.arena.parameters)
        self.initial = self.state()

    def state(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]

    def step(self, *ids: int) -> None:
        self.movement.prepare()
        self.optimizer.zero_grad()
        self.model(torch.tensor(ids)).square().sum().backward()
        self.optimizer.step()
        changes = Changes(
            [p.grad for p in self.arena.dense], [t.grad for t in self.arena.tables]
        )
        step = self.clock["a"] + 1
        self.movement.add(step, len(ids), changes, self.clock)
        self.clock.advance("a", step)

    def apply(self, gradients: Gradients) -> None:
        with torch.no_grad():
            for mine, theirs in zip(self.arena.buffers, gradients.buffers, strict=True):
                mine.add_(theirs)
            for number, part in gradients.rows.items():
                self.arena.tables[number].index_add_(0, part.ids, part.values)
        self.movement.applied(gradients)


def agree(one: Mover, two: Mover) -> bool:
    pairs = zip(one.state(), two.state(), strict=True)
    return all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


ADAM = functools.partial(torch.optim.Adam, lr=0.1)
MOMENTUM = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
ADAGRAD = functools.partial(torch.optim.Adagrad, lr=0.1)


@pytest.mark.parametrize("optimizer", [None, MOMENTUM, ADAGRAD])
def test_a_peer_that_adds_the_messages_is_where_the_sender_is(optimizer):
    sender, peer = Mover(optimizer), Mover()
    for _ in range(3):
        sender.step(1, 2, 2)
        sender.step(2, 40)
        peer.apply(sender.movement.take().content)
    peer.apply(sender.movement.take_everything(6, sender.clock).content)
    assert agree(sender, peer)


def test_only_rows_that_were_touched_travel():
    sender = Mover()
    sender.step(1, 2, 2)
    sender.step(2, 40)
    message = sender.movement.take()
    assert message.content.rows[0].ids.tolist() == [1, 2, 40]
    assert (message.first, message.last, message.samples) == (1, 2, 5)
    sender.step(7)
    assert sender.movement.take().content.rows[0].ids.tolist() == [7]


def test_rows_that_momentum_moves_without_a_gradient_are_sent_by_a_drain():
    sender, peer = Mover(MOMENTUM), Mover()
    sender.step(1)
    peer.apply(sender.movement.take().content)
    sender.step(2)  # momentum moves row 1 as well
    peer.apply(sender.movement.take().content)
    assert not agree(sender, peer)
    message = sender.movement.take_everything(2, sender.clock)
    assert (message.first, message.last) == (3, 2)
    peer.apply(message.content)
    assert agree(sender, peer)


def test_what_peers_sent_is_not_sent_back():
    one, two = Mover(), Mover()
    for _ in range(5):
        one.step(1, 2)
        two.step(2, 3)
        mine, theirs = one.movement.take(), two.movement.take()
        one.apply(theirs.content)
        two.apply(mine.content)
    assert agree(one, two)
    # Nothing is left but what rounding left out.
    rest = one.movement.take_everything(5, one.clock).content
    assert all(buffer.abs().max() < 1e-6 for buffer in rest.buffers)


def test_arrivals_between_two_steps_of_one_message_are_not_in_it():
    one, two = Mover(), Mover()
    one.step(1)
    two.step(1, 2)
    one.apply(two.movement.take().content)
    one.step(2)
    two.apply(one.movement.take().content)
    assert agree(one, two)


def test_gradients_that_were_learned_alone_are_not_sent_to_later_replicas():
    sender, peer = Mover(), Mover()
    sender.step(1)
    sender.movement.drop()  # nobody is there
    alone = sender.state()
    sender.step(2)
    change = sender.movement.take().content
    peer.model.load_state_dict(dict(zip(peer.model.state_dict(), alone, strict=True)))
    peer.apply(change)
    assert agree(sender, peer)
    assert change.rows[0].ids.tolist() == [2]


def test_nothing_moved_gives_no_message():
    mover = Mover()
    assert mover.movement.take() is None
    mover.movement.prepare()
    assert mover.movement.take() is None
    assert mover.movement.oldest is None


def test_dense_parameters_without_a_gradient_are_distinguished():
    mover = Mover(build=lambda: nn.Linear(1, 1))
    mover.movement.prepare()
    mover.movement.add(1, 1, Changes([torch.ones(1, 1), None]), mover.clock)
    assert mover.movement.take().content.touched == frozenset({0})


def test_a_dense_gradient_of_a_tied_table_moves_all_its_rows():
    mover = Mover(build=lambda: nn.Embedding(3, 2, sparse=True))
    mover.movement.prepare()
    with torch.no_grad():
        mover.model.weight.add_(1.0)
    mover.movement.add(1, 1, Changes([], [torch.ones(3, 2)]), mover.clock)
    rows = mover.movement.take().content.rows[0]
    assert isinstance(rows, Rows)
    assert rows.ids.tolist() == [0, 1, 2]
    assert torch.allclose(rows.values, torch.ones(3, 2), atol=1e-6)


def test_the_movement_of_many_small_steps_is_not_rounded_away():
    mover = Mover(build=lambda: nn.Linear(1, 1))
    peer = Mover(build=lambda: nn.Linear(1, 1))
    for step in range(1, 2001):
        mover.movement.prepare()
        with torch.no_grad():
            mover.model.weight.add_(1e-5 * (step % 7))
        changes = Changes([torch.ones(1, 1), torch.ones(1)])
        mover.movement.add(step, 1, changes, mover.clock)
        peer.apply(mover.movement.take().content)
    peer.apply(mover.movement.take_everything(2000, mover.clock).content)
    assert torch.equal(mover.model.weight, peer.model.weight)
