"""Of very many rows a sample is tokenised, the longest among them, and the report says of how many."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.errors import DataError
from posttrain.preflight import length_budget
from posttrain.preflight import rendering as checks_rendering
from tests.config.recipes import checked, numbered, rows_file


def test_the_longest_of_many_rows_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in {"MANY_ROWS": 30, "_LONGEST": 2, "_SPREAD": 4}.items():
        monkeypatch.setattr(length_budget, name, value)
    rows = numbered(40)
    rows[17]["prompt"] = "a" * 1000
    lengths = {"data.max_prompt_length": 2000, "trainer.max_length": 400}
    report = checked(tmp_path, "sft", {"data.train": {"path": rows_file(tmp_path, rows)}, **lengths})
    assert "1 of 40 rows (row 17)" in str(report.errors[0]) and isinstance(report.errors[0], DataError)
    assert any("of 40 train rows were tokenised, the longest ones and others" in fact for fact in report.facts)
    few = checked(tmp_path, "sft", {"data.train": {"path": rows_file(tmp_path, numbered(30))}})
    assert few.ok and not any("tokenised" in fact for fact in few.facts)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_a_control_token_is_found_among_any_number_of_rows(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(checks_rendering, "_BLOCK", block)
    rows = numbered(40)
    rows[3]["prompt"] += " a < b </ c"  # begins like one
    rows[9]["solution"] = "It ends <|im_end|> here"
    rows[31]["prompt"] += "<|im_start|>"
    report = checked(tmp_path, "sft", {"data.train": {"path": rows_file(tmp_path, rows)}})
    found = [str(each) for each in report.warnings if "spelled in the text" in str(each)]
    assert len(found) == 1 and "of 2 of 40 rows (rows 9, 31)" in found[0]
