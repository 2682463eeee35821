"""Weights of others as an encoder of ours: one way for every source, with an account of every tensor.

A file is read (`checkpoint_file`, `huggingface`), its encoder is found and gets our names (`released`), a configuration
follows from the tensors (`describe`), and the encoder is built, filled and, where asked for, made to fit other images
(`resize`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from unmask.interop.checkpoint_file import read_leaves
from unmask.interop.describe import PATCHES, describe
from unmask.interop.found import Found, ImageGrid, Network
from unmask.interop.huggingface import CONFIG, read_transformers
from unmask.interop.released import RELEASES, find_encoder
from unmask.interop.resize import for_channels, resized
from unmask.models.build import build_encoder
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig, blank_timm_model
from unmask.models.pretrained import PretrainedEncoder, open_encoder

TIMM = "timm:"
SOURCES = (*RELEASES, "transformers", "unmask")
"""What --from can be; "timm:NAME" beside them."""
COMPUTED = ("relative_position_index", "num_batches_tracked")
CLASSIFIERS = ("head", "fc_norm", "fc.", "head_dist", "lm_head", "norm_head")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the user says about the file, and what is to be changed; None leaves it to the file."""

    source: str | None = None
    """One of SOURCES, or "timm:NAME"."""
    network: Network | None = None
    encoder: str | None = None
    heads: int | None = None
    grid: ImageGrid | None = None
    bgr: bool | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    image_size: tuple[int, int] | None = None
    patch_size: int | None = None
    channels: int | None = None


@dataclass(frozen=True, kw_only=True)
class Imported:
    """An encoder, and what became of every tensor of its file."""

    encoder: PretrainedEncoder
    source: str
    used: dict[str, str]
    """Their names to ours."""
    changed: dict[str, str] = field(default_factory=dict)
    """Our name to what was done."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Their name to the reason."""
    notes: list[str] = field(default_factory=list)
    network: Network | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for --json."""
        config = self.encoder.encoder.config
        return {
            "source": self.source,
            "network": self.network,
            "encoder": vars(config),
            "mean": self.encoder.mean,
            "std": self.encoder.std,
            "used": self.used,
            "changed": self.changed,
            "left_out": self.left_out,
            "notes": self.notes,
        }


def import_weights(spec: str, wanted: Wanted) -> Imported:
    """The encoder in a checkpoint of others, in a folder of transformers, in a file of ours, or of timm ("timm:NAME").

    ValueError, with one sentence, for whatever cannot be read or does not hold such an encoder.
    """
    source = _source(spec, wanted.source)
    if source == "unmask" or spec.startswith(TIMM):
        return _import_ours(spec, wanted)
    path = Path(spec)
    if source == "transformers":
        found = read_transformers(path)
    else:
        release = RELEASES[source]
        found = find_encoder(read_leaves(path), release, wanted.network, spec)
        if release.bgr if wanted.bgr is None else wanted.bgr:
            _turn_channels(found)
    name = _timm_name(wanted)
    if source == "timm" and name is not None:
        found.mean, found.std = _timm_normalisation(name)
    found.hints = replace(
        found.hints,
        encoder=name or found.hints.encoder,
        heads=wanted.heads or found.hints.heads,
        grid=wanted.grid or found.hints.grid,
    )
    _as_float32(found)
    config = describe(found.tensors, found.hints, spec)
    encoder = _filled(config, found, spec)
    mean, std = (_fitting(values, config.channels, found) for values in (found.mean, found.std))
    return _changed(PretrainedEncoder(encoder=encoder, mean=mean, std=std, origin=spec), found, wanted, source)


def _source(spec: str, asked: str | None) -> str:
    """The kind of file: what the user says, or what can be told at a glance."""
    if asked is not None and asked.startswith(TIMM):
        return "timm"
    if asked is not None:
        if asked not in SOURCES:
            raise ValueError(f"--from {asked} is unknown; known are {', '.join(SOURCES)} and timm:NAME")
        return asked
    if spec.startswith(TIMM):
        return "timm"
    if (Path(spec) / CONFIG).exists() and not (Path(spec) / "encoder.safetensors").exists():
        return "transformers"
    if not Path(spec).exists():
        raise ValueError(f"there is no file {spec}")
    raise ValueError(f"say who made {spec} by --from: {', '.join(SOURCES)} or timm:NAME")


def _timm_name(wanted: Wanted) -> str | None:
    asked = (wanted.source or "").removeprefix(TIMM) if (wanted.source or "").startswith(TIMM) else None
    if asked is not None and wanted.encoder not in (None, asked):
        raise ValueError(f"--from timm:{asked} and --encoder {wanted.encoder} name two networks")
    name = asked or wanted.encoder
    if name is not None:
        blank_timm_model(name)  # what timm does not know is refused before a large file is read
    return name


def _timm_normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    facts = blank_timm_model(name).pretrained_cfg
    return tuple(facts["mean"]), tuple(facts["std"])


def _import_ours(spec: str, wanted: Wanted) -> Imported:
    """An encoder file of ours, or a network of timm with the weights that timm has for it."""
    for option, value in (("--network", wanted.network), ("--encoder", wanted.encoder), ("--heads", wanted.heads)):
        if value is not None:
            raise ValueError(f"{option} means nothing for {spec}, which says itself what it is")
    opened = open_encoder(spec)
    found = Found(method=opened.method)
    for name, value in opened.encoder.network.state_dict().items():
        found.put(name, value, name)
    if wanted.bgr:
        raise ValueError(f"the channels of {spec} are in the order red, green, blue already")
    return _changed(opened, found, wanted, "timm" if spec.startswith(TIMM) else "unmask")


def _turn_channels(found: Found) -> None:
    """From networks that see blue, green, red to ours: the same function of the same images."""
    weight = found.tensors.get(PATCHES)
    if weight is None or weight.ndim != 4 or weight.shape[1] != 3:
        raise ValueError("only a patch embedding of three channels has an order of red, green and blue to turn")
    found.tensors[PATCHES] = weight.flip(1)
    found.mean, found.std = found.mean[::-1], found.std[::-1]
    found.change(PATCHES, "channels turned from blue, green, red to red, green, blue")
    found.notes.append("mean and deviation are turned with the channels, as training applied red's to blue")


def _as_float32(found: Found) -> None:
    for name, value in found.tensors.items():
        if value.is_floating_point() and value.dtype != torch.float32:
            found.change(name, f"{str(value.dtype).removeprefix('torch.')} to float32")
            found.tensors[name] = value.float()


def _filled(config: EncoderConfig, found: Found, origin: str) -> Encoder:
    """The encoder with the tensors; what has no place in it is left out with a reason, and nothing may be missing."""
    encoder = build_encoder(config, mask_token=False)
    expected = encoder.network.state_dict()
    for name in [name for name in found.tensors if name not in expected]:
        found.drop(name, _why_no_place(name))
    missing = [name for name in expected if name not in found.tensors and not name.endswith(COMPUTED)]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ValueError(f"{origin} lacks {len(missing)} tensors of the encoder {config.name!r}: {shown}")
    for name, value in found.tensors.items():
        if value.numel() != expected[name].numel():
            raise ValueError(
                f"{origin} has {name} of shape {tuple(value.shape)}, this encoder has {tuple(expected[name].shape)}"
            )
    # Their tables may be flat where ours have a leading one, and the like.
    state = {name: value.reshape(expected[name].shape) for name, value in found.tensors.items()}
    encoder.network.load_state_dict(expected | state)
    return encoder


def _why_no_place(name: str) -> str:
    if name.endswith(COMPUTED):
        return "computed, not learnt"
    if name.startswith(CLASSIFIERS):
        return "classifier, after the encoder"
    return "no part of this encoder"


def _fitting(values: tuple[float, ...], channels: int, found: Found) -> tuple[float, ...]:
    if len(values) == channels:
        return values
    found.notes.append(
        f"a mean or deviation of {len(values)} channels is repeated for {channels}; see --mean and --std"
    )
    return for_channels(values, channels)


def _changed(opened: PretrainedEncoder, found: Found, wanted: Wanted, source: str) -> Imported:
    """The encoder as it is wanted, and the whole account."""
    before = opened.encoder.config.channels
    encoder, changed = resized(
        opened.encoder, image_size=wanted.image_size, patch_size=wanted.patch_size, channels=wanted.channels
    )
    for name, how in changed.items():
        found.change(name, how)
    channels = encoder.config.channels
    mean, std = opened.mean, opened.std
    if channels != before:
        mean, std = for_channels(mean, channels), for_channels(std, channels)
    normalisation = []
    for option, asked, own in (("--mean", wanted.mean, mean), ("--std", wanted.std, std)):
        if asked is not None and len(asked) != channels:
            raise ValueError(f"{option} has {len(asked)} values for images of {channels} channels")
        normalisation.append(own if asked is None else asked)
    if any(value <= 0 for value in normalisation[1]):
        raise ValueError("--std must be above 0")
    return Imported(
        encoder=PretrainedEncoder(
            encoder=encoder,
            mean=normalisation[0],
            std=normalisation[1],
            origin=opened.origin,
            method=found.method,
            pixel_range=opened.pixel_range,
        ),
        source=source,
        used={theirs: ours for ours, names in found.sources.items() for theirs in names},
        changed=found.changed,
        left_out=found.left_out,
        notes=found.notes,
        network=found.network,
    )
