"""Checkpoints: one safetensors file a checkpoint, written aside, flushed to disk, then renamed.

A checkpoint holds everything that the rest of the run depends on: weights and buffers of all networks, the optimizer's
state by parameter name, the loss scaler and the step. Randomness needs no room: it is a function of (seed, step).
Nothing is unpickled on loading; every tensor, and the list of them, has a checksum.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import textwrap
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from unmask.disk import flush_folder
from unmask.errors import in_short
from unmask.formats import FORMATS, objection
from unmask.training.sharded import shared_out

KIND = "checkpoint"
HEADER = "unmask_checkpoint"
HEADER_CHECKSUM = "unmask_crc32"
NAME = re.compile(r"step_(\d{9,})\.safetensors")


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
    found = (NAME.fullmatch(path.name) for path in folder.glob("step_*"))
    return sorted(int(match[1]) for match in found if match is not None)


def _checksum(tensor: Tensor) -> int:
    """Of the bytes and of how they are to be read: a damaged shape may fit the same bytes."""
    kind = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    return zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data, kind)


def write_atomically(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file so that `path` holds its old content or all of the new, whenever we are killed."""
    # A folder, because safetensors writes a file of its own choosing and leaves it behind when it is killed.
    aside = path.with_name(f".{path.name}.part")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        written = aside / path.name
        written.touch()
        # As readable as any new file of the user's; safetensors would shut out everybody else.
        mode = written.stat().st_mode
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, written, metadata=metadata)
        written.chmod(mode)
        with written.open("rb") as file:
            os.fsync(file.fileno())
        written.replace(path)
        aside.rmdir()
        flush_folder(path.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(f"could not write {path} ({_reason(error)}); earlier checkpoints are intact") from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return textwrap.shorten(str(error), 200, placeholder=" ...") or type(error).__name__


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically. CheckpointError where the disk refuses; what lay there before stays."""
    checksums = {name: _checksum(tensor) for name, tensor in checkpoint.tensors.items()}
    header = json.dumps({"format": FORMATS[KIND], "values": checkpoint.values, "crc32": checksums})
    write_atomically(path, checkpoint.tensors, {HEADER: header, HEADER_CHECKSUM: str(zlib.crc32(header.encode()))})


def keep_file(path: Path, beside: Path) -> None:
    """Keep a file under another name, too, where pruning does not find it. CheckpointError where the disk refuses."""
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        if not beside.exists():
            os.link(path, beside)
    except OSError as error:
        raise CheckpointError(f"could not write {beside} ({_reason(error)}); earlier checkpoints are intact") from error


def load_checkpoint(path: Path, device: torch.device) -> Checkpoint:
    """Read a checkpoint and check every tensor. CheckpointError where the file is foreign, cut short or altered."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if HEADER not in metadata:
                raise CheckpointError(f"{path} is not a checkpoint of unmask")
            if metadata.get(HEADER_CHECKSUM) != str(zlib.crc32(metadata[HEADER].encode())):
                raise CheckpointError(f"checkpoint {path} is damaged: its header does not match its checksum")
            checksums, values = _header(metadata[HEADER], path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        for name, expected in checksums.items():
            if name not in tensors or _checksum(tensors[name]) != expected:
                raise CheckpointError(f"checkpoint {path} is damaged: {in_short(name)} does not match its checksum")
    except CheckpointError:
        raise
    # Beside its own error safetensors lets through what torch says of odd types and shapes.
    except Exception as error:
        raise CheckpointError(f"checkpoint {path} cannot be read ({_reason(error)})") from error
    return Checkpoint({name: tensor.to(device) for name, tensor in tensors.items()}, values)


def _header(text: str, path: Path) -> tuple[dict[str, int], dict[str, Any]]:
    """The checksums of the tensors, and the plain values. CheckpointError where the text says something else."""
    try:
        header = json.loads(text)
        written, checksums, values = header["format"], dict(header["crc32"]), dict(header["values"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"checkpoint {path} has a damaged header") from error
    refused = objection(KIND, written)
    if refused is not None:
        raise CheckpointError(f"{path} {refused}")
    return checksums, values


def prune_checkpoints(folder: Path, newest: int, *, keep_every: int) -> None:
    """Delete all but the checkpoint of step `newest` and those of steps that `keep_every` divides (0: none of them).

    What lies beyond `newest` goes too: it could not be read, or the run would have gone on from there.
    """
    for step in saved_steps(folder):
        if step > newest or (step < newest and (not keep_every or step % keep_every)):
            checkpoint_path(folder, step).unlink(missing_ok=True)
    # What a killed process left half-written is of no use to anybody.
    for litter in folder.glob(".step_*.part"):
        shutil.rmtree(litter, ignore_errors=True)


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
    """Put tensors under "model." into a module; names and shapes must fit exactly. Of a sharded one each rank takes its
    share."""
    held = module.state_dict()
    state = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    state = {name: shared_out(value, held[name]) if name in held else value for name, value in state.items()}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError("the checkpoint is of another kind of run or another encoder") from error


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put tensors under "optimizer." back where `optimizer_tensors` took them from."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            start = f"optimizer.{name}."
            quantities = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
            if quantities:
                optimizer.state[parameter] = {key: shared_out(value, parameter) for key, value in quantities.items()}
