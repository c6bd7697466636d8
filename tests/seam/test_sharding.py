"""Which engine was asked for, and when a run with another one stops."""

from __future__ import annotations

import json

import pytest

from posttrain.errors import ResumeError, SupportError
from posttrain.seam import sharding
from posttrain.seam.checkpoint import manifest
from posttrain.seam.running_engine import refuse_other_engine, shard_facts
from posttrain.seam.sharding import asked_engine, cpu_group
from tests.batteries.runs import build


@pytest.fixture
def launched(monkeypatch):
    """Sets what `accelerate launch` would, and nothing else of it."""
    for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_ZERO_STAGE", "ACCELERATE_USE_FSDP", "FSDP_VERSION"):
        monkeypatch.delenv(name, raising=False)

    def set_to(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return set_to


def test_the_engine_is_that_of_the_launcher(launched):
    assert asked_engine() is None
    launched(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    assert asked_engine() == "fsdp2"
    launched(ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_ZERO_STAGE="3")
    assert asked_engine() == "zero3"


def test_the_stage_of_a_file_of_the_users_own_counts(launched, tmp_path):
    file = tmp_path / "own.json"
    file.write_text('{"zero_optimization": {"stage": 3}}')
    launched(ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_CONFIG_FILE=str(file))
    assert asked_engine() == "zero3"


def test_fsdp_without_an_accelerator_is_refused_unless_a_test_asks_for_it(launched, monkeypatch):
    monkeypatch.delenv(sharding.ON_CPU, raising=False)
    launched(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    with pytest.raises(SupportError, match="FSDP needs an accelerator"):
        cpu_group()


@pytest.mark.parametrize(
    ("asked", "facts"),
    [
        ("zero2", {"engine": "ddp", "parameters_held": 1.0, "optimizer_held": 1.0}),
        ("zero2", {"engine": "zero2", "parameters_held": 1.0, "optimizer_held": 1.0}),
        ("zero3", {"engine": "zero2", "parameters_held": 1.0, "optimizer_held": 0.5}),
        ("zero3", {"engine": "zero3", "parameters_held": 1.0, "optimizer_held": 0.5}),
        ("fsdp2", {"engine": "ddp", "parameters_held": 1.0, "optimizer_held": 1.0}),
    ],
)
def test_another_engine_than_the_one_asked_for_stops_the_run(asked, facts):
    with pytest.raises(SupportError, match=f"{asked} was asked for, and the model is not trained by it"):
        refuse_other_engine(facts, asked=asked, world=2)


@pytest.mark.parametrize(
    ("asked", "facts"),
    [
        (None, {"engine": "ddp", "parameters_held": 1.0, "optimizer_held": 1.0}),
        ("zero1", {"engine": "zero1", "parameters_held": 1.0, "optimizer_held": 0.5}),
        ("zero3", {"engine": "zero3", "parameters_held": 0.5001, "optimizer_held": 0.5001}),
    ],
)
def test_the_engine_asked_for_goes_on(asked, facts):
    assert refuse_other_engine(facts, asked=asked, world=2) is None


@pytest.mark.parametrize(
    ("asked", "found"), [(["optimizer"], []), ([], ["parameters"]), (["parameters"], ["optimizer"])]
)
def test_another_offload_than_the_one_asked_for_stops_the_run(asked, found):
    facts = {"engine": "zero3", "offload": found, "parameters_held": 0.5, "optimizer_held": 0.5}
    with pytest.raises(SupportError, match="offload of .* was asked for, and the model is not trained by it"):
        refuse_other_engine(facts, asked="zero3", world=2, offload=asked)
    refuse_other_engine(facts, asked="zero3", world=2, offload=found)


def test_one_process_holds_everything(tiny_dir, tmp_path):
    trainer = build("sft", tiny_dir, tmp_path, max_steps=1)
    trainer.train()
    assert shard_facts(trainer) == {
        "engine": "single",
        "offload": [],
        "parameters_held": 1.0,
        "optimizer_held": 1.0,
    }


def test_a_checkpoint_of_another_engine_is_not_continued(tiny_dir, tmp_path):
    layout = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    build("sft", tiny_dir, tmp_path, **layout).train()
    path = tmp_path / "checkpoint-1" / "posttrain_state.json"
    state = json.loads(path.read_text())
    state["layout"]["engine"] = "zero2"
    path.write_text(json.dumps(state))
    manifest.seal(path.parent, step=1)
    with pytest.raises(ResumeError, match="engine was 'zero2', is None"):
        build("sft", tiny_dir, tmp_path, **layout).train(resume_from_checkpoint=str(path.parent))
