"""ConMIM: what its authors' code does, in numbers of the default configuration and on tiny networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from unmask.data.batch import Batch
from unmask.masking import MaskConfig, masked_count, sample_mask
from unmask.methods.conmim import ConMIM, ConMIMConfig, draw_queries, project_some
from unmask.models.heads import MLPHead, MLPHeadConfig
from unmask.objectives.contrastive import patch_infonce
from unmask.schedule import Schedule
from unmask.views import Views

Tiny = Callable[..., ConMIM]
BatchFor = Callable[..., Batch]


def test_the_default_mask_hides_148_of_196_patches() -> None:
    config = ConMIMConfig()
    mask_BN = sample_mask(config.mask, 5, (14, 14), generator=torch.Generator().manual_seed(0), device="cpu")
    assert mask_BN.sum(dim=1).tolist() == [148] * 5
    assert masked_count(config.mask, (14, 14)) == 148
    blocks = mask_BN.reshape(5, 7, 2, 7, 2).transpose(2, 3).flatten(3)
    assert torch.equal(blocks.any(dim=-1), blocks.all(dim=-1))


def test_momentum_goes_from_996_to_one() -> None:
    momentum = ConMIMConfig().momentum
    assert momentum.at(0) == pytest.approx(0.996, abs=1e-12)
    assert momentum.at(0.5) == pytest.approx(0.998, abs=1e-12)
    assert momentum.at(1) == 1.0


def test_defaults_are_the_authors() -> None:
    config = ConMIMConfig()
    assert config.temperature == 0.1
    assert config.encoder.position == "relative"
    assert (config.projector.layers, config.projector.hidden, config.projector.out) == (3, 4096, 256)
    assert (config.projector.last_norm, config.projector.hidden_bias, config.projector.synchronised) == (
        True,
        False,
        False,
    )
    assert (config.projected, config.query_share) == ("all", 1.0)
    assert (config.optimizer.betas, config.optimizer.weight_decay) == ((0.9, 0.98), 0.05)


def test_the_loss_is_patch_infonce_of_projected_tokens(tiny: Tiny, batch_for: BatchFor) -> None:
    """Projectors see the class token too; the target sees the whole coloured image."""
    method = tiny(ConMIM)
    views = method.make_views(batch_for(method))
    assert views.target is not None
    assert views.mask_BN is not None
    online = method.projector(method.encoder(views.online, replace_BN=views.mask_BN).flatten(0, 1))
    target = method.target_projector(method.target_encoder(views.target).flatten(0, 1))
    expected = patch_infonce(
        online.unflatten(0, (4, 17))[:, 1:], target.unflatten(0, (4, 17))[:, 1:], views.mask_BN, 0.1
    )
    torch.testing.assert_close(method.losses(views), {"contrast": expected})


def test_the_loss_is_at_chance_when_all_keys_are_alike(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(ConMIM)
    views = method.make_views(batch_for(method))
    torch.nn.init.zeros_(method.target_projector.layers[-2].weight)  # type: ignore[arg-type]
    assert method.losses(views)["contrast"].item() == pytest.approx(math.log(16), rel=1e-6)


def test_hidden_pixels_of_the_online_view_change_nothing(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(ConMIM)
    views = method.make_views(batch_for(method))
    assert views.mask_BN is not None
    hidden_B1HW = views.mask_BN.view(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    changed = replace(views, online=torch.where(hidden_B1HW, 9.0, views.online))
    assert torch.equal(method.losses(views)["contrast"], method.losses(changed)["contrast"])
    visible = replace(views, online=torch.where(hidden_B1HW, views.online, 9.0))
    assert not torch.equal(method.losses(views)["contrast"], method.losses(visible)["contrast"])


def test_blockwise_masks_of_different_counts_are_taken(tiny: Tiny, batch_for: BatchFor) -> None:
    mask = MaskConfig(kind="blockwise", ratio=0.383, min_block_patches=16)
    method = tiny(ConMIM, patch=4, changes={"mask": mask})
    views = method.make_views(batch_for(method, 16))
    assert views.mask_BN is not None
    assert views.mask_BN.sum(dim=1).unique().numel() > 1
    loss = method.losses(views)["contrast"]
    loss.backward()
    assert math.isfinite(loss.item())


def test_colour_is_the_targets_alone(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(ConMIM)
    batch = batch_for(method, 16)
    views = method.make_views(batch)
    assert views.target is not None
    plain = ((batch.crops[0][:, 0] / 255) - 0.5) / 0.25
    same = [torch.allclose(view, own) for view, own in zip(views.online, plain, strict=True)]
    mirrored = [torch.allclose(view, own.flip(-1)) for view, own in zip(views.online, plain, strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert any(same)
    assert any(mirrored)
    changed = (views.target - views.online).abs().amax(dim=(1, 2, 3)) > 1e-3
    assert changed.float().mean() > 0.5


def test_without_a_target_view_the_online_view_is_the_target(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(ConMIM)
    views = replace(method.make_views(batch_for(method)), target=None)
    own = replace(views, target=views.online)
    assert torch.equal(method.losses(views)["contrast"], method.losses(own)["contrast"])


def test_the_target_uses_batch_statistics_and_moves_by_the_schedule(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(ConMIM, changes={"momentum": Schedule(kind="cosine", start=0.5, end=1.0)})
    assert method.target_projector.training
    torch.nn.init.normal_(method.encoder.vit.cls_token)
    before = method.target_encoder.vit.cls_token.clone()
    method.update_target(1.0)
    assert torch.equal(method.target_encoder.vit.cls_token, before)
    method.update_target(0.0)
    torch.testing.assert_close(
        method.target_encoder.vit.cls_token.data, 0.5 * before + 0.5 * method.encoder.vit.cls_token.data
    )


def test_what_is_exported_is_chosen(tiny: Tiny) -> None:
    method = tiny(ConMIM, changes={"export": "online"})
    assert method.exported() is method.encoder
    method = tiny(ConMIM)
    assert method.exported() is method.target_encoder


@torch.no_grad()
def test_similarity_is_the_probability_that_the_loss_takes(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(ConMIM).train()
    views = method.make_views(batch_for(method))
    similarity = method.inspect(views).similarity_BNN
    assert similarity is not None
    assert views.mask_BN is not None
    own_BN = similarity.diagonal(dim1=1, dim2=2)
    expected = -own_BN[views.mask_BN].log().mean()
    torch.testing.assert_close(method.losses(views)["contrast"], expected)


def test_a_target_that_agrees_gives_a_loss_near_zero_and_another_temperature_counts(
    tiny: Tiny, batch_for: BatchFor
) -> None:
    features = F.normalize(torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    mask_BN = torch.ones(2, 16, dtype=torch.bool)
    assert patch_infonce(features, features, mask_BN, 0.02).item() < 1e-6
    method, other = tiny(ConMIM), tiny(ConMIM, changes={"temperature": 0.2})
    views: Views = method.make_views(batch_for(method))
    assert not torch.equal(method.losses(views)["contrast"], other.losses(views)["contrast"])


@pytest.mark.parametrize("temperature", [0.0, -0.1])
def test_temperatures_of_zero_or_less_are_refused(temperature: Any) -> None:
    with pytest.raises(ValueError, match=rf"^temperature must be above 0, got {temperature}$"):
        ConMIMConfig(temperature=temperature)


BLOCKWISE = MaskConfig(kind="blockwise", ratio=0.383, min_block_patches=16)
NEEDED: dict[str, Any] = {"projected": "needed"}


def exact(method: ConMIM, views: Views) -> Views:
    """The method and its views in double precision."""
    method.double()
    assert views.target is not None
    return replace(views, online=views.online.double(), target=views.target.double())


def by_hand(method: ConMIM, views: Views, queries_BN: torch.Tensor) -> torch.Tensor:
    """InfoNCE of the queries, projected by themselves, with all patches of the target, projected by themselves."""
    assert views.mask_BN is not None
    tokens_BLD = method.encoder(views.online, replace_BN=views.mask_BN)
    online_QE = F.normalize(method.projector(tokens_BLD[:, 1:][queries_BN]), dim=-1)
    target_BNE = F.normalize(method.target_projector(method.target_encoder(views.target)[:, 1:]), dim=-1)
    sample_Q, label_Q = queries_BN.nonzero().unbind(dim=1)
    logits_QN = torch.einsum("qe,qne->qn", online_QE, target_BNE[sample_Q]) / method.config.temperature
    return F.cross_entropy(logits_QN, label_Q)


@pytest.mark.parametrize("changes", [NEEDED, NEEDED | {"mask": BLOCKWISE}], ids=["random", "blockwise"])
def test_needed_projects_queries_and_keys_alone(tiny: Tiny, batch_for: BatchFor, changes: dict[str, Any]) -> None:
    method = tiny(ConMIM, patch=4, changes=changes)
    views = exact(method, method.make_views(batch_for(method)))
    assert views.mask_BN is not None
    loss = method.losses(views)["contrast"]
    torch.testing.assert_close(loss, by_hand(method, views, views.mask_BN))
    everything = tiny(ConMIM, patch=4, changes=changes | {"projected": "all"}).double()
    assert not torch.allclose(loss, everything.losses(views)["contrast"])


@pytest.mark.parametrize("mask", [ConMIMConfig().mask, BLOCKWISE], ids=["random", "blockwise"])
def test_a_share_of_the_hidden_patches_are_queries(tiny: Tiny, batch_for: BatchFor, mask: MaskConfig) -> None:
    method = tiny(ConMIM, patch=4, changes=NEEDED | {"mask": mask, "query_share": 0.3})
    views = exact(method, method.make_views(batch_for(method)))
    assert views.mask_BN is not None
    torch.manual_seed(5)
    loss = method.losses(views)["contrast"]
    torch.manual_seed(5)
    queries_BN, _ = draw_queries(views.mask_BN, 0.3, hidden=views.hidden)
    torch.testing.assert_close(loss, by_hand(method, views, queries_BN))
    # Others are drawn in the next step.
    assert not torch.equal(loss, method.losses(views)["contrast"])


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.1, 1), (0.5, 5), (0.7, 7), (0.71, 8), (1.0, 10)])
def test_queries_are_hidden_patches_all_equally_likely(known: bool, share: float, count: int) -> None:
    torch.manual_seed(0)
    mask_N = torch.arange(16) % 8 < 5
    mask_BN = mask_N.expand(2000, -1)
    queries_BN, queries = draw_queries(mask_BN, share, hidden=10 if known else None)
    assert queries == (count if known else None)
    assert (queries_BN.sum(dim=1) == count).all()
    assert not (queries_BN & ~mask_BN).any()
    torch.testing.assert_close(
        queries_BN.float().mean(dim=0)[mask_N], torch.full((10,), count / 10), atol=0.05, rtol=0.0
    )


def test_projections_lie_at_their_places_and_others_are_zero() -> None:
    torch.manual_seed(0)
    head = MLPHead(6, MLPHeadConfig(hidden=8, out=4, layers=3, last_norm=True))
    patches_BND = torch.randn(3, 5, 6)
    chosen_BN = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 1, 1, 0], [0, 1, 0, 0, 1]]).bool()
    for count in (2, None):
        projected_BNE = project_some(head, patches_BND, chosen_BN, count=count)
        torch.testing.assert_close(projected_BNE[chosen_BN], head(patches_BND[chosen_BN]))
        assert (projected_BNE[~chosen_BN] == 0).all()


def test_visible_tokens_no_longer_shape_the_statistics(tiny: Tiny, batch_for: BatchFor) -> None:
    """They still reach the queries through attention, so the projector is looked at by itself."""
    seen: dict[str, list[int]] = {}
    for projected in ("all", "needed"):
        method = tiny(ConMIM, changes={"projected": projected})
        views = method.make_views(batch_for(method))
        rows: list[int] = []
        for head in (method.projector, method.target_projector):
            head.layers[1].register_forward_pre_hook(lambda _, given, rows=rows: rows.append(len(given[0])))
        method.losses(views)
        seen[projected] = rows
    hidden = masked_count(ConMIMConfig().mask, (4, 4))
    assert hidden is not None
    assert seen == {"all": [4 * 17, 4 * 17], "needed": [4 * hidden, 4 * 16]}


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_every_parameter_of_the_cheaper_forms_learns(tiny: Tiny, batch_for: BatchFor, share: float) -> None:
    method = tiny(ConMIM, changes=NEEDED | {"query_share": share})
    method.losses(method.make_views(batch_for(method)))["contrast"].backward()
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def flops(tiny: Tiny, batch_for: BatchFor, changes: dict[str, Any]) -> int:
    method = tiny(ConMIM, patch=4, changes=changes)
    views = method.make_views(batch_for(method))
    with FlopCounterMode(display=False) as counter:
        method.losses(views)["contrast"].backward()
    return int(counter.get_total_flops())


def test_work_falls_by_the_tokens_that_are_not_projected(tiny: Tiny, batch_for: BatchFor) -> None:
    everything = flops(tiny, batch_for, {})
    hidden, patches, out = 48, 64, 32
    a_token = 2 * (48 * 64 + 64 * 64 + 64 * out)
    # The online projector runs forward and twice as much backward.
    saved = 4 * a_token * (3 * (patches + 1 - hidden) + 1)
    assert everything - flops(tiny, batch_for, NEEDED) == saved
    logits = 4 * 2 * (2 * (hidden // 2) * patches * out)
    half = flops(tiny, batch_for, NEEDED | {"query_share": 0.5})
    assert everything - half == saved + 4 * a_token * 3 * hidden // 2 + logits


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_shares_of_queries_outside_0_to_1_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match=rf"^query share must lie above 0 and be at most 1, got {share}$"):
        ConMIMConfig(projected="needed", query_share=share)


def test_a_share_that_would_save_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^a query share of 0\.5 saves nothing while all tokens are projected; set "):
        ConMIMConfig(query_share=0.5)


@torch.no_grad()
def test_pictures_are_alike_whatever_is_projected_in_training(tiny: Tiny, batch_for: BatchFor) -> None:
    method, cheap = tiny(ConMIM).eval(), tiny(ConMIM, changes=NEEDED | {"query_share": 0.5}).eval()
    views = method.make_views(batch_for(method))
    one, other = method.inspect(views).similarity_BNN, cheap.inspect(views).similarity_BNN
    assert one is not None
    assert other is not None
    assert torch.equal(one, other)
