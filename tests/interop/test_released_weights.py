"""Checkpoints in every authors' layout, made from the golden cases: features are the same before and after."""

from __future__ import annotations

import argparse
import copy
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unmask.interop.authors import AUTHORS
from unmask.interop.authors.case import Json, Tensors
from unmask.interop.checkpoint_file import read_leaves
from unmask.interop.golden import load_initial_values
from unmask.interop.released import RELEASES
from unmask.interop.weights_in import Imported, Wanted, import_weights
from unmask.methods import METHODS
from unmask.methods.base import Method
from unmask.models.encoder import Encoder

Read = Callable[[str], tuple[Json, Tensors]]
VARIANTS = {"mixmask_both": "mixmask", "can_clean": "can", "m3ae_medical": "m3ae"}
# One case a method whose encoder is a ViT or ConvMAE's hybrid; the tiny convolutions of MixMask's others are nobody's.
CASES = [
    "beit",
    "bootmae",
    "byol",
    "cae",
    "can",
    "cmae",
    "conmim_block",
    "convmae",
    "data2vec",
    "dino",
    "dmae",
    "extrema",
    "ibot",
    "m3ae",
    "mae",
    "maskfeat",
    "mixmask_vit",
    "mocov3",
    "msn",
    "sim",
    "simclr",
    "simmim",
    "simsiam",
    "supmae",
]
TWO_NETWORKS = ["bootmae", "byol", "cmae", "data2vec", "dino", "extrema", "ibot", "mixmask_vit", "mocov3", "msn", "sim"]
# One of each layout.
OTHER_NETWORK = ["bootmae", "cmae", "data2vec", "dino", "mocov3", "msn", "sim"]


def training_state() -> dict[str, Any]:
    """What training scripts save beside weights."""
    return {
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2), "step": 3}}, "param_groups": [{"lr": 0.1}]},
        "scaler": {"scale": 65536.0},
        "args": argparse.Namespace(output_dir=Path("out"), lr=1e-3),
        "epoch": np.float64(799),
    }


def prefixed(tensors: Tensors, *, old: str = "", new: str = "") -> Tensors:
    """Those whose names begin with `old`, with `new` in its place."""
    return OrderedDict((new + name.removeprefix(old), value) for name, value in tensors.items() if name.startswith(old))


def without(tensors: Tensors, *prefixes: str) -> Tensors:
    return {name: value for name, value in tensors.items() if not name.startswith(prefixes)}


def as_released(name: str, tensors: Tensors) -> dict[str, Any]:
    """A checkpoint as the authors of a method save it."""
    if name in ("dino", "ibot"):
        networks = {
            "student": prefixed(tensors, old="student.", new="module."),
            "teacher": prefixed(tensors, old="teacher."),
        }
        return training_state() | networks | {f"{name}_loss": prefixed(tensors, old=f"{name}_loss.")}
    if name == "msn":
        networks = {part: prefixed(tensors, old=f"{part}.", new="module.") for part in ("encoder", "target_encoder")}
        return training_state() | networks | {"prototypes": tensors["prototypes"]}
    if name in ("data2vec", "bootmae"):
        averaged = prefixed(tensors, old="ema.")
        return training_state() | {"model": without(tensors, "ema."), "model_ema": averaged}
    if name in ("mocov3", "simclr", "simsiam", "mixmask"):
        return training_state() | {"arch": "vit", "state_dict": prefixed(tensors, new="module.")}
    if name in ("cmae", "byol", "m3ae"):
        history = {"log_scalars": OrderedDict(loss=np.ones(3))}
        return {"meta": {"cfg": "model = dict()", "epoch": 300}, "state_dict": tensors, "message_hub": history}
    if name in ("conmim", "beit"):
        return {"module": tensors, "epoch": 3, "ds_config": {"fp16": True}, "global_steps": 7}
    return training_state() | {"model_state" if name == "maskfeat" else "model": tensors}


def golden_method(read_case: Read, stem: str) -> tuple[str, Method, Tensors, int | None]:
    case, tensors = read_case(stem)
    authors = AUTHORS[case["method"]]
    method = authors.build(case).double()
    load_initial_values(method, case, tensors, authors)
    heads = case.get("heads") or case.get("vision_heads") or case.get("encoder", {}).get("heads")
    values = {name.removeprefix("init."): value for name, value in tensors.items() if name.startswith("init.")}
    return VARIANTS.get(case["method"], case["method"]), method.eval(), values, heads


def assert_same_function(imported: Imported, encoder: Encoder, *, bgr: bool) -> None:
    """The imported encoder computes what the method's computes, in float64."""
    found = imported.encoder.encoder.double().eval()
    encoder = copy.deepcopy(encoder)
    if not found.config.final_norm:  # a target network whose norm nobody has recorded
        encoder.remove_norm()
    images_BCHW = torch.rand(2, 3, *encoder.image_size, dtype=torch.float64)
    with torch.no_grad():
        theirs = encoder(images_BCHW.flip(1) if bgr else images_BCHW)
        torch.testing.assert_close(found(images_BCHW), theirs, rtol=0, atol=1e-12)


def assert_whole_account(imported: Imported, file: Path) -> None:
    """Every tensor of the file is used or left out with a reason, and what changed is among the used."""
    names = {".".join(place) for place in read_leaves(file)}
    assert set(imported.used) | set(imported.left_out) == names
    assert not set(imported.used) & set(imported.left_out)
    assert set(imported.changed) <= set(imported.used.values())
    assert all(imported.left_out.values())


@pytest.mark.parametrize("stem", CASES)
def test_a_released_file_gives_the_encoder_that_its_authors_evaluate(
    stem: str, read_case: Read, tmp_path: Path
) -> None:
    name, method, tensors, heads = golden_method(read_case, stem)
    file = tmp_path / "checkpoint.pth"
    # Old files are in the older format of torch.save.
    torch.save(as_released(name, tensors), file, _use_new_zipfile_serialization=stem not in ("dino", "mae", "cmae"))
    imported = import_weights(str(file), Wanted(source=name, heads=heads))
    assert_whole_account(imported, file)
    assert imported.encoder.method == name
    assert_same_function(imported, method.exported(), bgr=name == "cmae")
    assert imported.network == (RELEASES[name].network if stem in TWO_NETWORKS else None)
    assert any("pre-training" in why for why in imported.left_out.values())


@pytest.mark.parametrize("stem", OTHER_NETWORK)
def test_either_network_can_be_taken(stem: str, read_case: Read, tmp_path: Path) -> None:
    name, method, tensors, heads = golden_method(read_case, stem)
    file = tmp_path / "checkpoint.pth"
    torch.save(as_released(name, tensors), file)
    other = "online" if RELEASES[name].network == "target" else "target"
    imported = import_weights(str(file), Wanted(source=name, heads=heads, network=other))
    assert imported.network == other
    assert_whole_account(imported, file)
    encoder = method.get_submodule("encoder" if other == "online" else "target_encoder")
    assert isinstance(encoder, Encoder)
    assert_same_function(imported, encoder, bgr=name == "cmae")


def test_every_method_with_names_of_authors_has_a_release_and_its_network_is_the_one_that_we_export() -> None:
    known = {VARIANTS.get(name, name) for name in AUTHORS}
    assert known <= set(RELEASES)
    exported = {name for name in METHODS if getattr(METHODS[name].Config(), "export", None) == "target"}
    assert {name for name, release in RELEASES.items() if release.network == "target"} == exported


@pytest.mark.parametrize("name", ["cmae", "simmim", "dino", "msn"])
def test_an_encoder_that_was_taken_out_of_its_method_is_understood(name: str, read_case: Read, tmp_path: Path) -> None:
    _, method, tensors, heads = golden_method(read_case, name)
    before = f"teacher.{RELEASES[name].bare}" if name in ("dino", "ibot") else RELEASES[name].bare
    file = tmp_path / "backbone.pth"
    torch.save(without(prefixed(tensors, old=before), "head."), file)
    imported = import_weights(str(file), Wanted(source=name, heads=heads))
    assert imported.network is None
    encoder = method.get_submodule("target_encoder" if before.startswith("teacher.") else "encoder")
    assert isinstance(encoder, Encoder)
    assert_same_function(imported, encoder, bgr=name == "cmae")


def test_channels_in_the_order_of_cmae_are_turned_with_their_normalisation(read_case: Read, tmp_path: Path) -> None:
    _, method, tensors, heads = golden_method(read_case, "cmae")
    file = tmp_path / "cmae.pth"
    torch.save(as_released("cmae", tensors), file)
    turned = import_weights(str(file), Wanted(source="cmae", heads=heads))
    assert turned.encoder.mean == (0.406, 0.456, 0.485)
    assert turned.encoder.std == (0.225, 0.224, 0.229)
    assert "blue" in turned.changed["patch_embed.proj.weight"]
    kept = import_weights(str(file), Wanted(source="cmae", heads=heads, bgr=False))
    assert kept.encoder.mean == (0.485, 0.456, 0.406)
    assert not kept.changed
    assert_same_function(kept, method.exported(), bgr=False)


def test_a_fine_tuned_file_of_beits_kind_has_a_table_in_every_block(read_case: Read, tmp_path: Path) -> None:
    """`norm` is gone there, as the mean of tokens is normed by `fc_norm`, and indices are saved beside tables."""
    _, method, tensors, _ = golden_method(read_case, "beit")
    table = tensors["rel_pos_bias.relative_position_bias_table"]
    tuned = without(tensors, "rel_pos_bias.", "norm.", "lm_head.", "mask_token")
    for block in range(sum(name.endswith("norm1.bias") for name in tensors)):
        tuned[f"blocks.{block}.attn.relative_position_bias_table"] = table
        tuned[f"blocks.{block}.attn.relative_position_index"] = torch.zeros(65, 65, dtype=torch.long)
    tuned |= {"fc_norm.weight": torch.ones(48), "head.weight": torch.zeros(5, 48), "head.bias": torch.zeros(5)}
    file = tmp_path / "mp_rank_00_model_states.pt"
    torch.save({"module": {name: value.half() for name, value in tuned.items()}}, file)
    imported = import_weights(str(file), Wanted(source="beit"))
    assert imported.encoder.encoder.config.position == "relative_blocks"
    assert {"classifier, after the encoder", "computed, not learnt"} == set(imported.left_out.values())
    assert "float16 to float32" in imported.changed["blocks.0.norm1.weight"]
    found, encoder = imported.encoder.encoder.double().eval(), copy.deepcopy(method.exported())
    encoder.remove_norm()
    images_BCHW = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(found(images_BCHW), encoder(images_BCHW), rtol=0.02, atol=0.02)


def test_averaged_weights_are_taken_as_the_target_where_they_stand_beside(read_case: Read, tmp_path: Path) -> None:
    _, _, tensors, heads = golden_method(read_case, "mae")
    file = tmp_path / "both.pth"
    averaged = {name: value + 1 for name, value in tensors.items()}
    torch.save({"model": tensors, "model_ema": averaged}, file)
    plain = import_weights(str(file), Wanted(source="mae", heads=heads))
    taken = import_weights(str(file), Wanted(source="mae", heads=heads, network="target"))
    for imported, values in ((plain, tensors), (taken, averaged)):
        assert_whole_account(imported, file)
        state: dict[str, Tensor] = imported.encoder.encoder.network.state_dict()
        assert torch.equal(state["norm.weight"], values["norm.weight"])


@pytest.mark.parametrize(
    ("entry", "wanted", "sentence"),
    [
        ("model", {"source": "mae"}, "give --heads"),
        ("model", {"source": "dino", "heads": 3, "network": "target"}, "leave --network out"),
        ("model", {"source": "simclr", "heads": 3, "network": "online"}, None),
        ("weights", {"source": "mae", "heads": 3}, "holds no encoder"),
        ("model", {"source": "msn", "heads": 5}, "not divisible by its 5 heads"),
        ("model", {"source": "timm:vit_tiny_patch16_224", "encoder": "resnet50"}, "name two networks"),
        ("model", {"source": "timm:vit_nope"}, "timm knows no model"),
        ("model", {"source": "mae", "heads": 3, "grid": (3, 3)}, "no grid of 3x3"),
        ("model", {"source": "mae", "heads": 3, "encoder": "beit_base_patch16_224"}, "lacks"),
        ("model", {"source": "mae", "heads": 3, "mean": (0.5,)}, "--mean has 1 values"),
        ("model", {"source": "mae", "heads": 3, "std": (1.0, 0.0, 1.0)}, "--std must be above 0"),
        ("model", {"source": "mae", "heads": 3, "image_size": (60, 64)}, "not divisible by the patch size"),
        ("model", {"source": "mae", "heads": 3, "patch_size": 0}, "at least 1 pixel"),
        ("model", {"source": "mae", "heads": 3, "channels": 0}, "at least 1 channel"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(
    entry: str, wanted: dict[str, Any], sentence: str | None, read_case: Read, tmp_path: Path
) -> None:
    _, _, tensors, _ = golden_method(read_case, "mae")
    file = tmp_path / "mae.pth"
    torch.save({entry: tensors}, file)
    if sentence is None:  # names of an encoder alone are every method's
        import_weights(str(file), Wanted(**wanted))
        return
    with pytest.raises(ValueError, match=sentence):
        import_weights(str(file), Wanted(**wanted))


def test_a_missing_tensor_is_named(read_case: Read, tmp_path: Path) -> None:
    _, _, tensors, _ = golden_method(read_case, "mae")
    del tensors["blocks.1.mlp.fc1.bias"]
    file = tmp_path / "mae.pth"
    torch.save({"model": tensors}, file)
    with pytest.raises(ValueError, match=r"lacks 1 tensors of the encoder .*blocks\.1\.mlp\.fc1\.bias"):
        import_weights(str(file), Wanted(source="mae", heads=3))
