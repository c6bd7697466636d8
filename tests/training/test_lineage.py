"""A sequence of tasks end to end: matrix, lineage, reference, filter, another order; and the report on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.loader import load
from posttrain.config.stages import resolve_stages
from posttrain.errors import DataError, ResumeError
from posttrain.methods.rft_cpt.filter import filter_model
from posttrain.methods.rft_cpt.study import study_continual
from posttrain.reports.provenance import weights_sha256
from posttrain.reports.records import evaluation_seconds
from posttrain.reports.sequences import matrix_of
from posttrain.run import run
from posttrain.training.lineage import refuse_changed_order, write_outcome
from posttrain.training.resuming import refuse_other_origin
from tests.config.recipes import write
from tests.methods.rft_cpt.test_plan import recipe, task

RIGHT = '''
def right(prompts, completions, **columns):
    """About half of what an untrained model writes."""
    return [float(sum(map(ord, c[-1]["content"] if isinstance(c, list) else c)) % 2) for c in completions]
'''


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Two tasks by GRPO with the filter, and by SFT; the recipe's path and its values."""
    folder = tmp_path_factory.mktemp("continual")
    (folder / "rewards.py").write_text(RIGHT)
    tasks = [{**task(name, seed), "verifier": "rewards.py:right"} for seed, name in enumerate(("parity", "prime"), 1)]
    variants = [{"name": "rif", "paradigm": "grpo", "rif": {"num_rollouts": 2, "max_new_tokens": 4}}, "multitask_sft"]
    variants += ["single_sft"]
    values = recipe(tasks=tasks, paradigms=variants)
    values["trainer"] |= {"max_steps": 1, "save_strategy": "no"}
    del values["trainer"]["save_steps"]
    path = write(folder, json.loads(json.dumps(values)))
    run(path)
    return path, values


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_record_says_what_the_model_went_through(trained):
    root = trained[0].parent / "run"
    first, second = read(root / "rif-2-prime" / "run.json")["lineage"]
    assert [first["stage"], second["stage"]] == ["rif-1-parity", "rif-2-prime"]
    assert first["parent"] is None and second["parent"]["stage"] == "rif-1-parity"
    assert second["parent"]["sha256"] == weights_sha256(root / "rif-1-parity" / "model")
    assert second["order"] == ["parity", "prime"] and second["task"] == "prime" and second["method"] == "rft_cpt"
    assert second["rif"]["kept"] == second["data"]["rows"] < second["rif"]["rows"] == 32
    card = (root / "rif-2-prime" / "model" / "README.md").read_text()
    assert "rif-1-parity" in card and "Order of the tasks: parity, prime." in card


def test_another_order_is_refused(trained):
    path, values = trained
    tasks = list(reversed(values["stages"]["tasks"]))
    other = write(path.parent, {**values, "stages": {**values["stages"], "tasks": tasks}}, "other.yaml")
    with pytest.raises(ResumeError, match="begun with its tasks in another order"):
        run(other)
    copied = path.parent / "copied"
    shutil.copytree(path.parent / "run", copied)
    config = resolve_stages(load(other, [f"trainer.output_dir={copied}", "trainer.resume=never"]))[0][2]
    refuse_changed_order(config, Path(str(config.trainer.output_dir)))
    assert not list(copied.glob("rif-*/run.json")), "what was begun in the old order is set aside"
    again = resolve_stages(load(other, [f"trainer.output_dir={copied}"]))[0][2]
    refuse_changed_order(again, Path(str(again.trainer.output_dir)))


def test_a_stopped_stage_is_not_continued_from_another_training_of_its_parent(trained):
    stage = trained[0].parent / "run" / "rif-2-prime"
    checkpoint, now = stage / "checkpoint-1", read(stage / "run.json")["config"]
    refuse_other_origin(checkpoint, now)
    other = {**now, "start_from": {**now["start_from"], "run": "another"}}
    with pytest.raises(ResumeError, match="the parent stage was trained anew since this stage was begun"):
        refuse_other_origin(checkpoint, other)
    with pytest.raises(ResumeError, match="the reference stage was trained anew"):
        refuse_other_origin(checkpoint, {**now, "reference": {"model": "x", "run": "another"}})


def test_scores_of_different_settings_make_no_matrix(trained, tmp_path):
    root = shutil.copytree(trained[0].parent / "run", tmp_path / "run")
    own = read(root / "rif-2-prime" / "run.json")["lineage"][-1]
    assert matrix_of(root, own).tasks == ("parity", "prime")
    path = root / "rif-2-prime" / "eval.json"
    found = read(path)
    found["after"]["settings"]["temperature"] = 0.7
    path.write_text(json.dumps(found))
    with pytest.raises(DataError, match="rif-1-parity and rif-2-prime were evaluated with different settings: temp"):
        matrix_of(root, own)
    found["after"]["tasks"]["prime"]["partial"] = True
    path.write_text(json.dumps(found))
    with pytest.raises(DataError, match="ended by its time budget"):
        matrix_of(root, own)


def test_metrics_stand_beside_the_last_evaluation_and_in_the_report(trained):
    path, _ = trained
    root = path.parent / "run"
    after = read(root / "rif-2-prime" / "eval.json")["after"]
    assert set(after["tasks"]) == {"parity", "prime"}
    values = [after["tasks"][name]["accuracy"] for name in ("parity", "prime")]
    assert after["continual"]["average_accuracy"] == pytest.approx(sum(values) / 2)
    reports, report = study_continual(path, train=False)
    assert [item.name for item in reports] == ["rif"] and reports[0].metrics["intransigence"].value is not None
    alone = [read(root / f"single_sft-{place}" / "eval.json")["after"] for place in ("1-parity", "2-prime")]
    expected = tuple(found["tasks"][name]["accuracy"] for found, name in zip(alone, ("parity", "prime"), strict=True))
    assert reports[0].matrix.single == expected and "continual" not in alone[1]
    costs = reports[0].cost
    seconds = [
        evaluation_seconds(item)
        for stage in ("1-parity", "2-prime")
        for item in read(root / f"rif-{stage}" / "eval.json").values()
    ]
    assert costs["evaluation time"] == pytest.approx(sum(seconds)) and len(seconds) == 3
    text = report.read_text()
    assert "## multitask" in text and "| after all tasks together |" in text
    assert "| after prime |" in text and "general drift: nothing was evaluated" in text
    assert (root / "plots" / "continual.png").read_bytes()[:4] == b"\x89PNG"
    assert read(root / "continual_report.json")[0]["metrics"]["forgetting"]["value"] is not None


def test_a_missing_score_is_told_and_stops_nothing(trained, tmp_path):
    path, _ = trained
    shutil.copytree(path.parent / "run", tmp_path / "run")
    before = tmp_path / "run" / "rif-1-parity" / "eval.json"
    before.write_text(json.dumps({"after": read(before)["after"]}))
    config = resolve_stages(load(path))[1][2]
    told = write_outcome(config, tmp_path / "run" / "rif-2-prime")
    assert told is not None and "(stage, task) = ('before rif-1-parity', 'parity')" in told


def test_the_filter_is_not_made_twice_and_refuses_another_checkpoint(trained, capsys):
    path, _ = trained
    root = path.parent / "run"
    options = {"num_rollouts": 2, "max_new_tokens": 4}
    asked = {"recipe": path, "stage": "rif-2-prime", "output": path.parent / "filter", "options": options}
    first = filter_model(str(root / "rif-1-parity"), **asked)
    # The stage's own filter asked the same of the same model.
    assert first.counts == read(root / "rif-2-prime" / "rif" / "counts.json")["counts"]
    again = filter_model(str(root / "rif-1-parity"), **asked)
    assert again.num_tokens == first.num_tokens > 0 and again.indices == first.indices
    lines = (path.parent / "filter" / "kept.jsonl").read_text().splitlines()
    assert len(lines) == len(first.indices)
    with pytest.raises(ResumeError, match="another checkpoint"):
        filter_model(str(root / "rif-2-prime"), **asked)
