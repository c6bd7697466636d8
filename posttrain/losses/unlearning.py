"""Losses that make a model forget rows, on the log-probs of their answers or on hidden states.

A loss of a sequence stands on the row's first trained token, the rest of the row is 0, so that the reductions that
count sequences apply. Each is minimised. "Sum" is over a row's trained tokens.

Axes: B rows of a micro-batch, T tokens, D hidden width, V vocabulary.
Source: arXiv 2510.16629, sections 2 and 4, and the methods it names; the factor 2 / beta is theirs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.losses.reductions import LossOutput, compute_dtype, sequence_loss, sequence_sums, trained_values


def ga_loss(logps: Tensor, mask: Tensor) -> LossOutput:
    """Gradient ascent: + log pi of every token, so that descending it makes the answer less likely. Unbounded below.

    Args:
        logps: (B, T) log-probs of the answer's tokens.
        mask: (B, T) bool or 0/1 number; 1 = an answer token. Elsewhere logps may be NaN or infinite.

    Returns:
        values (B, T) float32 (float64 if logps are), not reduced, 0 where masked; reduction token_mean.

    Gradient: through `logps`. Raises ValueError for shapes that differ.
    """
    return LossOutput(trained_values(logps, mask), "token_mean")


def npo_loss(logps: Tensor, mask: Tensor, ref_logps: Tensor, *, beta: float) -> LossOutput:
    """Negative preference optimisation: -(2 / beta) log sigmoid(-beta r), r = sum of log pi - log pi_ref.

    Equals (2 / beta) ln 2 where the policy is the reference; there its gradient is that of the sum of log pi, gradient
    ascent for each sequence, and it fades as r falls.

    Args:
        logps, mask: as in `ga_loss`.
        ref_logps: (B,) sums under the model before unlearning; constant.
        beta: > 0.

    Returns:
        values (B, T), each row's loss on its first trained token; reduction seq_mean_token_sum.

    Gradient: through `logps`; of a row, 2 sigmoid(beta r) times that of the sum.
    Source: arXiv 2404.05868, eq. (3), as in arXiv 2510.16629.
    """
    _check_beta(beta)
    ratio = sequence_sums(logps, mask) - ref_logps.detach()
    return sequence_loss(-(2 / beta) * F.logsigmoid(-beta * ratio), mask, {"unlearning/log_ratio": ratio})


def simnpo_loss(
    logps: Tensor, mask: Tensor, *, beta: float, margin: float = 0.0, length_normalize: bool = True
) -> LossOutput:
    """NPO without reference: -(2 / beta) log sigmoid(beta (nll - margin)).

    Args:
        logps, mask: as in `ga_loss`.
        beta: > 0.
        margin: subtracted from the negative log-likelihood, in nats.
        length_normalize: True: nll is the mean of a row's tokens (SimNPO's own form, arXiv 2410.07163). False: their
            sum (the form of arXiv 2510.16629).

    Returns:
        values (B, T), each row's loss on its first trained token; reduction seq_mean_token_sum.

    Gradient: through `logps`.
    """
    _check_beta(beta)
    nll = -sequence_sums(logps, mask)
    if length_normalize:
        nll = nll / mask.to(nll.dtype).sum(dim=1).clamp(min=1)
    return sequence_loss(-(2 / beta) * F.logsigmoid(beta * (nll - margin)), mask, {"unlearning/nll": nll})


def dpo_loss(
    chosen: Tensor, rejected: Tensor, mask: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float
) -> LossOutput:
    """Preference for another answer over the one to forget: -(2 / beta) log sigmoid(beta (r_chosen - r_rejected)).

    With an answer such as "I do not know" as the chosen one it is IdkDPO. The factor is 2 / beta as in the other
    unlearning losses; plain DPO has 1.

    Args:
        chosen: (B,) sum of log pi of the other answer, with gradient.
        rejected: (B, T) log-probs of the answer to forget, with gradient. mask: (B, T) its tokens.
        ref_chosen, ref_rejected: (B,) sums under the model before unlearning; constant.
        beta: > 0.

    Returns:
        values (B, T), each row's loss on its first trained token; reduction seq_mean_token_sum.

    Gradient: through `chosen` and `rejected`.
    """
    _check_beta(beta)
    better = chosen - ref_chosen.detach()
    worse = sequence_sums(rejected, mask) - ref_rejected.detach()
    values = -(2 / beta) * F.logsigmoid(beta * (better - worse))
    return sequence_loss(values, mask, {"unlearning/log_ratio": worse, "unlearning/alternate_log_ratio": better})


def rmu_loss(hidden: Tensor, mask: Tensor, target: Tensor) -> LossOutput:
    """Misdirection: mean over the width of (h - target)^2 at every answer token.

    Args:
        hidden: (B, T, D) output of the chosen layer.
        mask: (B, T) bool or 0/1 number; 1 = an answer token.
        target: (D,) steering vector, see `steering_vector`; constant.

    Returns:
        values (B, T), 0 where masked; reduction seq_mean_token_mean.

    Gradient: through `hidden`.
    """
    return _squared(hidden, mask, target)


def embed_diff_loss(hidden: Tensor, mask: Tensor, ref_hidden: Tensor) -> LossOutput:
    """Keep hidden states where they were: mean over the width of (h - h_ref)^2 at every answer token.

    Args:
        hidden: (B, T, D) output of the chosen layer. mask: as in `rmu_loss`.
        ref_hidden: (B, T, D) of the model before unlearning; constant.

    Returns:
        values (B, T), 0 where masked; reduction seq_mean_token_mean.

    Gradient: through `hidden`.
    """
    return _squared(hidden, mask, ref_hidden)


def kl_loss(divergence: Tensor, mask: Tensor) -> LossOutput:
    """Divergence from the model before unlearning, KL(ref || model), of every position.

    Args:
        divergence: (B, T) from `posttrain.losses.kl.exact_forward_kl`, or in blocks from hidden states.
        mask: (B, T) positions that count.

    Returns:
        values (B, T), 0 where masked; reduction token_mean.
    """
    return LossOutput(trained_values(divergence, mask), "token_mean")


def steering_vector(width: int, *, coefficient: float, seed: int) -> Tensor:
    """(D,) coefficient times a unit vector whose direction is drawn uniformly from [0, 1]^D: no entry is negative."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.rand(width, generator=generator)
    return coefficient * direction / direction.norm()


def _squared(hidden: Tensor, mask: Tensor, target: Tensor) -> LossOutput:
    if hidden.dim() != 3 or hidden.shape[:2] != mask.shape:
        raise ValueError(f"hidden {tuple(hidden.shape)} must be (B, T, D) with the mask's (B, T) {tuple(mask.shape)}")
    dtype = compute_dtype(hidden)
    distance = (hidden.to(dtype) - target.detach().to(hidden.device, dtype)).square().mean(dim=-1)
    return LossOutput(distance.masked_fill(mask == 0, 0.0), "seq_mean_token_mean")


def _check_beta(beta: float) -> None:
    if not beta > 0:
        raise ValueError(f"beta is {beta!r}; it must be above 0")
