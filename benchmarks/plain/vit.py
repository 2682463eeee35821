"""Transformer blocks as the authors' code of 2021 to 2023 has them: eager, attention spelled out, every bias and
product a tensor of its own. Parameter names are timm's, so that our weights load and both sides compute the same.

Shape legend: B images, C channels, N patches, L tokens, D width, h heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Queries by keys, softmax, values; MAE's, and BEiT's where it is given a bias of relative positions."""

    def __init__(self, width: int, heads: int, *, beit: bool) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width, bias=not beit)
        self.q_bias = nn.Parameter(torch.zeros(width)) if beit else None
        self.v_bias = nn.Parameter(torch.zeros(width)) if beit else None
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x: Tensor, bias_hLL: Tensor | None = None) -> Tensor:
        B, L, D = x.shape
        bias = self.qkv.bias
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias, requires_grad=False), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = qkv.reshape(B, L, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if bias_hLL is None:
            attn = (q @ k.transpose(-2, -1)) * self.scale
        else:
            attn = (q * self.scale) @ k.transpose(-2, -1)
            attn = attn + bias_hLL
        attn = self.attn_drop(attn.softmax(dim=-1))
        x = (attn @ v).transpose(1, 2).reshape(B, L, D)
        return self.proj_drop(self.proj(x))


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.act(self.fc1(x))))


class Block(nn.Module):
    """Pre-norm block; BEiT's has layer scale."""

    def __init__(self, width: int, heads: int, *, beit: bool = False, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, beit=beit)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, 4 * width)
        self.gamma_1 = nn.Parameter(torch.ones(width)) if beit else None
        self.gamma_2 = nn.Parameter(torch.ones(width)) if beit else None

    def forward(self, x: Tensor, bias_hLL: Tensor | None = None) -> Tensor:
        if self.gamma_1 is None or self.gamma_2 is None:
            x = x + self.attn(self.norm1(x), bias_hLL)
            return x + self.mlp(self.norm2(x))
        x = x + self.gamma_1 * self.attn(self.norm1(x), bias_hLL)
        return x + self.gamma_2 * self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Patches as a convolution."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


def shuffle_order(mask_BN: Tensor) -> tuple[Tensor, Tensor]:
    """MAE's argsort of noise and its inverse, for noise that hides the patches of `mask_BN`."""
    noise = mask_BN + torch.linspace(0, 0.5, mask_BN.shape[1])
    ids_shuffle = torch.argsort(noise, dim=1)
    return ids_shuffle, torch.argsort(ids_shuffle, dim=1)


class MaskedEncoder(nn.Module):
    """MAE's encoder: positions, random_masking, class token, blocks, norm."""

    def __init__(self, patch: int, width: int, depth: int, heads: int, patches: int, *, norm: bool = True) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(patch, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + 1, width), requires_grad=False)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6) if norm else nn.Identity()

    def forward(self, images: Tensor, mask_BN: Tensor | None) -> Tensor:
        x = self.patch_embed(images)
        x = x + self.pos_embed[:, 1:, :]
        if mask_BN is not None:
            ids_shuffle, _ = shuffle_order(mask_BN)
            keep = ids_shuffle[:, : int((~mask_BN[0]).sum())]
            x = torch.gather(x, dim=1, index=keep.unsqueeze(-1).repeat(1, 1, x.shape[-1]))
        cls_token = self.cls_token + self.pos_embed[:, :1, :]
        x = torch.cat((cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class MaskedDecoder(nn.Module):
    """MAE's decoder: mask tokens appended, everything unshuffled, positions, blocks, norm, a prediction everywhere."""

    def __init__(self, encoder_width: int, width: int, depth: int, heads: int, out: int, patches: int) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("position", torch.zeros(1, patches + 1, width))
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, out)

    def forward(self, latent: Tensor, mask_BN: Tensor) -> Tensor:
        _, ids_restore = shuffle_order(mask_BN)
        x = self.embed(latent)
        mask_tokens = self.mask_token.repeat(x.shape[0], ids_restore.shape[1] + 1 - x.shape[1], 1)
        patches = torch.cat([x[:, 1:, :], mask_tokens], dim=1)
        patches = torch.gather(patches, dim=1, index=ids_restore.unsqueeze(-1).repeat(1, 1, x.shape[2]))
        x = torch.cat([x[:, :1, :], patches], dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))[:, 1:, :]


class BeitEncoder(nn.Module):
    """BEiT's encoder: mask tokens in place of patches, one shared table of relative positions, layer scale."""

    def __init__(self, patch: int, width: int, depth: int, heads: int, index_LL: Tensor, rows: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(patch, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_drop = nn.Dropout(0.0)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, heads))
        self.index_LL = index_LL
        self.blocks = nn.ModuleList([Block(width, heads, beit=True) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, images: Tensor, mask_BN: Tensor) -> Tensor:
        x = self.patch_embed(images)
        B, N, _ = x.shape
        mask_token = self.mask_token.expand(B, N, -1)
        w = mask_BN.unsqueeze(-1).type_as(mask_token)
        x = x * (1 - w) + mask_token * w
        x = self.pos_drop(torch.cat((self.cls_token.expand(B, -1, -1), x), dim=1))
        bias_LLh = self.relative_position_bias_table[self.index_LL.view(-1)].view(*self.index_LL.shape, -1)
        bias_hLL = bias_LLh.permute(2, 0, 1).contiguous()
        for block in self.blocks:
            x = block(x, bias_hLL)
        return self.norm(x)


def patchify(images: Tensor, patch: int) -> Tensor:
    """MAE's patches [B, N, patch * patch * 3]."""
    B, C, H, W = images.shape
    x = images.reshape(B, C, H // patch, patch, W // patch, patch)
    return torch.einsum("nchpwq->nhwpqc", x).reshape(B, -1, patch * patch * C)
