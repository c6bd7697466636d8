"""Values that no recipe can mean are one line each, with the place and what is allowed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.loader import load, parse
from posttrain.errors import ConfigError, PosttrainError
from tests.config.recipes import BASES, changed, checked, told, write
from tests.config.test_stages import PLAN


@pytest.mark.parametrize(
    ("base", "changes", "text"),
    [
        ("sft", {"trainer.max_steps": 2**63}, "trainer.max_steps: the number is too large"),
        (
            "sft",
            {"data.train.options": {"deep": [1, -(10**400)]}},
            "data.train.options.deep.1: the number is too large",
        ),
        ("sft", {"trainer.run_name": "a\0b"}, "trainer.run_name: the text holds a NUL"),
        ("sft", {"data.system_prompt": "a\ud800"}, "data.system_prompt: the text holds half of a character"),
        ("sft", {"model": {"path": "a/" * 3000}}, "model.path: the path is too long"),
        ("grpo", {"rollout.rewards": ["é" * 200 + ".py:f"]}, "rollout.rewards.0: the path is too long"),
        ("sft", {"trainer.output_dir": "~nobody-of-this-name/run"}, "trainer.output_dir: there is no such user"),
        ("sft", {"data.train.size": 10**7}, "data.train.size: more rows than are made in memory"),
        ("sft", {"model.tiny.num_layers": 10**9}, "model.tiny.num_layers: this is no tiny model"),
        (
            "sft",
            {"model.tiny.hidden_size": 40_000},
            r"model.tiny: this is no tiny model \(got 'about 1.3e\+10 weights",
        ),
        ("sft", {"trainer.learning_rate": 1e308}, "trainer.learning_rate: no model learns at this rate"),
        ("rmt", {"method.preset": "foo"}, "method.preset: unknown preset"),
        ("plan", {"trainer.output_dir": {"a": 1}}, "trainer.output_dir: wrong type"),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_is_told_when_the_recipe_is_read(base: str, changes: dict[str, Any], text: str):
    from posttrain.config.loader import build_args, resolve_stages

    with pytest.raises(PosttrainError, match=text) as raised:
        for _, _, run in resolve_stages(parse(changed({**BASES, "plan": PLAN}[base], changes))):
            build_args(run, output_dir="run")
    assert "\n" not in str(raised.value)


def test_files_that_are_no_recipe_are_not_read_to_their_end(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large.yaml").write_text("# comment\n" * 30_000)
    (tmp_path / "many.yaml").write_text("".join(f"k{n}: 1\n" for n in range(11_000)))
    (tmp_path / "digits.yaml").write_text("trainer: {max_steps: " + "9" * 5000 + "}\n")
    for name, text in {
        "/dev/zero": "a device or a pipe",
        str(tmp_path / "pipe"): "a device or a pipe",
        str(tmp_path / "large.yaml"): "too large for a recipe",
        str(tmp_path / "many.yaml"): "holds more values",
        str(tmp_path / "digits.yaml"): "trainer.max_steps: the number is too large",
        "a\0b": "cannot be read: embedded null",
        "x" * 5000: "cannot be read: File name too long",
    }.items():
        with pytest.raises(ConfigError, match=text):
            load(name)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"optim_args": "evil"}, "trainer.optim_args: no list of settings"),
        ({"optim_args": "betas=1"}, "optim_args: no optimizer can be made: adamw_torch(_fused)? does not read betas"),
        ({"optim": "sgd", "optim_args": "momentum=0.9,other=1"}, "sgd does not read other"),
        ({"optim": "sgd", "optim_args": "momentum=much"}, "trainer.optim_args: no optimizer can be made"),
        ({"lr_scheduler_kwargs": {"x": 1}}, "trainer.lr_scheduler_kwargs: no schedule linear can be made"),
        (
            {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"x": 1}},
            "trainer.lr_scheduler_kwargs: the schedule constant reads no further settings",
        ),
        (
            {"lr_scheduler_type": "constant", "warmup_steps": 2},
            "trainer.warmup_steps: the schedule constant has no warm-up .*constant_with_warmup",
        ),
        (
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": "x"}},
            "trainer.lr_scheduler_kwargs: no schedule cosine can be made",
        ),
    ],
    ids=str,
)
def test_an_optimizer_or_schedule_that_cannot_be_made_is_told(changes: dict[str, Any], text: str, tmp_path: Path):
    given = {f"trainer.{key}": value for key, value in changes.items()}
    assert re.search(text, told(checked(tmp_path, "sft", given)))


def test_settings_that_the_optimizer_reads_are_taken(tmp_path: Path):
    given = {"trainer.optim": "sgd", "trainer.optim_args": "momentum=0.9, nesterov=true"}
    given |= {"trainer.lr_scheduler_type": "cosine_with_min_lr", "trainer.lr_scheduler_kwargs": {"min_lr": 1e-5}}
    assert checked(tmp_path, "sft", given).ok


def test_a_recipe_of_ordinary_odd_values_is_read(tmp_path: Path):
    odd = {"trainer.seed": 2**31 - 1, "trainer.run_name": "\u202eé\n", "data.system_prompt": "long text " * 900}
    assert load(write(tmp_path, changed(BASES["sft"], odd))).trainer.seed == 2**31 - 1
