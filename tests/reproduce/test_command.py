"""`posttrain reproduce` on the shell: what it refuses, by message and exit code."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from posttrain import cli
from posttrain.reproduce.ledger import method_lines, results_page
from tests.config.recipes import changed
from tests.reproduce.studies import CLAIMS, RECIPE, study_folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Run the entry point in a folder of its own: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["posttrain", "reproduce", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        shown = capsys.readouterr()
        return int(stopped.value.code or 0), shown.out, shown.err

    return call


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "name a method, e.g. posttrain reproduce hpt"),
        (["htp"], "error: recipes/htp: no recipes here."),
        (["hpt", "--seeds", "0,one"], "error: --seeds: not a list of seeds (got '0,one'; allowed: different numbers"),
        (["hpt", "--seeds", "1,1"], "error: --seeds: not a list of seeds"),
        (["hpt", "--seeds", "0,1,²"], "error: --seeds: not a list of seeds (got '0,1,²'"),
        (["hpt", "--study", "big"], "no such study (got 'big'; allowed: main)"),
        (["hpt", "trainer.max_stebs=1"], "trainer.max_stebs"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(run, tmp_path, arguments, expected):
    study_folder(tmp_path)
    code, _, shown = run(*arguments)
    assert code == 2 and expected in " ".join(shown.split()) and "Traceback" not in shown


def test_unequal_variants_are_refused_before_anything_is_written(run, tmp_path):
    trainer = {**RECIPE["trainer"], "max_steps": 3}
    study_folder(tmp_path, recipe=changed(RECIPE, {"stages.2.trainer": trainer}))
    code, _, shown = run("hpt")
    assert code == 2 and "recipes/hpt/claims.yaml:" in shown and "the variant hpt is not trained like grpo" in shown
    assert not (tmp_path / "runs").exists()


def test_several_mistakes_of_a_claims_file_are_told_with_their_number(run, tmp_path):
    study_folder(tmp_path, claims=changed(CLAIMS, {"seeds": [0, 1], "claims.0.treatment": "htp"}))
    code, _, shown = run("hpt", "--dry-run")
    assert code == 2 and shown.strip().endswith("2 errors")


def test_the_ledger_is_rewritten_where_it_is_called(run, tmp_path):
    study_folder(tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text("<!-- methods -->\n<!-- /methods -->\n")
    code, shown, _ = run("--ledger")
    assert code == 0 and shown.split() == [
        *("docs/results.md:", "rewritten", "docs/methods.md:", "rewritten", "README.md:", "rewritten")
    ]
    assert (tmp_path / "docs" / "results.md").read_text() == results_page(tmp_path)
    assert method_lines(tmp_path) in readme.read_text()
    assert run("--ledger")[:2] == (0, "docs/results.md, docs/methods.md and the READMEs are up to date\n")
