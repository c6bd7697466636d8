"""The README's ledger, written from results files."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.errors import ConfigError
from posttrain.registry import METHODS
from posttrain.reproduce.ledger import HEADER, ledger_table, write_ledger
from posttrain.reproduce.results import write_results
from tests.config.recipes import changed
from tests.reproduce.studies import CLAIMS, made_up_result, study_folder

VALUES = {"grpo": [0.40, 0.50, 0.60], "hpt": [0.50, 0.61, 0.72]}
ENDS = [(0.30, 0.10), (0.31, 0.10), (0.32, 0.10)]


def rows(root: Path) -> dict[str, list[list[str]]]:
    """Method -> its rows, as cells."""
    found: dict[str, list[list[str]]] = {}
    lines = ledger_table(root).splitlines()
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
    assert found["hpt"] == [
        ["[`hpt`](recipes/hpt/claims.yaml)", "HPT reaches 52.7 where GRPO reaches 43.1.", "–", "3", "–",
         "not measured yet"]
    ]  # fmt: skip
    assert found["grpo"] == [["[`grpo`](recipes/grpo/README.md)", "–", "–", "–", "–", "not measured yet"]]


def test_a_measured_study_shows_its_claims_and_their_verdicts(tmp_path):
    claims = study_folder(tmp_path)
    results = claims.with_name("RESULTS.json")
    write_results(results, "hpt", made_up_result(claims, VALUES, ENDS))
    found = rows(tmp_path)
    (row,) = found["hpt"]
    assert row[0] == "[`hpt`](recipes/hpt/RESULTS.json)" and row[3:] == ["3", "12 (2 cores)", "2 held"]
    assert row[2].startswith(
        "A model of no size on sums of one digit.<br>HPT solves more. **Held**: HPT, gate 0 minus"
    )
    assert "+11.0 points (95 % interval +8.5 to +13.5, 3 seeds)" in row[2]
    # A baseline whose own claim was not tested is not passed off as measured.
    assert found["grpo"][0][2:] == [
        "an arm in `hpt`; its own paper's claim is not tested", "–", "–", "not measured yet",
    ]  # fmt: skip

    lost = made_up_result(claims, {"grpo": VALUES["hpt"], "hpt": VALUES["grpo"]}, ENDS)
    late = lost.model_copy(update={"minutes": lost.minutes.model_copy(update={"wall": 31.4})})
    write_results(results, "hpt", late)
    (row,) = rows(tmp_path)["hpt"]
    assert row[4:] == ["31 (2 cores), limit 20", "1 held, 1 not held"]
    assert "HPT solves more. **Not held**: HPT, gate 0 minus grpo is -11.0 points" in row[2].replace("&#45;", "-")


def test_a_row_says_that_no_single_commit_was_measured(tmp_path):
    claims = study_folder(tmp_path)
    result = made_up_result(claims, VALUES, ENDS)

    def status(*git: tuple[str, bool]) -> str:
        made = [
            result.environments[0].model_copy(update={"git": {"commit": commit * 40, "dirty": dirty}})
            for commit, dirty in git
        ]
        write_results(claims.with_name("RESULTS.json"), "hpt", result.model_copy(update={"environments": made}))
        return rows(tmp_path)["hpt"][0][5]

    assert status(("a", False)) == "2 held"
    assert status(("a", True)) == "2 held; from a tree with uncommitted changes"
    assert status(("a", False), ("b", False)) == "2 held; of 2 commits"
    assert status(("a", True), ("b", False)) == "2 held; from a tree with uncommitted changes; of 2 commits"


def test_a_study_with_a_name_has_a_row_of_its_own(tmp_path):
    claims = study_folder(tmp_path)
    small = claims.with_name("claims_small.yaml")
    small.write_text(claims.read_text())
    write_results(claims.with_name("RESULTS.json"), "hpt", made_up_result(claims, VALUES, ENDS))
    first, second = rows(tmp_path)["hpt"]
    assert first[5] == "2 held"
    assert second[0] == "[`hpt`](recipes/hpt/claims_small.yaml), small" and second[5] == "not measured yet"


def test_text_cannot_break_the_table(tmp_path):
    study_folder(tmp_path, claims=changed(CLAIMS, {"paper_claim": "a | b <script> `x` [y](z)"}))
    assert rows(tmp_path)["hpt"][0][1] == "a &#124; b &#60;script&#62; &#96;x&#96; &#91;y&#93;(z)"


def test_the_block_is_replaced_and_nothing_else(tmp_path):
    study_folder(tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- ledger -->\nold\n<!-- /ledger -->\nafter\n")
    assert write_ledger(tmp_path) is True
    assert readme.read_text() == f"before\n<!-- ledger -->\n{ledger_table(tmp_path)}\n<!-- /ledger -->\nafter\n"
    assert write_ledger(tmp_path) is False
    readme.write_text("no block")
    with pytest.raises(ConfigError, match="there is no ledger block. Add a line <!-- ledger -->"):
        write_ledger(tmp_path)
