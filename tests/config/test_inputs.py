"""What a run would read beside its rows, or make of their cells, is told by `check`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers.utils import chat_template_utils

from posttrain.errors import ConfigError, DataError
from posttrain.models.tiny import CHAT_TEMPLATE, build_tiny
from tests.config.recipes import checked, numbered, rows_file, told

DATED = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}"
)


@pytest.fixture
def dated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Changes to a recipe: a model whose template writes the date."""
    monkeypatch.setattr(chat_template_utils, "datetime", chat_template_utils.datetime)
    path = build_tiny(tmp_path / "model", hidden_size=8, num_layers=1, num_heads=2, intermediate_size=8)
    (path / "chat_template.jinja").write_text(DATED + CHAT_TEMPLATE)
    return {"model": {"path": str(path)}, "data.train": {"path": rows_file(tmp_path, numbered(8))}}


@pytest.mark.parametrize("base", ["sft", "grpo"])
def test_a_template_that_writes_the_date_needs_one(base: str, dated: dict[str, Any], tmp_path: Path):
    finding = told(checked(tmp_path, base, dated))
    assert "model.template_date: the chat template writes the date or time of the run into 8 of 8 rows" in finding
    assert finding.endswith("or give the template's own variable in chat_template_kwargs: date_string.")
    assert not checked(tmp_path, base, {**dated, "model.template_date": "2026-01-31"}).errors


def test_a_template_that_is_given_its_date_does_not_ask(dated: dict[str, Any], tmp_path: Path):
    given = {**dated, "rollout.chat_template_kwargs": {"date_string": "31 Jan 2026"}}
    assert not checked(tmp_path, "grpo", given).errors


def test_a_date_is_a_date_and_told_where_nothing_reads_it(tmp_path: Path):
    with pytest.raises(ConfigError, match="template_date: .*a date such as 2026-01-31"):
        checked(tmp_path, "sft", {"model.template_date": "today"})
    report = checked(tmp_path, "sft", {"model.template_date": "2026-01-31"})
    assert "the chat template does not read the date" in told(report, warning=True)


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
