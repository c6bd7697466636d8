"""Plans of several stages: replacement as a whole, folders, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.config.build import reward_scorer
from posttrain.config.loader import RecipeError, load, parse, resolve_stages
from posttrain.errors import ConfigError
from posttrain.rewards.limits import RewardLimits
from tests.config.recipes import GRPO, HPT, REMOVE, SFT, changed, write

WARM_UP = {"name": "warm_up", "method": {"name": "sft"}, "trainer": {"max_steps": 5, "learning_rate": 0.01}}
PLAN: dict[str, Any] = {
    **{block: GRPO[block] for block in ("model", "data", "rollout", "trainer", "eval")},
    "stages": [
        WARM_UP,
        {"name": "hpt", "start_from": "warm_up", "method": HPT["method"]},
        {"name": "grpo", "start_from": "warm_up", "method": GRPO["method"]},
    ],
}


def test_a_stage_replaces_blocks_as_a_whole(tmp_path: Path):
    runs = resolve_stages(load(write(tmp_path, PLAN)))
    assert [(name, start) for name, start, _ in runs] == [("warm_up", None), ("hpt", "warm_up"), ("grpo", "warm_up")]
    first, second = runs[0][2], runs[1][2]
    assert first.trainer.max_steps == 5 and second.trainer.max_steps == 2
    assert "per_device_train_batch_size" not in first.trainer.fields, "nothing of the recipe's trainer block remains"
    assert second.method.switch_gate == 0.0 and second.trainer.fields == runs[2][2].trainer.fields


def test_each_stage_has_a_folder_below_the_recipes(tmp_path: Path):
    cfg = load(write(tmp_path, PLAN), ["trainer.resume=never"])
    assert cfg.trainer.output_dir == str(tmp_path / "run")
    for name, _, run in resolve_stages(cfg):
        assert run.trainer.output_dir == str(tmp_path / "run" / name) and run.trainer.resume == "never"


def test_a_named_checkpoint_is_continued_by_its_own_stage_alone(tmp_path: Path):
    checkpoint = tmp_path / "run" / "hpt" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "posttrain_complete.json").write_text('{"files": {}}')
    cfg = load(write(tmp_path, PLAN), [f"trainer.resume={checkpoint}"])
    found = {name: run.trainer.resume for name, _, run in resolve_stages(cfg)}
    assert found == {"warm_up": "auto", "hpt": str(checkpoint), "grpo": "auto"}
    elsewhere = tmp_path / "other" / "hpt" / "checkpoint-2"
    elsewhere.mkdir(parents=True)
    with pytest.raises(ConfigError, match="not a checkpoint of a stage of this recipe"):
        load(write(tmp_path, PLAN), [f"trainer.resume={elsewhere}"])


def test_no_stage_is_called_by_the_word_for_the_recipes_model(tmp_path: Path):
    with pytest.raises(ConfigError, match="reference_from means the recipe's model by this word"):
        load(write(tmp_path, {**PLAN, "stages": [{**WARM_UP, "name": "model"}]}))


def test_a_supervised_stage_takes_only_the_verdict_from_a_shared_rollout_block(tmp_path: Path):
    first = resolve_stages(load(write(tmp_path, PLAN)))[0][2]
    assert first.rollout is None
    assert first.eval is not None and first.eval.verifier == "exact" and first.eval.max_new_tokens == 64
    assert first.eval.num_prompts == 4


@pytest.mark.parametrize("memory", [2**30, None])
def test_a_supervised_stage_is_evaluated_under_the_limits_of_a_shared_rollout_block(
    tmp_path: Path, memory: int | None
):
    limits = {
        "reward_workers": 1,
        "reward_timeout_seconds": 4.5,
        "reward_memory_bytes": memory,
        "reward_network": True,
        "reward_environment": ["JUDGE_KEY"],
        "reward_processes": 3,
    }
    plan = changed(PLAN, {f"rollout.{name}": value for name, value in limits.items()})
    plan["stages"] = [plan["stages"][0], {**plan["stages"][2]}]
    (_, _, first), (_, _, second) = resolve_stages(load(write(tmp_path, plan)))
    assert first.rollout is None
    found = [reward_scorer(run, "exact", evaluation=True).limits for run in (first, second)]
    assert found == [RewardLimits(1, 4.5, memory, True, ("JUDGE_KEY",), 3)] * 2
    assert reward_scorer(second, "exact").limits == found[0]


def test_a_recipe_without_stages_is_one_run(tmp_path: Path):
    cfg = load(write(tmp_path, GRPO))
    assert [(name, start, run is cfg) for name, start, run in resolve_stages(cfg)] == [("run", None, True)]


def test_the_folder_is_named_after_the_recipe_unless_written(tmp_path: Path):
    path = write(tmp_path, {**GRPO, "trainer": {**GRPO["trainer"], "output_dir": "x"}}, "first_try.yaml")
    assert load(path).trainer.output_dir == "x"
    path.write_text(path.read_text().replace("  output_dir: x\n", ""))
    assert load(path).trainer.output_dir == "runs/first_try"


def test_evaluation_is_on_where_there_are_rows_for_it():
    assert parse(changed(GRPO, {"eval": REMOVE})).eval is not None
    assert parse(changed(GRPO, {"eval": None})).eval is None
    assert parse(changed(GRPO, {"eval": REMOVE, "data.eval": REMOVE})).eval is None


def test_fields_not_written_read_as_the_defaults_of_the_class():
    cfg = parse(SFT)
    assert cfg.trainer.weight_decay == 0.0 and cfg.method.demonstration_column == "solution"
    assert "weight_decay" not in cfg.trainer.fields
    with pytest.raises(AttributeError):
        cfg.trainer.wait_decay  # noqa: B018


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": []}, "stages: a list of stages is expected"),
        ({"stages": {"a": 1}}, "stages: a list of stages is expected"),
        ({"stages.0.nam": "x"}, "stages.0.nam: unknown key"),
        ({"stages.0.name": "a/b"}, "stages.0.name"),
        ({"stages.0.name": "hpt"}, "stages.1.name: two stages have this name (got 'hpt'"),
        ({"stages.1.start_from": "warmup"}, "stages.1.start_from: not the name of an earlier stage (got 'warmup'"),
        ({"stages.1.start_from": "grpo"}, "stages.1.start_from: not the name of an earlier stage"),
        ({"stages.0.trainer.output_dir": "x"}, "stages.0.trainer.output_dir: a stage writes to a folder of its name"),
        ({"stages.0.trainer.max_stps": 3}, "stages.0.trainer.max_stps: unknown key"),
        ({"stages.1.method": {"name": "hpt", "switch_gate": 2.0}}, "stages.1.method.switch_gate: out of range"),
        ({"method": {"name": "grpo"}}, "method: no stage reads this block"),
        ({"hub": {"push": True, "repo_id": "a/b"}}, "hub.push: the stages would push over each other"),
        ({"trainr": {}}, "trainr: unknown key"),
        ({"model": REMOVE}, "model: the block model is missing"),
        ({"trainer.bta": 0.1}, "trainer.bta: unknown key"),
    ],
)
def test_a_plan_that_is_refused(tmp_path: Path, changes: dict[str, Any], words: str):
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, changed(PLAN, changes)))
    assert words in str(caught.value)
    assert "recipe.yaml" in str(caught.value)


def test_all_mistakes_are_told_at_once(tmp_path: Path):
    mistakes = {"trainer.seed": -1, "model.dtype": "fp32", "data.train.sise": 2, "rollout.top_p": 0, "evl": {}}
    with pytest.raises(RecipeError) as caught:
        load(write(tmp_path, changed(GRPO, mistakes)))
    lines = str(caught.value).splitlines()
    assert len(caught.value.errors) == len(lines) == 5
    for path in ("trainer.seed", "model.dtype", "data.train.sise", "rollout.top_p", "evl"):
        assert sum(path in line for line in lines) == 1
