"""Losses on pairs of answers to one prompt: the preferred one is to become more likely than the other.

Each is a function of a margin h, how much more the policy prefers the better answer than the reference does. Not
reduced; axis: B pairs. Minimised. Sources: the functions name theirs; the general form is arXiv 2305.18290, eq. (7).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.losses.reductions import compute_dtype


def log_ratio_margin(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    """h = (log pi(chosen) - log ref(chosen)) - (log pi(rejected) - log ref(rejected)), in nats.

    Args:
        chosen, rejected: (B,) log-probs of the answers, sums over their tokens.
        ref_chosen, ref_rejected: (B,) the same under the reference; constant.

    Returns:
        (B,) float32 (float64 if any argument is). 0 where the policy is the reference.

    Gradient: through `chosen` and `rejected`. Raises ValueError for shapes that differ.
    Source: arXiv 2305.18290, eq. (7).
    """
    shapes = {tuple(part.shape) for part in (chosen, rejected, ref_chosen, ref_rejected)}
    if len(shapes) > 1 or chosen.dim() != 1:
        raise ValueError(f"log-probs have shapes {sorted(shapes)}; expected (B,) for all")
    dtype = compute_dtype(chosen, rejected, ref_chosen, ref_rejected)
    own = chosen.to(dtype) - rejected.to(dtype)
    return own - (ref_chosen.detach().to(dtype) - ref_rejected.detach().to(dtype))


def sigmoid_preference_loss(margin: Tensor, *, beta: float) -> Tensor:
    """-log sigmoid(beta h): DPO. ln 2 at h = 0, where its gradient is -beta / 2; it fades as h grows.

    Args:
        margin: (B,) h. beta: > 0, strength of the tie to the reference.

    Returns:
        (B,), above 0. Gradient: through `margin`. Raises ValueError for beta <= 0.
    Source: arXiv 2305.18290, eq. (7).
    """
    _check_beta(beta)
    return -F.logsigmoid(beta * margin)


def robust_preference_loss(margin: Tensor, *, beta: float, flip_prob: float) -> Tensor:
    """(-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)) / (1 - 2 e): DPO where labels are flipped at rate e.

    Its mean over labels that are flipped with probability e is DPO's loss on the true ones; a single value may be
    negative. e = 0 is `sigmoid_preference_loss`.

    Args:
        margin: (B,) h. beta: > 0. flip_prob: e, in [0, 0.5).

    Returns:
        (B,). Gradient: through `margin`. Raises ValueError for beta or flip_prob out of range.
    Source: arXiv 2403.00409, eq. (9).
    """
    _check_beta(beta)
    if not 0 <= flip_prob < 0.5:
        raise ValueError(f"flip_prob is {flip_prob!r}; it must be in [0, 0.5)")
    right, flipped = F.logsigmoid(beta * margin), F.logsigmoid(-beta * margin)
    return (flip_prob * flipped - (1 - flip_prob) * right) / (1 - 2 * flip_prob)


def ipo_loss(margin: Tensor, *, beta: float) -> Tensor:
    """(h - 1 / (2 beta))^2: IPO, which pulls the margin to a finite place instead of ever further.

    Args:
        margin: (B,) h. beta: > 0, the paper's tau.

    Returns:
        (B,), >= 0, 0 at h = 1 / (2 beta). Gradient: through `margin`. Raises ValueError for beta <= 0.
    Source: arXiv 2310.12036, eq. (17).
    """
    _check_beta(beta)
    return (margin - 1 / (2 * beta)).square()


def hinge_preference_loss(margin: Tensor, *, beta: float) -> Tensor:
    """max(0, 1 - beta h): the margin form of SLiC on the log-ratio; no gradient once beta h reaches 1.

    Args:
        margin: (B,) h. beta: > 0.

    Returns:
        (B,), >= 0. Gradient: through `margin`. Raises ValueError for beta <= 0.
    Source: arXiv 2309.06657, eq. (7), with the margin 1.
    """
    _check_beta(beta)
    return torch.relu(1 - beta * margin)


def simpo_loss(chosen_mean: Tensor, rejected_mean: Tensor, *, beta: float, target_margin: float) -> Tensor:
    """-log sigmoid(beta (mean log pi(chosen) - mean log pi(rejected)) - gamma): SimPO, without a reference.

    Args:
        chosen_mean, rejected_mean: (B,) mean log-prob of an answer's tokens.
        beta: > 0. target_margin: gamma, >= 0.

    Returns:
        (B,), above 0. Gradient: through both. Raises ValueError for beta <= 0, or a negative target.
    Source: arXiv 2405.14734, eq. (6).
    """
    _check_beta(beta)
    if not target_margin >= 0:
        raise ValueError(f"target_margin is {target_margin!r}; it must be 0 or more")
    return -F.logsigmoid(beta * (chosen_mean - rejected_mean) - target_margin)


def _check_beta(beta: float) -> None:
    if not beta > 0:
        raise ValueError(f"beta is {beta!r}; it must be above 0")
