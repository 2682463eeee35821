"""A network that ends in a map of features (ResNet, ConvNeXt and their kin, from timm) as an encoder of whole images.

Its tokens are the places of the last map, row by row; methods that hide patches cannot train it, all others can.

Shape legend: B images, C channels, H x W pixels, N places of the map (row-major), D width, h heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NoReturn, cast

import timm
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unmask.models.encoder import Encoder
from unmask.models.encoder_config import TIMM_VITS, EncoderConfig, blank_timm_model


class ConvEncoder(Encoder):
    """Any network whose output [B, D, H / stride, W / stride] is a map of features, as an encoder."""

    def __init__(self, config: EncoderConfig, network: nn.Module, *, width: int, stride: int, stages: int) -> None:
        """`network` of `stages` stages gives maps of `width` channels, one place for `stride` x `stride` pixels."""
        super().__init__(config)
        self.mask_token = None
        self.conv = network
        self._width = width
        self._stride = stride
        self._stages = stages
        _check_size(config.name, stride, config.image_height, config.image_width)

    @property
    def _name(self) -> str:
        return self.config.name

    @property
    def width(self) -> int:
        """Channels D of the last map."""
        return self._width

    @property
    def depth(self) -> int:
        """Number of stages, each at a resolution of its own."""
        return self._stages

    @property
    def prefix(self) -> int:
        return 0

    @property
    def has_class_token(self) -> bool:
        return False

    @property
    def patch(self) -> tuple[int, int]:
        """The total stride."""
        return self._stride, self._stride

    @property
    def grid(self) -> tuple[int, int]:
        return self.config.image_height // self._stride, self.config.image_width // self._stride

    @property
    def network(self) -> nn.Module:
        return self.conv

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """None: how a network of convolutions is made up differs from family to family."""
        return ()

    @property
    def timm_model(self) -> tuple[str, dict[str, Any]]:
        return self._name, conv_arguments(replace(self.config, drop_path=0.0))

    def set_image_size(self, height: int, width: int) -> None:
        """Take images of another size from now on. Both must be multiples of the stride."""
        _check_size(self._name, self._stride, height, width)
        self.config = replace(self.config, image_height=height, image_width=width)

    def remove_norm(self) -> None:
        raise ValueError(f"{self._name!r} has no final norm to take away; choose a ViT for this method")

    def forward(
        self,
        images_BCHW: Float[Tensor, "B C H W"],
        *,
        drop_BN: Bool[Tensor, "M N"] | None = None,
        replace_BN: Bool[Tensor, "B N"] | None = None,
        hidden: int | None = None,
    ) -> Float[Tensor, "_ L D"]:
        """The places of the last map, after the head's norm where the network has one (ConvNeXt)."""
        if drop_BN is not None or replace_BN is not None:
            refuse_masks(self._name)
        _, channels, height, width = images_BCHW.shape
        if channels != self.config.channels:
            raise ValueError(f"the encoder takes {self.config.channels} channels, got images of {channels}")
        _check_size(self._name, self._stride, height, width)
        tokens_BND: Tensor = self.conv(images_BCHW).flatten(2).transpose(1, 2)
        return tokens_BND

    def attention(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B h N"]:
        raise ValueError(f"{self._name!r} has no attention to show")


def refuse_masks(name: str) -> NoReturn:
    """A ValueError for those who would hide patches from a network without tokens."""
    raise ValueError(f"{name!r} cannot leave patches out or replace them; choose a ViT for methods that hide patches")


def _check_size(name: str, stride: int, height: int, width: int) -> None:
    for what, pixels in (("height", height), ("width", width)):
        if pixels < stride or pixels % stride:
            raise ValueError(f"image {what} {pixels} is not divisible by the stride {stride} of {name!r}")


def conv_encoder(config: EncoderConfig) -> ConvEncoder:
    """timm's network of a configuration. ValueError where it gives no square map, or has not what was set."""
    found = fixed_stride(config.name)
    assert found is not None, "ViTs are built elsewhere"
    stride, stages = found
    arguments = conv_arguments(config)
    _check_size(config.name, stride, config.image_height, config.image_width)
    shape = _output_shape(config.name, config.channels, config.image_height, config.image_width)
    rows, columns = config.image_height // stride, config.image_width // stride
    if len(shape) != 4 or shape[2:] != (rows, columns):
        raise ValueError(
            f"{config.name!r} gives no map of {rows}x{columns} places for images of "
            f"{config.image_height}x{config.image_width}; use a ViT, or a network such as resnet50 or convnext_tiny"
        )
    try:
        network = timm.create_model(config.name, pretrained=False, **arguments)
        if config.checkpointing:
            cast(Any, network).set_grad_checkpointing()
    except (AssertionError, TypeError) as error:
        raise ValueError(f"timm cannot build {config.name!r} with drop path or checkpointing") from error
    return ConvEncoder(config, network, width=shape[1], stride=stride, stages=stages)


def fixed_stride(name: str) -> tuple[int, int] | None:
    """Stride, in pixels, and number of stages of timm's network of this name; None for a ViT, whose patch is free.

    ValueError for a name that timm does not know.
    """
    model = blank_timm_model(name)
    if isinstance(model, TIMM_VITS):
        return None
    stages = model.feature_info
    return int(stages[-1]["reduction"]), len(stages)


def gives_maps(name: str) -> bool:
    """Whether timm's network of this name ends in maps of features, channels first; ValueError where it is unknown."""
    found = fixed_stride(name)
    if found is None:
        return False
    # Some networks take only images of the size that they are made for.
    own_size = blank_timm_model(name).pretrained_cfg["input_size"][1:]
    for height, width in ((4 * found[0], 4 * found[0]), own_size):
        shape = _output_shape(name, 3, height, width)
        if len(shape) == 4 and shape[2:] == (height // found[0], width // found[0]):
            return True
    return False


def conv_arguments(config: EncoderConfig) -> dict[str, Any]:
    """timm's arguments beside the name. ValueError for what a network without tokens does not have."""
    plain = EncoderConfig(name=config.name)
    own = ("name", "image_height", "image_width", "channels", "drop_path", "checkpointing")
    given = vars(config)
    for field, usual in vars(plain).items():
        if field not in own and given[field] != usual:
            what = field.replace("_", " ")
            raise ValueError(f"{config.name!r} is no ViT and takes no {what}; leave it at {usual!r}")
    # Without pooling the head still norms, place by place, where the network has a norm there (ConvNeXt).
    arguments: dict[str, Any] = {"num_classes": 0, "global_pool": "", "in_chans": config.channels}
    if config.drop_path:
        arguments["drop_path_rate"] = config.drop_path
    return arguments


@cache
def _blank_network(name: str, channels: int) -> nn.Module:
    """timm's network without memory for its weights, in eval mode."""
    with torch.device("meta"):
        network: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=0, global_pool="", in_chans=channels
        ).eval()
    return network


@cache
def _output_shape(name: str, channels: int, height: int, width: int) -> tuple[int, ...]:
    """Shape of the output for one image, computed without memory or arithmetic; () where there is none."""
    try:
        with torch.no_grad():
            output = _blank_network(name, channels)(torch.zeros(1, channels, height, width, device="meta"))
    except (AssertionError, RuntimeError, TypeError, ValueError):
        return ()
    return tuple(output.shape) if isinstance(output, Tensor) else ()
