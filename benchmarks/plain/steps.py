"""One training step of MAE, CMAE and ConMIM as their authors wrote it, on weights and views that are ours.

Each step is theirs in what it computes and in how: predictions and logits at all positions and a mask on the loss,
projectors on all tokens, loops over parameters for the norm of the gradient and for the target, torch's AdamW as it
comes. `PlainStep(method)` copies the weights of one of our methods: both sides can be compared number by number.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.plain.vit import BeitEncoder, MaskedDecoder, MaskedEncoder, patchify
from unmask.methods.base import Method
from unmask.methods.cmae import CMAE
from unmask.methods.conmim import ConMIM
from unmask.methods.mae import MAE
from unmask.views import Views


class PlainMAE(nn.Module):
    """MAE (models_mae.py): loss at every patch, then masked."""

    def __init__(self, ours: MAE) -> None:
        super().__init__()
        self.patch = ours.encoder.patch[0]
        self.encoder = _masked_encoder(ours.encoder)
        self.decoder = _decoder(ours.decoder, ours.encoder)

    def forward(self, views: Views) -> Tensor:
        prediction = self.decoder(self.encoder(views.online, views.mask_BN), views.mask_BN)
        return _pixel_loss(prediction, views, self.patch)

    def update_target(self) -> None:
        """There is none."""


class PlainCMAE(nn.Module):
    """CMAE (mmselfsup project): two decoders whose outputs are predicted at every patch, and a target."""

    def __init__(self, ours: CMAE) -> None:
        super().__init__()
        self.patch, self.temperature = ours.encoder.patch[0], ours.config.temperature
        self.momentum = ours.config.momentum.at(0.0)
        self.encoder = _masked_encoder(ours.encoder)
        self.pixel_decoder = _decoder(ours.pixel_decoder, ours.encoder)
        self.feature_decoder = _decoder(ours.feature_decoder, ours.encoder)
        self.projector, self.predictor = _head(ours.projector), _head(ours.predictor)
        self.target_encoder = _masked_encoder(ours.target_encoder, norm=False).requires_grad_(False)
        self.target_projector = _head(ours.target_projector).requires_grad_(False)

    def forward(self, views: Views) -> Tensor:
        latent = self.encoder(views.online, views.mask_BN)
        pixels = self.pixel_decoder(latent, views.mask_BN)
        features = self.feature_decoder(latent, views.mask_BN).mean(dim=1)
        online = F.normalize(self.predictor(self.projector(features)), dim=1)
        with torch.no_grad():
            target = self.target_encoder(views.target, None)[:, 1:].mean(dim=1)
            keys = F.normalize(self.target_projector(target), dim=1)
        logits = torch.einsum("nc,mc->nm", online, keys) / self.temperature
        contrast = F.cross_entropy(logits, torch.arange(len(logits), device=logits.device)) * (2 * self.temperature)
        return _pixel_loss(pixels, views, self.patch) + contrast

    @torch.no_grad()
    def update_target(self) -> None:
        pairs = [(self.encoder, self.target_encoder), (self.projector, self.target_projector)]
        for online, target in pairs:
            for one, other in zip(online.parameters(), target.parameters(), strict=False):
                other.data = other.data * self.momentum + one.data * (1.0 - self.momentum)


class PlainConMIM(nn.Module):
    """ConMIM (modeling and engine of pre-training): similarity of all patches with all, then the hidden ones."""

    def __init__(self, ours: ConMIM) -> None:
        super().__init__()
        self.temperature, self.momentum = ours.config.temperature, ours.config.momentum.at(0.0)
        self.encoder, self.projector = _beit(ours.encoder), _head(ours.projector)
        self.target_encoder = _beit(ours.target_encoder).requires_grad_(False)
        self.target_projector = _head(ours.target_projector).requires_grad_(False)

    def forward(self, views: Views) -> Tensor:
        assert views.mask_BN is not None
        assert views.target is not None
        student = self._project(self.projector, self.encoder(views.online, views.mask_BN))
        with torch.no_grad():
            teacher = self._project(
                self.target_projector, self.target_encoder(views.target, torch.zeros_like(views.mask_BN))
            )
        logits = student @ teacher.transpose(1, 2) / self.temperature
        labels = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
        return F.cross_entropy(logits[views.mask_BN], labels[views.mask_BN])

    @staticmethod
    def _project(head: nn.Module, tokens: Tensor) -> Tensor:
        projected = head(tokens.reshape(-1, tokens.shape[-1])).reshape(*tokens.shape[:2], -1)
        return F.normalize(projected[:, 1:], dim=-1)

    @torch.no_grad()
    def update_target(self) -> None:
        pairs = [(self.encoder, self.target_encoder), (self.projector, self.target_projector)]
        for online, target in pairs:
            for one, other in zip(online.parameters(), target.parameters(), strict=True):
                other.data = other.data * self.momentum + one.data * (1.0 - self.momentum)


class PlainStep:
    """A plain network with the weights of one of our methods, and its training step.

    `half`: fp16 autocast with a gradient scaler, as the authors train on a GPU; otherwise float32.
    """

    def __init__(self, method: Method[Any], *, lr: float, half: bool = False) -> None:
        device = next(method.parameters()).device
        self.network = plain(method).to(device).train()
        decayed = [p for p in self.network.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in self.network.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=method.config.optimizer.betas)
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)
        self.device, self.half = device, half

    def step(self, views: Views) -> float:
        """Forward, backward, norm of the gradient, step, target; the loss, read as their loops read it."""
        with torch.autocast(self.device.type, torch.float16) if self.half else nullcontext():
            loss: Tensor = self.network(views)
        value = loss.item()
        if not math.isfinite(value):
            raise ValueError(f"the loss is {value}")
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad.detach() for p in self.network.parameters() if p.grad is not None]
        torch.norm(torch.stack([torch.norm(gradient, 2.0) for gradient in gradients]), 2.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.network.update_target()
        return value


def plain(method: Method[Any]) -> Any:
    """The plain network of a method of ours, with its weights."""
    if isinstance(method, MAE):
        return PlainMAE(method)
    if isinstance(method, CMAE):
        return PlainCMAE(method)
    if isinstance(method, ConMIM):
        return PlainConMIM(method)
    raise ValueError(f"there is no plain step of {type(method).__name__}; choose mae, cmae or conmim")


def _masked_encoder(ours: Any, *, norm: bool = True) -> MaskedEncoder:
    vit = ours.vit
    patches = ours.grid[0] * ours.grid[1]
    heads = vit.blocks[0].attn.num_heads
    network = MaskedEncoder(ours.patch[0], ours.width, ours.depth, heads, patches, norm=norm)
    _load(network, vit.state_dict())
    return network


def _beit(ours: Any) -> BeitEncoder:
    vit = ours.vit
    table, index = vit.rel_pos_bias.relative_position_bias_table, vit.rel_pos_bias.relative_position_index
    heads = vit.blocks[0].attn.num_heads
    network = BeitEncoder(ours.patch[0], ours.width, ours.depth, heads, index.clone(), len(table))
    state = vit.state_dict()
    state["relative_position_bias_table"] = state.pop("rel_pos_bias.relative_position_bias_table")
    state["mask_token"] = ours.mask_token
    _load(network, state)
    return network


def _decoder(ours: Any, encoder: Any) -> MaskedDecoder:
    out, width = ours.head.weight.shape
    heads, patches = ours.blocks[0].attn.num_heads, encoder.grid[0] * encoder.grid[1]
    network = MaskedDecoder(encoder.width, width, len(ours.blocks), heads, out, patches)
    _load(network, ours.state_dict())
    return network


def _load(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy weights; whatever the plain network has must be there, and beside constants nothing may be left over."""
    missing, left = network.load_state_dict(state, strict=False)
    assert not missing, missing
    assert all(name.endswith(("k_bias", "relative_position_index")) for name in left), left


def _head(ours: Any) -> nn.Sequential:
    """The layers of one of our heads, with ReLU as the authors have it and without synchronisation on one device."""
    layers: list[nn.Module] = []
    for layer in ours.layers:
        if isinstance(layer, nn.Linear):
            copy: nn.Module = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        elif isinstance(layer, nn.BatchNorm1d | nn.SyncBatchNorm):
            copy = nn.BatchNorm1d(layer.num_features, eps=layer.eps, affine=layer.affine)
        else:
            copy = nn.ReLU()
        copy.load_state_dict(layer.state_dict())
        layers.append(copy)
    return nn.Sequential(*layers)


def _pixel_loss(prediction: Tensor, views: Views, patch: int) -> Tensor:
    target = patchify(views.online, patch)
    mean = target.mean(dim=-1, keepdim=True)
    var = target.var(dim=-1, keepdim=True)
    target = (target - mean) / (var + 1.0e-6) ** 0.5
    loss = (prediction - target) ** 2
    mask = views.mask_BN
    assert mask is not None
    return (loss.mean(dim=-1) * mask).sum() / mask.sum()
