"""What a model says of a batch without being trained: log-probs, hidden states, and a divergence from another one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from posttrain.errors import SupportError
from posttrain.losses.kl import exact_forward_kl
from posttrain.models.positions import with_positions
from posttrain.seam.sharding import gathered_weights, is_sharded, zero3_disabled


@contextmanager
def eval_mode_no_grad(model: nn.Module) -> Iterator[None]:
    """Without dropout and without gradient; the model's mode is restored."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def gathered_copy(model: Any) -> Any:
    """A frozen copy of a model on every process, whole also where ZeRO-3 has spread the model; collective there."""
    if not is_sharded(model):
        return copy.deepcopy(model).eval().requires_grad_(False)
    with gathered_weights(model):
        state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    with zero3_disabled():
        twin = type(model)._from_config(
            model.config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
    twin.load_state_dict(state)
    return twin.to(model.device).eval().requires_grad_(False)


def model_inputs(model: nn.Module, batch: dict[str, Any]) -> dict[str, Any]:
    """The part of a batch that a model reads, with the rows' positions."""
    found: dict[str, Any] = {
        key: batch[key] for key in ("input_ids", "attention_mask", "position_ids") if key in batch
    }
    return with_positions(model, found)


def next_token_logps(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """(B, S-1) log-probs of the labels, float32, 0 where there is none; position t is of token t+1.

    A row's (S, V) logits at a time are held in float32. With gradient unless called under `eval_mode_no_grad`.
    """
    logits = model(**model_inputs(model, batch), use_cache=False).logits
    rows = [
        -F.cross_entropy(row[:-1].float(), labels[1:], ignore_index=-100, reduction="none")
        for row, labels in zip(logits, batch["labels"], strict=True)
    ]
    return torch.stack(rows)


class HiddenTap:
    """The last output (B, S, D) of a module, as its latest forward left it, with its graph."""

    def __init__(self, module: nn.Module):
        self.value: Tensor | None = None
        module.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.value = output if isinstance(output, Tensor) else output[0]

    def take(self) -> Tensor:
        """The value, which is let go of."""
        assert self.value is not None, "no forward since the last call"
        value, self.value = self.value, None
        return value


def whole_base(model: Any) -> Any:
    """The transformers model inside an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def linear_head(model: Any, *, where: str) -> nn.Module:
    """The head of a model whose logits are its output and nothing more.

    Raises:
        SupportError: logits that are capped or scaled, or no head.
    """
    base = whole_base(model)
    head, config = base.get_output_embeddings(), base.config
    for name in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(config, name, None) not in (None, 1, 1.0):
            raise SupportError("this model changes its logits after the head", where=where, got=name, fix="Use nll")
    if head is None:
        raise SupportError("the model has no head", where=where)
    return head


def _divergence_block(hidden: Tensor, head: nn.Module, ref_hidden: Tensor, ref_head: nn.Module) -> Tensor:
    with torch.no_grad():
        reference = ref_head(ref_hidden).float().log_softmax(-1)
    return exact_forward_kl(head(hidden).float().log_softmax(-1), reference)


def chunked_forward_kl(
    hidden: Tensor, head: nn.Module, ref_hidden: Tensor, ref_head: nn.Module, *, logits_budget_bytes: int
) -> Tensor:
    """KL(ref || model) at N positions whose float32 logits never exceed a byte budget for each of the two models.

    Args:
        hidden, ref_hidden: (N, D) last hidden states of model and reference; the latter constant.
        head, ref_head: their heads, D -> V.
        logits_budget_bytes: size limit of one (rows, V) float32 block.

    Returns:
        (N,) float32; beyond the budget the blocks are computed again in the backward pass.

    Gradient: to hidden and head.
    """
    weight: Any = head.weight
    vocabulary = int(getattr(weight, "ds_shape", weight.shape)[0])  # ZeRO-3 gathers it when the head is called
    block = max(1, logits_budget_bytes // (4 * vocabulary))
    if hidden.size(0) <= block:
        return _divergence_block(hidden, head, ref_hidden, ref_head)
    parts = [
        checkpoint(
            _divergence_block, hidden[i : i + block], head, ref_hidden[i : i + block], ref_head, use_reentrant=False
        )
        for i in range(0, hidden.size(0), block)
    ]
    return torch.cat(parts)
