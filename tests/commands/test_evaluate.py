"""`posttrain eval --recipe`: the same numbers as in training, from any saved model, and honest about the rest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain import cli
from posttrain.commands.evaluate import evaluate_model
from posttrain.config.loader import load_stage
from posttrain.config.verdict import verifier_sha256
from posttrain.errors import ConfigError, PosttrainError
from posttrain.reports.records import json_value
from posttrain.reports.run_report import RunFolder
from posttrain.run import run
from tests.config.recipes import GRPO, REMOVE, SFT, changed, numbered, rows_file, write

ROOT = Path(__file__).resolve().parents[2]
# A random model never adds up; whether its text has an even sum of characters is a verdict it sometimes meets.
VERDICT = """
def verdict(prompts, completions, **columns):
    values = [sum(map(ord, completion[0]["content"])) for completion in completions]
    return [None if value % 5 == 0 else float(value % 2) for value in values]
"""
CHANGES = {
    "trainer.max_steps": 2,
    "trainer.save_steps": 1,
    "trainer.learning_rate": 0.01,
    "data.train.options": {"digits": 1},
    "data.eval.options": {"digits": [2, 3]},
    "data.max_prompt_length": 64,
    "eval": {
        "num_prompts": 6,
        "num_generations": 3,
        "temperature": 1.0,
        "batch_size": 6,
        "max_new_tokens": 8,
        "every_steps": 1,
        "verifier": "verdict.py:verdict",
    },
}
RECIPES = {
    "policy": changed(
        GRPO, {**CHANGES, "rollout.max_completion_length": 8, "rollout.rewards": ["verdict.py:verdict"]}
    ),
    "adapter": changed(SFT, {**CHANGES, "model.lora": {"rank": 4}, "trainer.per_device_train_batch_size": 2}),
}


def prepare(folder: Path, values: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "verdict.py").write_text(VERDICT)
    return write(folder, values)


@pytest.fixture(scope="module", params=sorted(RECIPES))
def trained(request, tmp_path_factory) -> Path:
    """Recipe of a run of two steps that evaluated before, after the first step, and after."""
    recipe = prepare(tmp_path_factory.mktemp(request.param), RECIPES[request.param])
    run(recipe)
    return recipe


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    recipe = prepare(tmp_path_factory.mktemp("policy"), RECIPES["policy"])
    run(recipe)
    return recipe


def numbers_of(entry: dict[str, Any]) -> dict[str, Any]:
    """What an evaluation found, without the time it took and where it lies."""
    return {name: value for name, value in entry.items() if name not in ("seconds", "completions", "step", "settings")}


# ---- equal to the row in training ----


@pytest.mark.parametrize(("model", "row"), [("", "after"), ("model", "after"), ("checkpoint-1", "step-000001")])
def test_a_saved_model_gives_the_row_of_its_run(trained: Path, model: str, row: str):
    """An adapter too: it is kept beside its base, as in training."""
    folder = RunFolder(trained.parent / "run")
    done = evaluate_model(str(folder.path / model), recipe=trained)
    recorded = folder.read_evals()[row]
    assert 0 < recorded["accuracy"] < 1 and recorded["unscored"] > 0  # nothing trivial is compared
    assert numbers_of(json_value(done.result.to_dict(with_samples=False))) == numbers_of(recorded)
    assert json_value(done.result.samples) == folder.read_samples(row)
    assert done.notes == [f"equals the run's {row!r} row: the same 18 completions and verdicts"]
    assert RunFolder(done.folder).read_samples("evaluation") == folder.read_samples(row)


def test_the_starting_model_gives_the_row_before_training(policy: Path):
    folder = RunFolder(policy.parent / "run")
    done = evaluate_model(str(folder.path / "initial" / "tiny"), recipe=policy, output=policy.parent / "before")
    assert json_value(done.result.samples) == folder.read_samples("before")
    assert folder.read_samples("before") != folder.read_samples("after")


@pytest.mark.slow
def test_mixed_precision_is_that_of_the_training(tmp_path: Path):
    """In processes of their own, because accelerate keeps the precision of the first. Before and after alike."""
    recipe = prepare(tmp_path, changed(RECIPES["policy"], {"trainer.bf16": True, "eval.every_steps": REMOVE}))
    run_folder = tmp_path / "run"
    for arguments in (
        ["train", recipe],
        ["eval", run_folder, "--recipe", recipe],
        ["eval", run_folder / "initial" / "tiny", "--recipe", recipe, "--output", tmp_path / "before"],
    ):
        command = [sys.executable, "-m", "posttrain", *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    folder = RunFolder(run_folder)
    assert RunFolder(tmp_path / "before").read_samples("evaluation") == folder.read_samples("before")
    assert RunFolder(run_folder / "eval-recipe-model").read_samples("evaluation") == folder.read_samples("after")
    assert json.loads((tmp_path / "before" / "run.json").read_text())["evaluation"]["mixed_precision"] == "bf16"


@pytest.mark.slow
def test_two_processes_evaluate_together_and_speak_once(policy: Path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [str(ROOT / "accelerate_configs" / "ddp.yaml"), "--num_processes", "2", "-m", "posttrain", "eval"]
    output = policy.parent / "two"
    command += [str(policy.parent / "run"), "--recipe", str(policy), "--output", str(output)]
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.count("equals the run's 'after' row: the same 18 completions and verdicts") == 1
    assert json.loads((output / "run.json").read_text())["world"]["num_processes"] == 2


# ---- own settings, and what is told about them ----


def test_other_settings_are_compared_prompt_by_prompt_and_named(policy: Path):
    model = str(policy.parent / "run")
    done = evaluate_model(model, recipe=policy, overrides=["eval.seed=3", "eval.num_prompts=null"])
    assert done.result.num_prompts == 8
    (note,) = done.notes
    assert note.startswith("differs from the run's 'after' row by ") and " points on " in note
    assert "changed: eval.num_prompts: 6 -> None; eval.seed: 0 -> 3" in note


def test_other_rows_are_not_compared(policy: Path):
    done = evaluate_model(str(policy.parent / "run"), recipe=policy, overrides=["data.eval.seed=7"])
    assert done.notes == ["not compared with the run's 'after' row, which is about other evaluation rows"]


def test_pass_at_k_is_reported_for_all_and_for_each_group(policy: Path, capsys):
    done = evaluate_model(str(policy.parent / "run"), recipe=policy)
    assert sorted(done.result.pass_at_k) == [1, 2, 3]
    assert done.result.pass_at_k[1].value == done.result.accuracy
    assert list(done.result.per_group) == ["2 digits", "3 digits"]
    report = (done.folder / "REPORT.md").read_text()
    shown = capsys.readouterr().out
    for text in ("pass@2", "pass@3"):
        assert text in report and text in shown
    entry = RunFolder(done.folder).read_evals()["evaluation"]
    assert entry["pass_at_k"]["3"]["num_left_out"] > 0  # the verdict is missing on some completions
    assert "prompts with fewer than k verdicts are left out of pass@k" in report


def test_a_time_budget_gives_a_partial_result_marked_as_such(policy: Path, capsys):
    overrides = ["eval.time_budget_seconds=0.001", "eval.batch_size=3", "eval.num_prompts=null"]
    done = evaluate_model(str(policy.parent / "run"), recipe=policy, overrides=overrides)
    assert done.result.partial and done.result.num_prompts == 1
    told = "partial: 1 of 8 prompts (a random choice of them)"
    assert told in capsys.readouterr().out and told in (done.folder / "REPORT.md").read_text()
    assert RunFolder(done.folder).read_evals()["evaluation"]["partial"] is True


def test_the_record_says_what_was_evaluated_and_how(policy: Path):
    done = evaluate_model(str(policy.parent / "run"), recipe=policy)
    record = json.loads((done.folder / "run.json").read_text())
    file = policy.parent / "run" / "model" / "model.safetensors"
    digest = subprocess.run(["sha256sum", file], capture_output=True, text=True, check=True).stdout.split()[0]
    assert record["kind"] == "evaluation" and record["model"]["files"] == {"model.safetensors": digest}
    assert record["evaluation"]["verifier"] == "verdict.py:verdict"
    assert record["evaluation"]["settings"]["num_generations"] == 3
    run_record = RunFolder(policy.parent / "run").read_run()
    assert record["data"]["eval"] == run_record["data"]["eval"]
    assert record["evaluation"]["chat_template_sha256"] == run_record["chat_template_sha256"]
    assert record["versions"] == run_record["versions"]


def test_the_same_evaluation_replaces_itself_and_another_gets_a_folder_of_its_own(policy: Path):
    model = str(policy.parent / "run" / "checkpoint-2")
    first, again = (evaluate_model(model, recipe=policy).folder for _ in range(2))
    assert first == again == policy.parent / "run" / "eval-recipe-checkpoint-2"
    assert evaluate_model(model, recipe=policy, overrides=["eval.top_p=0.9"]).folder.name == f"{first.name}-2"
    with pytest.raises(ConfigError, match="another evaluation is in this folder"):
        evaluate_model(model, recipe=policy, overrides=["eval.top_p=0.8"], output=first)
    with pytest.raises(ConfigError, match="a run is in this folder"):
        evaluate_model(model, recipe=policy, output=policy.parent / "run")


def test_a_changed_reward_file_is_another_evaluation(tmp_path: Path):
    recipe = prepare(tmp_path, RECIPES["policy"])
    (_, before), *_ = load_stage(recipe, [], None)
    first = verifier_sha256(before)
    (tmp_path / "verdict.py").write_text(VERDICT + "# changed\n")
    assert first is not None and verifier_sha256(before) not in (first, None)
    (_, packaged), *_ = load_stage(recipe, ["eval.verifier=exact"], None)
    assert verifier_sha256(packaged) is None


def test_a_changed_reward_file_gets_a_folder_of_its_own(policy: Path):
    model, verdict = str(policy.parent / "run" / "checkpoint-1"), policy.parent / "verdict.py"
    first = evaluate_model(model, recipe=policy).folder
    verdict.write_text(VERDICT + "# changed\n")
    second = evaluate_model(model, recipe=policy).folder
    verdict.write_text(VERDICT)
    assert (second.name, evaluate_model(model, recipe=policy).folder) == (f"{first.name}-2", first)


@pytest.mark.parametrize(
    ("arguments", "told"), [(["m", "--nosuch", "1"], "--nosuch"), (["m"], "give either --recipe or --suite")]
)
def test_a_wrong_command_line_is_told_without_a_traceback(arguments: list[str], told: str, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["posttrain", "eval", *arguments])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert told in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    assert not capsys.readouterr().err


# ---- warnings ----


def test_a_changed_template_dtype_and_known_prompts_are_warned_of(policy: Path, tmp_path: Path, capsys):
    shutil.copytree(policy.parent / "run", tmp_path / "run")
    template = tmp_path / "run" / "model" / "chat_template.jinja"
    template.write_text(template.read_text() + "{# another #}")
    overrides = ["model.dtype=bfloat16", "data.eval.options.digits=1"]
    done = evaluate_model(str(tmp_path / "run"), recipe=policy, overrides=overrides)
    told = "\n".join(done.notes)
    assert "the model's chat template is not the one the run trained with" in told
    assert "the weights are held in bfloat16 here, in float32 when they were trained" in told
    assert "of 8 evaluation prompts are training prompts too (rows " in told
    shown, report = capsys.readouterr().out, (done.folder / "REPORT.md").read_text()
    assert shown.count("warning: ") == 3 and "of 8 evaluation prompts are training prompts too" in report


def test_outside_a_run_the_template_is_held_against_that_of_the_recipe(policy: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(policy.parent / "run" / "model", tmp_path / "moved")
    assert evaluate_model("moved", recipe=policy).notes == []
    template = tmp_path / "moved" / "chat_template.jinja"
    template.write_text(template.read_text() + "{# another #}")
    done = evaluate_model("moved", recipe=policy)
    assert "is not the one of the recipe's model" in done.notes[0]
    assert done.folder == Path("runs/eval/moved-recipe-2")  # other prompts: another evaluation


# ---- stages ----


def staged(folder: Path) -> Path:
    shared = {block: RECIPES["policy"][block] for block in ("model", "data", "eval")}
    blocks = {name: RECIPES["policy"][name] for name in ("method", "rollout", "trainer")}
    own = {**RECIPES["policy"]["eval"], "num_prompts": 4, "every_steps": None}
    stages = [{"name": "one", **blocks}, {"name": "two", "start_from": "one", **blocks, "eval": own}]
    return prepare(folder, json.loads(json.dumps({**shared, "stages": stages, "trainer": {}})))


def test_the_last_stage_is_the_default_and_overrides_reach_its_own_blocks(tmp_path: Path):
    recipe = staged(tmp_path)
    chain = load_stage(recipe, ["eval.top_p=0.5"], None)
    assert [name for name, _ in chain] == ["one", "two"]
    assert (chain[-1][1].eval.num_prompts, chain[-1][1].eval.top_p, chain[0][1].eval.top_p) == (4, 0.5, 1.0)
    chain = load_stage(recipe, ["eval.top_p=0.5"], "one")
    assert [name for name, _ in chain] == ["one"] and chain[0][1].eval.top_p == 0.5


def test_a_plan_is_evaluated_with_the_blocks_of_the_stage(tmp_path: Path):
    recipe = staged(tmp_path)
    run(recipe)
    for stage, count in (("one", 6), ("two", 4)):
        done = evaluate_model(str(tmp_path / "run"), recipe=recipe, stage=stage)
        assert done.result.num_prompts == count
        assert done.notes[-1].startswith("equals the run's 'after' row")
        assert done.folder == tmp_path / "run" / stage / f"eval-recipe-{stage}-model"


# ---- mistakes ----


@pytest.mark.parametrize(
    ("changes", "overrides", "told"),
    [
        ({"data.eval": None, "eval": None}, [], "the recipe names no rows to evaluate on"),
        ({}, ["eval.temperature=0"], "greedy completions of one prompt are all the same"),
        ({}, ["eval.num_generations=0"], "eval.num_generations"),
        ({}, ["eval.temprature=0.5"], "temperature"),
        ({}, ["eval.verifier=exactly"], "unknown reward"),
        ({"eval.verifier": "gone.py:verdict"}, [], "no such file"),
    ],
)
def test_a_recipe_that_cannot_evaluate_is_refused(policy: Path, tmp_path: Path, changes, overrides, told):
    recipe = prepare(tmp_path, changed(RECIPES["policy"], changes))
    with pytest.raises(PosttrainError, match=told):
        evaluate_model(str(policy.parent / "run"), recipe=recipe, overrides=overrides)


def test_a_recipe_without_a_verifier_is_refused(policy: Path, tmp_path: Path):
    recipe = prepare(tmp_path, changed(SFT, {"eval": None, "trainer.max_steps": 1}))
    with pytest.raises(ConfigError, match=r"no reward gives a verdict.*eval\.verifier=exact"):
        evaluate_model(str(policy.parent / "run"), recipe=recipe)


def test_a_wrong_stage_is_told_with_those_there_are(policy: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"--stage: the recipe has no stages \(got 'two'\)\. Leave it out"):
        evaluate_model(str(policy.parent / "run"), recipe=policy, stage="two")
    with pytest.raises(ConfigError, match=r"no such stage .*one of: one, two.*'two'"):
        evaluate_model(str(policy.parent / "run"), recipe=staged(tmp_path), stage="tow")


def test_rows_in_a_file_are_read_for_the_overlap(policy: Path, tmp_path: Path):
    recipe = prepare(
        tmp_path,
        changed(
            RECIPES["policy"],
            {
                "data.train": {"path": rows_file(tmp_path, numbered(20), "train.jsonl")},
                "data.eval": {"path": rows_file(tmp_path, numbered(4), "eval.jsonl")},
            },
        ),
    )
    done = evaluate_model(str(policy.parent / "run"), recipe=recipe, output=tmp_path / "result")
    assert "4 of 4 evaluation prompts are training prompts too" in done.notes[0]
