"""The mathematics of linear mixing: the matrix from measured drops, its normal form, and the update it leads to.

A[i, j] is the drop in the loss of group i by a block of steps on group j: rows are evaluated, columns trained. With
the linear dynamic law, L_i after a round = L_i before - sum_j A[i, j] p_j, proportions follow by exponentiated
gradient descent: p_j is proportional to p_j * exp(eta * sum_i A[i, j]).

Source: arXiv 2411.05735 (v2), sections 3 to 5. Everything is float64 and takes part in no gradient.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr

from posttrain.errors import ConfigError

MAX_CONDITION = 1e4
# A sum below this part of the sum of magnitudes is rounding noise, not a matrix.
_NOISE = 1e-12


def probe_mixtures(num_groups: int, one_hot_factor: float) -> np.ndarray:
    """(m, m) mixtures: row j gives `one_hot_factor` to group j and shares the rest equally.

    Raises:
        ConfigError: a factor outside (1/m, 1]; at 1/m all mixtures are equal.
    """
    if not 1 / num_groups < one_hot_factor <= 1:
        raise ConfigError(
            "mixtures that favour no group tell nothing",
            where="method.one_hot_factor",
            got=one_hot_factor,
            allowed=f"above 1/{num_groups} (the groups) and at most 1",
        )
    rest = (1 - one_hot_factor) / (num_groups - 1)
    return np.full((num_groups, num_groups), rest) + np.eye(num_groups) * (one_hot_factor - rest)


def solve_mixing_matrix(mixtures: np.ndarray, drops: np.ndarray, *, diagonal: bool = False) -> np.ndarray:
    """The matrix A whose mixtures would lower the losses as measured: A P^T = B.

    Args:
        mixtures: P (m, m); row j is the mixture that was trained, as it came out in whole rows.
        drops: B (m, m); B[i, j] is the drop in the loss of group i over the block with mixture j.
        diagonal: leave out what groups do for each other: A_ii = B_ii / P_ii, the rest 0.

    Raises:
        ConfigError: mixtures so alike (condition number above 1e4) that noise would decide.
    """
    if diagonal:
        return np.diag(np.diag(drops) / np.diag(mixtures))
    condition = float(np.linalg.cond(mixtures))
    if not condition <= MAX_CONDITION:
        raise ConfigError(
            "the mixtures of the measurement are too alike once they are whole rows",
            where="method.one_hot_factor",
            got=f"condition number {condition:.3g}",
            allowed=f"at most {MAX_CONDITION:g}",
            fix="Raise it, method.learn_steps or the rows of a step",
        )
    return np.linalg.solve(mixtures, drops.T).T


def normalize_matrix(matrix: np.ndarray) -> np.ndarray:
    """The matrix shifted by one number so that none is below 0, then scaled to the sum 1.

    All zero where nothing is left to tell the groups apart: every entry is equal up to rounding and at most 0, or the
    matrix is zero. Deviation: the official code divides by zero there.
    """
    shifted = matrix - min(float(matrix.min()), 0.0)
    total = float(shifted.sum())
    if total <= _NOISE * float(np.abs(matrix).sum()):
        return np.zeros_like(matrix)
    return shifted / total


def egd_update(weights: np.ndarray, scores: np.ndarray, *, eta: float) -> np.ndarray:
    """(m,) w * exp(eta * s), scaled to the sum 1.

    Scaling here and in the end gives the proportions of weights that are never scaled, without overflow.
    """
    raised = eta * scores
    updated = weights * np.exp(raised - raised.max())
    return updated / updated.sum()


def similarity(left: np.ndarray, right: np.ndarray) -> float:
    """How far two matrices lead to the same update: half the cosine and half Spearman's correlation of column sums.

    In [-1, 1]; Spearman's correlation counts as 0 where all sums of one matrix are equal.
    Source: arXiv 2411.05735, section 4 (the fidelity of a method's matrix).
    """
    a, b = left.sum(axis=0), right.sum(axis=0)
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / size if size else 0.0
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.5 * cosine
    return 0.5 * cosine + 0.5 * float(spearmanr(a, b).statistic)
