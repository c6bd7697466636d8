"""A token that stands for "hidden": found in the tokenizer, or added to it and the model and left out when saving."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from posttrain.errors import ConfigError

WHERE = "method.mask_token"


@dataclass(frozen=True)
class MaskToken:
    """The text of a token and its id; `id` is None while the tokenizer does not have it."""

    text: str
    id: int | None


def find_mask_token(tokenizer: PreTrainedTokenizerBase, text: str) -> MaskToken:
    """The token that a text names.

    Args:
        tokenizer: not changed.
        text: a token of the vocabulary, a text that the tokenizer reads as one token, or a new token written as
            <...> or [...].

    Raises:
        ConfigError: several tokens or the unknown one; the pad, end or begin token.
    """
    if text in tokenizer.get_vocab():
        ids = [tokenizer.convert_tokens_to_ids(text)]
    elif len(text) > 2 and text[0] + text[-1] in ("<>", "[]") and not any(map(str.isspace, text)):
        return MaskToken(text, None)
    else:
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    fix = "Name an unused token of the tokenizer, or a new one such as '<mask>'"
    if len(ids) != 1:
        raise ConfigError(f"the tokenizer reads it as {len(ids)} tokens", where=WHERE, got=text, fix=fix)
    if ids == [tokenizer.unk_token_id] or text == tokenizer.unk_token:
        raise ConfigError("the tokenizer reads it as its unknown token", where=WHERE, got=text, fix=fix)
    for role in ("pad", "eos", "bos"):
        if ids == [getattr(tokenizer, f"{role}_token_id")]:
            raise ConfigError(f"it is the {role} token, which has a meaning already", where=WHERE, got=text, fix=fix)
    return MaskToken(text, ids[0])


def add_mask_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, *, init: str, seed: int
) -> int:
    """Add a token to the tokenizer, and a row to the model's embeddings where they have none for it.

    Args:
        model: changed; without an adapter.
        tokenizer: changed.
        text: of the new token.
        init: "mean" of the rows of all tokens there were, for input and output embeddings; "default", as the model
            initialises a row.
        seed: of that initialisation; the global generator is left as found.

    Returns:
        The id of the token.
    """
    known = len(tokenizer)
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False)], special_tokens=True)
    new = int(tokenizer.convert_tokens_to_ids(text))  # type: ignore[arg-type]
    if new >= _rows(model):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            # transformers 5.17: its own mean is drawn from a normal distribution around it.
            model.resize_token_embeddings(new + 1, mean_resizing=False)
    if init == "mean":
        with torch.no_grad():
            for weight in _per_token(model):
                weight[new] = weight[:known].float().mean(dim=0)
    return new


@contextmanager
def with_rows(model: PreTrainedModel, rows: int) -> Iterator[None]:
    """Inside, the model has only the first `rows` tokens, for saving; parameters keep their identity."""
    weights = _per_token(model)
    before = [weight.data for weight in weights]
    config = model.config.get_text_config()
    size = config.vocab_size
    try:
        for weight in weights:
            weight.data = weight.data[:rows].clone()
        config.vocab_size = rows
        yield
    finally:
        for weight, data in zip(weights, before, strict=True):
            weight.data = data
        config.vocab_size = size


def _rows(model: PreTrainedModel) -> int:
    return int(model.get_input_embeddings().weight.size(0))  # type: ignore[operator, union-attr]


def _per_token(model: PreTrainedModel) -> list[Tensor]:
    """Parameters with one row for each token, tied ones once."""
    found: dict[int, Tensor] = {}
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        parameters: list[Any] = [] if module is None else [module.weight, getattr(module, "bias", None)]
        found |= {id(value): value for value in parameters if value is not None}
    return list(found.values())
