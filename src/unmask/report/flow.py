"""A graph of what flows where in one step of a method: views, calls of modules, free parameters, losses.

`flow_trace.trace_flow` finds it by watching a real call; `flow_draw.draw_flow` draws it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

Kind = Literal["batch", "view", "mask", "state", "module", "loss"]

# More calls of one module, and more tensors of one name, than these are drawn as one.
MOST_CALLS, MOST_TENSORS = 2, 3


@dataclass(frozen=True, kw_only=True)
class Node:
    """One part of a step: a tensor that comes in, a call of a module, a free parameter or buffer, or a loss."""

    key: str
    kind: Kind
    name: str
    about: str = ""
    """A module's class, a tensor's type."""
    shape: str = ""
    """What comes out of it."""
    trained: bool = False
    """Whether gradients flow back into it."""
    parameters: int = 0
    calls: int = 1
    """How many calls of one module this stands for."""
    follows: tuple[str, ...] = ()
    """Modules whose weights it follows by `update_target`."""


@dataclass(frozen=True, kw_only=True)
class Edge:
    """Values of `source` reach `target`."""

    source: str
    target: str
    shape: str = ""
    """Shape at arrival, where that is known."""
    gradient: bool = False
    """Whether a gradient flows back."""


@dataclass(frozen=True, kw_only=True)
class Flow:
    """The data flow of one step, nodes in the order in which they came to be."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    def node(self, key: str) -> Node:
        """The node with this key."""
        return next(node for node in self.nodes if node.key == key)


def simplified(flow: Flow) -> Flow:
    """The same flow for human eyes: parts of one module that run one after the other are one node, and so are many
    calls of one module and many tensors of one name; what nothing uses is left out."""
    return _alike_as_one(_chains_as_one(_without_unused(flow)))


def child(name: str) -> str:
    """The direct child of a method that a dotted module name lies in."""
    return name.split(".")[0]


def _chains_as_one(flow: Flow) -> Flow:
    """Methods that walk through a module's own parts (all blocks of an encoder) make a node of each; join these."""
    parts = {node.key for node in flow.nodes if node.kind == "module" and "." in node.name}
    while True:
        for edge in flow.edges:
            ends = {edge.source, edge.target}
            if ends <= parts and _joinable(flow, ends):
                first, second = flow.node(edge.source), flow.node(edge.target)
                if child(first.name) == child(second.name):
                    flow = _joined(flow, ends, replace(second, name=child(second.name)))
                    break
        else:
            return flow


def _alike_as_one(flow: Flow) -> Flow:
    def kind(node: Node) -> tuple[str, str, bool]:
        return node.kind, node.name.split("[")[0], node.trained

    for (what, name, _), group in groupby(sorted(flow.nodes, key=kind), key=kind):
        alike = list(group)
        most = MOST_CALLS if what == "module" else MOST_TENSORS
        keys = {node.key for node in alike}
        if len(alike) > most and _joinable(flow, keys):
            flow = _joined(flow, keys, replace(alike[0], name=name, calls=len(alike)))
    return flow


def _without_unused(flow: Flow) -> Flow:
    used = {edge.source for edge in flow.edges}
    nodes = tuple(node for node in flow.nodes if node.kind == "loss" or node.key in used)
    keys = {node.key for node in nodes}
    edges = tuple(edge for edge in flow.edges if edge.target in keys)
    smaller = Flow(nodes=nodes, edges=edges)
    return smaller if smaller == flow else _without_unused(smaller)


def _joined(flow: Flow, keys: set[str], whole: Node) -> Flow:
    """The flow with the nodes `keys` replaced by `whole`, which has the key of one of them."""
    nodes = tuple(whole if node.key == whole.key else node for node in flow.nodes if node.key not in keys - {whole.key})
    edges: dict[tuple[str, str], Edge] = {}
    for edge in flow.edges:
        source = whole.key if edge.source in keys else edge.source
        target = whole.key if edge.target in keys else edge.target
        if source != target:
            before = edges.get((source, target), edge)
            gradient = before.gradient or edge.gradient
            edges[source, target] = replace(before, source=source, target=target, gradient=gradient)
    return Flow(nodes=nodes, edges=tuple(edges.values()))


def _joinable(flow: Flow, keys: set[str]) -> bool:
    """Whether no path leaves these nodes and comes back: as one node they would be a circle."""
    seen: set[str] = set()
    waiting = [edge.target for edge in flow.edges if edge.source in keys and edge.target not in keys]
    while waiting:
        key = waiting.pop()
        if key in keys:
            return False
        if key not in seen:
            seen.add(key)
            waiting += [edge.target for edge in flow.edges if edge.source == key]
    return True
