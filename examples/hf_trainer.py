"""Pre-train any method by transformers' Trainer: its loop, its checkpoints, its loggers.

    python examples/hf_trainer.py --data FOLDER --steps 2000 --out encoder.safetensors
    python examples/hf_trainer.py --data FOLDER --steps 2000 --resume trainer/checkpoint-1000

Needs `pip install transformers accelerate`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

import unmask

ENCODER, SIZE, PATCH = "vit_tiny_patch16_224", 32, 8
BATCH = 16  # images of one optimizer step, on all ranks together


class WithLoss(torch.nn.Module):
    """A method as Trainer wants a model: named inputs in, an output with "loss"."""

    def __init__(self, method: unmask.Method, steps: int) -> None:
        super().__init__()
        self.method, self.steps = method, steps
        self.step = 0

    def forward(self, batch: unmask.Batch) -> dict[str, torch.Tensor]:
        torch.manual_seed(batch.seed)
        device = next(self.method.parameters()).device
        losses = self.method(batch.to(device), self.step / self.steps)
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}


class Moments(TrainerCallback):
    """What a method needs around the optimizer's step."""

    def __init__(self, model: WithLoss) -> None:
        self.model, self.method = model, model.method

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.model.step = state.global_step
        if self.method.target_moves == "before step":
            self.method.update_target(state.global_step / self.model.steps)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        progress = state.global_step / self.model.steps
        unmask.finish_gradients(optimizer, self.method.config.optimizer, progress)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.method.target_moves == "after step":
            self.method.update_target(state.global_step / self.model.steps)


class Rates(torch.optim.lr_scheduler.LRScheduler):
    """The method's own schedules of rate and weight decay as a scheduler of torch's."""

    def __init__(self, optimizer: torch.optim.Optimizer, settings: unmask.OptimizerConfig, steps: int, epochs: float):
        self.follow = lambda step: unmask.follow_schedule(
            optimizer, settings, step / steps, batch_size=BATCH, epochs=epochs
        )
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        self.follow(self.last_epoch)  # torch counts steps by this name
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch}


class Batches:
    """A run's batches by the name of the model's argument. They follow from (seed, step): after a restart nothing is
    skipped, the loader begins at the step that Trainer is at."""

    def __init__(self, source: unmask.Source, trainer: Trainer) -> None:
        self.source, self.trainer = source, trainer

    def __len__(self) -> int:
        return self.trainer.args.max_steps

    def __iter__(self) -> Iterator[dict[str, unmask.Batch]]:
        ranks, rank = self.trainer.args.world_size, self.trainer.args.process_index
        method, first = self.trainer.model.method, self.trainer.state.global_step
        loader = unmask.CropLoader(
            self.source, method.crops, batch_size=BATCH // ranks, parts=ranks, mine=range(rank, rank + 1),
            start_step=first, total_steps=len(self), seed=0, workers=0, captions=method.reads_captions,
        )  # fmt: skip
        return ({"batch": batch} for batch in loader)


class Pretraining(Trainer):
    """Trainer on our loader."""

    def __init__(self, source: unmask.Source, **given: Any) -> None:
        self.source = source
        super().__init__(**given)

    def get_train_dataloader(self) -> Any:
        return Batches(self.source, self)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="builtin:emoji")
    parser.add_argument("--method", default="conmim", choices=unmask.METHODS)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--save-every", type=int, default=6)
    parser.add_argument("--folder", default="trainer", help="for Trainer's checkpoints")
    parser.add_argument("--resume", help="a checkpoint of Trainer's to go on from")
    parser.add_argument("--out", default="encoder.safetensors")
    args = parser.parse_args()

    source = unmask.open_source(args.data)
    kind = unmask.METHODS[args.method]
    wishes = unmask.Wishes(encoder=ENCODER, image_size=(SIZE, SIZE), patch_size=PATCH)
    settings, _ = unmask.fit_settings(kind.Config(), wishes, source)
    torch.manual_seed(0)
    method = kind(settings)
    model = WithLoss(method, args.steps)
    optimizer = unmask.build_optimizer(method, method.rule, settings.optimizer)
    rates = Rates(optimizer, settings.optimizer, args.steps, args.steps / (len(source) // BATCH))
    arguments = TrainingArguments(
        output_dir=args.folder, max_steps=args.steps, save_steps=args.save_every, logging_steps=1, report_to=[],
        max_grad_norm=0, ignore_data_skip=True, remove_unused_columns=False, use_cpu=not torch.cuda.is_available(),
        ddp_broadcast_buffers=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = Pretraining(
        source, model=model, args=arguments, optimizers=(optimizer, rates), callbacks=[Moments(model)],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=args.resume)
    if trainer.is_world_process_zero():
        unmask.save_encoder(method, args.out, data=args.data)
        print(f"encoder: {args.out}")


if __name__ == "__main__":
    main()
