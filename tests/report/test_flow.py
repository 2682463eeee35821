"""The picture of a step shows what really flows: calls, stopped gradients, targets that follow, masks."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unmask.data.batch import Batch, CropConfig
from unmask.methods.base import Inspection, Method, MethodConfig
from unmask.models.encoder import Encoder
from unmask.models.target import ema_update_, frozen_copy
from unmask.optimisation import ParameterRule
from unmask.report.flow import Edge, Flow, Node, simplified
from unmask.report.flow_draw import draw_flow, short_count
from unmask.report.flow_layout import lay_out
from unmask.report.flow_trace import trace_flow, with_parameters
from unmask.trainee import Losses

B = 3
Step = Callable[["Toy", "ToyViews"], Losses]


@dataclass(frozen=True)
class ToyViews:
    """Two views of 4 values, a mask, and something that nothing reads."""

    online: Tensor
    target: Tensor
    mask_BN: Tensor
    unused: Tensor
    many: tuple[Tensor, ...] = ()


class Toy(Method[Any]):
    """A method whose losses are given by the test."""

    def __init__(self, step: Step, depth: int = 1) -> None:
        super().__init__()
        self.config = MethodConfig()
        self.step = step
        self.encoder = nn.Sequential(*[nn.Linear(4, 4) for _ in range(depth)])
        self.predictor = nn.Linear(4, 4)
        self.target_encoder = frozen_copy(self.encoder)
        self.prototypes = nn.Parameter(torch.ones(6, 4))
        self.register_buffer("centre", torch.zeros(4))

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return (CropConfig(height=2, width=2),)

    def make_views(self, batch: Batch) -> ToyViews:
        flat_BK = batch.crops[0].flatten(1)[:, :4].float()
        mask_BN = torch.tensor([True, False, True, False]).expand(batch.size, -1)
        target = torch.zeros_like(flat_BK)
        target[:, 1:] = flat_BK[:, 1:] / 2
        many = tuple(flat_BK + place for place in range(5))
        return ToyViews(online=flat_BK / 255, target=target, mask_BN=mask_BN, unused=flat_BK + 1, many=many)

    def losses(self, views: ToyViews, progress: float = 0.0) -> Losses:
        return self.step(self, views)

    def update_target(self, progress: float) -> None:
        ema_update_(self.target_encoder, self.encoder, 0.5)

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=False)

    def exported(self) -> Encoder:
        raise AssertionError("not asked for")

    def inspect(self, views: ToyViews) -> Inspection:
        return Inspection()


def flow_of(step: Step, **arguments: Any) -> Flow:
    return trace_flow(Toy(step, **arguments), batch())


def batch() -> Batch:
    return Batch.of(torch.arange(B * 12, dtype=torch.uint8).reshape(B, 3, 2, 2), seed=0)


def arrows(flow: Flow) -> dict[tuple[str, str], bool]:
    """Whether a gradient flows back, by the names of both ends."""
    return {(flow.node(edge.source).name, flow.node(edge.target).name): edge.gradient for edge in flow.edges}


def plain(method: Toy, views: ToyViews) -> Losses:
    """Predict the target network's feature at hidden places."""
    prediction = method.predictor(method.encoder(views.online))
    with torch.no_grad():
        target = method.target_encoder(views.target)
    return {"distance": F.mse_loss(prediction[views.mask_BN], target[views.mask_BN])}


def test_views_modules_and_losses_are_joined_by_what_flows() -> None:
    flow = flow_of(plain)
    assert arrows(flow) == {
        ("crops", "online"): False,
        ("crops", "target"): False,
        ("online", "encoder"): False,
        ("encoder", "predictor"): True,
        ("target", "target_encoder"): False,
        ("predictor", "distance"): True,
        ("target_encoder", "distance"): False,
        ("mask_BN", "distance"): False,
    }
    kinds = {node.name: (node.kind, node.shape, node.trained) for node in flow.nodes}
    assert kinds == {
        "crops": ("batch", "B×1×3×2×2", False),
        "online": ("view", "B×4", False),
        "target": ("view", "B×4", False),
        "mask_BN": ("mask", "B×4", False),
        "encoder": ("module", "B×4", True),
        "predictor": ("module", "B×4", True),
        "target_encoder": ("module", "B×4", False),
        "distance": ("loss", "", True),
    }


def test_targets_tell_whom_they_follow_and_modules_their_size() -> None:
    nodes = {node.name: node for node in flow_of(plain).nodes}
    assert nodes["target_encoder"].follows == ("encoder",)
    assert nodes["encoder"].follows == nodes["predictor"].follows == ()
    assert (nodes["encoder"].about, nodes["encoder"].parameters) == ("Sequential", 20)


def test_the_method_and_the_random_state_are_left_as_they_were() -> None:
    method = Toy(plain)
    nn.init.zeros_(method.encoder[0].weight)
    state = {name: value.clone() for name, value in method.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = trace_flow(method, batch())
    torch.testing.assert_close(torch.rand(2), expected)
    for name, value in method.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert trace_flow(method, batch()) == first
    assert not method.encoder._forward_hooks


def test_a_detached_feature_stops_the_gradient() -> None:
    def siamese(method: Toy, views: ToyViews) -> Losses:
        one, two = method.encoder(views.online), method.encoder(views.target)
        return {
            "forth": F.mse_loss(method.predictor(one), two.detach()),
            "back": F.mse_loss(method.predictor(two), one.detach()),
        }

    flow = flow_of(siamese)
    calls = [node.key for node in flow.nodes if node.name == "encoder"]
    assert len(calls) == 2
    for loss in ("loss:forth", "loss:back"):
        gradients = {flow.node(edge.source).name: edge.gradient for edge in flow.edges if edge.target == loss}
        assert gradients == {"predictor": True, "encoder": False}


def test_free_parameters_and_buffers_are_nodes_where_they_are_used() -> None:
    def clustered(method: Toy, views: ToyViews) -> Losses:
        logits = (method.encoder(views.online) - method.centre) @ method.prototypes.T
        return {"entropy": -logits.log_softmax(-1).mean()}

    flow = flow_of(clustered)
    free = {node.name: (node.about, node.shape, node.trained) for node in flow.nodes if node.kind == "state"}
    assert free == {"prototypes": ("parameter", "6×4", True), "centre": ("buffer", "4", False)}
    assert arrows(flow)["prototypes", "entropy"]
    assert not any(node.kind == "state" for node in flow_of(plain).nodes)


def test_writing_into_a_part_of_a_tensor_counts() -> None:
    def filled(method: Toy, views: ToyViews) -> Losses:
        canvas = torch.zeros(B, 4)
        canvas[:, :2].copy_(method.encoder(views.online)[:, :2])
        shape_only = torch.zeros_like(views.target)
        return {"size": (canvas + shape_only).square().mean()}

    flow = flow_of(filled)
    assert arrows(flow)["encoder", "size"]
    assert "target" not in {node.name for node in flow.nodes}


def test_parts_that_run_one_after_the_other_are_one_node() -> None:
    def walked(method: Toy, views: ToyViews) -> Losses:
        tokens = views.online
        for block in method.encoder:
            tokens = block(tokens) * 2
        return {"size": tokens.square().mean()}

    flow = flow_of(walked, depth=3)
    (node,) = (node for node in flow.nodes if node.kind == "module")
    assert (node.name, node.about, node.parameters) == ("encoder", "Sequential", 60)


def test_what_a_module_computes_on_its_way_is_the_modules() -> None:
    def peeking(method: Toy, views: ToyViews) -> Losses:
        seen: list[Tensor] = []
        handle = method.encoder[0].register_forward_hook(lambda module, args, result: seen.append(result))
        method.encoder(views.online)
        handle.remove()
        return {"size": seen[0].square().mean()}

    assert arrows(flow_of(peeking, depth=2))["encoder", "size"]


def test_many_alike_are_one() -> None:
    def cropped(method: Toy, views: ToyViews) -> Losses:
        return {"size": torch.cat([method.encoder(view) for view in views.many]).square().mean()}

    nodes = {node.name: node.calls for node in flow_of(cropped).nodes}
    assert nodes == {"crops": 1, "many": 5, "encoder": 5, "size": 1}


def test_calls_that_feed_each_other_stay_apart() -> None:
    def repeated(method: Toy, views: ToyViews) -> Losses:
        tokens = views.online
        for _ in range(3):
            tokens = method.predictor(method.encoder(tokens))
        return {"size": tokens.square().mean()}

    names = [node.name for node in flow_of(repeated).nodes]
    assert names.count("encoder") == names.count("predictor") == 3


def test_samples_laid_end_to_end_are_counted_per_sample() -> None:
    def selected(method: Toy, views: ToyViews) -> Losses:
        rows = views.online.repeat_interleave(2, dim=0)
        return {"size": method.encoder(rows).square().mean()}

    flow = flow_of(selected)
    assert next(node.shape for node in flow.nodes if node.name == "encoder") == "B·2×4"
    assert next(edge.shape for edge in flow.edges if flow.node(edge.target).name == "encoder") == "B·2×4"


def test_a_loss_from_nowhere_is_refused() -> None:
    def constant(method: Toy, views: ToyViews) -> Losses:
        return {"nothing": torch.tensor(1.0, requires_grad=True)}

    with pytest.raises(ValueError, match="cannot see where the loss 'nothing' comes from"):
        flow_of(constant)


def test_counts_can_be_those_of_a_deeper_method() -> None:
    flow = flow_of(plain)
    deeper = with_parameters(flow, Toy(plain, depth=5))
    assert {node.name: node.parameters for node in deeper.nodes}["encoder"] == 100
    assert [replace(node, parameters=0) for node in deeper.nodes] == [
        replace(node, parameters=0) for node in flow.nodes
    ]


def test_joining_makes_no_circle() -> None:
    """A part of a module may not swallow another that runs later on a third module's output."""
    parts = [Node(key=name, kind="module", name=name) for name in ("a.x", "b", "a.y")]
    nodes = (*parts, Node(key="loss", kind="loss", name="loss"))
    pairs = (("a.x", "b"), ("b", "a.y"), ("a.x", "a.y"), ("a.y", "loss"))
    flow = Flow(nodes=nodes, edges=tuple(Edge(source=source, target=target) for source, target in pairs))
    assert simplified(flow) == flow


def texts(svg: str) -> list[str]:
    space = "{http://www.w3.org/2000/svg}"
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{space}text")]


def test_the_drawing_says_it_all_and_stands_alone() -> None:
    svg = draw_flow(flow_of(plain), title="A <toy>")
    words = texts(svg)
    for word in ("crops", "online", "encoder", "Sequential · 20", "follows encoder", "distance", "B × 4"):
        assert word in words
    # The mask's box and the tag on the loss that reads it.
    assert words.count("mask_BN") == 2
    assert "A &lt;toy&gt;" in svg
    assert svg.count("http") == 1, "the name space and nothing from elsewhere"
    assert "prefers-color-scheme: dark" in svg
    assert svg == draw_flow(flow_of(plain), title="A <toy>")


def test_the_legend_explains_only_what_is_there() -> None:
    def simple(method: Toy, views: ToyViews) -> Losses:
        return {"size": method.encoder(views.online).square().mean()}

    words = texts(draw_flow(flow_of(simple), title="toy"))
    assert "gets gradients" in words
    assert "no gradient" not in words
    assert "no gradient" in texts(draw_flow(flow_of(plain), title="toy"))


@pytest.mark.parametrize(("value", "text"), [(7, "7"), (999, "999"), (21_600_000, "21.6 M"), (86_400, "86.4 k")])
def test_counts_are_short(value: int, text: str) -> None:
    assert short_count(value) == text


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[str, tuple[float, float]], list[tuple[str, str]]]:
    size = draw(st.integers(2, 9))
    names = [f"box {place}" for place in range(size)]
    side = st.floats(20, 200)
    sizes = {name: (draw(side), draw(side)) for name in names}
    pairs = st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)).filter(lambda pair: pair[0] < pair[1])
    lines = draw(st.lists(pairs, unique=True, max_size=14))
    return sizes, [(names[source], names[target]) for source, target in lines]


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_boxes_never_overlap_and_lines_lead_to_the_right(
    graph: tuple[dict[str, tuple[float, float]], list[tuple[str, str]]],
) -> None:
    sizes, lines = graph
    layout = lay_out(sizes, lines, first={}, last=[], gap=40)
    assert layout == lay_out(sizes, lines, first={}, last=[], gap=40)
    for source, target in lines:
        assert layout.columns[source] < layout.columns[target]
        assert len(layout.waypoints[source, target]) == layout.columns[target] - layout.columns[source] - 1
    for column in set(layout.columns.values()):
        stack = sorted(
            (name for name in sizes if layout.columns[name] == column), key=lambda name: layout.centres[name][1]
        )
        for above, below in pairwise(stack):
            apart = layout.centres[below][1] - layout.centres[above][1]
            assert apart > (sizes[above][1] + sizes[below][1]) / 2
        for name in stack:
            x, y = layout.centres[name]
            assert sizes[name][0] / 2 - 1e-6 <= x <= layout.width - sizes[name][0] / 2 + 1e-6
            assert sizes[name][1] / 2 - 1e-6 <= y <= layout.height - sizes[name][1] / 2 + 1e-6
            # Lines that pass this column go above or below its boxes.
            for line, passes in layout.waypoints.items():
                for place, (entry, leave) in enumerate(passes, start=layout.columns[line[0]] + 1):
                    if place == column:
                        assert entry[1] == leave[1]
                        assert entry[0] <= x - sizes[name][0] / 2 + 1e-6
                        assert leave[0] >= x + sizes[name][0] / 2 - 1e-6
                        assert abs(entry[1] - y) > sizes[name][1] / 2


def test_lines_cross_only_where_they_must() -> None:
    """A box at the bottom that leads to one at the top changes its place instead."""
    sizes = dict.fromkeys("abcdef", (50.0, 20.0))
    layout = lay_out(sizes, [("a", "f"), ("b", "e"), ("c", "d")], first={}, last=[], gap=40)
    sources = sorted("abc", key=lambda name: layout.centres[name][1])
    targets = sorted("def", key=lambda name: layout.centres[name][1])
    assert [{"a": "f", "b": "e", "c": "d"}[name] for name in sources] == targets
