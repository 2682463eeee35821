"""Tokenizer files: there and back bit for bit, and one sentence for everything that is none."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny_tokenizers import tiny_teacher, tiny_tokenizer
from unmask.models.pretrained import encoder_file
from unmask.models.tokenizers.base import Lesson
from unmask.models.tokenizers.file import HEADER, open_tokenizer, tokenizer_file


def written(folder: Path, kind: str = "vq") -> Path:
    """A file of a tokenizer that has learnt for one step."""
    tokenizer = tiny_tokenizer(kind)
    images = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    tokenizer.losses(images, Lesson(0.5, torch.Generator().manual_seed(0), tiny_teacher()))
    path = folder / f"{kind}.safetensors"
    tensors, metadata = tokenizer_file(tokenizer, {"data": "photos"})
    save_file(tensors, path, metadata=metadata)
    return path


def rewritten(path: Path, **changes: object) -> Path:
    """The same file with another header."""
    header = json.loads(tokenizer_file(tiny_tokenizer("vq"), {})[1][HEADER]) | changes
    save_file(load_file(path), path, metadata={HEADER: json.dumps(header)})
    return path


def test_a_tokenizer_comes_back_bit_for_bit(kind: str, tmp_path: Path, images: torch.Tensor) -> None:
    tokenizer = tiny_tokenizer(kind)
    tokenizer.losses(images, Lesson(0.5, torch.Generator().manual_seed(0), tiny_teacher()))
    found = open_tokenizer(written(tmp_path, kind))
    assert type(found) is type(tokenizer)
    assert found.config == tokenizer.config
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())
    again = tmp_path / "again.safetensors"
    tensors, metadata = tokenizer_file(found, {"data": "photos"})
    save_file(tensors, again, metadata=metadata)
    assert again.read_bytes() == (tmp_path / f"{kind}.safetensors").read_bytes()
    assert torch.equal(open_tokenizer(str(again)).logits(images), found.logits(images))


def refused(path: Path, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} {sentence}$"):
        open_tokenizer(path)


def test_files_that_hold_no_tokenizer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^there is no tokenizer file .*nowhere\.safetensors$"):
        open_tokenizer(tmp_path / "nowhere.safetensors")
    refused(tmp_path, "is a folder, not a tokenizer file")
    text = tmp_path / "text.safetensors"
    text.write_text("no tensors")
    refused(text, "is not a readable safetensors file")
    half = tmp_path / "half.safetensors"
    half.write_bytes(written(tmp_path).read_bytes()[:-100])
    refused(half, "is not a readable safetensors file")
    tensors, metadata = encoder_file(tiny_teacher().encoder, mean=(0.5,) * 3, std=(0.5,) * 3, facts={})
    encoder = tmp_path / "encoder.safetensors"
    save_file(tensors, encoder, metadata=metadata)
    refused(encoder, "is a file of unmask, but not a tokenizer")
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(1)}, other, metadata={"format": "pt"})
    refused(other, "is neither a tokenizer of unmask, nor DALL-E's encoder, nor BEiT v2's VQ-KD")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": 99}, "has tokenizer format 99, this version reads 1: a newer unmask wrote it"),
        ({"kind": "magic"}, "is a tokenizer of kind 'magic', this version knows dvae, vq, vqkd, dalle"),
        ({"config": {"vocabulary": "many"}}, "has a damaged header"),
        ({"config": {"vocabulary": 1}}, "has a damaged header"),
        ({"config": {"unknown": 1}}, "has a damaged header"),
        ({"config": {"vocabulary": 7}}, "does not hold the tokenizer that its header describes"),
    ],
)
def test_headers_are_read_strictly(changes: dict[str, object], sentence: str, tmp_path: Path) -> None:
    refused(rewritten(written(tmp_path), **changes), sentence)


def test_a_header_that_is_no_json_is_damaged(tmp_path: Path) -> None:
    path = written(tmp_path)
    save_file(load_file(path), path, metadata={HEADER: "{"})
    refused(path, "has a damaged header")


def test_pickles_are_never_run(tmp_path: Path) -> None:
    plain = (
        "is not a file of plain tensors that torch can read; of a pickled module save the state_dict() "
        "with torch.save, where its code is installed, and give that file"
    )
    module = tmp_path / "encoder.pkl"
    torch.save(torch.nn.Linear(2, 2), module)
    refused(module, re.escape(plain))
    raw = tmp_path / "raw.pkl"
    raw.write_bytes(pickle.dumps([1, 2]))
    junk = tmp_path / "junk.pt"
    junk.write_bytes(b"no tensors")
    refused(junk, re.escape(plain))
    listed = tmp_path / "list.pt"
    torch.save([torch.zeros(2)], listed)
    refused(listed, "holds no weights by name")
