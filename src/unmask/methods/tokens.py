"""What methods share that predict the codes which a frozen tokenizer gives to hidden patches (the BEiT family).

Shape legend: B samples, N patches, M hidden patches of the batch, L = prefix + N tokens, D width, V codes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from typing_extensions import Doc

from unmask.colour.plan import ColourConfig
from unmask.data.batch import Batch
from unmask.methods.base import MaskedMethodConfig, shared_views
from unmask.models.encoder import Encoder
from unmask.models.initialise import small_linears_
from unmask.models.tokenizers.base import Tokenizer
from unmask.models.tokenizers.file import open_tokenizer
from unmask.ranks import share_of_mean
from unmask.views import Views, denormalise

NO_TOKENIZER = (
    "this method predicts the codes of an image tokenizer: train one with `unmask tokenizer train DATA`, "
    "then give its file by --method.tokenizer"
)
JITTER = ColourConfig(brightness=0.4, contrast=0.4, saturation=0.4, jitter_p=1.0)


@dataclass(frozen=True, kw_only=True)
class TokenMethodConfig(MaskedMethodConfig):
    """What methods that predict a tokenizer's codes share."""

    tokenizer: Annotated[
        str | None,
        Doc("File of the frozen tokenizer, from `unmask tokenizer train DATA` or a released one."),
    ] = None
    vocabulary: Annotated[
        int | None, Doc("Number of the tokenizer's codes; None: as many as it has. [8192 in BEiT]")
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocabulary is not None and self.vocabulary < 2:
            raise ValueError(f"a vocabulary needs at least 2 codes, got {self.vocabulary}")


@dataclass(frozen=True)
class TokenViews(Views):
    """Views with the code of each patch, as the tokenizer sees it."""

    token_ids_BN: Int64[Tensor, "B N"] = field(kw_only=True)


def load_tokenizer(config: TokenMethodConfig) -> tuple[Tokenizer | None, int]:
    """The frozen tokenizer of a configuration and the number of its codes.

    With a vocabulary alone there is no tokenizer: such a method takes its views from elsewhere (golden cases) and
    cannot make them. ValueError where neither is given, or where tokenizer and configuration do not fit.
    """
    if config.tokenizer is None:
        if config.vocabulary is None:
            raise ValueError(NO_TOKENIZER)
        return None, config.vocabulary
    tokenizer = open_tokenizer(config.tokenizer)
    if config.vocabulary not in (None, tokenizer.vocabulary):
        raise ValueError(f"{config.tokenizer} has {tokenizer.vocabulary} codes, not {config.vocabulary}")
    if tokenizer.channels != config.encoder.channels:
        raise ValueError(
            f"{config.tokenizer} takes images of {tokenizer.channels} channels, not {config.encoder.channels}"
        )
    return tokenizer, tokenizer.vocabulary


def check_tokenizer(tokenizer: Tokenizer | None) -> Tokenizer:
    """The tokenizer of a method that is to make views."""
    if tokenizer is None:
        raise ValueError(NO_TOKENIZER)
    return tokenizer


def token_views(
    batch: Batch,
    encoder: Encoder,
    config: TokenMethodConfig,
    tokenizer: Tokenizer | None,
    colour: ColourConfig | None,
) -> TokenViews:
    """Views of one geometry and one colour for the encoder and the tokenizer, with the tokenizer's codes."""
    tokenizer = check_tokenizer(tokenizer)
    views = shared_views(batch, encoder, config, colour=None, online_colour=colour)
    ids_BN = tokenizer.tokens_for(denormalise(views.online, config.mean, config.std), encoder.grid)
    return TokenViews(online=views.online, mask_BN=views.mask_BN, token_ids_BN=ids_BN)


def token_head(width: int, vocabulary: int) -> nn.Linear:
    """The linear layer from a token to the logits of all codes."""
    head = nn.Linear(width, vocabulary)
    small_linears_(head)
    return head


def hidden_token_loss(
    logits_MV: Float[Tensor, "M V"], token_ids_BN: Int64[Tensor, "B N"], mask_BN: Bool[Tensor, "B N"]
) -> Float[Tensor, ""]:
    """Cross-entropy of the hidden patches' codes: one mean over all ranks' batch, so images that hide more weigh more.

    `logits_MV` are of the hidden patches alone, by image and then by patch.
    """
    return share_of_mean(F.cross_entropy(logits_MV, token_ids_BN[mask_BN]), len(logits_MV))
