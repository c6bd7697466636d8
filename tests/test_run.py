"""Running a recipe: finished runs, starting anew, plans of several stages, and a user's mistakes on the shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from posttrain.cli import main
from posttrain.errors import ResumeError
from posttrain.run import run
from tests.config.recipes import GRPO, HPT, SFT, changed, write

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "data.train.options": {"digits": 1},
    "data.eval": None,
    "eval": None,
    "data.max_prompt_length": 64,
    "trainer.max_steps": 1,
    "trainer.save_strategy": "no",
}
FAST_GRPO = changed(GRPO, {**SMALL, "rollout.max_completion_length": 8})
FAST_SFT = changed(SFT, {**SMALL, "trainer.learning_rate": 0.01})


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def stage_plan(*stages: dict[str, Any]) -> dict[str, Any]:
    """Stages that share model and data."""
    shared = {block: FAST_GRPO[block] for block in ("model", "data")}
    return json.loads(json.dumps({**shared, "stages": list(stages)}))  # no object twice: a recipe has no aliases


def stage(name: str, recipe: dict[str, Any], **more: Any) -> dict[str, Any]:
    blocks = {key: recipe[key] for key in ("method", "trainer", "rollout") if recipe.get(key) is not None}
    return {"name": name, **blocks, "eval": None, **more}


# ---- finished runs ----


def test_a_finished_run_is_trained_again_only_on_demand_and_the_old_result_kept(tmp_path, capsys):
    recipe = write(tmp_path, changed(FAST_SFT, {"trainer.save_strategy": "steps"}))
    run(recipe)
    old = {name: (tmp_path / "run" / name).read_bytes() for name in ("metrics.jsonl", "finished.json")}
    first = weights(tmp_path / "run")
    run(recipe, ["trainer.resume=never", "trainer.learning_rate=0.02"])
    aside = tmp_path / "run" / "replaced-1"
    assert f"starting anew; the earlier run is now in {aside}" in capsys.readouterr().out
    assert weights(aside) == first != weights(tmp_path / "run")
    assert {name: (aside / name).read_bytes() for name in old} == old
    assert (aside / "checkpoint-1").is_dir() and (tmp_path / "run" / "checkpoint-1").is_dir()
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps[0] == 0 and steps.count(0) == 1  # one attempt: nothing of the earlier run


def test_a_result_is_not_overwritten_by_other_settings(tmp_path):
    recipe = write(tmp_path, FAST_SFT)
    run(recipe)
    before = weights(tmp_path / "run")
    with pytest.raises(ResumeError) as refused:
        run(recipe, ["trainer.learning_rate=0.02"])
    text = str(refused.value)
    assert str(tmp_path / "run") in text and "other settings" in text
    assert "trainer.output_dir" in text and "trainer.resume: never" in text
    assert weights(tmp_path / "run") == before


def test_what_the_result_does_not_depend_on_may_change(tmp_path, capsys):
    recipe = write(tmp_path, changed(FAST_SFT, {"eval": SFT["eval"], "data.eval": SFT["data"]["eval"]}))
    run(recipe)
    for override in ("trainer.logging_steps=5", "trainer.save_steps=7", "eval.num_prompts=2"):
        capsys.readouterr()
        run(recipe, [override])
        assert "is finished; nothing to do" in capsys.readouterr().out


def test_a_finished_run_that_lost_its_model_is_trained(tmp_path):
    recipe = write(tmp_path, changed(FAST_SFT, {"trainer.save_strategy": "steps"}))
    run(recipe)
    lost = tmp_path / "run" / "model"
    before = load_file(lost / "model.safetensors")
    lost.rename(tmp_path / "elsewhere")
    run(recipe)
    after = load_file(lost / "model.safetensors")
    assert all((before[name] == after[name]).all() for name in before)


# ---- stages ----


def test_a_plan_trains_what_is_missing_and_compares_variants_of_the_same_parent(tmp_path, capsys):
    evaluated = {"eval": {**GRPO["eval"]}, "data": {**FAST_GRPO["data"], "eval": GRPO["data"]["eval"]}}
    plan = stage_plan(
        stage("warm", FAST_SFT),
        stage("rl", FAST_GRPO, start_from="warm", **evaluated),
        stage("hybrid", {**FAST_GRPO, "method": HPT["method"]}, start_from="warm", **evaluated),
    )
    plan["stages"][2]["rollout"] = {**FAST_GRPO["rollout"], "max_completion_length": 64}
    recipe = write(tmp_path, {**plan, "trainer": {"output_dir": str(tmp_path / "plan")}})
    outcomes = run(recipe)
    root = tmp_path / "plan"
    assert [outcome.name for outcome in outcomes] == ["warm", "rl", "hybrid"]
    assert [outcome.folder for outcome in outcomes] == [root / name for name in ("warm", "rl", "hybrid")]
    # Both variants begin with the model the warm-up ended with, whatever the model block says.
    assert not (root / "rl" / "initial").exists()
    assert outcomes[1].before == outcomes[2].before is not None
    report = (root / "REPORT.md").read_text()
    assert "rl" in report and "hybrid" in report and f"report: {root / 'REPORT.md'}" in capsys.readouterr().out

    kept = {name: (root / name / "metrics.jsonl").read_bytes() for name in ("warm", "hybrid")}
    trained = weights(root / "rl")
    (root / "rl" / "finished.json").unlink()
    (root / "REPORT.md").unlink()
    run(recipe)
    shown = capsys.readouterr().out
    assert shown.count("is finished; nothing to do") == 2 and (root / "REPORT.md").exists()
    assert {name: (root / name / "metrics.jsonl").read_bytes() for name in kept} == kept
    assert weights(root / "rl") == trained

    # its parent is not the one it was trained from
    with pytest.raises(ResumeError, match=r"another parent or reference stage"):
        run(recipe, ["stages.0.trainer.resume=never"])


def test_a_stage_may_start_from_adapters(tmp_path):
    adapters = {**FAST_SFT["model"], "lora": {"rank": 2, "alpha": 4, "targets": ["q_proj", "v_proj"]}}
    plan = stage_plan(
        stage("warm", changed(FAST_SFT, {"trainer.max_steps": 3}), model=adapters),
        stage("rl", FAST_GRPO, start_from="warm"),
    )
    recipe = write(tmp_path, {**plan, "trainer": {"output_dir": str(tmp_path / "plan")}})
    warm, rl = run(recipe)
    assert (warm.model / "adapter_model.safetensors").is_file()
    name = "model.layers.0.self_attn.q_proj.weight"
    base = load_file(warm.folder / "initial" / "tiny" / "model.safetensors")[name]
    whole = load_file(rl.folder / "initial" / "merged" / "model.safetensors")[name]
    adapter = load_file(warm.model / "adapter_model.safetensors")
    down, up = (adapter[f"base_model.{'model.' + name.removesuffix('.weight')}.lora_{side}.weight"] for side in "AB")
    torch.testing.assert_close(whole, base + 4 / 2 * up @ down)
    assert up.any()
    assert not (rl.model / "adapter_config.json").exists() and AutoModelForCausalLM.from_pretrained(rl.model)


# ---- the shell ----


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainer.learning_rat=1", "learning_rate"),
        ("method.name=sfft", "sft"),
        ("trainer.resume=nowhere/checkpoint-1", "no such checkpoint"),
        ("data.train.task=no_such_task", "no_such_task"),
    ],
)
def test_a_mistake_ends_with_status_2_and_one_line(override, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["posttrain", "train", str(write(tmp_path, FAST_SFT)), override])
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capsys.readouterr()
    assert stopped.value.code == 2
    lines = [line for line in (shown.out + shown.err).splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and expected in lines[0]
    assert "Traceback" not in shown.err + shown.out
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_missing_recipe_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-m", "posttrain.run", str(tmp_path / "none.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and "none.yaml" in done.stderr
    bare = subprocess.run(command[:3], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert bare.returncode == 2 and bare.stderr.startswith("usage: ")
