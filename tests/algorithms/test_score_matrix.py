"""Metrics of the score matrix against `matrix_vectors.json`, what is undefined, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from posttrain.algorithms.score_matrix import (
    FORGOTTEN,
    GAIN_LOST,
    KEPT,
    KNOWN_BEFORE,
    ScoreMatrix,
    all_metrics,
    drops,
    fuar,
    overall_performance,
    vertical_forgetting,
)
from posttrain.errors import DataError

VECTORS = json.loads(Path(__file__).with_name("matrix_vectors.json").read_text())


def matrix(case: dict[str, Any], **changes: Any) -> ScoreMatrix:
    case = {**case, **changes}
    given = {name: tuple(case[name]) for name in ("base", "single", "joint") if name in case}
    general = {name: tuple(pair) for name, pair in case.get("general", {}).items()}
    names = tuple(f"task{i}" for i in range(len(case["scores"])))
    return ScoreMatrix(names, tuple(map(tuple, case["scores"])), **given, general=general)


@pytest.mark.parametrize("name", VECTORS)
def test_metrics_are_those_worked_by_hand(name: str):
    case = VECTORS[name]
    m = matrix(case)
    assert [overall_performance(m, t).value for t in range(len(m.tasks))] == pytest.approx(case["overall"])
    found = all_metrics(m)
    for metric, wanted in case["metrics"].items():
        if wanted is None:
            assert found[metric].value is None and found[metric].reason, metric
        else:
            assert found[metric].value == pytest.approx(wanted, abs=1e-9), metric
            assert found[metric].reason is None


def test_fuar_and_vertical_forgetting():
    assert fuar([(34.2, 29.1)], [(1.9, 6.0), (4.1, 8.5)]).value == pytest.approx(0.6)
    assert fuar([(1, 2)], [(1, 3)]).value == 0.0
    nothing = fuar([(2, 1)], [(1, 1)])
    assert nothing.value is None and nothing.reason == "no gain"
    assert vertical_forgetting(1.5, 1.75) == 0.25


@pytest.mark.parametrize("hole", [None, math.nan, math.inf])
def test_a_missing_score_is_named(hole: float | None):
    scores = [[0.1, 0.2], [0.3, hole]]
    with pytest.raises(DataError, match=r"\(stage, task\) = \('task1', 'task1'\): the score is missing"):
        matrix({"scores": scores, "base": [0, 0]})
    with pytest.raises(DataError, match=r"\('base', 'task1'\)"):
        matrix({"scores": [[0.1, 0.2], [0.3, 0.4]], "base": [0]})


def test_rows_and_names_must_fit():
    with pytest.raises(DataError, match="2 tasks need as many rows"):
        ScoreMatrix(("a", "b"), ((0.1, 0.2),), (0.0, 0.0))
    with pytest.raises(DataError, match="tasks have different names"):
        ScoreMatrix(("a", "a"), ((0.1, 0.2), (0.1, 0.2)), (0.0, 0.0))
    with pytest.raises(DataError, match="more scores than tasks"):
        ScoreMatrix(("a",), ((0.1, 0.2),), (0.0,))


def test_a_drop_is_forgetting_only_of_what_training_taught():
    m = ScoreMatrix(
        ("taught", "known", "kept", "last"),
        ((0.9, 0.9, 0.1, 0.0), (0.5, 0.9, 0.1, 0.0), (0.4, 0.6, 0.8, 0.0), (0.3, 0.4, 0.79, 0.9)),
        base=(0.1, 0.85, 0.1, 0.0),
    )
    assert drops(m, known=0.5, tolerance=0.02) == {
        "taught": FORGOTTEN,
        "known": KNOWN_BEFORE,
        "kept": KEPT,
        "last": KEPT,
    }
    m = ScoreMatrix(
        ("gained", "never learnt", "last"),
        ((0.95, 0.9, 0.9), (0.8, 0.3, 0.9), (0.7, 0.3, 0.15)),
        base=(0.6, 0.9, 0.9),
    )
    assert drops(m, known=0.5) == {"gained": GAIN_LOST, "never learnt": KNOWN_BEFORE, "last": KNOWN_BEFORE}
