"""Checkpoints as their authors save them: which entry holds which network, and where its encoder is.

Parameters are called as in the golden cases, so the tables of names are those of `interop/authors`; here stands what a
released file has beside them: entries (`model`, `state_dict`, `teacher`), prefixes of wrappers (`module.`), encoders
that were taken out of their method, and conventions (CMAE's channels in the order blue, green, red).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from unmask.interop.authors import AUTHORS
from unmask.interop.authors.names import NameTable, our_name
from unmask.interop.checkpoint_file import Leaves
from unmask.interop.found import Found, Hints, Network
from unmask.methods import METHODS

ENTRIES = {"model": "", "state_dict": "", "module": "", "model_state": ""}
"""Entries in which training scripts save a whole method: DeiT's and MAE's, torchvision's and mm*'s, DeepSpeed's,
SlowFast's."""
AVERAGES = ("model_ema", "state_dict_ema")
"""Entries for an average of the weights over training (timm's ModelEma)."""
WRAPPERS = ("module.", "_orig_mod.", "_forward_module.")
"""What distributed training, torch.compile and FSDP put before names."""
NETWORKS: dict[str, Network] = {"encoder": "online", "target_encoder": "target"}
BARE = ("cls_token", "patch_embed.", "conv1.")
"""How the names of an encoder begin that stands by itself."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """How a method's authors save it."""

    authors: str | None = None
    """Whose table of names: a key of AUTHORS; None where names are timm's."""
    method: str | None = None
    network: Network = "online"
    """Which network they evaluate."""
    entries: Mapping[str, str] = field(default_factory=dict)
    """Entry of the file, and what stands before its names in the golden cases."""
    bare: str = ""
    """What stands before the encoder's names in the golden cases, where a file holds the encoder alone."""
    encoder: str | None = None
    """timm's name of a network of the same kind, where tensors do not tell it."""
    heads: Mapping[int, int] = field(default_factory=dict)
    """Number of heads by width, where it is not the usual one."""
    position_resize: Literal["antialias", "offset", "scale"] = "antialias"
    bgr: bool = False
    """Whether they train on images with channels in the order blue, green, red."""

    @property
    def names(self) -> NameTable:
        """Their names to ours."""
        return (("*", "encoder.vit.*"),) if self.authors is None else AUTHORS[self.authors].names


def _release(name: str, **facts: object) -> Release:
    return Release(**({"authors": name, "method": name} | facts))  # type: ignore[arg-type]


_STUDENTS = {"student": "student.", "teacher": "teacher."}
_AVERAGED = {"model_ema": "ema."}

RELEASES: dict[str, Release] = {
    "conmim": _release("conmim", network="target"),
    "cmae": _release("cmae", bare="backbone.", bgr=True),
    "mae": _release("mae"),
    "simmim": _release("simmim", bare="encoder."),
    "beit": _release("beit"),
    "beit_v2": _release("beit_v2", authors="beit"),
    "mc_beit": _release("mc_beit", authors="beit"),
    "ibot": _release("ibot", network="target", entries=_STUDENTS, bare="backbone.", position_resize="offset"),
    "dino": _release("dino", network="target", entries=_STUDENTS, bare="backbone.", position_resize="offset"),
    "msn": _release(
        "msn",
        network="target",
        entries={"encoder": "encoder.", "target_encoder": "target_encoder."},
        bare="encoder.",
        position_resize="scale",
    ),
    # Their ViT-S has as many heads as their ViT-B.
    "mocov3": _release("mocov3", bare="base_encoder.", heads={384: 12}),
    "bootmae": _release("bootmae", entries=_AVERAGED, encoder="beit_base_patch16_224"),
    "cae": _release("cae", bare="encoder.", encoder="beit_base_patch16_224"),
    "data2vec": _release("data2vec", entries=_AVERAGED),
    "convmae": _release("convmae"),
    "maskfeat": _release("maskfeat"),
    "dmae": _release("dmae"),
    "supmae": _release("supmae"),
    "can": _release("can"),
    "sim": _release("sim"),
    "extrema": _release("extrema", bare="base_encoder."),
    "simclr": _release("simclr", bare="backbone."),
    "byol": _release("byol", bare="backbone."),
    "simsiam": _release("simsiam", bare="encoder."),
    "mixmask": _release("mixmask", bare="encoder_q."),
    "m3ae": _release("m3ae", authors="m3ae_medical", encoder="vit_base_patch16_clip_quickgelu_224"),
    "timm": Release(),
}


def find_encoder(leaves: Leaves, release: Release, network: Network | None, origin: str) -> Found:
    """The encoder among a checkpoint's tensors, in our names; `network` None takes what the authors evaluate.

    ValueError where there is none, or not the one that was asked for.
    """
    found = Found(method=release.method)
    if release.method is not None:
        usual = METHODS[release.method].Config()
        found.mean, found.std = usual.mean, usual.std
    average = _average(leaves, release) if network == "target" else None
    entries = ENTRIES | dict(release.entries) if average is None else {average: ""}
    networks: dict[Network, dict[str, tuple[str, str]]] = {"online": {}, "target": {}}
    values: dict[str, Tensor] = {}
    bare = {entry: _is_bare(leaves, entry) for entry in {place[0] if len(place) == 2 else "" for place in leaves}}
    for place, value in leaves.items():
        full, entry = ".".join(place), place[0] if len(place) == 2 else ""
        if len(place) > 2 or (entry and entry not in entries):
            found.left_out[full] = _entry_reason(place[0])
            continue
        before = entries[entry] if entry else ""
        theirs = before + (release.bare if bare[entry] and not before else "") + unwrapped(place[-1])
        try:
            ours = our_name(release.names, theirs)
        except KeyError:
            ours = f"{theirs.partition('.')[0]}."
        if ours is None:
            found.left_out[full] = "nothing uses it"
            continue
        owner, _, rest = ours.partition(".")
        _, _, name = rest.partition(".")
        if owner not in NETWORKS or not name:
            found.left_out[full] = _part_reason(ours)
            continue
        networks[NETWORKS[owner]][name] = (full, theirs)
        values[full] = value
    chosen = _choose(networks, network if average is None else "online", release.network, origin)
    # SIM's target reads the online network's positions.
    if chosen == "target" and "pos_embed" in networks["online"] and "pos_embed" not in networks["target"]:
        networks["target"]["pos_embed"] = networks["online"].pop("pos_embed")
    for kind, tensors in networks.items():
        for name, (full, theirs) in tensors.items():
            if kind == chosen:
                _take(found, release, name, full, theirs, values[full])
            else:
                found.left_out[full] = f"the {kind} network"
    if all(networks.values()) or average is not None:
        found.network = chosen if average is None else "target"
    width = found.tensors["cls_token"].shape[-1] if "cls_token" in found.tensors else None
    found.hints = Hints(
        encoder=release.encoder,
        heads=None if width is None else release.heads.get(width),
        position_resize=release.position_resize,
    )
    return found


def unwrapped(name: str) -> str:
    """A parameter's name without what wrappers put before it."""
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name


def _average(leaves: Leaves, release: Release) -> str | None:
    """The entry that holds averaged weights in the names of the online network."""
    there = {place[0] for place in leaves}
    return next((entry for entry in AVERAGES if entry in there and entry not in release.entries), None)


def _is_bare(leaves: Leaves, entry: str) -> bool:
    names = (place[-1] for place in leaves if (place[0] if len(place) == 2 else "") == entry and len(place) <= 2)
    return any(unwrapped(name).startswith(BARE) for name in names)


def _choose(
    networks: dict[Network, dict[str, tuple[str, str]]], asked: Network | None, usual: Network, origin: str
) -> Network:
    there = [network for network, tensors in networks.items() if tensors]
    if not there:
        raise ValueError(f"{origin} holds no encoder under the names of this method's authors; is --from right?")
    if asked is not None and asked not in there:
        raise ValueError(f"{origin} holds one network, not the {asked} one beside it; leave --network out")
    return asked or (usual if usual in there else there[0])


def _take(found: Found, release: Release, name: str, full: str, theirs: str, value: Tensor) -> None:
    """A tensor of the chosen encoder, with our layout."""
    convert = None if release.authors is None else AUTHORS[release.authors].convert
    converted = value if convert is None else convert({}, theirs, value)
    found.put(name, converted, full)
    if converted.shape != value.shape:
        found.change(name, "a convolution over a patch, written as a linear layer")


def _entry_reason(entry: str) -> str:
    if entry in AVERAGES:
        return "an average of the weights over training (--network target)"
    return "optimizer" if entry in ("optimizer", "opt") else f"{entry}, no network"


def _part_reason(ours: str) -> str:
    """Why something beside the encoder is left out, by the part of the method that it belongs to."""
    if ours.endswith("mask_token"):
        return "mask token, which only pre-training needs"
    part = ours.removeprefix("target_").partition(".")[0].replace("_", " ")
    return f"{part} of pre-training"
