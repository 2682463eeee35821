"""M3AE: Multi-Modal Masked Autoencoders for Medical Vision-and-Language Pre-Training (Chen et al., MICCAI 2022,
arXiv 2209.07098). Not the M3AE of Geng et al., which has the same name.

An image and its caption look at each other in co-attention layers: hidden words are told with the picture's help,
hidden patches are painted with the caption's, and a picture must be told to belong to its caption.

Shape legend: B samples, F further pictures, N patches, L = prefix + visible tokens, T tokens of a caption, D width of
both streams, M hidden patches of the batch, K = p*p*C values of a patch, V tokens that are known.

Formula:
    t, i = text encoder(tokens), image encoder(patches), each through a linear layer, plus a vector for its kind
    t_l+1 = layer(t_l, i_l), i_l+1 = layer(i_l, t_l): self-attention, attention to the other, MLP; norms afterwards
    mlm  = cross entropy(head(t of hidden words and whole image), hidden words)
    mim  = mean over hidden patches of (decoder(i_3 of whole caption and visible patches) - normalised pixels)^2
    itm  = cross entropy(linear(tanh(first of t), tanh(first of i)), does the picture belong to the caption)

Where the authors' code differs from the paper, or this from the code:
- the tower of images is CLIP's without its last block, and starts from CLIP's weights; here a start is whatever
  `encoder` names, at random, and the text encoder is RoBERTa-base at random unless `text.folder` is given;
- the decoder sees the image stream as it *enters* layer 3, counted from 0; layers behind are not computed for it here;
- 15 % of a caption's tokens are chosen, at least one: 80 % of them are hidden, 10 % are replaced by any token, 10 % are
  left (the code's collator; what it does with whole words concerns BERT's tokens and not RoBERTa's);
- a false picture is one of the same batch, moved by one random number of places (code: any image of the data);
- tables, class token and CLIP's norms are decayed; BERT's and RoBERTa's norms and all biases are not;
- crops are flipped, as everywhere here (code: resized and cut at the centre; captions that name a side would object).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from typing_extensions import Doc

from unmask.data.batch import Batch, CropConfig
from unmask.data.sources import Source, captions_of
from unmask.masking import MaskConfig
from unmask.methods.base import (
    Inspection,
    MaskedMethodConfig,
    Method,
    MethodConfig,
    MethodInfo,
    check_mask,
    one_crop,
    shared_views,
)
from unmask.methods.mae import paint
from unmask.models.build import build_encoder
from unmask.models.co_attention import BERT_EPS, CoAttentionConfig, Fusion
from unmask.models.decoder import DecoderConfig, TransformerDecoder
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.initialise import normal_weights_
from unmask.models.text import TextConfig, TextEncoder, TextTokens, learn_merges
from unmask.objectives.reconstruction import mean_squared_error, normalise_patches, patchify
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.ranks import share_of_mean
from unmask.trainee import Losses
from unmask.views import Views, generators

TEXT, IMAGE = 0, 1
# Of the tokens that must be told: these are hidden, and these replaced by any token; the others stay.
HIDDEN_SHARE, REPLACED_SHARE = 0.8, 0.1


@dataclass(frozen=True, kw_only=True)
class CaptionedViews(Views):
    """Masked pictures and their captions."""

    text_BT: Int64[Tensor, "B T"]
    """Tokens of the captions."""
    padding_BT: Bool[Tensor, "B T"]
    """Where a caption is over."""
    hidden_text_BT: Int64[Tensor, "B T"]
    """The same with tokens hidden."""
    asked_BT: Bool[Tensor, "B T"]
    """Which tokens must be told."""
    further_FCHW: Float[Tensor, "F C H W"]
    """Pictures of other images, shown to captions that they do not belong to; none where the batch has enough."""
    shown_B: Int64[Tensor, " B"]
    """Position, in pictures and further pictures, of what is shown to each caption; its own position is the truth."""


@dataclass(frozen=True, kw_only=True)
class M3AEConfig(MaskedMethodConfig):
    """Knobs of M3AE; defaults are the authors'."""

    encoder: Annotated[EncoderConfig, Doc("CLIP's ViT-B/16. [recipe]")] = EncoderConfig(
        name="vit_base_patch16_clip_quickgelu_224"
    )
    mask: Annotated[MaskConfig, Doc("Single patches at random, 75 %. [paper and code]")] = MaskConfig(
        kind="random", ratio=0.75
    )
    crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a crop covers. [code: all]")] = (0.9, 1.0)
    text: Annotated[TextConfig, Doc("The encoder of captions.")] = TextConfig()
    text_ratio: Annotated[float, Doc("Share of a caption's tokens that must be told. [paper and code]")] = 0.15
    fusion: Annotated[CoAttentionConfig, Doc("The layers in which text and image meet. [code]")] = CoAttentionConfig()
    dropout: Annotated[float, Doc("Dropout of text encoder and co-attention layers. [code]")] = 0.1
    decoder: Annotated[DecoderConfig, Doc("Pixel decoder, of CLIP's blocks. [code]")] = DecoderConfig(
        width=384, depth=4, heads=6, activation="quick_gelu", norm_eps=1e-5
    )
    decoded_layer: Annotated[
        int, Doc("Pixels are decoded from the image stream that enters this co-attention layer; -1: leaves the last.")
    ] = 3
    norm_pixels: Annotated[bool, Doc("Whether each patch's pixels are normalised before the loss. [code]")] = True
    mlm_weight: Annotated[float, Doc("Weight of the loss of hidden words. [code]")] = 1.0
    mim_weight: Annotated[float, Doc("Weight of the loss of hidden patches. [code]")] = 1.0
    itm_weight: Annotated[float, Doc("Weight of the loss of matching. [code]")] = 1.0
    head_lr_scale: Annotated[float, Doc("Factor on the learning rate of the three heads. [code]")] = 5.0
    fusion_lr_scale: Annotated[float, Doc("Factor on the learning rate of the co-attention layers. [code]")] = 5.0
    optimizer: Annotated[OptimizerConfig, Doc("1e-5, BERT's AdamW; warm-up for a tenth, then linear. [recipe]")] = (
        OptimizerConfig(
            kind="adamw_bert",
            lr=1e-5,
            lr_batch=None,
            betas=(0.9, 0.98),
            weight_decay=0.01,
            warmup_epochs=10,
            decay="linear",
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.text_ratio < 1:
            raise ValueError(f"text_ratio must lie between 0 and 1, got {self.text_ratio}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if not -1 <= self.decoded_layer < self.fusion.depth:
            raise ValueError(f"decoded_layer must lie in -1..{self.fusion.depth - 1}, got {self.decoded_layer}")

    def for_source(self, source: Source) -> M3AEConfig:
        captions = captions_of(source)
        if captions is None:
            raise ValueError(
                f"M3AE learns from captions, and {source.name} has none: put a captions.csv or captions.jsonl with "
                "'image' and 'caption' into the folder, or choose method mae"
            )
        if self.text.folder is not None or self.text.merges:
            return self
        words = (caption for several in captions for caption in several)
        return replace(self, text=replace(self.text, merges=learn_merges(words, self.text.vocabulary)))


class WordHead(nn.Module):
    """Which token stood here: linear, GELU, norm, linear."""

    def __init__(self, width: int, rows: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=BERT_EPS)
        self.words = nn.Linear(width, rows)
        normal_weights_(self)

    def forward(self, tokens: Float[Tensor, "*lead D"]) -> Float[Tensor, "*lead V"]:
        """Logits of all known tokens."""
        return self.words(self.norm(F.gelu(self.dense(tokens))))


class M3AE(Method[CaptionedViews]):
    """Fill in words by the picture and patches by the caption, and match both (Chen et al. 2022)."""

    Config: ClassVar[type[MethodConfig]] = M3AEConfig
    reads_captions: ClassVar[bool] = True
    info: ClassVar[MethodInfo] = MethodInfo(
        title="M3AE",
        idea="Tell hidden words by the picture, paint hidden patches by the caption, and match both.",
        paper="arXiv 2209.07098",
        year=2022,
        family="image + text",
        online_input="visible patches and caption; whole image and hidden words",
        target="normalised pixels; words; matching",
        objective="squared error on hidden patches + cross entropies",
    )

    def __init__(self, config: M3AEConfig) -> None:
        super().__init__()
        self.config: M3AEConfig = config
        self.tokens = TextTokens(config.text)
        self.encoder = build_encoder(config.encoder, mask_token=False)
        rows = len(self.tokens) if config.text.rows is None else config.text.rows
        self.text = TextEncoder(config.text, rows=rows, dropout=config.dropout)
        width = config.fusion.width
        self.fusion = Fusion(
            config.fusion, text_width=self.text.width, image_width=self.encoder.width, dropout=config.dropout
        )
        self.kinds = nn.Embedding(2, width)
        normal_weights_(self.kinds)
        self.mlm_head = WordHead(width, self.text.rows)
        height, breadth = self.encoder.patch
        self.mim_head = TransformerDecoder(
            config.decoder,
            encoder_width=width,
            out_width=height * breadth * config.encoder.channels,
            grid=self.encoder.grid,
            prefix=self.encoder.prefix,
        )
        normal_weights_(self.mim_head)
        self.itm_head = nn.Linear(2 * width, 2)
        normal_weights_(self.itm_head)

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return one_crop(self.encoder, self.config)

    def make_views(self, batch: Batch) -> CaptionedViews:
        if batch.texts is None:
            raise ValueError("M3AE learns from captions, and this batch has none")
        shared = shared_views(batch, self.encoder, self.config, colour=None)
        if len(shared.online) < 2:
            raise ValueError("M3AE shows captions the pictures of others, so a batch needs at least 2 images")
        device = shared.online.device
        seed, _ = generators(batch.seed, "cpu")
        # Behind what the pictures have drawn from the same seed, words must not follow from flips.
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, (2,), generator=seed)[1]))
        text_BT, padding_BT, ordinary_BT = self.tokens(batch.texts)
        if int(text_BT.max()) >= self.text.rows:
            raise ValueError(f"a caption has token {int(text_BT.max())}, and the text encoder knows {self.text.rows}")
        hidden_text_BT, asked_BT = hide_tokens(
            text_BT,
            ordinary_BT,
            self.config.text_ratio,
            mask=self.tokens.mask,
            rows=self.text.rows,
            generator=generator,
        )
        return CaptionedViews(
            online=shared.online,
            mask_BN=shared.mask_BN,
            text_BT=text_BT.to(device, non_blocking=True),
            padding_BT=padding_BT.to(device, non_blocking=True),
            hidden_text_BT=hidden_text_BT.to(device, non_blocking=True),
            asked_BT=asked_BT.to(device, non_blocking=True),
            further_FCHW=shared.online[:0],
            shown_B=half_rolled(len(shared.online), generator).to(device, non_blocking=True),
        )

    def losses(self, views: CaptionedViews, progress: float = 0.0) -> Losses:
        config, mask_BN = self.config, check_mask(views.mask_BN)
        text_BTD, hidden_text_BTD = self.texts(views)
        word_BTD, match_BE = self.with_whole_images(views, text_BTD, hidden_text_BTD)
        asked = views.asked_BT.sum().clamp(min=1)
        words = F.cross_entropy(self.mlm_head(word_BTD[views.asked_BT]), views.text_BT[views.asked_BT], reduction="sum")
        image_BLD = self.with_visible_patches(views, text_BTD, mask_BN)
        prediction_MK = self.mim_head.predict(self.mim_head(image_BLD, mask_BN)[mask_BN])
        target_MK = patchify(views.online, self.encoder.patch)[mask_BN]
        if config.norm_pixels:
            target_MK = normalise_patches(target_MK)
        belongs_B = (views.shown_B == torch.arange(len(views.shown_B), device=views.shown_B.device)).long()
        return {
            # Captions can be so empty that there is nothing to ask for.
            "mlm": config.mlm_weight * share_of_mean(words / asked, asked),
            "mim": config.mim_weight * share_of_mean(mean_squared_error(prediction_MK, target_MK), len(prediction_MK)),
            "itm": config.itm_weight * F.cross_entropy(self.itm_head(match_BE), belongs_B),
        }

    def texts(self, views: CaptionedViews) -> tuple[Tensor, Tensor]:
        """Captions, and captions with hidden words, as they enter the co-attention layers: [B, T, D] each."""
        both = torch.cat([views.text_BT, views.hidden_text_BT])
        features = self.fusion.text_in(self.text(both, views.padding_BT.repeat(2, 1))) + self.kinds.weight[TEXT]
        text_BTD, hidden_text_BTD = features.chunk(2)
        return text_BTD, hidden_text_BTD

    def _image(self, tokens: Tensor) -> Tensor:
        """Tokens of the encoder as they enter the co-attention layers."""
        return self.fusion.image_in(tokens) + self.kinds.weight[IMAGE]

    def with_whole_images(
        self, views: CaptionedViews, text_BTD: Tensor, hidden_text_BTD: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Hidden words' features after a look at their images [B, T, D]; pooled pairs of captions and what they are
        shown [B, 2D]. Both go through the layers together."""
        pictures = self._image(self.encoder(torch.cat([views.online, views.further_FCHW])))
        images = torch.cat([pictures[: len(views.online)], pictures[views.shown_B]])
        texts = torch.cat([hidden_text_BTD, text_BTD])
        texts, images = self.fusion(texts, images, views.padding_BT.repeat(2, 1))
        word_BTD, matched_BTD = texts.chunk(2)
        _, shown_BLD = images.chunk(2)
        match_BE = torch.cat([self.fusion.text_pooler(matched_BTD), self.fusion.image_pooler(shown_BLD)], dim=1)
        return word_BTD, match_BE

    def with_visible_patches(self, views: CaptionedViews, text_BTD: Tensor, mask_BN: Tensor) -> Tensor:
        """Visible patches' features [B, L, D] after a look at the captions, from the layer that is decoded."""
        depth = None if self.config.decoded_layer < 0 else self.config.decoded_layer
        image_BLD = self._image(self.encoder(views.online, drop_BN=mask_BN))
        return self.fusion(text_BTD, image_BLD, views.padding_BT, depth)[1]

    def update_target(self, progress: float) -> None:
        """There is no target network."""

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        clip = name.startswith(("encoder.", "mim_head.blocks."))
        decay = not name.endswith("bias") and (clip or not name.endswith(("LayerNorm.weight", "norm.weight")))
        scale = 1.0
        if name.startswith(("mlm_head.", "mim_head.", "itm_head.")):
            scale = self.config.head_lr_scale
        elif name.startswith("fusion."):
            scale = self.config.fusion_lr_scale
        return ParameterRule(decay=decay, lr_scale=scale)

    def exported(self) -> Encoder:
        return self.encoder

    def inspect(self, views: CaptionedViews) -> Inspection:
        mask_BN = check_mask(views.mask_BN)
        image_BLD = self.with_visible_patches(views, self.texts(views)[0], mask_BN)
        prediction_BNK = self.mim_head.predict(self.mim_head(image_BLD, mask_BN))
        return Inspection(
            reconstruction_BCHW=paint(prediction_BNK, views.online, self.encoder, self.config.norm_pixels)
        )


def hide_tokens(
    text_BT: Int64[Tensor, "B T"],
    ordinary_BT: Bool[Tensor, "B T"],
    ratio: float,
    *,
    mask: int,
    rows: int,
    generator: torch.Generator,
) -> tuple[Int64[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Captions with tokens hidden, and which tokens must be told: a share of each one's ordinary tokens, at least one.

    Of these 80 % become `mask`, 10 % any of `rows` tokens, 10 % stay. A caption without ordinary tokens hides none.
    """
    count_B1 = ordinary_BT.sum(dim=1, keepdim=True)
    wanted_B1 = (count_B1 * ratio).round().clamp(min=1).minimum(count_B1)
    order_BT = torch.rand(text_BT.shape, generator=generator).masked_fill(~ordinary_BT, 2.0)
    asked_BT = order_BT.argsort(dim=1).argsort(dim=1) < wanted_B1
    kind_BT = torch.rand(text_BT.shape, generator=generator)
    any_BT = torch.randint(rows, text_BT.shape, generator=generator)
    hidden_BT = torch.where(asked_BT & (kind_BT < HIDDEN_SHARE), mask, text_BT)
    replaced_BT = asked_BT & (kind_BT >= HIDDEN_SHARE) & (kind_BT < HIDDEN_SHARE + REPLACED_SHARE)
    return torch.where(replaced_BT, any_BT, hidden_BT), asked_BT


def half_rolled(batch: int, generator: torch.Generator) -> Int64[Tensor, " B"]:
    """Positions in a batch: half of them (rounded down), at random, their own; the others moved by one random number of
    places, which is never zero."""
    own_B = torch.arange(batch)
    true_B = torch.randperm(batch, generator=generator) < batch // 2
    moved_B = (own_B + int(torch.randint(1, batch, (), generator=generator))) % batch
    return torch.where(true_B, own_B, moved_B)
