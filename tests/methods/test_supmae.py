"""SupMAE's classification branch, and what it says to images without labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from unmask.data.batch import Batch
from unmask.data.sources import ArraySource
from unmask.methods.mae import MAE
from unmask.methods.supmae import SupMAE, SupMAEConfig

Tiny = Callable[..., Any]
BatchFor = Callable[..., Batch]


@torch.no_grad()
@pytest.mark.parametrize("feature", ["mean", "class"])
def test_the_branch_is_a_weighted_cross_entropy_of_visible_patches(
    tiny: Tiny, batch_for: BatchFor, feature: str
) -> None:
    changes = {"class_feature": feature, "class_temperature": 3.0, "class_weight": 0.5}
    method = tiny(SupMAE, changes=changes).train()
    views = method.make_views(batch_for(method))
    tokens_BLD = method.encoder(views.online, drop_BN=views.mask_BN).double()
    features = (tokens_BLD[:, 1:].mean(dim=1) if feature == "mean" else tokens_BLD[:, 0]).numpy()
    first, norm, _, last = (part.double() for part in method.classifier.layers)
    hidden = features @ first.weight.numpy().T + first.bias.numpy()
    hidden = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5) * norm.weight.numpy() + norm.bias.numpy()
    logits = (np.maximum(hidden, 0) @ last.weight.numpy().T + last.bias.numpy()) / 3.0
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = -0.5 * logits[np.arange(4), views.labels_B.numpy()].mean()
    method.float()
    assert method.losses(views)["classification"].item() == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_the_other_half_is_mae(tiny: Tiny, batch_for: BatchFor) -> None:
    method, mae = tiny(SupMAE), tiny(MAE)
    views = method.make_views(batch_for(method))
    mae.load_state_dict(method.state_dict(), strict=False)
    expected = mae.losses(mae.make_views(batch_for(mae)))["reconstruction"]
    torch.testing.assert_close(method.losses(views)["reconstruction"], expected)


def test_batch_statistics_are_each_ranks_own(tiny: Tiny) -> None:
    """The authors' plain batch norm, not the synchronised one."""
    (norm,) = (part for part in tiny(SupMAE).modules() if isinstance(part, nn.modules.batchnorm._BatchNorm))
    assert type(norm) is nn.BatchNorm1d


def test_labels_travel_with_their_images(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(SupMAE)
    batch = batch_for(method)
    assert batch.labels is not None
    assert torch.equal(method.make_views(batch).labels_B, batch.labels)
    with pytest.raises(ValueError, match=r"^SupMAE learns from labels, and this batch has none$"):
        method(replace(batch, labels=None))


def _source(labels: list[int] | None, classes: tuple[str, ...] | None) -> ArraySource:
    return ArraySource("drawn", np.zeros((4, 8, 8, 3), dtype=np.uint8), labels=labels, classes=classes)


def test_the_number_of_classes_is_the_datas() -> None:
    config = SupMAEConfig().for_source(_source([0, 1, 2, 0], ("a", "b", "c")))
    assert config == SupMAEConfig(classes=3)


def test_images_without_labels_or_with_one_class_are_refused() -> None:
    sentence = (
        r"^SupMAE learns from labels, and drawn has none: put its images into one folder a class, or choose method mae$"
    )
    with pytest.raises(ValueError, match=sentence):
        SupMAEConfig().for_source(_source(None, None))
    with pytest.raises(ValueError, match=r"^SupMAE tells classes apart, and drawn has only one, a$"):
        SupMAEConfig().for_source(_source([0] * 4, ("a",)))


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^classes must be at least 2, got 1$"):
        SupMAEConfig(classes=1)
    with pytest.raises(ValueError, match=r"^class_temperature must be above 0, got 0.0$"):
        SupMAEConfig(class_temperature=0.0)
