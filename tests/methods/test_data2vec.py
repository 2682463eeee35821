"""data2vec's targets: which blocks, how normalised, by which network, and where the loss looks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from timm.layers import DropPath

from unmask.data.batch import Batch
from unmask.masking import MaskConfig, sample_mask
from unmask.methods.data2vec import Data2Vec, Data2VecConfig
from unmask.schedule import Schedule

Tiny = Callable[..., Any]
BatchFor = Callable[..., Batch]


def test_the_authors_hide_at_most_120_of_196_patches() -> None:
    mask_BN = sample_mask(Data2VecConfig().mask, 16, (14, 14), generator=torch.Generator().manual_seed(0), device="cpu")
    counts_B = mask_BN.sum(dim=1)
    assert counts_B.max() == 120
    assert counts_B.min() > 100


def test_both_networks_see_one_jittered_picture(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(Data2Vec)
    plain = tiny(Data2Vec, changes={"colour": replace(method.config.colour, jitter_p=0.0)})
    batch = batch_for(method)
    views, uncoloured = method.make_views(batch), plain.make_views(batch)
    assert views.target is None
    assert torch.equal(views.mask_BN, uncoloured.mask_BN)
    assert ((views.online - uncoloured.online).abs().amax(dim=(1, 2, 3)) > 0.01).all()


@torch.no_grad()
@pytest.mark.parametrize(
    ("each", "again", "blocks"),
    [(True, True, (-2, -1)), (True, False, (0,)), (False, True, (0, -1)), (False, False, (1,))],
)
def test_the_loss_is_the_smooth_error_to_the_mean_of_blocks(
    tiny: Tiny, batch_for: BatchFor, each: bool, again: bool, blocks: tuple[int, ...]
) -> None:
    changes = {"normalise_blocks": each, "normalise_target": again, "target_blocks": blocks, "beta": 0.7}
    method = tiny(Data2Vec, changes=changes)
    views = method.make_views(batch_for(method))
    outputs: list[np.ndarray] = []
    for block in method.target_encoder.vit.blocks:
        block.register_forward_hook(lambda _, __, out: outputs.append(out[:, 1:].double().numpy()))

    def normalised(values: np.ndarray) -> np.ndarray:
        centred = values - values.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)

    loss = method.losses(views)["features"].item()
    chosen = [outputs[block] for block in blocks] if len(outputs) == 2 else outputs
    target = np.mean([normalised(values) if each else values for values in chosen], axis=0)
    target = normalised(target) if again else target
    prediction = method.head(method.encoder(views.online, replace_BN=views.mask_BN)[:, 1:]).double().numpy()
    errors = np.abs(prediction - target)[views.mask_BN.numpy()]
    expected = np.where(errors < 0.7, errors**2 / 1.4, errors - 0.35).mean()
    assert loss == pytest.approx(expected, rel=1e-5)


def test_blocks_above_the_highest_target_are_not_computed(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(Data2Vec, changes={"target_blocks": (0,)})
    method.target_encoder.vit.blocks[1].register_forward_hook(lambda *_: pytest.fail("computed for nothing"))
    method(batch_for(method))


@torch.no_grad()
def test_the_target_drops_no_paths_even_in_train_mode(tiny: Tiny, batch_for: BatchFor) -> None:
    encoder = tiny(Data2Vec).config.encoder
    method = tiny(Data2Vec, changes={"encoder": replace(encoder, drop_path=0.5)}).train()
    rates = [part.drop_prob for part in method.encoder.modules() if isinstance(part, DropPath)]
    assert max(rates) == pytest.approx(0.5)
    views = method.make_views(batch_for(method))
    assert torch.equal(method.target(views.online, views.mask_BN), method.target(views.online, views.mask_BN))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, second = (method.predict(views.online, views.mask_BN) for _ in range(2))
    assert not torch.equal(first, second)


def test_the_papers_ramp_of_momentum_can_be_had(tiny: Tiny) -> None:
    momentum = Schedule(kind="linear", start=0.5, end=1.0, until=0.5)
    method = tiny(Data2Vec, changes={"momentum": momentum})
    before = method.target_encoder.vit.cls_token.clone()
    with torch.no_grad():
        method.encoder.vit.cls_token += 1
    method.update_target(0.5)
    assert torch.equal(method.target_encoder.vit.cls_token, before)
    method.update_target(0.25)
    torch.testing.assert_close(method.target_encoder.vit.cls_token.data, before + 0.25)


@torch.no_grad()
def test_a_perfect_prediction_finds_its_own_place(tiny: Tiny, batch_for: BatchFor) -> None:
    """With the target's features as predictions, each patch is most like itself."""
    method = tiny(Data2Vec, changes={"mask": MaskConfig(ratio=0.5), "beta": 0.01}).eval()
    views = method.make_views(batch_for(method))

    def predict(images: torch.Tensor, _: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        return method.target(images, where)

    method.predict = predict
    similarity_BNN = method.inspect(views).similarity_BNN
    assert similarity_BNN is not None
    assert (similarity_BNN.argmax(dim=2) == torch.arange(16)).all()


def test_blocks_that_the_encoder_lacks_are_left_out_or_refused(tiny: Tiny) -> None:
    assert tiny(Data2Vec).blocks == (0, 1)  # the default counts six from the last
    with pytest.raises(ValueError, match=r"^an encoder of 2 blocks has no target_blocks 2$"):
        tiny(Data2Vec, changes={"target_blocks": (0, 2)})
    with pytest.raises(ValueError, match=r"^an encoder of 2 blocks has no target_blocks -3$"):
        tiny(Data2Vec, changes={"target_blocks": (-3, -4)})
    with pytest.raises(ValueError, match=r"^target_blocks must name at least one block$"):
        Data2VecConfig(target_blocks=())
    with pytest.raises(ValueError, match=r"^beta must be above 0, got 0$"):
        Data2VecConfig(beta=0)
