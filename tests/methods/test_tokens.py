"""What methods on visual tokens share: the tokenizer that they need, what it sees, and what of it counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tiny_tokenizers import tiny_tokenizer
from unmask.data.batch import Batch
from unmask.masking import MaskConfig
from unmask.methods import METHODS
from unmask.methods.base import Method
from unmask.methods.beit import BEiT, BEiTConfig
from unmask.methods.tokens import TokenViews, hidden_token_loss, load_tokenizer
from unmask.models.encoder_config import EncoderConfig
from unmask.models.tokenizers.file import open_tokenizer, tokenizer_file
from unmask.training.checkpoint import write_atomically
from unmask.views import denormalise

Tiny = Callable[..., Any]
BatchFor = Callable[..., Batch]
ON_TOKENS = ["beit", "cae", "beit_v2", "mc_beit", "peco"]
NEEDED = (
    r"^this method predicts the codes of an image tokenizer: train one with `unmask tokenizer train DATA`, "
    r"then give its file by --method\.tokenizer$"
)


@pytest.fixture
def tokenizer_path(tmp_path: Path) -> str:
    """A tiny tokenizer of 20 codes for images of three channels."""
    path = tmp_path / "tokenizer.safetensors"
    write_atomically(path, *tokenizer_file(tiny_tokenizer("vq"), {}))
    return str(path)


@pytest.mark.parametrize("name", ON_TOKENS)
def test_a_method_without_a_tokenizer_says_how_to_get_one(name: str) -> None:
    with pytest.raises(ValueError, match=NEEDED):
        METHODS[name](METHODS[name].Config())


@pytest.mark.parametrize("name", ON_TOKENS)
def test_a_vocabulary_alone_is_enough_for_views_from_elsewhere_only(name: str, tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(METHODS[name], changes={"tokenizer": None, "vocabulary": 30})
    assert sum(value.shape[0] == 30 for value in method.parameters()) == 2
    with pytest.raises(ValueError, match=NEEDED):
        method.make_views(batch_for(method))


def test_tokenizers_that_do_not_fit_are_refused(tokenizer_path: str, tmp_path: Path) -> None:
    config = BEiTConfig(tokenizer=tokenizer_path)
    assert load_tokenizer(config)[1] == 20
    assert load_tokenizer(replace(config, vocabulary=20))[1] == 20
    with pytest.raises(ValueError, match=r"^\S+tokenizer.safetensors has 20 codes, not 64$"):
        load_tokenizer(replace(config, vocabulary=64))
    with pytest.raises(ValueError, match=r"^\S+tokenizer.safetensors takes images of 3 channels, not 1$"):
        load_tokenizer(replace(config, encoder=EncoderConfig(channels=1), mean=(0.5,), std=(0.5,)))
    with pytest.raises(ValueError, match=r"^there is no tokenizer file \S+$"):
        load_tokenizer(replace(config, tokenizer=str(tmp_path / "none")))
    with pytest.raises(ValueError, match=r"^a vocabulary needs at least 2 codes, got 1$"):
        replace(config, vocabulary=1)


@torch.no_grad()
@pytest.mark.parametrize("name", ["beit", "cae", "beit_v2", "peco"])
def test_the_tokenizer_sees_the_pixels_that_the_encoder_sees(name: str, tiny: Tiny, batch_for: BatchFor) -> None:
    """Flipped, and coloured where the method colours; not normalised."""
    method = tiny(METHODS[name])
    views = method.make_views(batch_for(method, 8))
    assert isinstance(views, TokenViews)
    tokenizer = open_tokenizer(method.config.tokenizer)
    pixels_BCHW = denormalise(views.online, method.config.mean, method.config.std)
    assert torch.equal(views.token_ids_BN, tokenizer.tokens_for(pixels_BCHW, (4, 4)))
    assert views.token_ids_BN.unique().numel() > 3


def test_beits_jitter_is_seen_by_both(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(BEiT)
    views = method.make_views(batch_for(method, 16))
    plain = (batch_for(method, 16).crops[0][:, 0] / 255 - 0.5) / 0.25
    assert not any(torch.allclose(view, own) for view, own in zip(views.online, plain, strict=True))
    mirrored = plain.flip(-1)
    assert not any(torch.allclose(view, own) for view, own in zip(views.online, mirrored, strict=True))


@pytest.mark.parametrize("name", ON_TOKENS)
def test_the_tokenizer_is_part_of_the_state_and_never_trained(name: str, tiny: Tiny, batch_for: BatchFor) -> None:
    method: Method[Any] = tiny(METHODS[name])
    before = {key: value.clone() for key, value in method.state_dict().items() if key.startswith("tokenizer.")}
    assert before
    method.train()
    optimizer = torch.optim.AdamW([value for value in method.parameters() if value.requires_grad], lr=0.1)
    torch.stack(list(method(batch_for(method)).values())).sum().backward()
    optimizer.step()
    state = method.state_dict()
    assert all(torch.equal(state[key], value) for key, value in before.items())
    assert all(value.grad is None for key, value in method.named_parameters() if key.startswith("tokenizer."))


@pytest.mark.parametrize("name", ["beit", "cae", "beit_v2", "peco"])
def test_codes_of_visible_patches_do_not_count(name: str, tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(METHODS[name])
    views = method.make_views(batch_for(method))
    other = (views.token_ids_BN + 1) % 20
    losses = method.losses(views)
    visible = method.losses(replace(views, token_ids_BN=torch.where(views.mask_BN, views.token_ids_BN, other)))
    hidden = method.losses(replace(views, token_ids_BN=torch.where(views.mask_BN, other, views.token_ids_BN)))
    assert torch.equal(losses["tokens"], visible["tokens"])
    assert not torch.equal(losses["tokens"], hidden["tokens"])


@torch.no_grad()
@pytest.mark.parametrize("name", ["beit", "peco"])
def test_the_loss_is_a_mean_over_all_hidden_patches_of_the_batch(name: str, tiny: Tiny, batch_for: BatchFor) -> None:
    """Token by token in NumPy, with images that hide different numbers of patches."""
    mask = MaskConfig(kind="blockwise", ratio=0.4)
    method = tiny(METHODS[name], patch=4, changes={"mask": mask})
    views = method.make_views(batch_for(method, 8))
    assert views.mask_BN.sum(dim=1).unique().numel() > 1
    tokens_BLD = method.encoder(views.online, replace_BN=views.mask_BN)
    weight, bias = method.head.weight.double().numpy(), method.head.bias.double().numpy()
    terms = []
    for tokens_ND, mask_N, ids_N in zip(tokens_BLD[:, 1:], views.mask_BN, views.token_ids_BN, strict=True):
        for position in mask_N.nonzero().flatten().tolist():
            logits = weight @ tokens_ND[position].double().numpy() + bias
            terms.append(np.log(np.exp(logits).sum()) - logits[ids_N[position]])
    assert method.losses(views)["tokens"].item() == pytest.approx(np.mean(terms), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["beit", "beit_v2", "mc_beit", "peco"])
def test_hidden_pixels_are_not_seen_by_the_encoder(name: str, tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(METHODS[name])
    views = method.make_views(batch_for(method))
    hidden_B1HW = views.mask_BN.view(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    changed = method.losses(replace(views, online=torch.where(hidden_B1HW, 9.0, views.online)))
    assert all(torch.equal(loss, changed[key]) for key, loss in method.losses(views).items())


def test_logits_are_of_hidden_patches_alone(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(BEiT)
    views = method.make_views(batch_for(method))
    shapes: list[torch.Size] = []
    method.head.register_forward_hook(lambda _, given, __: shapes.append(given[0].shape))
    method.losses(views)
    assert shapes == [torch.Size([int(views.mask_BN.sum()), 48])]


def test_the_loss_of_even_logits_is_the_log_of_the_vocabulary() -> None:
    mask_BN = torch.tensor([[True, False, True], [False, False, True]])
    ids_BN = torch.tensor([[0, 1, 2], [3, 4, 5]])
    assert hidden_token_loss(torch.ones(3, 7), ids_BN, mask_BN).item() == pytest.approx(np.log(7))


@pytest.mark.parametrize(
    ("name", "hidden"), [("beit", 75), ("cae", 98), ("beit_v2", 75), ("mc_beit", 147), ("peco", 79)]
)
def test_default_masks_hide_what_the_authors_hide(name: str, hidden: int) -> None:
    assert np.ceil(196 * METHODS[name].Config().mask.ratio) == hidden  # type: ignore[attr-defined]
