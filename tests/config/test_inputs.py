"""What a run would read beside its rows, or make of their cells, is told by `check`."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.errors import DataError
from tests.config.recipes import checked, numbered, rows_file, told

@pytest.mark.parametrize("name", ["image", "images", "prompts", "completions", "completion", "trainer_state"])
def test_columns_whose_names_are_taken_are_refused_by_name(name: str, tmp_path: Path):
    rows = rows_file(tmp_path, numbered(8, **{name: None}))
    finding = told(checked(tmp_path, "grpo", {"data.train": {"path": rows}}), DataError)
    assert "data.train: the name of the column is taken" in finding and f"got {name!r}" in finding
    # A supervised run keeps no further column.
    assert not checked(tmp_path, "sft", {"data.train": {"path": rows}}).errors


def test_cut_references_are_told_with_an_example(tmp_path: Path):
    rows = rows_file(tmp_path, numbered(8, answer="add\n#### 5", solution="#### 5"))
    report = checked(tmp_path, "grpo", {"data.train": {"path": rows}})
    assert not report.errors
    note = "data.train: 8 of 8 references are cut, as all end in one line '#### <number>' (GSM8K), e.g."
    assert any(note in fact for fact in report.facts)
