"""Why the order of training stages shows in local unlearning: linear models, where everything can be computed.

Least squares in stages with a proximal ridge term, gradient ascent on the forget rows, and a lower bound on how far
two orders move apart. Float64 numpy throughout; d features, rows of data one below the other.

Source: arXiv 2510.16629, linear theory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

Array = NDArray[numpy.float64]


def ridge_stage(features: Array, targets: Array, *, previous: Array, strength: float) -> Array:
    """Parameters after one stage: least squares plus `strength` times the squared distance from where it began.

    θ = (XᵀX + μI)⁻¹ (Xᵀy + μ θ_previous).

    Args:
        features: (rows, d) X.
        targets: (rows,) y.
        previous: (d,) parameters before the stage.
        strength: μ > 0; large values stay close to `previous`.

    Raises:
        ValueError: a strength that is not positive.
    """
    if not strength > 0:
        raise ValueError(f"strength must be > 0, got {strength}")
    identity = numpy.eye(features.shape[1])
    gram, moment = features.T @ features + strength * identity, features.T @ targets + strength * previous
    return numpy.asarray(numpy.linalg.solve(gram, moment), dtype=numpy.float64)


def train_in_order(stages: Sequence[tuple[Array, Array]], *, strength: float, start: Array | None = None) -> Array:
    """Parameters after several stages of (features, targets), each from where the one before ended; (d,).

    `start` is where the first begins; zeros without it.
    """
    theta = numpy.zeros(stages[0][0].shape[1]) if start is None else numpy.asarray(start, dtype=numpy.float64)
    for features, targets in stages:
        theta = ridge_stage(features, targets, previous=theta, strength=strength)
    return theta


def ascend(theta: Array, features: Array, targets: Array, *, learning_rate: float, num_steps: int) -> Array:
    """Gradient ascent on the mean squared error of the forget rows, (1/k) ‖Xθ - y‖².

    Returns:
        (num_steps + 1, d): the parameters before the first step and after each.
    """
    found = [numpy.asarray(theta, dtype=numpy.float64)]
    for _ in range(num_steps):
        gradient = 2 / len(features) * features.T @ (features @ found[-1] - targets)
        found.append(found[-1] + learning_rate * gradient)
    return numpy.stack(found)


def growth_matrix(features: Array, *, learning_rate: float) -> Array:
    """M_U = (2η/k) XᵀX, (d, d): a step of ascent multiplies the difference of two models by I + M_U.

    The targets fall out of the difference, so it depends on the forget rows' features alone.
    """
    return 2 * learning_rate / len(features) * features.T @ features


def predicted_difference(difference: Array, features: Array, *, learning_rate: float, num_steps: int) -> Array:
    """Δθ_t = (I + M_U)^t Δθ_0 for t = 0 .. num_steps, without simulating; (num_steps + 1, d)."""
    values, vectors = numpy.linalg.eigh(growth_matrix(features, learning_rate=learning_rate))
    inside = vectors.T @ difference
    steps = numpy.arange(num_steps + 1)[:, None]
    return ((1 + values) ** steps * inside) @ vectors.T


def divergence(first: Array, second: Array, test_features: Array) -> float:
    """d(θ, θ') = (1/m) Σ (x·θ - x·θ')² over the m test rows."""
    return float(numpy.mean((test_features @ (first - second)) ** 2))


@dataclass(frozen=True)
class DivergenceBound:
    """A lower bound on the divergence of two orders while both are unlearned alike: scale * growth^(2t), t >= start.

    `start` is None where the forget rows do not see the difference, so that nothing grows and the bound is 0.
    """

    scale: float  # σ_U² ‖P_U Δθ_0‖² / (4m)
    growth: float  # 1 + ρ*
    start: int | None  # t_0: from here on the bound holds

    def at(self, step: int) -> float:
        """The bound after `step` steps of ascent; 0 before `start`, where it says nothing."""
        if self.start is None or step < self.start:
            return 0.0
        return self.scale * self.growth ** (2 * step)

    def steps_until_apart(self, tolerance: float) -> int | None:
        """First step from which at most one of the orders is within `tolerance` of any third model.

        Both within ε of the retrained model would put them within 4ε of each other. None if that never follows.
        """
        if self.start is None or self.scale <= 0 or self.growth <= 1:
            return None
        wanted = math.log(4 * tolerance / self.scale) / (2 * math.log(self.growth)) if tolerance > 0 else 0.0
        # Strictly beyond 4ε.
        return max(self.start, math.floor(wanted) + 1, 0)


def divergence_bound(
    difference: Array, features: Array, test_features: Array, *, learning_rate: float
) -> DivergenceBound:
    """The bound for two models that differ by Δθ_0 before unlearning.

    With P_U the projector on the span of the forget rows: ρ* = ⟨P_UΔ, M_U P_UΔ⟩ / ‖P_UΔ‖² is the mean growth and
    σ_U the least singular value of X_test P_U on that span. The test rows may also see a part of the difference that
    does not grow; t_0 is the first step at which the growing part is twice as large, whence the 4.

    Args:
        difference: (d,) Δθ_0.
        features: (k, d) forget rows.
        test_features: (m, d) rows on which predictions are compared.
        learning_rate: η of the ascent.

    Source: arXiv 2510.16629. The paper's t_0 is not in our copy; ours is derived as above (UNVERIFIED).
    """
    _, singular, right = numpy.linalg.svd(features, full_matrices=False)
    basis = right[singular > max(features.shape) * numpy.finfo(numpy.float64).eps * singular.max(initial=0.0)].T
    inside = basis @ (basis.T @ difference)  # P_U Δ
    size = float(numpy.linalg.norm(inside))
    if not basis.size or size == 0:
        return DivergenceBound(0.0, 1.0, None)
    growth = 1 + float(inside @ growth_matrix(features, learning_rate=learning_rate) @ inside) / size**2
    seen = numpy.linalg.svd(test_features @ basis, compute_uv=False)
    least = float(seen.min()) if len(seen) == basis.shape[1] else 0.0  # fewer test rows than directions
    scale = (least * size) ** 2 / (4 * len(test_features))
    if scale == 0:
        return DivergenceBound(0.0, growth, None)
    still = float(numpy.linalg.norm(test_features @ (difference - inside)))
    ratio = 2 * still / (least * size)
    start = 0 if ratio <= 1 else math.ceil(math.log(ratio) / math.log(growth))
    return DivergenceBound(scale, growth, start)
