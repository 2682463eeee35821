"""ConvMAE: Masked Convolution Meets Masked Autoencoders (Gao et al., NeurIPS 2022, arXiv 2205.03892; also MCMAE).

MAE whose encoder begins with convolutions that see nothing of the hidden patches, and ends with features of all its
resolutions.

Shape legend: B samples, N patches, M hidden patches of the batch, K = p*p*C values.

Formula:
    x1 = stage1(image, mask), x2 = stage2(x1, mask), x3 = vit(visible(x2)): a block of convolutions is
        x + conv1x1(depthwise5x5((1 - mask) * conv1x1(norm(x)))), then x + mlp(norm(x))
    tokens = norm(x3 + fuse1(x1) + fuse2(x2)) at visible patches
    loss = mean over hidden patches of (decoder(tokens) - normalised pixels)^2, as in MAE

Where the authors' code differs from the paper, or is not told there:
- the mask multiplies before the depthwise convolution only; the embeddings between stages and the residual path are not
  masked, which is the same, because they never mix patches;
- there is no class token; norms of the convolution blocks have epsilon 1e-5, those of ViT blocks 1e-6;
- the fused sum is part of pre-training only: when they fine-tune, the ViT blocks' output alone is pooled; here the
  exported encoder keeps it.
The encoder also serves other methods that leave hidden patches out, such as CMAE (`--method cmae --encoder
convmae_base_patch16`), and all that see whole images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from typing_extensions import Doc

from unmask.methods.base import MethodConfig, MethodInfo
from unmask.methods.mae import MAE, MAEConfig
from unmask.models.encoder_config import EncoderConfig
from unmask.models.hybrid import HYBRIDS, PREFIX


@dataclass(frozen=True, kw_only=True)
class ConvMAEConfig(MAEConfig):
    """Knobs of ConvMAE: those of MAE, with the same values, and another encoder. [code, recipe]"""

    encoder: Annotated[EncoderConfig, Doc("ConvMAE's hybrid; its authors publish the base one. [code]")] = (
        EncoderConfig(name="convmae_small_patch16")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.encoder.name.startswith(PREFIX):
            raise ValueError(
                f"ConvMAE is MAE with an encoder of its own ({', '.join(HYBRIDS)}), not {self.encoder.name!r}; "
                "use method mae for a ViT"
            )


class ConvMAE(MAE):
    """MAE on masked convolutions and a ViT behind them (Gao et al. 2022). All that differs is the encoder."""

    Config: ClassVar[type[MethodConfig]] = ConvMAEConfig
    info: ClassVar[MethodInfo] = MethodInfo(
        title="ConvMAE",
        idea="MAE whose encoder begins with convolutions that see nothing of hidden patches.",
        paper="arXiv 2205.03892",
        year=2022,
        family="masked",
        online_input="visible patches only, masked convolutions",
        target="normalised pixels",
        objective="squared error on hidden patches",
    )
