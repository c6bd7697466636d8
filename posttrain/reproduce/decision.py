"""Whether a claim held: intervals over seeds, the rule, and the sentence that says it.

The rule. d is the paired difference of each seed (treatment minus baseline, or last minus first of a curve), with a
95 % Student t interval over seeds. A claim "greater" with margin m is held if against every baseline the interval lies
above m, not held if against some baseline it lies below m, undecided otherwise. "less" is the mirror image.

Several baselines: no correction for multiple tests is applied. Held needs none, since every one of the tests must
pass. Not held needs one of several, so with many baselines chance refutes a true claim more often than in 2.5 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from posttrain.config.run_config import Block
from posttrain.evaluation.statistics import Interval, paired_interval, t_interval
from posttrain.reports.markdown import points
from posttrain.reports.measure import Measure
from posttrain.reproduce.claims import ChangeClaim, Claim, DifferenceClaim

CONFIDENCE = 0.95
Held = bool | Literal["undecided"]
WORDS: dict[Held, str] = {True: "held", False: "not held", "undecided": "undecided"}


class Comparison(Block):
    """One paired difference with its interval; None where there are too few seeds to tell."""

    baseline: str | None  # variant; None for a change of one curve
    effect: float  # mean over seeds of treatment minus baseline, or of last minus first
    low: float | None
    high: float | None
    p_value: float | None  # two-sided, for no difference
    num_seeds: int


class Decision(Block):
    """What became of a claim. `decided_by` is the row that made it so, and the one the sentence speaks of."""

    held: Held
    sentence: str
    decided_by: Comparison
    comparisons: list[Comparison]


def decide(
    claim: Claim, rows: Sequence[Comparison], *, scale: str = "", labels: Mapping[str, str] | None = None
) -> Decision:
    """Apply the rule to the comparisons of a claim.

    Args:
        claim: direction and margin; its statement is not looked at.
        rows: one for each baseline, or one for a change.
        scale: "points" if the numbers are fractions to be shown in percentage points.
        labels: names of the variants in the sentence, where they differ from the stages'.
    """
    sign = _sign(claim)
    verdicts = [verdict(claim, row) for row in rows]
    held: Held = False if False in verdicts else True if all(v is True for v in verdicts) else "undecided"
    # The comparison that is least in favour among those that share the verdict: it decides.
    same = [row for row, found in zip(rows, verdicts, strict=True) if found == held]
    deciding = min(same, key=lambda row: sign * row.effect)
    names = {name: name for name in _variants(claim)} | dict(labels or {})
    sentence = _sentence(claim, held, deciding, scale, names)
    return Decision(held=held, sentence=sentence, decided_by=deciding, comparisons=list(rows))


def verdict(claim: Claim, row: Comparison) -> Held:
    """The rule for one comparison alone."""
    if row.low is None or row.high is None:
        return "undecided"
    nearest, farthest = (row.low, row.high) if _sign(claim) > 0 else (-row.high, -row.low)
    if nearest > claim.margin:
        return True
    return False if farthest < claim.margin else "undecided"


def difference(baseline: str, before: Mapping[Any, float], after: Mapping[Any, float]) -> Comparison:
    """Paired difference over the seeds that both variants have: after (treatment) minus before (baseline)."""
    return _comparison(baseline, paired_interval(before, after, confidence=CONFIDENCE))


def change(differences: Sequence[float]) -> Comparison:
    """Last minus first of one curve, one number a seed."""
    return _comparison(None, t_interval(differences, confidence=CONFIDENCE))


def ends(values: Sequence[float], first_fraction: float, last_fraction: float) -> tuple[float, float]:
    """Mean of the first and of the last part of a curve; a part has at least one value.

    Raises:
        ValueError: fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"a change needs two values, got {len(values)}")
    head = max(1, math.floor(len(values) * first_fraction))
    tail = max(1, math.floor(len(values) * last_fraction))
    return math.fsum(values[:head]) / head, math.fsum(values[-tail:]) / tail


def scale_of(metric: str) -> str:
    """ "points" for a share, which is shown in per cent, else "" for a plain number."""
    return "points" if Measure(metric).is_fraction else ""


def shown(value: float | None, scale: str) -> str:
    """A difference for a reader: +12.3 (percentage points), or +0.123."""
    if value is None:
        return "unknown"
    return points(value) if scale == "points" else f"{value:+.3g}"


def interval_text(row: Comparison, scale: str) -> str:
    """ "+12.3 points (95 % interval +4.1 to +20.5, 3 seeds)"."""
    unit = " points" if scale == "points" else ""
    if row.low is None:
        return f"{shown(row.effect, scale)}{unit} (no interval from {row.num_seeds} seed)"
    low, high = shown(row.low, scale), shown(row.high, scale)
    return f"{shown(row.effect, scale)}{unit} (95 % interval {low} to {high}, {row.num_seeds} seeds)"


def _comparison(baseline: str | None, found: Interval) -> Comparison:
    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return Comparison(
        baseline=baseline,
        effect=found.mean,
        low=number(found.low),
        high=number(found.high),
        p_value=number(found.p_value),
        num_seeds=found.num_values,
    )


def _sign(claim: Claim) -> int:
    """1 if the claim is about a larger value, -1 if about a smaller one."""
    return 1 if claim.direction in ("greater", "rises") else -1


def _variants(claim: Claim) -> list[str]:
    return [claim.treatment, *claim.baselines] if isinstance(claim, DifferenceClaim) else [claim.variant]


def _sentence(claim: Claim, held: Held, row: Comparison, scale: str, labels: Mapping[str, str]) -> str:
    seeds = f"{row.num_seeds} seed{'' if row.num_seeds == 1 else 's'}"
    start = {True: "Held", False: "Not held", "undecided": f"Not shown with {seeds}"}[held]
    if isinstance(claim, ChangeClaim):
        what = f"{claim.metric} of {labels[claim.variant]} changed by"
    else:
        several = len(claim.baselines) > 1
        if several and held is True:
            start += f" against each of {len(claim.baselines)} baselines"
        closest = " (the closest)" if several and held is True else ""
        what = f"{labels[claim.treatment]} minus {labels[str(row.baseline)]}{closest} is"
    margin = ""
    if claim.margin:
        unit = " points" if scale == "points" else ""
        margin = f"; the margin is {shown(_sign(claim) * claim.margin, scale)}{unit}"
    return f"{start}: {what} {interval_text(row, scale)}{margin}."
