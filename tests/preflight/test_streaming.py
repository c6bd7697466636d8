"""`data.train.streaming` in a recipe: what `check` tells and refuses, what a run records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from posttrain.cli import app
from posttrain.data.tasks.markov_text import generate
from posttrain.errors import DataError, PosttrainError, ResumeError, SupportError
from posttrain.methods.aioli.fidelity import fidelity
from posttrain.methods.aioli.sweep import MixRecipe
from posttrain.methods.rft_cpt.filter import filter_model
from posttrain.run import run
from tests.config.recipes import BASES, changed, checked, rows_file, told, write

VALIDATION = {
    "mixture": [
        {"name": name, "task": "markov_text", "size": 8, "seed": 2, "format": "text", "options": {"groups": [name]}}
        for name in ("easy", "hard")
    ]
}


def mixture(folder: Path, *, rows: int = 30, **entry) -> list[dict]:
    found = []
    for name in ("easy", "hard"):
        path = folder / f"{name}.jsonl"
        texts = [row["prompt"] for row in generate(rows, seed=1, groups=[name])]
        path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
        found.append({"name": name, "path": str(path), "format": "text", **entry})
    return found


def recipe(parts: list[dict], **train) -> dict:
    return {"data.train": {"streaming": True, "mixture": parts, **train}, "data.validation": VALIDATION}


def test_check_reads_the_first_rows_and_says_so(tmp_path: Path):
    report = checked(tmp_path, "aioli", recipe(mixture(tmp_path)))
    assert report.ok, report.lines()
    text = "\n".join(report.facts)
    assert "2 streams, easy, hard: the first 200 rows of each are checked here, the others when they are drawn" in text
    assert "2 optimizer steps of 8 rows, drawn from streams" in text


def test_check_finds_what_is_wrong_in_the_first_rows(tmp_path: Path):
    parts = mixture(tmp_path)
    (tmp_path / "hard.jsonl").write_text('{"prompt": "good"}\n{"prompt": ""}\n')
    message = told(checked(tmp_path, "aioli", recipe(parts)), DataError)
    assert "hard.jsonl, row 1, column 'prompt': the text is empty" in message
    parts = mixture(tmp_path)
    parts[0]["columns"] = {"prompt": "text"}
    assert "no such column" in told(checked(tmp_path, "aioli", recipe(parts)), DataError)


def test_every_row_is_read_if_that_is_asked_for(tmp_path: Path):
    parts = mixture(tmp_path, rows=230)
    late = (tmp_path / "hard.jsonl").read_text().splitlines()
    (tmp_path / "hard.jsonl").write_text(
        "\n".join([*late[:210], '{"prompt": ""}', '{"prompt": "' + "x " * 400 + '"}'])
    )
    path = write(tmp_path, changed(BASES["aioli"], recipe(parts)))
    assert checked(tmp_path, "aioli", recipe(parts)).ok
    result = CliRunner().invoke(app, ["check", str(path), "--all-rows"])
    shown = " ".join(result.output.split())
    assert result.exit_code == 2, result.output
    assert "easy: all 230 rows can be trained" in shown
    assert "2 of 212 rows would stop the run (rows 210, 211): the text is empty or no text (got 'hard')" in shown


def test_validation_on_the_very_rows_of_training_is_refused(tmp_path: Path):
    parts = mixture(tmp_path)
    changes = recipe(parts) | {"data.validation": {"mixture": json.loads(json.dumps(parts))}}
    with pytest.raises(PosttrainError, match="data.validation: these are the very rows of training"):
        checked(tmp_path, "aioli", changes)


def test_what_needs_all_rows_is_refused_or_says_what_it_saw(tmp_path: Path):
    parts = mixture(tmp_path)
    rows = [{"prompt": f"x {n}", "answer": "1"} for n in range(3)]
    own = {"data.eval": {"path": rows_file(tmp_path, rows, "eval.jsonl")}, "data.train": recipe(parts)["data.train"]}
    own |= {"data.validation": VALIDATION, "trainer.save_strategy": "no", "eval.num_prompts": 3}
    path = write(tmp_path, changed(BASES["aioli"], own))
    outcome = run(path)[0]
    with pytest.raises(SupportError, match="data.train.streaming: rows of a stream are not there to choose from"):
        filter_model(str(outcome.folder / "model"), recipe=path)
    with pytest.raises(SupportError, match="every branch would train the same rows"):
        fidelity(MixRecipe(path, ["method.controller=aioli"]), repeats=2)
    done = CliRunner().invoke(app, ["eval", str(outcome.folder / "model"), "--recipe", str(path)])
    assert done.exit_code == 0, done.output
    page = next((outcome.folder).glob("eval-*/REPORT.md"))
    assert "the first 60 rows of the streams alone were compared with the prompts" in page.read_text()


def test_groups_of_other_names_are_refused_by_check(tmp_path: Path):
    changes = recipe(mixture(tmp_path)) | {"method.groups": ["easy", "odd"]}
    assert "these are not the sources of the mixture" in told(checked(tmp_path, "aioli", changes), PosttrainError)


A = {"name": "a", "path": "rows.jsonl"}
REFUSED = [
    ("sft", recipe([A]), "data.train.streaming: rows of a stream are drawn group by group"),
    ("aioli", {"data.train.streaming": True}, "data.train.streaming: a row's group is not known before it is read"),
    ("aioli", {"data.validation.streaming": True}, "data.validation.streaming: these rows are read again and again"),
    ("aioli", recipe([A], mixing="concat_shuffle"), "mixing: the method decides which stream a row is from"),
    ("aioli", recipe([{"name": "a", "task": "markov_text", "size": 4}]), "generated rows are not read as a stream"),
    ("aioli", recipe([{**A, "fraction": 0.5}]), "mixture.0.fraction: a stream has no known number of rows"),
    ("aioli", recipe([{**A, "max_rows": 5}]), "mixture.0.max_rows: a stream has no known number of rows"),
    ("aioli", recipe([{**A, "repeat": 2}]), "mixture.0.repeat: a stream has no known number of rows"),
    ("aioli", recipe([A]) | {"trainer.packing": True}, "trainer.packing: rows are packed before training"),
    ("aioli", recipe([A]) | {"trainer.dataloader_num_workers": 2}, "a stream is read by the process that trains"),
    ("aioli", recipe([A]) | {"data.overlong_prompts": "drop"}, "data.overlong_prompts: which row of a stream comes"),
    ("aioli", recipe([A]) | {"method.controller": "natural"}, "method.controller: proportions by the number of rows"),
]


@pytest.mark.parametrize(("method", "changes", "message"), REFUSED, ids=[case[2][:50] for case in REFUSED])
def test_refusals(method, changes, message, tmp_path: Path, monkeypatch):
    from posttrain.config.loader import load

    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(PosttrainError) as caught:
        load(write(tmp_path, changed(BASES[method], changes)))
    assert message in str(caught.value)


def test_rows_of_the_hub_without_a_commit_are_warned_about(tmp_path: Path, monkeypatch):
    """The rows themselves are local here; the recipe names the Hub."""
    from posttrain.preflight import mixture as checks_mixture

    parts = mixture(tmp_path)
    monkeypatch.setattr(checks_mixture, "is_local", lambda path: "easy" not in path)
    report = checked(tmp_path, "aioli", recipe(parts))
    message = told(report, DataError, warning=True)
    assert "mixture.0.revision: rows of the Hub may change during the run or while it is stopped" in message
    parts[0]["revision"] = "a" * 40
    assert not checked(tmp_path, "aioli", recipe(parts)).warnings


def test_a_run_records_its_streams_and_refuses_to_go_on_with_others(tmp_path: Path):
    changes = recipe(mixture(tmp_path)) | {"eval": None, "data.eval": None}
    outcome = run(write(tmp_path, changed(BASES["aioli"], changes)))[0]
    record = json.loads((outcome.folder / "run.json").read_text())
    assert record["data"]["train"]["rows"] is None and len(record["data"]["train"]["sha256"]) == 64
    assert record["config"]["data"]["train"]["streaming"] is True

    (outcome.folder / "finished.json").unlink()
    mixture(tmp_path, rows=31)
    longer = write(tmp_path, changed(BASES["aioli"], changes | {"trainer.max_steps": 4}))
    with pytest.raises(ResumeError, match="the train data are not those of the run to continue"):
        run(longer)
