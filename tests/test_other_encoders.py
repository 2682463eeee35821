"""Runs with networks that are no plain ViTs, from the command line to the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from tiny_runs import draw_images, quick_options, read_records, tiny_options
from unmask.cli import main
from unmask.data.sources import ArraySource
from unmask.defaults import Wishes, fit_settings
from unmask.methods import METHODS
from unmask.methods.cmae import CMAEConfig
from unmask.methods.mixmask import MixMaskConfig
from unmask.models.hybrid import HybridEncoder
from unmask.models.pretrained import HEADER, open_encoder


def _images(count: int, side: int) -> ArraySource:
    return ArraySource("drawn", [np.zeros((side, side, 3), dtype=np.uint8)] * count)


@pytest.mark.parametrize("method", ["mocov3", "mixmask"])
def test_methods_without_masks_train_a_convolutional_network(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is trained, evaluated, shown without attention, and its file is timm's."""
    data, out = draw_images(tmp_path / "photos", 16), tmp_path / "run"
    narrow = [option for name in ("projector", "predictor") for option in _narrow(method, name)]
    arguments = ["pretrain", str(data), "--method", method, "--encoder", "test_resnet", *narrow, *quick_options()]
    assert main([*arguments, "--image-size", "64", "--out", str(out)]) == 0
    assert "encoder       test_resnet, 64x64 pixels" in capsys.readouterr().out
    assert main(["evaluate", "knn", str(out), str(data), "--workers", "0"]) == 0
    assert all(np.isfinite(record["loss"]) for record in read_records(out, "step"))
    page = (out / "report.html").read_text()
    assert "Nearest neighbours" in page
    assert ">Attention<" not in page
    assert "There are no pictures" not in page
    with safe_open(out / "encoder.safetensors", "pt") as file:
        assert json.loads(file.metadata()[HEADER])["timm_name"] == "test_resnet"


def _narrow(method: str, head: str) -> list[str]:
    if head not in vars(METHODS[method].Config()):
        return []
    return [f"--method.{head}.hidden", "16", f"--method.{head}.out", "8"]


@pytest.mark.parametrize("method", ["convmae", "cmae"])
def test_convmaes_encoder_is_trained_evaluated_and_shown(method: str, tmp_path: Path) -> None:
    data, out = draw_images(tmp_path / "photos", 16), tmp_path / "run"
    # The method's own options, but for the name of the encoder.
    options = tiny_options(method)
    encoder = ["--encoder", "convmae_base_patch16"]
    assert main(["pretrain", str(data), *options, *encoder, *quick_options(), "--out", str(out)]) == 0
    assert all(np.isfinite(record["loss"]) for record in read_records(out, "step"))
    page = (out / "report.html").read_text()
    assert ">Attention<" in page
    assert ">Reconstruction<" in page
    read = open_encoder(str(out)).encoder
    assert isinstance(read, HybridEncoder)
    assert (read.width, read.grid) == (32, (4, 4))
    assert main(["evaluate", "knn", str(out), str(data), "--workers", "0"]) == 0


@pytest.mark.parametrize("method", ["conmim", "mae"])
def test_methods_that_hide_patches_refuse_a_convolutional_network(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = draw_images(tmp_path / "photos", 16), tmp_path / "run"
    arguments = ["pretrain", str(data), "--method", method, "--encoder", "test_resnet", *quick_options()]
    assert main([*arguments, "--image-size", "64", "--out", str(out)]) == 2
    sentence = "'test_resnet' cannot leave patches out or replace them; choose a ViT for methods that hide patches"
    assert capsys.readouterr().err.replace("\n", " ").strip().endswith(sentence)
    assert not out.exists()


def test_a_convolutional_network_gets_crops_by_its_stride_and_sheds_what_belongs_to_a_vit() -> None:
    settings, notes = fit_settings(METHODS["mocov3"].Config(), Wishes(encoder="test_resnet"), _images(16, 72))
    encoder = settings.encoder
    assert (encoder.image_height, encoder.image_width, encoder.patch_size) == (64, 64, None)
    assert (encoder.position, encoder.init) == ("native", "timm")
    assert notes == ["crops of 64x64 pixels, for images of median side 72"]
    small, _ = fit_settings(settings, Wishes(image_size=(96, 64)), _images(16, 20))
    assert (small.encoder.image_height, small.encoder.image_width, small.encoder.patch_size) == (96, 64, None)
    tiny, _ = fit_settings(METHODS["mocov3"].Config(), Wishes(encoder="test_resnet"), _images(16, 20))
    assert tiny.encoder.image_height == 64
    sentence = r"^'test_resnet' has a stride of 32 pixels, so its patch size cannot be chosen$"
    with pytest.raises(ValueError, match=sentence):
        fit_settings(METHODS["mocov3"].Config(), Wishes(encoder="test_resnet", patch_size=8), _images(16, 72))


def test_a_hybrid_keeps_what_it_shares_with_a_vit() -> None:
    settings, _ = fit_settings(CMAEConfig(), Wishes(encoder="convmae_base_patch16"), _images(16, 72))
    assert (settings.encoder.position, settings.encoder.init, settings.encoder.patch_size) == ("sincos", "xavier", 8)


def test_the_queue_follows_the_data_and_that_is_said() -> None:
    settings, notes = fit_settings(MixMaskConfig(), Wishes(), _images(100, 72))
    assert isinstance(settings, MixMaskConfig)
    assert settings.queue == 8
    assert notes[0] == "queue 8, for these images"
