"""M3AE's words: which are hidden, what is shown to whom, tokens learnt from captions, what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unmask.data.batch import Batch
from unmask.data.sources import open_source
from unmask.methods.m3ae import M3AE, M3AEConfig, half_rolled, hide_tokens
from unmask.models.text import TextConfig, TextTokens, learn_merges

Tiny = Callable[..., Any]
BatchFor = Callable[..., Batch]


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 17), st.integers(0, 2**31))
def test_half_of_a_batch_sees_its_own_picture_and_no_other_half_does(batch: int, seed: int) -> None:
    shown_B = half_rolled(batch, torch.Generator().manual_seed(seed))
    own = shown_B == torch.arange(batch)
    assert int(own.sum()) == batch // 2
    distances = {int((there - here) % batch) for here, there in enumerate(shown_B.tolist()) if not own[here]}
    assert len(distances) == 1
    assert 0 <= int(shown_B.min()) <= int(shown_B.max()) < batch


def test_a_share_of_each_captions_ordinary_tokens_is_asked_for() -> None:
    text_BT = torch.randint(5, 40, (400, 30), generator=torch.Generator().manual_seed(0))
    ordinary_BT = torch.zeros(400, 30, dtype=torch.bool)
    for row in range(400):
        ordinary_BT[row, 1 : 1 + row % 28] = True
    hidden_BT, asked_BT = hide_tokens(
        text_BT, ordinary_BT, 0.15, mask=4, rows=40, generator=torch.Generator().manual_seed(1)
    )
    assert not (asked_BT & ~ordinary_BT).any()
    assert torch.equal(hidden_BT[~asked_BT], text_BT[~asked_BT])
    for row in range(400):
        count = row % 28
        assert int(asked_BT[row].sum()) == (max(1, round(0.15 * count)) if count else 0)
    masked = (hidden_BT[asked_BT] == 4).double().mean().item()
    same = (hidden_BT[asked_BT] == text_BT[asked_BT]).double().mean().item()
    assert masked == pytest.approx(0.8, abs=0.05)
    assert same == pytest.approx(0.1, abs=0.04)


def test_losses_are_those_of_three_plain_passes(tiny: Tiny, batch_for: BatchFor) -> None:
    """Text and images are stacked and gathered for speed; here every pass goes alone."""
    changes = {"mlm_weight": 0.5, "mim_weight": 2.0, "itm_weight": 3.0, "norm_pixels": False}
    method = tiny(M3AE, changes=changes).double().eval()
    views = method.make_views(batch_for(method, 5))
    views = replace(views, online=views.online.double(), further_FCHW=views.further_FCHW.double())
    losses = method.losses(views)

    def meet(text_BT: torch.Tensor, images: torch.Tensor, depth: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        text = method.fusion.text_in(method.text(text_BT, views.padding_BT)) + method.kinds.weight[0]
        return method.fusion(text, method.fusion.image_in(images) + method.kinds.weight[1], views.padding_BT, depth)

    words, _ = meet(views.hidden_text_BT, method.encoder(views.online), None)
    logs = method.mlm_head(words).log_softmax(-1)
    told = [-logs[row, place, views.text_BT[row, place]].item() for row, place in views.asked_BT.nonzero().tolist()]
    assert losses["mlm"].item() == pytest.approx(0.5 * sum(told) / len(told), rel=1e-9)

    text, image = meet(views.text_BT, method.encoder(views.online[views.shown_B]), None)
    pair = torch.cat([method.fusion.text_pooler(text), method.fusion.image_pooler(image)], dim=1)
    chances = method.itm_head(pair).softmax(-1)
    own = [int(shown == row) for row, shown in enumerate(views.shown_B.tolist())]
    matched = [-math.log(chances[row, label].item()) for row, label in enumerate(own)]
    assert losses["itm"].item() == pytest.approx(3 * sum(matched) / 5, rel=1e-9)

    _, seen = meet(views.text_BT, method.encoder(views.online, drop_BN=views.mask_BN), method.config.decoded_layer)
    painted = method.mim_head.predict(method.mim_head(seen, views.mask_BN))
    pixels = views.online.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).reshape(5, 16, -1)
    errors = (painted - pixels).pow(2).mean(-1)[views.mask_BN]
    assert losses["mim"].item() == pytest.approx(2 * errors.mean().item(), rel=1e-9)


def test_padding_changes_nothing(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(M3AE).double().eval()
    views = method.make_views(batch_for(method))
    views = replace(views, online=views.online.double(), further_FCHW=views.further_FCHW.double())

    def longer(tokens_BT: torch.Tensor, value: int | bool) -> torch.Tensor:
        return torch.cat([tokens_BT, torch.full((4, 4), value, dtype=tokens_BT.dtype)], dim=1)[:, :32]

    padded = replace(
        views,
        text_BT=longer(views.text_BT[:, :28], 1),
        hidden_text_BT=longer(views.hidden_text_BT[:, :28], 1),
        padding_BT=longer(views.padding_BT[:, :28], True),
        asked_BT=longer(views.asked_BT[:, :28], False),
    )
    shorter = replace(
        views,
        text_BT=views.text_BT[:, :28],
        hidden_text_BT=views.hidden_text_BT[:, :28],
        padding_BT=views.padding_BT[:, :28],
        asked_BT=views.asked_BT[:, :28],
    )
    for name, loss in method.losses(shorter).items():
        assert method.losses(padded)[name].item() == pytest.approx(loss.item(), rel=1e-9)


def test_captions_so_empty_that_no_word_can_be_hidden(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(M3AE)
    losses = method(replace(batch_for(method), texts=("",) * 4))
    assert losses["mlm"].item() == 0
    assert all(math.isfinite(loss.item()) for loss in losses.values())


def test_tokens_are_learnt_from_captions_in_whatever_order() -> None:
    captions = ["a red square", "a red circle", "größer als ein roter Kreis", "a red square again"]
    merges = learn_merges(captions, 300)
    assert merges == learn_merges(reversed(captions), 300)
    tokens = TextTokens(TextConfig(merges=merges, length=16))
    assert len(tokens) <= 300
    text_BT, padding_BT, ordinary_BT = tokens((captions[2], "a red", "x" * 100))
    assert text_BT.shape[1] == 16
    assert text_BT[:, 0].tolist() == [0, 0, 0]
    assert (text_BT[2, -1], int(padding_BT[2].sum())) == (2, 0)
    assert torch.equal(padding_BT, text_BT == 1)
    # "a red" is two tokens between two ends; without learning it would be six.
    assert int(ordinary_BT[1].sum()) == 2
    plain = TextTokens(TextConfig())
    assert len(plain) == 261
    assert int(plain(("a red",))[2].sum()) == 6


def _captioned(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    lines = ["image,caption"]
    for index in range(8):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        lines.append(f"{index}.png,a picture of thing {index}")
    (folder / "captions.csv").write_text("\n".join(lines))
    return folder


def test_settings_learn_tokens_from_the_data(tmp_path: Path) -> None:
    config = M3AEConfig().for_source(open_source(_captioned(tmp_path)))
    assert config.text.merges
    assert "tokens learnt from the captions" in str(config.text)
    assert config.for_source(open_source(tmp_path)) == config
    with pytest.raises(ValueError, match=r"^M3AE learns from captions, and builtin:emoji has none: put a captions.csv"):
        M3AEConfig().for_source(open_source("builtin:emoji"))


def test_a_folder_of_transformers_gives_encoder_and_tokens(tmp_path: Path, tiny: Tiny, batch_for: BatchFor) -> None:
    first = tiny(M3AE)
    first.text.network.save_pretrained(tmp_path)
    first.tokens.save(tmp_path)
    second = tiny(M3AE, seed=1, changes={"text": TextConfig(folder=str(tmp_path), length=32)})
    for name, value in first.text.network.state_dict().items():
        assert torch.equal(value, second.text.network.state_dict()[name])
    views, again = first.make_views(batch_for(first)), second.make_views(batch_for(second))
    assert torch.equal(views.text_BT, again.text_BT)
    assert torch.equal(views.hidden_text_BT, again.hidden_text_BT)
    with pytest.raises(ValueError, match=r"takes 32 tokens, fewer than 64$"):
        tiny(M3AE, changes={"text": TextConfig(folder=str(tmp_path), length=64)})
    (tmp_path / "config.json").write_text('{"model_type": "roberta", "hidden_size": 12, "num_attention_heads": 2}')
    with pytest.raises(ValueError, match=r"^no RoBERTa can be read from .*: its weights do not fit its config.json$"):
        tiny(M3AE, changes={"text": TextConfig(folder=str(tmp_path), length=32)})
    with pytest.raises(ValueError, match=r"^nowhere is not a folder, so no tokenizer can be read from it$"):
        tiny(M3AE, changes={"text": TextConfig(folder="nowhere")})


def test_batches_that_cannot_be_used_are_refused(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(M3AE)
    with pytest.raises(ValueError, match=r"^M3AE learns from captions, and this batch has none$"):
        method(replace(batch_for(method), texts=None))
    with pytest.raises(ValueError, match=r"^M3AE shows captions the pictures of others, so a batch needs at least 2"):
        method(batch_for(method, 1))
    few = tiny(M3AE, changes={"text": TextConfig(width=24, depth=2, heads=2, length=32, rows=50)})
    with pytest.raises(ValueError, match=r"^a caption has token \d+, and the text encoder knows 50$"):
        few(batch_for(few))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"text_ratio": 0.0}, r"^text_ratio must lie between 0 and 1, got 0\.0$"),
        ({"dropout": 1.0}, r"^dropout must lie in \[0, 1\), got 1\.0$"),
        ({"decoded_layer": 6}, r"^decoded_layer must lie in -1\.\.5, got 6$"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(M3AEConfig(), **changes)


def test_sizes_of_text_that_cannot_be_are_refused() -> None:
    for changes, sentence in (
        ({"heads": 5}, r"^text width 768 is not divisible by its 5 heads$"),
        ({"depth": 0}, r"^text depth must be at least 1, got 0$"),
        ({"length": 2}, r"^text length must be at least 3"),
        ({"vocabulary": 100}, r"^text vocabulary must be at least 261, the bytes and the marks, got 100$"),
    ):
        with pytest.raises(ValueError, match=sentence):
            replace(TextConfig(), **changes)


def test_rates_are_raised_for_heads_and_fusion(tiny: Tiny) -> None:
    method = tiny(M3AE, changes={"head_lr_scale": 7.0, "fusion_lr_scale": 3.0})
    scales = {name.split(".")[0]: method.rule(name, value).lr_scale for name, value in method.named_parameters()}
    assert scales == {
        "encoder": 1.0, "text": 1.0, "kinds": 1.0, "fusion": 3.0, "mlm_head": 7.0, "mim_head": 7.0, "itm_head": 7.0
    }  # fmt: skip
