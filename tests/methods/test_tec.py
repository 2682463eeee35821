"""TEC against its formulas in slow loops, and what its teacher must be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from unmask.data.batch import Batch
from unmask.masking import masked_count
from unmask.methods.tec import TEC, TECConfig
from unmask.models.build import build_vit
from unmask.models.pretrained import encoder_file, open_encoder
from unmask.training.checkpoint import write_atomically

Tiny = Callable[..., TEC]
BatchFor = Callable[..., Batch]
Array = NDArray[np.float64]


def softmax(values: Array) -> Array:
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def array(tensor: torch.Tensor) -> Array:
    return tensor.detach().double().numpy()


def teacher_by_hand(method: TEC, images: torch.Tensor) -> tuple[Array, Array]:
    """Mean of the last blocks' patch tokens, and the last attention's logits, block by block on timm's own network."""
    plain = images * torch.tensor(method.config.std)[:, None, None] + torch.tensor(method.config.mean)[:, None, None]
    vit: Any = method.teacher.encoder.vit
    mean, std = (torch.tensor(values)[:, None, None] for values in (method.teacher.mean, method.teacher.std))
    tokens = vit.patch_embed((plain - mean) / std)
    tokens = torch.cat([vit.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + vit.pos_embed
    outputs = []
    for number, block in enumerate(vit.blocks):
        if number == len(vit.blocks) - 1:
            heads = block.attn.num_heads
            query, key, _ = block.attn.qkv(block.norm1(tokens)).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
            attention = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        tokens = block(tokens)
        outputs.append(tokens[:, 1:])
    kept = outputs[-method.config.feature_blocks :]
    return array(torch.stack(kept).mean(dim=0)), array(attention)


@torch.no_grad()
@pytest.mark.parametrize(("temperature", "salient", "blocks"), [(1.8, 15, 2), (0.7, 3, 1), (1.0, 40, 3)])
def test_both_losses_are_the_formulas_in_loops(
    tiny: Tiny, batch_for: BatchFor, temperature: float, salient: int, blocks: int
) -> None:
    changes = {"relation_temperature": temperature, "salient": salient, "feature_blocks": blocks}
    method = tiny(TEC, changes=changes | {"relation_weight": 0.5}).eval()
    views = method.make_views(batch_for(method))
    assert views.mask_BN is not None
    features, attention = teacher_by_hand(method, views.online)
    samples, patches, width = features.shape
    heads = attention.shape[1]

    outputs = method.encoder.block_outputs(views.online, (0, 1), drop_BN=views.mask_BN)
    adapted = method.adapter([outputs[0], method.encoder.norm(outputs[1])])
    decoded = method.decoder(adapted, views.mask_BN)
    # The second decoder in one piece: its own entry and exit around the first one's blocks.
    entered = method.relation_decoder.place(adapted, views.mask_BN)
    related = method.relation_decoder.norm(method.decoder.blocks(entered))
    queries, keys = np.split(array(method.relation_decoder.predict(related)), 2, axis=2)
    predicted = array(method.decoder.predict(decoded))

    errors, entropies = [], []
    for sample in range(samples):
        for patch in range(patches):
            if views.mask_BN[sample, patch]:
                column = features[sample]
                target = (column[patch] - column.mean(axis=0)) / np.sqrt(column.var(axis=0, ddof=1) + 1e-6)
                errors.append(np.mean((predicted[sample, patch] - target) ** 2))
        attended = attention[sample, :, 0, 1:].mean(axis=0)
        rows = [0, *(1 + np.argsort(-attended)[:salient])]
        assert len(rows) == 1 + min(salient, patches)
        for row in rows:
            for head in range(heads):
                part = slice(head * width // heads, (head + 1) * width // heads)
                guess = softmax(keys[sample, 1:, part] @ queries[sample, row, part] / np.sqrt(width))
                truth = softmax(attention[sample, head, row, 1:] / temperature)
                entropies.append(-np.sum(truth * np.log(guess)))
    losses = method.losses(views)
    assert list(losses) == ["feature", "relation"]
    assert losses["feature"].item() == pytest.approx(np.mean(errors), rel=1e-4)
    assert losses["relation"].item() == pytest.approx(0.5 * np.mean(entropies), rel=1e-5)


def test_defaults_are_the_authors_for_an_mae_teacher() -> None:
    config = TECConfig()
    assert masked_count(config.mask, (14, 14)) == 147
    assert (config.decoder.depth, config.feature_blocks, config.adapter_group) == (2, 2, 3)
    assert (config.salient, config.relation_temperature) == (15, 1.8)


def test_the_teacher_never_learns_and_has_no_noise(tiny: Tiny, batch_for: BatchFor) -> None:
    """Its file says stochastic depth of 0.5, and the method is in train mode."""
    method = tiny(TEC).train()
    views = method.make_views(batch_for(method))
    before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    first, second = method.lesson(views.online), method.lesson(views.online)
    assert torch.equal(first.features_BNW, second.features_BNW)
    torch.stack(list(method.losses(views).values())).sum().backward()
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    method.update_target(0.5)
    assert all(torch.equal(value, before[name]) for name, value in method.teacher.state_dict().items())


@torch.no_grad()
def test_the_student_sees_visible_patches_only(tiny: Tiny, batch_for: BatchFor) -> None:
    method = tiny(TEC)
    views = method.make_views(batch_for(method))
    assert views.mask_BN is not None
    hidden_B1HW = views.mask_BN.view(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    changed = torch.where(hidden_B1HW, torch.zeros(()), views.online)
    student = [method._adapted(replace(views, online=images), views.mask_BN) for images in (views.online, changed)]
    assert torch.equal(*student)
    lessons = [method.lesson(images).features_BNW for images in (views.online, changed)]
    assert not torch.equal(*lessons)


def test_a_missing_teacher_is_asked_for() -> None:
    sentence = (
        r"^TEC learns from a pre-trained encoder; name a run folder, an encoder file or timm:NAME as its teacher$"
    )
    with pytest.raises(ValueError, match=sentence):
        TEC(TECConfig())
    with pytest.raises(ValueError, match=r"^there is no run folder or encoder file nowhere$"):
        TEC(TECConfig(teacher="nowhere"))


def test_the_student_can_start_from_the_teacher(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(TEC).config
    path = tmp_path / "same.safetensors"
    torch.manual_seed(3)
    encoder = build_vit(replace(config.encoder, position="learned"), mask_token=False)
    write_atomically(path, *encoder_file(encoder, mean=(0.5,) * 3, std=(0.25,) * 3, facts={}))
    student = TEC(replace(config, teacher=str(path), from_teacher=True)).encoder.network.state_dict()
    teacher = open_encoder(str(path)).encoder.network.state_dict()
    assert all(torch.equal(value, teacher[name]) for name, value in student.items())
    sentence = rf"^the encoder cannot start from the teacher {config.teacher}, which is another network$"
    with pytest.raises(ValueError, match=sentence):
        TEC(replace(config, from_teacher=True))


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("feature_blocks", 0, "feature_blocks must be at least 1, got 0"),
        ("adapter_group", 0, "adapter_group must be at least 1, got 0"),
        ("salient", 0, "salient must be at least 1, got 0"),
        ("relation_temperature", 0.0, "relation_temperature must be above 0, got 0.0"),
        ("relation_weight", -1.0, "relation_weight must be 0 or more, got -1.0"),
    ],
)
def test_settings_out_of_range_are_refused(field: str, value: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        TECConfig(**{field: value})


def test_more_blocks_than_the_teacher_has_are_refused(tiny: Tiny) -> None:
    with pytest.raises(ValueError, match=r"^the teacher has 3 blocks, not 4$"):
        tiny(TEC, changes={"feature_blocks": 4})
