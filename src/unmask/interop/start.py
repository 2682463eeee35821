"""Pre-training that goes on from weights: the encoder of a file in a method, and an account of what stayed random."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from unmask.interop.resize import for_channels, resized
from unmask.methods.base import Method, MethodConfig
from unmask.models.build import fixed_patch
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.pretrained import PretrainedEncoder

C = TypeVar("C", bound=MethodConfig)
OF_METHOD = ("position_resize", "class_token", "final_norm", "drop_path", "init", "checkpointing")
"""What a method decides about its encoder, whatever the weights come from."""
OF_IMAGES = ("image_height", "image_width", "channels", "drop_path", "checkpointing")
"""All that can be set of a network without tokens."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run began from, as its config.json says it. Lists of names are empty until weights were loaded."""

    weights: str
    """A run folder, an encoder file, or "timm:NAME"."""
    loaded: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    """Names and how they were changed to fit."""
    left_out: tuple[str, ...] = ()
    """Tensors of the file that have no place in the method's encoder."""
    random: tuple[str, ...] = ()
    """Tensors of the encoder, and parts of the method, that began at random."""

    def sentences(self) -> list[str]:
        """For people."""
        lists = {"changed": self.changed, "left out": self.left_out, "random": self.random}
        said = [f"{what}: {', '.join(names)}" for what, names in lists.items() if names]
        return [f"{len(self.loaded)} tensors loaded", *said]


def start_settings(
    settings: C,
    usual: MethodConfig,
    weights: EncoderConfig,
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None,
) -> C:
    """A method's settings for the encoder of these weights, and their normalisation (None: it stays).

    The network is the file's; what the user set (where `settings` differ from `usual`) and what a method decides about
    its encoder stay.
    """
    wanted, default = vars(settings.encoder), vars(usual.encoder)
    if fixed_patch(weights.name) is not None:
        kept = {name: wanted[name] for name in OF_IMAGES}
    else:
        kept = {name: value for name, value in wanted.items() if name in OF_METHOD or value != default[name]}
        if kept["class_token"] is None:
            del kept["class_token"]
        # Images follow the data, where the user asks for no size.
        kept |= {name: wanted[name] for name in ("image_height", "image_width")}
    if settings.encoder.channels == usual.encoder.channels:
        kept["channels"] = weights.channels
    encoder = replace(weights, **kept)
    mean, std = normalisation or (settings.mean, settings.std)
    return replace(
        settings,
        encoder=encoder,
        mean=for_channels(mean, encoder.channels) if len(mean) != encoder.channels else mean,
        std=for_channels(std, encoder.channels) if len(std) != encoder.channels else std,
    )


@torch.no_grad()
def load_start(method: Method, weights: PretrainedEncoder, spec: str) -> Start:
    """Put an encoder's weights into a method at its random start; target networks begin as copies again.

    Tensors are matched by name and shape, after positions, patches and channels were made to fit. ValueError where the
    encoders are different networks.
    """
    encoder = method.get_submodule("encoder")
    assert isinstance(encoder, Encoder)
    fitted, changes = resized(
        weights.encoder,
        image_size=encoder.image_size,
        patch_size=encoder.patch[0],
        channels=encoder.config.channels,
    )
    theirs, ours = fitted.network.state_dict(), encoder.network.state_dict()
    if "pos_embed" in theirs and "pos_embed" in ours:
        more = theirs["pos_embed"].shape[-2] - ours["pos_embed"].shape[-2]
        if more > 0 and fitted.grid == encoder.grid:
            theirs["pos_embed"] = theirs["pos_embed"][:, more:]
            changes["pos_embed"] = "; ".join([*filter(None, [changes.get("pos_embed")]), "without the class token's"])
    loaded = {name: value for name, value in theirs.items() if name in ours and value.shape == ours[name].shape}
    if not any("blocks." in name for name in loaded) and len(loaded) < len(ours):
        raise ValueError(
            f"{spec} holds a {weights.encoder.config.name!r}, which does not fit the encoder {encoder.config.name!r}"
        )
    encoder.network.load_state_dict(ours | loaded)
    _copy_to_targets(method)
    return Start(
        weights=spec,
        loaded=tuple(loaded),
        changed=tuple(f"{name} {how}" for name, how in changes.items() if name in loaded),
        left_out=tuple(name for name in theirs if name not in loaded),
        random=(*(f"encoder.{name}" for name in ours if name not in loaded), *_other_parts(method, encoder)),
    )


def _copy_to_targets(method: Method) -> None:
    """A target network begins as a copy of its online network, without what it has not (CMAE's final norm)."""
    parts = dict(method.named_children())
    for name, target in parts.items():
        online = parts.get(name.removeprefix("target_"))
        if name.startswith("target_") and online is not None:
            values = online.state_dict()
            target.load_state_dict({key: values[key] for key in target.state_dict()})


def _other_parts(method: Method, encoder: Encoder) -> list[str]:
    """Parts of a method beside its encoder that are learnt, and so began at random."""
    found = ["encoder.mask_token"] if encoder.mask_token is not None else []
    for name, part in method.named_children():
        learnt = any(parameter.requires_grad for parameter in part.parameters())
        if learnt and name != "encoder" and not name.startswith("target_"):
            found.append(name)
    return found + [name for name, _ in method.named_parameters(recurse=False)]
