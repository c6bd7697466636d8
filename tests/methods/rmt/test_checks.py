"""Checks of recipes that read documents: learnt whole by likelihood, or asked about."""

from __future__ import annotations

from pathlib import Path

from posttrain.errors import DataError
from tests.config.recipes import REMOVE, checked, told

DOCUMENTS = {"task": "woven_text", "size": 32, "seed": 1, "format": "text"}
QUESTIONS = {"task": "woven_text", "size": 8, "seed": 2, "options": {"form": "reasoning", "split": "eval"}}


def test_documents_are_learnt_whole_where_that_is_asked_for(tmp_path: Path):
    base = {
        "method.demonstration_column": "prompt",
        "data.train": DOCUMENTS,
        "data.eval": QUESTIONS,
        "eval.verifier": "next_token",
    }
    report = checked(tmp_path, "sft", base, show_rows=1)
    assert report.lines()[-1] == "ok"
    (shown,) = report.previews
    assert shown.header() == "-- train row 0 (sft): 40 tokens, 39 trained --" and not shown.trained[0]
    long = told(checked(tmp_path, "sft", base | {"trainer.max_length": 39}), DataError)
    assert "longer than 39 tokens in 32 of 32 rows" in long and "40 tokens in row 0" in long


def test_documents_without_a_demonstration_are_an_error_unless_it_is_asked_for(tmp_path: Path):
    message = told(checked(tmp_path, "sft", {"data.train": DOCUMENTS, "data.eval": REMOVE, "eval": REMOVE}), DataError)
    assert "the demonstration is empty in 32 of 32 rows" in message


def test_chats_are_not_learnt_as_documents(tmp_path: Path):
    message = told(checked(tmp_path, "sft", {"method.demonstration_column": "prompt"}), DataError)
    assert "rows are chats, and method.demonstration_column: prompt learns documents" in message
    assert "format: text" in message
