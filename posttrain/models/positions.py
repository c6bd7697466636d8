"""Position ids of padded rows: a row's first token is at 0, wherever the batch has put it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def row_positions(attention_mask: Tensor) -> Tensor:
    """(B, S) int64 places of tokens within their rows.

    Args:
        attention_mask: (B, S), 1 where a token may be looked at. Zeros before the first 1 and after the last are
            padding; zeros between are tokens that nothing looks at, and have their place.

    Padding before a row is at 0, padding after it at the row's last place, so no id is beyond the row.
    """
    width = attention_mask.size(-1)
    seen = (attention_mask != 0).to(torch.int32)
    first, last = seen.argmax(dim=-1, keepdim=True), width - 1 - seen.flip(-1).argmax(dim=-1, keepdim=True)
    places = torch.arange(width, device=attention_mask.device).expand(attention_mask.shape)
    return torch.minimum((places - first).clamp(min=0), last - first)


def position_limit(config: Any) -> int | None:
    """Places that a row can have, by a model's configuration; None where it gives no limit."""
    text = config.get_text_config(decoder=True)
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_target_positions"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def takes_positions(model: nn.Module) -> bool:
    """Whether the forward of a model reads 2-D position ids: not where it has none, and not where it makes ids of
    several dimensions itself, from images.
    """
    base: Any = getattr(model, "module", model)  # DDP
    base = base.get_base_model() if hasattr(base, "get_base_model") else base  # PEFT
    config = getattr(base, "config", None)
    if config is not None and hasattr(config, "get_text_config") and config.get_text_config() is not config:
        return False
    return "position_ids" in inspect.signature(type(base).forward).parameters


def with_positions(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of a forward, with position ids where there is a 2-D mask, none are given and the model reads them."""
    found = dict(inputs)
    mask = found.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2 and found.get("position_ids") is None and takes_positions(model):
        found["position_ids"] = row_positions(mask)
    return found
