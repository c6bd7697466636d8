"""The score matrix of a sequence of tasks, and what is learnt, kept and transferred according to it.

K tasks are trained one after another. R[t][i] is the score on task i after training stage t (0-based), filled for all
i; b[i] is the score before the first stage. Higher is better; a loss is stored with its sign turned. Nothing here
knows where the scores come from.

Papers: arXiv 2404.16789 (survey of continual learning of LLMs) and arXiv 2507.05386 (continual post-training). The
body of the survey was not available to us, so each function states the definition that it uses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.errors import DataError

FEW = "needs two tasks or more"


@dataclass(frozen=True)
class Metric:
    """A number, or None with the reason why it is not defined here."""

    value: float | None
    reason: str | None = None


@dataclass(frozen=True)
class ScoreMatrix:
    """Scores after every stage.

    Args:
        tasks: names of the K tasks in the order of training.
        scores: K rows of K scores; row t was measured after the stage that trained task t.
        base: K scores before the first stage.
        single: K scores, each of a model trained on that task alone from the base; None = not measured.
        joint: K scores of one model trained on all tasks together; None = not measured.
        general: name -> (score before, score after the last stage) of what no stage trains.

    Raises:
        DataError: naming (stage, task) of a missing or non-finite score; repeated names; shapes.
    """

    tasks: tuple[str, ...]
    scores: tuple[tuple[float, ...], ...]
    base: tuple[float, ...]
    single: tuple[float, ...] | None = None
    joint: tuple[float, ...] | None = None
    general: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse holes, since no metric may take them for zeros."""
        repeated = sorted({name for name in self.tasks if self.tasks.count(name) > 1})
        if repeated or not self.tasks:
            raise DataError("tasks have different names", where="score matrix", got=repeated[:1] or "no tasks")
        if len(self.scores) != len(self.tasks):
            what = f"{len(self.tasks)} tasks need as many rows"
            raise DataError(what, where="score matrix", got=len(self.scores))
        rows: list[tuple[str, Sequence[Any]]] = [("base", self.base)]
        rows += list(zip(self.tasks, self.scores, strict=True))
        rows += [(name, row) for name, row in (("single", self.single), ("joint", self.joint)) if row is not None]
        for stage, row in rows:
            for index, task in enumerate(self.tasks):
                _check(row[index] if index < len(row) else None, stage, task)
            if len(row) > len(self.tasks):
                raise DataError("more scores than tasks", where=f"score matrix, stage {stage!r}", got=len(row))
        for name, pair in self.general.items():
            for stage, score in zip(("base", self.tasks[-1]), pair, strict=True):
                _check(score, stage, name)


def _check(score: Any, stage: str, task: str) -> None:
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        where = f"score matrix, (stage, task) = ({stage!r}, {task!r})"
        raise DataError("the score is missing", where=where, got=score, fix="Evaluate this stage on every task")


# ---- one number each ----


def overall_performance(m: ScoreMatrix, stage: int | None = None) -> Metric:
    """OP_t: mean score of the tasks trained so far, (1/(t+1)) sum_{i<=t} R[t][i]; t = `stage`, None = the last."""
    last = len(m.tasks) - 1 if stage is None else stage
    return Metric(_mean(m.scores[last][: last + 1]))


def relative_performance(m: ScoreMatrix) -> Metric:
    """Mean over tasks of final score / score of a model trained on the task alone; for tasks of unlike scales."""
    if m.single is None:
        return Metric(None, "no model was trained on each task alone")
    if not all(m.single):
        return Metric(None, "a model trained on one task alone scores 0 on it")
    return Metric(_mean([score / alone for score, alone in zip(m.scores[-1], m.single, strict=True)]))


def average_incremental(m: ScoreMatrix) -> Metric:
    """AIA: mean of OP_t over the stages."""
    return Metric(_mean([_mean(scores[: stage + 1]) for stage, scores in enumerate(m.scores)]))


def learning_accuracy(m: ScoreMatrix) -> Metric:
    """LA: mean of the diagonal, each task's score right after its own stage (plasticity)."""
    return Metric(_mean([m.scores[i][i] for i in range(len(m.tasks))]))


def forgetting(m: ScoreMatrix, stage: int | None = None) -> Metric:
    """F_t = (1/t) sum_{i<t} (max_{i<=l<t} R[l][i] - R[t][i]); positive = forgotten, negative = improved since.

    The maximum is over the stages from the task's own to the one before t. Some libraries take all stages, t too,
    which cannot be negative, or the first score alone, which is -BWT.
    """
    last = len(m.tasks) - 1 if stage is None else stage
    if last < 1:
        return Metric(None, FEW)
    return Metric(_mean([max(m.scores[t][i] for t in range(i, last)) - m.scores[last][i] for i in range(last)]))


def forgetting_measure(m: ScoreMatrix, *, all_tasks: bool = False, include_base: bool = False) -> Metric:
    """FM = mean_j (R[K-1][j] - max_l R[l][j]) <= 0: final minus best over the whole sequence; 0 is best.

    Args:
        m: the scores.
        all_tasks: mean over every task; else without the last one, which nothing follows.
        include_base: whether the score before the first stage enters the maximum.

    Source: arXiv 2507.05386. Deviation: the paper does not say which of the two means, nor whether the base row
    counts; we report all and use j < K without the base row where one number is asked for.
    """
    count = len(m.tasks) if all_tasks else len(m.tasks) - 1
    if len(m.tasks) < 2:
        return Metric(None, FEW)
    drops = []
    for j in range(count):
        column = [row[j] for row in m.scores] + ([m.base[j]] if include_base else [])
        drops.append(m.scores[-1][j] - max(column))
    return Metric(_mean(drops))


def backward_transfer(m: ScoreMatrix, stage: int | None = None) -> Metric:
    """BWT_t = (1/t) sum_{i<t} (R[t][i] - R[i][i]); negative = later stages cost."""
    last = len(m.tasks) - 1 if stage is None else stage
    if last < 1:
        return Metric(None, FEW)
    return Metric(_mean([m.scores[last][i] - m.scores[i][i] for i in range(last)]))


def forward_transfer(m: ScoreMatrix) -> Metric:
    """FWT = (1/(K-1)) sum_{i>=1} (R[i-1][i] - b[i]): gain on a task before it is trained."""
    if len(m.tasks) < 2:
        return Metric(None, FEW)
    return Metric(_mean([m.scores[i - 1][i] - m.base[i] for i in range(1, len(m.tasks))]))


def intransigence(m: ScoreMatrix) -> Metric:
    """(1/K) sum_i (joint[i] - R[i][i]): what sequential training learns less than joint training."""
    if m.joint is None:
        return Metric(None, "no model was trained on all tasks together")
    return Metric(_mean([joint - m.scores[i][i] for i, joint in enumerate(m.joint)]))


def general_drift(m: ScoreMatrix) -> Metric:
    """Mean over what no stage trains of score after the last stage minus score before the first."""
    if not m.general:
        return Metric(None, "nothing was evaluated that no stage trains")
    return Metric(_mean([after - before for before, after in m.general.values()]))


def vertical_forgetting(loss_before: float, loss_after: float) -> float:
    """Increase of the loss on held-out general text, after minus before; positive = forgotten."""
    return loss_after - loss_before


def fuar(forgotten: Sequence[tuple[float, float]], gained: Sequence[tuple[float, float]]) -> Metric:
    """Forgotten over gained: sum of drops on what should stay, over sum of gains on what was updated or is new.

    Args:
        forgotten: (before, after) of probes of invariant knowledge.
        gained: (before, after) of probes of updated and of new knowledge.

    Returns:
        >= 0; None where nothing was gained.

    Source: arXiv 2404.16789, after the continual knowledge learning benchmarks it describes.
    """
    drops = math.fsum(max(0.0, before - after) for before, after in forgotten)
    gains = math.fsum(max(0.0, after - before) for before, after in gained)
    return Metric(drops / gains) if gains else Metric(None, "no gain")


METRICS: dict[str, Callable[[ScoreMatrix], Metric]] = {
    "average_accuracy": lambda m: Metric(_mean(m.scores[-1])),
    "relative_performance": relative_performance,
    "average_incremental_accuracy": average_incremental,
    "learning_accuracy": learning_accuracy,
    "forgetting": forgetting,
    "forgetting_measure": forgetting_measure,
    "forgetting_measure_all_tasks": lambda m: forgetting_measure(m, all_tasks=True),
    "forgetting_measure_with_base": lambda m: forgetting_measure(m, include_base=True),
    "backward_transfer": backward_transfer,
    "forward_transfer": forward_transfer,
    "intransigence": intransigence,
    "general_drift": general_drift,
}


def all_metrics(m: ScoreMatrix) -> dict[str, Metric]:
    """Every metric by name; one that is not defined for these scores is None with its reason."""
    return {name: function(m) for name, function in METRICS.items()}


# ---- what a drop means ----

FORGOTTEN = "forgotten"
KNOWN_BEFORE = "ability of the base model lost"
GAIN_LOST = "gain on an ability of the base model lost"
KEPT = "kept"


def drops(m: ScoreMatrix, *, known: float, tolerance: float = 0.0) -> dict[str, str]:
    """What became of every task by the end of the sequence.

    Args:
        m: the scores.
        known: score from which on the base model could already do a task.
        tolerance: a drop up to this is none.

    Returns:
        Task -> FORGOTTEN (the base model could not do it; it was best at its own stage or later, and is worse at the
        end); where the base model could do it, KNOWN_BEFORE (worse at the end than the base model was) or GAIN_LOST
        (not worse than that, but worse than it was in between); otherwise KEPT.
    """
    found = {}
    for i, task in enumerate(m.tasks):
        last, base = m.scores[-1][i], m.base[i]
        dropped = max(row[i] for row in m.scores[i:]) - last > tolerance
        if base < known:
            found[task] = FORGOTTEN if dropped else KEPT
        elif base - last > tolerance:
            found[task] = KNOWN_BEFORE
        else:
            found[task] = GAIN_LOST if dropped else KEPT
    return found


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
