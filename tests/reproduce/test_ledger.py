"""docs/results.md and the READMEs of the recipes, written from results files."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.errors import ConfigError
from posttrain.registry import METHODS
from posttrain.reproduce.ledger import HEADER, methods_page, results_page, study_sentences, write_ledger
from posttrain.reproduce.results import write_results
from tests.config.recipes import changed
from tests.reproduce.studies import CLAIMS, made_up_result, study_folder

VALUES = {"grpo": [0.40, 0.50, 0.60], "hpt": [0.50, 0.61, 0.72]}
ENDS = [(0.30, 0.10), (0.31, 0.10), (0.32, 0.10)]


def rows(root: Path) -> dict[str, list[list[str]]]:
    """Method -> its rows, as cells."""
    found: dict[str, list[list[str]]] = {}
    lines = [line for line in results_page(root).splitlines() if line.startswith("|")]
    assert lines[0] == "| " + " | ".join(HEADER) + " |"
    for line in lines[2:]:
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        assert len(cells) == len(HEADER), line
        found.setdefault(cells[0].split("`")[1], []).append(cells)
    return found


def test_every_method_has_a_row_before_anything_is_measured(tmp_path):
    study_folder(tmp_path)
    found = rows(tmp_path)
    assert list(found) == list(METHODS)
    none = ["–"] * 3
    assert found["hpt"] == [["[`hpt`](../recipes/hpt/README.md)", "not measured yet", *none, "3", "–"]]
    assert found["grpo"] == [["[`grpo`](../recipes/grpo/README.md)", "not measured yet", *none, "–", "–"]]


def test_a_measured_study_is_one_line_and_its_sentences_stand_beside_the_recipes(tmp_path):
    claims = study_folder(tmp_path, claims=changed(CLAIMS, {"title": "one-digit sums, no model"}))
    results = claims.with_name("RESULTS.json")
    assert study_sentences(claims.parent) is None
    write_results(results, "hpt", made_up_result(claims, VALUES, ENDS))
    found = rows(tmp_path)
    (row,) = found["hpt"]
    assert row == ["[`hpt`](../recipes/hpt/README.md)", "one-digit sums, no model", "2", "–", "–", "3", "12"]
    # A baseline whose own claim was not tested is not passed off as measured.
    assert found["grpo"][0][1] == "a baseline in `hpt`; its own paper's claim is not tested"
    text = study_sentences(claims.parent)
    assert "The paper: HPT reaches 52.7 where GRPO reaches 43.1." in text and "12 minutes on 2 cores" in text
    assert "Here: A model of no size on sums of one digit." in text
    assert "- HPT solves more. **Held**: HPT, gate 0 minus" in text
    assert "+11.0 points (95 % interval +8.5 to +13.5, 3 seeds)" in text

    lost = made_up_result(claims, {"grpo": VALUES["hpt"], "hpt": VALUES["grpo"]}, ENDS)
    late = lost.model_copy(update={"minutes": lost.minutes.model_copy(update={"wall": 31.4})})
    write_results(results, "hpt", late)
    assert rows(tmp_path)["hpt"][0][2:] == ["1", "1", "–", "3", "31"]
    text = study_sentences(claims.parent)
    assert "31 minutes on 2 cores (the limit was 20)" in text
    assert "HPT solves more. **Not held**: HPT, gate 0 minus grpo is -11.0 points" in text.replace("&#45;", "-")


def test_a_row_says_that_no_single_commit_was_measured(tmp_path):
    claims = study_folder(tmp_path, claims=changed(CLAIMS, {"title": "sums"}))
    result = made_up_result(claims, VALUES, ENDS)

    def remark(*git: tuple[str, bool]) -> str:
        made = [
            result.environments[0].model_copy(update={"git": {"commit": commit * 40, "dirty": dirty}})
            for commit, dirty in git
        ]
        write_results(claims.with_name("RESULTS.json"), "hpt", result.model_copy(update={"environments": made}))
        return rows(tmp_path)["hpt"][0][1]

    assert remark(("a", False)) == "sums"
    assert remark(("a", True)) == "sums (from a tree with uncommitted changes)"
    assert remark(("a", False), ("b", False)) == "sums (of 2 commits)"
    assert remark(("a", True), ("b", False)) == "sums (from a tree with uncommitted changes; of 2 commits)"


def test_a_study_with_a_name_has_a_row_of_its_own(tmp_path):
    claims = study_folder(tmp_path)
    small = claims.with_name("claims_small.yaml")
    small.write_text(claims.read_text())
    write_results(claims.with_name("RESULTS.json"), "hpt", made_up_result(claims, VALUES, ENDS))
    first, second = rows(tmp_path)["hpt"]
    assert first[2] == "2"
    assert second[0] == "[`hpt`](../recipes/hpt/README.md), small" and second[1] == "not measured yet"


def test_text_cannot_break_the_page(tmp_path):
    claims = study_folder(tmp_path, claims=changed(CLAIMS, {"title": "a | b <script> `x` [y](z)"}))
    assert rows(tmp_path)["hpt"][0][1] == "a &#124; b &#60;script&#62; &#96;x&#96; &#91;y&#93;(z)"
    odd = changed(CLAIMS, {"paper_claim": "a | b <script> [y](z)"})
    claims = study_folder(tmp_path / "b", claims=odd)
    write_results(claims.with_name("RESULTS.json"), "hpt", made_up_result(claims, VALUES, ENDS))
    assert "The paper: a &#124; b &#60;script&#62; &#91;y&#93;(z)" in study_sentences(claims.parent)


def test_the_page_and_the_block_are_written_and_nothing_else(tmp_path):
    claims = study_folder(tmp_path)
    page, methods = tmp_path / "docs" / "results.md", tmp_path / "docs" / "methods.md"
    assert write_ledger(tmp_path) == [page, methods] and page.read_text() == results_page(tmp_path)
    assert methods.read_text() == methods_page()
    assert write_ledger(tmp_path) == []
    write_results(claims.with_name("RESULTS.json"), "hpt", made_up_result(claims, VALUES, ENDS))
    with pytest.raises(ConfigError, match="there is no block for results. Add a line <!-- results -->"):
        write_ledger(tmp_path)
    readme = claims.with_name("README.md")
    readme.write_text("before\n<!-- results -->\n<!-- /results -->\nafter\n")
    assert write_ledger(tmp_path) == [page, readme]
    block = study_sentences(claims.parent)
    assert readme.read_text() == f"before\n<!-- results -->\n{block}\n<!-- /results -->\nafter\n"
    assert write_ledger(tmp_path) == []
