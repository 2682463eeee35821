"""Folders that transformers loads by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from unmask.interop.weights_in import Wanted, import_weights
from unmask.interop.weights_out.compare import real_images, tokens_of
from unmask.interop.weights_out.export import WantedExport, export
from unmask.models.pretrained import PretrainedEncoder

Tiny = Callable[[str], PretrainedEncoder]


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        ("plain", "ViTModel"),
        ("oblong", "ViTModel"),
        ("one channel", "ViTModel"),
        ("four channels", "ViTModel"),
        ("sin-cos", "ViTModel"),
        ("no positions", "ViTModel"),
        ("layer scale", "Dinov2Model"),
        ("registers", "Dinov2WithRegistersModel"),
        ("shared table", "BeitModel"),
        ("table a block", "BeitModel"),
        ("table without norm", "BeitModel"),
        ("beit, sin-cos", "BeitModel"),
    ],
)
def test_transformers_gives_our_features(kind: str, architecture: str, tiny: Tiny, tmp_path: Path) -> None:
    pretrained, out = tiny(kind), tmp_path / "out"
    found = export(pretrained, WantedExport(to="transformers", out=out), lambda _: "card")
    assert all(one.relative < 1e-5 for one in found)
    assert json.loads((out / "config.json").read_text())["architectures"] == [architecture]
    assert {path.name for path in out.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    # What went out comes in again as what it was.
    images_BCHW = real_images(pretrained.encoder, None, 2)
    again = import_weights(str(out), Wanted())
    left_out = set(again.left_out.values())
    assert left_out <= {"pooler, after the encoder", "mask token, which only pre-training needs"}
    assert again.encoder.mean == pretrained.mean
    torch.testing.assert_close(
        tokens_of(again.encoder.to(torch.device("cpu")), images_BCHW),
        tokens_of(pretrained, images_BCHW),
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_lines_that_users_write(tiny: Tiny, tmp_path: Path) -> None:
    pretrained, out = tiny("plain"), str(tmp_path / "out")
    export(pretrained, WantedExport(to="transformers", out=Path(out)), lambda _: "card")
    processor = transformers.AutoImageProcessor.from_pretrained(out)
    model, told = transformers.AutoModel.from_pretrained(out, output_loading_info=True)
    assert not any(told[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pixels = real_images(pretrained.encoder, None, 1)[0].permute(1, 2, 0).numpy()
    # Twice as large and with margins: their processor resizes to the shorter side and cuts the middle out.
    large = np.pad(pixels.repeat(2, axis=0).repeat(2, axis=1), ((0, 0), (16, 16), (0, 0)))
    ready = processor(images=Image.fromarray(large), return_tensors="pt")
    assert ready["pixel_values"].shape == (1, 3, 32, 32)
    with torch.no_grad():
        given = model.eval()(**ready)
    # Nothing in it is random: its pooled output is the class token.
    torch.testing.assert_close(given.pooler_output, given.last_hidden_state[:, 0])
    classifier = transformers.AutoModelForImageClassification.from_pretrained(out, num_labels=3)
    assert torch.equal(classifier.vit.layernorm.weight, model.layernorm.weight)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("hybrid", "no model with such a network .*; export to onnx, torch-export or safetensors instead"),
        ("convolutions", "no model with such a network .*; export to timm, onnx"),
        ("rotary", "rotations of positions"),
        ("no class token", "no class token"),
        ("no norm", "no norm at its end"),
        ("oblong table", "relative positions of images that are not square"),
        ("gated", "blocks of its kind"),
        ("quick gelu", "its activation"),
        ("norm before", "norm before its blocks|embedding of patches"),
    ],
)
def test_what_transformers_lacks_is_refused(kind: str, sentence: str, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        export(tiny(kind), WantedExport(to="transformers", out=tmp_path / "out"), lambda _: "card")
    assert list(tmp_path.iterdir()) == []
