"""The one loop that trains a tokenizer, from a configuration to a finished file.

Beside the file FILE.safetensors lies the folder FILE with config.json, log.jsonl, checkpoints/ and bad_files.txt, and,
for tokenizers that paint, FILE.png.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from unmask import __version__
from unmask.data.batch import Batch, CropConfig
from unmask.data.loader import CropLoader, EvalLoader, TooManyBadFiles
from unmask.data.sources import Source, open_source
from unmask.data.statistics import first_readable
from unmask.models.pretrained import PretrainedEncoder
from unmask.models.tokenizers.base import Lesson, PaintingTokenizer, TrainableTokenizer
from unmask.models.tokenizers.file import build_tokenizer, tokenizer_file
from unmask.optimisation import build_optimizer, finish_gradients, set_rates
from unmask.progress import RunProgress
from unmask.run_folder import RunFolder
from unmask.tokenizer_training.config import TokenizerTrainingConfig, first_difference
from unmask.tokenizer_training.quality import Quality, measure, sheet
from unmask.training.checkpoint import (
    Checkpoint,
    checkpoint_path,
    load_module_tensors,
    load_optimizer_tensors,
    module_tensors,
    optimizer_tensors,
    prune_checkpoints,
    save_checkpoint,
    write_atomically,
)
from unmask.training.signals import StopRequest
from unmask.training.trainer import NonFiniteLoss, choose_device, choose_precision
from unmask.views import random_flip, to_float

QUALITY_IMAGES = 512
QUALITY_CHECKS = 5
SHEET_IMAGES = 32


@dataclass(frozen=True)
class TokenizerOutcome:
    """How a run ended: finished, or stopped by a signal with everything saved. `picture`: where there is one."""

    kind: Literal["finished", "stopped"]
    step: int
    signal: str | None = None
    quality: Quality | None = None
    picture: Path | None = None


def work_folder(out: Path) -> RunFolder:
    """Where the log and the checkpoints of a tokenizer file lie. ValueError for a file with another ending."""
    if out.suffix != ".safetensors":
        raise ValueError(f"--out must end in .safetensors, got {out}")
    return RunFolder(out.with_suffix(""))


def train_tokenizer(
    config: TokenizerTrainingConfig, teacher: PretrainedEncoder | None, out: Path, console: Console
) -> TokenizerOutcome:
    """Train the tokenizer of `config` and write it to `out`, from the newest checkpoint beside it if there is one.

    ValueError for whatever the user gave that cannot work; NonFiniteLoss where training breaks down.
    """
    device = choose_device(config.device)
    source = open_source(config.data)
    with StopRequest() as stop:
        first_readable(source, channels=config.tokenizer.channels)
        torch.manual_seed(config.seed)
        tokenizer = build_tokenizer(config.tokenizer)
        assert isinstance(tokenizer, TrainableTokenizer)
        stride, height, width = tokenizer.stride, config.image_height, config.image_width
        if height < stride or width < stride or height % stride or width % stride:
            raise ValueError(f"image size {height}x{width} is not divisible by the tokenizer's stride {stride}")
        if config.batch_size > len(source):
            raise ValueError(
                f"a batch of {config.batch_size} is larger than the data: {config.data} has {len(source)} images"
            )
        if teacher is not None:
            teacher.to(device).encoder.requires_grad_(False)
        folder = work_folder(out)
        _claim(folder, out, config)
        return _Run(config, tokenizer.to(device).train(), teacher, source, folder, out, console, stop).go()


def _claim(folder: RunFolder, out: Path, config: TokenizerTrainingConfig) -> None:
    """Make the folder this run's, or find that it already is. ValueError where it holds something else."""
    values = config.as_json()
    if folder.config_file.exists():
        try:
            old = json.loads(folder.config_file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read configuration {folder.config_file}") from error
        if not isinstance(old, dict) or "tokenizer" not in old:
            raise ValueError(f"{folder.path} is not the folder of a tokenizer; choose another --out")
        difference = first_difference(old, values)
        if difference is not None:
            raise ValueError(f"{out} is of another run ({difference}); choose another --out")
        return
    aside = folder.path / ".config.json.part"
    taken = folder.path.exists() and (
        not folder.path.is_dir() or any(entry != aside for entry in folder.path.iterdir())
    )
    if taken or out.exists():
        raise ValueError(f"{folder.path if taken else out} exists and is of no run of ours; choose another --out")
    try:
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        aside.replace(folder.config_file)
    except OSError as error:
        raise ValueError(f"cannot make the folder {folder.path} ({(error.strerror or 'error').lower()})") from error


class _Run:
    """The state of a run: networks, optimizer, time, bad files."""

    def __init__(
        self,
        config: TokenizerTrainingConfig,
        tokenizer: TrainableTokenizer,
        teacher: PretrainedEncoder | None,
        source: Source,
        folder: RunFolder,
        out: Path,
        console: Console,
        stop: StopRequest,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.teacher = teacher
        self.source = source
        self.folder = folder
        self.out = out
        self.console = console
        self.stop = stop
        self.device = next(tokenizer.parameters()).device
        self.optimizer = build_optimizer(tokenizer, tokenizer.rule, config.optimizer)
        self.dtype = choose_precision(config.precision, self.device)
        if self.dtype == torch.float16:  # it would need a scaler; GPUs without bf16 are old
            self.dtype = None
        self.steps_per_epoch = len(source) // config.batch_size
        self.total = max(1, round(config.epochs * self.steps_per_epoch))
        self.step = 0
        self.saved_step: int | None = None
        self.elapsed = 0.0
        self.bad_files: dict[str, str] = {}

    def go(self) -> TokenizerOutcome:
        """From where the last checkpoint stands to the end, or to a stop."""
        self._resume()
        images_BCHW = self._sample()
        if self.step < self.total:
            with RunProgress(self.console, "training", total=self.total, start=self.step) as progress:
                self._loop(images_BCHW, progress)
        if self.step < self.total:
            if self.saved_step != self.step:
                self._save()
            return TokenizerOutcome("stopped", self.step, signal=self.stop.asked)
        return self._finish(images_BCHW)

    def _loop(self, images_BCHW: Tensor, progress: RunProgress) -> None:
        loader = self._loader()
        batches = iter(loader)
        check_every = -(-self.total // QUALITY_CHECKS)
        clock = logged_at = monotonic()
        logged_step = self.step
        while self.step < self.total and not self.stop.asked:
            try:
                batch = next(batches)
            except TooManyBadFiles:
                self.folder.write_bad_files(self.bad_files | loader.bad_files)
                raise
            rate, losses, norm = self._train_step(batch)
            now = monotonic()
            self.elapsed += now - clock
            clock = now
            self.bad_files |= loader.bad_files
            done = self.step == self.total
            if self.step % self.config.log_every == 0 or done:
                speed = (self.step - logged_step) * self.config.batch_size / max(now - logged_at, 1e-9)
                logged_at, logged_step = now, self.step
                loss = sum(losses.values())
                self._log("step", loss=loss, losses=losses, lr=rate, grad_norm=norm, images_per_second=speed)
                progress.update(self.step, loss=loss, images_per_second=speed)
            # What follows is not training: its time is left out of the speed.
            aside = monotonic()
            if self.step % check_every == 0 or done:
                self._check(images_BCHW, progress)
            if self.step % self.config.checkpoint_every == 0 or done:
                self._save()
            spent = monotonic() - aside
            logged_at += spent
            clock += spent

    def _train_step(self, batch: Batch) -> tuple[float, dict[str, float], float]:
        """Forward, backward, clip, step; the codebook moves in the forward pass. Rate, losses, gradient's norm."""
        settings, progress = self.config.optimizer, self.step / self.total
        rate = settings.at(progress, batch_size=self.config.batch_size, epochs=self.config.epochs)
        peak = settings.peak(self.config.batch_size)
        set_rates(self.optimizer, rate=rate, peak=peak, weight_decay=settings.weight_decay_at(progress))
        assert batch.seed is not None, "a loader's batches carry their seed"
        generator = torch.Generator().manual_seed(batch.seed)
        images_BCHW = to_float(random_flip(batch.to(self.device).crops[0][:, 0], generator))
        self.optimizer.zero_grad(set_to_none=True)
        autocast: Any = nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)
        with autocast:
            losses = self.tokenizer.losses(images_BCHW, Lesson(progress, generator, self.teacher))
        torch.stack(list(losses.values())).sum().backward()
        norm = finish_gradients(self.optimizer, settings, progress)
        # One transfer for all figures of the step.
        *values, gradient_norm = torch.stack([*(loss.detach() for loss in losses.values()), norm]).tolist()
        named = dict(zip(losses, values, strict=True))
        if not np.isfinite([*values, gradient_norm]).all():
            raise NonFiniteLoss(
                f"a loss or the gradient is not finite at step {self.step} ({named}); what was saved before is intact: "
                "try a lower --lr or --precision fp32"
            )
        self.optimizer.step()
        self.step += 1
        return rate, named, gradient_norm

    def _check(self, images_BCHW: Tensor, progress: RunProgress) -> None:
        quality = measure(self.tokenizer, images_BCHW, self.teacher)
        warning = quality.warning()
        self._log("quality", figures=quality.as_dict(), warnings=[] if warning is None else [warning])
        progress.say(f"step {self.step}: {quality}")
        if warning is not None and self.step < self.total:
            progress.say(f"warning: {warning}")

    def _finish(self, images_BCHW: Tensor) -> TokenizerOutcome:
        facts = {"version": __version__, "data": self.config.data}
        write_atomically(self.out, *tokenizer_file(self.tokenizer, facts))
        picture = None
        if isinstance(self.tokenizer, PaintingTokenizer):
            picture = self.out.with_suffix(".png")
            aside = self.folder.path / ".sheet.part"
            aside.write_bytes(sheet(self.tokenizer, images_BCHW[:SHEET_IMAGES]))
            aside.replace(picture)
        quality = measure(self.tokenizer, images_BCHW, self.teacher)
        return TokenizerOutcome("finished", self.step, quality=quality, picture=picture)

    def _resume(self) -> None:
        checkpoint, troubles = self.folder.newest_checkpoint(self.device)
        for sentence in troubles:
            self.console.print(
                f"warning: {sentence}; going back to the checkpoint before it", highlight=False, markup=False
            )
        if checkpoint is None:
            self.folder.forget_after(-1)
            return
        values = checkpoint.values
        if values["samples"] != len(self.source):
            raise ValueError(
                f"{self.config.data} now has {len(self.source)} images, but this run began with {values['samples']}; "
                "restore the data or choose another --out"
            )
        load_module_tensors(self.tokenizer, checkpoint.tensors)
        load_optimizer_tensors(self.optimizer, checkpoint.tensors)
        self.step = self.saved_step = int(values["step"])
        self.elapsed = float(values["elapsed"])
        self.bad_files = dict(values["bad_files"])
        self.folder.forget_after(self.step)
        if self.step < self.total:
            sentence = f"resuming {self.folder.path} at step {self.step}"
            self.console.print(sentence, highlight=False, markup=False)

    def _loader(self) -> CropLoader:
        config = self.config
        crop = CropConfig(height=config.image_height, width=config.image_width, scale=config.crop_scale)
        return CropLoader(
            self.source,
            (crop,),
            batch_size=config.batch_size,
            total_steps=self.total,
            start_step=self.step,
            seed=config.seed,
            workers=config.workers,
            channels=config.tokenizer.channels,
            pin_memory=self.device.type == "cuda",
            max_bad_share=config.max_bad_share,
        )

    def _sample(self) -> Tensor:
        """Central crops [B, C, H, W] in [0, 1] of images spread over the data, the same ones for the whole run."""
        count = min(QUALITY_IMAGES, len(self.source))
        # In an order of its own, so that the first of them are no neighbours.
        spread = np.random.default_rng(self.config.seed).permutation(len(self.source))[:count]
        loader = EvalLoader(
            self.source.subset(spread),
            height=self.config.image_height,
            width=self.config.image_width,
            channels=self.config.tokenizer.channels,
            batch_size=count,
            workers=0,
        )
        return to_float(torch.cat([images for images, _ in loader]))

    def _log(self, kind: str, **values: Any) -> None:
        record = {"kind": kind, "step": self.step, "epoch": self.step / self.steps_per_epoch, "time": self.elapsed}
        self.folder.append(record | values)

    def _save(self) -> None:
        values = {
            "step": self.step,
            "samples": len(self.source),
            "elapsed": self.elapsed,
            "bad_files": self.bad_files,
        }
        tensors = module_tensors(self.tokenizer) | optimizer_tensors(self.optimizer)
        save_checkpoint(checkpoint_path(self.folder.checkpoints, self.step), Checkpoint(tensors, values))
        self.saved_step = self.step
        prune_checkpoints(self.folder.checkpoints, self.step, keep_every=0)
        self.folder.write_bad_files(self.bad_files)
