"""A frozen teacher: any encoder, on the student's grid, and which patches it finds salient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from unmask.models.build import build_encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.frozen import FrozenTeacher, salient_patches
from unmask.models.pretrained import encoder_file
from unmask.training.checkpoint import write_atomically
from unmask.views import normalise

TINY = EncoderConfig(
    name="vit_tiny_patch16_224", patch_size=8, width=24, depth=2, heads=2, image_height=32, image_width=32
)


def teacher(folder: Path, config: EncoderConfig, *, grid: tuple[int, int], channels: int = 3) -> FrozenTeacher:
    torch.manual_seed(0)
    encoder = build_encoder(config, mask_token=False)
    mean, std = (0.4,) * config.channels, (0.3,) * config.channels
    write_atomically(folder / "encoder.safetensors", *encoder_file(encoder, mean=mean, std=std, facts={}))
    return FrozenTeacher(str(folder), channels=channels, grid=grid)


@torch.no_grad()
@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, position="relative"),
        replace(TINY, name="vit_medium_patch16_gap_240"),
    ],
    ids=["class token", "relative positions", "no class token"],
)
def test_attention_and_features_are_the_encoders_own(tmp_path: Path, config: EncoderConfig) -> None:
    found = teacher(tmp_path, config, grid=(4, 4))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    features, attention = found.look(images, 1)
    seen = normalise(images, found.mean, found.std)
    encoder = found.encoder
    torch.testing.assert_close(encoder.norm(features), encoder.patches(encoder(seen)))
    queries = slice(0, 1) if encoder.has_class_token else slice(encoder.prefix, None)
    ours = attention.softmax(dim=-1)[:, :, queries, encoder.prefix :].mean(dim=2)
    torch.testing.assert_close(ours, encoder.attention(seen))
    assert found.heads == attention.shape[1] == 2


@torch.no_grad()
def test_a_teacher_of_another_patch_size_sees_as_many_patches(tmp_path: Path) -> None:
    found = teacher(tmp_path, TINY, grid=(3, 5))
    images = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(1))
    features, _ = found.look(images, 2)
    assert features.shape == (2, 15, 24)
    bigger = F.interpolate(images, size=(24, 40), mode="bicubic", antialias=True)
    torch.testing.assert_close(features, found.look(bigger, 2)[0])
    before = images.clone()
    found.prepared(images)
    assert torch.equal(images, before)


def test_other_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^the teacher {tmp_path} takes 1 channels, not 3$"):
        teacher(tmp_path, replace(TINY, channels=1), grid=(4, 4))


def test_salient_patches_are_those_the_class_token_attends_to_most() -> None:
    attention = torch.zeros(1, 2, 6, 6)
    attention[0, :, 0, 1:] = torch.tensor([[0.0, 5.0, 1.0, 0.0, 2.0], [9.0, 5.0, 0.0, 0.0, 2.0]])
    chosen = salient_patches(attention, prefix=1, has_class_token=True, count=3)
    assert chosen.tolist() == [[1, 0, 4]]
    assert salient_patches(attention, prefix=1, has_class_token=True, count=99).shape == (1, 5)
    # Without a class token, what the patches attend to together counts.
    attention[0, 0, 3, 4] = 30.0
    assert salient_patches(attention, prefix=1, has_class_token=False, count=1).tolist() == [[3]]
