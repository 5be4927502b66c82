"""Replicas that exchange gradients, event by event, with costs that were measured.

A node has a thread that makes steps, and applies between two steps what has arrived; an
event loop, which handles one message after the other; and a share of its machine's
network card. Where both have one core, what the loop takes lengthens the step.

In a mesh a node publishes when the product's own pacer says so, and a message is
acknowledged when it is applied. In a tree there are waves: at each tick of the interval
the leaves send up; a node sends up when all its children have, and sends down at once
what comes down; a message is acknowledged when the node has it. In both, a connection
has one message under way, and what comes meanwhile is added to the next.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scale_out.costs import Costs
from scale_out.topologies import Topology
from tensair_dask.exchange.pacer import THRIFT, Pacer

__all__ = ["Outcome", "Scenario", "Simulation"]


@dataclass(frozen=True)
class Scenario:
    """What is simulated on a topology.

    Attributes
    ----------
    between_hosts, within_host
        What a message costs.
    gradient_mb
        Size of a message that holds any gradient.
    step
        Seconds of a step; each varies evenly by up to ``jitter`` of it.
    interval
        Seconds between two waves of a tree.
    share, staleness
        Of the pacer: the budget, and the bound on age in seconds.
    bandwidth
        MB a second of a machine's network card, in each direction.
    latency
        Seconds from one machine to another.
    one_core
        Whether loop and thread of a node share a core.
    warmup, seconds
        Until the measurement begins, and how long it lasts.
    sampled
        Nodes whose gradients, and at which, ages are looked at.
    seed
        Of all that is random.
    """

    between_hosts: Costs
    within_host: Costs
    gradient_mb: float
    step: float = 0.1
    jitter: float = 0.1
    interval: float = 0.2
    share: float = 0.1
    staleness: float = 0.1
    bandwidth: float = 1250.0
    latency: float = 1e-4
    one_core: bool = True
    warmup: float = 1.5
    seconds: float = 3.0
    sampled: int = 32
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What was measured in the window.

    Attributes
    ----------
    efficiency, slowest
        Part of the time that steps take: of all nodes, and of the slowest.
    loop, busiest_loop
        Part of the time that the event loops take: mean and largest.
    messages, most_messages, mb, most_mb
        That a node sends a second: mean and largest.
    delivered
        Messages that arrive anywhere, for each gradient.
    ages, stalenesses
        Seconds, and gradients, of the oldest gradient of an origin in each application.
    """

    efficiency: float
    slowest: float
    loop: float
    busiest_loop: float
    messages: float
    most_messages: float
    mb: float
    most_mb: float
    delivered: float
    ages: np.ndarray = field(repr=False)
    stalenesses: np.ndarray = field(repr=False)


class _Node:
    """Where one node stands."""

    def __init__(self, scenario: Scenario) -> None:
        self.steps = 0
        self.duration = 0.0  # of this step, were there no exchange
        # In the window: when the first and the last step ended, and what lay between.
        self.first: float | None = None
        self.last = self.worked = 0.0
        self.loop_free = 0.0  # until then it is busy
        self.loop_used = self.loop_counted = 0.0
        self.to_apply = 0.0  # CPU seconds of the thread
        self.unacknowledged: list[int] = []
        self.out: list[int] = []
        # Of a mesh:
        self.pacer = Pacer(scenario.share, scenario.staleness)
        self.published = -np.inf
        self.oldest: float | None = None
        self.applying = 0.0
        # Of a tree:
        self.up: int | None = None
        self.down: list[int] = []
        self.reported: set[int] = set()


class _Way:
    """Where one edge stands."""

    def __init__(self, origins: np.ndarray, cost: Costs, is_shared: bool) -> None:
        self.origins = origins
        self.cost = cost
        self.is_shared = is_shared
        self.sent = np.zeros(len(origins), np.int64)
        self.is_dirty = self.is_busy = False
        self.left = self.took = 0.0  # seconds of the last delivery
        self.additions = 0  # that a relay makes of what comes here


class Simulation:
    """One run.

    Attributes
    ----------
    held
        Gradients of each origin (column) that each node (row) may pass on.
    applied
        Those in its parameters.
    """

    def __init__(self, topology: Topology, scenario: Scenario) -> None:
        n = topology.nodes
        self.topology, self.scenario = topology, scenario
        self.held, self.applied = np.zeros((2, n, n), np.int64)
        self._random = random.Random(scenario.seed)
        self._nodes = [_Node(scenario) for _ in range(n)]
        self._ways = [self._way(edge) for edge in topology.edges]
        self._card_out, self._card_in = np.zeros((2, topology.host(n - 1) + 1))
        for number, edge in enumerate(topology.edges):
            self._nodes[edge.source].out.append(number)
        if topology.parents is not None:
            self._arrange(topology.parents)
        self._sampled = self._random.sample(range(n), min(n, scenario.sampled))
        self._is_sampled = set(self._sampled)
        # Of a sampled origin, by the number of its step.
        self._born: dict[tuple[int, int], float] = {}
        self._known: dict[tuple[int, int], np.ndarray] = {}
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._measuring = self._ending = False
        self._ages: list[float] = []
        self._stalenesses: list[float] = []
        self._messages, self._mb = np.zeros((2, n))
        self.delivered = 0

    def _way(self, edge: Any) -> _Way:
        scenario, host = self.scenario, self.topology.host
        is_shared = host(edge.source) == host(edge.destination)
        cost = scenario.within_host if is_shared else scenario.between_hosts
        return _Way(edge.origins, cost, is_shared)

    def _arrange(self, parents: tuple[int | None, ...]) -> None:
        for number, edge in enumerate(self.topology.edges):
            node = self._nodes[edge.source]
            if parents[edge.source] == edge.destination:
                node.up = number
            else:
                node.down.append(number)
        for edge, way in zip(self.topology.edges, self._ways, strict=True):
            goes_on = len(self._nodes[edge.destination].out) > 1
            way.additions = 2 if goes_on else 0

    # ---- time -----------------------------------------------------------------------

    def run(self) -> Outcome:
        """Simulate the warm-up and the window, and sum up the window."""
        scenario = self.scenario
        for node in range(self.topology.nodes):
            self._begin_step(0.0, node)
        if self.topology.parents is not None:
            self._at(scenario.interval, self._tick, 1)
        self._go(scenario.warmup)
        self._measuring = True
        before = self._totals()
        self._go(scenario.warmup + scenario.seconds)
        self._measuring = False
        return self._outcome(self._totals() - before)

    def drain(self) -> None:
        """Make no further step, and go on until nothing is under way."""
        self._ending = True
        self._go(np.inf)
        for number in range(self.topology.nodes):
            self._apply(0.0, number)

    def _at(self, moment: float, what: Callable[..., None], *arguments: Any) -> None:
        self._count += 1
        heapq.heappush(self._events, (moment, self._count, what, arguments))

    def _go(self, end: float) -> None:
        while self._events and self._events[0][0] <= end:
            now, _, what, arguments = heapq.heappop(self._events)
            what(now, *arguments)

    def _work(self, node: _Node, now: float, seconds: float) -> float:
        """Let the event loop work, when it has done what came before; until when."""
        node.loop_free = max(now, node.loop_free) + seconds
        node.loop_used += seconds
        return node.loop_free

    # ---- steps ----------------------------------------------------------------------

    def _duration(self) -> float:
        jitter = self.scenario.jitter
        return self.scenario.step * self._random.uniform(1 - jitter, 1 + jitter)

    def _begin_step(self, now: float, number: int) -> None:
        node = self._nodes[number]
        if number in self._is_sampled:
            self._known[number, node.steps + 1] = self.applied[number].copy()
        node.duration = self._duration()
        self._at(now + node.duration, self._step_ends, number)

    def _step_ends(self, now: float, number: int) -> None:
        node = self._nodes[number]
        delay = node.loop_used - node.loop_counted
        if self.scenario.one_core and delay > 1e-9:
            node.loop_counted = node.loop_used
            self._at(now + delay, self._step_ends, number)
            return
        node.steps += 1
        if self._measuring:
            self._note_step(now, node)
        self.applied[number, number] = node.steps
        if number in self._is_sampled:
            self._born[number, node.steps] = now
        if node.oldest is None:
            node.oldest = now
        now = self._apply(now, number)
        if self.topology.parents is not None:
            self.held[number, number] = node.steps
        elif self._ending or self._is_due(node, now):
            self._publish(now, number)
        if not self._ending:
            self._begin_step(now, number)

    @staticmethod
    def _note_step(now: float, node: _Node) -> None:
        if node.first is None:
            node.first = now
        else:
            node.worked += node.duration
        node.last = now

    def _apply(self, now: float, number: int) -> float:
        """Add what has arrived to the parameters; until when that takes."""
        node = self._nodes[number]
        now += node.to_apply
        node.applying += node.to_apply
        node.to_apply = 0.0
        held, applied = self.held[number], self.applied[number]
        if self._measuring and number in self._is_sampled:
            self._note_ages(now, number)
        own = applied[number]
        applied[:] = held
        applied[number] = own
        for edge in node.unacknowledged:
            self._at(now + self.scenario.latency, self._acknowledged, edge)
        node.unacknowledged.clear()
        return now

    def _note_ages(self, now: float, number: int) -> None:
        held, applied = self.held[number], self.applied[number]
        for origin in self._sampled:
            first = int(applied[origin]) + 1
            if origin == number or held[origin] < first:
                continue
            self._ages.append(now - self._born[origin, first])
            known = self._known[origin, first]
            before = int(np.maximum(applied - known, 0).sum())
            after = int(np.maximum(np.maximum(held, applied) - known, 0).sum())
            others = after - before - (int(held[origin]) - first + 1)
            # Those that came together are applied one by one: half of them before.
            self._stalenesses.append(before + others / 2)

    # ---- a mesh ---------------------------------------------------------------------

    def _is_due(self, node: _Node, now: float) -> bool:
        """Decide as `Pacer.due` does for a busy replica, by the simulated clock."""
        pacer, scenario = node.pacer, self.scenario
        if now < node.published + pacer.least:
            return False
        most = max(scenario.staleness - pacer.delivery, scenario.staleness / 4)
        assert node.oldest is not None
        return (
            now >= node.published + pacer.cost / (THRIFT * scenario.share)
            or now >= node.oldest + most - scenario.step
        )

    def _publish(self, now: float, number: int) -> None:
        node = self._nodes[number]
        self.held[number, number] = node.steps
        node.published, node.oldest = now, None
        mb = self.scenario.gradient_mb
        delivering = sum(2 * self._ways[edge].cost.end(mb) for edge in node.out)
        node.pacer.published(node.applying + delivering)
        node.pacer.delivered(
            max((self._ways[edge].took for edge in node.out), default=0)
        )
        node.applying = 0.0
        for edge in node.out:
            self._offer(now, edge)

    # ---- a tree ---------------------------------------------------------------------

    def _tick(self, now: float, count: int) -> None:
        """Let all leaves send up: they tick together."""
        for node in self._nodes:
            if not node.down and node.up is not None:
                self._offer(now, node.up)
        if not self._ending or not self._is_even():
            interval = self.scenario.interval
            self._at((count + 1) * interval, self._tick, count + 1)

    def _is_even(self) -> bool:
        return bool((self.held == self.held.diagonal()).all())

    def _passes_on(self, now: float, number: int, edge: int) -> None:
        """Go on with the wave that has come by this edge."""
        node, source = self._nodes[number], self.topology.edges[edge].source
        if self._nodes[source].up == edge:
            node.reported.add(source)
            if len(node.reported) < len(node.down):
                return
            node.reported.clear()
            if node.up is not None:
                self._offer(now, node.up)
                return
        for down in node.down:
            self._offer(now, down)

    # ---- messages -------------------------------------------------------------------

    def _offer(self, now: float, edge: int) -> None:
        """Send what the other end lacks, when what was sent before is acknowledged."""
        way = self._ways[edge]
        way.is_dirty = True
        if way.is_busy:
            return
        way.is_dirty, way.is_busy, way.left = False, True, now
        source = self.topology.edges[edge].source
        high = self.held[source][way.origins]
        low, way.sent = way.sent, high
        mb = self.scenario.gradient_mb if (high > low).any() else 0.0
        sent = self._work(self._nodes[source], now, way.cost.end(mb))
        arrives = sent if way.is_shared else self._carried(sent, edge, mb)
        if self._measuring:
            self._messages[source] += 1
            self._mb[source] += mb
        self._at(arrives, self._arrived, edge, low, high, mb)

    def _carried(self, now: float, edge: int, mb: float) -> float:
        """Go through both network cards; when the last byte arrives."""
        topology, scenario = self.topology, self.scenario
        source, destination = (
            topology.host(node)
            for node in (
                topology.edges[edge].source,
                topology.edges[edge].destination,
            )
        )
        takes = mb / scenario.bandwidth
        begins = max(now, self._card_out[source])
        self._card_out[source] = begins + takes
        taken = max(begins + scenario.latency, self._card_in[destination]) + takes
        self._card_in[destination] = taken
        return float(taken)

    def _arrived(
        self, now: float, edge: int, low: np.ndarray, high: np.ndarray, mb: float
    ) -> None:
        way = self._ways[edge]
        # Sums of all others but one are made of two running sums, from either end: two
        # additions of each message, however many connections a relay has.
        adding = way.additions * way.cost.thread.per_mb * mb
        node = self._nodes[self.topology.edges[edge].destination]
        done = self._work(node, now, way.cost.end(mb) + adding)
        self._at(done, self._handled, edge, low, high, mb)

    def _handled(
        self, now: float, edge: int, low: np.ndarray, high: np.ndarray, mb: float
    ) -> None:
        way, number = self._ways[edge], self.topology.edges[edge].destination
        node, held = self._nodes[number], self.held[number]
        if not np.array_equal(held[way.origins], low):
            raise AssertionError(f"Edge {edge} repeats gradients, or leaves some out.")
        held[way.origins] = high
        if mb:
            self.delivered += 1
            node.to_apply += way.cost.thread(mb)
        if self.topology.parents is None and not self._ending:
            node.unacknowledged.append(edge)
            return
        self._at(now + self.scenario.latency, self._acknowledged, edge)
        if self.topology.parents is not None:
            self._passes_on(now, number, edge)

    def _acknowledged(self, now: float, edge: int) -> None:
        way = self._ways[edge]
        way.is_busy = False
        way.took = now - way.left
        if way.is_dirty:
            self._offer(now, edge)

    # ---- the sums -------------------------------------------------------------------

    def _totals(self) -> np.ndarray:
        steps = [node.steps for node in self._nodes]
        used = [node.loop_used for node in self._nodes]
        delivered = [self.delivered] * len(steps)
        return np.array([steps, used, delivered], float)

    def _outcome(self, totals: np.ndarray) -> Outcome:
        seconds = self.scenario.seconds
        steps, loops, delivered = totals
        made = np.array(
            [
                node.worked / (node.last - node.first)
                for node in self._nodes
                if node.first is not None and node.last > node.first
            ]
        )
        return Outcome(
            efficiency=float(made.mean()),
            slowest=float(made.min()),
            loop=float(loops.mean() / seconds),
            busiest_loop=float(loops.max() / seconds),
            messages=float(self._messages.mean() / seconds),
            most_messages=float(self._messages.max() / seconds),
            mb=float(self._mb.mean() / seconds),
            most_mb=float(self._mb.max() / seconds),
            delivered=float(delivered[0] / steps.sum()),
            ages=np.array(self._ages),
            stalenesses=np.array(self._stalenesses),
        )
