"""The health monitor on real training: what it says, what it writes, what it keeps when a run goes on."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainerControl, TrainerState, TrainingArguments

from posttrain.run import run
from posttrain.training.callbacks.health import HealthMonitor
from posttrain.training.callbacks.health_checks import HealthLimits
from tests.config.recipes import GRPO, SFT, changed, write

GIB = 1024**3


class LoggingTrainer(Trainer):
    """Adds what a run with rollouts would log."""

    extra: dict = {}

    def log(self, logs, start_time=None):
        super().log({**logs, **(self.extra if "loss" in logs else {})}, start_time)


def train(model_dir, folder, *, steps=6, extra=None, resume=None, **monitor):
    ids = torch.arange(8) % 5 + 4
    said = []
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=2,
        logging_steps=1,
        save_steps=2,
        save_strategy="steps",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    health = HealthMonitor(folder / "health.json", say=said.append, **monitor)
    trainer = LoggingTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_dir),
        args=arguments,
        train_dataset=[{"input_ids": ids, "labels": ids} for _ in range(32)],
        callbacks=[health],
    )
    trainer.extra = extra or {}
    trainer.train(resume_from_checkpoint=resume)
    return said, folder / "health.json"


def read(path):
    return json.loads(path.read_text())


LIMITS = HealthLimits(sustained_steps=3)
TRUNCATED = {"rollout/truncated_fraction": 0.5}


def test_a_condition_is_said_once_and_kept_with_its_step(tiny_dir, tmp_path):
    said, path = train(tiny_dir, tmp_path, extra=TRUNCATED, limits=LIMITS)
    assert len(said) == 1 and said[0].startswith("warning, step 3 (since step 1): 50% of the completions are cut off")
    (warning,) = read(path)["warnings"]
    assert (warning["check"], warning["step"], warning["since_step"]) == ("truncation", 3, 1)
    assert said[0].endswith(warning["text"])


def test_the_file_says_which_checks_applied_and_where_the_thresholds_lie(tiny_dir, tmp_path):
    _, path = train(tiny_dir, tmp_path, extra={"reward": 0.5, "reward_std": 0.1})
    record = read(path)
    active = {name for name, state in record["checks"].items() if state == "active"}
    assert active == {"no_reward_spread", "zero_gradient", "gradient_spike", "slow_steps", "disk"}
    assert record["checks"]["log_prob_mismatch"] == (
        "not applicable: not logged so far: sampling/sampling_logp_difference/mean"
    )
    assert record["warnings"] == [] and record["limits"]["truncated_fraction"] == 0.2


def test_a_resumed_run_keeps_its_warnings_and_does_not_repeat_them(tiny_dir, tmp_path):
    train(tiny_dir, tmp_path, steps=4, extra=TRUNCATED, limits=LIMITS)
    said, path = train(
        tiny_dir, tmp_path, steps=8, extra=TRUNCATED, limits=LIMITS, resume=str(tmp_path / "checkpoint-4")
    )
    assert said == [] and [item["step"] for item in read(path)["warnings"]] == [3]


def test_a_warning_from_steps_that_were_lost_may_come_again(tiny_dir, tmp_path):
    train(tiny_dir, tmp_path, steps=4, extra=TRUNCATED, limits=LIMITS)
    said, path = train(
        tiny_dir, tmp_path, steps=8, extra=TRUNCATED, limits=LIMITS, resume=str(tmp_path / "checkpoint-2")
    )
    # The window begins anew at step 3.
    assert len(said) == 1 and [item["step"] for item in read(path)["warnings"]] == [5]


def test_a_new_run_in_the_folder_begins_without_the_old_warnings(tiny_dir, tmp_path):
    train(tiny_dir, tmp_path, extra=TRUNCATED, limits=LIMITS)
    said, path = train(tiny_dir, tmp_path)
    assert said == [] and read(path)["warnings"] == []


def test_other_processes_write_and_say_nothing(tmp_path):
    said = []
    health = HealthMonitor(tmp_path / "health.json", say=said.append, limits=LIMITS)
    state = TrainerState(is_world_process_zero=False, is_local_process_zero=True)
    arguments = TrainingArguments(output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True)
    health.on_train_begin(arguments, state, TrainerControl())
    for state.global_step in range(1, 6):
        health.on_log(arguments, state, TrainerControl(), logs={"loss": 1.0, **TRUNCATED})
    health.on_train_end(arguments, state, TrainerControl())
    assert said == [] and not health.path.exists()


# ---- disk ----


def needed_before_the_first_checkpoint(tiny_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_dir)
    return 12 * sum(parameter.numel() for parameter in model.parameters())  # float32 weights, Adam's two moments


def test_little_disk_space_is_told_before_the_first_step(tiny_dir, tmp_path):
    needed = needed_before_the_first_checkpoint(tiny_dir)
    said, path = train(tiny_dir, tmp_path, free=lambda _: int(2.9 * needed))
    assert [item["check"] for item in read(path)["warnings"]] == ["disk"]
    assert len(said) == 1 and "trainer.save_total_limit" in said[0]
    assert said[0].startswith("warning, step 0: 0.0 GiB are free in ")
    other = tmp_path / "enough"
    assert train(tiny_dir, other, free=lambda _: 3 * needed + 10_000_000)[0] == []


def test_disk_space_that_runs_out_is_told_once_more(tiny_dir, tmp_path):
    """The size of the last checkpoint counts once there is one."""
    needed = needed_before_the_first_checkpoint(tiny_dir)
    left = iter([2 * needed] * 4 + [1000] * 100)
    said, path = train(tiny_dir, tmp_path, free=lambda _: next(left))
    assert [(item["check"], item["step"]) for item in read(path)["warnings"]] == [("disk", 0), ("disk_full", 4)]
    assert "the run will fail there" in said[1] and len(said) == 2


def test_the_size_of_the_last_checkpoint_is_the_measure(tiny_dir, tmp_path):
    train(tiny_dir, tmp_path, steps=2)
    size = sum(path.stat().st_size for path in (tmp_path / "checkpoint-2").rglob("*") if path.is_file())
    resume = str(tmp_path / "checkpoint-2")
    said, _ = train(tiny_dir, tmp_path, steps=3, resume=resume, free=lambda _: 3 * size - 1)
    assert len(said) == 1 and f"needs about {size / GIB:.1f} GiB" in said[0]


# ---- in a recipe ----


@pytest.mark.parametrize(("base", "rollouts"), [(GRPO, True), (SFT, False)], ids=["grpo", "sft"])
def test_a_run_leaves_its_health_and_shows_it(base, rollouts, tmp_path):
    small = {"data.train.options": {"digits": 1}, "trainer.save_strategy": "no", "trainer.max_steps": 2}
    run(write(tmp_path, changed(base, small)))
    record = read(tmp_path / "run" / "health.json")
    assert (record["checks"]["dead_groups"] == "active") == rollouts
    assert (record["checks"]["entropy_collapse"] == "active") == rollouts
    assert record["checks"]["slow_steps"] == record["checks"]["disk"] == "active"
    report = (tmp_path / "run" / "REPORT.md").read_text()
    assert "\n## Warnings\n\nNone.\n" in report


def test_a_run_that_starts_anew_puts_the_old_health_aside(tmp_path):
    recipe = write(tmp_path, changed(SFT, {"trainer.save_strategy": "no", "eval": None, "data.eval": None}))
    run(recipe)
    run(recipe, ["trainer.resume=never"])
    assert (tmp_path / "run" / "replaced-1" / "health.json").exists() and (tmp_path / "run" / "health.json").exists()
