"""What a tokenizer is worth: what is lost on the way through tokens, and whether its codes are all in use.

Shape legend: B images, C channels, H x W pixels, V codes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import Doc

from unmask.models.pretrained import PretrainedEncoder
from unmask.models.tokenizers.base import PaintingTokenizer, TrainableTokenizer
from unmask.models.tokenizers.vqkd import VQKD
from unmask.report.false_colour import FalseColour
from unmask.report.pixels import Picture, encoded, enlarged, to_picture

BATCH = 64
COLLAPSED = 0.02
SPARSE = 0.25


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Figures of a tokenizer on some images."""

    error: Annotated[float, Doc("Painters: root mean square error of pixels in [0, 1]; VQ-KD: one minus the cosine.")]
    pixels: Annotated[bool, Doc("Whether the error is one of pixels.")]
    vocabulary: Annotated[int, Doc("Number of codes.")]
    tokens: Annotated[int, Doc("Tokens that were looked at.")]
    used: Annotated[int, Doc("Codes that name at least one of them.")]
    perplexity: Annotated[float, Doc("Number of equally frequent codes that would say as much.")]

    @property
    def possible(self) -> int:
        """Codes that could have been used at all."""
        return min(self.vocabulary, self.tokens)

    def as_dict(self) -> dict[str, float]:
        """Plain values for the log."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """In words."""
        what = "root mean square error of pixels in [0, 1]" if self.pixels else "1 - cosine with the teacher's features"
        share = 100 * self.used / self.vocabulary
        return (
            f"{what} {self.error:.4f}; {self.used} of {self.vocabulary} codes in use ({share:.0f} %), "
            f"perplexity {self.perplexity:.1f}"
        )

    def warning(self) -> str | None:
        """What is wrong with the codes and what to try, in plain words; None where nothing is."""
        if self.perplexity < max(1.5, COLLAPSED * self.possible):
            return (
                f"the codebook has collapsed: {self.tokens} tokens say no more than {self.perplexity:.1f} equally "
                "frequent codes would, too little to learn from; train longer, try another --lr, for a dvae a higher "
                "--tokenizer.beta, for the others a lower --tokenizer.codebook.restart-after"
            )
        if self.used < SPARSE * self.possible:
            return f"only {self.used} of {self.vocabulary} codes are in use: a smaller --vocabulary would do"
        return None


@torch.no_grad()
def measure(
    tokenizer: TrainableTokenizer, images_BCHW: Float[Tensor, "B C H W"], teacher: PretrainedEncoder | None
) -> Quality:
    """Error and use of codes over images in [0, 1] that fit the tokenizer."""
    counts_V = torch.zeros(tokenizer.vocabulary, dtype=torch.int64)
    total = 0.0
    device = next(tokenizer.parameters()).device
    for chunk_CPU in images_BCHW.split(BATCH):
        chunk = chunk_CPU.to(device)
        counts_V += torch.bincount(tokenizer.ids(chunk).flatten().cpu(), minlength=tokenizer.vocabulary)
        total += len(chunk) * _error(tokenizer, chunk, teacher)
    pixels = isinstance(tokenizer, PaintingTokenizer)
    mean = total / len(images_BCHW)
    share_V = counts_V.double() / counts_V.sum()
    return Quality(
        error=mean**0.5 if pixels else mean,
        pixels=pixels,
        vocabulary=tokenizer.vocabulary,
        tokens=int(counts_V.sum()),
        used=int((counts_V > 0).sum()),
        perplexity=float(torch.special.entr(share_V).sum().exp()),
    )


def _error(tokenizer: TrainableTokenizer, images_BCHW: Tensor, teacher: PretrainedEncoder | None) -> float:
    """Mean squared error of pixels, or one minus the cosine with the teacher."""
    if isinstance(tokenizer, PaintingTokenizer):
        return float((tokenizer.reconstruct(images_BCHW) - images_BCHW).square().mean())
    assert isinstance(tokenizer, VQKD)
    assert teacher is not None
    return float(1 - tokenizer.agreement(images_BCHW, teacher))


@torch.no_grad()
def sheet(tokenizer: PaintingTokenizer, images_BCHW: Float[Tensor, "B C H W"], *, columns: int = 8) -> bytes:
    """A PNG: rows of images, and below each row what is left of them after having been tokens."""
    device = next(tokenizer.parameters()).device
    painted_BCHW = tokenizer.reconstruct(images_BCHW.to(device)).cpu()
    colours = FalseColour.of(images_BCHW)
    rows = []
    for start in range(0, len(images_BCHW), columns):
        for images in (colours(images_BCHW), colours(painted_BCHW)):
            cells = [enlarged(to_picture(image)) for image in images[start : start + columns]]
            cells += [np.full_like(cells[0], 255)] * (columns - len(cells))
            rows.append(_joined(cells, axis=1, gap=4))
        rows.append(np.full((8, *rows[-1].shape[1:]), 255, dtype=np.uint8))
    return encoded(_joined(rows[:-1], axis=0, gap=4), exact=True)


def _joined(pictures: list[Picture], *, axis: int, gap: int) -> Picture:
    """Pictures side by side (axis 1) or one below the other (axis 0), with white between them."""
    parts: list[Picture] = []
    for picture in pictures:
        shape = (gap, picture.shape[1], 3) if axis == 0 else (picture.shape[0], gap, 3)
        parts += [picture, np.full(shape, 255, dtype=np.uint8)]
    return np.concatenate(parts[:-1], axis=axis)
