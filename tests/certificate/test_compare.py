"""The figure of two updates."""

from __future__ import annotations

import numpy as np
import pytest

from posttrain.certificate.compare import moved, worst_difference

ONE = {"a": np.array([3.0, 4.0], dtype=np.float32), "b": np.array([1.0], dtype=np.float32)}


def test_the_figure_is_that_of_the_worst_tensor():
    found = {"a": np.array([3.0, 4.5], dtype=np.float32), "b": np.array([1.02], dtype=np.float32)}
    figure, name = worst_difference(found, ONE)
    assert (figure, name) == (pytest.approx(0.1), "a")  # 0.5 / 5; of b 0.02
    assert moved(ONE) == pytest.approx(26**0.5)


def test_equal_updates_differ_by_nothing():
    assert worst_difference(ONE, ONE)[0] == 0.0
    still = {"a": np.zeros(3, dtype=np.float32)}
    assert worst_difference(still, still) == (0.0, "a")


def test_a_tensor_that_does_not_move_is_measured_against_the_model():
    """As a bias of keys, whose gradient is zero but for rounding: by a tenth of the mean movement of an element."""
    noise = {**ONE, "bias": np.full(4, 1e-9, dtype=np.float32)}
    other = {**ONE, "bias": np.full(4, -1e-9, dtype=np.float32)}
    mean = (26 / 7) ** 0.5
    assert worst_difference(noise, other)[0] == pytest.approx(4e-9 / (0.1 * mean * 2), rel=1e-3)


@pytest.mark.parametrize("found", [{"a": ONE["a"]}, {**ONE, "c": ONE["b"]}, {**ONE, "b": np.array([np.nan])}], ids=str)
def test_what_cannot_be_compared_is_infinitely_far(found):
    assert worst_difference(found, ONE)[0] == float("inf")
