"""What a path study is taken to show: numbers by hand, tests that can tell and tests that cannot."""

from __future__ import annotations

import math

import pytest

from posttrain.methods.unlearning_paths.findings import (
    DENIES,
    NOT_THERE,
    SUPPORTS,
    UNKNOWN,
    behaves_like,
    curve,
    divergence,
    forget_scores,
    level_steps,
    quality_verdict,
    recency,
    relearning_verdict,
    stage_numbers,
    steps_to_level,
    steps_to_return,
)


def event(step: int, **values: float) -> dict:
    return {"event": "log", "step": step, **{f"answers/{name}_logp": value for name, value in values.items()}}


EVENTS = [
    event(0, forget=-1.0, forget_paraphrases=-2.0, forget_forms=-1.75, inst=-0.5, math=-0.25, holdout=-3.0),
    {"event": "log", "step": 1, "loss": 0.3},
    event(4, forget=-5.0, forget_paraphrases=-4.0, forget_forms=-4.25, inst=-1.5, math=-0.75, holdout=-4.0),
]


def test_numbers_of_one_unlearning():
    found = stage_numbers(EVENTS, forget="forget", sets=["forget", "inst", "math", "holdout"])
    assert found == {
        "initial_logp": -1.0,
        "final_logp": -5.0,
        "initial_forms_logp": -1.75,
        "final_forms_logp": -4.25,
        "forget_score": 2.5,
        "change_inst": -1.0,
        "change_math": -0.5,
        "change_holdout": -1.0,
        "squeeze_inst": 0.25,
        "squeeze_math": 0.125,
        "squeeze_holdout": 0.25,
        "squeeze_paraphrases": 0.5,
        "kept_change": -0.75,  # holdout was never learnt, so nothing of it is kept
    }
    assert stage_numbers([], forget="forget", sets=["forget"]) == {}
    still = [event(0, forget=-1.0, inst=-1.0), event(2, forget=-1.0, inst=-2.0)]
    assert not [name for name in stage_numbers(still, forget="forget", sets=["forget", "inst"]) if "squeeze" in name]
    without = stage_numbers([event(0, forget=-1.0), event(2, forget=-3.0)], forget="forget", sets=["forget"])
    assert without["forget_score"] == 2.0 and "kept_change" not in without


def test_a_curve_keeps_what_a_diverged_model_gave():
    found = curve([event(2, forget=math.nan), event(0, forget=-1.0), {"step": 3}], "answers/forget_logp")
    assert found[0] == (0, -1.0) and found[1][0] == 2 and math.isnan(found[1][1])


def test_steps_until_a_part_is_back():
    points = [(0, -5.0), (1, -3.5), (2, -1.9), (3, -1.2)]
    lost = {"initial": -1.0, "unlearned": -5.0}
    assert steps_to_return(points, **lost, fraction=0.25) == 1
    assert steps_to_return(points, **lost, fraction=0.75) == 2
    assert steps_to_return(points, **lost, fraction=0.9) == 3
    assert steps_to_return(points, **lost, fraction=1.0) is None
    assert steps_to_return(points, initial=-5.0, unlearned=-1.0, fraction=0.9) == 0


def test_scores_on_the_way_and_steps_to_a_level():
    assert forget_scores(EVENTS, forget="forget") == {0: 0.0, 4: 2.5}
    points = [(0, -1.0), (2, -3.0), (4, -9.0)]
    assert steps_to_level(points, -2.0) == 1.0 and steps_to_level(points, -6.0) == 3.0
    assert steps_to_level(points, -3.0) == 2.0 and steps_to_level(points, -0.5) == 0.0
    assert steps_to_level(points, -10.0) is None and steps_to_level([], -1.0) is None


TABLE = {
    "p1": {0: 8.0, 1: 8.2, 2: 8.4, 3: 8.1},
    "p2": {0: 8.5, 1: 8.6, 2: 8.9, 3: 8.8},
    "p3": {0: 2.0, 1: 3.1, 2: 2.4, 3: 2.2},
}


def test_spread_over_paths_against_spread_over_seeds():
    found = divergence(TABLE)
    assert found.spread.mean == pytest.approx((6.5 + 5.5 + 6.5 + 6.6) / 4)
    assert found.seed_spread == pytest.approx((0.4 + 0.4 + 1.1) / 3)
    assert found.p_value == pytest.approx(math.exp(-4)) and found.told == "beyond noise"  # chi2 = 8 with 2 degrees
    noise = {"p1": {0: 1.0, 1: 3.0, 2: 2.0}, "p2": {0: 2.0, 1: 1.0, 2: 3.0}, "p3": {0: 3.0, 1: 2.0, 2: 1.0}}
    assert divergence(noise).told == "within noise"
    two = {name: TABLE[name] for name in ("p1", "p3")}
    assert divergence(two).p_value is None and divergence(two).told == "cannot tell"
    one = divergence({name: {0: row[0]} for name, row in TABLE.items()})
    assert one.spread.mean == 6.5 and math.isnan(one.seed_spread) and one.told == "cannot tell"


def test_recency_is_a_paired_effect():
    effect, least, count = recency(TABLE, ["p3"])
    assert effect.mean == pytest.approx(sum((8.25 - 2, 8.4 - 3.1, 8.65 - 2.4, 8.45 - 2.2)) / 4)
    assert (least, count) == (4, 4) and effect.low > 0
    assert recency({"p3": {0: 1.0}}, ["p3"])[1:] == (0, 0)
    # A seed in which a model diverged is no measurement of the effect.
    assert recency({"p1": {0: math.nan, 1: 2.0}, "p2": {0: 1.0, 1: 1.0}}, ["p2"])[2] == 1
    # Several orders may end with the forget set: means of both kinds, and each of the last below each other.
    four = {"a": {0: 3.0}, "b": {0: 5.0}, "y": {0: 1.0}, "z": {0: 2.0}}
    effect, least, count = recency(four, ["y", "z"])
    assert (effect.mean, least, count) == (2.5, 1, 1)
    assert recency({**four, "z": {0: 4.0}}, ["y", "z"])[1] == 0


def test_a_model_that_diverged_has_not_been_brought_back():
    assert steps_to_return([(0, -9.0), (1, -8.0)], initial=-1.0, unlearned=math.nan, fraction=0.5) is None


def test_steps_to_a_level_that_was_not_reached_are_a_lower_bound():
    assert level_steps([(0, -1.0), (4, -2.0)], -3.0) == {"steps_to_retrained": 4.0, NOT_THERE: 1.0}
    assert level_steps([(0, -1.0), (4, -2.0)], -1.5) == {"steps_to_retrained": 2.0}
    assert level_steps([], -1.5) == {}


def like(*differences: float, tolerance: float = 0.1):
    own = {seed: 1 + value for seed, value in enumerate(differences)}
    return behaves_like("x", own, dict.fromkeys(own, 1.0), tolerance=tolerance).word


def test_alike_needs_an_interval_within_the_tolerance():
    assert like(0.01, -0.01, 0.0) == SUPPORTS
    assert like(0.5, 0.51, 0.52) == DENIES
    assert like(0.1, 0.3, -0.2) == UNKNOWN and like(0.0) == UNKNOWN
    assert like(0.0, math.inf) == DENIES
    assert behaves_like("x", {0: 1.0, 1: 1.0}, {2: 1.0}, tolerance=1).word == UNKNOWN


def test_a_test_that_finds_no_difference_supports_nothing():
    assert quality_verdict({0: 0.9, 1: 1.0, 2: 0.8}, num_rows=20).word == UNKNOWN
    assert quality_verdict({0: 1e-4, 1: 0.01, 2: 0.8}, num_rows=20).word == DENIES
    assert quality_verdict({0: None}, num_rows=20).word == UNKNOWN


def test_relearning_faster_than_the_retrained_model_denies_it():
    retrained = {0: 10, 1: 12, 2: 11}
    assert relearning_verdict({0: 2, 1: 3, 2: 11}, retrained, probe_every=1).word == DENIES
    assert relearning_verdict({0: 10, 1: 11, 2: 12}, retrained, probe_every=1).word == SUPPORTS
    assert relearning_verdict({0: 30, 1: None, 2: 12}, retrained, probe_every=1).word == UNKNOWN
    assert relearning_verdict({0: 5, 1: 5}, {0: None, 1: None}, probe_every=1).word == DENIES
    assert relearning_verdict({0: None}, {0: None}, probe_every=1).word == UNKNOWN
