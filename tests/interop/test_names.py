"""The authors' names: each has one place here, every place has a name, and decay rules are theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unmask.interop.authors import AUTHORS
from unmask.interop.authors.case import Json, Tensors, encoder_config, per_step
from unmask.interop.authors.names import our_name
from unmask.models.positions import sincos_positions

Read = Callable[[str], tuple[Json, Tensors]]
CASES = sorted(path.stem for path in (Path(__file__).parents[1] / "golden").glob("*.json"))
# What the authors build and never use.
UNUSED = {
    "conmim": ("lm_head.",),
    "sim": ("mm_mask_token",),
    # CLIP's tower of text, and RoBERTa's pooler.
    "m3ae_medical": (
        *(f"vision_encoder.{part}" for part in ("token_embedding", "positional_embedding", "ln_final")),
        "language_encoder.pooler",
    ),
    # The target's heads and decoders, and BootMAE's final norm of the target.
    "data2vec": ("ema.lm_head.",),
    "bootmae": tuple(f"ema.{part}" for part in ("de_pos_embed", "decode_", "down", "lm_head", "mask_token", "norm.")),
}
# Whose authors decay biases and norms too; the JSON says so in its notes.
DECAY_ALL = {"mocov3", "simsiam", "mixmask", "mixmask_both"}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, read_case: Read) -> tuple[Json, Tensors]:
    """Every case in turn."""
    return read_case(str(request.param))


def _their_names(tensors: Tensors) -> list[str]:
    return [key.removeprefix("init.") for key in tensors if key.startswith("init.")]


def test_every_name_of_theirs_has_one_place_of_its_own(case: tuple[Json, Tensors]) -> None:
    json, tensors = case
    authors = AUTHORS[json["method"]]
    state = authors.build(json).state_dict()
    mapped = {theirs: our_name(authors.names, theirs) for theirs in _their_names(tensors)}
    unused = UNUSED.get(json["method"], ())
    assert all((ours is None) is theirs.startswith(unused) for theirs, ours in mapped.items())
    places = [ours for ours in mapped.values() if ours is not None]
    assert len(set(places)) == len(places)
    assert set(places) <= set(state)
    # And nothing of ours is left without a name, except copies that the target starts as, and counters.
    left = {ours for ours in set(state) - set(places) if not ours.endswith(("num_batches_tracked", "queue.position"))}
    assert all(ours.startswith("target_") and ours.removeprefix("target_") in places for ours in left)


def test_the_targets_names_are_the_online_networks(case: tuple[Json, Tensors]) -> None:
    json, tensors = case
    authors = AUTHORS[json["method"]]
    for theirs in _their_names(tensors) if authors.target_names else []:
        online, target = our_name(authors.names, theirs), our_name(authors.target_names, theirs)
        assert target == (None if online is None else f"target_{online}")


def test_every_recorded_norm_has_a_name(case: tuple[Json, Tensors]) -> None:
    json, _ = case
    authors = AUTHORS[json["method"]]
    state = authors.build(json).state_dict()
    tables = {
        "first_step_grad_norms": authors.names,
        "final_norms": authors.names,
        "final_student_norms": authors.names,
        "final_teacher_norms": authors.target_names,
    }
    for key, table in tables.items():
        for theirs in json.get(key, {}):
            ours = our_name(table, theirs)
            assert ours is None or ours in state, (key, theirs)


def test_a_star_stands_for_the_same_on_both_sides_and_the_first_row_wins() -> None:
    table = (("gone.*", None), ("a.*.b.*", "x.*.y.*"), ("a.*", "z.*"), ("exact", "one"))
    assert our_name(table, "a.3.b.weight") == "x.3.y.weight"
    assert our_name(table, "a.3.c") == "z.3.c"
    assert our_name(table, "exact") == "one"
    assert our_name(table, "gone.weight") is None
    for unknown in ("exactly", "b", "aXb", ""):
        with pytest.raises(KeyError):
            our_name(table, unknown)


@pytest.mark.parametrize(
    ("name", "theirs", "width"),
    [
        ("mae", "pos_embed", "embed_dim"),
        ("mae", "decoder_pos_embed", "decoder_dim"),
        ("cmae", "backbone.pos_embed", "embed_dim"),
        ("cmae", "target_backbone.pos_embed", "embed_dim"),
        ("cmae", "pixel_decoder.decoder_pos_embed", "decoder_dim"),
        ("cmae", "feature_decoder.decoder_pos_embed", "decoder_dim"),
    ],
)
def test_sincos_positions_are_the_authors(read_case: Read, name: str, theirs: str, width: str) -> None:
    json, tensors = read_case(name)
    side = json["image"] // json["patch"]
    ours = sincos_positions((side, side), json[width])
    if name == "cmae":
        # Theirs put rows first, MAE's columns: the same network with the tokens' dimensions in another order.
        columns, rows = ours.chunk(2, dim=-1)
        ours = torch.cat([rows, columns], dim=-1)
    torch.testing.assert_close(ours, tensors[f"init.{theirs}"], rtol=0, atol=1e-6)


def _left_undecayed(json: Json, theirs: str, value: Tensor) -> bool:
    """The rule of a case's JSON, in the authors' names."""
    if "optimizer_groups" in json:
        groups = json["optimizer_groups"]
        assert (theirs in groups["decay"]) != (theirs in groups["no_decay"])
        return theirs in groups["no_decay"]
    if "no_decay_name_parts" in json:
        return any(part in theirs for part in json["no_decay_name_parts"])
    if json["method"] in DECAY_ALL:
        return False
    if json.get("no_decay", "")[:16] == "names containing":
        parts = json["no_decay"].removeprefix("names containing ").split(" (")[0].split(", ")
        return any(part in theirs for part in parts)
    if isinstance(json.get("no_decay"), list):
        return theirs.removeprefix("student.") in json["no_decay"]
    return (
        value.ndim <= 1
        or theirs.endswith(".bias")
        # What follows a semicolon explains what is decayed.
        or (theirs.endswith("cls_token") and theirs in json.get("no_decay", "").split(";")[0])
    )


def test_decayed_are_exactly_the_authors_parameters(case: tuple[Json, Tensors]) -> None:
    json, tensors = case
    authors = AUTHORS[json["method"]]
    method = authors.build(json)
    trainable = {name: value for name, value in method.named_parameters() if value.requires_grad}
    seen = set()
    for theirs in _their_names(tensors):
        ours = our_name(authors.names, theirs)
        if ours in trainable:
            seen.add(ours)
            undecayed = _left_undecayed(json, theirs, tensors[f"init.{theirs}"])
            assert method.rule(ours, trainable[ours]).decay is not undecayed, theirs
    assert seen == set(trainable)


def test_simmims_groups_are_whole(read_case: Read) -> None:
    json, _ = read_case("simmim")
    authors = AUTHORS["simmim"]
    method = authors.build(json)
    groups: dict[str, set[str]] = {"decay": set(), "no_decay": set()}
    for name, value in method.named_parameters():
        groups["decay" if method.rule(name, value).decay else "no_decay"].add(name)
    for group, theirs in json["optimizer_groups"].items():
        assert {our_name(authors.names, name) for name in theirs} == groups[group]


def test_simmims_head_is_their_convolution_with_outputs_renamed(read_case: Read) -> None:
    json, _ = read_case("simmim")
    convert = AUTHORS["simmim"].convert
    assert convert is not None
    patch, width = 2, 3
    values = torch.arange(3.0 * patch * patch * width).reshape(3 * patch * patch, width, 1, 1)
    ours = convert(json | {"patch": patch}, "decoder.0.weight", values)
    for channel in range(3):
        for row in range(patch):
            for column in range(patch):
                mine, theirs = (row * patch + column) * 3 + channel, (channel * patch + row) * patch + column
                assert torch.equal(ours[mine], values[theirs, :, 0, 0])
    assert convert(json, "encoder.norm.bias", values) is values


def test_quantities_of_every_step_are_found_wherever_they_are_recorded() -> None:
    assert per_step({}, {"lr": torch.tensor([1.0, 2.0])}, "lr", 2) == [1.0, 2.0]
    assert per_step({"lr_per_step": [1, 2]}, {}, "lr", 2) == [1.0, 2.0]
    assert per_step({"lr": 3}, {}, "lr", 2) == [3.0, 3.0]
    assert per_step({}, {}, "lr", 2) is None


def test_a_case_may_have_images_that_are_not_square() -> None:
    sizes = {"patch": 4, "embed_dim": 32, "depth": 1, "heads": 2}
    config = encoder_config(sizes | {"image": [32, 64]})
    assert (config.image_height, config.image_width) == (32, 64)
    assert encoder_config(sizes | {"image": 32}).image_width == 32
