"""Recipes whose mistake shows only with ranks, data, the model or this machine, and the finding that names it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.loader import load
from posttrain.config.model_facts import describe
from posttrain.errors import ConfigError, DataError, SupportError
from posttrain.preflight.check import check
from posttrain.preflight.model import findings
from tests.config.recipes import BASES, GOOD_ROW, REMOVE, changed, checked, numbered, rows_file, told, write


@pytest.mark.parametrize("base", BASES)
def test_a_right_run_has_no_findings(tmp_path: Path, base: str):
    report = checked(tmp_path, base, {}, will_train=True)
    assert report.lines()[-1] == "ok" and not report.warnings
    assert any("optimizer step" in fact for fact in report.facts)
    assert not (tmp_path / "run").exists(), "a check leaves nothing behind"


# ---- world size ----


@pytest.mark.parametrize(
    ("world_size", "changes", "words"),
    [
        (1, {"trainer.per_device_train_batch_size": 2}, ("does not hold whole groups of 4", "a multiple of 4")),
        (3, {"trainer.per_device_train_batch_size": 2}, ("= 6", "3 ranks", "a multiple of 4")),
        (2, {"trainer.per_device_train_batch_size": 1, "rollout.num_generations": 8}, ("rollout.num_generations",)),
        (1, {"trainer.generation_batch_size": 12}, ("trainer.generation_batch_size", "8")),
        (
            2,
            {"trainer.generation_batch_size": 24},
            ("whole micro-batches of all ranks (got 24", "per_device_train_batch_size * 2 ranks = 16"),
        ),
        (
            1,
            {"trainer.steps_per_generation": 3, "trainer.gradient_accumulation_steps": 2},
            ("trainer.steps_per_generation", "3 micro-steps does not hold whole optimizer steps", "(2)"),
        ),
        (
            4,
            {"trainer.per_device_train_batch_size": 3, "rollout.num_generations": 8},
            ("= 12", "4 ranks", "multiple of 2"),
        ),
        (32, {}, ("data.train", "a generation batch needs 64 prompts", "got '32 rows'")),
    ],
)
def test_ranks_and_batches_that_do_not_divide(
    tmp_path: Path, world_size: int, changes: dict[str, Any], words: tuple[str, ...]
):
    message = told(checked(tmp_path, "grpo", changes, world_size=world_size))
    for word in words:
        assert word in message


def test_the_same_recipe_is_right_for_the_ranks_it_was_written_for(tmp_path: Path):
    changes = {"trainer.per_device_train_batch_size": 2}
    report = checked(tmp_path, "grpo", changes, world_size=4)
    assert report.ok and any("2 prompts x 4 completions" in fact for fact in report.facts)


# ---- data ----


@pytest.mark.parametrize(
    ("base", "rows", "changes", "words"),
    [
        (
            "grpo",
            [{"question": "2+3=?"}],
            {},
            ("data.train", "no such column (got 'prompt'", "columns: {prompt: question}"),
        ),
        ("grpo", numbered(9), {"data.train.columns": {"answer": "anser"}}, ("got 'anser'", "answer")),
        ("grpo", [*numbered(9), {**GOOD_ROW, "prompt": ""}], {}, ("row 9", "empty")),
        ("grpo", [*numbered(9), {**GOOD_ROW, "prompt": [{"text": "x"}]}], {}, ("lacks role or content",)),
        (
            "grpo",
            numbered(9, prompt=[{"role": "system", "content": "add"}]),
            {},
            ("the prompt has no user message with text in 9 of 9 rows", "rows 0, 1, 2, 3, 4 and 4 more"),
        ),
        (
            "grpo",
            numbered(9, prompt=[{"role": "user", "content": "2+3=?"}, {"role": "assistant", "content": "5"}]),
            {},
            ("the prompt ends with an assistant message in 9 of 9 rows",),
        ),
        ("grpo", [*numbered(9), {**GOOD_ROW, "answer": " "}], {}, ("the answer is empty in 1 of 10 rows (row 9)",)),
        (
            "grpo",
            [*numbered(9), {**GOOD_ROW, "prompt": "1+" * 150}],
            {},
            ("1 of 10 prompts are longer than 200 tokens (row 9)", "overlong_prompts: drop"),
        ),
        ("hpt", numbered(9, solution=""), {}, ("the demonstration is empty in 9 of 9 rows", "at most 50%")),
        (
            "hpt",
            [*numbered(9), {**GOOD_ROW, "solution": "5 " * 40 + "\nAnswer: 5"}],
            {},
            ("the demonstration is longer than 64 tokens in 1 of 10 rows (row 9)", "got '91 tokens in row 9'"),
        ),
        (
            "hpt",
            numbered(9),
            {"method.demonstration_column": "steps"},
            ("the demonstration column is missing (got 'steps'",),
        ),
        (
            "sft",
            [*numbered(9), {**GOOD_ROW, "solution": ""}],
            {},
            ("the demonstration is empty in 1 of 10 rows (row 9)",),
        ),
        (
            "sft",
            numbered(9),
            {"trainer.max_length": 20},
            ("prompt and demonstration together are longer than 20 tokens in 9 of 9 rows", "trainer.max_length"),
        ),
    ],
)
def test_rows_that_cannot_be_trained_on(
    tmp_path: Path, base: str, rows: list[dict[str, Any]], changes: dict[str, Any], words: tuple[str, ...]
):
    source = {"path": rows_file(tmp_path, rows)}
    message = told(checked(tmp_path, base, {"data.train": source, **changes}), DataError)
    for word in words:
        assert word in message


def test_an_unknown_option_of_a_task_is_told_with_its_line(tmp_path: Path):
    message = told(checked(tmp_path, "grpo", {"data.train.options": {"digts": 2}}))
    assert "data.train.options" in message and "digits" in message


def test_an_empty_file_is_told_as_such(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"data\.train\.path: the file is empty"):
        checked(tmp_path, "grpo", {"data.train": {"path": rows_file(tmp_path, [])}})


def test_over_long_prompts_can_be_dropped_and_are_counted(tmp_path: Path):
    rows = [*numbered(9), {**GOOD_ROW, "prompt": "1+" * 150}]
    changes = {"data.train": {"path": rows_file(tmp_path, rows)}, "data.overlong_prompts": "drop"}
    report = checked(tmp_path, "grpo", changes)
    assert "1 of 10 prompts" in told(report, DataError, warning=True) and report.ok
    assert any(fact.startswith("9 training rows") for fact in report.facts)


def test_dropping_may_not_leave_too_few_rows(tmp_path: Path):
    changes = {"data.overlong_prompts": "drop", "data.max_prompt_length": 5}
    report = checked(tmp_path, "grpo", {**changes, "data.eval": REMOVE, "eval": REMOVE})
    assert any("32 of 32 prompts" in str(error) for error in report.errors)


def test_some_missing_demonstrations_stay_with_rl(tmp_path: Path):
    rows = [*numbered(9), *numbered(3, solution="")]
    report = checked(tmp_path, "hpt", {"data.train": {"path": rows_file(tmp_path, rows)}})
    assert report.ok and "empty in 3 of 12 rows" in "".join(map(str, report.warnings))


def test_rows_shared_by_training_and_evaluation_are_counted(tmp_path: Path):
    train, held_out = rows_file(tmp_path, numbered(9)), rows_file(tmp_path, numbered(12)[7:], "eval.jsonl")
    report = checked(tmp_path, "grpo", {"data.train": {"path": train}, "data.eval": {"path": held_out}})
    assert "2 of 5 evaluation prompts are training prompts too (rows 0, 1)" in told(report, DataError, warning=True)


def test_a_gate_that_never_opens_is_a_warning_and_needs_no_demonstrations(tmp_path: Path):
    source = {"path": rows_file(tmp_path, numbered(9, solution=""))}
    report = checked(tmp_path, "hpt", {"data.train": source, "method.switch_gate": -1.0})
    assert "demonstrations are never used" in told(report, warning=True) and report.ok


# ---- model, support, disk ----


def test_adapter_targets_that_the_model_does_not_have(tmp_path: Path):
    message = told(checked(tmp_path, "grpo", {"model.lora": {"targets": ["q_proj", "qproj", "v_proj"]}}))
    assert "model.lora.targets.1" in message and "got 'qproj'" in message and "'q_proj'" in message


def test_lengths_beyond_the_model(tmp_path: Path):
    message = told(checked(tmp_path, "grpo", {"rollout.max_completion_length": 400}))
    assert "600 tokens do not fit the model's 512 positions" in message


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "the folder holds no config.json"),
        ({"config.json": '{"model_type": "llama"}'}, "the folder holds no weights"),
        ({"config.json": '{"model_type": "lama"}', "model.safetensors": ""}, "configuration cannot be read"),
        ({"config.json": '{"model_type": "vit"}', "model.safetensors": ""}, "makes no causal language model"),
        (
            {"config.json": '{"auto_map": {"AutoConfig": "x.Y"}}', "model.safetensors": ""},
            "auto_map",
        ),
    ],
)
def test_folders_that_are_no_model(tmp_path: Path, files: dict[str, str], words: str):
    folder = tmp_path / "model"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    report = checked(tmp_path, "grpo", {"model": {"path": str(folder)}})
    assert any(words in str(error) for error in report.errors), report.lines()
    assert all("recipe.yaml" in str(error) for error in report.errors)


def test_what_this_machine_lacks_stops_a_run_but_not_a_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    changes = {"trainer.use_cpu": REMOVE, "trainer.bf16": True}
    message = told(checked(tmp_path, "grpo", changes, will_train=True), SupportError)
    assert "trainer.bf16: needs CUDA, which is not here" in message
    assert "needs CUDA" in told(checked(tmp_path, "grpo", changes), SupportError, warning=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "model: vLLM on a CPU has no attention for heads of this width (got 16; allowed: one of: 32, 64"),
        (
            {"rollout.mode": "server", "rollout.vllm_server_base_url": "http://localhost:8000"},
            "rollout.vllm_server_base_url: the server's token is missing. Set the environment variable",
        ),
    ],
)
def test_what_an_engine_needs_is_told_before_it_is_built(tmp_path: Path, monkeypatch, changes, words: str):
    monkeypatch.delenv("POSTTRAIN_ENGINE_TOKEN", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    report = checked(tmp_path, "grpo", {"rollout.engine": "vllm", **changes}, will_train=True)
    assert any(words in str(error) for error in report.errors), report.lines()


@pytest.mark.parametrize(
    ("changes", "environment", "words"),
    [
        ({"trainer.packing": True}, {}, "sft does not support packed rows"),
        ({}, {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, "does not support zero0"),
        ({}, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "does not support fsdp1"),
        ({}, {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, "does not support multi_node"),
        ({"model.lora": {"targets": ["lm_head"]}}, {}, "an adapter on lm_head"),
    ],
)
def test_what_a_method_does_not_support(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], environment: dict[str, str], words: str
):
    from posttrain import registry
    from posttrain.preflight.run import support

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    cfg = load(write(tmp_path, changed(BASES["sft"], changes)))
    found = list(support(cfg, registry.get("sft"), world_size=1))
    assert len(found) == 1 and isinstance(found[0], SupportError) and words in str(found[0])


@pytest.mark.parametrize(
    ("base", "changes", "engine", "words"),
    [
        (
            "sft",
            {"model.lora": {"rank": 4, "merge_on_save": True}},
            "3",
            "model.lora.merge_on_save: needs all weights",
        ),
        ("grpo", {"trainer.sync_ref_model": True, "trainer.beta": 0.1}, "3", "in one process, and zero3 spreads them"),
        ("sasr", {"method.kl_reference": "warmup"}, "3", "method.kl_reference: needs all weights in one process"),
        ("sasr", {"method.switch_controller": "kl"}, "3", "method.switch_controller: needs all weights"),
        (
            "grpo",
            {"rollout.engine": "vllm", "model.lora": {}},
            "3",
            "rollout.engine: needs all weights in one process",
        ),
    ],
)
def test_what_does_not_go_with_an_engine_that_spreads_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, changes: dict[str, Any], engine: str, words: str
):
    from posttrain import registry
    from posttrain.preflight.run import support

    cfg = load(write(tmp_path, changed(BASES[base], changes)))
    assert list(support(cfg, registry.get(base), world_size=1)) == []
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", engine)
    found = list(support(cfg, registry.get(base), world_size=1))
    assert len(found) == 1 and isinstance(found[0], SupportError) and words in str(found[0])


@pytest.mark.parametrize(
    ("changes", "is_reported"),
    [
        ({"model.dtype": "bfloat16", "trainer.learning_rate": 2e-5}, True),
        ({"model.dtype": "float16", "trainer.learning_rate": 2e-5}, True),
        ({"model.dtype": "bfloat16", "trainer.learning_rate": 1e-3}, False),
        ({"model.dtype": "float32", "trainer.learning_rate": 2e-5}, False),
        ({"model.dtype": "bfloat16", "trainer.learning_rate": 2e-5, "model.lora": {"rank": 4}}, False),
    ],
    ids=str,
)
def test_updates_that_half_precision_rounds_away_are_told(tmp_path: Path, changes: dict[str, Any], is_reported: bool):
    report = checked(tmp_path, "sft", changes)
    assert report.ok and is_reported == any("are rounded away" in str(warning) for warning in report.warnings)


def test_an_output_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("")
    message = told(checked(tmp_path, "grpo", {"trainer.output_dir": str(tmp_path / "file" / "run")}))
    assert "trainer.output_dir: there is a file where the folder should be" in message


def test_a_full_disk_is_told_before_the_first_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import shutil

    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("posttrain.preflight.run.shutil.disk_usage", lambda _: full)
    assert "do not fit on the disk" in told(checked(tmp_path, "grpo", {}))


def test_a_hub_that_cannot_be_reached_is_a_warning_that_names_what_was_skipped(tmp_path: Path):
    changes = {"model": {"path": "nobody/nothing-at-all"}, "data.train": {"path": "nobody/no-rows", "split": "train"}}
    report = checked(tmp_path, "grpo", changes)
    assert report.ok, report.lines()
    text = "\n".join(map(str, report.warnings))
    assert "model.path: the Hub cannot be reached, so its configuration, tokenizer" in text
    assert "data.train.path: the Hub cannot be reached, so columns, lengths and rewards were not checked" in text
    assert not checked(tmp_path, "grpo", changes, will_train=True).ok, "a run could not start"


def test_a_hub_that_does_not_answer_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With the Hub switched on but at a closed port, the check ends at once instead of trying again and again."""
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("posttrain.preflight.model.getproxies", dict)
    cfg = load(write(tmp_path, changed(BASES["grpo"], {"data.train": {"path": "nobody/no-rows"}})))
    started = time.monotonic()
    assert "the Hub cannot be reached" in told(check(cfg), warning=True) and time.monotonic() - started < 20
    assert not huggingface_hub.constants.HF_HUB_OFFLINE, "left as found"


def test_a_packaged_model_is_known_without_its_weights(tmp_path: Path):
    model = {"package": "smollm2-135m-instruct", "lora": {"targets": ["q_prj"]}}
    cfg = load(write(tmp_path, changed(BASES["grpo"], {"model": model})))
    facts = describe(cfg)
    assert facts.parameters == 134_515_008 and facts.max_positions == 8192
    assert ["'q_proj'" in str(finding) for _, finding in findings(cfg, facts)] == [True]
