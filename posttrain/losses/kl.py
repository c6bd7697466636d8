"""Per-token estimators of the divergence KL(pi || ref) from one sampled token, with and without importance correction.

With d = log pi - log ref at the sampled token: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d. On-policy, k1 and k3 have
the divergence as their mean. As losses they differ: without correction the mean gradient of k1 is 0, of k2 that of
KL(pi || ref), of k3 that of KL(ref || pi). With the ratio pi / pi_old in front, through which gradient flows, k1 and
k3 have the mean and the mean gradient of KL(pi || ref) for tokens of pi_old; k2 has those of E_pi[d^2] / 2.

Source: J. Schulman, Approximating KL Divergence (2020); correction: arXiv 2512.02556, section 3.1.
Axes: B rows of a micro-batch, T completion tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.losses.reductions import compute_dtype

# exp(40) = 2e17, and the square of it, which a corrected estimator can reach, is still finite in float32.
MAX_LOG_RATIO = 40.0


def k1_kl(logps: Tensor, ref_logps: Tensor, *, old_logps: Tensor | None = None) -> Tensor:
    """d = log pi - log ref: unbiased, of either sign.

    Args:
        logps: (B, T) log-probs of the sampled tokens under the current policy pi.
        ref_logps: (B, T) the same under the reference policy; constant.
        old_logps: (B, T) the same under the policy that sampled them, constant; None = no importance correction.

    Returns:
        (B, T) float32 (float64 if an input is), not reduced; masked positions are the caller's to remove.

    Gradient: through `logps`, with a correction also through pi / pi_old.
    """
    logps, ref_logps = _promoted(logps, ref_logps)
    return _corrected(logps - ref_logps, logps, old_logps)


def k2_kl(logps: Tensor, ref_logps: Tensor, *, old_logps: Tensor | None = None) -> Tensor:
    """d^2 / 2: biased, never negative; its mean gradient, uncorrected, is that of KL(pi || ref). Rest as `k1_kl`."""
    logps, ref_logps = _promoted(logps, ref_logps)
    return _corrected((logps - ref_logps).square() / 2, logps, old_logps)


def k3_kl(logps: Tensor, ref_logps: Tensor, *, old_logps: Tensor | None = None) -> Tensor:
    """exp(-d) - 1 + d: unbiased and never negative. Rest as `k1_kl`.

    Deviation: -d counts as at most `MAX_LOG_RATIO`, where the gradient then is 0; float32 would overflow.
    """
    logps, ref_logps = _promoted(logps, ref_logps)
    negative_d = (ref_logps - logps).clamp(max=MAX_LOG_RATIO)
    # expm1: exp(x) - 1 - x would lose every digit where the policies still agree.
    return _corrected(torch.expm1(negative_d) - negative_d, logps, old_logps)


def exact_kl(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """KL(pi || ref) of whole distributions: sum over v of pi(v) (log pi(v) - log ref(v)).

    Args:
        log_probs: (..., V) log-probabilities under the current policy; -inf where it has none.
        ref_log_probs: (..., V) the same under the reference; constant.

    Returns:
        (...) float32 (float64 if an input is), >= 0 up to rounding; inf where only the reference excludes a token.

    Gradient: through `log_probs`.
    """
    log_probs, ref_log_probs = _promoted(log_probs, ref_log_probs)
    possible = log_probs > -torch.inf
    return torch.where(possible, log_probs.exp() * (log_probs - ref_log_probs), 0.0).sum(dim=-1)


def exact_forward_kl(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    """KL(ref || pi) of whole distributions: sum over v of ref(v) (log ref(v) - log pi(v)); as distillation minimises.

    Arguments and returns as in `exact_kl`; inf where only the current policy excludes a token.

    Gradient: through `log_probs`.
    """
    log_probs, ref_log_probs = _promoted(log_probs, ref_log_probs)
    possible = ref_log_probs > -torch.inf
    return torch.where(possible, ref_log_probs.exp() * (ref_log_probs - log_probs), 0.0).sum(dim=-1)


def _promoted(logps: Tensor, ref_logps: Tensor) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(logps, ref_logps)
    return logps.to(dtype), ref_logps.detach().to(dtype)


def _corrected(values: Tensor, logps: Tensor, old_logps: Tensor | None) -> Tensor:
    if old_logps is None:
        return values
    return values * (logps - old_logps.detach().to(logps.dtype)).clamp(max=MAX_LOG_RATIO).exp()
