"""Encoders as graphs: ONNX by onnxruntime, torch.export by torch alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

from unmask.interop.weights_out import onnx_file
from unmask.interop.weights_out.compare import normalised, real_images, tokens_of
from unmask.interop.weights_out.export import WantedExport, export
from unmask.interop.weights_out.graph import Graph, check_graph
from unmask.models.pretrained import PretrainedEncoder

Tiny = Callable[[str], PretrainedEncoder]


def test_onnx_takes_bytes_of_four_channels_and_any_size(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that are too large for one file lie beside it."""
    monkeypatch.setattr(onnx_file, "LARGEST", 1000)
    pretrained, out = tiny("four channels"), tmp_path / "out"
    with pytest.raises(ValueError, match="needs two files as ONNX; give a folder"):
        export(pretrained, WantedExport(to="onnx", out=tmp_path / "a.onnx"), str)
    graph = Graph(output="class", normalise="uint8", any_size=True)
    found = export(pretrained, WantedExport(to="onnx", out=out, graph=graph), str)
    of = ("a batch of 8", "one image", "40x56 pixels", "16x24 pixels")
    assert [one.what for one in found] == [f"features of {what}" for what in of]
    assert all(one.relative < 1e-5 for one in found)
    assert {path.name for path in out.iterdir()} == {"README.md", "model.onnx", "model.onnx.data"}
    images_BCHW = real_images(pretrained.encoder, None, 5)
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    (given,) = session.run(["features"], {"images": images_BCHW.numpy()})
    ours = tokens_of(pretrained, images_BCHW)[:, 0]
    torch.testing.assert_close(torch.from_numpy(given), ours, rtol=1e-4, atol=1e-5)
    assert session.get_inputs()[0].shape == ["batch", 4, "8*rows", "8*columns"]
    facts = json.loads(session.get_modelmeta().custom_metadata_map["unmask_encoder"])
    assert facts["input"] == "bytes"
    assert facts["mean"] == [0.4, 0.5, 0.45, 0.3]
    onnx.checker.check_model(str(out / "model.onnx"))


def test_onnx_of_one_channel_and_a_table_of_positions_is_one_file(tiny: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    found = export(tiny("grey table"), WantedExport(to="onnx", out=out), str)
    assert all(one.relative < 1e-5 for one in found)
    assert list(tmp_path.iterdir()) == [out]
    assert onnxruntime.InferenceSession(str(out)).get_inputs()[0].shape == ["batch", 1, 32, 32]


@pytest.mark.parametrize(
    ("kind", "graph"),
    [
        ("shared table", Graph(output="tokens", normalise="uint8")),
        ("registers", Graph(normalise="float", any_size=True)),
        ("small convolutions", Graph(any_size=True)),
    ],
)
def test_torch_loads_what_it_exported(kind: str, graph: Graph, tiny: Tiny, tmp_path: Path) -> None:
    pretrained, out = tiny(kind), tmp_path / "out.pt2"
    found = export(pretrained, WantedExport(to="torch-export", out=out, graph=graph), str)
    assert all(one.relative < 1e-5 for one in found)
    extra = {"unmask_encoder.json": ""}
    model = torch.export.load(out, extra_files=extra).module()
    assert json.loads(extra["unmask_encoder.json"])["output"] == graph.output
    images_BCHW = real_images(pretrained.encoder, None, 3)
    given = images_BCHW if graph.normalise == "uint8" else images_BCHW / 255
    given = normalised(pretrained, images_BCHW) if graph.normalise is None else given
    with torch.no_grad():
        theirs, ours = model(given), tokens_of(pretrained, images_BCHW)
    ours = ours if graph.output == "tokens" else pretrained.encoder.pool(ours)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "graph", "sentence"),
    [
        ("pixels", Graph(), "export to safetensors"),
        ("no class token", Graph(output="class"), "has no class token; take --output mean or tokens"),
        ("shared table", Graph(any_size=True), "relative positions of one size"),
        ("table a block", Graph(any_size=True), "relative positions of one size"),
        ("rotary", Graph(any_size=True), "relative positions of one size"),
        ("dino's positions", Graph(any_size=True), "by DINO's rule"),
        ("hybrid", Graph(any_size=True), "made for one size of image"),
    ],
)
def test_what_no_graph_can_do_is_refused(kind: str, graph: Graph, sentence: str, tiny: Tiny) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_graph(tiny(kind).encoder, graph)
