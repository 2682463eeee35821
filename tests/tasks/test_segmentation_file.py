"""Segmenter files: what is written is read again and predicts the same; what cannot be read is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from unmask.data.segmentation_crops import covering_size
from unmask.models.build import build_encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.pretrained import PretrainedEncoder
from unmask.tasks import segmentation_file
from unmask.tasks.segmentation import SegmentationConfig, SegmentationTask
from unmask.tasks.segmentation_file import (
    HEADER,
    FinishedSegmenter,
    best_classes,
    finished_segmenter,
    read_segmenter,
    segmenter_file,
)

SMALL = {"image_height": 32, "image_width": 48, "depth": 2, "width": 24, "heads": 2, "patch_size": 8}
ENCODERS = [
    EncoderConfig(name="vit_tiny_patch16_224", **SMALL),  # type: ignore[arg-type]
    EncoderConfig(name="vit_tiny_patch16_224", position="relative", **SMALL),  # type: ignore[arg-type]
    EncoderConfig(name="convmae_tiny_patch16", image_height=32, image_width=48, depth=1),
    EncoderConfig(name="resnet18", image_height=32, image_width=64),
]
CLASSES = ("sky", "sea", "land")


def finished(config: EncoderConfig) -> FinishedSegmenter:
    """A segmenter with noise on all its values, batch norm's too, in eval mode."""
    torch.manual_seed(0)
    encoder = build_encoder(config, mask_token=False)
    pretrained = PretrainedEncoder(encoder=encoder, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), origin="test")
    task = SegmentationTask(pretrained, SegmentationConfig(test="slide"), CLASSES)
    for name, value in task.segmenter.state_dict().items():
        if value.is_floating_point() and "running_var" not in name:
            value.add_(0.1 * torch.randn(value.shape))
    found = finished_segmenter(task)
    return found.to(torch.device("cpu"))


def write(path: Path, found: FinishedSegmenter) -> Path:
    tensors, metadata = segmenter_file(found, {"version": "0", "data": "some"})
    save_file(tensors, path, metadata=metadata)
    return path


def photo(height: int, width: int) -> Tensor:
    return torch.randint(256, (3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("config", ENCODERS, ids=lambda config: f"{config.name}-{config.position}")
def test_what_is_written_is_read_again(config: EncoderConfig, tmp_path: Path) -> None:
    found = finished(config)
    read = read_segmenter(write(tmp_path / "segmenter.safetensors", found))
    assert (read.classes, read.mean, read.std, read.mode) == (CLASSES, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "slide")
    assert (read.crop, read.channels) == (found.crop, 3)
    assert read.segmenter.encoder.config == found.segmenter.encoder.config
    assert not read.segmenter.training
    image = photo(70, 90)
    torch.testing.assert_close(read.logits(image), found.logits(image), rtol=0, atol=0)
    states = found.segmenter.state_dict(), read.segmenter.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_the_file_says_what_it_is_and_holds_nothing_for_training_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "segmenter.safetensors", finished(ENCODERS[0]))
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[HEADER])
        names = list(file.keys())
    assert header["classes"] == list(CLASSES)
    assert header["encoder"]["name"] == "vit_tiny_patch16_224"
    assert header["decoder"]["width"] == 16
    assert (header["format"], header["version"], header["data"]) == (1, "0", "some")
    assert "encoder.blocks.0.attn.qkv.weight" in names
    assert not any("auxiliary" in name or name.startswith("pyramid.encoder.") for name in names)


def test_predictions_have_the_size_of_each_image() -> None:
    found = finished(ENCODERS[0])
    images = [photo(70, 90), photo(20, 33), photo(32, 48)]
    masks = found.predict(images)
    assert [tuple(mask.shape) for mask in masks] == [(70, 90), (20, 33), (32, 48)]
    assert all(mask.dtype == torch.uint8 and int(mask.max()) < 3 for mask in masks)
    # The size of the crop is looked at as it is; others cover the crop, and logits are resized back.
    assert torch.equal(masks[2], found.logits(images[2]).argmax(dim=0).to(torch.uint8))
    size = covering_size(20, 33, (32, 48))
    resized = torch.nn.functional.interpolate(images[1][None], size=size, mode="bicubic", antialias=True)[0]
    back = torch.nn.functional.interpolate(found.logits(resized)[None], size=(20, 33), mode="bilinear")[0]
    assert torch.equal(masks[1], back.argmax(dim=0).to(torch.uint8))


def test_images_and_weights_that_cannot_be_used_are_refused() -> None:
    found = finished(ENCODERS[0])
    with pytest.raises(ValueError, match=r"^the segmenter takes 3 channels, got an image of 1$"):
        found.predict([photo(40, 40)[:1]])
    found.segmenter.classifier.weight.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="logits that are NaN or infinite: its training has diverged"):
        found.predict([photo(40, 40)])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 12), st.integers(1, 30), st.integers(1, 99))
def test_a_few_classes_at_a_time_give_the_best_of_all(classes: int, h: int, w: int, size: int, at_once: int) -> None:
    generator = torch.Generator().manual_seed(h * w)
    logits = torch.randn(classes, h, w, generator=generator)
    whole = torch.nn.functional.interpolate(logits[None], size=(size, 9), mode="bilinear", align_corners=False)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation_file, "_LOGITS_AT_ONCE", at_once)
        assert torch.equal(best_classes(logits, (size, 9)), whole.argmax(dim=0).to(torch.uint8))
        # Few different values: of several best classes it is the first.
        tied = torch.randint(3, (classes, h, w), generator=generator).float()
        assert np.array_equal(best_classes(tied, (h, w)).numpy(), tied.numpy().argmax(axis=0))


def _changed(path: Path, **changes: Any) -> Path:
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[HEADER]) | changes
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata={HEADER: json.dumps(header)})
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, r"has segmenter format 2, this version reads 1: a newer unmask wrote it$"),
        ({"mode": "sideways"}, r"has a damaged header$"),
        ({"encoder": {"nonsense": 1}}, r"has a damaged header$"),
        ({"classes": ["one", "two"]}, r"does not hold the segmenter that its header describes$"),
        ({"decoder": {"width": 17}}, r"does not hold the segmenter that its header describes$"),
    ],
)
def test_files_that_are_wrong_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "segmenter.safetensors", finished(ENCODERS[0]))
    with pytest.raises(ValueError, match=message):
        read_segmenter(_changed(path, **changes))


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"is not a segmenter written by unmask \(its header is missing\)$"):
        read_segmenter(tmp_path / "other.safetensors")
    (tmp_path / "text").write_text("no file of ours")
    with pytest.raises(ValueError, match=r"is not a readable safetensors file$"):
        read_segmenter(tmp_path / "text")
