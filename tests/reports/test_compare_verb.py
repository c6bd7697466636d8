"""`posttrain compare` as a user calls it."""

from __future__ import annotations

import sys

import pytest

from posttrain.cli import main
from tests.reports.recorded import record


@pytest.fixture
def compare(monkeypatch, capsys):
    """Run the verb: (exit code, standard output, standard error)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["posttrain", "compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        shown = capsys.readouterr()
        return int(stopped.value.code or 0), shown.out, shown.err

    return call


@pytest.fixture
def runs(tmp_path):
    for seed in (0, 1):
        record(tmp_path / "runs" / f"grpo-{seed}", seed=seed, after=1 + seed)
        record(tmp_path / "runs" / f"hpt-{seed}", seed=seed, after=3 + seed, config={"method.name": "hpt"})
    return tmp_path / "runs"


def test_it_shows_what_was_grouped_the_result_and_where_the_page_is(compare, runs, tmp_path):
    code, shown, _ = compare(runs, "--output", tmp_path / "out")
    assert code == 0
    assert f"hpt: {runs / 'hpt-0'} (seed 0), {runs / 'hpt-1'} (seed 1)" in shown
    assert "hpt minus grpo: +50.0 percentage points" in shown and "paired t-test over 2 seeds" in shown
    assert shown.strip().splitlines()[-2:] == [str(tmp_path / "out" / name) for name in ("report.html", "REPORT.md")]
    assert (tmp_path / "out" / "report.html").is_file()


def test_options_reach_the_comparison(compare, runs, tmp_path):
    out = tmp_path / "out"
    _, shown, _ = compare(runs, "--output", out, "--no-group", "--baseline", "hpt-1", "--metric", "mean_length")
    assert "Result: mean_length" in shown and "Test against hpt-1" in shown and "hpt-0: " in shown
    _, shown, _ = compare(f"ours={runs / 'hpt-0'}", f"theirs={runs / 'grpo-0'}", "--output", out)
    assert shown.startswith("ours: ") and "theirs minus ours: -50.0" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "error: nowhere: no such folder (allowed: a run's folder (with run.json)"),
        (
            ["--baseline", "x", "{runs}"],
            "error: --baseline: no variant of this name (got 'x'; allowed: one of: grpo, hpt)",
        ),
        (["--metric", "x", "{runs}"], "error: --metric: no evaluation has this number (got 'x'; allowed: one of: acc"),
        (["--output", "{runs}/hpt-0", "{runs}"], "this folder is a run and has a report of its own"),
    ],
)
def test_a_mistake_is_one_line(compare, runs, arguments, message):
    code, _, errors = compare(*[argument.format(runs=runs) for argument in arguments])
    assert code == 2 and message in errors and len(errors.strip().splitlines()) == 1
