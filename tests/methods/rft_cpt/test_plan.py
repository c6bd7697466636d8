"""The preset `continual` as stages: what each trains on, what it starts from, and every refusal by its message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.loader import load
from posttrain.config.presets import expand
from posttrain.config.stages import resolve_stages
from posttrain.errors import ConfigError
from tests.config.recipes import GRPO, write

OPTIONS = {"max_operand": 9}


def task(name: str, seed: int) -> dict[str, Any]:
    rows = {"task": "digit_class", "size": 32, "seed": seed, "options": {**OPTIONS, "rules": name, "split": "train"}}
    held_out = {**rows, "size": 8, "options": {**rows["options"], "split": "eval"}}
    return {"name": name, "train": rows, "eval": held_out, "verifier": "one_of"}


def recipe(**changes: Any) -> dict[str, Any]:
    stages = {"preset": "continual", "tasks": [task("parity", 1), task("prime", 2), task("half", 3)], **changes}
    blocks = {block: GRPO[block] for block in ("model", "trainer", "eval")}
    rollout = {"num_generations": 4, "max_completion_length": 4}
    values = {**blocks, "data": {"max_prompt_length": 200}, "rollout": rollout, "stages": stages}
    return json.loads(json.dumps(values))  # no object twice: a recipe has no aliases


def by_name(**changes: Any) -> dict[str, dict[str, Any]]:
    return {stage["name"]: stage for stage in expand(recipe(**changes))}


def test_each_variant_goes_through_the_tasks_in_order_and_every_stage_is_evaluated_on_all():
    base = {"name": "base", "method": {"name": "sft"}}
    stages = by_name(paradigms=["sft", "grpo"], before=[base], general={"digit": task("same", 4)["eval"]})
    assert list(stages) == [
        *("base", "sft-1-parity", "sft-2-prime", "sft-3-half"),
        *("grpo-1-parity", "grpo-2-prime", "grpo-3-half"),
    ]
    starts = [stage.get("start_from") for stage in stages.values()]
    assert starts == [None, "base", "sft-1-parity", "sft-2-prime", "base", "grpo-1-parity", "grpo-2-prime"]
    second = stages["grpo-2-prime"]
    assert second["data"]["train"] == task("prime", 2)["train"] and second["data"]["eval"] == task("prime", 2)["eval"]
    assert list(second["data"]["eval_tasks"]) == ["parity", "prime", "half", "digit"]
    assert second["data"]["eval_tasks"]["half"] == {**task("half", 3)["eval"], "verifier": "one_of"}
    assert second["lineage"] == {
        "preset": "continual",
        "variant": "grpo",
        "paradigm": "grpo",
        "task": "prime",
        "position": 2,
        "order": ["parity", "prime", "half"],
        "general": ["digit"],
        "reference_model": "initial",
    }
    assert [stages[name]["eval"]["at_start"] for name in ("sft-1-parity", "sft-2-prime")] == [True, False]


def test_the_row_before_training_is_measured_once_whatever_the_recipe_says():
    values = recipe(paradigms=["sft"])
    for written in (True, False):
        values["eval"]["at_start"] = written
        assert [stage["eval"]["at_start"] for stage in expand(values)] == [True, False, False]


def test_replay_of_nothing_is_plain_sft():
    stages = by_name(paradigms=["sft", {"name": "none", "paradigm": "replay_sft", "replay_fraction": 0}])
    for place in ("2-prime", "3-half"):
        assert stages[f"none-{place}"]["data"] == stages[f"sft-{place}"]["data"]


def test_all_tasks_together_take_nothing_of_one_task():
    values = recipe(paradigms=["multitask_sft"])
    values["stages"]["tasks"][2] |= {"trainer": {"learning_rate": 0.5}, "method": {"loss_aggregation": "x"}}
    (stage,) = expand(values)
    assert stage["trainer"]["max_steps"] == 3 * GRPO["trainer"]["max_steps"]
    assert stage["trainer"]["learning_rate"] != 0.5 and stage["method"]["loss_aggregation"] == "token_mean"
    del values["trainer"]["max_steps"]
    values["stages"]["tasks"][2]["trainer"] = {"num_train_epochs": 3}
    with pytest.raises(ConfigError, match="different numbers of epochs, so one stage has none"):
        expand(values)


def test_each_task_alone_starts_where_the_variants_start():
    stages = by_name(paradigms=["sft", "single_sft"], before=[{"name": "base"}])
    alone = [stage for name, stage in stages.items() if name.startswith("single_sft")]
    assert [stage["start_from"] for stage in alone] == ["base"] * 3
    assert [stage["lineage"]["apart"] for stage in alone] == ["single_sft"] * 3
    assert [stage["start_from"] for name, stage in stages.items() if name.startswith("sft")][1] == "sft-1-parity"
    assert "apart" not in stages["sft-1-parity"]["lineage"]


def test_the_reference_is_the_initial_model_the_one_before_or_none():
    initial = by_name(before=[{"name": "base"}])
    assert [stage.get("reference_from") for stage in initial.values()] == [None, None, "base", "base"]
    assert initial["grpo-1-parity"]["trainer"]["beta"] == 0.01
    assert by_name()["grpo-2-prime"]["reference_from"] == "model", "without stages before, the model block's"
    before = by_name(reference_model="previous_task", kl_coefficient=0.2)["grpo-2-prime"]
    assert "reference_from" not in before and before["trainer"]["beta"] == 0.2
    none = by_name(reference_model="none")["grpo-2-prime"]
    assert "reference_from" not in none and none["trainer"]["beta"] == 0.0


def test_paradigms_are_methods_and_data():
    names = ["grpo", "rloo", "remax", "rejection_sft", "replay_sft", "lora_sft", "multitask_sft"]
    stages = by_name(paradigms=names, replay_fraction=0.25, lora={"rank": 4})
    methods = {name: stages[f"{name}-2-prime"]["method"] for name in names if name != "multitask_sft"}
    estimators = [methods[name].get("advantage_estimator") for name in ("grpo", "rloo", "remax", "rejection_sft")]
    assert estimators == ["group_norm", "rloo", "remax", None] and methods["rejection_sft"]["update"] == "rejection"
    assert stages["rejection_sft-2-prime"]["trainer"]["beta"] == 0.0
    assert {methods[name]["name"] for name in ("replay_sft", "lora_sft")} == {"sft"}
    assert stages["lora_sft-2-prime"]["model"]["lora"] == {"rank": 4} and "model" not in stages["grpo-2-prime"]
    mixture = stages["replay_sft-3-half"]["data"]["train"]["mixture"]
    assert [(entry["name"], entry.get("replay_fraction")) for entry in mixture] == [
        ("half", None),
        ("parity", 0.25),
        ("prime", 0.25),
    ]
    together = stages["multitask_sft"]
    assert [entry["name"] for entry in together["data"]["train"]["mixture"]] == ["parity", "prime", "half"]
    assert together["trainer"]["max_steps"] == 3 * stages["grpo-1-parity"]["trainer"]["max_steps"]


def test_blocks_are_merged_from_recipe_kind_variant_and_task():
    tasks = [task("parity", 1), {**task("prime", 2), "trainer": {"max_steps": 9}}]
    variant = {"name": "slow", "paradigm": "sft", "trainer": {"learning_rate": 1e-5}}
    stages = by_name(
        tasks=tasks, paradigms=["grpo", variant], supervised={"trainer": {"per_device_train_batch_size": 2}}
    )
    slow = stages["slow-2-prime"]["trainer"]
    assert (slow["max_steps"], slow["learning_rate"], slow["per_device_train_batch_size"]) == (9, 1e-5, 2)
    assert stages["grpo-1-parity"]["trainer"]["per_device_train_batch_size"] == 8


def test_the_stages_are_a_recipe(tmp_path: Path):
    values = recipe(paradigms=["sft", "grpo", "rloo", "rejection_sft", "replay_sft", "lora_sft", "multitask_sft"])
    runs = resolve_stages(load(write(tmp_path, values), ["trainer.seed=7"]))
    assert len(runs) == 6 * 3 + 1
    for name, _, run in runs:
        assert run.trainer.output_dir == str(tmp_path / "run" / name) and run.trainer.seed == 7
        assert run.stage.lineage["order"] == ["parity", "prime", "half"]
    assert next(run for name, _, run in runs if name == "grpo-2-prime").stage.reference_from == "model"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": [task("parity", 1)]}, "continual training needs tasks"),
        ({"tasks": [task("parity", 1), task("parity", 2)]}, "two tasks have this name"),
        ({"tasks": [task("parity", 1), {**task("prime", 2), "eval": None}]}, "evaluated on rows of its own"),
        ({"tasks": [task("parity", 1), {**task("prime", 2), "tain": 1}]}, "unknown key"),
        ({"paradigms": ["grop"]}, "Perhaps you mean 'grpo'"),
        ({"paradigms": ["grpo", "grpo"]}, "two variants have this name"),
        ({"paradigms": ["replay_sft"], "replay_fraction": 1.5}, "the replayed part of earlier rows"),
        ({"reference_model": "first"}, "unknown reference"),
        ({"kl_coefficient": "abc"}, "stages.kl_coefficient: the weight of the divergence from the reference"),
        ({"lora": True}, "stages.lora: a block of keys is expected"),
        ({"general": ["x"]}, "stages.general: a block of keys is expected"),
        ({"policy": {"trainer": [1]}}, "stages.policy.trainer: a block of keys is expected"),
        ({"tasks": [task("parity", 1), {**task("prime", 2), "eval": "x"}]}, "stages.tasks.1.eval: a block of keys"),
        ({"paradigms": [{"name": "x", "paradigm": ["grpo"]}]}, "unknown paradigm"),
        ({"tasks": [{**task("parity", 1), "paradigm": "sfg"}, task("prime", 2)]}, "unknown paradigm"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path, recipe(**changes)))


def test_a_paradigm_that_learns_from_rollouts_needs_a_verifier():
    tasks = [task("parity", 1), {key: value for key, value in task("prime", 2).items() if key != "verifier"}]
    with pytest.raises(ConfigError, match="needs a verifier"):
        expand(recipe(tasks=tasks))


def test_the_initial_model_is_no_reference_once_adapters_were_merged():
    values = recipe()
    values["model"]["lora"] = {"rank": 4}
    with pytest.raises(ConfigError, match="an adapter is merged after each task"):
        expand(values)


@pytest.mark.parametrize(
    ("rif", "message"),
    [
        ({"min_correct": 9}, r"no row could be kept .*num_rollouts \(8\)"),
        ({"min_correct": 3, "max_correct": 2}, "no row could be kept"),
        ({"num_rollouts": 1}, "stages.0.rif.num_rollouts"),
    ],
)
def test_a_filter_that_can_keep_nothing_is_refused(tmp_path: Path, rif: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path, recipe(rif=rif)))
