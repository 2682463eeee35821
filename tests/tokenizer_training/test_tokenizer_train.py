"""A tokenizer as the trainer sees it."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

from tiny_tokenizers import tiny_teacher, tiny_tokenizer
from unmask.data.batch import Batch
from unmask.models.tokenizers.base import Lesson
from unmask.optimisation import OptimizerConfig
from unmask.tokenizer_training.train import TokenizerTrainee
from unmask.training.trainer import Trainer, TrainingConfig

IMAGES = torch.randint(256, (6, 3, 32, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
BATCH = Batch.of(IMAGES, seed=11)


def trainee_of(kind: str) -> TokenizerTrainee:
    return TokenizerTrainee(tiny_tokenizer(kind), OptimizerConfig(lr=1e-3), None if kind == "dvae" else tiny_teacher())


@pytest.mark.parametrize("kind", ["dvae", "vq", "vqkd"])
def test_losses_are_the_tokenizers_own_and_drawn_from_the_batchs_seed(kind: str) -> None:
    trainee = trainee_of(kind).train()
    losses = trainee(BATCH, 0.3)
    generator = torch.Generator().manual_seed(11)
    flipped = torch.rand(6, generator=generator) < 0.5
    images_BCHW = torch.stack([image.flip(-1) if flip else image for image, flip in zip(IMAGES, flipped, strict=True)])
    expected = tiny_tokenizer(kind).train().losses(images_BCHW / 255, Lesson(0.3, generator, trainee.teacher))
    assert flipped.any()
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name])
    other = trainee_of(kind).train()(replace(BATCH, seed=12), 0.3)
    assert any(not torch.equal(other[name], loss) for name, loss in losses.items())


@pytest.mark.parametrize("kind", ["dvae", "vq", "vqkd"])
def test_the_tokenizer_learns_by_its_own_rule_and_its_teacher_stays(kind: str) -> None:
    trainee = trainee_of(kind)
    tokenizer, teacher = trainee.tokenizer, tiny_teacher().encoder.state_dict()
    training = TrainingConfig(epochs=1.0, batch_size=6, workers=0, device="cpu")
    trainer = Trainer(trainee, training, steps_per_epoch=3, device=torch.device("cpu"))
    rules = {name: group["rule"] for group in trainer.optimizer.param_groups for name in group["names"]}
    assert rules == {
        f"tokenizer.{name}": asdict(tokenizer.rule(name, parameter)) for name, parameter in tokenizer.named_parameters()
    }
    before = {name: value.clone() for name, value in tokenizer.named_parameters()}
    for _ in range(2):  # the first step of a warm-up has rate 0
        trainer.train_step([BATCH])
    assert any(not torch.equal(value, before[name]) for name, value in tokenizer.named_parameters())
    assert not any("teacher" in name for name in trainer.state({}).tensors)
    if trainee.teacher is not None:
        assert not trainee.teacher.encoder.training
        for name, value in trainee.teacher.encoder.state_dict().items():
            assert torch.equal(value, teacher[name]), name
