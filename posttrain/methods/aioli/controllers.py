"""What decides the proportions: one class a method, each a state of plain numbers that the trainer feeds.

The trainer calls `learn_schedule` and `on_probe` of a controller that measures in the run, `on_round` where it decides
once a round, and `on_step` where it decides at every step. Everything is float64 and equal on all ranks.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from posttrain.errors import ConfigError, DataError
from posttrain.methods.aioli.laws import egd_update, normalize_matrix, probe_mixtures, solve_mixing_matrix

SKILLIT_WINDOW = 3


class MixingController:
    """Proportions of m groups. As it stands, they are given at the start and stay.

    Attributes:
        proportions: (m,) in force from the next decision on.
        mixtures: (m, m) mixtures of a measurement; row j is that of group j.
        matrix: the last measured matrix, or None.
        prior: proportions of the first `prior_steps`.
        probe_steps: optimizer steps spent on measuring so far.
    """

    decides_at_round_end = False
    decides_at_every_step = False

    def __init__(self, groups: Sequence[str], proportions: Sequence[float] | np.ndarray | None = None):
        m = len(groups)
        self.groups = list(groups)
        self.proportions = np.full(m, 1 / m) if proportions is None else np.asarray(proportions, dtype=np.float64)
        self.mixtures = np.eye(m)
        self.matrix: np.ndarray | None = None
        self.prior: list[float] = self.proportions.tolist()
        self.probe_steps = 0

    @property
    def result(self) -> np.ndarray:
        """(m,) proportions that a later run would be given."""
        return self.proportions

    def learn_schedule(self, number: int) -> list[int]:
        """Group of every block of a round's measurement, in order; empty where nothing is measured."""
        return []

    def on_probe(self, group: int, realised: np.ndarray, before: Sequence[float], after: Sequence[float]) -> None:
        """A block is done. realised: (m,) shares of its rows; before, after: validation losses around it."""
        raise NotImplementedError

    def on_round(self, losses: Sequence[float]) -> None:
        """Decide, with the validation losses as they are now."""
        raise NotImplementedError

    def on_step(self, first: np.ndarray, second: np.ndarray, **more: float) -> None:
        """Decide at a step, from what the method reads there; NaN for groups that the step does not have."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Everything that changes, as JSON; `load` restores it bit by bit."""
        return {
            "proportions": self.proportions.tolist(),
            "matrix": None if self.matrix is None else self.matrix.tolist(),
            "probe_steps": self.probe_steps,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self.proportions = np.array(state["proportions"])
        self.matrix = None if state["matrix"] is None else np.array(state["matrix"])
        self.probe_steps = state["probe_steps"]


class AioliController(MixingController):
    """Measures the matrix in the run, then one step of exponentiated gradient descent on it.

    Without `ema` the weights accumulate over the rounds; with it they follow from a running mean of the matrices
    alone, E <- (1 - ema) A + ema E, as in the official code and unlike in the paper's equation.

    Source: arXiv 2411.05735, algorithms 1 and 2.
    """

    def __init__(
        self,
        groups: Sequence[str],
        *,
        sweeps: int,
        steps: int,
        one_hot_factor: float,
        eta: float,
        ema: float | None,
        normalize: bool,
        diagonal: bool,
        static: bool,
        seed: int,
        prior: Sequence[float] | None = None,
    ):
        super().__init__(groups)
        m = len(groups)
        self.sweeps, self.steps, self.eta, self.ema, self.seed = sweeps, steps, eta, ema, seed
        self.normalize, self.diagonal, self.static = normalize, diagonal, static
        self.mixtures = probe_mixtures(m, one_hot_factor)
        if prior is not None:
            self.prior = list(prior)
            self.proportions = np.array(prior)  # until the first decision; the weights begin at 1 all the same
        self._weights = np.full(m, 1 / m)
        self._mean: np.ndarray | None = None
        self._drops, self._realised = np.zeros((m, m)), np.zeros((m, m))
        self._blocks = 0
        self.decides_at_round_end = static  # later rounds measure nothing

    def learn_schedule(self, number: int) -> list[int]:
        if self.static and number:
            return []
        generator = np.random.default_rng([self.seed, 3, number])
        return [int(group) for _ in range(self.sweeps) for group in generator.permutation(len(self.groups))]

    def on_probe(self, group: int, realised: np.ndarray, before: Sequence[float], after: Sequence[float]) -> None:
        drop = np.array(before) - np.array(after)
        for place, value in enumerate(drop.tolist()):
            if not np.isfinite(value):
                raise DataError(
                    "the drop of a group's loss is not finite", where=f"group {self.groups[place]!r}", got=value
                )
        self._drops[:, group] += drop
        self._realised[group] = realised
        self._blocks += 1
        self.probe_steps += self.steps

    def on_round(self, losses: Sequence[float]) -> None:
        if self._blocks:
            matrix = solve_mixing_matrix(self._realised, self._drops / self.sweeps, diagonal=self.diagonal)
            self.matrix = normalize_matrix(matrix) if self.normalize else matrix
            self._drops, self._realised, self._blocks = np.zeros_like(matrix), np.zeros_like(matrix), 0
        if self.matrix is None or not self.matrix.any():
            return  # nothing that tells the groups apart: the proportions stay
        if self.ema is None:
            self._weights = egd_update(self._weights, self.matrix.sum(axis=0), eta=self.eta)
        else:
            past = self.matrix if self._mean is None else self._mean
            self._mean = (1 - self.ema) * self.matrix + self.ema * past
            self._weights = egd_update(np.ones(len(self.groups)), self._mean.sum(axis=0), eta=self.eta)
        self.proportions = self._weights

    def state(self) -> dict[str, Any]:
        return {
            **super().state(),
            "weights": self._weights.tolist(),
            "mean": None if self._mean is None else self._mean.tolist(),
            "drops": self._drops.tolist(),
            "realised": self._realised.tolist(),
            "blocks": self._blocks,
        }

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self._weights = np.array(state["weights"])
        self._mean = None if state["mean"] is None else np.array(state["mean"])
        self._drops, self._realised = np.array(state["drops"]), np.array(state["realised"])
        self._blocks = state["blocks"]


class SkillItController(MixingController):
    """Proportions from a fixed graph of what training on one group does for another, and the last losses.

    Args:
        graph: S (m, m); S[j, i] = (start_i - end_i) / start_i when training on group j alone, so rows are trained and
            columns evaluated: the transpose of the matrix A, as in the official code.

    Source: arXiv 2307.14430, as given in arXiv 2411.05735, Table 1; p is proportional to exp(eta * S * l), l the sum
    of the last 3 losses, 1 for each group at the start.
    """

    decides_at_round_end = True

    def __init__(self, groups: Sequence[str], *, graph: np.ndarray, eta: float):
        super().__init__(groups)
        self.graph, self.eta = np.asarray(graph, dtype=np.float64), eta
        self._window: list[list[float]] = []
        self.proportions = self._decide(np.ones(len(groups)))
        self.prior = self.proportions.tolist()

    def _decide(self, losses: np.ndarray) -> np.ndarray:
        return egd_update(np.ones(len(self.groups)), self.graph @ losses, eta=self.eta)

    def on_round(self, losses: Sequence[float]) -> None:
        self._window = [*self._window, [float(loss) for loss in losses]][-SKILLIT_WINDOW:]
        self.proportions = self._decide(np.array(self._window).sum(axis=0))
        self.matrix = np.array(losses)[:, None] * self.graph.T

    def state(self) -> dict[str, Any]:
        return {**super().state(), "window": self._window}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self._window = state["window"]


class EveryStepController(MixingController):
    """A controller that decides at every step; a later run is given the mean of its proportions over the steps."""

    decides_at_every_step = True

    def __init__(self, groups: Sequence[str]):
        super().__init__(groups)
        self._sum, self._steps = np.zeros(len(groups)), 0

    @property
    def result(self) -> np.ndarray:
        return self._sum / self._steps if self._steps else self.proportions

    def _move(self, scores: np.ndarray, smoothing: float = 0.0) -> None:
        moved = egd_update(self.proportions, scores, eta=1.0)
        self.proportions = (1 - smoothing) * moved + smoothing / len(self.groups)
        self._sum, self._steps = self._sum + self.proportions, self._steps + 1

    def state(self) -> dict[str, Any]:
        return {**super().state(), "sum": self._sum.tolist(), "steps": self._steps}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self._sum, self._steps = np.array(state["sum"]), state["steps"]


class DoReMiController(EveryStepController):
    """p <- softmax(log p + step_size * excess), then a share of equal proportions; excess = max(loss - reference, 0).

    Source: arXiv 2305.10429, as given in arXiv 2411.05735, Table 1. Deviation: the excess is clipped for the group's
    mean, as in the latter's code, not for each token. A group that the step does not have keeps its last excess, 0
    before it has one.
    """

    def __init__(self, groups: Sequence[str], *, step_size: float, smoothing: float):
        super().__init__(groups)
        self.step_size, self.smoothing = step_size, smoothing
        self._excess = np.zeros(len(groups))

    def on_step(self, first: np.ndarray, second: np.ndarray, **more: float) -> None:
        """first, second: (m,) losses of the model and of the reference."""
        _refuse_infinite(self.groups, first, second)
        excess = np.maximum(first - second, 0.0)
        self._excess = np.where(np.isnan(excess), self._excess, excess)
        self.matrix = np.diag(self._excess)
        self._move(self.step_size * self._excess, self.smoothing)

    def state(self) -> dict[str, Any]:
        return {**super().state(), "excess": self._excess.tolist()}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self._excess = np.array(state["excess"])


class DoGEController(EveryStepController):
    """p <- softmax(log p + score / step_size), score = learning rate * <validation gradient, gradient of the group>
    over the mean norm of the groups' gradients, clipped to [0, 5 * learning rate].

    Source: arXiv 2310.15393, as given in arXiv 2411.05735, Table 1 and code. Deviation: the mean norm is over the
    groups that the step has; the code averages zeros for the others. A group that the step does not have scores 0.
    """

    def __init__(self, groups: Sequence[str], *, step_size: float):
        super().__init__(groups)
        self.step_size = step_size

    def on_step(self, first: np.ndarray, second: np.ndarray, *, learning_rate: float = 0.0, **more: float) -> None:
        """first: (m,) inner products with the validation gradient; second: (m,) norms of the groups' gradients."""
        _refuse_infinite(self.groups, first, second)
        there = ~np.isnan(first)
        if not there.any():
            return
        norm = float(second[there].mean()) + 1e-6
        scores = np.clip(learning_rate * np.where(there, first, 0.0) / norm, 0.0, 5 * learning_rate)
        self._move(scores / self.step_size)


def _refuse_infinite(groups: Sequence[str], *signals: np.ndarray) -> None:
    """NaN says that the step has no row of the group; infinity that something broke."""
    for values in signals:
        for group, value in zip(groups, values.tolist(), strict=True):
            if np.isinf(value):
                raise DataError("what the proportions follow from is not finite", where=f"group {group!r}", got=value)


def as_proportions(values: Sequence[float], groups: Sequence[str], *, where: str) -> list[float]:
    """Proportions of the groups, scaled to the sum 1.

    Raises:
        ConfigError: another number of them, a negative or infinite one, or none above 0.
    """
    found = [float(value) for value in values]
    if len(found) != len(groups) or not all(np.isfinite(v) and v >= 0 for v in found) or sum(found) <= 0:
        raise ConfigError(
            "these are no proportions of the groups",
            where=where,
            got=found,
            allowed=f"{len(groups)} numbers >= 0, one above 0, in the order {', '.join(groups)}",
        )
    total = sum(found)
    if abs(total - 1) > 1e-6:
        warnings.warn(f"{where}: scaled from the sum {total:g} to 1", UserWarning, stacklevel=2)
    return [value / total for value in found]
