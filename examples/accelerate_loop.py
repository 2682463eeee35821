"""Pre-train any method in a loop of your own that Accelerate spreads over devices.

    accelerate launch --num_processes 2 examples/accelerate_loop.py --data FOLDER --steps 2000   # on two GPUs
    torchrun --nproc_per_node 2 examples/accelerate_loop.py --cpu                                # on processors

Needs `pip install accelerate`. Our loader gives each rank its part of every batch, so only the method and the optimizer
are prepared. What a method compares across ranks goes through torch's process group, which Accelerate has made.
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

import unmask

ENCODER, SIZE, PATCH = "vit_tiny_patch16_224", 32, 8
BATCH = 16  # images of one optimizer step, on all ranks together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="builtin:emoji")
    parser.add_argument("--method", default="conmim", choices=unmask.METHODS)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--cpu", action="store_true", help="also where there is a GPU")
    parser.add_argument("--out", default="encoder.safetensors")
    args = parser.parse_args()

    # Buffers are each rank's own or already the same on all.
    accelerator = Accelerator(cpu=args.cpu, kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)])
    ranks, rank = accelerator.num_processes, accelerator.process_index

    source = unmask.open_source(args.data)
    kind = unmask.METHODS[args.method]
    wishes = unmask.Wishes(encoder=ENCODER, image_size=(SIZE, SIZE), patch_size=PATCH)
    settings, _ = unmask.fit_settings(kind.Config(), wishes, source)
    torch.manual_seed(0)
    method = kind(settings)
    loader = unmask.CropLoader(
        source, method.crops, batch_size=BATCH // ranks, parts=ranks, mine=range(rank, rank + 1),
        total_steps=args.steps, seed=0, workers=0, captions=method.reads_captions,
    )  # fmt: skip
    epochs = args.steps / loader.steps_per_epoch
    method.to(accelerator.device).train()
    optimizer = unmask.build_optimizer(method, method.rule, settings.optimizer)
    prepared, optimizer = accelerator.prepare(method, optimizer)

    for step, batch in enumerate(loader):
        progress = step / args.steps
        torch.manual_seed(batch.seed)
        unmask.follow_schedule(optimizer, settings.optimizer, progress, batch_size=BATCH, epochs=epochs)
        if method.target_moves == "before step":
            method.update_target(progress)
        losses = prepared(batch.to(accelerator.device), progress)  # not `method`: gradients are shared here
        accelerator.backward(torch.stack(list(losses.values())).sum())
        accelerator.unscale_gradients()
        unmask.finish_gradients(optimizer, settings.optimizer, progress)  # clips as the authors do
        optimizer.step()
        optimizer.zero_grad()
        if method.target_moves == "after step":
            method.update_target(progress)
        accelerator.print(f"step {step + 1}/{args.steps}", *(f"{name} {loss:.4f}" for name, loss in losses.items()))

    if accelerator.is_main_process:
        unmask.save_encoder(method, args.out, data=args.data)
        print(f"encoder: {args.out}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
