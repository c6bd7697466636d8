"""What decides the share of supervised steps: controllers in plain Python numbers, without a model.

Source: arXiv 2505.13026. Its abstract says that the gradient norm and the divergence decide; the ratio below and every
default are our choice, since no full text was at hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch

from posttrain.errors import DataError

NormStat = Literal["last", "mean_last_k", "mean"]
# Norms after clipping are all equal: so many in a row are no chance.
SAME_NORMS = 20


def supervised_probability(last: float, warmup: float, *, gamma: float) -> float:
    """p = last / (last + gamma * warmup): the share of supervised steps.

    Args:
        last: newest value of the signal (gradient norm or divergence), >= 0.
        warmup: its value at the end of the warm-up, > 0. gamma: > 0, weight of it.

    Returns:
        in [0, 1]; 0 if `last` is 0. Only the ratio of the two values matters.

    Source: our choice, see the module.
    """
    return last / (last + gamma * warmup)


def warmup_value(values: Sequence[float], *, stat: NormStat, window: int) -> float:
    """One number for the warm-up's norms: the last, the mean of the last `window`, or the mean of all.

    Raises:
        DataError: there is none, or it is 0 or not finite, so that no ratio can be formed.
    """
    known = [value for value in values if math.isfinite(value)]
    kept = known[-1:] if stat == "last" else known[-window:] if stat == "mean_last_k" else known
    value = sum(kept) / len(kept) if kept else 0.0
    if value <= 0.0 or not math.isfinite(value):
        raise DataError(
            "the warm-up has no gradient to compare with",
            where="method.warmup_norm_stat",
            got=f"{stat} of {len(known)} finite norms is {value}",
            allowed="a finite number above 0",
            fix="Check that demonstrations train at all, or set method.switch_controller to fixed",
        )
    return value


def uniform_draw(seed: int, step: int) -> float:
    """A number in [0, 1) that follows from (seed, step) alone, so it is the same on all ranks and after a resume."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
    return float(torch.rand(1, generator=generator, dtype=torch.float64))


class RatioController:
    """`supervised_probability` of a signal that is measured in supervised steps (grad_norm) or before each (kl)."""

    def __init__(self, *, gamma: float, stat: NormStat, window: int, ema: float):
        self.gamma, self.stat, self.window, self.ema = gamma, stat, window, ema
        self.seen: list[float] = []
        self.warmup: float | None = None
        self.last: float | None = None

    def observe_warmup(self, value: float) -> None:
        """A value of the warm-up; only those the statistic needs are kept."""
        self.seen.append(value)
        if self.stat != "mean":
            del self.seen[: -self.window]

    def freeze(self) -> None:
        """End of the warm-up: the reference value is settled."""
        self.warmup = warmup_value(self.seen, stat=self.stat, window=self.window)
        self.last, self.seen = next(v for v in reversed(self.seen) if math.isfinite(v)), []

    def observe(self, value: float) -> None:
        """A value after the warm-up; non-finite ones (fp16 overflow) are passed over."""
        if math.isfinite(value):
            self.last = value if self.last is None else (1 - self.ema) * value + self.ema * self.last

    def probability(self, progress: float) -> float:
        """Share of supervised steps now; `progress` through the hybrid phase does not matter."""
        if self.warmup is None or self.last is None:
            raise ValueError("the warm-up has not ended: call freeze first")
        return supervised_probability(self.last, self.warmup, gamma=self.gamma)

    def state(self) -> dict[str, Any]:
        """JSON values that `load` takes back."""
        return {"seen": self.seen, "warmup": self.warmup, "last": self.last}

    def load(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self.seen, self.warmup, self.last = state["seen"], state["warmup"], state["last"]


def scheduled_probability(kind: str, progress: float, *, fixed: float, low: float, high: float) -> float:
    """Share of supervised steps of the controllers that look at no signal, before it is clamped to [low, high].

    Args:
        kind: fixed; cosine, from `high` at progress 0 to `low` at 1; sequential, 0: what is supervised is the warm-up.
        progress: 0 at the first step after the warm-up, 1 at the end of the run.

    Raises:
        ValueError: an unknown kind.
    """
    if kind == "fixed":
        return fixed
    if kind == "cosine":
        return low + (high - low) * (1 + math.cos(math.pi * min(1.0, progress))) / 2
    if kind == "sequential":
        return 0.0
    raise ValueError(f"kind is {kind!r}; allowed: fixed, cosine, sequential")


class PostClipWatch:
    """Notices that gradient norms are taken after clipping: then they are all the same number."""

    def __init__(self) -> None:
        self.value, self.count = 0.0, 0

    def sees(self, norm: float) -> bool:
        """Whether this norm completes a row of `SAME_NORMS` equal ones; True once for each row."""
        same = norm > 0.0 and math.isclose(norm, self.value, rel_tol=1e-6)
        self.value, self.count = norm, self.count + 1 if same else 1
        return self.count == SAME_NORMS
