"""Captions to tokens and tokens to features: a RoBERTa of the library transformers, which is needed only here.

Nothing is fetched: the network is built from sizes, or read from a folder that `save_pretrained` has written; its
tokens come from the same folder, or are learnt from the captions (byte-level BPE, RoBERTa's kind).

Shape legend: B captions, T tokens of the longest one (padded), W width.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from typing_extensions import Doc

from unmask.extras import require

# RoBERTa's first four, then its mask, which stands at its end.
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
BYTES = 256


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The encoder of captions."""

    folder: Annotated[
        str | None,
        Doc("Folder of a RoBERTa and its tokenizer, written by transformers' save_pretrained; None: a random start."),
    ] = None
    width: Annotated[int, Doc("Width of the tokens, without a folder. [RoBERTa-base]")] = 768
    depth: Annotated[int, Doc("Number of blocks, without a folder. [RoBERTa-base]")] = 12
    heads: Annotated[int, Doc("Attention heads, without a folder; must divide the width. [RoBERTa-base]")] = 12
    mlp_ratio: Annotated[float, Doc("Hidden width of a block's MLP by its width, without a folder.")] = 4.0
    length: Annotated[int, Doc("Most tokens of a caption, ends included; what is longer is cut. [code]")] = 64
    vocabulary: Annotated[int, Doc("Most tokens that are learnt from captions, without a folder.")] = 8192
    merges: Annotated[
        str, Doc("Pairs of byte-level BPE, one a line, learnt from the captions where empty; without a folder.")
    ] = ""
    rows: Annotated[int | None, Doc("Rows of the table of tokens; None: as many as there are tokens.")] = None

    def __post_init__(self) -> None:
        sizes = {"width": self.width, "depth": self.depth, "heads": self.heads}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"text {name} must be at least 1, got {value}")
        if self.width % self.heads:
            raise ValueError(f"text width {self.width} is not divisible by its {self.heads} heads")
        if self.length < 3:
            raise ValueError(f"text length must be at least 3 (a token between two ends), got {self.length}")
        least = len(SPECIAL) + BYTES
        if self.vocabulary < least:
            raise ValueError(
                f"text vocabulary must be at least {least}, the bytes and the marks, got {self.vocabulary}"
            )

    def __str__(self) -> str:
        """In words, for people."""
        if self.folder is not None:
            return f"encoder of {self.folder}"
        tokens = len(SPECIAL) + BYTES + len(self.merges.splitlines())
        return f"encoder of width {self.width} and {self.depth} blocks, for {tokens} tokens learnt from the captions"


def library(name: str) -> Any:
    """A module of the libraries that only captions need. ValueError where they are not installed."""
    return require("text", "captions need", name)


class TextTokens:
    """Captions to numbers."""

    def __init__(self, config: TextConfig) -> None:
        self.length = config.length
        transformers = library("transformers")
        if config.folder is not None:
            self._tokenizer = _from_folder(transformers.AutoTokenizer, config.folder, "tokenizer")
        else:
            start, padding, end, unknown, mask = SPECIAL
            self._tokenizer = transformers.PreTrainedTokenizerFast(
                tokenizer_object=byte_pairs(config.merges),
                bos_token=start,
                eos_token=end,
                unk_token=unknown,
                pad_token=padding,
                mask_token=mask,
            )
        if self._tokenizer.mask_token_id is None or self._tokenizer.pad_token_id is None:
            raise ValueError(f"the tokenizer in {config.folder} has no mask token or no padding token")

    def __len__(self) -> int:
        """Number of tokens."""
        return len(self._tokenizer)

    @property
    def mask(self) -> int:
        """The token that stands for a hidden one."""
        return int(self._tokenizer.mask_token_id)

    def save(self, folder: Path) -> None:
        """Write the tokenizer as transformers would, beside what `save_pretrained` of the network writes."""
        self._tokenizer.save_pretrained(folder)

    def __call__(
        self, captions: tuple[str, ...]
    ) -> tuple[Int64[Tensor, "B T"], Bool[Tensor, "B T"], Bool[Tensor, "B T"]]:
        """Tokens between two ends, padded to one length; which are padding; which are neither that nor marks."""
        found = self._tokenizer(
            list(captions),
            padding=True,
            pad_to_multiple_of=8,
            truncation=True,
            max_length=self.length,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        return found["input_ids"], found["attention_mask"] == 0, found["special_tokens_mask"] == 0


def byte_pairs(merges: str) -> Any:
    """A byte-level BPE of the library tokenizers: marks, bytes, then a token for each of these pairs, in this order."""
    tokenizers = library("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    pairs = [(first, second) for first, second in (line.split(" ") for line in merges.splitlines())]
    # Two pairs can make one token.
    names = dict.fromkeys([*SPECIAL, *alphabet, *(first + second for first, second in pairs)])
    vocabulary = {token: place for place, token in enumerate(names)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=pairs, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])]
    )
    return tokenizer


def learn_merges(captions: Iterable[str], vocabulary: int) -> str:
    """The pairs, one a line, of a byte-level BPE of at most `vocabulary` tokens for these captions.

    The same captions give the same pairs, in whatever order they come.
    """
    tokenizers = library("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(captions), trainer)
    pairs = json.loads(tokenizer.to_str())["model"]["merges"]
    return "\n".join(" ".join(pair) for pair in pairs)


class TextEncoder(nn.Module):
    """A RoBERTa without its pooler."""

    def __init__(self, config: TextConfig, *, rows: int, dropout: float) -> None:
        """`rows`: how many tokens there are, without a folder."""
        super().__init__()
        transformers = library("transformers")
        rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        if config.folder is not None:
            self.network, told = _from_folder(
                transformers.RobertaModel,
                config.folder,
                "RoBERTa",
                add_pooling_layer=False,
                output_loading_info=True,
                **rates,
            )
            # transformers goes on with random weights in their place.
            if told["missing_keys"] or told["mismatched_keys"]:
                raise ValueError(f"no RoBERTa can be read from {config.folder}: its weights do not fit its config.json")
            places = self.network.config.max_position_embeddings - 2
            if config.length > places:
                raise ValueError(f"the RoBERTa in {config.folder} takes {places} tokens, fewer than {config.length}")
        else:
            sizes = transformers.RobertaConfig(
                vocab_size=rows,
                hidden_size=config.width,
                num_hidden_layers=config.depth,
                num_attention_heads=config.heads,
                intermediate_size=round(config.width * config.mlp_ratio),
                # Numbering begins behind the padding's number, 1.
                max_position_embeddings=config.length + 2,
                type_vocab_size=1,
                layer_norm_eps=1e-5,
                **rates,
            )
            self.network = transformers.RobertaModel(sizes, add_pooling_layer=False)

    @property
    def width(self) -> int:
        """Width W of the tokens."""
        return int(self.network.config.hidden_size)

    @property
    def rows(self) -> int:
        """How many tokens are known."""
        return int(self.network.config.vocab_size)

    def forward(self, text_BT: Int64[Tensor, "B T"], padding_BT: Bool[Tensor, "B T"]) -> Float[Tensor, "B T W"]:
        """Features of all tokens."""
        return self.network(input_ids=text_BT, attention_mask=(~padding_BT).long()).last_hidden_state


def _from_folder(kind: Any, folder: str, what: str, **options: Any) -> Any:
    """Something of transformers' from a folder of this machine, and from nowhere else."""
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is not a folder, so no {what} can be read from it")
    try:
        # Without being told, transformers asks on the terminal whether to run code that it finds in the folder.
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except RuntimeError as error:
        raise ValueError(f"no {what} can be read from {folder}: its weights do not fit its config.json") from error
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ValueError(f"no {what} can be read from {folder}: {str(error).strip().splitlines()[0]}") from error
