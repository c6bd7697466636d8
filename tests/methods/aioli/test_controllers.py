"""Controllers as plain state machines: the numbers of the specification of arXiv 2411.05735, what they reduce to, and
that they resume bit by bit in the middle of a measurement."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from posttrain.errors import ConfigError, DataError
from posttrain.methods.aioli.controllers import (
    AioliController,
    DoGEController,
    DoReMiController,
    MixingController,
    SkillItController,
    as_proportions,
)
from posttrain.methods.aioli.laws import probe_mixtures

SETTINGS = {
    "sweeps": 2,
    "steps": 4,
    "one_hot_factor": 0.75,
    "eta": 0.2,
    "ema": None,
    "normalize": True,
    "diagonal": False,
    "static": False,
    "seed": 7,
}
ROUNDS = ([[0.10, 0.02], [0.01, 0.06]], [[0.06, 0.02], [0.04, 0.10]])  # drops summed over both sweeps


def aioli(groups=("a", "b"), **changes) -> AioliController:
    return AioliController(list(groups), **{**SETTINGS, **changes})


def play(controller: AioliController, number: int, drops) -> None:
    """A round in which every block of group j lowers the losses by column j of `drops` over the sweeps."""
    m = len(controller.groups)
    for group in controller.learn_schedule(number):
        drop = np.array(drops)[:, group] / controller.sweeps
        controller.on_probe(group, controller.mixtures[group], [5.0] * m, (5.0 - drop).tolist())
    controller.on_round([5.0] * m)


def in_a_world(controller: AioliController, world: np.ndarray, number: int, losses: np.ndarray) -> np.ndarray:
    """A round in which losses obey L <- L - world p; the losses after its measurement."""
    for group in controller.learn_schedule(number):
        after = losses - world @ controller.mixtures[group]
        controller.on_probe(group, controller.mixtures[group], losses.tolist(), after.tolist())
        losses = after
    controller.on_round(losses.tolist())
    return losses


# ---- the numbers of the specification ----


def test_two_rounds_of_aioli_accumulate():
    controller = aioli()
    assert controller.proportions.tolist() == [0.5, 0.5]
    play(controller, 0, ROUNDS[0])
    assert controller.matrix == pytest.approx(np.array([[0.59259259, 0.0], [0.01851852, 0.38888889]]), abs=1e-8)
    assert controller.proportions == pytest.approx([0.51110928, 0.48889072], abs=1e-8)
    play(controller, 1, ROUNDS[1])
    assert controller.proportions == pytest.approx([0.50202019, 0.49797981], abs=1e-8)
    assert controller.probe_steps == 2 * 2 * 2 * 4


def test_two_rounds_of_aioli_with_a_running_mean_do_not_accumulate():
    controller = aioli(ema=0.1)
    play(controller, 0, ROUNDS[0])
    assert controller.proportions == pytest.approx([0.51110928, 0.48889072], abs=1e-8), "E begins as A"
    play(controller, 1, ROUNDS[1])
    assert controller.proportions == pytest.approx([0.49292976, 0.50707024], abs=1e-8)


def test_skillit_with_a_window_of_three():
    controller = SkillItController(["a", "b"], graph=np.array([[0.3, 0.1], [0.05, 0.4]]), eta=0.2)
    assert controller.proportions == pytest.approx([0.49750002, 0.50249998], abs=1e-8)
    for losses in ([9.0, 1.0], [4.0, 3.0], [3.5, 2.8], [3.2, 2.7]):  # the first is out of the window in the end
        controller.on_round(losses)
    assert controller.proportions == pytest.approx([0.50624967, 0.49375033], abs=1e-8)


@pytest.mark.parametrize(
    ("step_size", "expected"),
    [(1.0, [0.57789537, 0.23262418, 0.18948045]), (0.01, [0.50063241, 0.29931446, 0.20005313])],
)
def test_doremi(step_size, expected):
    controller = DoReMiController(["a", "b", "c"], step_size=step_size, smoothing=1e-3)
    controller.proportions = np.array([0.5, 0.3, 0.2])
    controller.on_step(np.array([2.4, 1.9, 1.2]), np.array([2.0, 2.0, 1.0]))
    assert controller.proportions == pytest.approx(expected, abs=1e-8)


def test_doge():
    gradients = np.array([[1.0, 0, 0], [0, 2.0, 0], [1.0, 1.0, 1.0]])
    controller = DoGEController(["a", "b", "c"], step_size=0.01)
    controller.on_step(gradients @ np.array([0.5, 0.5, 0]), np.linalg.norm(gradients, axis=1), learning_rate=5e-4)
    assert controller.proportions == pytest.approx([0.32982061, 0.3350897, 0.3350897], abs=1e-8)


# ---- a linear world ----


@pytest.mark.parametrize("factor", [0.34, 0.5, 0.625, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_measuring_recovers_a_linear_world_in_any_order(factor, seed):
    world = np.random.default_rng(seed).normal(size=(3, 3)) * 0.05
    controller = aioli("abc", one_hot_factor=factor, seed=seed, sweeps=3, normalize=False)
    in_a_world(controller, world, 0, np.array([4.0, 3.0, 5.0]))
    assert np.abs(controller.matrix - world).max() < 1e-9


def test_the_measured_blocks_are_permutations_that_differ_between_sweeps_and_rounds():
    controller = aioli("abcdef", one_hot_factor=0.5, sweeps=4)
    orders = [controller.learn_schedule(number) for number in range(3)]
    for order in orders:
        assert all(sorted(order[i : i + 6]) == list(range(6)) for i in range(0, 24, 6))
    assert len({tuple(order[i : i + 6]) for order in orders for i in range(0, 24, 6)}) > 8
    assert orders[1] == aioli("abcdef", one_hot_factor=0.5, sweeps=4).learn_schedule(1), "from seed and round alone"
    assert orders[1] != aioli("abcdef", one_hot_factor=0.5, sweeps=4, seed=8).learn_schedule(1)


def test_naming_the_groups_in_another_order_permutes_the_proportions():
    world = np.random.default_rng(5).uniform(0, 0.1, size=(3, 3))
    places = [2, 0, 1]
    first, second = aioli("abc", eta=2.0), aioli("cab", eta=2.0)
    for number in range(2):
        in_a_world(first, world, number, np.array([4.0, 3.0, 5.0]))
        in_a_world(second, world[np.ix_(places, places)], number, np.array([4.0, 3.0, 5.0])[places])
    assert second.proportions == pytest.approx(first.proportions[places], abs=1e-12)
    assert not np.allclose(first.proportions, 1 / 3, atol=1e-3)


# ---- what they reduce to ----


@pytest.mark.parametrize("ema", [None, 0.5])
def test_without_a_step_size_or_a_matrix_aioli_is_stratified(ema):
    still, flat = aioli(eta=0.0, ema=ema), aioli(ema=ema)
    for number in range(2):
        play(still, number, ROUNDS[number])
        play(flat, number, [[0.0, 0.0], [0.0, 0.0]])
    assert still.proportions.tolist() == flat.proportions.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("ema", [None, 0.1])
def test_a_round_that_tells_nothing_keeps_the_proportions(ema):
    controller = aioli(ema=ema, eta=2.0)
    play(controller, 0, ROUNDS[0])
    before = controller.proportions.copy()
    play(controller, 1, [[0.0, 0.0], [0.0, 0.0]])
    assert controller.proportions.tolist() == before.tolist()
    play(controller, 2, ROUNDS[1])
    assert controller.proportions.tolist() != before.tolist()


def test_the_diagonal_form_hears_of_no_other_group():
    drops = [[0.10, 0.9], [0.0, 0.06]]
    controller = aioli(diagonal=True)
    play(controller, 0, drops)
    assert controller.matrix == pytest.approx(np.diag([0.1, 0.06]) / 0.16)


def test_the_static_form_measures_once_and_goes_on_with_that():
    controller, other = aioli(static=True), aioli()
    play(controller, 0, ROUNDS[0])
    assert controller.learn_schedule(1) == [] and controller.decides_at_round_end
    controller.on_round([5.0, 5.0])
    play(other, 0, ROUNDS[0])
    play(other, 1, ROUNDS[0])
    assert controller.proportions == pytest.approx(other.proportions, abs=1e-15)
    assert controller.probe_steps == 16 and other.probe_steps == 32


def test_a_prior_is_the_start_and_not_the_base_of_the_update():
    with_prior, without = aioli(prior=[0.9, 0.1]), aioli()
    assert with_prior.proportions.tolist() == [0.9, 0.1]
    for controller in (with_prior, without):
        play(controller, 0, ROUNDS[0])
    assert with_prior.proportions.tolist() == without.proportions.tolist()


def test_skillit_with_a_graph_of_equal_rows_is_stratified():
    controller = SkillItController(["a", "b", "c"], graph=np.tile([0.3, 0.1, 0.2], (3, 1)), eta=2.0)
    controller.on_round([4.0, 3.0, 2.0])
    assert controller.proportions == pytest.approx([1 / 3] * 3, abs=1e-15)


def test_skillit_is_one_step_on_the_matrix_of_linear_mixing():
    """In its first round, with A[i, j] = l_i S[j, i]: p proportional to exp(eta * column sums)."""
    controller = SkillItController(["a", "b"], graph=np.array([[0.3, 0.1], [0.05, 0.4]]), eta=0.5)
    controller.on_round([4.0, 3.0])
    raised = np.exp(0.5 * controller.matrix.sum(axis=0))
    assert controller.proportions == pytest.approx(raised / raised.sum(), abs=1e-15)


def test_doremi_is_a_diagonal_step_where_nothing_is_smoothed():
    controller = DoReMiController(["a", "b"], step_size=0.7, smoothing=0.0)
    controller.on_step(np.array([2.0, 1.0]), np.array([1.5, 3.0]))
    raised = np.exp(0.7 * controller.matrix.sum(axis=0))
    assert controller.matrix.tolist() == [[0.5, 0.0], [0.0, 0.0]]
    assert controller.proportions == pytest.approx(raised / raised.sum(), abs=1e-15)


def test_a_group_that_a_step_lacks_keeps_its_excess_for_doremi_and_scores_nothing_for_doge():
    doremi = DoReMiController(["a", "b"], step_size=1.0, smoothing=0.0)
    doremi.on_step(np.array([2.0, 3.0]), np.array([1.0, 1.0]))
    doremi.on_step(np.array([1.5, np.nan]), np.array([1.0, np.nan]))
    raised = np.exp([1.0 + 0.5, 2.0 + 2.0])
    assert doremi.proportions == pytest.approx(raised / raised.sum(), abs=1e-12)
    doge = DoGEController(["a", "b"], step_size=0.01)
    doge.on_step(np.array([2.0, np.nan]), np.array([1.0, np.nan]), learning_rate=1e-3)
    raised = np.exp([2e-3 / (1 + 1e-6) / 0.01, 0.0])
    assert doge.proportions == pytest.approx(raised / raised.sum(), abs=1e-12)


def test_what_decides_at_every_step_hands_on_the_mean():
    controller = DoReMiController(["a", "b"], step_size=1.0, smoothing=1e-3)
    assert controller.result.tolist() == [0.5, 0.5]
    seen = []
    for excess in (0.1, 0.4, 0.9):
        controller.on_step(np.array([2.0 + excess, 2.0]), np.array([2.0, 2.0]))
        seen.append(controller.proportions)
    assert controller.result == pytest.approx(np.mean(seen, axis=0), abs=1e-15)
    assert not np.allclose(controller.result, controller.proportions)


def test_given_proportions_stay():
    assert MixingController(["a", "b"]).proportions.tolist() == [0.5, 0.5]
    controller = MixingController(["a", "b"], [0.2, 0.8])
    assert controller.result.tolist() == [0.2, 0.8] and controller.learn_schedule(0) == []
    assert not controller.decides_at_round_end and not controller.decides_at_every_step


# ---- resume ----


@pytest.mark.parametrize("ema", [None, 0.3])
@pytest.mark.parametrize("stop", [0, 1, 3, 5])
def test_a_measurement_that_was_stopped_gives_the_same_bits(stop, ema):
    generator = np.random.default_rng(stop)
    losses = generator.uniform(2, 5, size=(40, 3))
    whole, rest = aioli("abc", ema=ema), aioli("abc", ema=ema)
    play(whole, 0, generator.normal(size=(3, 3)))
    schedule = whole.learn_schedule(1)
    for place, group in enumerate(schedule):
        if place == stop:
            rest.load(json.loads(json.dumps(whole.state())))
        for controller in (whole,) if place < stop else (whole, rest):
            controller.on_probe(group, whole.mixtures[group], losses[place].tolist(), losses[place + 1].tolist())
    for controller in (whole, rest):
        controller.on_round(losses[0].tolist())
    assert rest.matrix.tobytes() == whole.matrix.tobytes()
    assert rest.proportions.tobytes() == whole.proportions.tobytes()
    assert rest.state() == whole.state()


def test_other_controllers_resume_bit_by_bit():
    generator = np.random.default_rng(0)
    makers = (
        lambda: SkillItController(["a", "b"], graph=np.array([[0.3, 0.1], [0.05, 0.4]]), eta=0.2),
        lambda: DoReMiController(["a", "b"], step_size=0.5, smoothing=1e-3),
        lambda: DoGEController(["a", "b"], step_size=0.01),
    )
    for make in makers:
        whole = make()
        for step in range(8):
            if step == 4:
                rest = make()
                rest.load(json.loads(json.dumps(whole.state())))
            values = generator.uniform(1, 3, size=(2, 2))
            for controller in (whole,) if step < 4 else (whole, rest):
                if controller.decides_at_every_step:
                    controller.on_step(values[0], values[1], learning_rate=1e-3)
                else:
                    controller.on_round(values[0].tolist())
        assert rest.proportions.tobytes() == whole.proportions.tobytes()
        assert rest.result.tobytes() == whole.result.tobytes()


# ---- what is refused ----


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_are_refused_with_the_group(bad):
    controller = aioli()
    with pytest.raises(DataError, match="group 'b'"):
        controller.on_probe(0, controller.mixtures[0], [3.0, 3.0], [2.9, bad])
    assert not np.isnan(controller.state()["drops"]).any(), "nothing of the block was kept"


def test_signals_that_are_infinite_are_refused_with_the_group():
    infinite, one = np.array([1.0, np.inf]), np.ones(2)
    with pytest.raises(DataError, match="group 'b'"):
        DoReMiController(["a", "b"], step_size=1.0, smoothing=0.0).on_step(infinite, one)
    with pytest.raises(DataError, match="group 'b'"):
        DoReMiController(["a", "b"], step_size=1.0, smoothing=0.0).on_step(one, infinite)
    for first, second in ((infinite, one), (one, infinite)):
        with pytest.raises(DataError, match="group 'b'"):
            DoGEController(["a", "b"], step_size=1.0).on_step(first, second, learning_rate=1.0)


@pytest.mark.parametrize("values", [[0.5], [0.5, -0.1], [0.0, 0.0], [0.5, float("nan")]])
def test_what_is_no_prior_is_refused_with_the_groups(values):
    with pytest.raises(ConfigError, match=r"method\.prior: .*2 numbers >= 0, one above 0, in the order a, b"):
        as_proportions(values, ["a", "b"], where="method.prior")


def test_a_prior_that_does_not_sum_to_one_is_scaled():
    assert as_proportions([1.0, 3.0], ["a", "b"], where="method.prior") == [0.25, 0.75]


def test_the_probed_mixtures_are_those_of_the_factor():
    assert aioli("abcd", one_hot_factor=0.7).mixtures.tolist() == probe_mixtures(4, 0.7).tolist()
    assert Counter(aioli("abcd", sweeps=5).learn_schedule(0)) == dict.fromkeys(range(4), 5)
