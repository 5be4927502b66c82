"""Who sends gradients to whom, so that each gradient reaches each node by one way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Edge", "Topology", "mesh", "tree"]


@dataclass(frozen=True, eq=False)
class Edge:
    """One direction of a connection.

    Attributes
    ----------
    source, destination
        Nodes.
    origins
        The nodes whose gradients go this way.
    """

    source: int
    destination: int
    origins: np.ndarray


@dataclass(frozen=True)
class Topology:
    """All edges.

    Attributes
    ----------
    name
        For people.
    nodes
        How many.
    edges
        Both directions of all connections.
    parents
        Of each node in a tree, None for its root; None where there is no tree.
    per_host
        Nodes of one machine: those that follow each other.
    """

    name: str
    nodes: int
    edges: tuple[Edge, ...]
    parents: tuple[int | None, ...] | None = None
    per_host: int = 1

    def host(self, node: int) -> int:
        """Return the machine of a node."""
        return node // self.per_host


def mesh(nodes: int, per_host: int = 1) -> Topology:
    """Connect all with all: each sends what it has learned itself."""
    own = [np.array([node]) for node in range(nodes)]
    edges = tuple(
        Edge(source, destination, own[source])
        for source in range(nodes)
        for destination in range(nodes)
        if source != destination
    )
    return Topology("mesh", nodes, edges, per_host=per_host)


def tree(nodes: int, children: int = 2, per_host: int = 1) -> Topology:
    """Connect hosts as a tree, and the nodes of a host with its first."""

    def parent(node: int) -> int | None:
        host, rank = divmod(node, per_host)
        if rank:
            return host * per_host
        return (host - 1) // children * per_host if host else None

    parents = tuple(map(parent, range(nodes)))
    below = [{node} for node in range(nodes)]
    # A parent has a smaller number than its children.
    for node in reversed(range(1, nodes)):
        below[parents[node]] |= below[node]
    edges = []
    everybody = set(range(nodes))
    for node, above in enumerate(parents):
        if above is not None:
            edges.append(Edge(node, above, np.array(sorted(below[node]))))
            others = everybody - below[node]
            edges.append(Edge(above, node, np.array(sorted(others))))
    name = f"tree of {children}" + (f", hosts of {per_host}" if per_host > 1 else "")
    return Topology(name, nodes, tuple(edges), parents, per_host)
