"""What a path study shows: how far paths diverge, what came last, what is squeezed, what retraining would have given.

Numbers come from the measurements that the stages logged (`answers/<set>_logp`, see `callbacks.answer_probe`). Nothing
here trains or reads files. Log-probabilities are means over an answer's tokens, then over rows, in nats.

Source: arXiv 2510.16629, path study and squeeze study. The squeeze index, the tests and the tolerances are our choice
(UNVERIFIED).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scipy.stats import friedmanchisquare

from posttrain.evaluation.statistics import Interval, t_interval

# Of `eval.json` after a stage of a path study, under `unlearning`.
METRICS = (
    "initial_logp",
    "final_logp",
    "initial_forms_logp",
    "final_forms_logp",
    "forget_score",
    "squeeze_paraphrases",
    "kept_change",
    "steps_to_retrained",
    "steps_to_relearn",
)
SUPPORTS, DENIES, UNKNOWN = "supports it", "does not support it", "cannot tell"
_LEAST_CHANGE = 1e-6  # of the label: below it a ratio of changes says nothing
HOLDOUT = "holdout"
# 1 for a model that did not get to the retrained one's level: its steps to there are then at least those it made.
NOT_THERE = "not_at_the_retrained_level"
Events = Sequence[Mapping[str, Any]]


def curve(events: Events, name: str) -> list[tuple[int, float]]:
    """(step, value) of a logged number, by step; NaN is kept, since a model that diverged was measured, too."""
    found = {int(event["step"]): float(event[name]) for event in events if event.get(name) is not None}
    return sorted(found.items())


def stage_numbers(events: Events, *, forget: str, sets: Sequence[str]) -> dict[str, float]:
    """What one unlearning did, from its first measurement to its last.

    Args:
        events: of the stage's metrics.jsonl.
        forget: name of the forget set among the probes.
        sets: all probes.

    Returns:
        `initial_logp`, `final_logp` of the forget set's answers; the same of `forms` (answers and paraphrases), whose
        fall is `forget_score`; `squeeze_paraphrases`; `change_<set>` and `squeeze_<set>` of the other sets, and
        `kept_change`, the mean of those changes without `holdout`, which was never learnt. What was not measured is
        left out.
    """
    label = curve(events, f"answers/{forget}_logp")
    if not label:
        return {}
    found = {"initial_logp": label[0][1], "final_logp": label[-1][1]}
    forms = curve(events, f"answers/{forget}_forms_logp") or label
    found |= {"initial_forms_logp": forms[0][1], "final_forms_logp": forms[-1][1]}
    found["forget_score"] = forms[0][1] - forms[-1][1]
    change = label[-1][1] - label[0][1]
    others = {name: curve(events, f"answers/{name}_logp") for name in sets if name != forget}
    changes = {name: points[-1][1] - points[0][1] for name, points in others.items() if points}
    paraphrases = curve(events, f"answers/{forget}_paraphrases_logp")
    ratios = dict(changes) | ({"paraphrases": paraphrases[-1][1] - paraphrases[0][1]} if paraphrases else {})
    found |= {f"change_{name}": value for name, value in changes.items()}
    if abs(change) > _LEAST_CHANGE:
        found |= {f"squeeze_{name}": value / change for name, value in ratios.items()}
    kept = [value for name, value in changes.items() if name != HOLDOUT]
    if kept:
        found["kept_change"] = math.fsum(kept) / len(kept)
    return found


def forget_scores(events: Events, *, forget: str) -> dict[int, float]:
    """Forget score after each measured step: which path is slow may change on the way."""
    points = curve(events, f"answers/{forget}_forms_logp") or curve(events, f"answers/{forget}_logp")
    return {step: points[0][1] - value for step, value in points}


def steps_to_level(points: Sequence[tuple[int, float]], level: float) -> float | None:
    """Steps until a falling curve is at a level, on a line between two measurements; None where it does not get there.

    Args:
        points: (step, log-probability) while unlearning.
        level: log-probability that the retrained model gives the same answers.
    """
    for (before, high), (after, low) in zip(points, points[1:], strict=False):
        if low <= level < high:
            return before + (after - before) * (high - level) / (high - low)
    return float(points[0][0]) if points and points[0][1] <= level else None


def level_steps(points: Sequence[tuple[int, float]], level: float) -> dict[str, float]:
    """`steps_to_retrained` as `steps_to_level` has it, or the last step with `NOT_THERE`; nothing without points."""
    if not points:
        return {}
    needed = steps_to_level(points, level)
    if needed is None:
        return {"steps_to_retrained": float(points[-1][0]), NOT_THERE: 1.0}
    return {"steps_to_retrained": needed}


def steps_to_return(
    points: Sequence[tuple[int, float]], *, initial: float, unlearned: float, fraction: float
) -> int | None:
    """First measured step at which a part of the lost log-probability is back.

    Args:
        points: (step, log-probability of the forget set) while it is trained again.
        initial: before unlearning.
        unlearned: after it.
        fraction: of initial - unlearned, in (0, 1].

    Returns:
        0 where nothing had been lost; None if it was not back at the last measurement, or the model had diverged.
    """
    if not (math.isfinite(initial) and math.isfinite(unlearned)):
        return None
    if not initial > unlearned:
        return 0
    target = unlearned + fraction * (initial - unlearned)
    return next((step for step, value in points if value >= target), None)


# ---- over paths and seeds ----

Table = Mapping[str, Mapping[int, float]]  # path -> seed -> value


@dataclass(frozen=True)
class Divergence:
    """How far the paths of one algorithm and learning rate end apart in one number."""

    spread: Interval  # max - min over paths, of each seed
    seed_spread: float  # max - min over seeds, mean over paths; NaN for one seed
    p_value: float | None  # Friedman's test that all paths are alike, seeds as blocks; None = too few to test

    @property
    def told(self) -> str:
        """Whether the paths differ by more than seeds do, as a word."""
        if self.p_value is None:
            return UNKNOWN
        return "beyond noise" if self.p_value < 0.05 else "within noise"


def divergence(table: Table) -> Divergence:
    """The spread over paths against that over seeds; only seeds that have every path count."""
    seeds = _shared_seeds(table)
    spreads = [max(column) - min(column) for column in ([table[path][seed] for path in table] for seed in seeds)]
    finite = [value for value in spreads if math.isfinite(value)]
    over_seeds = [
        max(row) - min(row) for row in ([table[path][seed] for seed in seeds] for path in table) if len(row) > 1
    ]
    noise = math.fsum(over_seeds) / len(over_seeds) if over_seeds else math.nan
    return Divergence(t_interval(finite), noise, _friedman(table, seeds))


def _friedman(table: Table, seeds: Sequence[int]) -> float | None:
    """p-value, None for fewer than three paths or seeds: scipy's approximation needs them."""
    rows = [[table[path][seed] for seed in seeds] for path in table]
    if len(rows) < 3 or len(seeds) < 3 or not all(math.isfinite(value) for row in rows for value in row):
        return None

    value = float(friedmanchisquare(*rows).pvalue)
    return value if math.isfinite(value) else None


def recency(table: Table, last: Sequence[str]) -> tuple[Interval, int, int]:
    """By how much the other paths forget more than those that learnt the forget set last, of each seed.

    Args:
        table: forget scores.
        last: the paths with the forget set at their end; one, if all others keep their order.

    Returns:
        (interval over seeds of mean of the others - mean of the last, seeds in which each of the last forgets less
        than each other, seeds).
    """
    seeds = [seed for seed in _shared_seeds(table) if all(math.isfinite(table[path][seed]) for path in table)]
    others = [path for path in table if path not in last]
    if not others or not last:
        return t_interval([]), 0, 0

    def mean(paths: Sequence[str], seed: int) -> float:
        return math.fsum(table[path][seed] for path in paths) / len(paths)

    effects = [mean(others, seed) - mean(last, seed) for seed in seeds]
    least = sum(max(table[path][seed] for path in last) < min(table[path][seed] for path in others) for seed in seeds)
    return t_interval(effects), least, len(seeds)


@dataclass(frozen=True)
class Verdict:
    """Whether "behaves like the retrained model" is borne out in one number."""

    metric: str
    word: str  # SUPPORTS, DENIES or UNKNOWN
    why: str
    difference: Interval | None = None  # unlearned - retrained


def behaves_like(
    metric: str, unlearned: Mapping[int, float], retrained: Mapping[int, float], *, tolerance: float
) -> Verdict:
    """A verdict from the paired differences, one a seed: the 95 % interval within ± tolerance, beyond it, or neither.

    Args:
        metric: name for the report.
        unlearned: seed -> value.
        retrained: seed -> value of the model of the same path that never saw the forget set.
        tolerance: difference that still counts as alike, in the unit of the metric.
    """
    both = {seed: unlearned[seed] - retrained[seed] for seed in unlearned if seed in retrained}
    if any(not math.isfinite(value) for value in both.values()):
        return Verdict(metric, DENIES, "a value is no finite number")
    interval = t_interval(list(both.values()))
    if interval.num_values < 2:
        return Verdict(metric, UNKNOWN, f"{interval.num_values} seed: no interval", interval)
    if -tolerance <= interval.low and interval.high <= tolerance:
        return Verdict(metric, SUPPORTS, f"the interval lies within ± {tolerance:g}", interval)
    if interval.low > tolerance or interval.high < -tolerance:
        return Verdict(metric, DENIES, f"the interval lies beyond ± {tolerance:g}", interval)
    return Verdict(metric, UNKNOWN, f"the interval is partly within ± {tolerance:g}", interval)


def quality_verdict(p_values: Mapping[int, float | None], *, num_rows: int) -> Verdict:
    """A verdict from the Kolmogorov-Smirnov tests: they can tell that two models differ, never that they are alike."""
    known = [value for value in p_values.values() if value is not None]
    if not known:
        return Verdict("forget quality", UNKNOWN, "no test was possible")
    rejected = sum(value < 0.05 for value in known)
    told = f"p < .05 in {rejected} of {len(known)} seeds with {num_rows} rows"
    if 2 * rejected > len(known):
        return Verdict("forget quality", DENIES, told)
    return Verdict("forget quality", UNKNOWN, f"{told}; that a test does not tell them apart does not make them alike")


def relearning_verdict(
    unlearned: Mapping[int, int | None], retrained: Mapping[int, int | None], *, probe_every: int
) -> Verdict:
    """A verdict from the steps that bring the forget set back, against those that the retrained model needs for it.

    Faster by more than the distance of two measurements in most seeds: what was unlearned is still there.
    """
    pairs = [(unlearned[seed], retrained[seed]) for seed in unlearned if seed in retrained]
    pairs = [pair for pair in pairs if pair != (None, None)]
    if not pairs:
        return Verdict("relearning", UNKNOWN, "neither model was back at the last measurement")
    faster = sum(one is not None and (other is None or one < other - probe_every) for one, other in pairs)
    alike = sum(one is not None and other is not None and abs(one - other) <= probe_every for one, other in pairs)
    told = f"faster than the retrained model in {faster} of {len(pairs)} seeds, alike in {alike}"
    if 2 * faster > len(pairs):
        return Verdict("relearning", DENIES, told)
    return Verdict("relearning", SUPPORTS if alike == len(pairs) >= 3 else UNKNOWN, told)


@dataclass(frozen=True)
class Outcome:
    """All that was measured of one path, algorithm and learning rate, by seed."""

    numbers: dict[int, dict[str, float]] = field(default_factory=dict)
    retrained: dict[int, dict[str, float]] = field(default_factory=dict)
    steps: dict[int, int | None] = field(default_factory=dict)
    retrained_steps: dict[int, int | None] = field(default_factory=dict)
    suite: dict[int, dict[str, float | None]] = field(default_factory=dict)
    retrained_suite: dict[int, dict[str, float | None]] = field(default_factory=dict)

    def column(self, name: str) -> dict[int, float]:
        """Seed -> one of the numbers, where it is known."""
        return {seed: found[name] for seed, found in self.numbers.items() if name in found}


def _shared_seeds(table: Table) -> list[int]:
    rows = list(table.values())
    return [seed for seed in rows[0] if all(seed in row for row in rows)] if rows else []
