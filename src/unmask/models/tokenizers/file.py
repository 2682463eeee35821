"""Tokenizers as single safetensors files whose header says how to build them; released ones in their authors' files."""

from __future__ import annotations

import argparse
import dataclasses
import json
import textwrap
import warnings
from pathlib import Path
from typing import Any

import cattrs
import torch
from cattrs.errors import BaseValidationError
from torch import Tensor

from unmask.errors import in_short
from unmask.formats import FORMATS, objection
from unmask.models.model_file import WRONG_VALUES, described, read_tensors
from unmask.models.tokenizers import beit2, dalle
from unmask.models.tokenizers.base import Tokenizer, TokenizerConfig
from unmask.models.tokenizers.dvae import DVAE, DVAEConfig
from unmask.models.tokenizers.vq import VQ, VQConfig
from unmask.models.tokenizers.vqkd import VQKD, VQKDConfig

HEADER = "unmask_tokenizer"
KIND = "tokenizer"
CONFIGS: dict[str, type[TokenizerConfig]] = {
    "dvae": DVAEConfig,
    "vq": VQConfig,
    "vqkd": VQKDConfig,
    "dalle": dalle.DalleConfig,
}


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer of a configuration, at its random start (from torch's own generator)."""
    if isinstance(config, DVAEConfig):
        return DVAE(config)
    if isinstance(config, VQConfig):
        return VQ(config)
    if isinstance(config, VQKDConfig):
        return VQKD(config)
    assert isinstance(config, dalle.DalleConfig)
    return dalle.DalleEncoder(config)


def tokenizer_file(tokenizer: Tokenizer, facts: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a tokenizer file. `facts` (data, version, ...) stand beside in the header."""
    header = {"format": FORMATS[KIND], "kind": tokenizer.kind, "config": dataclasses.asdict(tokenizer.config), **facts}
    state = {name: value.detach().cpu() for name, value in tokenizer.state_dict().items()}
    return state, {HEADER: json.dumps(header)}


def open_tokenizer(path: str | Path) -> Tokenizer:
    """A tokenizer from a file: ours, OpenAI's weights of DALL-E's encoder, or BEiT v2's released VQ-KD.

    It is frozen and in eval mode, on the CPU. ValueError, in one sentence, for a file that is none of these.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"there is no tokenizer file {path}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a tokenizer file")
    if path.suffix == ".safetensors":
        tensors, metadata = _safetensors(path)
        tokenizer = _ours(path, tensors, metadata) if metadata else _released(path, tensors)
    else:
        tokenizer = _released(path, _pickled_tensors(path))
    return tokenizer.requires_grad_(False).eval()


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, metadata = read_tensors(path)
    # Others' tools write a word on the framework there.
    ours = any(name.startswith("unmask_") for name in metadata)
    return tensors, metadata if ours else {}


def _ours(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Tokenizer:
    if HEADER not in metadata:
        raise ValueError(f"{path} is a file of unmask, but not a tokenizer")
    try:
        header = json.loads(metadata[HEADER])
        written, kind, values = header["format"], header["kind"], header["config"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} has a damaged header") from error
    refused = objection(KIND, written)
    if refused is not None:
        raise ValueError(f"{path} {refused}")
    if not isinstance(kind, str) or kind not in CONFIGS:
        raise ValueError(f"{path} is a tokenizer of kind {in_short(kind)}, this version knows {', '.join(CONFIGS)}")
    try:
        config = cattrs.Converter(forbid_extra_keys=True).structure(values, CONFIGS[kind])
    except (BaseValidationError, *WRONG_VALUES) as error:
        raise ValueError(f"{path} has a damaged header") from error
    return described(lambda: build_tokenizer(config), lambda made: made.load_state_dict(tensors), path, "the tokenizer")


def _pickled_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a file of torch.save, on its own or under "model" or "state_dict"; no code is run."""
    try:
        # BEiT v2's files hold the command line's options beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            # Of formats that torch does not write it warns before it refuses them.
            warnings.simplefilter("ignore", UserWarning)
            found = torch.load(path, map_location="cpu", weights_only=True)
    # torch's reader raises nearly anything on damaged bytes.
    except Exception as error:
        raise ValueError(
            f"{path} is not a file of plain tensors that torch can read; of a pickled module save the state_dict() "
            "with torch.save, where its code is installed, and give that file"
        ) from error
    for name in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no weights by name")
    return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}


def _released(path: Path, state: dict[str, Tensor]) -> Tokenizer:
    """A tokenizer that its names show to be one of the released ones."""
    for mark, what, convert in (
        (dalle.MARK, "DALL-E's encoder", dalle.from_dalle),
        (beit2.MARK, "a VQ-KD tokenizer of BEiT v2", beit2.from_beit2),
    ):
        if mark in state:
            try:
                return convert(state)
            # Sizes are read from shapes and names, which may be absurd in any way.
            except Exception as error:
                reason = textwrap.shorten(str(error), 200, placeholder=" ...") or type(error).__name__
                raise ValueError(f"{path} begins like {what}, but does not fit ({reason})") from error
    raise ValueError(f"{path} is neither a tokenizer of unmask, nor DALL-E's encoder, nor BEiT v2's VQ-KD")
