"""Checkpoints: one safetensors file a checkpoint, written aside, flushed to disk, then renamed.

A checkpoint holds everything that the rest of the run depends on: weights and buffers of all networks, the optimizer's
state by parameter name, the loss scaler and the step. Randomness needs no room: it is a function of (seed, step).
Nothing is unpickled on loading; every tensor has a checksum.
"""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FORMAT = 1
PATTERN = "step_*.safetensors"


class CheckpointError(ValueError):
    """A checkpoint cannot be written or read; the message says why in one sentence."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds: named tensors, and plain values beside them."""

    tensors: dict[str, Tensor]
    values: dict[str, Any] = field(default_factory=dict)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return folder / f"step_{step:09d}.safetensors"


def saved_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, ascending."""
    return sorted(int(path.stem.removeprefix("step_")) for path in folder.glob(PATTERN))


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def write_atomically(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file so that `path` holds its old content or all of the new, whenever we are killed."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside, metadata=metadata)
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        aside.replace(path)
        flush_folder(path.parent)
    except (OSError, SafetensorError) as error:
        aside.unlink(missing_ok=True)
        raise CheckpointError(f"could not write {path} ({_reason(error)}); earlier checkpoints are intact") from error


def flush_folder(folder: Path) -> None:
    """Make renames within `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).splitlines()[0]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically. CheckpointError where the disk refuses; what lay there before stays."""
    checksums = {name: _checksum(tensor) for name, tensor in checkpoint.tensors.items()}
    header = {"format": FORMAT, "values": checkpoint.values, "crc32": checksums}
    write_atomically(path, checkpoint.tensors, {"unmask_checkpoint": json.dumps(header)})


def load_checkpoint(path: Path, device: torch.device) -> Checkpoint:
    """Read a checkpoint and check every tensor. CheckpointError where the file is foreign, cut short or altered."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "unmask_checkpoint" not in metadata:
                raise CheckpointError(f"{path} is not a checkpoint of unmask")
            header = json.loads(metadata["unmask_checkpoint"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read ({_reason(error)})") from error
    if header["format"] != FORMAT:
        raise CheckpointError(f"checkpoint {path} has format {header['format']}, this version reads {FORMAT}")
    for name, expected in header["crc32"].items():
        if name not in tensors or _checksum(tensors[name]) != expected:
            raise CheckpointError(f"checkpoint {path} is damaged: {name} does not match its checksum")
    return Checkpoint({name: tensor.to(device) for name, tensor in tensors.items()}, header["values"])


def prune_checkpoints(folder: Path, *, keep_every: int) -> None:
    """Delete all but the newest checkpoint and those of steps that `keep_every` divides (0: the newest alone)."""
    for step in saved_steps(folder)[:-1]:
        if not keep_every or step % keep_every:
            checkpoint_path(folder, step).unlink(missing_ok=True)
    # What a killed process left half-written is of no use to anybody.
    for litter in folder.glob(f".{PATTERN}.*.part"):
        litter.unlink(missing_ok=True)


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers under "model."."""
    return {f"model.{name}": value for name, value in module.state_dict().items()}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state under "optimizer.PARAMETER.QUANTITY"; its groups carry the parameters' names."""
    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for quantity, value in optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{quantity}"] = value
    return tensors


def load_module_tensors(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put tensors under "model." into a module; names and shapes must fit exactly."""
    state = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError("the checkpoint is of another method or another encoder") from error


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put tensors under "optimizer." back where `optimizer_tensors` took them from."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            start = f"optimizer.{name}."
            quantities = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
            if quantities:
                optimizer.state[parameter] = quantities
