"""`metrics.jsonl` of a real trainer: every log, valid JSON, whole after a crash and a resume."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from posttrain.reports.records import read_metrics, training_seconds
from posttrain.training.callbacks.metrics import MetricsWriter


class LoggingTrainer(Trainer):
    """Adds the values that trainers of methods log, some of them not finite."""

    def log(self, logs, start_time=None):
        if "loss" in logs:
            logs |= {"reward": None, "kl": math.nan, "ratio": math.inf, "event": "mine"}
        super().log(logs, start_time)


def train(model_dir, folder, *, steps, callbacks, resume=False, process=0):
    ids = torch.arange(8) % 5 + 4
    arguments = TrainingArguments(
        output_dir=str(folder / "out"),
        max_steps=steps,
        per_device_train_batch_size=2,
        logging_steps=1,
        save_steps=2,
        save_strategy="steps" if not resume else "no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = LoggingTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_dir),
        args=arguments,
        train_dataset=[{"input_ids": ids, "labels": ids} for _ in range(32)],
        callbacks=callbacks,
    )
    trainer.state.is_world_process_zero = process == 0
    trainer.train(resume_from_checkpoint=str(folder / "out" / "checkpoint-2") if resume else None)
    return trainer


@pytest.fixture(scope="module")
def finished(tiny_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("metrics")
    path = folder / "run" / "metrics.jsonl"
    trainer = train(tiny_dir, folder, steps=3, callbacks=[MetricsWriter(path)])
    return folder, path, trainer


def test_every_log_event_is_one_json_line_with_step_epoch_and_times(finished):
    _, path, trainer = finished
    lines = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    assert [(line["event"], line["step"]) for line in lines] == [
        ("start", 0), ("log", 1), ("log", 2), ("log", 3), ("log", 3)
    ]  # fmt: skip
    for line, logged in zip(lines[1:], trainer.state.log_history, strict=True):
        assert line["epoch"] == logged["epoch"] and line.get("loss") == logged.get("loss")
    times = [line["wall_time"] for line in lines]
    assert times == sorted(times) and times[0] > 1.6e9
    assert lines[-1]["elapsed_seconds"] == pytest.approx(times[-1] - times[0], abs=0.1)


def test_non_finite_and_missing_values_are_written_as_stated_and_read_back(finished):
    _, path, _ = finished
    line = json.loads(path.read_text().splitlines()[1])
    assert (line["reward"], line["kl"], line["ratio"]) == (None, "NaN", "Infinity")
    event = read_metrics(path)[0]
    assert event["reward"] is None and math.isnan(event["kl"]) and event["ratio"] == math.inf


def test_a_metric_cannot_overwrite_the_stamp(finished):
    _, path, _ = finished
    assert {json.loads(line)["event"] for line in path.read_text().splitlines()} == {"start", "log"}


def test_a_resumed_run_reads_as_one_run_even_after_a_torn_line(finished, tiny_dir):
    folder, path, _ = finished
    seconds = training_seconds(path)
    with path.open("a") as file:
        file.write('{"event": "log", "step": 4, "lo')
    train(tiny_dir, folder, steps=5, callbacks=[MetricsWriter(path)], resume=True)
    assert [event["step"] for event in read_metrics(path) if "loss" in event] == [1, 2, 3, 4, 5]
    # No step stands twice in the file.
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5]
    assert [line.get("cut_lines") for line in lines if line["event"] == "start"] == [None, 2]
    assert training_seconds(path) > seconds
    starts = [json.loads(line)["step"] for line in path.read_text().splitlines() if '"start"' in line]
    assert starts == [0, 2]


def test_other_processes_write_nothing(tmp_path):
    from transformers import TrainerControl, TrainerState

    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path)
    state = TrainerState(is_world_process_zero=False, is_local_process_zero=True)
    arguments = TrainingArguments(output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True)
    writer.on_train_begin(arguments, state, TrainerControl())
    writer.on_log(arguments, state, TrainerControl(), logs={"loss": 1.0})
    assert not path.exists()
