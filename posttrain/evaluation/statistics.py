"""Statistics over runs: the spread of a result over seeds, and paired tests of two variants.

Statistics over the prompts of one evaluation are in `posttrain.evaluation.results`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from scipy.stats import t

Key = TypeVar("Key", bound=Hashable)  # what two results are paired by: a seed, a prompt


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean of n numbers with its confidence interval; NaN where n is too small to tell."""

    mean: float
    low: float
    high: float
    stderr: float  # standard deviation (n - 1) / sqrt(n)
    p_value: float  # two-sided t-test of a mean of 0
    num_values: int
    confidence: float


def t_interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Mean and Student t interval, mean ± t(n - 1) * s / sqrt(n), s the sample deviation.

    Args:
        values: finite numbers, one for each independent repetition (a seed, not a prompt).
        confidence: in (0, 1).

    Returns:
        NaN mean for no value; NaN error, bounds and p-value for fewer than two. Equal values give an interval of
        width 0 and p-value 0, or 1 if they are all 0: so few seeds then say more than they should.

    Raises:
        ValueError: a confidence outside (0, 1), or a value that is not finite.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"values must be finite, got {list(values)}")
    count = len(values)
    mean = math.fsum(values) / count if count else math.nan
    if count < 2:
        return _interval(mean, math.nan, math.nan, math.nan, count, confidence)

    stderr = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count * (count - 1)))
    half = float(t.ppf((1 + confidence) / 2, count - 1)) * stderr
    if stderr > 0:
        p_value = 2 * float(t.sf(abs(mean) / stderr, count - 1))
    else:
        p_value = 1.0 if mean == 0 else 0.0
    return _interval(mean, half, stderr, p_value, count, confidence)


def paired_interval(first: Mapping[Key, float], second: Mapping[Key, float], *, confidence: float = 0.95) -> Interval:
    """`t_interval` of second minus first over the keys (seeds) that both have and that are finite in both."""
    shared = [key for key in first if key in second and math.isfinite(first[key]) and math.isfinite(second[key])]
    return t_interval([second[key] - first[key] for key in shared], confidence=confidence)


def _interval(mean: float, half: float, stderr: float, p_value: float, count: int, confidence: float) -> Interval:
    return Interval(
        mean=mean,
        low=mean - half,
        high=mean + half,
        stderr=stderr,
        p_value=p_value,
        num_values=count,
        confidence=confidence,
    )
