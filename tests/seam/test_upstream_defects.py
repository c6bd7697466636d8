"""Defects of trl 1.16 that the seam removes: each shown on plain TRL, then shown gone."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from posttrain.errors import ConfigError
from posttrain.seam.checkpoint.resumable import NonFiniteError
from posttrain.seam.policy.trainer import PolicyConfig
from tests.batteries.runs import COMMON, POLICY, Recorder, build, dataset, fresh_model, gradients

PLAIN = {"bf16": False, "gradient_checkpointing": False, "logging_steps": 1}


def _plain(tiny_dir, folder, reward, **overrides):
    return GRPOTrainer(
        model=overrides.pop("model", None) or fresh_model(tiny_dir),
        reward_funcs=reward,
        args=GRPOConfig(output_dir=str(folder), **{**COMMON, **POLICY, **PLAIN, **overrides}),
        train_dataset=dataset(),
        processing_class=AutoTokenizer.from_pretrained(tiny_dir),
    )


def _ours(tiny_dir, folder, reward, **overrides):
    model = overrides.pop("model", None) or fresh_model(tiny_dir)
    return build("grpo", tiny_dir, folder, reward=reward, model=model, **overrides)


def _prompts_after_resume(make, tiny_dir, tmp_path, stop, total, **overrides):
    """Prompts of the uninterrupted run from step `stop` on, and those of the resumed one."""
    whole, rest = Recorder(), Recorder()
    saving = {"max_steps": total, "save_strategy": "steps", "save_steps": stop, **overrides}
    make(tiny_dir, tmp_path / "whole", whole, **saving).train()
    make(tiny_dir, tmp_path / "rest", rest, **saving).train(
        resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}")
    )
    return [prompt for prompt, _ in whole.seen], [prompt for prompt, _ in rest.seen]


@pytest.mark.parametrize(("make", "exact"), [(_plain, False), (_ours, True)], ids=["trl", "posttrain"])
def test_data_order_after_a_resume_in_a_later_epoch(make, exact, tiny_dir, tmp_path):
    # 12 prompts, 2 a step: epoch 1 begins after step 6.
    whole, rest = _prompts_after_resume(make, tiny_dir, tmp_path, 8, 11)
    assert (rest == whole[-len(rest) :]) is exact


@pytest.mark.parametrize(("make", "exact"), [(_plain, False), (_ours, True)], ids=["trl", "posttrain"])
def test_rollouts_in_flight_survive_a_stop_inside_their_block(make, exact, tiny_dir, tmp_path):
    # One generation batch lasts two optimizer steps; the run stops between them. TRL generates again.
    whole, rest = _prompts_after_resume(make, tiny_dir, tmp_path, 1, 2, steps_per_generation=4)
    assert (len(rest) == 0) is exact
    assert len(whole) == 16


@pytest.mark.parametrize(("make", "fresh"), [(_plain, False), (_ours, True)], ids=["trl", "posttrain"])
def test_a_second_train_call_makes_its_own_rollouts(make, fresh, tiny_dir, tmp_path):
    reward = Recorder()
    trainer = make(tiny_dir, tmp_path, reward, max_steps=1, steps_per_generation=4)
    trainer.train()
    first = len(reward.seen)
    trainer.train()
    assert (len(reward.seen) == 2 * first) is fresh


@pytest.mark.parametrize(("make", "kept"), [(_plain, False), (_ours, True)], ids=["trl", "posttrain"])
def test_the_synchronised_reference_survives_a_resume(make, kept, tiny_dir, tmp_path):
    overrides = {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 1.0}
    saving = {"max_steps": 3, "save_strategy": "steps", "save_steps": 2, **overrides}
    first = make(tiny_dir, tmp_path, Recorder(), **saving)
    first.train()
    again = make(tiny_dir, tmp_path, Recorder(), **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    same = [
        torch.equal(value, again.ref_model.state_dict()[name]) for name, value in first.ref_model.state_dict().items()
    ]
    assert all(same) is kept


@pytest.mark.parametrize(("make", "stops"), [(_plain, False), (_ours, True)], ids=["trl", "posttrain"])
def test_resuming_a_finished_run_trains_no_further_step(make, stops, tiny_dir, tmp_path):
    saving = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    make(tiny_dir, tmp_path, Recorder(), **saving).train()
    again = make(tiny_dir, tmp_path, Recorder(), **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert (again.state.global_step == 2) is stops


@pytest.mark.parametrize(("make", "right"), [(_plain, False), (_ours, True)], ids=["trl", "posttrain"])
def test_the_reference_of_a_model_changed_in_memory_is_that_model(make, right, tiny_dir, tmp_path):
    model = fresh_model(tiny_dir)
    torch.nn.init.constant_(model.model.norm.weight, 2.5)
    trainer = make(tiny_dir, tmp_path, Recorder(), beta=0.1, model=model)
    assert bool((trainer.ref_model.model.norm.weight == 2.5).all()) is right


@pytest.mark.parametrize(("make", "used"), [(_plain, False), (_ours, True)], ids=["trl", "posttrain"])
def test_data_seed_changes_the_order(make, used, tiny_dir, tmp_path):
    orders = []
    for seed in (1, 2):
        reward = Recorder()
        make(tiny_dir, tmp_path / str(seed), reward, max_steps=3, data_seed=seed).train()
        orders.append([prompt for prompt, _ in reward.seen])
    assert (orders[0] != orders[1]) is used


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scale_rewards", "grooup"),
        ("vllm_mode", "colocated"),
        ("epsilon", -0.2),
        ("beta", "abc"),
        ("top_entropy_quantile", 7.0),
        ("num_generations", 8.5),
    ],
)
def test_values_trl_accepts_and_should_not(field, value, tmp_path):
    arguments = {**COMMON, "output_dir": str(tmp_path), "bf16": False, field: value}
    arguments |= {"per_device_train_batch_size": 17 if field == "num_generations" else 8}
    GRPOConfig(**arguments)
    with pytest.raises(ConfigError, match=field):
        PolicyConfig(**arguments)


class _BatchMean(SFTTrainer):
    """A per-batch mean, as an override of `compute_loss` is usually written."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        out = model(**inputs, fused_lm_head=True)
        return -out.log_probs.sum() / out.label_mask.sum()

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        self.norm = float(norm)
        return norm


def test_accumulation_does_not_multiply_the_gradient(tiny_dir, tmp_path):
    """trl 1.16 leaves `loss_is_scaled_for_ga` open for SFT: such an override trains with a gradient k times too
    large.
    """
    rows = dataset().select([0] * 4)
    ours, theirs = [], []
    for size, steps in ((4, 1), (1, 4)):
        layout = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 1}
        supervised = build("sft", tiny_dir, tmp_path / f"ours{size}", data=rows, max_grad_norm=0.0, **layout)
        gradients(supervised)
        ours.append(supervised.last_grad_norm)
        plain = _BatchMean(
            model=fresh_model(tiny_dir),
            args=SFTConfig(
                output_dir=str(tmp_path / f"trl{size}"), **{**COMMON, **PLAIN, **layout, "max_grad_norm": 0}
            ),
            train_dataset=supervised.train_dataset,
            processing_class=supervised.processing_class,
        )
        plain.train()
        theirs.append(plain.norm)
    assert theirs[1] == pytest.approx(4 * theirs[0], rel=1e-3)
    assert ours[1] == pytest.approx(ours[0], rel=1e-4)


@pytest.mark.parametrize("key", ["grpo", "sft"])
def test_a_non_finite_loss_stops_the_run_before_the_weights_change(key, tiny_dir, tmp_path):
    trainer = build(key, tiny_dir, tmp_path, max_steps=3)
    torch.nn.init.constant_(trainer.model.model.norm.weight, float("nan"))
    with torch.no_grad():
        before = trainer.model.lm_head.weight.clone()
    if key == "grpo":
        trainer.rollout_func = None
        trainer._generate_single_turn = lambda prompt_ids, *a, **k: ([[5, 6, 3]] * len(prompt_ids), None)
    with pytest.raises(
        NonFiniteError, match=r"optimizer step 1: the gradient is not finite; the weights were not changed"
    ):
        trainer.train()
    assert torch.equal(before, trainer.model.lm_head.weight)
