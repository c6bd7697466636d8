"""Plots: what is drawn for which data, and that the picture really holds the curves."""

import io
import math

import numpy
import pytest
from matplotlib import colors, image

from posttrain.reports import plots


def pixels(plot):
    return image.imread(io.BytesIO(plot.png))[:, :, :3]


def share_of(plot, colour):
    """Fraction of pixels in (nearly) this colour."""
    distance = numpy.abs(pixels(plot) - numpy.array(colors.to_rgb(colour))).max(axis=2)
    return float((distance < 0.06).mean())


def events(**metrics):
    count = len(next(iter(metrics.values())))
    return [{"step": i + 1, **{name: values[i] for name, values in metrics.items()}} for i in range(count)]


def test_a_policy_run_has_its_plots_and_no_loss():
    run = events(
        **{
            "reward": [0.1, 0.4, 0.5],
            "rollout/accuracy": [0.0, 0.2, 0.5],
            "loss": [1e-9, -1e-9, 0.0],
            "gate/sft_fraction": [1.0, 0.5, 0.0],
            "groups/all_wrong": [1.0, 0.5, 0.25],
            "groups/mixed": [0.0, 0.25, 0.5],
            "groups/all_correct": [0.0, 0.25, 0.25],
            "completions/mean_length": [10.0, 12.0, 14.0],
            "grad_norm": [1.0, 0.5, 0.2],
        }
    )
    drawn = plots.curves({"": [run]})
    assert list(drawn) == ["accuracy", "reward", "gate", "groups", "length", "grad_norm"]
    assert all(share_of(plot, plots.COLOURS[0]) > 0.0005 for plot in drawn.values())
    # Three outcomes, three colours.
    assert all(share_of(drawn["groups"], colour) > 0.0005 for colour in plots.COLOURS[:3])
    assert share_of(drawn["gate"], plots.COLOURS[1]) == 0


def test_a_supervised_run_shows_its_loss():
    assert list(plots.curves({"": [events(loss=[3.0, 2.0, 1.5], grad_norm=[1.0, 1.0, 1.0])]})) == ["loss", "grad_norm"]


def test_a_reward_that_is_the_verdict_is_drawn_once():
    run = events(**{"reward": [0.1, 0.4], "rollout/accuracy": [0.1, 0.4]})
    assert list(plots.curves({"": [run]})) == ["accuracy"]


def test_metrics_without_a_finite_number_are_not_drawn():
    assert plots.curves({"": [events(reward=[None, math.nan, math.inf])]}) == {}
    assert plots.curves({"": [[]]}) == {}
    assert plots.series(events(reward=[None, 0.5, math.nan, True, "x"]), "reward") == ([2], [0.5])


def test_runs_are_overlaid_in_colours_of_their_own():
    runs = {"grpo": [events(reward=[0.1, 0.2, 0.3])], "hpt": [events(reward=[0.1, 0.5, 0.9])]}
    both, alone = plots.curves(runs)["reward"], plots.curves({"grpo": runs["grpo"]})["reward"]
    assert share_of(both, plots.COLOURS[0]) > 0.0005 and share_of(both, plots.COLOURS[1]) > 0.0005
    assert share_of(alone, plots.COLOURS[1]) == 0


def test_colours_are_told_apart_in_grey_or_by_line_style():
    looks = {plots.STYLES[n % len(plots.STYLES)] + plots.MARKERS[n % len(plots.MARKERS)] for n in range(7)}
    assert len(looks) == 7 and len(set(plots.COLOURS)) == 7


def test_running_mean_by_hand():
    assert plots.running_mean([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]


def test_long_curves_get_a_running_mean_and_short_ones_do_not():
    # 0 and 1 by turns: the curve itself spans the whole height, its mean over three logs a third of it.
    values = [0.5] * 2 + [float(i % 2) for i in range(plots.NOISY_POINTS - 1)]
    assert len(values) == plots.NOISY_POINTS + 1

    def height(plot):
        distance = numpy.abs(pixels(plot) - numpy.array(colors.to_rgb(plots.COLOURS[0]))).max(axis=2)
        middle = distance[:280, 200:600] < 0.06
        rows = middle.any(axis=1).nonzero()[0]
        return int(rows[-1] - rows[0])

    # Both axes span the raw curve: the pale line is in the long plot as well.
    long = height(plots.curves({"": [events(reward=values)]})["reward"])
    short = height(plots.curves({"": [events(reward=values[1:])]})["reward"])
    assert short > 200 and 0.25 < long / short < 0.5


def test_error_bars_are_drawn_to_scale():
    def height(error):
        plot = plots.evaluation_points({"": [[(0, 0.5, error), (10, 0.5, 0.25)]]})
        distance = numpy.abs(pixels(plot) - numpy.array(colors.to_rgb(plots.COLOURS[0]))).max(axis=2)
        left = distance[:, : distance.shape[1] // 2] < 0.06
        return int(left.any(axis=1).sum())

    assert height(0.2) == pytest.approx(2 * height(0.1), rel=0.1)


def test_evaluations_without_a_verdict_are_no_plot():
    assert plots.evaluation_points({"": []}) is None and plots.evaluation_points({"": [[]]}) is None
    assert plots.evaluation_points({"a": [[(0, math.nan, math.nan)]]}) is None
    assert plots.evaluation_points({"a": [[(0, 0.0, math.nan)]]}) is not None


def test_the_same_data_gives_the_same_file():
    run = {"": [events(reward=[0.1, 0.2])]}
    assert plots.curves(run) == plots.curves(run)


def test_seeds_are_drawn_with_their_mean_and_range():
    """Of 0.2 and 0.8: the band reaches from one to the other, the thick line lies halfway between."""
    low, high = (events(reward=[value] * 30) for value in (0.2, 0.8))
    frame = [events(reward=[0.0] * 15 + [1.0] * 15)]
    drawn = plots.curves({"both": [low, high], "frame": frame})["reward"]
    column = pixels(drawn)[:280, 300]  # between two marks, above the legend
    line = numpy.abs(column - numpy.array(colors.to_rgb(plots.COLOURS[0]))).max(axis=1) < 0.06
    bluish = column[:, 2] - column[:, 0] > 0.08
    assert line.any() and abs(numpy.flatnonzero(line).mean() - numpy.flatnonzero(bluish).mean()) < 4
    assert bluish.sum() > 0.4 * len(column)
    assert drawn.alt == "Reward of the training rollouts, over optimizer step: both ends at 0.5; frame ends at 1."


def test_the_mean_covers_the_steps_that_every_seed_has():
    stopped, finished = events(reward=[1.0, 1.0]), events(reward=[0.0, 0.0, 0.0, 0.9])
    assert "a ends at 0.5; b ends at 0.9" in plots.curves({"a": [stopped, finished], "b": [finished]})["reward"].alt


def test_many_variants_get_a_plot_for_each_outcome_of_the_groups():
    run = [events(**{"groups/all_wrong": [0.5, 0.4], "groups/mixed": [0.5, 0.6], "groups/all_correct": [0.0, 0.0]})]
    assert list(plots.curves({"a": run, "b": run})) == ["groups"]
    drawn = plots.curves({"a": run, "b": run, "c": run})
    assert list(drawn) == ["groups_all_wrong", "groups_mixed", "groups_all_correct"]
    assert drawn["groups_mixed"].alt.startswith("Prompt groups by outcome: mixed, over optimizer step: a ends at 0.6;")


def test_a_long_legend_makes_the_plot_higher_instead_of_being_cut():
    short = {name: [events(reward=[0.1, 0.2])] for name in "abc"}
    long = {name * 40: runs for name, runs in short.items()}
    heights = [pixels(plots.curves(variants)["reward"]).shape[0] for variants in (short, long)]
    assert heights[0] == 396 and heights[1] == 396 + 22  # 3 lines in place of 1; two fit without more height
    left, right = pixels(plots.curves(long)["reward"])[300:, :3], pixels(plots.curves(long)["reward"])[300:, -3:]
    assert (left == 1).all() and (right == 1).all()


def test_a_cost_may_take_the_place_of_the_steps():
    plot = plots.evaluation_points({"a": [[(0, 0.1, 0.01), (2e6, 0.5, 0.02)]]}, xlabel="tokens generated in training")
    assert plot.alt == "Accuracy on the evaluation prompts, over tokens generated in training: a ends at 0.5."


@pytest.mark.parametrize("name", ["$x_$ and $", "_hidden", "\x00\ud83d\u202e", "a\nb", "n" * 500])
def test_any_name_can_stand_in_a_legend(name):
    runs = {name: [events(reward=[0.1, 0.2])], "other": [events(reward=[0.2, 0.3])]}
    named, unnamed = plots.curves(runs)["reward"], plots.curves({"": runs[name], "other": runs["other"]})["reward"]
    assert (pixels(named).shape, len(named.png) > 5000) == (pixels(unnamed).shape, True)
    assert (pixels(named) != pixels(unnamed)).any()  # the name is drawn
    assert len(plots.legend_text(name)) <= 42 and "\n" not in plots.legend_text(name)
