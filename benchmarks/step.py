"""Training steps per method: images/s, and the cost of an image relative to the first method, in one run.

    python -m benchmarks.step --methods mae conmim cmae --encoder vit_small_patch16_224 --batch-size 16

The batch is made once, so decoding is left out; views, masks, forward, backward, optimizer and target are in. Methods
take turns, round by round, so that a machine whose speed drifts treats them alike; medians are shown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.harness import ROOT, Table, facts, paired_ratio, publish, take_turns
from unmask.data.batch import Batch
from unmask.methods import find_method
from unmask.models.tokenizers.dvae import DVAEConfig
from unmask.training.trainer import Trainer, TrainingConfig, choose_device

sys.path.insert(0, str(ROOT / "scripts"))
from make_docs import completed, noise_batch


def make_trainer(name: str, encoder: str, batch_size: int, device: torch.device) -> tuple[Trainer, Batch]:
    """A method with its default settings on `encoder`, and a batch of random crops for it."""
    torch.manual_seed(0)
    cls = find_method(name)
    settings = cls.Config()
    # Methods with encoders of their own kind (ConvMAE, iGPT) keep them.
    if settings.encoder.name.startswith(("vit_", "resnet")):
        settings = replace(settings, encoder=replace(settings.encoder, name=encoder))
    with tempfile.TemporaryDirectory() as folder:
        method = cls(completed(settings, DVAEConfig(), Path(folder)))
    training = TrainingConfig(batch_size=batch_size, workers=0)
    trainer = Trainer(method, training, steps_per_epoch=1000, device=device)
    return trainer, noise_batch(method, batch_size).to(device)


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["mae", "conmim", "cmae", "simmim"])
    parser.add_argument("--encoder", default="vit_small_patch16_224")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()

    device = choose_device(arguments.device)
    made = {name: make_trainer(name, arguments.encoder, arguments.batch_size, device) for name in arguments.methods}
    steps = {name: partial(trainer.train_step, [batch]) for name, (trainer, batch) in made.items()}
    timings = take_turns(steps, rounds=arguments.rounds)
    first = timings[arguments.methods[0]]
    results = {
        name: {
            "images_per_second": arguments.batch_size / timing.seconds,
            "relative_cost": paired_ratio(timing.wall, first.wall),
        }
        for name, timing in timings.items()
    }
    rows = tuple(
        (name, found["images_per_second"], 1000 / found["images_per_second"], found["relative_cost"])
        for name, found in results.items()
    )
    table = Table(
        f"A step of {arguments.encoder}, {arguments.batch_size} images, on {device}.",
        ("method", "images/s", "ms an image", f"cost by {arguments.methods[0]}"),
        rows,
    )
    about = facts(seed=0, device=str(device), encoder=arguments.encoder, batch_size=arguments.batch_size)
    publish("step", [table], out=arguments.out, facts=about, results=results)


if __name__ == "__main__":
    main()
