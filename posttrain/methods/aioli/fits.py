"""Laws fitted on finished runs: how the losses of the groups follow from the proportions, and which are best by them.

A sweep is n runs with static proportions (n, m) and the losses of the m groups at their end (n, m). Three things are
read from it: the log-linear law of DML, the linear one of RegMix, and, from runs on one group each, a skill graph.

Sources: arXiv 2403.16952 (DML), 2407.01492 (RegMix), 2307.14430 (Skill-It), all as instances of linear mixing as
given in arXiv 2411.05735. Deviation: RegMix also fits gradient-boosted trees; here it is linear regression alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.optimize import least_squares, minimize

from posttrain.errors import DataError

MAX_ITERATIONS = 10_000
# Our choice: neither number is in the specification of arXiv 2411.05735.
NUM_SIMULATED, NUM_BEST = 100_000, 100
_STEPS_OF_A_FIT = 2_000


class Law(Protocol):
    """What a fit found."""

    def predict(self, proportions: np.ndarray) -> np.ndarray:
        """(n, m) losses of (n, m) proportions."""


@dataclass(frozen=True)
class LogLinearLaw:
    """L_i(p) = offset_i + scale_i * exp(-sum_j matrix_ij p_j): the static form of linear mixing.

    Attributes:
        offset, scale: (m,). matrix: (m, m); rows are evaluated, columns trained.
    """

    offset: np.ndarray
    scale: np.ndarray
    matrix: np.ndarray

    def predict(self, proportions: np.ndarray) -> np.ndarray:
        return self.offset + self.scale * np.exp(-np.atleast_2d(proportions) @ self.matrix.T)


@dataclass(frozen=True)
class LinearLaw:
    """L_i(p) = sum_j weights_ij p_j. A constant would add nothing: the proportions sum to 1."""

    weights: np.ndarray

    def predict(self, proportions: np.ndarray) -> np.ndarray:
        return np.atleast_2d(proportions) @ self.weights.T


def check_sweep(proportions: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sweep as float64.

    Raises:
        DataError: shapes that do not fit, numbers that are not finite, or fewer than three different mixtures.
    """
    p, found = np.asarray(proportions, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if p.ndim != 2 or p.shape != found.shape or not (np.isfinite(p).all() and np.isfinite(found).all()):
        raise DataError(
            "a sweep is as many rows of finite losses as of proportions",
            where="sweep",
            got=f"{p.shape} proportions, {found.shape} losses",
        )
    distinct = len(np.unique(p.round(12), axis=0))
    if distinct < 3:
        raise DataError(
            "too few mixtures to fit a law on",
            where="sweep",
            got=distinct,
            allowed="3 or more",
            fix="Make more runs: --draws, or stages.draws",
        )
    return p, found


def fit_static_law(proportions: np.ndarray, losses: np.ndarray) -> LogLinearLaw:
    """DML: a_i * exp(sum_j M_ji p_j) + b_i by least squares for each group, from a = b = 1 and M = -1.

    With fewer runs than m + 2 the fit goes through all of them and is one of many; its R^2 then says nothing.

    Args:
        proportions, losses: (n, m), of n runs. n >= 3.

    Raises:
        DataError: see `check_sweep`.
    """
    p, found = check_sweep(proportions, losses)
    m = p.shape[1]
    start = np.concatenate([[1.0, 1.0], np.full(m, -1.0)])
    fits = np.empty((m, m + 2))
    for group in range(m):

        def miss(values: np.ndarray, observed: np.ndarray = found[:, group]) -> np.ndarray:
            return values[0] * np.exp(p @ values[2:]) + values[1] - observed

        def slope(values: np.ndarray, *_: np.ndarray) -> np.ndarray:
            raised = np.exp(p @ values[2:])
            return np.column_stack([raised, np.ones(len(p)), values[0] * raised[:, None] * p])

        fits[group] = least_squares(miss, start, jac=slope, max_nfev=_STEPS_OF_A_FIT, xtol=1e-12, ftol=1e-12).x
    return LogLinearLaw(offset=fits[:, 1], scale=fits[:, 0], matrix=-fits[:, 2:])


def fit_linear_law(proportions: np.ndarray, losses: np.ndarray) -> LinearLaw:
    """RegMix with linear regression: least squares, the smallest weights where the sweep leaves some open.

    Args, Raises: as in `fit_static_law`.
    """
    p, found = check_sweep(proportions, losses)
    return LinearLaw(np.linalg.lstsq(p, found, rcond=None)[0].T)


def minimise(loss: Callable[[np.ndarray], float], num_groups: int) -> np.ndarray:
    """(m,) proportions of the least loss: Nelder-Mead from equal ones, on logits of which the last is 0.

    A minimum on the edge of the simplex is approached as far as the tolerance of 1e-10 in the loss goes.
    """

    def proportions(logits: np.ndarray) -> np.ndarray:
        raised = np.append(logits, 0.0)
        raised = np.exp(raised - raised.max())
        return raised / raised.sum()

    options = {"maxiter": MAX_ITERATIONS, "maxfev": MAX_ITERATIONS, "xatol": 1e-6, "fatol": 1e-10}
    # A simplex of size 1: scipy's own steps from 0 are 0.00025, too small where the loss is noisy in its last digits.
    simplex = np.vstack([np.zeros(num_groups - 1), np.eye(num_groups - 1)])
    found = minimize(
        lambda logits: loss(proportions(logits)),
        np.zeros(num_groups - 1),
        method="Nelder-Mead",
        options={**options, "initial_simplex": simplex},
    )
    return proportions(found.x)


def best_by_law(law: Law, num_groups: int) -> np.ndarray:
    """(m,) proportions with the least mean loss by a law (DML)."""
    return minimise(lambda p: float(law.predict(p).mean()), num_groups)


def best_by_simulation(
    law: Law, num_groups: int, *, seed: int, simulated: int = NUM_SIMULATED, best: int = NUM_BEST
) -> np.ndarray:
    """(m,) mean of the `best` of `simulated` mixtures, uniform on the simplex, by predicted mean loss (RegMix)."""
    mixtures = np.random.default_rng(seed).dirichlet(np.ones(num_groups), size=simulated)
    order = np.argsort(law.predict(mixtures).mean(axis=1), kind="stable")
    return mixtures[order[:best]].mean(axis=0)


# ---- how well a law fits ----


def mean_squared_errors(observed: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """(m,) mean squared error of each group over the runs (n, m)."""
    return ((observed - predicted) ** 2).mean(axis=0)


def r_squared(observed: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """(m,) 1 - squared errors / squared deviations from the mean, of each group over the runs (n, m).

    NaN for a group whose losses are all equal.
    """
    spread = ((observed - observed.mean(axis=0)) ** 2).sum(axis=0)
    errors = ((observed - predicted) ** 2).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread > 0, 1 - errors / spread, np.nan)


# ---- skill graphs ----


def skill_graph(start: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """S (m, m): S[j, i] = (start_i - end_i) / start_i of a run on group j alone; rows are trained, columns evaluated.

    Args:
        start: (m,) losses before training, > 0. ends: (m, m); row j after the run on group j.

    Raises:
        DataError: a loss that is not finite, or one of 0 at the start.
    """
    before, after = np.asarray(start, dtype=np.float64), np.asarray(ends, dtype=np.float64)
    if not (np.isfinite(before).all() and (before > 0).all() and np.isfinite(after).all()):
        raise DataError("a skill graph needs finite losses, above 0 at the start", where="skill graph", got=before)
    return (before - after) / before


def graph_matrix(graph: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """A of Skill-It in the form of linear mixing: A[i, j] = l_i * S[j, i], the transpose of the graph's order."""
    return np.asarray(losses)[:, None] * np.asarray(graph).T
