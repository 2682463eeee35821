"""Every golden case agrees, and every spoilt one does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from unmask.interop.authors import AUTHORS
from unmask.interop.authors.case import Json, Tensors
from unmask.interop.authors.names import our_name
from unmask.interop.golden import LOSS_TOLERANCE, NORM_TOLERANCE, Verdict, difference, find_cases, replay, verify
from unmask.methods import METHODS
from unmask.methods.base import Method
from unmask.methods.cmae import CMAE
from unmask.methods.conmim import ConMIM
from unmask.methods.simmim import SimMIM
from unmask.optimisation import ParameterRule

Read = Callable[[str], tuple[Json, Tensors]]
Write = Callable[[Json, Tensors], Path]
CASES = find_cases(Path(__file__).parents[1] / "golden")
# Names that cases give to variants of a method.
VARIANTS = {"can_clean", "mixmask_both"}
# Methods of whose authors' code no case was recorded.
THEIR_NAMES = {"m3ae": "m3ae_medical"}
WITHOUT_CASES = {"beit_v2", "mc_beit", "peco", "igpt", "tec", "splitmask", "cim", "mim"}
# A weight to alter where a network has no attention.
CONVOLUTION = "encoder_q.features.0.weight"
# Far above the tolerances, far below what a wrong formula gives.
SLACK = 100


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_every_case_agrees(path: Path) -> None:
    verdict = verify(path)
    assert verdict.agrees, verdict
    assert verdict.reason == ""
    errors = (verdict.loss_error, verdict.grad_error, verdict.norm_error, verdict.prediction_error)
    assert all(error is None or error <= LOSS_TOLERANCE for error in errors)
    assert None not in errors[:3]


def test_every_method_has_a_case_and_the_authors_names() -> None:
    with_cases = {THEIR_NAMES.get(name, name) for name in set(METHODS) - WITHOUT_CASES}
    assert set(AUTHORS) - VARIANTS == with_cases
    assert {json.loads(path.read_text())["method"] for path in CASES} - VARIANTS == with_cases


def test_a_verdict_is_a_row_of_json(golden: Path) -> None:
    row = verify(golden / "mae.json").as_dict()
    keys = ["case", "method", "agrees", "loss_error", "grad_error", "norm_error", "prediction_error", "reason"]
    assert list(row) == keys
    assert json.loads(json.dumps(row)) == row
    assert (row["case"], row["method"], row["agrees"]) == ("mae", "mae", True)


def test_difference_is_relative_absolute_near_zero_and_infinite_for_nan() -> None:
    assert difference(1.5, 1.0) == pytest.approx(0.5)
    assert difference(-3.0, -2.0) == pytest.approx(0.5)
    assert difference(3e-8, 1e-8) == pytest.approx(2e-8)
    assert difference(float("nan"), 1.0) == difference(1.0, float("nan")) == float("inf")


# The check can fail: one small change to a case, or to the method, and it disagrees.


def _disagrees(verdict: Verdict) -> Verdict:
    assert not verdict.agrees
    assert verdict.reason == "differs", verdict
    return verdict


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_one_altered_initial_weight_is_noticed(path: Path, read_case: Read, write_case: Write) -> None:
    case, tensors = read_case(path.stem)
    # Sorted: a file has no order of its own, and BootMAE's target has blocks of which nothing follows.
    name = next(
        name
        for name in sorted(tensors)
        if name.endswith((".0.attn.proj.weight", ".0.attn.out_proj.weight", CONVOLUTION))
    )
    tensors[name][0, 0] += 1e-3
    # Layer scale of 1e-5 hides most of a block from the loss, as does what bypasses ConvMAE's ViT blocks.
    slack = 10 if path.stem in ("conmim_block", "convmae") else SLACK
    assert (_disagrees(verify(write_case(case, tensors))).loss_error or 0) > slack * LOSS_TOLERANCE


# One of each kind: targets' norms, several losses, one loss, steps before and after the target moves.
@pytest.mark.parametrize("stem", ["conmim_block", "cmae", "mae", "supmae", "byol", "ibot", "msn", "dino"])
def test_one_altered_number_is_noticed_in_its_own_column(stem: str, read_case: Read) -> None:
    case, tensors = read_case(stem)
    norms = "final_teacher_norms" if "final_teacher_norms" in case else "final_norms"
    authors = AUTHORS[case["method"]]
    table = authors.target_names if norms == "final_teacher_norms" else authors.names
    weight = next(
        name
        for name in reversed(case[norms])
        if name.endswith(("attn.proj.weight", "attn.out_proj.weight", CONVOLUTION))
        and our_name(table, name) is not None
    )
    # BYOL's "paper form" is its "losses" plus 4, SupMAE's "raw" its "weighted" by the weight: one number, recorded
    # twice. MSN's entropy has weight 0.
    unused = ("losses_paper_form", "losses_classification_raw", "losses_entropy")
    for loss in sorted(name for name in tensors if name.startswith("losses") and name not in unused):
        spoilt = tensors | {name: tensors[name].clone() for name in (loss, "grad_norms")}
        spoilt[loss][-1] *= 1 + 1e-7
        spoilt["grad_norms"][-1] *= 1 + 1e-6
        changed = case | {norms: case[norms] | {weight: case[norms][weight] * (1 + 1e-5)}}
        verdict = _disagrees(replay(stem, changed, spoilt, authors))
        assert (verdict.loss_error or 0) > 10 * LOSS_TOLERANCE
        assert verdict.grad_error == pytest.approx(1e-6, rel=1e-3)
        assert verdict.norm_error == pytest.approx(1e-5, rel=1e-3)


@pytest.mark.parametrize("name", ["conmim_block", "mae", "simmim"])
def test_one_altered_gradient_of_a_parameter_is_noticed(read_case: Read, write_case: Write, name: str) -> None:
    case, tensors = read_case(name)
    weight = next(name for name in case["first_step_grad_norms"] if name.endswith("attn.proj.weight"))
    case["first_step_grad_norms"][weight] *= 1.5
    assert (_disagrees(verify(write_case(case, tensors))).grad_error or 0) > SLACK * NORM_TOLERANCE


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("conmim_random32", {"temperature": 0.1001}),
        ("conmim_random32", {"layer_scale": 0.1, "clip": 1.0}),
        ("conmim_block", {"weight_decay": 0.051}),
        ("conmim_block", {"mean": [0.5, 0.5, 0.5]}),
        ("cmae", {"temperature": 0.0701}),
        ("cmae", {"momentum": 0.9961}),
        ("cmae", {"betas": [0.9, 0.96]}),
        ("mae", {"norm_pix_loss": False}),
        ("mae", {"lr": 0.0011}),
        ("mae", {"eps": 1e-7}),
        ("simmim", {"lr_per_step": [0.00025, 0.0005, 0.00075, 0.0011]}),
        ("simmim", {"clip_grad_norm": 0.1}),
    ],
)
def test_one_altered_hyper_parameter_is_noticed(
    read_case: Read, write_case: Write, name: str, changes: dict[str, Any]
) -> None:
    case, tensors = read_case(name)
    tensors.pop("lr", None) if "lr_per_step" in changes else None
    _disagrees(verify(write_case(case | changes, tensors)))


def test_a_gradient_that_should_be_noise_is_noticed(read_case: Read, write_case: Write) -> None:
    case, tensors = read_case("mae")
    norms = case["first_step_grad_norms"]
    spoilt = case | {"first_step_grad_norms": norms | {"norm.weight": 1e-16}}
    assert (_disagrees(verify(write_case(spoilt, tensors))).grad_error or 0) > SLACK * NORM_TOLERANCE
    case, tensors = read_case("cmae")
    norms = case["first_step_grad_norms"]
    assert norms["projector.fc0.bias"] < 1e-10
    spoilt = case | {"first_step_grad_norms": norms | {"projector.fc0.bias": 0}}
    assert verify(write_case(spoilt, tensors)).agrees
    spoilt = case | {"first_step_grad_norms": norms | {"projector.fc0.bias": 1}}
    assert (_disagrees(verify(write_case(spoilt, tensors))).grad_error or 0) > SLACK * NORM_TOLERANCE


def test_momentum_of_every_step_is_read(read_case: Read, write_case: Write) -> None:
    case, tensors = read_case("conmim_random32")
    assert tensors["momentum"].unique().numel() > 1
    spoilt = tensors | {"momentum": tensors["momentum"].clone()}
    spoilt["momentum"][-1] -= 1e-3
    verdict = _disagrees(verify(write_case(case, spoilt)))
    # The last step's momentum can show only in the target's norms.
    assert (verdict.loss_error or 0) <= LOSS_TOLERANCE
    assert (verdict.norm_error or 0) > SLACK * NORM_TOLERANCE


def test_without_recorded_momentum_the_methods_own_schedule_runs(read_case: Read, write_case: Write) -> None:
    case, tensors = read_case("cmae")
    del case["momentum"]
    assert verify(write_case(case, tensors)).agrees
    case, tensors = read_case("conmim_random32")
    del tensors["momentum"]
    del case["momentum_per_step"]
    # The authors' momentum is .996 at step 0 of four, as ours; a constant one does not agree.
    verdict = verify(write_case(case | {"momentum": 0.996}, tensors))
    assert not verdict.agrees


def test_the_target_of_a_method_must_be_the_authors(read_case: Read) -> None:
    case, tensors = read_case("cmae")

    def changed(**changes: Any) -> Callable[[Json], Method]:
        def build(read: Json) -> Method:
            method = AUTHORS["cmae"].build(read)
            assert isinstance(method, CMAE)
            return CMAE(replace(method.config, **changes))

        return build

    for changes in ({"two_tau": False}, {"target_norm": True}, {"contrast_weight": 1.001}):
        authors = replace(AUTHORS["cmae"], build=changed(**changes))
        assert not replay("cmae", case, tensors, authors).agrees, changes


class _DecaysAll(SimMIM):
    """Decays what the authors leave alone."""

    def rule(self, name: str, parameter: torch.Tensor) -> ParameterRule:
        return ParameterRule(decay=True)


class _TargetInEvalMode(ConMIM):
    """Puts the target in eval mode, as other methods do."""

    def update_target(self, progress: float) -> None:
        super().update_target(progress)
        self.target_projector.eval()


@pytest.mark.parametrize(
    ("case_name", "wrong"), [("simmim", _DecaysAll), ("conmim_random32", _TargetInEvalMode)], ids=["decay", "eval mode"]
)
def test_plausible_misreadings_are_noticed(read_case: Read, case_name: str, wrong: type[Any]) -> None:
    case, tensors = read_case(case_name)
    authors = AUTHORS[case["method"]]

    def build(read: Json) -> Method:
        method = wrong(authors.build(read).config)
        assert isinstance(method, Method)
        return method

    assert not replay(case_name, case, tensors, replace(authors, build=build)).agrees


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_never_agree(read_case: Read, write_case: Write, value: float) -> None:
    case, tensors = read_case("mae")
    for name in ("losses", "grad_norms", "pred_first"):
        spoilt = tensors | {name: torch.full_like(tensors[name], value)}
        _disagrees(verify(write_case(case, spoilt)))
    for key in ("final_norms", "first_step_grad_norms"):
        _disagrees(verify(write_case(case | {key: dict.fromkeys(case[key], value)}, tensors)))


def test_a_replay_leaves_nothing_behind(read_case: Read) -> None:
    """Not in the recorded tensors, and not in torch's random state."""
    case, tensors = read_case("conmim_block")
    before = {name: value.clone() for name, value in tensors.items()}
    first = replay("conmim_block", case, tensors, AUTHORS["conmim"])
    assert all(torch.equal(value, before[name]) for name, value in tensors.items())
    assert replay("conmim_block", case, tensors, AUTHORS["conmim"]) == first
    assert isinstance(first, Verdict)
    assert nn.Linear(1, 1).weight.dtype == torch.float32
