"""Every smoke recipe, end to end: what it leaves behind, and that a finished run is left alone.

Marked slow, and still part of every full run: `scripts/test.sh` without arguments runs this file after the others.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.run import run
from posttrain.training.stage import Outcome

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*/smoke.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.parent.name)
def test_smoke_recipe_leaves_a_model_and_its_story(recipe: Path, tmp_path: Path, capsys):
    overrides = [f"trainer.output_dir={tmp_path}"]
    outcomes = run(recipe, overrides)
    start = tmp_path / "initial" / "tiny" if len(outcomes) == 1 else outcomes[0].folder / "initial" / "tiny"
    for outcome in outcomes:
        _check_records(outcome)
        _check_model(outcome.model, start)
        start = outcome.model  # no plan here starts a stage from anything but the one before

    names = ("run.json", "metrics.jsonl", "finished.json", "REPORT.md", "model/model.safetensors")
    files = [outcome.folder / name for outcome in outcomes for name in names]
    before = [file.read_bytes() for file in files]
    capsys.readouterr()
    assert run(recipe, overrides) == outcomes
    assert capsys.readouterr().out.count("is finished; nothing to do") == len(outcomes)
    assert [file.read_bytes() for file in files] == before


def _check_records(outcome: Outcome) -> None:
    """Files that other programs may read."""
    folder = outcome.folder
    record = json.loads((folder / "run.json").read_text())
    trainer = record["config"]["trainer"]
    assert record["world"]["num_processes"] == 1
    assert record["seeds"] == {"trainer": trainer["seed"], "data": trainer["seed"]}
    assert record["versions"]["trl"] and record["defaults"]["dtype"] == "float32"
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps, every = trainer["max_steps"], trainer["logging_steps"]
    assert [event["step"] for event in events if "loss" in event] == list(range(every, steps + 1, every))
    assert json.loads((folder / "finished.json").read_text())["identity"]
    report = (folder / "REPORT.md").read_text()
    assert "plots/" in report
    if record["config"].get("eval") is None:
        assert (outcome.before, outcome.after) == (None, None) and not (folder / "eval.json").exists()
        return
    tasks = record["config"]["data"].get("eval_tasks") or {}
    assert "accuracy" in report and set(record["data"]) == {"train", "eval", *(f"task {name}" for name in tasks)}
    evaluations = json.loads((folder / "eval.json").read_text())
    assert evaluations["after"]["accuracy"] == outcome.after and evaluations["after"]["step"] == steps
    if record["config"]["eval"].get("at_start", True):
        assert evaluations["before"]["accuracy"] == outcome.before and evaluations["before"]["step"] == 0
    else:
        assert "before" not in evaluations and outcome.before is None


def _check_model(trained: Path, initial: Path) -> None:
    """The model loads without posttrain, generates, and is not the one it started from."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1+1=?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert model.generate(**prompt, max_new_tokens=2, do_sample=False).size(1) > prompt["input_ids"].size(1)
    start = AutoModelForCausalLM.from_pretrained(initial).state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in model.state_dict().items())


def test_a_full_run_includes_the_smoke_recipes():
    """Marked slow, they would be left out otherwise."""
    script = (ROOT / "scripts" / "test.sh").read_text()
    assert "-m slow\n" in script.split("if [ $# -eq 0 ]")[1]
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec bash scripts/test.sh"
