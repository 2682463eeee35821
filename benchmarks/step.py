"""Training steps per method: images/s, and the cost of an image relative to the first method, in one run.

    python benchmarks/step.py --methods mae conmim cmae --encoder vit_small_patch16_224 --batch-size 16

The batch is made once, so decoding is left out; views, masks, forward, backward, optimizer and target are in. Methods
take turns, round by round, so that a machine whose speed drifts treats them alike; medians are printed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch

from unmask.data.batch import Batch
from unmask.methods import find_method
from unmask.models.tokenizers.dvae import DVAEConfig
from unmask.training.trainer import Trainer, TrainingConfig, choose_device

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
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
    """Measure and print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["mae", "conmim", "cmae", "simmim"])
    parser.add_argument("--encoder", default="vit_small_patch16_224")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()

    device = choose_device(arguments.device)
    entries = {name: make_trainer(name, arguments.encoder, arguments.batch_size, device) for name in arguments.methods}
    seconds: dict[str, list[float]] = {name: [] for name in entries}
    for turn in range(arguments.rounds + 1):
        for name, (trainer, batch) in entries.items():
            began = perf_counter()
            trainer.train_step([batch])
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first turn warms up
                seconds[name].append(perf_counter() - began)
    first = statistics.median(seconds[arguments.methods[0]])
    results = {}
    print(f"{'method':<10}{'images/s':>10}{'ms an image':>14}{'cost by ' + arguments.methods[0]:>16}")
    for name, times in seconds.items():
        median = statistics.median(times)
        results[name] = {"images_per_second": arguments.batch_size / median, "relative_cost": median / first}
        per_image = 1000 * median / arguments.batch_size
        print(f"{name:<10}{arguments.batch_size / median:>10.2f}{per_image:>14.1f}{median / first:>16.2f}")
    facts = {
        "torch": torch.__version__,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "encoder": arguments.encoder,
        "batch_size": arguments.batch_size,
        "rounds": arguments.rounds,
        "seed": 0,
    }
    print(json.dumps(facts | {"results": results}))


if __name__ == "__main__":
    main()
