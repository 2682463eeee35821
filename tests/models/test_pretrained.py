"""Encoder files: what is written is read again, by us and by timm alone; what cannot be read is refused."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from unmask.models import pretrained
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.pretrained import HEADER, PretrainedEncoder, encoder_file, open_encoder, read_encoder

Build = Callable[[EncoderConfig], Encoder]
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


def _write(path: Path, encoder: Encoder) -> None:
    tensors, metadata = encoder_file(encoder, mean=MEAN, std=STD, facts={"method": "conmim", "version": "0"})
    save_file(tensors, path, metadata=metadata)


def _with_header(path: Path, tensors: dict[str, Tensor], header: Any) -> Path:
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(tensors, path, metadata={HEADER: text})
    return path


@pytest.fixture
def file(build: Build, tiny: EncoderConfig, tmp_path: Path) -> Path:
    """The file of a tiny encoder."""
    path = tmp_path / "encoder.safetensors"
    _write(path, build(tiny))
    return path


@torch.no_grad()
def test_what_is_written_is_read_again(build: Build, family: EncoderConfig, images: Tensor, tmp_path: Path) -> None:
    encoder = build(replace(family, drop_path=0.1))
    path = tmp_path / "encoder.safetensors"
    _write(path, encoder)
    read = read_encoder(path)
    assert (read.mean, read.std, read.origin) == (MEAN, STD, str(path))
    assert read.encoder.config == encoder.config
    state = encoder.vit.state_dict()
    assert state.keys() == read.encoder.vit.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in read.encoder.vit.state_dict().items())
    torch.testing.assert_close(read.encoder.eval()(images), encoder(images), rtol=0, atol=0)


@torch.no_grad()
def test_three_lines_of_timm_alone_give_the_same_features(
    build: Build, family: EncoderConfig, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines are those of the module's docstring, run as they stand there."""
    encoder = build(family)
    _write(tmp_path / "encoder.safetensors", encoder)
    monkeypatch.chdir(tmp_path)
    documented = textwrap.dedent((pretrained.__doc__ or "").split(":\n\n", 1)[1].split("\n\n`model(images)`")[0])
    assert len(documented.strip().splitlines()) == 3
    names: dict[str, Any] = {"json": json, "safe_open": safe_open, "load_file": load_file, "timm": timm}
    exec(documented, names)
    features = names["model"].eval()(images)
    torch.testing.assert_close(features, encoder.pool(encoder(images)), rtol=1e-5, atol=1e-5)
    assert (names["header"]["mean"], names["header"]["std"]) == (list(MEAN), list(STD))


def test_the_header_says_where_an_encoder_comes_from(file: Path) -> None:
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()[HEADER])
    assert (header["format"], header["method"], header["version"]) == (1, "conmim", "0")
    assert header["timm_arguments"]["drop_path_rate"] == 0.0


def test_an_encoder_set_to_another_size_is_written_at_that_size(
    build: Build, family: EncoderConfig, tmp_path: Path
) -> None:
    encoder = build(family)
    encoder.set_image_size(48, 32)
    _write(tmp_path / "encoder.safetensors", encoder)
    assert read_encoder(tmp_path / "encoder.safetensors").encoder.image_size == (48, 32)


def test_features_normalise_and_pool(build: Build, tiny: EncoderConfig) -> None:
    encoder = build(tiny)
    images = torch.randint(256, (4, 3, 32, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = PretrainedEncoder(encoder=encoder.train(), mean=MEAN, std=STD, origin="").to(torch.device("cpu"))
    assert not encoder.training
    floats = (images.double() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    tokens_BLD = encoder(floats.float())
    torch.testing.assert_close(whole.features(images), tokens_BLD[:, 1:].mean(dim=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.features(images, "class"), tokens_BLD[:, 0], rtol=1e-4, atol=1e-5)
    assert not whole.features(images).requires_grad


def test_a_run_folder_stands_for_its_encoder(file: Path) -> None:
    assert open_encoder(str(file)).origin == str(file)
    assert open_encoder(str(file.parent)).origin == str(file)


def test_paths_without_an_encoder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^there is no run folder or encoder file .*nowhere$"):
        open_encoder(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"holds no encoder\.safetensors; is the run finished\?$"):
        open_encoder(str(tmp_path))


def test_names_without_a_model_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^timm knows no model named 'vit_smal_patch16_224'; near names: vit_small_"):
        open_encoder("timm:vit_smal_patch16_224")
    with pytest.raises(ValueError, match=r"^'twins_svt_small' is not a plain ViT; "):
        open_encoder("timm:twins_svt_small")


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\xff" * 64])
def test_files_that_are_not_safetensors_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^.*encoder\.safetensors is not a readable safetensors file$"):
        read_encoder(path)


def test_a_truncated_file_is_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"is not a readable safetensors file$"):
        read_encoder(file)


def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"is not an encoder written by unmask \(its header is missing\)$"):
        read_encoder(path)


def _header(file: Path) -> dict[str, Any]:
    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()[HEADER])
    assert isinstance(header, dict)
    return header


def test_another_format_is_refused(file: Path) -> None:
    _with_header(file, load_file(file), _header(file) | {"format": 2})
    with pytest.raises(ValueError, match=r"has encoder format 2, this version reads 1: a newer unmask wrote it$"):
        read_encoder(file)


@pytest.mark.parametrize(
    "damage",
    [
        "{not json",
        "[]",
        "3",
        {"mean": None},
        {"mean": 3},
        {"encoder": None},
        {"encoder": []},
        {"encoder": {"no_such_knob": 1}},
        {"encoder": {"width": "wide"}},
        {"encoder": {"patch_size": 0}},
    ],
)
def test_a_damaged_header_is_refused(file: Path, damage: str | dict[str, Any]) -> None:
    _with_header(file, load_file(file), damage if isinstance(damage, str) else _header(file) | damage)
    with pytest.raises(ValueError, match=r"encoder\.safetensors has a damaged header$"):
        read_encoder(file)


def test_a_header_without_a_needed_entry_is_refused(file: Path) -> None:
    header = _header(file)
    for key in ("mean", "std", "encoder"):
        path = file.with_name(f"{key}.safetensors")
        _with_header(path, load_file(file), {name: value for name, value in header.items() if name != key})
        with pytest.raises(ValueError, match=r"has a damaged header$"):
            read_encoder(path)


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_tensors_that_the_header_does_not_describe_are_refused(file: Path, change: str) -> None:
    tensors = load_file(file)
    if change == "missing":
        del tensors["norm.bias"]
    elif change == "extra":
        tensors["extra"] = torch.zeros(1)
    else:
        tensors["norm.bias"] = torch.zeros(7)
    _with_header(file, tensors, _header(file))
    with pytest.raises(ValueError, match=r"does not hold the encoder that its header describes$"):
        read_encoder(file)
