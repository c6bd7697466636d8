"""The rule that decides a claim, on numbers whose intervals are worked out by hand."""

from __future__ import annotations

import pytest

from posttrain.reproduce.claims import ChangeClaim, DifferenceClaim
from posttrain.reproduce.decision import change, decide, difference, ends, scale_of

# t(0.975, 2 degrees of freedom); for three values the interval is mean ± T3 * s / sqrt(3).
T3 = 4.302652729749464
BASE = {0: 0.40, 1: 0.50, 2: 0.60}


def claim(baselines: list[str], **more: object) -> DifferenceClaim:
    return DifferenceClaim(name="c", statement="s", treatment="a", baselines=baselines, **more)


def shifted(*by: float) -> dict[int, float]:
    return {seed: BASE[seed] + step for seed, step in enumerate(by)}


def test_the_interval_is_that_of_the_paired_differences():
    # Differences 0.1, 0.2, 0.3: mean 0.2, s = 0.1, stderr = 0.1 / sqrt(3). The variants' own spread plays no part.
    row = difference("b", BASE, shifted(0.1, 0.2, 0.3))
    half = T3 * 0.1 / 3**0.5
    assert row.effect == pytest.approx(0.2) and row.num_seeds == 3
    assert (row.low, row.high) == (pytest.approx(0.2 - half), pytest.approx(0.2 + half))
    # t = 0.2 / (0.1 / sqrt 3) = 3.4641; with 2 degrees of freedom p = 1 - t / sqrt(t^2 + 2) = 0.07418.
    assert row.p_value == pytest.approx(1 - 12**0.5 / 14**0.5)


@pytest.mark.parametrize(
    ("by", "direction", "margin", "held"),
    [
        ((0.10, 0.11, 0.12), "greater", 0.0, True),  # 0.11 ± 0.0248
        ((0.10, 0.11, 0.12), "greater", 0.08, True),
        ((0.10, 0.11, 0.12), "greater", 0.09, "undecided"),  # the margin lies inside the interval
        ((0.10, 0.11, 0.12), "greater", 0.14, False),  # better, but wholly below what counts
        ((0.10, 0.11, 0.12), "less", 0.0, False),
        ((0.10, 0.20, 0.30), "greater", 0.0, "undecided"),  # 0.2 ± 0.248
        ((-0.10, -0.11, -0.12), "greater", 0.0, False),
        ((-0.10, -0.11, -0.12), "less", 0.0, True),
        ((-0.10, -0.11, -0.12), "less", 0.09, "undecided"),
        ((-0.10, -0.11, -0.12), "greater", -0.15, True),  # not worse by more than 15 points
        ((0.0, 0.0, 0.0), "greater", 0.0, "undecided"),  # no difference is no proof of one
    ],
)
def test_held_not_held_undecided(by, direction, margin, held):
    found = decide(claim(["b"], direction=direction, margin=margin), [difference("b", BASE, shifted(*by))])
    assert found.held == held and type(found.held) is type(held)


def test_every_baseline_must_be_beaten_and_one_refutes():
    better, unclear, worse = (
        difference(name, BASE, shifted(*by))
        for name, by in (("x", (0.1, 0.11, 0.12)), ("y", (0.1, 0.2, 0.3)), ("z", (-0.1, -0.11, -0.12)))
    )
    found = decide(claim(["x", "y"]), [better, unclear])
    assert (found.held, found.decided_by) == ("undecided", unclear)
    found = decide(claim(["x", "y", "z"]), [better, unclear, worse])
    assert (found.held, found.decided_by, found.comparisons) == (False, worse, [better, unclear, worse])
    best = difference("w", BASE, shifted(0.4, 0.41, 0.42))
    found = decide(claim(["x", "w"]), [better, best])
    assert (found.held, found.decided_by) == (True, better)  # the closest one


def test_the_sentence_says_what_was_decided():
    better, best = difference("x", BASE, shifted(0.1, 0.11, 0.12)), difference("w", BASE, shifted(0.4, 0.41, 0.42))
    found = decide(claim(["x", "w"]), [better, best], scale="points", labels={"a": "HPT"})
    text = "HPT minus x (the closest) is +11.0 points (95 % interval +8.5 to +13.5, 3 seeds)."
    assert found.sentence == f"Held against each of 2 baselines: {text}"
    found = decide(claim(["x"], margin=0.09), [better])
    assert found.sentence.startswith("Not shown with 3 seeds: a minus x is +0.11 (95 % interval +0.0852 to +0.135")
    assert found.sentence.endswith("; the margin is +0.09.")
    assert decide(claim(["x"], direction="less"), [better]).sentence.startswith("Not held: a minus x is")


def test_one_seed_decides_nothing():
    found = decide(claim(["b"]), [difference("b", {0: 0.1}, {0: 0.9})])
    assert found.held == "undecided" and found.decided_by.low is None
    assert found.sentence == "Not shown with 1 seed: a minus b is +0.8 (no interval from 1 seed)."


def test_a_change_is_decided_by_the_ends_of_the_curve():
    assert ends([4.0, 2.0, 9.0, 9.0, 9.0, 9.0, 1.0, 0.0], 0.25, 0.25) == (3.0, 0.5)
    assert ends([1.0, 0.5, 0.2], 0.25, 0.5) == (1.0, 0.2)  # never fewer than one value
    with pytest.raises(ValueError, match="two values, got 1"):
        ends([1.0], 0.25, 0.25)
    falls = ChangeClaim(
        kind="change", name="c", statement="s", variant="a", metric="gate/sft_fraction", direction="falls", margin=0.05
    )
    row = change([-0.10, -0.11, -0.12])
    assert decide(falls, [row]).held is True
    assert "gate/sft_fraction of a changed by -0.11" in decide(falls, [row]).sentence
    assert decide(falls.model_copy(update={"direction": "rises"}), [row]).held is False
    assert decide(falls, [change([-0.04, -0.05, -0.06])]).held == "undecided"


def test_fractions_of_prompts_are_shown_in_points():
    assert [scale_of(name) for name in ("accuracy", "per_group.2 digits.accuracy", "truncated_fraction")] == [
        "points"
    ] * 3
    assert scale_of("mean_length") == ""
