"""A sheet of pictures: cells in rows and columns, with the words around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from typing_extensions import Doc

Mark = Literal["none", "right", "wrong"]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One picture of a sheet."""

    image: Annotated[bytes, Doc("The picture, PNG or WebP.")]
    alt: Annotated[str, Doc("What a reader who cannot see the picture should know.")]
    label: Annotated[str, Doc("Words under the picture.")] = ""
    mark: Annotated[Mark, Doc("Whether the picture shows a hit or a miss.")] = "none"


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Pictures in rows and columns, with words that say how to read them."""

    headers: Annotated[tuple[str, ...], Doc("One heading a column.")]
    rows: Annotated[tuple[tuple[Cell, ...], ...], Doc("Cells, as many in each row as there are headings.")]
    caption: Annotated[str, Doc("What one sees and how to read it, in plain words.")]
    note: Annotated[str, Doc("The one figure that sums the sheet up, as a sentence.")] = ""
