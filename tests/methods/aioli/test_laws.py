"""The mathematics of mixing: the numbers of the specification of arXiv 2411.05735, and what must follow from them."""

from __future__ import annotations

import numpy as np
import pytest

from posttrain.errors import ConfigError, DataError
from posttrain.methods.aioli.fits import (
    LinearLaw,
    LogLinearLaw,
    best_by_law,
    best_by_simulation,
    fit_linear_law,
    fit_static_law,
    graph_matrix,
    mean_squared_errors,
    r_squared,
    skill_graph,
)
from posttrain.methods.aioli.laws import (
    egd_update,
    normalize_matrix,
    probe_mixtures,
    similarity,
    solve_mixing_matrix,
)

DROPS = np.array([[0.10, 0.02], [0.01, 0.06]]) / 2
MATRIX = np.array([[0.07, -0.01], [-0.0075, 0.0425]])


# ---- the matrix ----


def test_matrix_of_the_specification():
    """P = [[.75, .25], [.25, .75]]: row 0 of A solves .75 a + .25 b = .05, .25 a + .75 b = .01."""
    assert solve_mixing_matrix(probe_mixtures(2, 0.75), DROPS) == pytest.approx(MATRIX, abs=1e-12)


def test_matrix_of_unmixed_blocks_is_what_was_measured():
    drops = np.array([[0.3, -0.1, 0.0], [0.2, 0.4, 0.1], [0.0, 0.05, 0.5]])
    assert solve_mixing_matrix(probe_mixtures(3, 1.0), drops) == pytest.approx(drops, abs=1e-15)


def test_diagonal_leaves_out_what_groups_do_for_each_other():
    found = solve_mixing_matrix(probe_mixtures(2, 0.75), DROPS, diagonal=True)
    assert found == pytest.approx(np.diag([0.05 / 0.75, 0.03 / 0.75]), abs=1e-15)


def test_rows_of_the_matrix_are_evaluated_and_columns_trained():
    """Only training on group 1 does anything, and only for group 0."""
    drops = np.array([[0.0, 0.2], [0.0, 0.0]])
    assert solve_mixing_matrix(np.eye(2), drops)[0, 1] == 0.2


@pytest.mark.parametrize("num_groups", [2, 3, 7])
def test_a_linear_world_is_recovered_whatever_the_mixtures(num_groups):
    generator = np.random.default_rng(num_groups)
    world = generator.normal(size=(num_groups, num_groups)) * 0.1
    for factor in (1 / num_groups + 0.02, 0.5, 0.625, 0.9, 1.0):
        if factor <= 1 / num_groups:
            continue
        mixtures = probe_mixtures(num_groups, factor)
        assert mixtures.sum(axis=1) == pytest.approx(np.ones(num_groups), abs=1e-15)
        assert np.abs(solve_mixing_matrix(mixtures, world @ mixtures.T) - world).max() < 1e-9


def test_realised_mixtures_are_solved_not_the_wanted_ones():
    """m = 7, 8 rows, o = .75: 6 rows and 2 more, so each mixture leaves out four groups."""
    realised = np.eye(7) * 6 / 8
    for group in range(7):
        realised[group, (group + 1) % 7] = realised[group, (group + 3) % 7] = 1 / 8
    world = np.random.default_rng(0).normal(size=(7, 7))
    assert np.abs(solve_mixing_matrix(realised, world @ realised.T) - world).max() < 1e-9


def test_mixtures_that_are_too_alike_are_refused_with_their_condition_number():
    alike = np.full((3, 3), 1 / 3) + 1e-6 * np.eye(3)
    with pytest.raises(ConfigError, match=r"one_hot_factor: .*too alike.*condition number \d.*at most 10000"):
        solve_mixing_matrix(alike, np.zeros((3, 3)))
    with pytest.raises(ConfigError, match="too alike"):
        solve_mixing_matrix(np.full((2, 2), 0.5), np.zeros((2, 2)))


@pytest.mark.parametrize("factor", [0.0, 0.25, 1.1, float("nan")])
def test_factors_that_favour_no_group_are_refused_with_the_interval(factor):
    with pytest.raises(ConfigError, match=r"one_hot_factor.*allowed: above 1/4 \(the groups\) and at most 1"):
        probe_mixtures(4, factor)


# ---- the normal form and the update ----


def test_normal_form_of_the_specification():
    found = normalize_matrix(MATRIX)
    assert found == pytest.approx(np.array([[0.59259259, 0.0], [0.01851852, 0.38888889]]), abs=1e-8)
    assert found.sum(axis=0) == pytest.approx([0.61111111, 0.38888889], abs=1e-8)


def test_a_matrix_without_negative_entries_is_only_scaled():
    matrix = np.array([[0.3, 0.1], [0.0, 0.6]])
    assert normalize_matrix(matrix) == pytest.approx(matrix, abs=1e-15)


@pytest.mark.parametrize(
    "matrix", [np.zeros((2, 2)), np.full((2, 2), -0.3), np.full((2, 2), -0.3) + 1e-15 * np.eye(2)]
)
def test_nothing_to_tell_the_groups_apart_gives_the_zero_matrix(matrix):
    assert not normalize_matrix(matrix).any()


def test_updates_of_the_specification():
    sums = normalize_matrix(MATRIX).sum(axis=0)
    first = egd_update(np.ones(2), sums, eta=0.2)
    assert first == pytest.approx([0.51110928, 0.48889072], abs=1e-8)
    # The second round, from its own matrix: .03 .01 / .02 .05 with the same mixtures.
    second = normalize_matrix(solve_mixing_matrix(probe_mixtures(2, 0.75), np.array([[0.03, 0.01], [0.02, 0.05]])))
    assert egd_update(first, second.sum(axis=0), eta=0.2) == pytest.approx([0.50202019, 0.49797981], abs=1e-8)
    mean = 0.9 * second + 0.1 * normalize_matrix(MATRIX)
    assert egd_update(np.ones(2), mean.sum(axis=0), eta=0.2) == pytest.approx([0.49292976, 0.50707024], abs=1e-8)


def test_update_neither_overflows_nor_moves_without_a_reason():
    assert egd_update(np.ones(2), np.array([1e5, 0.0]), eta=1.0) == pytest.approx([1.0, 0.0])
    for eta, scores in ((0.0, [3.0, 1.0]), (1.0, [0.0, 0.0]), (1.0, [2.0, 2.0])):
        assert egd_update(np.array([0.7, 0.3]), np.array(scores), eta=eta) == pytest.approx([0.7, 0.3], abs=1e-15)


# ---- similarity ----


def test_similarity_of_the_specification():
    measured = np.array([[0.3, 0.1, 0.0], [0.0, 0.2, 0.1], [0.1, 0.0, 0.4]])
    assert similarity(measured, np.diag([0.2, 0.1, 0.5])) == pytest.approx(0.964758, abs=1e-6)
    assert similarity(measured, measured) == pytest.approx(1.0)
    assert similarity(measured, -measured) == pytest.approx(-1.0)


def test_similarity_without_an_order_counts_the_angle_alone():
    assert similarity(np.eye(3), np.diag([1.0, 2.0, 3.0])) == pytest.approx(0.5 * 6 / np.sqrt(3 * 14))
    assert similarity(np.zeros((2, 2)), np.eye(2)) == 0.0


# ---- laws fitted on runs ----


LAW = LogLinearLaw(np.array([2.0, 1.5]), np.array([1.0, 2.0]), np.array([[1.0, 0.2], [0.1, 1.5]]))


def test_static_law_of_the_specification():
    assert LAW.predict(np.array([0.5, 0.5])).mean() == pytest.approx(2.473735, abs=1e-6)
    best = best_by_law(LAW, 2)
    assert best[0] == pytest.approx(0.02147, abs=1e-5)
    assert LAW.predict(best).mean() == pytest.approx(2.382333, abs=1e-6)


def test_fit_of_the_static_law_predicts_mixtures_it_has_not_seen():
    """The parameters are not unique (the proportions sum to 1); what they predict is."""
    generator = np.random.default_rng(0)
    law = LogLinearLaw(np.array([2.0, 1.5, 1.0]), np.array([1.0, 2.0, 1.5]), generator.uniform(0.1, 2, (3, 3)))
    seen, other = generator.dirichlet(np.ones(3), size=10), generator.dirichlet(np.ones(3), size=200)
    fitted = fit_static_law(seen, law.predict(seen))
    assert np.abs(fitted.predict(other) - law.predict(other)).max() < 5e-3
    assert r_squared(law.predict(seen), fitted.predict(seen)) == pytest.approx(np.ones(3), abs=1e-5)
    assert law.predict(best_by_law(fitted, 3)).mean() <= law.predict(other).mean(axis=1).min() + 1e-3


def test_minimum_on_the_edge_is_found():
    law = LinearLaw(np.array([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [3.0, 1.0, 2.0]]))
    assert best_by_law(law, 3) == pytest.approx([0.0, 1.0, 0.0], abs=1e-3)


def test_linear_law_is_exact_where_losses_are_linear_and_simulation_goes_towards_its_best_group():
    weights = np.array([[3.0, 1.0, 2.0], [2.5, 2.0, 2.0], [3.0, 2.0, 1.0]])
    p = np.random.default_rng(1).dirichlet(np.ones(3), size=5)
    law = fit_linear_law(p, p @ weights.T)
    assert law.weights == pytest.approx(weights, abs=1e-10)
    # Column sums 8.5, 5, 5: groups 1 and 2 are as good as each other, group 0 is to be left out.
    found = best_by_simulation(law, 3, seed=0)
    assert found.sum() == pytest.approx(1.0) and found[0] < 0.01
    assert found.tolist() == best_by_simulation(law, 3, seed=0).tolist()


def test_simulation_takes_the_mean_of_the_best():
    law = LinearLaw(np.array([[1.0, 0.0], [1.0, 0.0]]))
    mixtures = np.random.default_rng(3).dirichlet(np.ones(2), size=50)
    expected = sorted(mixtures.tolist())[:10]
    assert best_by_simulation(law, 2, seed=3, simulated=50, best=10) == pytest.approx(np.mean(expected, axis=0))


def test_fit_is_told_group_by_group():
    """Group 0: deviations -1, 0, 1, errors 0, .1, 0: 1 - .01 / 2. Group 1 does not vary."""
    observed = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    predicted = np.array([[1.0, 5.0], [2.1, 5.0], [3.0, 5.0]])
    assert mean_squared_errors(observed, predicted) == pytest.approx([0.01 / 3, 0.0])
    found = r_squared(observed, predicted)
    assert found[0] == pytest.approx(0.995) and np.isnan(found[1])


@pytest.mark.parametrize(
    ("proportions", "losses", "message"),
    [
        ([[0.5, 0.5]] * 4, [[1.0, 2.0]] * 4, r"too few mixtures.*got 1.*3 or more"),
        ([[0.5, 0.5]] * 3, [[1.0, 2.0]] * 2, r"\(3, 2\) proportions, \(2, 2\) losses"),
        ([[0.5, 0.5], [1, 0], [0, 1]], [[1.0, np.nan]] * 3, "finite losses"),
    ],
)
def test_sweeps_that_fit_no_law_are_refused(proportions, losses, message):
    for fit in (fit_static_law, fit_linear_law):
        with pytest.raises(DataError, match=message):
            fit(np.array(proportions), np.array(losses))


# ---- skill graphs ----


def test_skill_graph_is_the_relative_drop_with_trained_rows():
    """From losses 4 and 3: a run on group 0 ends at 2.8 and 2.7, one on group 1 at 3.8 and 1.8."""
    graph = skill_graph(np.array([4.0, 3.0]), np.array([[2.8, 2.7], [3.8, 1.8]]))
    assert graph == pytest.approx(np.array([[0.3, 0.1], [0.05, 0.4]]))
    assert graph_matrix(graph, np.array([2.0, 10.0])) == pytest.approx(np.array([[0.6, 0.1], [1.0, 4.0]]))
    # Column sums of A are what Skill-It multiplies: S l without a transpose.
    losses = np.array([3.5, 2.8])
    assert graph_matrix(graph, losses).sum(axis=0) == pytest.approx(graph @ losses)


@pytest.mark.parametrize("start", [[0.0, 1.0], [np.nan, 1.0]])
def test_skill_graph_of_a_start_that_tells_nothing_is_refused(start):
    with pytest.raises(DataError, match="above 0 at the start"):
        skill_graph(np.array(start), np.eye(2))
