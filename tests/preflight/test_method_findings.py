"""What a supervised method's settings ask of model, tokenizer and rows is told by `check`, not by the trainer."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.errors import ConfigError, DataError, PosttrainError
from tests.config.recipes import BASES, REMOVE, changed, checked, told, write

LORA = {"model.lora": {"rank": 2, "alpha": 4}}
STEER = {"method.unlearn_loss": "rmu", "trainer.gradient_checkpointing": False}


@pytest.mark.parametrize("adapter", [{}, LORA])
def test_a_module_that_is_not_there_is_told(adapter, tmp_path: Path):
    assert checked(tmp_path, "unlearning_paths", {**STEER, **adapter, "method.module_regex": r"model\.layers\.1"}).ok
    message = told(checked(tmp_path, "unlearning_paths", {**STEER, **adapter}), ConfigError)
    assert "method.module_regex: the regular expression must match one module" in message
    assert "which matches 0" in message and "model.layers.0, model.layers.1" in message


def test_weights_that_are_not_there_are_told(tmp_path: Path):
    report = checked(tmp_path, "unlearning_paths", {"method.trainable_params_regex": [r".*layers\.9\..*"]})
    assert "method.trainable_params_regex: no parameter would be trained" in told(report, ConfigError)
    adapter = {"method.trainable_params_regex": [r".*lora_A.*"], **LORA}
    assert checked(tmp_path, "unlearning_paths", adapter).ok, "names of an adapter are not known before it is made"


def test_an_answer_to_be_given_instead_that_is_too_long_is_told(tmp_path: Path):
    changes = {"method.unlearn_loss": "idkdpo", "method.idk_responses": ["no " * 90], "method.reference": "copy"}
    report = checked(tmp_path, "unlearning_paths", {**changes, "trainer.max_length": 250})
    message = told(report, DataError)
    assert "prompt and the answer to be given instead are longer than a row may be" in message
    assert checked(tmp_path, "unlearning_paths", {**changes, "trainer.max_length": 500}).ok


def test_groups_of_a_stage_that_others_decide_for_are_checked(tmp_path: Path):
    from posttrain.config.loader import load
    from posttrain.preflight.check import check

    static = {"name": "aioli", "demonstration_column": "prompt", "mixing_rounds_every": 2, "controller": "static"}
    stages = [
        {"name": "even", "method": {**static, "controller": "stratified"}},
        {"name": "found", "method": static, "mix": {"find": "proportions", "runs": ["even"]}},
    ]
    base = changed(BASES["aioli"], {"stages": stages, "eval": None, "method": REMOVE})
    base["data"].pop("eval")
    assert check(load(write(tmp_path, base))).ok
    stages[1]["method"] = {**static, "groups": ["easy", "nowhere"]}
    message = told(check(load(write(tmp_path, changed(base, {"stages": stages})))), PosttrainError)
    assert "rows belong to groups that are not listed" in message and "allowed: easy, nowhere" in message
