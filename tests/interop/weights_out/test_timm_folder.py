"""Folders that timm loads by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from unmask.interop.weights_out.compare import normalised, real_images, tokens_of
from unmask.interop.weights_out.export import WantedExport, export
from unmask.models.pretrained import PretrainedEncoder, encoder_file, read_encoder
from unmask.training.checkpoint import write_atomically

Tiny = Callable[[str], PretrainedEncoder]
LOADED = [
    "plain",
    "four channels",
    "sin-cos",
    "no norm",
    "no class token",
    "registers",
    "shared table",
    "table a block",
    "rotary",
    "rotary without norm",
    "convolutions",
]


@pytest.mark.parametrize("kind", LOADED)
def test_timm_gives_our_features(kind: str, tiny: Tiny, tmp_path: Path) -> None:
    pretrained = tiny(kind)
    found = export(pretrained, WantedExport(to="timm", out=tmp_path / "out"), lambda _: "card")
    assert all(one.relative < 1e-5 for one in found)
    # Beside our own check, the line that users write.
    model: Any = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=0).eval()
    images_BCHW = real_images(pretrained.encoder, None, 3)
    with torch.no_grad():
        theirs = model(normalised(pretrained, images_BCHW))
        ours = pretrained.encoder.pool(tokens_of(pretrained, images_BCHW))
    theirs = theirs.mean(dim=(2, 3)) if theirs.ndim == 4 else theirs
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    facts = timm.data.resolve_model_data_config(model)
    assert tuple(facts["mean"]) == pretrained.mean
    assert tuple(facts["std"]) == pretrained.std
    assert tuple(facts["input_size"]) == tuple(images_BCHW.shape[1:])


def test_a_classifier_begins_from_it(tiny: Tiny, tmp_path: Path) -> None:
    pretrained = tiny("sin-cos")
    export(pretrained, WantedExport(to="timm", out=tmp_path / "out"), lambda _: "card")
    model: Any = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=5)
    assert model.head.out_features == 5
    ours = pretrained.encoder.network.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in model.state_dict().items() if "head" not in name)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("hybrid", r"timm has no such network \('convmae_base_patch16'\); export to onnx, torch-export or safetensors"),
        ("pixels", r"timm has no such network \('igpt_small'\); export to safetensors instead"),
        ("table without norm", r"timm has no such network without a final norm .*; export to onnx"),
    ],
)
def test_what_timm_lacks_is_refused(kind: str, sentence: str, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        export(tiny(kind), WantedExport(to="timm", out=tmp_path / "out"), lambda _: "card")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["no norm", "rotary without norm", "table without norm"])
def test_the_header_of_a_file_without_norm_does_not_promise_too_much(kind: str, tiny: Tiny, tmp_path: Path) -> None:
    pretrained = tiny(kind)
    tensors, metadata = encoder_file(pretrained.encoder, mean=pretrained.mean, std=pretrained.std, facts={})
    write_atomically(tmp_path / "encoder.safetensors", tensors, metadata)
    header = json.loads(metadata["unmask_encoder"])
    if kind == "table without norm":
        assert header["timm_name"] is None
    else:
        timm.create_model(header["timm_name"], **header["timm_arguments"]).load_state_dict(tensors)
    again = read_encoder(tmp_path / "encoder.safetensors").encoder.network.state_dict()
    assert all(torch.equal(value, tensors[name]) for name, value in again.items())
