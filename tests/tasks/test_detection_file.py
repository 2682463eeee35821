"""A detector file gives the same detections as the detector it was made of, and nonsense is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from coin_things import CoinParts
from tiny_detectors import TINY_DETECTION, tiny_detection, with_encoder
from unmask.data.detection import DetectionTestLoader
from unmask.models.build import build_encoder
from unmask.tasks.detection import Detections, DetectionTask
from unmask.tasks.detection_file import HEADER, FinishedDetector, detector_file, finished_detector, read_detector


def written(task: DetectionTask, path: Path) -> FinishedDetector:
    """The detector of a task, written and read."""
    tensors, metadata = detector_file(finished_detector(task), {"data": "coins"})
    save_file(tensors, path, metadata)
    return read_detector(path)


def equal(first: Detections, second: Detections) -> bool:
    same = all(
        torch.equal(a, b)
        for a, b in (
            (first.boxes_K4, second.boxes_K4),
            (first.labels_K, second.labels_K),
            (first.scores_K, second.scores_K),
        )
    )
    if first.shapes_KMM is None or second.shapes_KMM is None:
        return same and first.shapes_KMM is second.shapes_KMM
    return same and torch.equal(first.shapes_KMM, second.shapes_KMM)


ENCODERS = {
    "learned": with_encoder(),
    "shared table, copied into the blocks": with_encoder(position="relative"),
    "rotary": with_encoder(name="eva02_tiny_patch14_224"),
    "convolutional": with_encoder(name="resnet18", patch_size=None, width=None, depth=None, heads=None, image_width=96),
    "hybrid": with_encoder(
        name="convmae_base_patch16", patch_size=None, depth=2, stage_widths=(16, 32), stage_depths=(1, 1)
    ),
}


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("outlines", [True, False])
def test_a_file_gives_equal_detections(tmp_path: Path, kind: str, outlines: bool) -> None:
    task = tiny_detection(encoder=ENCODERS[kind], classes=("coin", "not a coin"), outlines=outlines)
    with torch.no_grad():
        for name, value in task.named_buffers():
            if "running" in name:
                value.add_(0.1)
    coins = CoinParts((3, 4))
    read = written(task, tmp_path / "detector.safetensors")
    assert not read.detector.training
    assert read.classes == ("coin", "not a coin")
    assert (read.mean, read.std, read.canvas, read.channels) == (task.mean, task.std, task.canvas, 1)
    task.eval()
    (batch,) = DetectionTestLoader(coins, task.canvas, mean=task.mean, batch_size=2, workers=0)
    ours, theirs = (detector.detect(batch.images, batch.fits) for detector in (finished_detector(task), read))
    assert any(len(found.scores_K) for found in ours)
    assert all(map(equal, ours, theirs))


def test_images_of_any_size_are_looked_at_as_test_images_are(tmp_path: Path) -> None:
    task = tiny_detection()
    read = written(task, tmp_path / "detector.safetensors")
    coins = CoinParts((3, 4))
    (batch,) = DetectionTestLoader(coins, task.canvas, mean=task.mean, batch_size=2, workers=0)
    tested = read.detect(batch.images, batch.fits)
    predicted = read.predict([torch.from_numpy(coins.read(index))[None] for index in range(2)])
    for ours, theirs in zip(predicted, tested, strict=True):
        torch.testing.assert_close(ours.boxes_K4, theirs.boxes_K4, rtol=0, atol=1e-3)
        assert torch.equal(ours.labels_K, theirs.labels_K)
    tall = torch.zeros(1, 200, 31, dtype=torch.uint8)
    (found,) = read.predict([tall])
    assert (found.height, found.width) == (200, 31)
    assert all(mask.shape == (200, 31) for mask in found.masks())
    with pytest.raises(ValueError, match=r"^the detector takes 1 channels, got an image of 3$"):
        read.predict([torch.zeros(3, 8, 8, dtype=torch.uint8)])
    assert read.to(torch.device("cpu")) is read


def test_the_encoder_inside_is_named_as_in_an_encoder_file(tmp_path: Path) -> None:
    task = tiny_detection()
    written(task, tmp_path / "detector.safetensors")
    tensors = load_file(tmp_path / "detector.safetensors")
    inside = {name.removeprefix("encoder."): value for name, value in tensors.items() if name.startswith("encoder.")}
    encoder = build_encoder(replace(task.detector.encoder.config, final_norm=False), mask_token=False)
    encoder.network.load_state_dict(inside)
    header = json.loads(detector_file(finished_detector(task), {"data": "coins"})[1][HEADER])
    assert header["data"] == "coins"
    assert header["classes"] == ["coin"]


def test_its_settings_come_back(tmp_path: Path) -> None:
    settings = replace(TINY_DETECTION.detector, anchors=(4.0, 8.0, 12.0, 20.0, 30.0), detections=2, score_threshold=0.0)
    task = tiny_detection(replace(TINY_DETECTION, detector=settings, drop_path=0.2))
    read = written(task, tmp_path / "detector.safetensors")
    assert read.detector.config == settings
    (found,) = read.predict([torch.zeros(1, 50, 60, dtype=torch.uint8)])
    assert len(found.scores_K) == 2
    np.testing.assert_array_equal(
        read.detector.rcnn.rpn.anchor_generator.cells, task.detector.rcnn.rpn.anchor_generator.cells
    )


def damaged(change: str, tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    if change == "no header":
        header.clear()
    elif change == "format":
        header["format"] = 99
    elif change == "key":
        header["detector"]["nonsense"] = 1
    elif change == "missing":
        del header["classes"]
    elif change == "classes":
        header["classes"] = ["one", "two"]
    else:
        del tensors["rcnn.rpn.head.head.cls_logits.weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no header", "is not a detector written by unmask (its header is missing)"),
        ("format", "has detector format 99, this version reads 1: a newer unmask wrote it"),
        ("key", "has a damaged header"),
        ("missing", "has a damaged header"),
        ("classes", "does not hold the detector that its header describes"),
        ("tensor", "does not hold the detector that its header describes"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, change: str, message: str) -> None:
    tensors, metadata = detector_file(finished_detector(tiny_detection()), {})
    header = json.loads(metadata[HEADER])
    damaged(change, tensors, header)
    path = tmp_path / "detector.safetensors"
    save_file(tensors, path, {HEADER: json.dumps(header)} if header else {})
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        read_detector(path)
    assert str(caught.value) == f"{path} {message}"


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "detector.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"is not a readable safetensors file$"):
        read_detector(path)
