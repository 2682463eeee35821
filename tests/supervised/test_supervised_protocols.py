"""Each protocol has its task, and the number of its train images is that of its data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tiny_classifiers import BARE, tiny_pretrained
from tiny_runs import draw_images
from unmask.data.sources import labelled
from unmask.supervised.classification import ClassificationSubject
from unmask.supervised.config import SETTINGS, LabelBudget, SupervisedConfig
from unmask.supervised.protocols import SUBJECTS, build, train_size
from unmask.training.trainer import TrainingConfig

CLASSIFIERS = ("finetune", "partial", "attentive", "certified")


def test_every_protocol_has_a_subject_with_a_file_of_its_own_kind() -> None:
    assert SUBJECTS.keys() == SETTINGS.keys()


@pytest.mark.parametrize("protocol", CLASSIFIERS)
def test_classifiers_are_built_from_their_settings(protocol: Any, tmp_path: Path) -> None:
    data = draw_images(tmp_path / "data", 20)
    config = SupervisedConfig(
        protocol=protocol,
        encoder="anything",
        start="pretrained",
        data=str(data),
        budget=LabelBudget(shots=3),
        settings=replace(BARE, norm="batch"),
        training=TrainingConfig(batch_size=4, workers=0),
    )
    subject = build(config, tiny_pretrained())
    assert isinstance(subject, ClassificationSubject)
    assert subject.samples == train_size(protocol, str(data), config.budget, 0) == 6
    assert subject.task.config == config.settings
    assert subject.task.classes == ("cold", "warm")
    assert subject.file_name == "classifier.safetensors"


def test_the_size_is_that_of_the_train_half(tmp_path: Path) -> None:
    data = draw_images(tmp_path / "data", 40)
    train, _ = labelled(data)
    assert train_size("finetune", str(data), LabelBudget(), 0) == len(train)
    half = train_size("finetune", str(data), LabelBudget(share=0.5), 0)
    assert abs(half - len(train) / 2) <= 1


def test_data_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    data = draw_images(tmp_path / "flat", classes=("",))
    with pytest.raises(ValueError, match=r"have no labels: put them into one folder a class$"):
        train_size("finetune", str(data), LabelBudget(), 0)
    with pytest.raises(ValueError, match=r"^.*absent does not exist$"):
        train_size("attentive", str(tmp_path / "absent"), LabelBudget(), 0)
