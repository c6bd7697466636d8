"""Where an evaluation is written, and how it is held against the row of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.commands.eval_folder import (
    NAME,
    claim,
    compare_with_row,
    group_table,
    recorded_row,
    write_record,
    write_report,
)
from posttrain.errors import ConfigError
from posttrain.evaluation.results import EvalResult, summarise, summarise_groups
from posttrain.reports.run_report import RunFolder


def sample(index: int, correct: bool | None, *, number: int = 0, text: str = "x", group: str = "a") -> dict[str, Any]:
    return {
        "index": index,
        "sample": number,
        "group": group,
        "prompt": f"question {index}",
        "answer": "1",
        "completion": text,
        "value": None if correct is None else float(correct),
        "correct": correct,
        "failed": None,
        "length": 3,
        "truncated": False,
    }


def result(samples: list[dict[str, Any]], *, requested: int | None = None) -> EvalResult:
    score = summarise(samples)
    wanted = score.num_prompts if requested is None else requested
    return EvalResult(
        **vars(score),
        num_requested=wanted,
        num_tokens=3 * len(samples),
        seconds=1.0,
        partial=wanted > score.num_prompts,
        per_group=summarise_groups(samples),
        samples=samples,
    )


VERDICTS = (True, False, True, None)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    samples = [sample(index, correct) for index, correct in enumerate(VERDICTS)]
    folder.write_eval("before", result([sample(0, False)]), step=0)
    folder.write_eval("step-000002", result([sample(0, True)]), step=2)
    folder.write_eval("after", result(samples), step=4)
    return folder


def compared(run: RunFolder, samples: list[dict[str, Any]], changes=(), environment=()) -> str:
    return compare_with_row(run, "after", result(samples), changes=changes, environment=environment)


# ---- the row of the run ----


@pytest.mark.parametrize(("step", "name"), [(None, "after"), (2, "step-000002"), (4, "after"), (3, None), (0, None)])
def test_the_row_of_the_weights_is_found_by_step(run: RunFolder, step: int | None, name: str | None):
    assert recorded_row(run, step) == name


def test_the_same_completions_are_equal(run: RunFolder):
    same = [sample(index, correct) for index, correct in enumerate(VERDICTS)]
    assert compared(run, same) == "equals the run's 'after' row: the same 4 completions and verdicts"
    assert compared(run, same[:2]) == "equals the run's 'after' row on the 2 completions that are in both"


def test_another_text_with_the_same_verdict_is_not_equal(run: RunFolder):
    other = [sample(index, correct, text="y") for index, correct in enumerate(VERDICTS)]
    told = compared(run, other)
    assert told.startswith("differs from the run's 'after' row by +0.0 ± 0.0 points on 3 prompts")
    assert told.endswith("no setting differs, nor do versions and device")


def test_a_difference_is_paired_and_its_reasons_named(run: RunFolder):
    other = [sample(0, True), sample(1, True), sample(2, True), sample(3, True)]
    told = compared(run, other, ["eval.seed: 0 -> 1"], ["device: cuda -> cpu"])
    # Differences 0, 1, 0 on the prompts with a verdict in both: 33.3 points, error sqrt(2/3 / 6) = 33.3.
    assert told == (
        "differs from the run's 'after' row by +33.3 ± 33.3 points on 3 prompts; "
        "changed: eval.seed: 0 -> 1; device: cuda -> cpu"
    )


def test_equal_completions_under_other_settings_are_not_called_the_same_evaluation(run: RunFolder):
    same = [sample(index, correct) for index, correct in enumerate(VERDICTS)]
    assert compared(run, same, ["verifier: exact -> math"]).startswith("differs from the run's 'after' row by +0.0")


def test_nothing_in_common_is_not_compared(run: RunFolder):
    assert compared(run, [sample(9, True)]).startswith("not comparable with the run's 'after' row: no prompt is in bo")
    assert "no prompt has a verdict in both" in compared(run, [sample(3, True)])


# ---- where it is written ----


def test_only_the_same_evaluation_is_replaced(tmp_path: Path):
    wanted = tmp_path / "result"
    assert claim(wanted, {"seed": 0}, chosen=False) == wanted
    wanted.mkdir()
    write_record(wanted, {"seed": 0}, {})
    assert claim(wanted, {"seed": 0}, chosen=False) == claim(wanted, {"seed": 0}, chosen=True) == wanted
    second = claim(wanted, {"seed": 1}, chosen=False)
    assert second == tmp_path / "result-2"
    second.mkdir()
    write_record(second, {"seed": 1}, {})
    assert claim(wanted, {"seed": 2}, chosen=False) == tmp_path / "result-3"
    assert claim(wanted, {"seed": 1}, chosen=False) == second
    with pytest.raises(ConfigError, match="--output: another evaluation is in this folder"):
        claim(wanted, {"seed": 1}, chosen=True)


def test_a_run_is_never_overwritten(tmp_path: Path):
    (tmp_path / "run.json").write_text('{"command": []}')
    with pytest.raises(ConfigError, match="--output: a run is in this folder"):
        claim(tmp_path, {}, chosen=True)
    assert claim(tmp_path, {}, chosen=False) == tmp_path.with_name(f"{tmp_path.name}-2")


def test_the_record_hides_secrets(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "abcdefgh12345678")
    write_record(tmp_path, {}, {"config": {"token": "x", "path": "https://abcdefgh12345678.example"}})
    text = (tmp_path / "run.json").read_text()
    assert "abcdefgh12345678" not in text and json.loads(text)["config"]["token"] == "<hidden>"


# ---- the report ----


def test_the_report_shows_result_groups_notes_and_a_partial_end_first(tmp_path: Path):
    samples = [
        sample(index, (index + number) % 3 == 0, number=number, group="ab"[index % 2])
        for index in range(4)
        for number in range(2)
    ]
    RunFolder(tmp_path).write_eval(NAME, result(samples, requested=10), step=0)
    path = write_report(
        tmp_path, title="model | x", notes=["weights are *new*"], facts={"recipe": "r.yaml", "none": ""}
    )
    text = path.read_text()
    assert text.startswith("# model &#124; x\n\n**partial: 4 of 10 prompts (a random choice of them)**")
    assert "| group | accuracy | pass@2 | prompts |" in text and "- weights are &#42;new&#42;" in text
    assert "| recipe | r.yaml |" in text and "| none |" not in text
    assert "## Completions" in text and "question 0" in text


def test_a_single_group_needs_no_table():
    assert group_table(result([sample(0, True), sample(1, False)]).to_dict()) is None
