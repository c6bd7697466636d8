"""Every smoke recipe, end to end: what it leaves behind, and that a finished run is left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.run import run

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*/smoke.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.parent.name)
def test_smoke_recipe_leaves_a_model_and_its_story(recipe: Path, tmp_path: Path, capsys):
    overrides = [f"trainer.output_dir={tmp_path}"]
    (outcome,) = run(recipe, overrides)
    assert outcome.folder == tmp_path
    steps = _check_records(tmp_path, outcome)
    _check_model(outcome.model, tmp_path / "initial" / "tiny")
    assert all(text in (tmp_path / "REPORT.md").read_text() for text in ("accuracy", "plots/", "before", "after"))

    names = ("run.json", "metrics.jsonl", "eval.json", "REPORT.md", "model/model.safetensors")
    before = {name: (tmp_path / name).read_bytes() for name in names}
    capsys.readouterr()
    assert run(recipe, overrides) == [outcome]
    assert "is finished; nothing to do" in capsys.readouterr().out
    assert {name: (tmp_path / name).read_bytes() for name in names} == before
    assert steps == json.loads((tmp_path / f"checkpoint-{steps}" / "trainer_state.json").read_text())["global_step"]


def _check_records(folder: Path, outcome) -> int:
    """Files other programs may read; returns the number of optimizer steps."""
    record = json.loads((folder / "run.json").read_text())
    assert record["world"]["num_processes"] == 1
    assert set(record["data"]) == {"train", "eval"}
    assert record["config"]["trainer"]["output_dir"] == str(folder)
    assert record["seeds"] == {"trainer": 0, "data": 0}
    assert record["versions"]["trl"] and record["defaults"]["dtype"] == "float32"
    evaluations = json.loads((folder / "eval.json").read_text())
    assert [evaluations["before"]["accuracy"], evaluations["after"]["accuracy"]] == [outcome.before, outcome.after]
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [event["step"] for event in events if "loss" in event]
    steps = record["config"]["trainer"]["max_steps"]
    assert logged == list(range(1, steps + 1))
    assert evaluations["after"]["step"] == steps and evaluations["before"]["step"] == 0
    assert json.loads((folder / "finished.json").read_text())["identity"]
    return steps


def _check_model(trained: Path, initial: Path) -> None:
    """The model loads without posttrain, generates, and is not the one it started from."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+1=?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert model.generate(**prompt, max_new_tokens=2, do_sample=False).size(1) > prompt["input_ids"].size(1)
    start = AutoModelForCausalLM.from_pretrained(initial).state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in model.state_dict().items())
