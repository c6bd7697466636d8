"""From per-token losses to one number: every normaliser of the package, counted over the whole optimizer step.

A reduction is a weight per token. The reduced loss is the sum of value times weight over all micro-batches and ranks,
so it does not depend on how the step was split. Nothing here communicates: the caller brings counts of the whole step.

Axes: B rows of a micro-batch, T completion tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

Aggregation = Literal["token_mean", "seq_mean_token_mean", "seq_mean_token_sum_norm", "seq_mean_token_sum"]
AGGREGATIONS: tuple[str, ...] = get_args(Aggregation)


@dataclass
class LossOutput:
    """What every loss function returns.

    Attributes:
        values: (B, T) loss of each token, with gradient, not reduced; 0 where the token is not trained.
        reduction: the `Aggregation` that the loss is defined with.
        metrics: name -> mean over this micro-batch's trained tokens (NaN if there is none), detached. Combine
            micro-batches by weighting each with its number of trained tokens.
    """

    values: Tensor
    reduction: str
    metrics: dict[str, float | Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class LossCounts:
    """Sizes of the whole optimizer step: all ranks, all accumulation micro-batches.

    Attributes:
        rows: sequences that the loss averages over, including those a mask has emptied.
        tokens: trained tokens.
        max_completion_length: tokens; the constant length that `seq_mean_token_sum_norm` divides by.
    """

    rows: float
    tokens: float
    max_completion_length: int

    def __post_init__(self) -> None:
        for name in ("rows", "tokens", "max_completion_length"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"LossCounts.{name} is {value!r}; it must be a finite number >= 0")


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any tensor is float64, else float32: the precision in which losses are computed and accumulated."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def token_weights(mask: Tensor, *, reduction: str, counts: LossCounts) -> Tensor:
    """Weight of every token, such that the sum of loss times weight over the optimizer step is the reduced loss.

    token_mean: mask / tokens. seq_mean_token_mean: mask / (tokens of the row * rows). seq_mean_token_sum_norm:
    mask / (rows * max_completion_length). seq_mean_token_sum: mask / rows.

    Args:
        mask: (B, T) bool or 0/1 number; 1 = the token is trained. A row is never split over micro-batches.
        reduction: one of `AGGREGATIONS`.
        counts: sizes of the whole optimizer step, not of this micro-batch.

    Returns:
        (B, T) float32 (float64 if the mask is), without gradient. Exactly 0 where the mask is 0 and where a
        denominator is 0.

    Raises:
        ValueError: unknown reduction, or a mask that is not two-dimensional.

    Source: arXiv 2509.04419, appendix; arXiv 2503.20783 (seq_mean_token_sum_norm), arXiv 2503.14476 (token_mean).
    """
    if mask.dim() != 2:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; expected (B, T)")
    weights = mask.detach().to(compute_dtype(mask))
    if reduction == "token_mean":
        denominator = weights.new_tensor(counts.tokens)
    elif reduction == "seq_mean_token_mean":
        denominator = weights.sum(dim=1, keepdim=True) * counts.rows
    elif reduction == "seq_mean_token_sum_norm":
        denominator = weights.new_tensor(counts.rows * counts.max_completion_length)
    elif reduction == "seq_mean_token_sum":
        denominator = weights.new_tensor(counts.rows)
    else:
        raise ValueError(f"reduction is {reduction!r}; allowed: {', '.join(AGGREGATIONS)}")
    is_empty = denominator == 0
    return (weights / denominator.masked_fill(is_empty, 1.0)).masked_fill(is_empty, 0.0)


def reduce_loss(output: LossOutput, mask: Tensor, *, counts: LossCounts) -> Tensor:
    """This micro-batch's share of the reduced loss; the shares of all micro-batches and ranks add up to the loss.

    Args:
        output: per-token loss with the reduction it is defined with.
        mask: (B, T) bool or 0/1 number; 1 = the token is trained.
        counts: sizes of the whole optimizer step.

    Returns:
        scalar, float32 or float64.

    Gradient: through `output.values`. Attached to their graph even if every token is masked, so that each rank runs
    the same backward; the value and the gradient are then exactly 0. Masked values may be NaN or infinite.

    Raises:
        ValueError: unknown reduction, or shapes of values and mask that differ.
    """
    if output.values.shape != mask.shape:
        raise ValueError(f"values have shape {tuple(output.values.shape)} but the mask has {tuple(mask.shape)}")
    dtype = compute_dtype(output.values)
    weights = token_weights(mask.to(dtype), reduction=output.reduction, counts=counts)
    # Masked out before the product: 0 * NaN would be NaN in the value, and 0 * inf in the gradient.
    return (output.values.to(dtype).masked_fill(weights == 0, 0.0) * weights).sum()


def trained_values(values: Tensor, mask: Tensor) -> Tensor:
    """(B, T) values in the precision of losses, 0 where the mask is; masked values may be NaN or infinite."""
    if values.dim() != 2 or values.shape != mask.shape:
        raise ValueError(f"values {tuple(values.shape)} and mask {tuple(mask.shape)} must have the same shape (B, T)")
    return values.to(compute_dtype(values)).masked_fill(mask == 0, 0.0)


def sequence_sums(logps: Tensor, mask: Tensor) -> Tensor:
    """(B,) sum of log pi over a row's trained tokens, 0 for a row without any; with gradient."""
    return trained_values(logps, mask).sum(dim=1)


def sequence_loss(losses: Tensor, mask: Tensor, metrics: dict[str, Tensor]) -> LossOutput:
    """A loss of whole rows in the form of every loss: each row's value on its first trained token.

    Args:
        losses: (B,). mask: (B, T); rows without a trained token are left out.
        metrics: name -> (B,) values, which are averaged over these rows.
    """
    there = mask.bool()
    first = there & (there.cumsum(dim=1) == 1)
    rows = there.any(dim=1)
    told: dict[str, float | Tensor] = {
        name: values.detach()[rows].mean() if bool(rows.any()) else float("nan") for name, values in metrics.items()
    }
    return LossOutput(losses.unsqueeze(1) * first, "seq_mean_token_sum", told)
