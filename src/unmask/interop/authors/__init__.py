"""The authors' names and golden cases, one file a method, and the table of them."""

from __future__ import annotations

from unmask.interop.authors import cmae, conmim, mae, simmim
from unmask.interop.authors.case import Authors

AUTHORS: dict[str, Authors] = {
    "conmim": conmim.AUTHORS,
    "cmae": cmae.AUTHORS,
    "mae": mae.AUTHORS,
    "simmim": simmim.AUTHORS,
}
