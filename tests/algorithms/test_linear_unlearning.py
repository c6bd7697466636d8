"""Stages of ridge regression and gradient ascent: the paper's numbers, simulation against theory, the lower bound."""

from __future__ import annotations

import numpy
import pytest

from posttrain.algorithms.linear_unlearning import (
    ascend,
    divergence,
    divergence_bound,
    growth_matrix,
    predicted_difference,
    ridge_stage,
    train_in_order,
)

A = (numpy.array([[1.0, 0, 1], [0, 1, 0]]), numpy.array([1.0, 2]))
B = (numpy.array([[1.0, 1, 0], [0, 1, 1]]), numpy.array([0.0, 1]))
FORGET = (numpy.array([[1.0, 0, 1]]), numpy.array([1.0]))


def test_the_numbers_of_the_specification():
    ab, ba = train_in_order([A, B], strength=1.0), train_in_order([B, A], strength=1.0)
    assert ab == pytest.approx([-0.125, 0.58333333, 0.375])
    assert ba == pytest.approx([0.125, 1.125, 0.625])
    paths = [ascend(theta, *FORGET, learning_rate=0.05, num_steps=10) for theta in (ab, ba)]
    difference = paths[0] - paths[1]
    assert difference[-1] == pytest.approx([-1.54793411, -0.54166667, -1.54793411])
    assert numpy.linalg.norm(difference[[0, -1]], axis=1) == pytest.approx([0.64684, 2.25513], abs=5e-6)
    told = predicted_difference(ab - ba, FORGET[0], learning_rate=0.05, num_steps=10)
    assert numpy.abs(told - difference).max() < 1e-12


def drawn(seed: int, *, d: int = 6, k: int = 3, m: int = 8):
    """Two orders of two stages and the forget rows, some of which are a stage's; and test rows."""
    generator = numpy.random.default_rng(seed)
    stages = [(generator.normal(size=(5, d)), generator.normal(size=5)) for _ in range(2)]
    forget = (stages[0][0][:k], stages[0][1][:k])
    thetas = [train_in_order(order, strength=0.3) for order in (stages, stages[::-1])]
    return thetas, forget, generator.normal(size=(m, d))


@pytest.mark.parametrize("seed", range(5))
def test_simulation_follows_the_closed_form_whatever_the_targets(seed: int):
    (one, other), (rows, targets), _ = drawn(seed)
    told = predicted_difference(one - other, rows, learning_rate=0.02, num_steps=30)
    for labels in (targets, targets + 7):
        found = [ascend(theta, rows, labels, learning_rate=0.02, num_steps=30) for theta in (one, other)]
        assert found[0] - found[1] == pytest.approx(told, rel=1e-9, abs=1e-10)
    # Step by step, from the definition.
    power = numpy.linalg.matrix_power(numpy.eye(6) + growth_matrix(rows, learning_rate=0.02), 30)
    assert told[-1] == pytest.approx(power @ (one - other))


@pytest.mark.parametrize("seed", range(5))
def test_the_divergence_stays_above_its_bound_from_t0_on(seed: int):
    (one, other), (rows, targets), test_rows = drawn(seed)
    bound = divergence_bound(one - other, rows, test_rows, learning_rate=0.02)
    assert bound.start is not None and bound.growth > 1 and bound.scale > 0
    num_steps = bound.start + 40
    paths = [ascend(theta, rows, targets, learning_rate=0.02, num_steps=num_steps) for theta in (one, other)]
    for step in range(bound.start, num_steps + 1):
        assert divergence(paths[0][step], paths[1][step], test_rows) >= bound.at(step) > 0
    assert bound.start == 0 or bound.at(bound.start - 1) == 0


@pytest.mark.parametrize("tolerance", [1e-6, 0.05, 3.0])
def test_at_most_one_order_stays_near_the_retrained_model(tolerance: float):
    (one, other), (rows, targets), test_rows = drawn(1)
    step = divergence_bound(one - other, rows, test_rows, learning_rate=0.02).steps_until_apart(tolerance)
    assert step is not None
    paths = [ascend(theta, rows, targets, learning_rate=0.02, num_steps=step + 5)[step:] for theta in (one, other)]
    # Wherever the third model stands, here half way, one of the two is further away than the tolerance.
    for left, right in zip(*paths, strict=True):
        third = (left + right) / 2
        assert max(divergence(left, third, test_rows), divergence(right, third, test_rows)) > tolerance


def test_one_order_moved_by_nothing_the_forget_rows_see_never_diverges():
    difference, rows = numpy.array([0.0, 1, 0]), numpy.array([[1.0, 0, 1]])
    bound = divergence_bound(difference, rows, numpy.eye(3), learning_rate=0.05)
    assert (bound.at(100), bound.start, bound.steps_until_apart(0.1)) == (0.0, None, None)
    told = predicted_difference(difference, rows, learning_rate=0.05, num_steps=9)
    assert told == pytest.approx(numpy.tile(difference, (10, 1)))


def test_test_rows_that_miss_a_direction_of_the_forget_rows_give_no_bound():
    forget = numpy.array([[1.0, 0, 0], [0, 1, 0]])
    bound = divergence_bound(numpy.array([1.0, 1, 0]), forget, numpy.array([[1.0, 0, 0]]), learning_rate=0.05)
    assert bound.at(50) == 0 and bound.steps_until_apart(0.1) is None


def test_a_ridge_stage_is_the_minimum_of_its_objective():
    generator = numpy.random.default_rng(3)
    features, targets, previous = generator.normal(size=(4, 3)), generator.normal(size=4), generator.normal(size=3)
    theta = ridge_stage(features, targets, previous=previous, strength=0.7)

    def objective(at):
        return ((features @ at - targets) ** 2).sum() + 0.7 * ((at - previous) ** 2).sum()

    assert all(
        objective(theta + step) > objective(theta) for step in 0.01 * numpy.vstack([numpy.eye(3), -numpy.eye(3)])
    )
    with pytest.raises(ValueError, match="strength must be > 0, got 0"):
        ridge_stage(features, targets, previous=previous, strength=0)
