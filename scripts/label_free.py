"""How well measures without labels agree with the linear probe, over several encoders: rank correlations.

python scripts/label_free.py RUN... --on builtin:fashion-mnist --out label_free.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr

from unmask.data.sources import labelled
from unmask.evaluation.augmented import ViewConfig, view_features
from unmask.evaluation.linear import LinearConfig, quick_linear
from unmask.evaluation.protocols import encoder_features
from unmask.evaluation.unlabelled import measure_unlabelled
from unmask.models.pretrained import PretrainedEncoder, open_encoder
from unmask.pretrain import random_start

MEASURES = ("rankme", "alpha_req", "lidar", "uniformity", "alignment", "feature_std")
VIEWS = ViewConfig()


def measured(name: str, encoder: PretrainedEncoder, data: str) -> dict[str, Any]:
    """Linear top-1 and every measure of one encoder."""
    train, test = labelled(data)
    encoder.to(torch.device("cpu"))
    features = [encoder_features(encoder, half, workers=1) for half in (train, test)]
    linear = quick_linear(features[0], features[1], LinearConfig(), 0).score.top1
    height, width = encoder.encoder.image_size
    views = view_features(
        encoder.features,
        train,
        VIEWS,
        height=height,
        width=width,
        channels=encoder.encoder.config.channels,
        seed=0,
        workers=1,
    )
    return {"encoder": name, "linear": linear} | measure_unlabelled(views).as_dict()


def main() -> None:
    """Measure every encoder, and the random start of the first; print the table and the correlations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--on", required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    first = open_encoder(arguments.runs[0])
    rows = [measured("random start", random_start(arguments.runs[0], first), arguments.on)]
    rows += [measured(Path(run).name, open_encoder(run), arguments.on) for run in arguments.runs]
    found = {}
    for measure in MEASURES:
        pairs = [(row[measure], row["linear"]) for row in rows if row[measure] is not None]
        correlation = spearmanr(*zip(*pairs, strict=True))
        found[measure] = {"rho": float(correlation.statistic), "p": float(correlation.pvalue), "encoders": len(pairs)}
    arguments.out.write_text(json.dumps({"data": arguments.on, "rows": rows, "spearman": found}, indent=2) + "\n")
    for row in rows:
        figures = " ".join("-" if row[name] is None else f"{row[name]:10.4g}" for name in ("linear", *MEASURES))
        sys.stdout.write(f"{row['encoder']:<14} {figures}\n")
    for measure, value in found.items():
        sys.stdout.write(f"{measure:<12} rho {value['rho']:+.2f} (p {value['p']:.2f}, {value['encoders']} encoders)\n")


if __name__ == "__main__":
    main()
