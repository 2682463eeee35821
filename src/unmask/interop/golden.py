"""Golden vectors: do our methods compute what their authors' code computed?

A case is a pair of files, `CASE.json` (every hyper-parameter, expected norms) and `CASE.safetensors` (initial values,
inputs and expected losses of a few training steps; `.safetensors.xz` where that saves room). A case is replayed in
float64 from the authors' initial values, and agrees when every loss agrees to 1e-9 relative, and gradients,
predictions and final parameter norms to 1e-8.
"""

from __future__ import annotations

import copy
import json
import lzma
import math
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from unmask.interop.authors import AUTHORS
from unmask.interop.authors.case import Authors, Json, LossSource, Tensors, per_step
from unmask.interop.authors.names import NameTable, our_name
from unmask.methods.base import Method
from unmask.optimisation import build_optimizer, finish_gradients, set_rates
from unmask.schedule import Schedule
from unmask.trainee import Losses

MOST_BYTES = 1 << 30
"""What a packed file of tensors may hold at most: a small one could fill the memory."""
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
    cases = sorted(path for path in folder.glob("*.json") if tensor_file(path).exists())
    if not cases:
        raise ValueError(f"{folder} holds no golden cases (pairs of NAME.json and NAME.safetensors)")
    return cases


def tensor_file(case: Path) -> Path:
    """Where the tensors of a case's JSON file lie: beside it, as they are or packed by xz."""
    packed = case.with_suffix(".safetensors.xz")
    return packed if packed.exists() else case.with_suffix(".safetensors")


def load_tensors(file: Path) -> Tensors:
    """The tensors in a file of a case. Raises whatever a damaged file provokes."""
    if file.suffix != ".xz":
        return load(file.read_bytes())
    with lzma.open(file) as packed:
        content = packed.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it holds more than the {MOST_BYTES} bytes allowed in a packed file")
    return load(content)


def verify(path: Path) -> Verdict:
    """Replay one case. Whatever keeps a case from being replayed is a verdict of its own, never an exception."""
    name = path.stem
    try:
        case: Json = json.loads(path.read_text())
        tensors = load_tensors(tensor_file(path))
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
    config = method.config.optimizer
    rates = per_step(case, tensors, "lr", steps)
    if rates is None:
        raise ValueError("no learning rate is recorded")
    decays = per_step(case, tensors, "weight_decay", steps) or [config.weight_decay] * steps
    schedules = {ours: per_step(case, tensors, theirs, steps) for ours, theirs in authors.schedules.items()}
    total_steps = steps if authors.total_steps is None else authors.total_steps(case)
    optimizer = build_optimizer(method, method.rule, config)

    losses: list[float] = []
    gradients: list[float] = []
    others: list[float] = []
    for step in range(steps):
        progress = step / total_steps
        constants = {
            ours: Schedule(kind="constant", start=values[step])
            for ours, values in schedules.items()
            if values is not None
        }
        if constants:
            method.config = replace(method.config, **constants)  # type: ignore[arg-type]
        views = authors.views(case, tensors, step)
        set_rates(optimizer, rate=rates[step], peak=config.lr, weight_decay=decays[step])
        if method.target_moves == "before step":
            method.update_target(progress)
        if step == 0:
            others += predictions(method, views, tensors, authors)
        named = method.losses(views, progress)
        losses += loss_differences(named, case, tensors, authors, step)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(named.values())).sum().backward()
        if step == 0:
            noisy = noise_parameters(method)
            gradients += first_gradients(method, case, authors)
        total = finish_gradients(optimizer, config, progress)
        gradients.append(difference(float(total), float(tensors["grad_norms"][step])))
        optimizer.step()
        if method.target_moves == "after step":
            method.update_target(progress)
        others += state_differences(method, tensors, authors, step, last=step == steps - 1)

    norms = final_norms(method, case, authors, noisy)
    if "final_tokens_eval" in tensors:
        others.append(final_tokens_difference(method, case, tensors, authors))
    prediction_error = max(others, default=None)
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
    # Where batch norm's counter or a queue's position is not recorded, it starts at zero, as it does in a new network.
    counters = ("num_batches_tracked", "queue.position")
    missing = [ours for ours in state if ours not in given and not ours.endswith(counters)]
    if missing:
        raise ValueError(f"initial values are missing for {', '.join(missing[:5])}")
    method.load_state_dict(given, strict=False)


def loss_differences(named: Losses, case: Json, tensors: Tensors, authors: Authors, step: int) -> list[float]:
    """Differences of the sum of the losses, and of each that is recorded."""
    found = []
    if not isinstance(authors.total, str) or authors.total in tensors:
        total = sum(loss.item() for loss in named.values())
        found.append(difference(total, recorded_loss(authors.total, case, tensors, step)))
    for ours, theirs in authors.losses.items():
        found.append(difference(named[ours].item(), recorded_loss(theirs, case, tensors, step)))
    return found


def recorded_loss(source: LossSource, case: Json, tensors: Tensors, step: int) -> float:
    """A loss as recorded, or as it follows from what is recorded."""
    return float(tensors[source][step]) if isinstance(source, str) else source(case, tensors, step)


@torch.no_grad()
def predictions(method: Method, views: Any, tensors: Tensors, authors: Authors) -> list[float]:
    """Differences of what is computed on the way, by copies of the method: looking must not move batch statistics."""
    return [
        relative_difference(predict(copy.deepcopy(method), views), tensors[theirs])
        for theirs, predict in authors.predictions.items()
        if theirs in tensors
    ]


def state_differences(method: Method, tensors: Tensors, authors: Authors, step: int, *, last: bool) -> list[float]:
    """Differences of recorded state (centres, queues) after a step."""
    state, found = method.state_dict(), []
    for theirs, ours in authors.states.items():
        if theirs not in tensors:
            continue
        recorded, value = tensors[theirs], state[ours]
        every_step = recorded.numel() != value.numel()
        if every_step or last:
            expected = recorded[step] if every_step else recorded
            found.append(relative_difference(value.reshape(expected.shape), expected))
    return found


def noise_parameters(method: Method) -> set[str]:
    """Our names of parameters whose first gradient is rounding noise, of what only follows them, and of target twins.

    What follows is the running mean of a batch norm behind a linear layer whose bias the norm cancels.
    """
    total = gradient_norm(method)
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


def gradient_norm(method: Method) -> float:
    """Total L2 norm of the gradients."""
    gradients = [parameter.grad for parameter in method.parameters() if parameter.grad is not None]
    return float(nn.utils.get_total_norm(gradients))


def first_gradients(method: Method, case: Json, authors: Authors) -> list[float]:
    """Differences of the first step's gradient norm of each parameter, by the larger of it and 1e-6 of the total.

    A gradient that is noise for the authors must be noise for us; its size then means nothing."""
    total = gradient_norm(method)
    parameters = dict(method.named_parameters())
    differences = []
    for theirs, expected in case.get("first_step_grad_norms", {}).items():
        ours = our_name(authors.names, theirs)
        if ours is None or expected is None:
            continue
        gradient = parameters[ours].grad
        found = 0.0 if gradient is None else float(gradient.norm())
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
