"""Golden vectors: do our methods compute what their authors' code computed?

A case is a pair of files, `CASE.json` (every hyper-parameter, expected norms) and `CASE.safetensors` (initial values,
inputs and expected losses of a few training steps). A case is replayed in float64 from the authors' initial values, and
agrees when every loss agrees to 1e-9 relative, and gradients, predictions and final parameter norms to 1e-8.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from unmask.interop.authors import AUTHORS
from unmask.interop.authors.case import Authors, Json, Tensors, optimizer_config, per_step
from unmask.interop.authors.names import NameTable, our_name
from unmask.methods.base import Method
from unmask.optimisation import build_adamw
from unmask.schedule import Schedule

LOSS_TOLERANCE = 1e-9
NORM_TOLERANCE = 1e-8
# A gradient this small beside the whole is zero in theory (a bias before batch norm): Adam makes steps of its noise.
NOISE = 1e-10


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How far a case is from its authors' numbers; errors are the largest relative differences, None where unknown."""

    case: str
    method: str
    agrees: bool
    loss_error: float | None = None
    grad_error: float | None = None
    norm_error: float | None = None
    prediction_error: float | None = None
    reason: str = ""

    def as_dict(self) -> dict[str, object]:
        """The row of `unmask verify --json`."""
        return {
            "case": self.case,
            "method": self.method,
            "agrees": self.agrees,
            "loss_error": self.loss_error,
            "grad_error": self.grad_error,
            "norm_error": self.norm_error,
            "prediction_error": self.prediction_error,
            "reason": self.reason,
        }


def find_cases(folder: Path) -> list[Path]:
    """The JSON files of all cases in a folder, in order. ValueError where there is none."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    cases = sorted(path for path in folder.glob("*.json") if path.with_suffix(".safetensors").exists())
    if not cases:
        raise ValueError(f"{folder} holds no golden cases (pairs of NAME.json and NAME.safetensors)")
    return cases


def verify(path: Path) -> Verdict:
    """Replay one case. Whatever keeps a case from being replayed is a verdict of its own, never an exception."""
    name = path.stem
    try:
        case: Json = json.loads(path.read_text())
        tensors: Tensors = load_file(path.with_suffix(".safetensors"))
        method_name = str(case["method"])
    except Exception as error:  # a case is data of others: nothing in it may stop the check of the next one
        return Verdict(case=name, method="?", agrees=False, reason=f"unreadable: {error}")
    if method_name not in AUTHORS:
        return Verdict(case=name, method=method_name, agrees=False, reason="unknown method")
    try:
        return replay(name, case, tensors, AUTHORS[method_name])
    except Exception as error:
        reason = f"cannot be replayed: {type(error).__name__}: {error}"
        return Verdict(case=name, method=method_name, agrees=False, reason=reason)


def replay(name: str, case: Json, tensors: Tensors, authors: Authors) -> Verdict:
    """Train for the recorded steps in float64 and compare everything that was recorded."""
    method = authors.build(case).double()
    load_initial_values(method, case, tensors, authors)
    steps = int(case["steps"])
    if steps < 1:
        raise ValueError("no steps are recorded")
    rates = per_step(case, tensors, "lr", steps)
    momenta = per_step(case, tensors, "momentum", steps)
    if rates is None:
        raise ValueError("no learning rate is recorded")
    config = optimizer_config(case)
    optimizer = build_adamw(method, method.decays, config)
    trainable = [parameter for parameter in method.parameters() if parameter.requires_grad]

    losses: list[float] = []
    gradients: list[float] = []
    prediction_error = None
    for step in range(steps):
        views = authors.views(case, tensors, step)
        if step == 0 and authors.predict is not None and "pred_first" in tensors:
            with torch.no_grad():
                prediction = authors.predict(method, views)
            prediction_error = relative_difference(prediction, tensors["pred_first"])
        named = method.losses(views)
        losses += [
            difference(named[ours].item(), float(tensors[theirs][step])) for ours, theirs in authors.losses.items()
        ]
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(named.values())).sum().backward()
        total = torch.nn.utils.clip_grad_norm_(trainable, config.clip or float("inf"))
        gradients.append(difference(float(total), float(tensors["grad_norms"][step])))
        if step == 0:
            noisy = noise_parameters(method, float(total))
            gradients += first_gradients(method, case, authors, float(total), clipped=config.clip)
        for group in optimizer.param_groups:
            group["lr"] = rates[step]
        optimizer.step()
        if momenta is not None:
            constant = Schedule(kind="constant", start=momenta[step])
            method.config = replace(method.config, momentum=constant)  # type: ignore[call-arg]
        method.update_target(step / steps)

    norms = final_norms(method, case, authors, noisy)
    if "final_tokens_eval" in tensors:
        prediction_error = max(prediction_error or 0.0, final_tokens_difference(method, case, tensors, authors))
    loss_error, grad_error, norm_error = max(losses), max(gradients), max(norms)
    agrees = loss_error <= LOSS_TOLERANCE and max(grad_error, norm_error, prediction_error or 0.0) <= NORM_TOLERANCE
    return Verdict(
        case=name,
        method=str(case["method"]),
        agrees=agrees,
        loss_error=loss_error,
        grad_error=grad_error,
        norm_error=norm_error,
        prediction_error=prediction_error,
        reason="" if agrees else "differs",
    )


def difference(ours: float, theirs: float) -> float:
    """Relative difference; absolute where the expected value is near zero. Not finite counts as infinitely far."""
    gap = abs(ours - theirs)
    if not math.isfinite(gap):
        return float("inf")
    return gap / abs(theirs) if abs(theirs) > 1e-6 else gap


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """Norm of the difference by norm of what is expected. Shapes must be equal."""
    if ours.shape != theirs.shape:
        raise ValueError(f"a prediction has shape {tuple(ours.shape)}, expected {tuple(theirs.shape)}")
    # A prediction recorded in float32 is compared there: its rounding is not a difference.
    gap = ours.to(theirs.dtype).double() - theirs.double()
    return difference(float(gap.norm() / theirs.double().norm()), 0.0)


def load_initial_values(method: Method, case: Json, tensors: Tensors, authors: Authors) -> None:
    """Copy `init.*` into the method; every parameter must be given, and every given value must have a place."""
    state = method.state_dict()
    given: Tensors = {}
    for key, value in tensors.items():
        if not key.startswith("init."):
            continue
        theirs = key.removeprefix("init.")
        converted = value if authors.convert is None else authors.convert(case, theirs, value)
        for table in (authors.names, authors.target_names):
            if table and (ours := our_name(table, theirs)) is not None:
                # Their position tables may be flat where ours have a leading one, and the like: sizes must agree.
                given[ours] = converted.reshape(state[ours].shape)
    # A target network that is not recorded starts as a copy of the online network.
    for ours in state:
        if ours.startswith("target_") and ours not in given and ours.removeprefix("target_") in given:
            given[ours] = given[ours.removeprefix("target_")]
    # Where batch norm's counter is not recorded, it starts at zero, as it does in a new network.
    missing = [ours for ours in state if ours not in given and not ours.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(f"initial values are missing for {', '.join(missing[:5])}")
    method.load_state_dict(given, strict=False)


def noise_parameters(method: Method, total: float) -> set[str]:
    """Our names of parameters whose first gradient is rounding noise, of what only follows them, and of target twins.

    What follows is the running mean of a batch norm behind a linear layer whose bias the norm cancels.
    """
    noisy = {
        name
        for name, parameter in method.named_parameters()
        if parameter.grad is not None and float(parameter.grad.norm()) <= NOISE * total
    }
    for path, module in method.named_modules():
        if isinstance(module, nn.Sequential):
            for (before, _), (after, _) in pairwise(module.named_children()):
                if f"{path}.{before}.bias" in noisy:
                    noisy.add(f"{path}.{after}.running_mean")
    return noisy | {f"target_{name}" for name in noisy}


def first_gradients(
    method: Method, case: Json, authors: Authors, total: float, *, clipped: float | None
) -> list[float]:
    """Differences of the first step's gradient norm of each parameter, by the larger of it and 1e-6 of the total.

    A gradient that is noise for the authors must be noise for us; its size then means nothing."""
    scale = 1.0 if clipped is None else min(1.0, clipped / (total + 1e-6))
    parameters = dict(method.named_parameters())
    differences = []
    for theirs, expected in case.get("first_step_grad_norms", {}).items():
        ours = our_name(authors.names, theirs)
        if ours is None or expected is None:
            continue
        gradient = parameters[ours].grad
        found = 0.0 if gradient is None else float(gradient.norm()) / scale
        if found <= NOISE * total and expected <= NOISE * total:
            continue
        differences.append(difference((found - expected) / max(expected, 1e-6 * total), 0.0))
    return differences


def final_norms(method: Method, case: Json, authors: Authors, noisy: set[str]) -> list[float]:
    """Differences of the norms of all state after the last step; parameters that carry only noise are left out."""
    state = method.state_dict()
    tables: list[tuple[str, NameTable]] = [
        ("final_norms", authors.names),
        ("final_student_norms", authors.names),
        ("final_teacher_norms", authors.target_names),
    ]
    differences = []
    for key, table in tables:
        for theirs, expected in case.get(key, {}).items():
            ours = our_name(table, theirs)
            if ours is not None and ours not in noisy:
                differences.append(difference(float(state[ours].double().norm()), float(expected)))
    if not differences:
        raise ValueError("no final norms are recorded")
    return differences


def final_tokens_difference(method: Method, case: Json, tensors: Tensors, authors: Authors) -> float:
    """Difference of the online encoder's patch tokens on the first step's views, in eval mode, after the last step."""
    views = authors.views(case, tensors, 0)
    encoder = method.get_submodule("encoder")
    encoder.eval()
    with torch.no_grad():
        tokens_BLD = encoder(views.online, replace_BN=views.mask_BN)
    expected = tensors["final_tokens_eval"]
    return relative_difference(tokens_BLD[:, -expected.shape[1] :], expected)
