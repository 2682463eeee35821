"""What flows where in one step of a method, found by watching a real call.

While `losses` runs, every tensor knows from which views, module calls and free parameters its value comes. A call of a
module starts a new source; what is computed between modules (selecting, normalising, comparing) only joins sources. So
the graph has the parts that the method's author has named, and nothing is written down by hand.

Shapes are text, as pictures show them: `B×197×384`, with B for the batch and `B·147` where samples are laid end to end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from unmask.data.batch import Batch
from unmask.methods.base import Method
from unmask.report.flow import Edge, Flow, Kind, Node, child, simplified

# Where a value comes from, and whether a gradient flows back there.
Sources = dict[str, bool]

# Their results have the shape of a tensor and nothing of its values.
VALUELESS = ("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like")
# Only the first tensor gives values; another one only type, device or shape.
FIRST_ONLY = ("to", "type_as", "expand_as", "view_as", "reshape_as")


def trace_flow(method: Method[Any], batch: Batch, *, progress: float = 0.5) -> Flow:
    """The data flow of one step of `method` on `batch` at `progress` of the run. The method's state is left as it was.

    ValueError where a loss does not depend on anything that can be watched.
    """
    state = {name: value.clone() for name, value in method.state_dict().items()}
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), _Watch(method, batch.size) as watch:
        for name, tensor in _named_tensors(batch):
            watch.add(tensor, Node(key=f"batch:{name}", kind="batch", name=name, about=_type(tensor)))
        views = method.make_views(batch)
        for name, tensor in _named_tensors(views):
            kind: Kind = "mask" if tensor.dtype == torch.bool else "view"
            watch.add(tensor, Node(key=f"view:{name}", kind=kind, name=name, about=_type(tensor)))
        for name, loss in method.losses(views, progress).items():
            if not watch.sources(loss):
                raise ValueError(f"cannot see where the loss {name!r} comes from")
            watch.add(loss, Node(key=f"loss:{name}", kind="loss", name=name, trained=loss.requires_grad))
        method.update_target(progress)
    method.load_state_dict(state)
    return _finished(watch, method)


def with_parameters(flow: Flow, method: Method[Any]) -> Flow:
    """The same flow with the parameter counts of another `method` of the same modules, a deeper one for example."""
    return replace(flow, nodes=tuple(_described(node, method) for node in flow.nodes))


def _described(node: Node, method: Method[Any]) -> Node:
    if node.kind != "module":
        return node
    module = method.get_submodule(node.name)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return replace(node, about=type(module).__name__, parameters=parameters)


class _Watch(TorchFunctionMode):
    """Notes the sources of every tensor that is made outside of modules, and every outermost call of a module."""

    def __init__(self, method: Method[Any], batch_size: int) -> None:
        super().__init__()
        self.method = method
        self.batch_size = batch_size
        self.nodes: dict[str, Node] = {}
        self.edges: dict[tuple[str, str], Edge] = {}
        self._sources: dict[int, Sources] = {}
        self._kept: list[Tensor] = []  # an id means a tensor only as long as the tensor lives
        self._inside = 0
        self._call = ""
        self._hooks: list[RemovableHandle] = []
        for name, tensor in _state(method):
            self._keep(tensor, {f"state:{name}": tensor.requires_grad})

    def __enter__(self) -> _Watch:
        for name, module in self.method.named_modules():
            if name:
                self._hooks.append(module.register_forward_pre_hook(self._before(name), with_kwargs=True))
                self._hooks.append(module.register_forward_hook(self._after))
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        for hook in self._hooks:
            hook.remove()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.__name__
        if self._inside:
            # Methods may look at what a module computes on its way (attention): that is the module's, too.
            for tensor in _tensors(result):
                if id(tensor) not in self._sources:
                    self._keep(tensor, {self._call: tensor.requires_grad})
            return result
        if name in VALUELESS or name.startswith("new_"):
            return result
        if name.startswith("_foreach_") and name.endswith("_"):
            for changed, *others in zip(*(arg for arg in args if isinstance(arg, list | tuple)), strict=True):
                self._change(changed, others)
            return result
        read = args[:1] if name in FIRST_ONLY else (args, kwargs)
        in_place = (name.endswith("_") and not name.endswith("__")) or name in ("__setitem__", "__iadd__", "__ior__")
        if in_place and isinstance(args[0], Tensor):
            self._change(args[0], read)
        else:
            sources = self.sources(read)
            for tensor in _tensors(result):
                self._keep(tensor, {key: flag and tensor.requires_grad for key, flag in sources.items()})
        return result

    def add(self, tensor: Tensor, node: Node) -> None:
        """A node that is `tensor`, with an edge from each of its sources; from here on it is its own source."""
        shape = _shape(tensor, self.batch_size) if node.kind != "loss" else ""
        self._add(replace(node, shape=shape), tensor, node_only=node.kind == "loss")
        self._keep(tensor, {node.key: node.trained})

    def sources(self, values: Any) -> Sources:
        """The sources of all tensors in `values`."""
        joined: Sources = {}
        for tensor in _tensors(values):
            for key, flag in self._sources.get(id(tensor), {}).items():
                joined[key] = joined.get(key, False) or flag
        return joined

    def _add(self, node: Node, arrived: Any, *, node_only: bool = False) -> None:
        self.nodes[node.key] = node
        for tensor in _tensors(arrived):
            for source, flag in self.sources(tensor).items():
                shape = "" if node_only or node.kind != "module" else _shape(tensor, self.batch_size)
                edge = Edge(source=source, target=node.key, shape=shape, gradient=flag)
                before = self.edges.get((source, node.key), edge)
                self.edges[source, node.key] = replace(before, gradient=before.gradient or flag)

    def _keep(self, tensor: Tensor, sources: Sources) -> None:
        self._kept.append(tensor)
        self._sources[id(tensor)] = sources

    def _change(self, tensor: Tensor, read: Any) -> None:
        """`tensor` was changed in place, and with it the tensor that it is a part of."""
        joined = self.sources([tensor, read])
        self._keep(tensor, joined)
        if tensor._base is not None:
            self._keep(tensor._base, self.sources([tensor._base, tensor]))

    def _before(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def begin(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._inside += 1
            if self._inside == 1:
                self._call = f"call:{len(self.nodes)}"
                self._add(Node(key=self._call, kind="module", name=name), (args, kwargs))

        return begin

    def _after(self, module: nn.Module, args: Any, result: Any) -> None:
        self._inside -= 1
        if self._inside:
            return
        outputs = list(_tensors(result))
        trained = any(tensor.requires_grad for tensor in outputs)
        shape = _shape(outputs[0], self.batch_size) if outputs else ""
        self.nodes[self._call] = replace(self.nodes[self._call], shape=shape, trained=trained)
        for tensor in outputs:
            self._keep(tensor, {self._call: tensor.requires_grad})


def _finished(watch: _Watch, method: Method[Any]) -> Flow:
    """The noted graph, with free parameters as nodes of their own, and calls joined that belong together."""
    nodes = dict(watch.nodes)
    called = {child(node.name) for node in nodes.values() if node.kind == "module"}
    follows: dict[str, list[str]] = {}
    for name, tensor in _state(method):
        key = f"state:{name}"
        for source in watch.sources(tensor):
            # A module's call or another parameter; what follows the images themselves (a palette) follows nobody.
            whose = nodes.get(source, Node(key=source, kind="state", name=source.removeprefix("state:")))
            other = whose.name
            if whose.kind in ("module", "state") and child(other) != child(name):
                follows.setdefault(child(name), []).append(child(other))
        # Weights of a module that is called are part of it; others stand alone, as prototypes and centres do.
        if child(name) not in called and any(source == key for source, _ in watch.edges):
            about = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
            shape = "×".join(map(str, tensor.shape))
            nodes[key] = Node(
                key=key, kind="state", name=name, about=about, shape=shape, trained=tensor.requires_grad,
                parameters=tensor.numel() if about == "parameter" else 0,
            )  # fmt: skip
    for key, node in nodes.items():
        if node.kind in ("module", "state"):
            nodes[key] = replace(node, follows=tuple(dict.fromkeys(follows.get(child(node.name), ()))))
    edges = tuple(edge for edge in watch.edges.values() if edge.source in nodes and edge.source != edge.target)
    return with_parameters(simplified(Flow(nodes=tuple(nodes.values()), edges=edges)), method)


def _state(method: Method[Any]) -> Iterator[tuple[str, Tensor]]:
    return chain(method.named_parameters(), method.named_buffers())


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples, dicts and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif dataclasses.is_dataclass(value):
        yield from (tensor for _, tensor in _named_tensors(value))


def _named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors of a dataclass with the names of their fields: `crops[0]` in a tuple of several."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            yield from _named_tensors(part, f"{name}[{place}]" if len(value) > 1 else name)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _named_tensors(getattr(value, field.name), f"{name}.{field.name}".removeprefix("."))


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shape(tensor: Tensor, batch_size: int) -> str:
    """A shape as text, the batch as B; samples that are laid end to end as B times what each gives on average."""
    if not tensor.ndim:
        return "scalar"
    sizes = [str(size) for size in tensor.shape]
    if batch_size in tensor.shape:
        sizes[tensor.shape.index(batch_size)] = "B"
    elif tensor.shape[0] > batch_size:
        sizes[0] = f"B·{tensor.shape[0] / batch_size:.4g}"
    return "×".join(sizes)
