"""`posttrain eval --suite unlearning`: a model that knows, one that does not, and what the verb refuses."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from posttrain import cli
from posttrain.errors import ConfigError, DataError, SupportError
from posttrain.methods.unlearning_paths.suite import evaluate_unlearning, read_result
from posttrain.reports.records import read_metrics
from posttrain.run import run
from tests.config.recipes import SFT, changed, checked, told, write


def facts(name: str, size: int = 8) -> dict:
    options = {"set": name, "attributes": ["genre", "job"], "num_paraphrases": 2, "num_perturbed": 3}
    return {"task": "fictitious_authors", "size": size, "seed": 1, "options": options}


def recipe(folder: Path, **changes) -> Path:
    folder.mkdir(exist_ok=True)
    probes = {name: facts(name) for name in ("forget", "retain", "holdout")}
    data = {"train": facts("forget"), "probes": probes, "max_prompt_length": 64}
    trainer = {"max_steps": 60, "learning_rate": 3e-3, "save_strategy": "no", "use_cpu": True}
    trainer |= {"per_device_train_batch_size": 8, "lr_scheduler_type": "constant", "logging_steps": 20}
    evaluation = {"max_new_tokens": 40, "probe_every_steps": 25}
    values = changed(SFT, {"data": data, "trainer": trainer, "eval": evaluation, **changes})
    return write(folder, values)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that learnt the forget set, with the log of how it did."""
    folder = tmp_path_factory.mktemp("trained")
    path = recipe(folder)
    run(path)
    return path, folder / "run"


def test_training_logs_what_the_model_thinks_of_the_answers(trained):
    _, folder = trained
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    curve = {line["step"]: line for line in lines if "answers/forget_logp" in line}
    assert list(curve) == [0, 25, 50, 60]
    assert curve[60]["answers/forget_logp"] > curve[0]["answers/forget_logp"] + 2
    assert curve[60]["answers/forget_logp"] > curve[60]["answers/holdout_logp"] + 0.1
    assert "answers/retain_paraphrases_logp" in curve[0]
    # The measurements take nothing from the training's own log.
    logged = [line for line in lines if "loss" in line]
    assert [line["step"] for line in logged] == [20, 40, 60] and all("answers/forget_logp" not in e for e in logged)
    assert set(json.loads((folder / "run.json").read_text())["data"]) >= {"train", "probe forget", "probe holdout"}


def test_probing_does_not_change_the_training(trained, tmp_path):
    _, folder = trained
    path = recipe(tmp_path, **{"eval": None, "data.eval": None})
    run(path)
    assert (tmp_path / "run/model/model.safetensors").read_bytes() == (folder / "model/model.safetensors").read_bytes()


def test_a_run_that_goes_on_measures_what_it_would_have(tmp_path):
    changes = {"trainer.max_steps": 6, "trainer.save_strategy": "steps", "trainer.save_steps": 3}
    path = recipe(tmp_path, **changes, **{"eval.probe_every_steps": 2})
    run(path)
    folder = tmp_path / "run"
    whole = [event for event in read_metrics(folder / "metrics.jsonl") if "answers/forget_logp" in event]
    (folder / "finished.json").unlink()
    shutil.rmtree(folder / "checkpoint-6")
    run(path)
    again = [event for event in read_metrics(folder / "metrics.jsonl") if "answers/forget_logp" in event]
    assert [event["step"] for event in again] == [event["step"] for event in whole] == [0, 2, 4, 6]
    assert [event["answers/forget_logp"] for event in again] == [event["answers/forget_logp"] for event in whole]


def test_the_suite_tells_a_model_that_knows_from_one_that_does_not(trained, tmp_path, monkeypatch, capsys):
    path, folder = trained
    blank = folder / "initial" / "tiny"
    before = evaluate_unlearning(str(folder), recipe=path, output=tmp_path / "before")
    assert before.metrics["forget_quality"].value is None and before.metrics["membership_auc"].value > 0.8
    assert before.metrics["forget.probability"].value > before.metrics["holdout.probability"].value
    evaluate_unlearning(str(blank), recipe=path, output=tmp_path / "retrained")
    arguments = [
        "eval",
        str(blank),
        "--suite",
        "unlearning",
        "--recipe",
        str(path),
        "--output",
        str(tmp_path / "after"),
    ]
    arguments += ["--against", str(tmp_path / "before"), "--reference", str(tmp_path / "retrained")]
    monkeypatch.setattr(sys, "argv", ["posttrain", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert "forget quality" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "after" / "unlearning.json").read_text())
    metrics = {name: item["value"] for name, item in numbers["metrics"].items()}
    # The blank model is the retrained one, bit for bit.
    assert metrics["forget_quality"] == 1 and metrics["privacy_leakage"] == 0
    assert metrics["forget_score"] > 2 and metrics["kept_utility"] < 0
    assert metrics["model_utility"] is None and "real_authors" in numbers["metrics"]["model_utility"]["reason"]
    assert numbers["sets"] == {"forget": 8, "retain": 8, "holdout": 8}
    report = (tmp_path / "after" / "REPORT.md").read_text()
    assert "Forget quality 1" in report and "plots/unlearning.png" in report and "Not computed" in report
    assert json.loads((tmp_path / "after" / "run.json").read_text())["kind"] == "evaluation"
    rows = read_result(tmp_path / "after", "--against")
    assert rows is not None and rows["forget"][0]["logp"] < -1 and rows["forget"][0]["completion"] is not None
    # The same again is the same folder; another model is not written over it.
    again = evaluate_unlearning(str(folder), recipe=path, output=tmp_path / "before")
    assert again.metrics == before.metrics
    with pytest.raises(ConfigError, match="another evaluation is in this folder"):
        evaluate_unlearning(str(blank), recipe=path, output=tmp_path / "before")


def test_what_the_verb_refuses(trained, tmp_path, monkeypatch):
    path, folder = trained
    with pytest.raises(DataError, match="--against: no result of unlearning metrics in this folder"):
        evaluate_unlearning(str(folder), recipe=path, against=tmp_path)
    bare = write(tmp_path, SFT)
    with pytest.raises(ConfigError, match="data.probes: the recipe names no rows to measure. Write data.probes"):
        evaluate_unlearning(str(folder), recipe=bare)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SupportError, match="a suite runs in one process"):
        evaluate_unlearning(str(folder), recipe=path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "unlearning"], "--suite unlearning needs --recipe"),
        (
            ["--suite", "unlearning", "--recipe", "r.yaml", "--limit", "3"],
            "--limit does not go with --suite unlearning",
        ),
        (["--suite", "arc_easy", "--reference", "x"], "--reference goes with --suite unlearning"),
    ],
)
def test_options_that_do_not_go_together(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["posttrain", "eval", "model", *arguments])
    with pytest.raises(SystemExit):
        cli.main()
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval.probe_every_steps": 2}, "eval.probe_every_steps: there are no rows to measure. Write data.probes"),
        ({"data.probes": {"one": {"task": "arithmetic"}}}, "data.probes.one.size: generated rows need a number"),
        ({"data.probes": {"one": {"task": "woven_text", "size": 4, "format": "text"}}}, "have no answer to measure"),
    ],
)
def test_probes_are_checked_before_training(changes, message, tmp_path):
    if "answer" in message:  # known when the rows are made
        assert message in told(checked(tmp_path, "sft", changes), DataError)
        return
    with pytest.raises(ConfigError, match=re.escape(message)):
        checked(tmp_path, "sft", changes)
