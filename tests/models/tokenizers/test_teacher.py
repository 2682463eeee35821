"""What tokenizers learn from a teacher: features at their own places, and a distance."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tiny_tokenizers import tiny_config, tiny_teacher, tiny_tokenizer
from unmask.models.tokenizers.base import Lesson
from unmask.models.tokenizers.file import build_tokenizer
from unmask.models.tokenizers.teacher import perceptual_distance, teacher_patches
from unmask.models.tokenizers.vqkd import VQKD, VQKDConfig


def test_equal_images_are_at_no_distance_and_others_at_some(images: torch.Tensor) -> None:
    teacher = tiny_teacher()
    assert float(perceptual_distance(teacher, images, images, 2)) == 0
    painted = (images * 0.5).requires_grad_()
    distance = perceptual_distance(teacher, images, painted, 2)
    assert 0 < distance.item() <= 4
    distance.backward()
    assert painted.grad is not None
    assert painted.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.encoder.parameters())


def test_the_last_block_is_always_compared(images: torch.Tensor) -> None:
    teacher = tiny_teacher()
    one, two = (float(perceptual_distance(teacher, images, images * 0.5, layers)) for layers in (1, 2))
    assert one != two
    last = teacher.encoder.network.get_submodule("blocks.1")
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.mul_(3)
    assert float(perceptual_distance(teacher, images, images * 0.5, 1)) != one


def test_features_are_the_teachers_patch_tokens(images: torch.Tensor) -> None:
    teacher = tiny_teacher()
    expected = teacher.encoder.patches(teacher.encoder((images - 0.5) / 0.25))
    assert torch.allclose(teacher_patches(teacher, images, (4, 5)), expected, atol=1e-6)


def test_a_teacher_of_another_size_and_grid_is_resized() -> None:
    """Left and right halves of an image differ; so do left and right of the features, whatever the grid."""
    teacher = tiny_teacher()
    image = torch.zeros(1, 3, 64, 64)
    image[:, :, :, 32:] = 1
    found = teacher_patches(teacher, image, (6, 8)).reshape(6, 8, -1)
    assert found.shape == (6, 8, 24)
    across = (found[:, 0] - found[:, -1]).norm()
    along = (found[0] - found[-1]).norm()
    assert across > along


def test_the_perceptual_loss_is_part_of_the_loss_where_there_is_a_teacher(images: torch.Tensor) -> None:
    tokenizer = tiny_tokenizer("vq")
    without = tokenizer.losses(images, Lesson(0.5, torch.Generator().manual_seed(0)))
    assert set(without) == {"reconstruction", "commitment"}
    tokenizer = tiny_tokenizer("vq")
    with_teacher = tokenizer.losses(images, Lesson(0.5, torch.Generator().manual_seed(0), tiny_teacher()))
    assert set(with_teacher) == {"reconstruction", "commitment", "perceptual"}
    assert torch.equal(with_teacher["reconstruction"], without["reconstruction"])


def test_agreement_is_measured_without_moving_a_code(images: torch.Tensor) -> None:
    tokenizer = tiny_tokenizer("vqkd")
    assert isinstance(tokenizer, VQKD)
    before = tokenizer.codebook.codes_VD.clone()
    with torch.no_grad():
        agreement = float(tokenizer.agreement(images, tiny_teacher()))
    assert -1 <= agreement <= 1
    assert torch.equal(tokenizer.codebook.codes_VD, before)
    losses = tokenizer.losses(images, Lesson(0.5, torch.Generator().manual_seed(0), tiny_teacher()))
    assert losses["distillation"].item() == pytest.approx(1 - agreement, abs=1e-6)


def test_teachers_that_do_not_fit_are_refused(images: torch.Tensor) -> None:
    generator = torch.Generator()
    with pytest.raises(ValueError, match=r"^VQ-KD learns from a teacher: give it one$"):
        tiny_tokenizer("vqkd").losses(images, Lesson(0.0, generator))
    config = tiny_config("vqkd")
    assert isinstance(config, VQKDConfig)
    other = build_tokenizer(replace(config, teacher_width=7))
    assert isinstance(other, VQKD)
    with pytest.raises(ValueError, match=r"^the teacher a teacher has features of width 24, not 7$"):
        other.losses(images, Lesson(0.0, generator, tiny_teacher()))
    with pytest.raises(ValueError, match=r"^the teacher a teacher takes 1 channels, not 3$"):
        perceptual_distance(tiny_teacher(1), images, images, 1)
    with pytest.raises(ValueError, match=r"^a teacher has 2 blocks, so 3 of them cannot be compared$"):
        perceptual_distance(tiny_teacher(), images, images, 3)


def test_encoders_that_cannot_name_tokens_are_refused() -> None:
    config = tiny_config("vqkd")
    assert isinstance(config, VQKDConfig)
    with pytest.raises(ValueError, match=r"takes no drop path$"):
        replace(config, encoder=replace(config.encoder, drop_path=0.1))
    with pytest.raises(ValueError, match=r"^the tokenizer's encoder takes 3 channels, its images have 1$"):
        replace(config, channels=1)
    with pytest.raises(ValueError, match=r"^decoder_depth and teacher_width must be at least 1$"):
        replace(config, decoder_depth=0)
