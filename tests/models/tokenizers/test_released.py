"""Released tokenizers: files in the authors' layout give what a plain reading of the authors' networks gives."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from unmask.models.tokenizers.dalle import DalleEncoder
from unmask.models.tokenizers.file import open_tokenizer
from unmask.models.tokenizers.vqkd import VQKD

State = dict[str, Tensor]


def dalle_state(width: int = 8, codes: int = 24, channels: int = 3) -> State:
    """Four groups of two blocks, with OpenAI's names."""
    generator = torch.Generator().manual_seed(0)
    state: State = {}

    def add(name: str, inputs: int, outputs: int, kernel: int) -> None:
        state[f"{name}.w"] = (
            torch.randn(outputs, inputs, kernel, kernel, generator=generator) / (inputs * kernel**2) ** 0.5
        )
        state[f"{name}.b"] = 0.1 * torch.randn(outputs, generator=generator)

    add("blocks.input", channels, width, 7)
    before = width
    for group, times in enumerate((1, 2, 4, 8), start=1):
        for block in (1, 2):
            name, after = f"blocks.group_{group}.block_{block}", width * times
            if before != after:
                add(f"{name}.id_path", before, after, 1)
            for number, (inputs, outputs, kernel) in enumerate(
                (
                    (before, after // 4, 3),
                    (after // 4, after // 4, 3),
                    (after // 4, after // 4, 3),
                    (after // 4, after, 1),
                ),
                start=1,
            ):
                add(f"{name}.res_path.conv_{number}", inputs, outputs, kernel)
            before = after
    add("blocks.output.conv", before, codes, 1)
    return state


def dalle_logits(state: State, images: Tensor) -> Tensor:
    """The encoder as its paper's code computes it, function by function."""

    def conv(x: Tensor, name: str) -> Tensor:
        weight = state[f"{name}.w"]
        return F.conv2d(x, weight, state[f"{name}.b"], padding=weight.shape[-1] // 2)

    x = conv(images * 0.8 + 0.1, "blocks.input")
    for group in range(1, 5):
        for block in (1, 2):
            name = f"blocks.group_{group}.block_{block}"
            path = x
            for number in range(1, 5):
                path = conv(path.relu(), f"{name}.res_path.conv_{number}")
            identity = conv(x, f"{name}.id_path") if f"{name}.id_path.w" in state else x
            x = identity + path / 64
        if group < 4:
            x = F.max_pool2d(x, 2)
    return conv(x.relu(), "blocks.output.conv").flatten(2).transpose(1, 2)


@pytest.mark.parametrize("suffix", ["pt", "pth", "safetensors"])
def test_dalles_encoder_computes_what_its_authors_compute(suffix: str, tmp_path: Path) -> None:
    state = dalle_state()
    path = tmp_path / f"encoder.{suffix}"
    if suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    tokenizer = open_tokenizer(path)
    assert isinstance(tokenizer, DalleEncoder)
    assert (tokenizer.vocabulary, tokenizer.stride, tokenizer.channels) == (24, 8, 3)
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    expected = dalle_logits(state, images)
    assert torch.allclose(tokenizer.logits(images), expected, atol=1e-5)
    assert torch.equal(tokenizer.ids(images), expected.argmax(dim=-1))
    assert tokenizer.tokens_for(torch.rand(1, 3, 224, 224), (14, 14)).shape == (1, 196)


def beit2_state(width: int = 64, codes: int = 30, code_width: int = 6, side: int = 3, patch: int = 4) -> State:
    """An encoder of two blocks, a decoder of one, with the names of the released files."""
    generator = torch.Generator().manual_seed(0)
    state: State = {}

    def add(name: str, *shape: int, scale: float = 0.2) -> None:
        state[name] = scale * torch.randn(*shape, generator=generator)

    for part, depth, inputs, kernel in (("encoder", 2, 3, patch), ("decoder", 1, code_width, 1)):
        add(f"{part}.cls_token", 1, 1, width)
        add(f"{part}.pos_embed", 1, side * side + 1, width)
        add(f"{part}.patch_embed.proj.weight", width, inputs, kernel, kernel)
        add(f"{part}.patch_embed.proj.bias", width)
        for block in range(depth):
            name = f"{part}.blocks.{block}"
            for norm in ("norm1", "norm2"):
                add(f"{name}.{norm}.weight", width)
                add(f"{name}.{norm}.bias", width)
            add(f"{name}.attn.q_bias", width)
            add(f"{name}.attn.v_bias", width)
            add(f"{name}.attn.qkv.weight", 3 * width, width)
            add(f"{name}.attn.proj.weight", width, width)
            add(f"{name}.attn.proj.bias", width)
            add(f"{name}.mlp.fc1.weight", 4 * width, width)
            add(f"{name}.mlp.fc1.bias", 4 * width)
            add(f"{name}.mlp.fc2.weight", width, 4 * width)
            add(f"{name}.mlp.fc2.bias", width)
        add(f"{part}.fc_norm.weight", width)
        add(f"{part}.fc_norm.bias", width)
    for task, outputs in (("encode_task_layer", code_width), ("decode_task_layer", 10)):
        add(f"{task}.0.weight", width, width)
        add(f"{task}.0.bias", width)
        add(f"{task}.2.weight", outputs, width)
        add(f"{task}.2.bias", outputs)
    state["quantize.embedding.weight"] = F.normalize(torch.randn(codes, code_width, generator=generator), dim=-1)
    state["quantize.embedding.cluster_size"] = torch.zeros(codes)
    state["quantize.embedding.embed_avg"] = torch.zeros(codes, code_width)
    state["quantize.embedding.initted"] = torch.ones(1)
    state["quantize.cluster_size"] = torch.zeros(codes)
    state["teacher_model.visual.proj"] = torch.zeros(3)
    state["scaling_layer.shift"] = torch.zeros(1, 3, 1, 1)
    return state


def beit2_features(state: State, part: str, x: Tensor) -> Tensor:
    """Patch tokens of their ViT (one head of 64), written out."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    kernel = state[f"{part}.patch_embed.proj.weight"]
    x = F.conv2d(x, kernel, state[f"{part}.patch_embed.proj.bias"], stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([state[f"{part}.cls_token"].expand(len(x), -1, -1), x], dim=1) + state[f"{part}.pos_embed"]
    depth = len({name.split(".")[2] for name in state if name.startswith(f"{part}.blocks.")})
    for block in range(depth):
        name = f"{part}.blocks.{block}"
        q, k, v = F.linear(norm(x, f"{name}.norm1"), state[f"{name}.attn.qkv.weight"]).chunk(3, dim=-1)
        q, v = q + state[f"{name}.attn.q_bias"], v + state[f"{name}.attn.v_bias"]
        weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        x = x + linear(weights @ v, f"{name}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
    return norm(x[:, 1:], f"{part}.fc_norm")


def task(state: State, name: str, x: Tensor) -> Tensor:
    hidden = F.linear(x, state[f"{name}.0.weight"], state[f"{name}.0.bias"]).tanh()
    return F.linear(hidden, state[f"{name}.2.weight"], state[f"{name}.2.bias"])


def test_beit2s_tokenizer_computes_what_its_authors_compute(tmp_path: Path) -> None:
    state = beit2_state()
    path = tmp_path / "vqkd.pth"
    torch.save({"model": state, "args": argparse.Namespace(lr=1e-4, model="vqkd"), "epoch": 99}, path)
    tokenizer = open_tokenizer(path)
    assert isinstance(tokenizer, VQKD)
    assert (tokenizer.vocabulary, tokenizer.stride, tokenizer.channels) == (30, 4, 3)
    images = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    features = task(state, "encode_task_layer", beit2_features(state, "encoder", images * 2 - 1))
    unit = F.normalize(features, dim=-1)
    expected = torch.cdist(unit.flatten(0, 1), state["quantize.embedding.weight"]).argmin(dim=-1)
    assert torch.equal(tokenizer.ids(images).flatten(), expected)
    assert len(set(expected.tolist())) > 2
    codes = state["quantize.embedding.weight"][expected].reshape(5, 3, 3, 6).permute(0, 3, 1, 2)
    decoded = task(state, "decode_task_layer", beit2_features(state, "decoder", codes))
    found = tokenizer.decode_task(tokenizer.decoder.patches(tokenizer.decoder(codes)))
    assert torch.allclose(found, decoded, atol=1e-5)
    # Soft targets neither ignore the distances nor see one code alone.
    entropy = torch.special.entr(tokenizer.logits(images).softmax(dim=-1)).sum(dim=-1).exp()
    assert 1.05 < float(entropy.mean()) < 25


@pytest.mark.parametrize(
    ("state", "name", "what"),
    [
        (dalle_state(), "blocks.output.conv.b", "DALL-E's encoder"),
        (dalle_state(), "blocks.group_3.block_1.id_path.w", "DALL-E's encoder"),
        (beit2_state(), "encoder.blocks.1.mlp.fc2.bias", "a VQ-KD tokenizer of BEiT v2"),
        (beit2_state(), "encoder.pos_embed", "a VQ-KD tokenizer of BEiT v2"),
    ],
)
def test_incomplete_files_are_refused(state: State, name: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "part.pth"
    torch.save({key: value for key, value in state.items() if key != name}, path)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} begins like {what}, but does not fit \(.*\)$"):
        open_tokenizer(path)


def test_what_a_tokenizer_does_not_have_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "more.pth"
    torch.save(beit2_state() | {"extra.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"\('extra\.weight' is not part of a VQ-KD tokenizer\)$"):
        open_tokenizer(path)
