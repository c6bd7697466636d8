"""From run folders to results: the folders are written here as finished runs leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import DataError
from posttrain.reports.records import json_value, write_json, write_jsonl
from posttrain.reports.run_report import RunFolder
from posttrain.reproduce.collect import collect
from posttrain.reproduce.plan import Plan, make_plan
from posttrain.reproduce.report import write_report
from posttrain.reproduce.results import StudyResult
from tests.config.recipes import changed
from tests.reproduce.studies import CLAIMS, RECIPE, study_folder

TRAINER = RECIPE["trainer"]
# What two steps of two prompts (four rollouts each) and of two demonstrations count.
POLICY = {"cost/prompts": 4, "cost/generated_tokens": 160}
SUPERVISED = {"cost/demonstrations": 4, "cost/demonstration_tokens": 20}
COSTS: dict[str, dict[str, float]] = {"warm_up": {"cost/demonstrations": 8}, "grpo": POLICY, "hpt": POLICY}
GIT = {"commit": "a" * 40, "dirty": False}
AFTER = {
    "step": 2,
    "num_prompts": 8,
    "num_requested": 8,
    "num_samples": 32,
    "unscored": 0,
    "failed": 0,
    "accuracy": 0.5,
    "accuracy_stderr": 0.1,
    "pass_at_k": {"1": {"value": 0.5, "stderr": 0.1}, "4": {"value": 0.75, "stderr": 0.2}},
    "per_group": {"1.5 digits": {"num_prompts": 8, "accuracy": 0.25, "accuracy_stderr": 0.1}},
    "partial": False,
    "seconds": 1.0,
}


def finished(root: Path, *, recipe: dict | None = None, claims: dict | None = None, costs: dict | None = None) -> Plan:
    """A study all of whose stages have the files of a finished run."""
    path = study_folder(root, recipe=changed(RECIPE, recipe or {}), claims=changed(CLAIMS, claims or {}))
    plan = make_plan("hpt", path, output=root / "out")
    for run in plan.runs:
        for name, _, config in run.stages:
            folder = RunFolder(run.stage_folder(name))
            record = {"config": json_value(config.values), "versions": {"torch": "2.13.0"}, "git": GIT, "world": {}}
            write_json(folder.run_path, record)
            write_json(folder.eval_path, {"after": AFTER})
            counters, steps = {**COSTS, **(costs or {})}[name], plan.steps[name]
            write_jsonl(
                folder.metrics_path,
                [
                    {"event": "log", "step": step, "elapsed_seconds": float(step), "gate/sft_fraction": 1 / step}
                    | {counter: total * step / steps for counter, total in counters.items()}
                    for step in range(1, steps + 1)
                ],
            )
    return plan


def collected(plan: Plan) -> StudyResult:
    return collect(plan, jobs=1, device="cpu")


def edit(plan: Plan, stage: str, change: dict[str, Any], *, seed: int = 0, file: str = "eval") -> None:
    """Change the final evaluation (or run.json) of one stage of one seed."""
    folder = RunFolder(plan.runs[seed].stage_folder(stage))
    if file == "run":
        write_json(folder.run_path, changed(folder.read_run(), change))
    else:
        write_json(folder.eval_path, {"after": changed(folder.read_evals()["after"], change)})


def sft_variants() -> dict[str, Any]:
    """SFT, and SFT before GRPO, as variants beside GRPO and HPT."""
    rows = {**TRAINER, "per_device_train_batch_size": 2}
    stages = [
        *RECIPE["stages"],
        {"name": "sft", "start_from": "warm_up", "method": {"name": "sft"}, "trainer": rows},
        {"name": "half", "start_from": "warm_up", "method": {"name": "sft"}, "trainer": {**rows, "max_steps": 1}},
        {"name": "rest", "start_from": "half", "method": {"name": "grpo"}, "trainer": {**TRAINER, "max_steps": 1}},
    ]
    half = {
        "half": {name: total / 2 for name, total in SUPERVISED.items()},
        "rest": {name: total / 2 for name, total in POLICY.items()},
    }
    return {
        "recipe": {"stages": stages},
        "claims": {"variants": ["grpo", "hpt", "sft", "rest"]},
        "costs": {"sft": SUPERVISED, **half},
    }


def test_a_change_leaves_out_what_was_logged_in_the_warm_up(tmp_path):
    """In the warm-up the value is 1 by definition: the fall from there is none of the curve's."""
    plan = finished(tmp_path, claims={"claims.1.after_step": 4})
    for run in plan.runs:
        folder = RunFolder(run.stage_folder("hpt"))
        values = [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25, 0.75, 0.5, 0.5]
        lines = [{**folder.read_metrics()[0], "step": n, "gate/sft_fraction": v} for n, v in enumerate(values, 1)]
        write_jsonl(folder.metrics_path, lines)
    ends = [seed.changes for variant in collected(plan).variants if variant.stage == "hpt" for seed in variant.seeds]
    assert {(end.first, end.last, end.num_values) for found in ends for end in found.values()} == {(0.5, 0.5, 8)}


def test_a_row_trained_on_is_a_prompt(tmp_path):
    """A supervised trainer counts demonstrations and no prompts; its prompts are those rows."""
    plan = finished(tmp_path, **sft_variants())
    result = collected(plan)
    variants = {variant.stage: variant for variant in result.variants}
    counted = {
        stage: {
            (seed.trained_prompts, seed.generated_tokens, seed.demonstrations, seed.demonstration_tokens)
            for seed in variant.seeds
        }
        for stage, variant in variants.items()
    }
    assert counted == {
        "grpo": {(4, 160, 0, 0)},
        "hpt": {(4, 160, 0, 0)},
        "sft": {(4, 0, 4, 20)},
        "rest": {(4, 80, 2, 10)},
    }
    assert {variant.prompts for variant in variants.values()} == {4.0}
    assert "as planned" not in write_report(plan, result).read_text()


def test_prompts_that_were_not_drawn_are_said(tmp_path):
    variants = sft_variants()
    variants["costs"]["sft"] = {**SUPERVISED, "cost/demonstrations": 3}
    plan = finished(tmp_path, **variants)
    assert "sft drew 3 prompts as counted, 4 as planned" in write_report(plan, collected(plan)).read_text()


def test_a_stage_without_counters_leaves_them_unknown(tmp_path):
    plan = finished(tmp_path, costs={"grpo": {}})
    grpo = collected(plan).variants[0]
    assert {seed.trained_prompts for seed in grpo.seeds} == {None} == {seed.demonstrations for seed in grpo.seeds}


def test_completions_without_a_verdict_are_stored_and_said(tmp_path):
    plan = finished(tmp_path)
    result = collected(plan)
    assert [(seed.unscored, seed.failed) for seed in result.variants[1].seeds] == [(0, 0)] * 3
    assert "Every completion of the final evaluations has a verdict." in write_report(plan, result).read_text()
    edit(plan, "hpt", {"unscored": 5}, seed=2)
    result = collected(plan)
    assert [(seed.unscored, seed.failed) for seed in result.variants[1].seeds] == [(0, 0), (0, 0), (5, 0)]
    text = "left out of the numbers: HPT, gate 0, seed 2: 5 (0 because the verifier failed)."
    assert text in write_report(plan, result).read_text()


def test_no_results_from_an_evaluation_whose_verifier_failed(tmp_path):
    plan = finished(tmp_path)
    edit(plan, "hpt", {"unscored": 5, "failed": 3}, seed=1)
    with pytest.raises(DataError) as refused:
        collected(plan)
    said = str(refused.value)
    assert "variant hpt, seed 1: the verifier failed on 3 completions" in said
    assert "seed-1/hpt/eval.json" in said and "delete the folder, and call the same command" in said


def test_every_stage_of_an_variant_is_among_the_environments(tmp_path):
    """Shared preparation and the first half of a variant too: what they ran with is in the results as well."""
    plan = finished(tmp_path, **sft_variants())
    (only,) = collected(plan).environments
    assert only.num_runs == 3 * 6
    assert "No single commit" not in write_report(plan, collected(plan)).read_text()
    edit(plan, "half", {"git": {"commit": "b" * 40, "dirty": False}}, file="run")
    edit(plan, "warm_up", {"git": {**GIT, "dirty": True}}, seed=2, file="run")
    result = collected(plan)
    assert sorted((item.git["commit"][0], item.git["dirty"], item.num_runs) for item in result.environments) == [
        ("a", False, 16), ("a", True, 1), ("b", False, 1),
    ]  # fmt: skip
    report = write_report(plan, result).read_text()
    assert "the results are from a tree with uncommitted changes, of 2 commits." in report


def test_what_a_stopped_stage_ran_with_is_among_the_environments(tmp_path):
    plan = finished(tmp_path)
    stopped = {"versions": {"torch": "2.12.0"}, "git": GIT, "world": {}}
    edit(plan, "hpt", {"earlier_attempts": [stopped, stopped]}, file="run")
    found = {item.versions["torch"]: item.num_runs for item in collected(plan).environments}
    assert found == {"2.12.0": 1, "2.13.0": 3 * 3}


@pytest.mark.parametrize(
    ("metric", "value"), [("pass@4", 0.75), ("pass_at_k.4", 0.75), ("per_group.1.5 digits.accuracy", 0.25)]
)
def test_a_study_is_decided_on_any_number_that_was_planned(tmp_path, metric, value):
    sampled = {"eval.num_generations": 4, "eval.temperature": 1.0}
    result = collected(finished(tmp_path, recipe=sampled, claims={"metric": metric}))
    assert {variant.spread.mean for variant in result.variants} == {value}
    assert "points" in result.claims[0].decision.sentence
