"""What the console shows of a real run: plain lines in a file, a bar on a terminal, and why a batch taught nothing."""

import io
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainerControl, TrainerState, TrainingArguments

from posttrain.console import clock
from posttrain.training.callbacks.progress import RichProgress, replace_printing, why_no_gradient

POLICY = {
    "reward": 0.4125,
    "rollout/accuracy": 0.25,
    "gate/sft_fraction": 0.5,
    "groups/all_wrong": 0.5,
    "groups/all_correct": 0.125,
    "groups/mixed": 0.375,
    "groups/unverified": 0.0,
    "rollout/truncated_fraction": 0.0625,
    "completions/mean_length": 37.25,
    "update/gradient_rows": 0.75,
}
DEAD = POLICY | {
    "groups/mixed": 0.0,
    "groups/all_wrong": 0.75,
    "groups/all_correct": 0.25,
    "update/gradient_rows": 0.0,
}


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


class LoggingTrainer(Trainer):
    """Logs given metrics beside its own."""

    metrics = ({},)

    def log(self, logs, start_time=None):
        if "loss" in logs:
            number = self.state.global_step
            logs |= self.metrics[(number - 1) % len(self.metrics)] | {"num_tokens": number * 1000.0}
        super().log(logs, start_time)


@pytest.fixture
def run(tiny_dir, tmp_path):
    def train(stream, *, metrics=({},), steps=4, logging_steps=1, **options):
        ids = torch.arange(8) % 5 + 4
        trainer = LoggingTrainer(
            model=AutoModelForCausalLM.from_pretrained(tiny_dir),
            args=TrainingArguments(
                output_dir=str(tmp_path), max_steps=steps, per_device_train_batch_size=2, logging_steps=logging_steps,
                report_to=[], use_cpu=True, save_strategy="no",
            ),
            train_dataset=[{"input_ids": ids, "labels": ids} for _ in range(16)],
        )  # fmt: skip
        trainer.metrics = metrics
        replace_printing(trainer, RichProgress(stream=stream, **options))
        trainer.train()
        return stream.getvalue()

    return train


def test_plain_output_is_one_line_a_log_with_the_numbers_that_matter(run, capfd):
    lines = run(io.StringIO(), metrics=(POLICY,)).splitlines()
    assert len(lines) == 5
    step = re.fullmatch(
        r"step 3/4 \| left 0:0\d \| [\d.]+k? tokens/s \| accuracy 0\.25 \| all wrong 0\.5 \| mixed 0\.375 \| "
        r"all correct 0\.125 \| demonstrations 0\.5 \| gradient rows 0\.75 \| truncated 0\.0625 \| length 37\.2",
        lines[2],
    )
    assert step, lines[2]
    assert re.fullmatch(r"trained 4 steps in 0:\d\d", lines[4])
    assert "\x1b" not in "".join(lines)
    # Neither the bar nor the dictionary of transformers.
    captured = capfd.readouterr()
    assert "'loss'" not in captured.out + captured.err and "4/4" not in captured.out + captured.err


def test_supervised_training_shows_its_loss_and_policy_training_does_not(run):
    assert re.search(r"\| loss \d\.\d+", run(io.StringIO(), steps=1))
    assert "loss" not in run(io.StringIO(), metrics=(POLICY,), steps=1)


@pytest.mark.parametrize(
    ("metrics", "verifier", "shown"),
    [
        ({"reward": 0.5, "rewards/exact/mean": 0.25}, "exact", "reward 0.5"),
        ({"rewards/exact/mean": 0.25}, "exact", "reward 0.25"),
        ({"rollout/accuracy": 0.125, "reward": 0.5}, None, "accuracy 0.125"),
    ],
)
def test_the_outcome_is_the_verdict_if_known(run, metrics, verifier, shown):
    assert f"| {shown}\n" in run(io.StringIO(), metrics=(metrics,), verifier=verifier, steps=1)


def test_a_dead_batch_says_that_its_gradient_is_zero_and_why(run):
    lines = run(io.StringIO(), metrics=(POLICY, DEAD), steps=2).splitlines()
    assert lines[2] == (
        "step 2: the gradient of this batch is exactly zero, nothing is learned from it: in every group all "
        "completions have the same outcome (all wrong 0.75, all correct 0.25). Easier prompts, demonstrations or more "
        "completions per prompt would help."
    )
    assert "exactly zero" not in lines[0]


def test_a_real_policy_run_with_one_reward_for_all_is_called_dead(tiny_dir, tiny_tokenizer, tmp_path):
    """The names of the seam's metrics are the ones shown here."""
    from datasets import Dataset

    from posttrain import PolicyConfig, PolicyTrainer

    stream = io.StringIO()
    trainer = PolicyTrainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_dir),
        args=PolicyConfig(
            output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, num_generations=4, logging_steps=1,
            max_completion_length=4, use_cpu=True, bf16=False, report_to=[], save_strategy="no",
        ),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "1+1="}]}] * 4),
        reward_funcs=[lambda completions, **columns: [0.0] * len(completions)],
        processing_class=tiny_tokenizer,
    )  # fmt: skip
    replace_printing(trainer, RichProgress(stream=stream))
    trainer.train()
    first, second, _ = stream.getvalue().splitlines()
    for shown in ("accuracy 0 ", "all wrong 1 ", "mixed 0 ", "gradient rows 0 ", "truncated ", "length "):
        assert f"| {shown}" in first + " "
    assert "step 1: the gradient of this batch is exactly zero" in second and "(all wrong 1, all correct 0)" in second


def test_a_dead_stretch_between_two_logs_is_named_by_its_steps(run):
    text = run(io.StringIO(), metrics=(DEAD,), steps=4, logging_steps=2)
    assert "\nsteps 3 to 4: the gradient of this batch is exactly zero" in text


@pytest.mark.parametrize(
    ("logs", "reason"),
    [
        (
            DEAD | {"groups/all_wrong": 0.0, "groups/all_correct": 1.0},
            r"\(all wrong 0, all correct 1\)\. Harder prompts",
        ),
        (DEAD | {"groups/unverified": 0.5, "groups/all_wrong": 0.25}, r"all correct 0\.25, not verified 0\.5\)"),
        (DEAD | {"groups/mixed": 0.25, "groups/all_wrong": 0.5}, r"some groups are mixed \(0\.25\), but .* masked or"),
        ({}, "every row has weight zero"),
    ],
)
def test_the_reason_follows_the_groups(logs, reason):
    assert re.search(reason, why_no_gradient(logs))


def test_a_terminal_gets_a_bar_with_the_numbers_and_lines_above_it(run):
    text = run(Terminal(), metrics=(POLICY, DEAD), steps=2, name="[stage]")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert plain != text and "━" in plain and "2/2" in plain
    # The last number of the line: nothing is cut off by the width of the terminal.
    assert re.search(r"accuracy 0\.25 .*length\s+37\.2", plain, re.DOTALL)
    assert "[[stage]] step 2: the gradient of this batch is exactly zero" in plain.replace("\n", " ")
    assert "\x1b[?25h" in text  # the cursor is given back


def test_a_bar_that_was_interrupted_can_be_closed():
    stream = Terminal()
    progress = RichProgress(stream=stream)
    arguments = TrainingArguments(output_dir="unused", report_to=[], use_cpu=True)
    progress.on_train_begin(arguments, TrainerState(max_steps=5), TrainerControl())
    progress.close()
    progress.close()
    assert stream.getvalue().endswith("\x1b[?25h")


def test_only_the_main_process_prints():
    for stream in (io.StringIO(), Terminal()):
        progress = RichProgress(stream=stream)
        arguments = TrainingArguments(output_dir="unused", report_to=[], use_cpu=True)
        state = TrainerState(is_world_process_zero=False, is_local_process_zero=True, max_steps=2, global_step=1)
        for event in (progress.on_train_begin, progress.on_step_end, progress.on_train_end):
            event(arguments, state, TrainerControl())
        progress.on_log(arguments, state, TrainerControl(), logs=dict(DEAD))
        assert stream.getvalue() == ""


def test_a_resumed_run_says_so_and_does_not_count_old_tokens_as_speed():
    stream = io.StringIO()
    progress = RichProgress(stream=stream)
    arguments = TrainingArguments(output_dir="unused", report_to=[], use_cpu=True)
    state = TrainerState(is_world_process_zero=True, max_steps=8, global_step=6)
    progress.on_train_begin(arguments, state, TrainerControl())
    state.global_step = 7
    logs = {"loss": 1.0, "num_tokens": 1e9}
    progress.on_log(arguments, state, TrainerControl(), logs=logs)
    state.global_step = 8
    progress.on_log(arguments, state, TrainerControl(), logs={"loss": 1.0, "num_tokens": 1e9 + 100})
    first, second, third = stream.getvalue().splitlines()
    assert first == "goes on from step 6 of 8"
    assert "tokens/s" not in second and "tokens/s" in third
    assert logs == {"loss": 1.0, "num_tokens": 1e9}


def test_evaluation_logs_are_not_taken_for_training_steps():
    stream = io.StringIO()
    progress = RichProgress(stream=stream)
    arguments = TrainingArguments(output_dir="unused", report_to=[], use_cpu=True)
    for logs in ({"eval_loss": 1.0, "eval_reward": 0.5}, {"train_runtime": 3.0, "train_loss": 1.0}):
        progress.on_log(arguments, TrainerState(max_steps=2), TrainerControl(), logs=logs)
    assert stream.getvalue() == ""


def test_clock():
    assert [clock(s) for s in (0.4, 59.6, 61, 3600, 7325, float("inf"))] == [
        "0:00",
        "1:00",
        "1:01",
        "1:00:00",
        "2:02:05",
        "?",
    ]
