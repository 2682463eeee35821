"""Palettes: the colours by which iGPT names pixels.

Shape legend: N colours of pixels, V colours of the palette, C channels. All colours are in [0, 1].
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

KMEANS_ROUNDS = 20
COLOURS_AT_ONCE = 65536


def spread_palette(colours: int, channels: int) -> Float[Tensor, "V C"]:
    """A palette that knows no data: points spread evenly over all colours (a Sobol sequence)."""
    return torch.quasirandom.SobolEngine(channels).draw(colours)


def nearest_colours(colours_NC: Float[Tensor, "N C"], palette_VC: Float[Tensor, "V C"]) -> Int64[Tensor, " N"]:
    """For each colour the nearest of the palette (Euclidean)."""
    # |x - c|^2 without |x|^2, which is the same for every c.
    norms_V = palette_VC.square().sum(dim=1)
    parts = colours_NC.split(COLOURS_AT_ONCE)
    return torch.cat([(norms_V - 2 * part @ palette_VC.T).argmin(dim=1) for part in parts])


def kmeans_palette(colours_NC: Float[Tensor, "N C"], colours: int, generator: torch.Generator) -> Float[Tensor, "V C"]:
    """The centres of k-means, begun at random colours of those given; one that loses all its colours stays where it is.

    `generator` lives on the CPU. With fewer pixels than colours of the palette some begin alike.
    """
    count = len(colours_NC)
    if count >= colours:
        chosen_V = torch.randperm(count, generator=generator)[:colours]
    else:
        chosen_V = torch.randint(count, (colours,), generator=generator)
    palette_VC = colours_NC[chosen_V.to(colours_NC.device)]
    for _ in range(KMEANS_ROUNDS):
        ids_N = nearest_colours(colours_NC, palette_VC)
        # On a GPU adding by index has no fixed order, and a resumed run must end bit for bit; sorted runs have one.
        order_N = ids_N.argsort(stable=True)
        hits_V = torch.bincount(ids_N, minlength=colours)
        sums_VC = torch.segment_reduce(colours_NC[order_N], "sum", lengths=hits_V, axis=0)
        palette_VC = torch.where(hits_V[:, None] > 0, sums_VC / hits_V[:, None].clamp_min(1), palette_VC)
    return palette_VC


def read_palette(path: str | Path) -> Float[Tensor, "V C"]:
    """A palette from a .npy file of V x C values in [-1, 1], as OpenAI publishes its own (kmeans_centers.npy).

    ValueError, in one sentence, for a file that holds none.
    """
    try:
        values = np.load(path, allow_pickle=False)
    # numpy's reader raises nearly anything on damaged bytes.
    except Exception as error:
        raise ValueError(f"{path} is not a readable .npy file") from error
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind != "f":
        raise ValueError(f"{path} holds no table of colours, one a row")
    if not np.isfinite(values).all() or np.abs(values).max(initial=0) > 1:
        raise ValueError(f"{path} holds colours outside [-1, 1]")
    return torch.from_numpy(values.astype(np.float32) / 2 + 0.5)
