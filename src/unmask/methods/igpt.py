"""iGPT: Generative Pretraining from Pixels (Chen et al., ICML 2020).

Pixels of a small picture are words: each is named by the nearest of 512 colours, and a transformer tells every pixel
from those before it (or hidden ones from the others). Its middle layers are the features.

Shape legend: B samples, N patches (pixels of the small picture, row-major), M hidden pixels of the batch, V colours,
C channels, D width.

Formula: with c the colours, h the last tokens after the final norm, W the output table,
    next:    loss = mean over all pixels j of CE(W h_j, c_j), where h_j has seen c_1 ... c_(j-1)
    hidden:  loss = mean over hidden pixels j of CE(W h_j, c_j), where h has seen the embeddings, zero where hidden

No authors' code was available to check against; tested against its formulas. Read in the authors' code, but not
compared with it in numbers: norms without mean and bias (the paper says layer norm), linear layers without bias, GELU
as x sigmoid(1.702 x), a start token, an output table of its own that starts at zero, initial values. Where this
differs from that code: hidden pixels are a fixed number an image, where they hide each with probability 0.15, so the
mean over an image's hidden pixels and over the batch's is the same. Unverified: the learning rate of each size.

What is exported is the whole network, whose tokens for evaluation are those of the middle (`models/pixels.py`); timm
has no such network. The palette is k-means of the first batch's pixels, unless `palette` gives one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Doc

from unmask.data.batch import Batch, CropConfig
from unmask.masking import MaskConfig
from unmask.methods.base import (
    Inspection,
    MaskedMethodConfig,
    Method,
    MethodConfig,
    MethodInfo,
    check_mask,
    one_crop,
    shared_views,
)
from unmask.models.build import build_encoder
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.palette import kmeans_palette, read_palette
from unmask.models.pixels import PIXEL_SIZES, PixelEncoder
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.ranks import gather_without_gradient, share_of_mean
from unmask.trainee import Losses, one_dimensional
from unmask.views import Views, normalise

HALF = (0.5, 0.5, 0.5)
PALETTE_PIXELS = 65536  # as many of the first batch's pixels as k-means sees


@dataclass(frozen=True, kw_only=True)
class IGPTConfig(MaskedMethodConfig):
    """Knobs of iGPT; defaults are the paper's for its smallest network, iGPT-S."""

    encoder: Annotated[EncoderConfig, Doc("An igpt_* encoder of 32x32 pixels in 512 colours. [paper]")] = EncoderConfig(
        name="igpt_small", image_height=32, image_width=32, patch_size=1
    )
    objective: Annotated[
        Literal["next", "hidden"], Doc("Tell each pixel from those before it, or hidden pixels from the rest. [paper]")
    ] = "next"
    mask: Annotated[MaskConfig, Doc("Objective hidden: which pixels are hidden. [paper and code: 15 %]")] = MaskConfig(
        kind="random", ratio=0.15
    )
    palette: Annotated[
        str | None, Doc("A .npy file of colours in [-1, 1], one a row, as OpenAI's; None: k-means of the first batch.")
    ] = None
    crop_scale: Annotated[
        tuple[float, float], Doc("Share of the image that a crop covers. [224 of 256 to 384 pixels: 0.34 to 0.77]")
    ] = (0.34, 1.0)
    mean: Annotated[tuple[float, ...], Doc("Mean of each channel; colours lie in [-1, 1]. [code]")] = HALF
    std: Annotated[tuple[float, ...], Doc("Deviation of each channel. [code]")] = HALF
    optimizer: Annotated[OptimizerConfig, Doc("For batches of 128; lr is unverified. [paper]")] = OptimizerConfig(
        lr=3e-3, lr_batch=None, betas=(0.9, 0.95), weight_decay=0.0, warmup_epochs=1
    )


class IGPT(Method[Views]):
    """Tell the colour of pixels from other pixels (Chen et al. 2020)."""

    Config: ClassVar[type[MethodConfig]] = IGPTConfig
    info: ClassVar[MethodInfo] = MethodInfo(
        title="iGPT",
        idea="Read a small picture as a text of colours, and tell every pixel from those before it.",
        paper="ICML 2020",
        year=2020,
        family="generative",
        online_input="colours of the pixels before",
        target="colours of a palette",
        objective="cross-entropy on all pixels",
    )
    palette_placed: Tensor

    def __init__(self, config: IGPTConfig) -> None:
        super().__init__()
        self.config: IGPTConfig = config
        wanted = config.encoder
        if wanted.name not in PIXEL_SIZES:
            raise ValueError(f"iGPT reads colours of pixels: its encoder is one of {', '.join(PIXEL_SIZES)}")
        palette_VC = None if config.palette is None else read_palette(config.palette)
        if palette_VC is not None:
            if palette_VC.shape != (wanted.colours or len(palette_VC), wanted.channels):
                raise ValueError(
                    f"{config.palette} holds {len(palette_VC)} colours of {palette_VC.shape[1]} channels, "
                    f"but {wanted.colours or len(palette_VC)} of {wanted.channels} are needed"
                )
            wanted = replace(wanted, colours=len(palette_VC))
        encoder = build_encoder(replace(wanted, causal=config.objective == "next"), mask_token=False)
        assert isinstance(encoder, PixelEncoder)
        self.encoder = encoder
        encoder.set_normalisation(config.mean, config.std)
        if palette_VC is not None:
            encoder.pixels.palette_VC.copy_(palette_VC)
        self.register_buffer("palette_placed", torch.tensor(palette_VC is not None))
        self.head = nn.Linear(encoder.width, encoder.colours, bias=False)
        nn.init.zeros_(self.head.weight)

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return one_crop(self.encoder, self.config)

    def make_views(self, batch: Batch) -> Views:
        views = shared_views(batch, self.encoder, self.config, colour=None)
        return replace(views, mask_BN=None) if self.encoder.causal else views

    def losses(self, views: Views, progress: float = 0.0) -> Losses:
        if self.training and not bool(self.palette_placed):
            self._place_palette(views.online)
        ids_BN = self.encoder.ids(views.online)
        if self.encoder.causal:
            logits_BNV = self.head(self.encoder.last_tokens(ids_BN))
            return {"pixels": F.cross_entropy(logits_BNV.flatten(0, 1), ids_BN.flatten())}
        mask_BN = check_mask(views.mask_BN)
        logits_MV = self.head(self.encoder.last_tokens(ids_BN, mask_BN)[mask_BN])
        return {"pixels": share_of_mean(F.cross_entropy(logits_MV, ids_BN[mask_BN]), len(logits_MV))}

    @torch.no_grad()
    def _place_palette(self, images_BCHW: Tensor) -> None:
        """Colours by k-means of the pixels of these images, and of the other ranks' ones, once."""
        all_BCHW, _ = gather_without_gradient(images_BCHW)
        colours_NC = self.encoder.picture(all_BCHW).flatten(0, 1)
        generator = torch.Generator().manual_seed(0)
        chosen_N = torch.randperm(len(colours_NC), generator=generator)[:PALETTE_PIXELS].to(colours_NC.device)
        with torch.autocast(images_BCHW.device.type, enabled=False):
            palette_VC = kmeans_palette(colours_NC[chosen_N], self.encoder.colours, generator)
        self.encoder.pixels.palette_VC.copy_(palette_VC)
        self.palette_placed.fill_(True)

    def update_target(self, progress: float) -> None:
        """There is no target network."""

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=not one_dimensional(name, parameter))

    def exported(self) -> Encoder:
        return self.encoder

    def inspect(self, views: Views) -> Inspection:
        """Each pixel in the colour that it is told to have."""
        logits_BNV = self.head(self.encoder.last_tokens(self.encoder.ids(views.online), views.mask_BN))
        colours_BNC = self.encoder.pixels.palette_VC[logits_BNV.argmax(dim=-1)]
        small_BChw = colours_BNC.transpose(1, 2).unflatten(2, self.encoder.grid)
        picture_BCHW = F.interpolate(small_BChw, size=views.online.shape[2:], mode="nearest")
        return Inspection(reconstruction_BCHW=normalise(picture_BCHW, self.config.mean, self.config.std))
