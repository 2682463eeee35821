"""Fine-tune an exported encoder by timm alone: its datasets, loaders, layer decay and schedules.

    unmask export RUN --to timm -o timm-encoder
    python examples/timm_finetune.py timm-encoder --data FOLDER

FOLDER holds train/CLASS/IMAGE and validation/CLASS/IMAGE; without one a small share of Fashion-MNIST is written out.
Nothing of unmask is needed after the export. Who has timm's repository says the same to its script:

    python train.py --data-dir FOLDER --model local-dir:timm-encoder --pretrained --num-classes 10 \
        --opt adamw --opt-betas 0.9 0.999 --lr 1e-3 --weight-decay 0.05 --layer-decay 0.65 --sched cosine --epochs 30 \
        --warmup-epochs 3 --warmup-lr 1e-6 --min-lr 1e-6 --drop-path 0.1 --smoothing 0.1

`--pretrained` matters: without it timm takes from the folder only what the network looks like.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

BATCH = 32


def write_images(folder: Path, share: int = 20) -> None:
    """Every `share`-th image of the built-in Fashion-MNIST as files, in the folders that timm expects."""
    from PIL import Image

    import unmask

    for split, name in (("train", "train"), ("test", "validation")):
        source = unmask.open_source("builtin:fashion-mnist", split=split)
        for index in range(0, len(source), share):
            file = folder / name / source.classes[source.labels[index]].replace("/", "-") / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(source.read(index).squeeze()).save(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path, help="what `unmask export --to timm` has written")
    parser.add_argument("--data", type=Path, default=Path("fashion"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("finetuned.pt"))
    args = parser.parse_args()
    if not args.data.exists():
        write_images(args.data)
    device = torch.device(args.device)
    timm.utils.random_seed(0)

    train = create_dataset("", root=args.data, split="train", is_training=True)
    test = create_dataset("", root=args.data, split="validation", class_map=train.reader.class_to_idx)
    classes = len(train.reader.class_to_idx)
    model = timm.create_model(f"local-dir:{args.encoder}", pretrained=True, num_classes=classes, drop_path_rate=0.1)
    model.to(device)

    # Size, mean, deviation, crop: from the export's config.json.
    facts = resolve_data_config({}, model=model)
    shared = {
        "input_size": facts["input_size"], "mean": facts["mean"], "std": facts["std"], "batch_size": BATCH,
        "num_workers": 0, "persistent_workers": False, "device": device, "use_prefetcher": False,
    }  # fmt: skip
    loader = create_loader(train, is_training=True, scale=(0.5, 1.0), interpolation="bicubic", **shared)
    tests = create_loader(test, interpolation=facts["interpolation"], crop_pct=facts["crop_pct"], **shared)
    optimizer = create_optimizer_v2(
        model, opt="adamw", lr=args.lr, betas=(0.9, 0.999), weight_decay=0.05, layer_decay=0.65
    )
    scheduler, epochs = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=args.epochs, warmup_epochs=args.epochs // 10, warmup_lr=1e-6, min_lr=1e-6,
        step_on_epochs=False, updates_per_epoch=len(loader),
    )  # fmt: skip
    loss_of = LabelSmoothingCrossEntropy(0.1)

    for epoch in range(epochs):
        model.train()
        for number, (images, labels) in enumerate(loader, start=epoch * len(loader) + 1):
            loss = loss_of(model(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step_update(number)
        model.eval()
        with torch.inference_mode():
            hits = sum(int((model(x.to(device)).argmax(1).cpu() == y).sum()) for x, y in tests)
        print(f"epoch {epoch + 1}/{epochs}  loss {loss.item():.3f}  top-1 {100 * hits / len(test):.1f} %")
    torch.save(model.state_dict(), args.out)


if __name__ == "__main__":
    main()
