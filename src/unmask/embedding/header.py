"""What a file of features says of itself: JSON in its metadata, or beside it where it has none."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from typing_extensions import Doc

from unmask.data.stored import PixelRange
from unmask.embedding.recipe import Recipe
from unmask.formats import FORMATS, objection
from unmask.models.model_file import WRONG_VALUES, range_of

KEY = "unmask_features"
KIND = "features"
Precision = Literal["fp32", "fp16"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was asked for: the same plan makes the same file, to the bit, on the same machine."""

    recipe: Annotated[Recipe, Doc("What the features are made by.")]
    data: Annotated[str, Doc("The images, as the user named them.")]
    split: Annotated[str, Doc("Which part of them: all, train or test.")]
    names: Annotated[str, Doc("Checksum of the names of all images.")]
    precision: Annotated[Precision, Doc("Type of the stored numbers.")]
    batch_size: Annotated[int, Doc("Images that went through the encoder at once; sums are rounded by it.")]
    part_size: Annotated[int, Doc("Images of a part, which is a row group of a parquet file.")]


@dataclass(frozen=True, kw_only=True)
class Header:
    """A plan, and what came of it."""

    plan: Annotated[Plan, Doc("What was asked for.")]
    encoder: Annotated[str, Doc("Run folder, encoder file or timm:NAME, as the user named it.")]
    method: Annotated[str | None, Doc("Name of the method that trained the encoder, where that is known.")]
    channels: Annotated[int, Doc("Channels of the images.")]
    mean: Annotated[tuple[float, ...], Doc("Mean by which the encoder normalises each channel.")]
    std: Annotated[tuple[float, ...], Doc("Deviation by which it does.")]
    shape: Annotated[tuple[int, ...], Doc("Shape of one image's features: D, or D, rows and columns.")]
    classes: Annotated[tuple[str, ...] | None, Doc("Name of the class with each label; None without labels.")]
    images: Annotated[int, Doc("Number of images that have features.")]
    bad_files: Annotated[int, Doc("Number of images that could not be read and are left out.")]
    version: Annotated[str, Doc("Version of unmask that wrote the file.")]
    pixel_range: Annotated[
        PixelRange | None,
        Doc("What becomes black and white of images with more than 8 bits; None: the ends."),
    ] = None

    def as_json(self) -> str:
        """The header as the file holds it."""
        return json.dumps({"format": FORMATS[KIND], **asdict(self)})


def read_header(text: str | bytes | None, path: object) -> Header:
    """The header in a file's metadata. ValueError where there is none, or a damaged one."""
    if text is None:
        raise ValueError(f"{path} holds no features of unmask embed (its header is missing)")
    try:
        values: dict[str, Any] = json.loads(text)
        form = values.pop("format")
    except (*WRONG_VALUES, RecursionError) as error:
        raise ValueError(f"{path} has a damaged header") from error
    refused = objection(KIND, form)
    if refused is not None:
        raise ValueError(f"{path} {refused}")
    try:
        plan = values.pop("plan")
        recipe = plan.pop("recipe")
        size = recipe.pop("image_size")
        for name in ("mean", "std", "shape", "classes"):
            values[name] = None if values[name] is None else tuple(values[name])
        values["pixel_range"] = range_of(values)
        header = Header(plan=Plan(recipe=Recipe(image_size=(size[0], size[1]), **recipe), **plan), **values)
        counts = (header.images, header.bad_files, header.channels, plan["part_size"], *header.shape)
        if not header.shape or any(not isinstance(count, int) or count < 0 for count in counts):
            raise TypeError(counts)
    except WRONG_VALUES as error:
        raise ValueError(f"{path} has a damaged header") from error
    return header


def difference(held: Plan, wanted: Plan) -> str | None:
    """What of two plans is not the same, in words; None where all is."""
    for mine, other in ((vars(held.recipe), vars(wanted.recipe)), (vars(held), vars(wanted))):
        for name, value in mine.items():
            if name != "recipe" and value != other[name]:
                if name in ("checksum", "names"):
                    return "another encoder" if name == "checksum" else "other images"
                return f"{name.replace('_', ' ')} {value}, not {other[name]}"
    return None
