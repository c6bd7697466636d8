"""A continued run trains with the settings that are written now, or is refused by their names."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM

from posttrain.errors import ResumeError
from posttrain.registry import METHODS, trained
from posttrain.seam.arguments import field_specs
from posttrain.seam.checkpoint.resumed_settings import (
    APPLIED,
    FREE,
    REFUSED,
    changes,
    fresh_groups,
    plain,
    put_in_force,
    recorded_settings,
    weights_recorded,
)
from tests.batteries.runs import build, weights

SAVING = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
# In the test below the schedule runs over 4 steps and the run goes on after step 2; the rate of the third is known.
CHANGES = {
    "rate": ({"learning_rate": 8e-3}, {"lr": 8e-3 * 2 / 4}),
    "decay": ({"weight_decay": 0.5}, {"lr": 5e-3 * 2 / 4, "weight_decay": 0.5}),
    "betas": ({"adam_beta1": 0.5, "adam_beta2": 0.7}, {"betas": (0.5, 0.7)}),
    "epsilon": ({"adam_epsilon": 1e-3}, {"eps": 1e-3}),
    "schedule": ({"lr_scheduler_type": "constant"}, {"lr": 5e-3}),
    "warm-up": ({"warmup_steps": 3}, {"lr": 5e-3 * 2 / 3}),
    "longer": ({"max_steps": 8}, {"lr": 5e-3 * 6 / 8}),
}


@pytest.fixture(scope="module")
def stopped(tiny_dir, tmp_path_factory):
    """Folder of a supervised run of 4 steps with checkpoints after 2 and 4."""
    folder = tmp_path_factory.mktemp("stopped")
    build("sft", tiny_dir, folder, **SAVING).train()
    return folder


class First:
    """The hyperparameters with which a trainer made its first step, and its weights before and after."""

    def __init__(self, trainer):
        self.trainer, self.groups = trainer, None
        original = trainer._get_grad_norm

        def noted(*args, **kwargs):
            if self.groups is None:
                self.groups = [dict(group) for group in trainer.optimizer.param_groups]
            return original(*args, **kwargs)

        trainer._get_grad_norm = noted


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_setting_is_in_force_from_the_first_step_on(name, stopped, tiny_dir, tmp_path):
    change, expected = CHANGES[name]
    again = build("sft", tiny_dir, tmp_path, **{**SAVING, "save_strategy": "no", **change})
    first = First(again)
    again.train(resume_from_checkpoint=str(stopped / "checkpoint-2"))
    for key, value in expected.items():
        assert first.groups[0][key] == pytest.approx(value), key
    assert first.groups[1]["weight_decay"] == 0.0  # biases and norms


def test_intervals_are_those_written_now(stopped, tiny_dir, tmp_path):
    again = build("sft", tiny_dir, tmp_path, max_steps=4, save_strategy="steps", save_steps=1, logging_steps=2)
    again.train(resume_from_checkpoint=str(stopped / "checkpoint-2"))
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
    assert [entry["step"] for entry in again.state.log_history if "loss" in entry][-1] == 4
    assert 3 not in [entry["step"] for entry in again.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"optim": "adafactor"}, "trainer.optim: adamw_torch"),
        ({"max_length": 77}, r"trainer.max_length: 1024 -> 77"),
        ({"loss_aggregation": "seq_mean_token_mean"}, "method.loss_aggregation: token_mean -> seq_mean_token_mean"),
    ],
)
def test_what_cannot_change_is_refused_before_anything_is_loaded(change, told, stopped, tiny_dir, tmp_path):
    again = build("sft", tiny_dir, tmp_path, **{**SAVING, **change})
    before = {name: value.clone() for name, value in weights(again).items()}
    with pytest.raises(ResumeError, match=told):
        again.train(resume_from_checkpoint=str(stopped / "checkpoint-2"))
    assert all(torch.equal(value, before[name]) for name, value in weights(again).items())


def test_a_method_setting_is_refused(tiny_dir, tmp_path):
    build("hpt", tiny_dir, tmp_path, max_steps=1, save_strategy="steps", save_steps=1).train()
    again = build("hpt", tiny_dir, tmp_path, max_steps=2, switch_gate=0.3, mask_truncated_completions=True)
    with pytest.raises(ResumeError, match=r"method.switch_gate: .* -> 0.3.*") as refused:
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert "rollout.mask_truncated_completions: False -> True" in str(refused.value)


def test_another_model_is_one_line(stopped, tiny_dir, tmp_path):
    from posttrain.models.tiny import build_tiny

    build_tiny(tmp_path / "wide", hidden_size=16, num_layers=1, num_heads=2, intermediate_size=16)
    again = build("sft", tmp_path / "wide", tmp_path / "run", **SAVING)
    with pytest.raises(ResumeError, match=r"the model is not that of the run to continue, which has \d+ parameters"):
        again.train(resume_from_checkpoint=str(stopped / "checkpoint-2"))


def test_what_a_checkpoint_does_not_bring_back_is_compared_by_its_values(tiny_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_dir)
    assert weights_recorded(model)["frozen_sha256"] is None
    frozen = model.get_input_embeddings().weight.requires_grad_(False)
    before = weights_recorded(model)
    assert weights_recorded(copy.deepcopy(model)) == before
    with torch.no_grad():
        model.model.norm.weight.add_(1.0)
        assert weights_recorded(model) == before
        frozen.mul_(1.5)
    now = weights_recorded(model)
    assert now["frozen_sha256"] != before["frozen_sha256"] and now["sha256"] == before["sha256"]


def test_an_optimizer_of_the_callers_own_is_compared_too(stopped, tiny_dir, tmp_path):
    own = {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 1e-3})}
    again = build("sft", tiny_dir, tmp_path, trainer_kwargs=own, **SAVING)
    with pytest.raises(ResumeError, match="the optimizer: AdamW with 2 groups -> SGD with 2 groups"):
        again.train(resume_from_checkpoint=str(stopped / "checkpoint-2"))


def test_a_checkpoint_without_a_record_of_its_settings_gets_the_written_ones(stopped, tiny_dir, tmp_path):
    """Such as one of an earlier release: what changed is not known, so all that the optimizer holds is written."""
    copy = tmp_path / "checkpoint-2"
    shutil.copytree(stopped / "checkpoint-2", copy)
    state = json.loads((copy / "posttrain_state.json").read_text())
    del state["settings"]
    (copy / "posttrain_state.json").write_text(json.dumps(state))
    (copy / "posttrain_complete.json").unlink()
    again = build("sft", tiny_dir, tmp_path / "run", max_steps=4, learning_rate=8e-3, weight_decay=0.25)
    first = First(again)
    again.train(resume_from_checkpoint=str(copy))
    assert first.groups[0]["lr"] == pytest.approx(8e-3 * 2 / 4) and first.groups[0]["weight_decay"] == 0.25


def test_what_an_optimizer_counts_in_its_groups_is_left_alone():
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([weight], lr=0.5)
    schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    schedule.last_epoch = 3
    optimizer.param_groups[0].update(k=7, betas=(0.1, 0.2))
    fresh = {"lr": 0.5, "betas": [0.9, 0.999], "k": 0}
    put_in_force(optimizer, schedule, before=[fresh], now=[{**fresh, "betas": [0.8, 0.999], "lr": 2.0}])
    group = optimizer.param_groups[0]
    assert (group["k"], group["betas"], group["lr"], group["initial_lr"]) == (7, (0.8, 0.999), 0.5, 2.0)
    assert schedule.get_last_lr() == [0.5]


def test_a_group_that_an_engine_left_out_has_no_settings_to_give():
    """As DeepSpeed does with adapters: all of them decay, and the other group of transformers is empty."""
    weight = torch.nn.Parameter(torch.ones(1))
    groups = [{"params": [], "weight_decay": 0.1}, {"params": [weight], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.5)
    before = fresh_groups(optimizer)
    del optimizer.param_groups[0]
    schedule = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    put_in_force(optimizer, schedule, before=before, now=[before[0], {**before[1], "lr": 2.0, "weight_decay": 0.3}])
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(2.0, 0.3)]
    assert schedule.get_last_lr() == [2.0]


SINCE_5_24 = {"activation_checkpointing", "activation_checkpointing_kwargs"}  # of transformers


def test_every_setting_has_its_place():
    """A field of a new release of TRL or transformers is refused on resume until it is classed here."""
    tables = (APPLIED, FREE, REFUSED)
    assert not (APPLIED & FREE or APPLIED & REFUSED or FREE & REFUSED)
    unknown, known = set(), set()
    for entry in trained().values():
        for name, spec in field_specs(entry.load_config()).items():
            known.add(name)
            if spec.block != "method" and not any(name in table for table in tables):
                unknown.add(f"{spec.block}.{name}")
            assert spec.block != "method" or name not in APPLIED, (
                f"{name}: a method's state is made under its settings"
            )
    assert unknown == set()
    assert set().union(*tables) - known <= SINCE_5_24


def test_a_schedule_with_a_memory_is_not_moved_to_another_rate(tmp_path):
    args = METHODS["sft"].load_config()(output_dir=str(tmp_path), report_to="none", learning_rate=0.1, max_steps=9)
    before = {**recorded_settings(args), "lr_scheduler_type": "reduce_lr_on_plateau", "learning_rate": 0.2}
    applied, refused = changes({**before, "max_steps": 3, "weight_decay": 0.7}, args)
    assert applied == ["trainer.max_steps: 3 -> 9", "trainer.weight_decay: 0.7 -> 0.0"]
    assert refused == [
        "trainer.learning_rate: 0.2 -> 0.1",
        "trainer.lr_scheduler_type: reduce_lr_on_plateau -> linear",
    ]


def test_settings_are_plain_json(tmp_path):
    args = METHODS["grpo"].load_config()(output_dir=str(tmp_path), report_to="none")
    assert plain(args.lr_scheduler_type) == "linear"
    assert plain({"a": (1, {2.5})}) == {"a": [1, [2.5]]}
    assert "hub_token" in FREE
