"""Pre-train any method by Lightning: its loop, its checkpoints, its devices.

    python examples/lightning_module.py --data FOLDER --steps 2000 --devices 2 --out encoder.safetensors
    python examples/lightning_module.py --data FOLDER --steps 2000 --resume checkpoints/last.ckpt

Needs `pip install lightning`. On several devices each rank takes its part of every batch, and what a method compares
across ranks goes through torch's process group, which Lightning has made.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy

import unmask

ENCODER, SIZE, PATCH = "vit_tiny_patch16_224", 32, 8
BATCH = 16  # images of one optimizer step, on all ranks together


class Pretraining(L.LightningModule):
    """A method of unmask, of any kind, for `steps` optimizer steps on the images of `source`."""

    def __init__(self, method: unmask.Method, source: unmask.Source, steps: int) -> None:
        super().__init__()
        self.method, self.source, self.steps = method, source, steps
        self.settings = method.config.optimizer

    @property
    def progress(self) -> float:
        return self.global_step / self.steps

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return unmask.build_optimizer(self.method, self.method.rule, self.settings)

    def train_dataloader(self) -> Iterator[unmask.Batch]:
        # No state to save: a batch follows from (seed, step), so a resumed run asks for the step that it is at.
        ranks, rank = self.trainer.world_size, self.trainer.global_rank
        loader = unmask.CropLoader(
            self.source, self.method.crops, batch_size=BATCH // ranks, parts=ranks, mine=range(rank, rank + 1),
            start_step=self.global_step, total_steps=self.steps, seed=0, workers=0, captions=self.method.reads_captions,
        )  # fmt: skip
        return iter(loader)

    def training_step(self, batch: unmask.Batch, index: int) -> torch.Tensor:
        torch.manual_seed(batch.seed)
        losses = self.method(batch, self.progress)
        self.log_dict(dict(losses), prog_bar=True, batch_size=BATCH)
        return torch.stack(list(losses.values())).sum()

    def configure_gradient_clipping(self, optimizer: torch.optim.Optimizer, *_: Any, **__: Any) -> None:
        unmask.finish_gradients(optimizer, self.settings, self.progress)  # clips as the authors do

    def optimizer_step(self, epoch: int, index: int, optimizer: Any, closure: Any = None) -> None:
        """The step of the weights, and around it what has to happen at its very moment: rates, and the target."""
        progress, epochs = self.progress, self.steps / (len(self.source) // BATCH)
        unmask.follow_schedule(optimizer, self.settings, progress, batch_size=BATCH, epochs=epochs)
        if self.method.target_moves == "before step":  # before the closure, which computes the losses
            self.method.update_target(progress)
        super().optimizer_step(epoch, index, optimizer, closure)
        if self.method.target_moves == "after step":
            self.method.update_target(progress)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="builtin:emoji")
    parser.add_argument("--method", default="conmim", choices=unmask.METHODS)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--checkpoints", default="checkpoints", help="folder, with one after every 5 steps")
    parser.add_argument("--resume", help="a checkpoint of Lightning's to go on from")
    parser.add_argument("--out", default="encoder.safetensors")
    args = parser.parse_args()

    source = unmask.open_source(args.data)
    kind = unmask.METHODS[args.method]
    wishes = unmask.Wishes(encoder=ENCODER, image_size=(SIZE, SIZE), patch_size=PATCH)
    settings, _ = unmask.fit_settings(kind.Config(), wishes, source)
    torch.manual_seed(0)
    method = kind(settings)

    # Buffers are each rank's own or already the same on all.
    strategy = DDPStrategy(broadcast_buffers=False) if args.devices > 1 else "auto"
    trainer = L.Trainer(
        max_steps=args.steps, accelerator=args.accelerator, devices=args.devices, strategy=strategy, logger=False,
        callbacks=[ModelCheckpoint(args.checkpoints, every_n_train_steps=5, save_top_k=-1, save_last=True)],
    )  # fmt: skip
    trainer.fit(Pretraining(method, source, args.steps), ckpt_path=args.resume, weights_only=True)
    if trainer.is_global_zero:
        unmask.save_encoder(method, args.out, data=args.data)
        print(f"encoder: {args.out}")


if __name__ == "__main__":
    main()
