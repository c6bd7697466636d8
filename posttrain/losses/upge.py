"""The unified policy gradient estimator: one detached weight per token; SFT, PPO, GRPO and their kin are cases of it.

loss = - weight * log pi, with weight = kept * advantage * pi / reference * shape held constant. Its gradient is that
of the native loss; its value is not, so `surrogate_values` gives the native one for the log.
Paper: arXiv 2509.04419, section 3.

Axes: B rows of a micro-batch, T completion tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.losses.advantages import group_advantages
from posttrain.losses.reductions import LossOutput, compute_dtype
from posttrain.losses.upge_config import UPGE_PRESETS, UPGEConfig

__all__ = [
    "MAX_LOG_RATIO",
    "UPGE_PRESETS",
    "UPGEConfig",
    "group_advantages",
    "surrogate_values",
    "upge_loss",
    "upge_weights",
]

# exp(40) = 2e17: beyond any ratio that means something, and its products stay finite in float32.
MAX_LOG_RATIO = 40.0


@dataclass(frozen=True)
class _Terms:
    """What the weights are made of, detached and in the accumulation dtype; masked positions hold harmless numbers."""

    is_trained: Tensor  # (B, T) bool
    logps: Tensor  # (B, T)
    advantages: Tensor  # (B, T)
    ratio: Tensor | None  # (B, T) pi / pi_old, None if the config needs no old log-probs
    sequence_ratio: Tensor | None  # (B, T) geometric mean of the ratio over the row


def _terms(logps: Tensor, old_logps: Tensor | None, advantages: Tensor, mask: Tensor, config: UPGEConfig) -> _Terms:
    if logps.dim() != 2 or mask.shape != logps.shape:
        raise ValueError(f"logps {tuple(logps.shape)} and mask {tuple(mask.shape)} must have the same shape (B, T)")
    if advantages.shape not in (logps.shape, logps.shape[:1]):
        raise ValueError(f"advantages have shape {tuple(advantages.shape)}; expected (B,) or (B, T) of the logps")
    dtype = compute_dtype(logps, advantages) if old_logps is None else compute_dtype(logps, advantages, old_logps)
    is_trained = mask != 0

    def clean(tensor: Tensor) -> Tensor:
        return tensor.detach().to(dtype).masked_fill(~is_trained, 0.0)

    per_token = advantages if advantages.dim() == 2 else advantages.unsqueeze(1).expand_as(logps)
    ratio = sequence_ratio = None
    if config.uses_old_logps:
        if old_logps is None or old_logps.shape != logps.shape:
            got = None if old_logps is None else tuple(old_logps.shape)
            raise ValueError(
                f"reference_policy {config.reference_policy} with stabilization_mask {config.stabilization_mask} "
                f"needs the rollout policy's log-probs, shaped like logps {tuple(logps.shape)}; got {got}"
            )
        log_ratio = clean(logps) - clean(old_logps)
        lengths = is_trained.sum(dim=1, keepdim=True).clamp(min=1)
        ratio = log_ratio.clamp(max=MAX_LOG_RATIO).exp()
        sequence_ratio = (log_ratio.sum(dim=1, keepdim=True) / lengths).clamp(max=MAX_LOG_RATIO).exp()
        sequence_ratio = sequence_ratio.expand_as(ratio)
    return _Terms(is_trained, clean(logps), clean(per_token), ratio, sequence_ratio)


def _raw_likelihood(terms: _Terms, config: UPGEConfig) -> Tensor:
    """(B, T) pi / reference."""
    if config.reference_policy == "current":
        return torch.ones_like(terms.logps)
    if config.reference_policy == "one":
        return terms.logps.exp()
    return terms.ratio if config.reference_policy == "rollout" else terms.sequence_ratio


def _shape_slope(terms: _Terms, config: UPGEConfig) -> Tensor | float:
    """(B, T) f'(p) = gamma / (p + gamma)^2, or 1 without shaping."""
    gamma = config.shaping_gamma
    return 1.0 if config.shaping is None else gamma / (terms.logps.exp() + gamma).square()


def _bounded(terms: _Terms, config: UPGEConfig) -> tuple[Tensor, Tensor]:
    """(B, T) each: the ratio the mask looks at, stuck at the bound it has passed, and whether it has passed one."""
    if config.stabilization_mask == "none":
        return torch.ones_like(terms.logps), torch.zeros_like(terms.is_trained)
    ratio = terms.sequence_ratio if config.stabilization_mask == "sequence_clip" else terms.ratio
    rises, falls = terms.advantages > 0, terms.advantages < 0
    upper = torch.full_like(ratio, torch.inf).masked_fill(rises, 1 + config.epsilon_high)
    lower = torch.full_like(ratio, -torch.inf).masked_fill(falls, 1 - config.epsilon_low)
    if config.epsilon_dual is not None:
        upper = upper.masked_fill(falls, config.epsilon_dual)
    # Strict comparisons: equality keeps the token, and a NaN stays visible instead of being masked.
    return torch.minimum(torch.maximum(ratio, lower), upper), (ratio > upper) | (ratio < lower)


def _weights(terms: _Terms, config: UPGEConfig) -> Tensor:
    likelihood = _raw_likelihood(terms, config)
    if config.is_truncation is not None:
        likelihood = likelihood.clamp(*config.is_truncation)
    weights = terms.advantages * likelihood * _shape_slope(terms, config)  # masked advantages are 0
    return weights.masked_fill(_bounded(terms, config)[1], 0.0)


def upge_weights(
    logps: Tensor, old_logps: Tensor | None, advantages: Tensor, mask: Tensor, *, config: UPGEConfig
) -> Tensor:
    """Weight of every token's score in the policy gradient: kept * advantage * pi / reference * shape.

    Args:
        logps: (B, T) log-probs of the completion tokens under the current policy.
        old_logps: the same under the policy that made the rollouts; None if `config.uses_old_logps` is False.
        advantages: (B,), or (B, T) for advantages per token.
        mask: (B, T) bool or 0/1 number; 1 = the token is trained. Elsewhere the others may be NaN or infinite.
        config: the estimator's parts.

    Returns:
        (B, T) float32 (float64 if an input is), detached; exactly 0 where masked, clipped, or the advantage is 0.

    Raises:
        ValueError: shapes that do not fit, or old log-probs that are needed and missing.

    Source: arXiv 2509.04419, section 3. Deviation: a log-ratio counts as at most `MAX_LOG_RATIO`; the paper has no
    bound, and float32 would overflow.
    """
    return _weights(_terms(logps, old_logps, advantages, mask, config), config)


def surrogate_values(
    logps: Tensor, old_logps: Tensor | None, advantages: Tensor, mask: Tensor, *, config: UPGEConfig
) -> Tensor:
    """Per-token value of the native loss whose gradient the estimator has, for logs; arguments as in `upge_weights`.

    Ratio references: - advantage * ratio, a clipped token stuck at the bound it passed (PPO's minimum). Reference one:
    - advantage * f(p), f(p) = p without shaping. Reference current, or a clamped ratio: - weight * log pi.

    Returns:
        (B, T), not reduced, detached; 0 where masked.
    """
    return _surrogate(_terms(logps, old_logps, advantages, mask, config), config)


def _surrogate(terms: _Terms, config: UPGEConfig) -> Tensor:
    if config.reference_policy == "current" or config.is_truncation is not None:
        weights = _weights(terms, config)
        return -(weights * terms.logps.masked_fill(weights == 0, 0.0))
    bounded, is_clipped = _bounded(terms, config)
    if config.reference_policy == "one":
        probs = terms.logps.exp()
        likelihood = probs if config.shaping is None else probs / (probs + config.shaping_gamma)
        likelihood = likelihood.masked_fill(is_clipped, 0.0)
    else:
        likelihood = torch.where(is_clipped, bounded, _raw_likelihood(terms, config)) * _shape_slope(terms, config)
    return -(terms.advantages * likelihood).masked_fill(~terms.is_trained, 0.0)


def upge_loss(
    logps: Tensor, old_logps: Tensor | None, advantages: Tensor, mask: Tensor, *, config: UPGEConfig
) -> LossOutput:
    """Per-token loss - weight * log pi with the weights of `upge_weights`; arguments and refusals as there.

    Returns:
        values (B, T), not reduced; reduction `config.loss_aggregation`; metrics over the micro-batch's trained tokens:
        `policy/surrogate_loss` (mean of `surrogate_values`), and where they apply `policy/ratio_mean`,
        `policy/clipped_fraction`, `policy/clamped_fraction`.

    Gradient: through `logps` only, and not through the weights. The values stay attached if everything is masked.
    """
    terms = _terms(logps, old_logps, advantages, mask, config)
    weights = _weights(terms, config)
    values = -(weights * logps.to(weights.dtype).masked_fill(weights == 0, 0.0))
    measured = {"policy/surrogate_loss": _surrogate(terms, config)}
    if terms.ratio is not None:
        measured["policy/ratio_mean"] = terms.ratio
    if config.stabilization_mask != "none":
        measured["policy/clipped_fraction"] = _bounded(terms, config)[1]
    if config.is_truncation is not None:
        raw = _raw_likelihood(terms, config)
        measured["policy/clamped_fraction"] = raw != raw.clamp(*config.is_truncation)
    count = terms.is_trained.sum()
    metrics: dict[str, float | Tensor] = {
        name: (value * terms.is_trained).sum(dtype=weights.dtype) / count  # 0 / 0 is NaN: nothing was measured
        for name, value in measured.items()
    }
    return LossOutput(values, config.loss_aggregation, metrics)
