"""Pre-train any method in a loop of your own: plain PyTorch, nothing hidden.

    python examples/plain_loop.py --data FOLDER --method cmae --steps 2000 --out encoder.safetensors
    unmask evaluate knn encoder.safetensors FOLDER

The whole contract with a method is in the marked lines. For the same settings and seed, `unmask pretrain` ends with the
same weights; what it adds is resuming, several devices, mixed precision, health checks and reports.
"""

from __future__ import annotations

import argparse

import torch

import unmask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="builtin:emoji", help="a folder of images, shards, builtin:emoji ...")
    parser.add_argument("--method", default="conmim", choices=unmask.METHODS)
    parser.add_argument("--encoder", default="vit_tiny_patch16_224", help="a timm ViT")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--patch-size", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", default="encoder.safetensors")
    args = parser.parse_args()
    device = torch.device(args.device)

    # The method's published settings, fitted to these images.
    source = unmask.open_source(args.data)
    kind = unmask.METHODS[args.method]
    size = (args.image_size, args.image_size)
    wishes = unmask.Wishes(encoder=args.encoder, image_size=size, patch_size=args.patch_size)
    settings, _ = unmask.fit_settings(kind.Config(), wishes, source)
    torch.manual_seed(0)
    method = kind(settings).to(device).train()

    # Crops of the sizes that the method asks for; the batch of a step follows from (seed, step) alone.
    loader = unmask.CropLoader(
        source, method.crops, batch_size=args.batch_size, total_steps=args.steps, seed=0, workers=0,
        captions=method.reads_captions,
    )  # fmt: skip
    epochs = args.steps / loader.steps_per_epoch
    optimizer = unmask.build_optimizer(method, method.rule, settings.optimizer)

    for step, batch in enumerate(loader):
        progress = step / args.steps
        torch.manual_seed(batch.seed)  # what torch itself draws, such as stochastic depth
        # --- the contract ---
        unmask.follow_schedule(optimizer, settings.optimizer, progress, batch_size=args.batch_size, epochs=epochs)
        if method.target_moves == "before step":  # MoCo v3, BYOL, SIM
            method.update_target(progress)
        losses = method(batch.to(device), progress)  # a dict of named losses; their sum is minimised
        torch.stack(list(losses.values())).sum().backward()
        unmask.finish_gradients(optimizer, settings.optimizer, progress)  # clips as the authors do
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if method.target_moves == "after step":
            method.update_target(progress)
        # --------------------
        print(f"step {step + 1}/{args.steps}", *(f"{name} {loss.item():.4f}" for name, loss in losses.items()))

    unmask.save_encoder(method, args.out, data=args.data)
    features = unmask.open_encoder(args.out).features(batch.crops[0][:, 0])
    print(f"{args.out}: {features.shape[1]} features an image")


if __name__ == "__main__":
    main()
