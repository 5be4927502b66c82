"""The simulation of benchmarks/simulate.py: exactly once, repeatable, as by hand."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
with mock.patch.object(sys, "path", [BENCHMARKS, *sys.path]):
    from scale_out.costs import Costs, Line
    from scale_out.simulation import Scenario, Simulation
    from scale_out.topologies import mesh, tree

NOTHING = Line(0.0, 0.0)
TOPOLOGIES = {
    "mesh of 5": mesh(5),
    "mesh of 6 on hosts of 3": mesh(6, per_host=3),
    "tree of 2": tree(2),
    "tree of 9": tree(9),
    "tree of 20, 4 children": tree(20, children=4),
    "tree of 12 on hosts of 4": tree(12, per_host=4),
}


def scenario(**changes: Any) -> Scenario:
    costs = Costs(Line(1e-3, 0.5e-3), Line(0.1e-3, 0.1e-3))
    given: dict[str, Any] = {
        "between_hosts": costs,
        "within_host": costs,
        "gradient_mb": 2.0,
        "warmup": 0.5,
        "seconds": 1.0,
    }
    return Scenario(**{**given, **changes})


@pytest.mark.parametrize("topology", TOPOLOGIES.values(), ids=TOPOLOGIES)
def test_each_origin_has_one_way_to_each_node(topology):
    comes = np.zeros((topology.nodes, topology.nodes), int)
    for edge in topology.edges:
        comes[edge.destination, edge.origins] += 1
    assert (comes == 1 - np.eye(topology.nodes, dtype=int)).all()


@pytest.mark.parametrize("topology", TOPOLOGIES.values(), ids=TOPOLOGIES)
def test_each_gradient_arrives_exactly_once_at_each_node(topology):
    arrived: list[tuple[int, int, int]] = []  # node, origin, number of the gradient

    class Watched(Simulation):
        def _handled(self, now, edge, low, high, mb):
            way = topology.edges[edge]
            for origin, after, last in zip(way.origins, low, high, strict=True):
                arrived.extend(
                    (way.destination, int(origin), number)
                    for number in range(after + 1, last + 1)
                )
            super()._handled(now, edge, low, high, mb)

    simulation = Watched(topology, scenario())
    simulation.run()
    simulation.drain()
    steps = simulation.applied.diagonal()
    assert steps.min() > 10
    assert (simulation.applied == steps).all()
    expected = {
        (node, origin, number)
        for node in range(topology.nodes)
        for origin in range(topology.nodes)
        for number in range(1, steps[origin] + 1)
        if node != origin
    }
    assert len(arrived) == len(expected)
    assert set(arrived) == expected


@pytest.mark.parametrize("topology", TOPOLOGIES.values(), ids=TOPOLOGIES)
def test_a_seed_decides_everything(topology):
    one, same, other = (
        Simulation(topology, scenario(seed=seed)).run() for seed in (1, 1, 2)
    )
    assert np.array_equal(one.ages, same.ages)
    assert np.array_equal(one.stalenesses, same.stalenesses)
    assert one.efficiency == same.efficiency
    assert not np.array_equal(one.ages, other.ages)


def test_two_nodes_in_step_are_as_by_hand():
    # Both ends of a message take 1 ms of their loops, and applying it 1 ms of the step.
    costs = Costs(loop=Line(2e-3, 0.0), thread=Line(1e-3, 0.0))
    outcome = Simulation(
        mesh(2),
        scenario(
            between_hosts=costs,
            gradient_mb=1.0,
            jitter=0.0,
            latency=0.0,
            bandwidth=math.inf,
            one_core=False,
        ),
    ).run()
    # A gradient waits for the end of the peer's next step (101 ms), and is applied.
    assert outcome.ages == pytest.approx(np.full(len(outcome.ages), 0.102))
    # The peer has made three steps that it did not know of: the one at whose end it
    # left, the one during which it waited, and the one before, which crossed it.
    assert set(outcome.stalenesses) == {3.0}
    assert outcome.efficiency == pytest.approx(100 / 101)
    assert outcome.delivered == pytest.approx(1.0)
    # A message sent and one received in each 101 ms.
    assert outcome.loop == pytest.approx(2e-3 / 0.101, rel=0.1)


def test_a_core_that_both_threads_share_makes_steps_longer():
    costs = Costs(loop=Line(2e-3, 0.0), thread=NOTHING)
    given = {"between_hosts": costs, "jitter": 0.0, "latency": 0.0}
    shared, own = (
        Simulation(mesh(2), scenario(one_core=one_core, **given)).run()
        for one_core in (True, False)
    )
    assert own.efficiency == pytest.approx(1.0)
    # 1 ms to send and 1 ms to receive, in each step of 100 ms.
    assert shared.efficiency == pytest.approx(100 / 102)


def test_a_wave_takes_up_and_down_what_the_leaves_have():
    # Steps end at 0.1, 0.2, ...; waves of free messages leave just behind.
    free = Costs(NOTHING, NOTHING)
    outcome = Simulation(
        tree(3),
        scenario(
            between_hosts=free,
            jitter=0.0,
            latency=1e-3,
            bandwidth=math.inf,
            interval=0.1 + 1e-9,
            seconds=5.0,
        ),
    ).run()
    # Up, down and there before the next step ends, where they are applied.
    assert outcome.ages == pytest.approx(np.full(len(outcome.ages), 0.1))
    # Four messages for three gradients, whatever the number of nodes.
    assert outcome.delivered == pytest.approx(4 / 3, rel=0.05)


def test_a_mesh_keeps_to_the_budget_and_merges_the_rest():
    # Eight peers at 2 ms both ends would take 16 ms and more of each step of 50 ms.
    outcome = Simulation(mesh(9), scenario(step=0.05, seconds=4.0)).run()
    assert outcome.efficiency >= 0.9
    assert outcome.delivered < 8


def test_messages_of_a_tree_do_not_grow_with_the_nodes():
    few, many = (Simulation(tree(n), scenario()).run() for n in (7, 31))
    for outcome in (few, many):
        waves = outcome.messages * 0.2
        assert waves <= 2.0
        assert outcome.most_messages * 0.2 <= 3.2
