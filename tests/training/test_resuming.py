"""Runs that were stopped: which checkpoint they continue from, what is refused, and that the result is the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file

from posttrain.config.loader import load
from posttrain.errors import ResumeError
from posttrain.reports.provenance import template_sha256
from posttrain.reports.run_report import RunFolder
from posttrain.run import run
from posttrain.seam.checkpoint.manifest import seal
from posttrain.seam.checkpoint.resumed_settings import changed_beside
from posttrain.training.resuming import (
    changed_settings,
    choose_checkpoint,
    inputs,
    is_finished,
    mark_finished,
    no_room,
    set_aside,
    settings_beside,
)
from posttrain.training.stage import Stage
from tests.config.recipes import GRPO, HPT, SFT, changed, write

# Stops the run as a kill would, at the first call for which the file named in `stop` exists. It is called inside the
# training process (reward_workers 0): in a process of its own it could stop only that.
VERDICT = """
from pathlib import Path

HERE = Path(__file__).parent


def verdict(prompts, completions, **columns):
    stop = HERE / "stop"
    if stop.exists() and (HERE / stop.read_text()).exists():
        raise KeyboardInterrupt
    return [float(sum(map(ord, c[0]["content"])) % 2) for c in completions]
"""
CHANGES = {
    "trainer.max_steps": 6,
    "trainer.save_steps": 2,
    "trainer.learning_rate": 0.01,
    "trainer.lr_scheduler_type": "linear",
    "data.train.size": 8,  # epochs of 4 steps: the run is continued in its second
    "data.train.options": {"digits": 1},
    "data.max_prompt_length": 64,
    "eval.every_steps": 1,
    "eval.max_new_tokens": 8,
    "eval.temperature": 1.0,
}
RECIPES = {
    "hpt": changed(HPT, {**CHANGES, "rollout.rewards": ["verdict.py:verdict"], "rollout.reward_workers": 0}),
    "sft": changed(
        SFT,
        {
            **CHANGES,
            "trainer.per_device_train_batch_size": 2,
            "eval.verifier": "verdict.py:verdict",
            "eval.reward_workers": 0,
        },
    ),
}


def prepare(folder: Path, values: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "verdict.py").write_text(VERDICT)
    return write(folder, values)


def without_evaluation(values: dict[str, Any]) -> dict[str, Any]:
    return changed(values, {"eval": None, "data.eval": None})


def kill(recipe: Path, *, once_there_is: str, overrides: list[str] | None = None) -> None:
    """Run until a file of this name exists beside the recipe."""
    stop = recipe.parent / "stop"
    stop.write_text(once_there_is)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, overrides)
    stop.unlink()


@pytest.fixture(scope="module", params=sorted(RECIPES))
def killed(request, tmp_path_factory) -> tuple[str, Path]:
    """(method, folder) of a run of six steps that was killed between the checkpoints 4 and 6."""
    folder = tmp_path_factory.mktemp(request.param)
    kill(prepare(folder, RECIPES[request.param]), once_there_is="run/checkpoint-4/posttrain_complete.json")
    assert not (folder / "run" / "checkpoint-6").exists()
    return request.param, folder


@pytest.fixture(scope="module")
def whole(killed, tmp_path_factory) -> dict[str, Any]:
    """Weights of the uninterrupted run, which never evaluated."""
    folder = tmp_path_factory.mktemp("whole")
    run(prepare(folder, without_evaluation(RECIPES[killed[0]])))
    return load_file(folder / "run" / "model" / "model.safetensors")


def again(killed: tuple[str, Path], folder: Path) -> Path:
    """A copy of the killed run to be continued in `folder`."""
    shutil.copytree(killed[1] / "run", folder / "run")
    return prepare(folder, RECIPES[killed[0]])


def assert_bit_equal(folder: Path, whole: dict[str, Any]) -> None:
    weights = load_file(folder / "model" / "model.safetensors")
    assert weights.keys() == whole.keys()
    assert all((weights[name] == whole[name]).all() for name in whole)


# ---- continuing ----


def test_a_killed_run_ends_where_the_uninterrupted_one_does(killed, whole, tmp_path, capsys):
    """Bit-equal, although one was evaluated after every step, by sampling, and the other never."""
    recipe = again(killed, tmp_path)
    (outcome,) = run(recipe)
    assert f"continuing from {tmp_path / 'run' / 'checkpoint-4'}" in capsys.readouterr().out
    assert_bit_equal(outcome.folder, whole)
    assert outcome.before is not None and outcome.after is not None  # "before" is that of the first attempt
    steps = [event["step"] for event in RunFolder(outcome.folder).read_metrics() if "loss" in event]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["earlier_attempts"]) == 1


def test_a_checkpoint_that_was_not_written_to_the_end_is_passed_over(killed, whole, tmp_path, capsys):
    recipe = again(killed, tmp_path)
    torn = tmp_path / "run" / "checkpoint-4"
    (torn / "posttrain_complete.json").unlink()
    (torn / "model.safetensors").write_bytes(b"half")
    run(recipe)
    assert f"continuing from {tmp_path / 'run' / 'checkpoint-2'}" in capsys.readouterr().out
    assert_bit_equal(tmp_path / "run", whole)


def test_a_damaged_checkpoint_is_told_and_passed_over_and_refused_by_name(killed, whole, tmp_path, capsys):
    recipe = again(killed, tmp_path)
    newest = tmp_path / "run" / "checkpoint-4"
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "model.safetensors").write_bytes(content)
    with pytest.raises(ResumeError, match=r"damaged: the content of model.safetensors was changed"):
        run(recipe, [f"trainer.resume={newest}"])
    capsys.readouterr()
    run(recipe)
    shown = capsys.readouterr().out
    assert f"warning: {newest} is damaged (the content of model.safetensors was changed); it is passed over" in shown
    assert f"continuing from {tmp_path / 'run' / 'checkpoint-2'}" in shown
    assert_bit_equal(tmp_path / "run", whole)


def test_a_named_checkpoint_of_another_folder_continues_here(killed, whole, tmp_path, capsys):
    recipe = prepare(tmp_path, RECIPES[killed[0]])
    checkpoint = killed[1] / "run" / "checkpoint-2"
    run(recipe, [f"trainer.resume={checkpoint}"])
    assert f"continuing from {checkpoint}" in capsys.readouterr().out
    assert_bit_equal(tmp_path / "run", whole)


def test_changed_settings_are_listed(killed, tmp_path, capsys):
    recipe = again(killed, tmp_path)
    run(recipe, ["trainer.learning_rate=0.02", "eval.every_steps=null", "trainer.max_steps=5"])
    lines = capsys.readouterr().out.splitlines()
    listed = [line.strip() for line in lines if line.startswith("  changed since: ")]
    assert "changed since: trainer.learning_rate: 0.01 -> 0.02" in listed
    assert "changed since: trainer.max_steps: 6 -> 5" in listed
    assert any("eval.every_steps: 1 -> None" in line for line in listed)
    # Beside them only the folder, which the test copied, and the file by which its reward was told when to stop.
    assert {line.split(":")[1].strip() for line in listed} - {"reward_files.stop"} == {
        "trainer.learning_rate",
        "trainer.max_steps",
        "eval.every_steps",
        "trainer.output_dir",
    }


def test_a_run_started_anew_is_not_continued_from_the_old_checkpoints(killed, tmp_path, capsys):
    recipe = again(killed, tmp_path)
    kill(recipe, once_there_is="run/replaced-1", overrides=["trainer.resume=never"])
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert (tmp_path / "run" / "replaced-1" / "checkpoint-4").is_dir()
    capsys.readouterr()
    run(recipe, ["trainer.max_steps=1"])
    assert "continuing from" not in capsys.readouterr().out


# ---- refusals ----


@pytest.mark.parametrize("where", ["auto", "named"])
def test_other_data_are_refused(killed, where, tmp_path):
    if where == "auto":
        recipe, overrides = again(killed, tmp_path), ["data.train.seed=9"]
    else:
        recipe = prepare(tmp_path, RECIPES[killed[0]])
        overrides = ["data.train.seed=9", f"trainer.resume={killed[1] / 'run' / 'checkpoint-4'}"]
    with pytest.raises(ResumeError) as refused:
        run(recipe, overrides)
    text = str(refused.value)
    assert "the train data are not those of the run to continue" in text and "checkpoint-4" in text
    assert "trainer.resume: never" in text


def test_a_named_checkpoint_that_is_torn_is_refused(killed, tmp_path):
    recipe = again(killed, tmp_path)
    torn = tmp_path / "run" / "checkpoint-4"
    (torn / "posttrain_complete.json").unlink()
    with pytest.raises(ResumeError, match="not a complete checkpoint") as refused:
        run(recipe, [f"trainer.resume={torn}"])
    assert str(torn) in str(refused.value)


def test_another_layout_is_refused(killed, tmp_path):
    with pytest.raises(ResumeError, match="seed was 42, is 43"):
        run(again(killed, tmp_path), ["trainer.seed=43"])


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.tiny.hidden_size=16", r"model.tiny.hidden_size: \d+ -> 16"),
        ("data.max_prompt_length=63", "data.max_prompt_length: 64 -> 63"),
        ("trainer.optim=adafactor", "trainer.optim: adamw_torch.* -> adafactor"),
    ],
)
def test_a_refused_resume_leaves_the_record_of_what_trained(override, told, killed, tmp_path):
    recipe = again(killed, tmp_path)
    before = (tmp_path / "run" / "run.json").read_text()
    with pytest.raises(ResumeError, match="settings were changed that a run cannot change on its way: " + told):
        run(recipe, [override])
    assert (tmp_path / "run" / "run.json").read_text() == before


def test_run_json_says_what_trained_from_where(killed, tmp_path, capsys):
    run(again(killed, tmp_path), ["trainer.learning_rate=0.02", "trainer.weight_decay=0.5"])
    record = RunFolder(tmp_path / "run").read_run()
    assert record["resumed"]["step"] == 4 and record["config"]["trainer"]["learning_rate"] == 0.02
    assert record["resumed"]["in_force_from_then_on"] == [
        "trainer.learning_rate: 0.01 -> 0.02",
        "trainer.weight_decay: 0.0 -> 0.5",
    ]
    assert "in force from the next step on: trainer.learning_rate, trainer.weight_decay" in capsys.readouterr().out
    rates = [event["learning_rate"] for event in RunFolder(tmp_path / "run").read_metrics() if "loss" in event]
    assert rates[4:] == pytest.approx([0.02 * 2 / 6, 0.02 * 1 / 6])


# ---- the parts ----


def test_the_newest_complete_checkpoint_is_chosen_by_number(tmp_path):
    for step in (2, 10, 9, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if step != 12:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({"global_step": step}))
            seal(tmp_path / f"checkpoint-{step}", step=step)
    folder = RunFolder(tmp_path)
    assert choose_checkpoint("auto", folder, {}) == str(tmp_path / "checkpoint-10")
    assert choose_checkpoint("never", folder, {}) is None
    assert choose_checkpoint("auto", RunFolder(tmp_path / "none"), {}) is None


def test_a_folder_that_was_removed_is_told_and_nothing_else_is(tmp_path):
    missing = FileNotFoundError(2, "No such file or directory", str(tmp_path / "run" / "metrics.jsonl"))
    assert "the folder of the run was removed while it was running" in str(no_room(missing, tmp_path / "run"))
    (tmp_path / "run").mkdir()
    assert no_room(missing, tmp_path / "run") is None


def test_another_reward_under_the_same_name_is_named(tmp_path):
    recipe = write(tmp_path, changed(GRPO, {"rollout.rewards": ["mine.py:score", "exact"]}))
    found = []
    for value in (0.0, 0.0, 1.0):
        (tmp_path / "mine.py").write_text(f"def score(prompts, completions, **_):\n    return [{value}]\n")
        found.append(settings_beside(load(recipe), splits=()))
    assert changed_beside(found[0], found[1]) == []
    (line,) = changed_beside(found[0], found[2])
    assert line.startswith("SHA-256 of mine.py:score: ")


def test_a_finished_run_is_not_that_of_other_rows_or_rewards(tmp_path):
    rows, code = tmp_path / "rows.jsonl", tmp_path / "mine.py"
    rows.write_text('{"prompt": "a"}')
    code.write_text("def score(prompts, completions, **_):\n    return [0.0]\n")
    train = {"path": str(rows)}
    config = load(write(tmp_path, changed(GRPO, {"data.train": train, "rollout.rewards": ["mine.py:score"]})))
    (tmp_path / "done" / "model").mkdir(parents=True)
    mark_finished(tmp_path / "done", config, parent=None, made_from=inputs(config))

    def is_done() -> bool:
        return is_finished(tmp_path / "done", config, parent=None, reference=None)

    assert is_done()
    rows.write_text('{"prompt": "b"}')
    with pytest.raises(ResumeError, match="have changed since: .*rows.jsonl. .*trainer.resume: never"):
        is_done()
    rows.write_text('{"prompt": "a"}')
    assert is_done()
    code.write_text("def score(prompts, completions, **_):\n    return [1.0]\n")
    with pytest.raises(ResumeError, match="have changed since: mine.py:score"):
        is_done()


def test_changes_are_named_by_their_path():
    before = {"trainer": {"learning_rate": 0.1, "resume": "auto"}, "eval": None}
    now = {"trainer": {"learning_rate": 0.1, "resume": "never", "seed": 1}, "eval": {"seed": 0}}
    assert changed_settings(before, now) == ["eval.seed: None -> 0", "trainer.seed: None -> 1"]


def test_a_changed_template_of_the_model_is_another_run(tmp_path):
    config = load(write(tmp_path, SFT))
    known = [template_sha256(SimpleNamespace(chat_template=text)) for text in ("{{ a }}", "{{ b }}")]
    before, now = (settings_beside(config, splits=["train"], template_sha256=found) for found in known)
    assert [key for key in now if before[key] != now[key]] == ["sha256 of the model's chat template"]


def test_nothing_is_set_aside_where_nothing_is(tmp_path):
    (tmp_path / "initial").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert set_aside(tmp_path) is None
    for number in (1, 2):
        (tmp_path / "model").mkdir()
        (tmp_path / "eval-recipe-model").mkdir()  # of that model
        assert set_aside(tmp_path) == tmp_path / f"replaced-{number}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["initial", "notes.txt", "replaced-1", "replaced-2"]


def test_a_secret_from_the_environment_is_not_among_the_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_API_KEY", "verysecretvalue")
    values = changed(SFT, {"data.system_prompt": "${env:TEST_API_KEY}", "data.train.options": {"digits": [1, 2]}})
    now = Stage(load(write(tmp_path, values)), name="run").record()
    before = json.loads(json.dumps({**now, "trainer": {**now["trainer"], "max_steps": 9}}))
    assert "verysecretvalue" not in json.dumps(now)
    assert changed_settings(before, now) == ["trainer.max_steps: 9 -> 2"]
