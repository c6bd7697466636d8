"""Per-token losses of supervised fine-tuning, on the log-probs of the target tokens.

The gradients of the first two are the presets `sft` and `dft` of the unified estimator. None needs advantages or old
log-probs.

Axes: B rows of a micro-batch, T tokens.
"""

from __future__ import annotations

from torch import Tensor

from posttrain.losses.reductions import LossOutput, compute_dtype


def nll_loss(logps: Tensor, mask: Tensor) -> LossOutput:
    """Negative log-likelihood of every target token: - log pi.

    Args:
        logps: (B, T) log-probs of the target tokens.
        mask: (B, T) bool or 0/1 number; 1 = the token is trained. Elsewhere logps may be NaN or infinite.

    Returns:
        values (B, T) float32 (float64 if logps are), not reduced, 0 where masked; reduction token_mean.

    Gradient: through `logps`; attached even if everything is masked.

    Raises:
        ValueError: shapes that differ.
    """
    return LossOutput(-_trained(logps, mask), "token_mean")


def dft_loss(logps: Tensor, mask: Tensor) -> LossOutput:
    """Dynamic fine-tuning: - pi * log pi with the factor pi held constant, so improbable targets weigh little.

    Arguments, returns and refusals as in `nll_loss`.

    Gradient: through log pi only; the factor is detached.

    Source: arXiv 2508.05629, section 3.
    """
    trained = _trained(logps, mask)
    return LossOutput(-(trained.detach().exp() * trained), "token_mean")


def uncertainty_weighted_loss(logps: Tensor, mask: Tensor) -> LossOutput:
    """- pi (1 - pi) log pi with the factor pi (1 - pi) held constant: targets that are sure, or far off, weigh little.

    Arguments, returns and refusals as in `nll_loss`.

    Gradient: through log pi only; the factor, at most 1/4, is detached.

    Source: arXiv 2508.11408, token weight p (1 - p); the normaliser is our choice.
    """
    trained = _trained(logps, mask)
    probability = trained.detach().exp()
    return LossOutput(-(probability * (1 - probability) * trained), "token_mean")


def _trained(logps: Tensor, mask: Tensor) -> Tensor:
    """(B, T) log-probs, 0 where masked."""
    if logps.dim() != 2 or logps.shape != mask.shape:
        raise ValueError(f"logps {tuple(logps.shape)} and mask {tuple(mask.shape)} must have the same shape (B, T)")
    return logps.to(compute_dtype(logps)).masked_fill(mask == 0, 0.0)
