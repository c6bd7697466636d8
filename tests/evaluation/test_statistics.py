"""Intervals over seeds, against numbers worked by hand and against scipy's own tests."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from posttrain.evaluation.statistics import paired_interval, t_interval


def test_interval_of_three_numbers_by_hand():
    # mean 2, s = 1, stderr = 1 / sqrt(3); t(0.975, 2) = 4.302653
    found = t_interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0 and found.num_values == 3
    assert found.stderr == pytest.approx(1 / math.sqrt(3))
    assert found.high - found.mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


def test_paired_interval_is_scipys_paired_test_on_shared_keys():
    first = {0: 0.1, 1: 0.4, 2: 0.35, 3: 0.2, 9: 0.9}
    second = {0: 0.3, 1: 0.45, 2: 0.5, 3: 0.15, 8: 0.0, 9: math.nan}
    found = paired_interval(first, second)
    reference = stats.ttest_rel([0.3, 0.45, 0.5, 0.15], [0.1, 0.4, 0.35, 0.2])
    bounds = reference.confidence_interval(0.95)
    assert found.num_values == 4
    assert found.p_value == pytest.approx(reference.pvalue)
    assert (found.low, found.high) == pytest.approx((bounds.low, bounds.high))


def test_too_few_values_give_nan_and_not_certainty():
    one = t_interval([0.5])
    assert one.mean == 0.5 and all(map(math.isnan, (one.low, one.high, one.stderr, one.p_value)))
    assert math.isnan(t_interval([]).mean)


@pytest.mark.parametrize(("values", "p_value"), [([0.0, 0.0], 1.0), ([0.2, 0.2], 0.0)])
def test_equal_values_have_an_interval_of_width_zero(values, p_value):
    found = t_interval(values)
    assert found.low == found.high == values[0] and found.p_value == p_value


@pytest.mark.parametrize("values", [[math.nan, 1.0], [math.inf, 1.0]])
def test_non_finite_values_are_refused(values):
    with pytest.raises(ValueError, match="finite"):
        t_interval(values)


def test_confidence_must_be_a_probability():
    with pytest.raises(ValueError, match="confidence"):
        t_interval([1.0, 2.0], confidence=95)
