"""The drift between two results of a suite: paired where documents can be, plain and explained where not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posttrain.commands.suite_results import (
    Metric,
    SuiteResult,
    TaskScore,
    drift_rows,
    read_suite,
    suite_drift,
    task_rows,
    write_suite,
)
from posttrain.errors import DataError
from posttrain.evaluation.results import mean_and_stderr


def suite(values: list[Any], *, value: float | None = None, version: str = "1", prompt: str = "q") -> SuiteResult:
    """One task `t` with the metric "acc,none"."""
    found = sum(values) / len(values) if value is None else value
    score = TaskScore(version, len(values), 10, 0, {"acc,none": Metric(found, 0.1, True)})
    documents = [
        {"doc_id": place, "hash": str(place), "prompt": f"{prompt} {place}", "values": {"acc,none": item}}
        for place, item in enumerate(values)
    ]
    return SuiteResult({"t": score}, {"t": documents})


def only(before: SuiteResult, after: SuiteResult) -> Any:
    (item,) = suite_drift(before, after)
    return item


def test_the_same_documents_are_compared_one_by_one():
    before, after = [1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0]
    item = only(suite(before), suite(after))
    # Differences 0, 0, -1, 0: mean -1/4, error sqrt(3/4 / 12) = 1/4, where two samples would have 0.38.
    assert (item.difference, item.stderr, item.num_documents, item.note) == (-0.25, 0.25, 4, None)
    assert (item.before, item.after) == (0.75, 0.5)


def test_fewer_documents_in_one_are_said():
    item = only(suite([1.0, 0.0, 1.0]), suite([0.0, 0.0]))
    assert (item.difference, item.stderr) == mean_and_stderr([-1.0, 0.0])
    assert item.num_documents == 2 and item.note == "only the 2 documents in both"


@pytest.mark.parametrize(
    ("before", "after", "note"),
    [
        (suite([1.0, 0.0]), suite([1.0, 1.0], version="2"), "version 1, 0 examples shown before; 2, 0 now"),
        (suite([1.0, 0.0]), suite([1.0, 1.0], prompt="chat"), "no document with the same prompt in both"),
        (suite([1.0, 0.0]), suite([1.0, 1.0], value=2.7), "not a mean over documents"),
        (suite([[1, 2], [3, 4]], value=0.5), suite([1.0, 1.0]), "not a mean over documents"),
    ],
)
def test_what_cannot_be_paired_is_a_plain_difference_with_the_reason(before, after, note):
    item = only(before, after)
    assert item.note == note and item.stderr is None and item.num_documents == 0
    assert item.difference == pytest.approx(item.after - item.before)


def test_a_task_that_is_only_in_one_result():
    nothing = SuiteResult({}, {})
    item = only(nothing, suite([1.0]))
    assert math.isnan(item.before) and item.note == "not in the earlier result"
    assert suite_drift(suite([1.0]), nothing) == []
    assert drift_rows([item])[1][2:5] == ["–", "1.0000", "–"]


def test_a_result_is_read_back_as_it_was(tmp_path: Path):
    found = suite([1.0, 0.0, 1.0])
    other = replace(found.tasks["t"], metrics={"ppl,none": Metric(12.5, None, False)})
    found = SuiteResult({**found.tasks, "a/b": other}, {**found.documents, "a/b": []})
    drift = suite_drift(suite([1.0, 1.0, 1.0]), found)
    write_suite(tmp_path, found, identity={}, facts={"against": "there"}, title="model on t", drift=drift)
    assert read_suite(tmp_path) == found
    report = (tmp_path / "REPORT.md").read_text()
    assert "| t | acc,none | 0.6667 ± 0.1000 | 3 of 10 | 0 | 1 |" in report
    assert "| t | acc,none | 1.0000 | 0.6667 | -0.3333 ± 0.3333 | 3 |  |" in report
    assert task_rows(found)[2][:3] == ["a/b", "ppl,none", "12.5000"]


def test_a_folder_without_a_result_is_told(tmp_path: Path):
    with pytest.raises(DataError, match=r"suite\.json: no result of a suite in this folder.*--suite"):
        read_suite(tmp_path)
    (tmp_path / "suite.json").write_text('{"t": {"version": "1"}}')
    with pytest.raises(DataError, match="the result of the suite cannot be read"):
        read_suite(tmp_path)
