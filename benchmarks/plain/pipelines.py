"""The authors' way from the bytes of a JPEG to a batch: Pillow, torchvision's first transforms, float tensors collated.

MAE, ConMIM and CMAE as their code composes them; what their loaders make and never use (ConMIM's second, small crop) is
left out. One picture at a time passes through Pillow, every view becomes a normalised float tensor in the data worker,
and default_collate stacks them.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence

from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torch.utils.data import default_collate
from torchvision import transforms as T

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BICUBIC = T.InterpolationMode.BICUBIC

Pipeline = Callable[[Image.Image], tuple[Tensor, ...]]


def batch(pipeline: Pipeline, files: Sequence[bytes]) -> list[Tensor]:
    """The views of some files, stacked."""
    views: list[Tensor] = default_collate([pipeline(decoded(data)) for data in files])
    return views


def decoded(data: bytes) -> Image.Image:
    """As ImageFolder's loader does it."""
    return Image.open(io.BytesIO(data)).convert("RGB")


class GaussianBlur:
    """Pillow's blur of a radius uniform in 0.1 to 2, with probability `p`."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() > self.p:
            return image
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


class Solarize:
    """Pillow's solarisation at 128, with probability `p`."""

    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.solarize(image) if random.random() < self.p else image


def _normalised() -> list[Callable[..., object]]:
    return [T.ToTensor(), T.Normalize(MEAN, STD)]


def mae(size: int = 224) -> Pipeline:
    """One view: crop, flip."""
    chain = T.Compose(
        [
            T.RandomResizedCrop(size, scale=(0.2, 1.0), interpolation=BICUBIC),
            T.RandomHorizontalFlip(),
            *_normalised(),
        ]
    )
    return lambda image: (chain(image),)


def conmim(size: int = 224) -> Pipeline:
    """One flipped crop for both views, one of them coloured."""
    common = T.Compose(
        [T.RandomHorizontalFlip(0.5), T.RandomResizedCrop(size, scale=(0.08, 1.0), interpolation=BICUBIC)]
    )
    weak = T.Compose(_normalised())
    strong = T.Compose(
        [
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            T.RandomGrayscale(p=0.2),
            GaussianBlur(0.1),
            Solarize(0.2),
            *_normalised(),
        ]
    )

    def views(image: Image.Image) -> tuple[Tensor, Tensor]:
        cut = common(image)
        return weak(cut), strong(cut)

    return views


def cmae(size: int = 224, shift: int = 31) -> Pipeline:
    """Two windows of one flipped master crop, the second one shifted and coloured."""
    master = T.Compose(
        [
            T.RandomResizedCrop(size + shift + 1, scale=(0.2, 1.0), interpolation=BICUBIC),
            T.RandomHorizontalFlip(0.5),
        ]
    )
    weak = T.Compose(_normalised())
    strong = T.Compose(
        [
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            T.RandomGrayscale(p=0.2),
            GaussianBlur(0.5),
            *_normalised(),
        ]
    )

    def views(image: Image.Image) -> tuple[Tensor, Tensor]:
        cut = master(image)
        top, left = random.randint(0, shift), random.randint(0, shift)
        return weak(cut.crop((0, 0, size, size))), strong(cut.crop((left, top, left + size, top + size)))

    return views


PIPELINES: dict[str, Callable[[], Pipeline]] = {"mae": mae, "conmim": conmim, "cmae": cmae}
