"""The stages of a composition study: each once, with the paper's parts; conflicts and the points no other k beats."""

from __future__ import annotations

import re

import pytest

from posttrain.config.loader import parse
from posttrain.config.stages import resolve_stages
from posttrain.errors import ConfigError
from posttrain.methods.dmt.grid import Point, composition_grid, conflict, pareto
from tests.methods.dmt.test_plan import recipe

AMOUNTS, REPLAYS = (1.0, 0.25, 0.0625), (0.0, 0.25, 1.0)


def grid(**changes):
    values = {key: value for key, value in recipe({}).items() if key != "stages"}
    return composition_grid(values, **{"amounts": AMOUNTS, "replays": REPLAYS, **changes})


def test_every_question_has_the_papers_points():
    points = grid().points
    count = {question: [p for p in points if p.question == question] for question in ("amount", "mixed", "ratio")}
    assert [len(found) for found in count.values()] == [9, 3, 1 + 2 + 2 + 1]
    assert {tuple(p.fractions.values()) for p in count["mixed"]} == {(f, f, f) for f in AMOUNTS}
    ratios = [(p.fractions["math"], p.fractions["general"]) for p in count["ratio"]]
    assert ratios == [(1, 1), (0.25, 1), (0.0625, 1), (1, 0.25), (1, 0.0625), (0.25, 0.0625)]
    assert [p.replay for p in points if p.question == "strategy"] == [None, None, 0.0, 0.25, 1.0]


def test_stages_are_trained_once_and_are_ordinary_ones():
    found = grid()
    names = [stage["name"] for stage in found.stages]
    assert len(set(names)) == len(names) and {point.stage for point in found.points} <= set(names)
    values = {**recipe({}), "stages": found.stages}
    del values["data"]
    runs = {name: (parent, config) for name, parent, config in resolve_stages(parse(values))}
    sources = {entry.name: entry.fraction for entry in runs["specialized_part-0.25"][1].data.train.mixture}
    assert sources == {"math": 0.25, "code": 0.25, "general": 1.0}
    assert [name for name, (parent, _) in runs.items() if parent == "specialized"] == [
        "mixed_sequential",
        "dmt-0.25",
        "dmt-1",
    ]


def test_parts_are_of_what_the_recipe_takes():
    values = recipe({})
    values["data"]["train"]["mixture"][0]["fraction"] = 0.5
    found = composition_grid(values, amounts=[0.25], replays=[0], questions=["amount"])
    parts = {stage["name"]: stage["data"]["train"]["mixture"][0].get("fraction") for stage in found.stages}
    assert (parts["only_math"], parts["only_math-0.25"]) == (0.5, 0.125)


def test_a_part_of_a_source_with_a_largest_number_of_rows_is_a_part_of_that_number():
    values = {key: value for key, value in recipe({}).items() if key != "stages"}
    values["data"]["train"]["mixture"][0]["max_rows"] = 100
    name = values["data"]["train"]["mixture"][0]["name"]
    found = composition_grid(values, amounts=AMOUNTS, replays=REPLAYS, questions=["amount"])
    alone = [stage for stage in found.stages if stage["name"].startswith(f"only_{name}")]
    assert [stage["data"]["train"]["mixture"][0]["max_rows"] for stage in alone] == [100, 25, 6]


def test_conflict_is_together_minus_alone_from_the_same_rows():
    points = [
        Point("amount", "", "a1", {"a": 1.0}),
        Point("amount", "", "a4", {"a": 0.25}),
        Point("mixed", "", "m1", {"a": 1.0, "b": 1.0}),
        Point("mixed", "", "m4", {"a": 0.25, "b": 0.25}),
    ]
    scores = {"a1": {"a": 0.9}, "a4": {"a": 0.2}, "m1": {"a": 0.8}, "m4": {"a": 0.3}}
    found = conflict(points, scores)
    assert found[1.0]["a"] == pytest.approx(-0.1) and found[0.25]["a"] == pytest.approx(0.1)


def test_pareto_points_of_the_papers_sweep():
    """LLaMA-7B, GSM8K and MT-Bench: 1 and 1/16 are beaten by 1/4 (48.37 / 5.69) in the first score alone."""
    scores = {
        0: (32.6, 6.02),
        1 / 256: (41.92, 6.08),
        1 / 64: (42.53, 6.01),
        1 / 16: (43.3, 5.78),
        1 / 4: (48.37, 5.69),
    }
    assert pareto({**scores, 1: (45.79, 5.63)}) == [1 / 256, 1 / 64, 1 / 16, 1 / 4]


def test_of_equal_scores_the_smallest_k_is_kept():
    assert pareto({0.25: (0.5, 0.5), 0.5: (0.5, 0.5), 1.0: (0.4, 0.6)}) == [0.25, 1.0]


REFUSED = [
    ({"amounts": [0.0]}, "amounts: a part of the rows (got 0.0; allowed: above 0, at most 1)"),
    ({"replays": [1.5]}, "replays: a part of the rows (got 1.5; allowed: 0 to 1)"),
    ({"questions": ["price"]}, "questions: unknown question (got 'price'; allowed: one or more of: amount, mixed"),
    ({"replays": []}, "replays: nothing to study"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[case[1][:40] for case in REFUSED])
def test_refusals(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        grid(**changes)
