"""Damaged files of weights are read or refused in one sentence, and take no more memory than they hold.

A header may describe any network; memory for it is taken only where the file holds its tensors.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from fuzzing import altered_safetensors, answer, damaged, parts_of_safetensors, peak_mb, safetensors_of
from tiny_classifiers import NETWORKS, tiny_pretrained, tiny_task
from tiny_detectors import tiny_detection
from tiny_tokenizers import tiny_tokenizer
from unmask.models import pretrained
from unmask.models.palette import read_palette
from unmask.models.tokenizers import file as tokenizers
from unmask.tasks import classifier_file, detection_file, segmentation_file
from unmask.tasks.segmentation import SegmentationConfig, SegmentationTask
from unmask.training import checkpoint
from unmask.training.checkpoint import Checkpoint, CheckpointError, load_checkpoint

Fuzz = Callable[..., None]
Made = tuple[dict[str, Tensor], dict[str, str]]
READERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "encoder": (pretrained.read_encoder, pretrained.HEADER),
    "igpt encoder": (pretrained.read_encoder, pretrained.HEADER),
    "hybrid encoder": (pretrained.read_encoder, pretrained.HEADER),
    "classifier": (classifier_file.read_classifier, classifier_file.HEADER),
    "segmenter": (segmentation_file.read_segmenter, segmentation_file.HEADER),
    "detector": (detection_file.read_detector, detection_file.HEADER),
    "dvae": (tokenizers.open_tokenizer, tokenizers.HEADER),
    "vq": (tokenizers.open_tokenizer, tokenizers.HEADER),
    "vqkd": (tokenizers.open_tokenizer, tokenizers.HEADER),
}


@cache
def made(kind: str) -> bytes:
    """A whole file of this kind."""
    tensors, metadata = _made(kind)
    return save({name: value.contiguous() for name, value in tensors.items()}, metadata)


def _made(kind: str) -> Made:
    if kind.endswith("encoder"):
        network = {"encoder": "vit", "igpt encoder": "igpt", "hybrid encoder": "convmae"}[kind]
        found = tiny_pretrained(NETWORKS[network])
        return pretrained.encoder_file(found.encoder, mean=found.mean, std=found.std, facts={"method": "mae"})
    if kind == "classifier":
        return classifier_file.classifier_file(tiny_task(), {})
    if kind == "segmenter":
        task = SegmentationTask(tiny_pretrained(), SegmentationConfig(test="slide"), ("sky", "sea"))
        return segmentation_file.segmenter_file(segmentation_file.finished_segmenter(task), {})
    if kind == "detector":
        return detection_file.detector_file(detection_file.finished_detector(tiny_detection()), {})
    return tokenizers.tokenizer_file(tiny_tokenizer(kind), {})


@pytest.mark.parametrize("kind", READERS)
def test_models(fuzz: Fuzz, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    read, header = READERS[kind]

    def check(content: bytes) -> None:
        path.write_bytes(content)
        answer(lambda: read(path), ValueError)

    path.write_bytes(made(kind))
    read(path)
    fuzz(altered_safetensors(made(kind), header), check, examples=8)


def test_checkpoints(fuzz: Fuzz, tmp_path: Path) -> None:
    path = tmp_path / "step_000000001.safetensors"
    tensors = {"model.weight": torch.ones(3, 4), "model.half": torch.ones(5).bfloat16(), "model.step": torch.tensor(7)}
    checkpoint.save_checkpoint(path, Checkpoint(tensors, {"step": 1, "bad_files": {"a.png": "it is empty"}}))

    def reseal(metadata: dict[str, str]) -> dict[str, str]:
        text = metadata[checkpoint.HEADER]
        return metadata | {checkpoint.HEADER_CHECKSUM: str(zlib.crc32(text.encode("utf8", "replace")))}

    def check(content: bytes) -> None:
        path.write_bytes(content)
        answer(lambda: load_checkpoint(path, torch.device("cpu")), CheckpointError)

    fuzz(altered_safetensors(path.read_bytes(), checkpoint.HEADER, reseal), check, examples=60)


@cache
def pickled() -> dict[str, bytes]:
    """Files of torch.save, of both formats."""
    state = {"model": {"blocks.input.w": torch.ones(8, 3, 7, 7), "blocks.input.b": torch.ones(8)}, "epoch": 3}
    files = {}
    for name, zipped in (("zip", True), ("legacy", False)):
        buffer = io.BytesIO()
        torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
        files[name] = buffer.getvalue()
    return files


def test_pickled_tokenizers(fuzz: Fuzz, tmp_path: Path) -> None:
    path = tmp_path / "encoder.pth"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        answer(lambda: tokenizers.open_tokenizer(path), ValueError)

    fuzz(damaged(pickled()), check, examples=50)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blocks.output.conv.w", (10**9, 0, 1, 1)),
        ("blocks.group_4999999999.block_1.res_path.conv_1.w", (1, 1, 1, 1)),
        ("blocks.group_1.block_4999999999.res_path.conv_1.w", (1, 1, 1, 1)),
    ],
)
def test_names_and_shapes_of_released_weights_are_not_believed(
    name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    state = {"blocks.input.w": torch.ones(8, 3, 7, 7), "blocks.output.conv.w": torch.ones(4, 8, 1, 1)}
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(save(state | {name: torch.zeros(shape)}))
    with pytest.raises(ValueError, match=r"encoder\.safetensors begins like DALL-E's encoder, but does not fit \("):
        tokenizers.open_tokenizer(path)


def test_palettes(fuzz: Fuzz, tmp_path: Path) -> None:
    path = tmp_path / "palette.npy"
    buffer = io.BytesIO()
    np.save(buffer, np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3))
    several = io.BytesIO()
    np.savez(several, palette=np.ones(3))

    def check(content: bytes) -> None:
        path.write_bytes(content)
        answer(lambda: read_palette(path), ValueError)

    bomb = buffer.getvalue().replace(b"(8, 3), }   ", b"(10**15, 3)}")
    fuzz(damaged({"npy": buffer.getvalue(), "npz": several.getvalue(), "bomb": bomb}), check, examples=40)


@pytest.mark.parametrize(
    "changes", [{"width": 3 << 20}, {"depth": 20}, {"depth": 10**9}, {"image_height": 1 << 30}, {"mlp_ratio": 1e9}]
)
def test_a_header_alone_takes_no_memory(tmp_path: Path, changes: dict[str, float]) -> None:
    path = tmp_path / "encoder.safetensors"
    header, data = parts_of_safetensors(made("encoder"))
    told = json.loads(header["__metadata__"][pretrained.HEADER])
    told["encoder"] |= changes
    header["__metadata__"][pretrained.HEADER] = json.dumps(told)
    path.write_bytes(safetensors_of(header, data))
    before = peak_mb()
    with pytest.raises(ValueError, match=r"does not hold the encoder that its header describes$|has a damaged header$"):
        pretrained.read_encoder(path)
    assert peak_mb() - before < 300
