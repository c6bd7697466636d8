"""What the seam assumes of TRL, transformers and accelerate, proved on the installed versions."""

from __future__ import annotations

import inspect

import pytest
import torch
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer, SFTTrainer
from trl.trainer import utils as trl_utils
from trl.trainer.utils import add_fused_lm_head, shuffle_sequence_dict, split_tensor_dict

from posttrain.seam.contract import SIGNATURES, signature_rows, version_rows
from tests.batteries.runs import (
    COMMON,
    POLICY,
    Recorder,
    build,
    dataset,
    fresh_model,
    losses,
    marked_right,
    replay,
)


@pytest.mark.parametrize("row", version_rows(), ids=lambda row: row.name)
def test_installed_version_is_verified(row):
    assert row.ok, f"{row.name} {row.found}, verified with {row.expected}"


@pytest.mark.parametrize("row", signature_rows(), ids=lambda row: row.name)
def test_signature(row):
    assert row.ok, f"expected ({row.expected}), found ({row.found})"


def test_every_seam_override_of_a_private_name_is_listed():
    from posttrain.seam.policy.alternation import AlternatingTrainer
    from posttrain.seam.policy.trainer import PolicyTrainer
    from posttrain.seam.supervised.trainer import SupervisedTrainer

    listed = {target.split(".")[-1] for target in SIGNATURES}
    bases = ((AlternatingTrainer, GRPOTrainer), (PolicyTrainer, GRPOTrainer), (SupervisedTrainer, SFTTrainer))
    for ours, theirs in bases:
        overridden = {
            name
            for base in ours.__mro__[: ours.__mro__.index(theirs)]
            for name in vars(base)
            if name.startswith("_") and not name.startswith("__") and callable(getattr(theirs, name, None))
        }
        assert overridden - {"_set_signature_columns_if_needed"} <= listed


def _native(tiny_dir, tmp_path, trainer_class=GRPOTrainer, data=None, **overrides):
    arguments = {**COMMON, **POLICY, "bf16": False, "gradient_checkpointing": False, **overrides}
    kwargs = {"rollout_func": replay} if arguments.pop("replayed", False) else {}
    trainer = trainer_class(
        model=fresh_model(tiny_dir),
        reward_funcs=arguments.pop("reward", marked_right),
        args=GRPOConfig(output_dir=str(tmp_path), **arguments),
        train_dataset=dataset() if data is None else data,
        processing_class=build("sft", tiny_dir, tmp_path / "tokenizer").processing_class,
        **kwargs,
    )
    return trainer


class _Spy(GRPOTrainer):
    """Plain TRL that remembers what passes through it."""

    calls: list[str]

    def _generate(self, prompts):
        result = super()._generate(prompts)
        self.generated = result
        return result

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        self.batch = dict(batch)
        batch["ours"] = torch.arange(len(inputs))
        batch["our_list"] = [str(i) for i in range(len(inputs))]
        batch["our_scalar"] = torch.tensor(3.0)
        return batch

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        self.scored = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        return self.scored

    def _compute_loss(self, model, inputs):
        self.last_inputs = inputs
        return super()._compute_loss(model, inputs)

    def _get_grad_norm(self, model, grad_norm=None):
        self.norms = getattr(self, "norms", 0) + 1
        return super()._get_grad_norm(model, grad_norm)


def test_shape_of_trls_rollout_path(tiny_dir, tmp_path):
    trainer = _native(tiny_dir, tmp_path, _Spy, max_steps=2)
    trainer.train()
    assert len(trainer.generated) == 8
    assert len(trainer.scored) == 3
    assert {
        "prompt_ids",
        "prompt_mask",
        "completion_ids",
        "completion_mask",
        "advantages",
        "num_items_in_batch",
    } == set(trainer.batch)
    assert trainer.norms == 2
    kept = trainer.last_inputs
    assert [int(text) for text in kept["our_list"]] == kept["ours"].tolist()
    assert kept["our_scalar"] == 3.0


def test_old_log_probs_are_computed_only_when_a_batch_outlives_an_optimizer_step(tiny_dir, tmp_path):
    once = _native(tiny_dir, tmp_path / "a", _Spy, max_steps=1)
    once.train()
    twice = _native(tiny_dir, tmp_path / "b", _Spy, max_steps=1, num_iterations=2)
    twice.train()
    assert "old_per_token_logps" not in once.batch
    assert "old_per_token_logps" in twice.batch


def test_per_token_advantages_are_accepted(tiny_dir, tmp_path):
    class PerToken(_Spy):
        def _generate_and_score_completions(self, inputs):
            batch = super()._generate_and_score_completions(inputs)
            batch["advantages"] = batch["advantages"].unsqueeze(1).expand_as(batch["completion_ids"]).contiguous()
            return batch

    layout = {"max_steps": 1, "replayed": True, "shuffle_dataset": False}
    per_token = _native(tiny_dir, tmp_path / "a", PerToken, **layout)
    per_token.train()
    per_row = _native(tiny_dir, tmp_path / "b", _Spy, **layout)
    per_row.train()
    assert losses(per_token) == losses(per_row) != [0.0]


def test_fused_output_fields(tiny_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_dir)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    ids = torch.randint(4, 90, (2, 5))
    out = model(input_ids=ids, labels=ids, fused_lm_head=True)
    assert out.log_probs.shape == out.entropy.shape == out.is_top1.shape == out.label_mask.shape == (2, 4)
    assert "logits" not in out


def test_names_the_head_exchanges_are_looked_up_at_call_time():
    source = inspect.getsource(trl_utils.add_fused_lm_head)
    assert "_use_triton(hidden_states.device)" in source
    assert "_ChunkedLogProbFunction.apply(" in source


def test_shuffle_and_split_keep_rows_together():
    batch = {"a": torch.arange(6), "b": [str(i) for i in range(6)], "c": torch.tensor(1.0), "d": None}
    for part in split_tensor_dict(shuffle_sequence_dict(batch), 3):
        assert part["a"].tolist() == [int(text) for text in part["b"]]
        assert part["c"] == 1.0 and part["d"] is None


def test_order_of_hooks_within_an_optimizer_step(tiny_dir, tmp_path):
    """Samples of the whole step are fetched first, then micro-steps, the norm, the optimizer, and only then the
    save.
    """
    seen = []
    trainer = build("grpo", tiny_dir, tmp_path, max_steps=1, save_strategy="steps", save_steps=1)

    def trace(name):
        original = getattr(trainer, name)

        def traced(*args, **kwargs):
            seen.append(name)
            return original(*args, **kwargs)

        setattr(trainer, name, traced)

    for name in (
        "get_batch_samples",
        "training_step",
        "_clip_grad_norm",
        "_get_grad_norm",
        "_save_optimizer_and_scheduler",
        "_save_rng_state",
    ):
        trace(name)
    trainer.train()
    assert seen == [
        "get_batch_samples",
        "training_step",
        "training_step",
        "_clip_grad_norm",
        "_get_grad_norm",
        "_save_optimizer_and_scheduler",
        "_save_rng_state",
    ]


@pytest.mark.parametrize(("trainer", "scaled"), [(GRPOTrainer, True), (SFTTrainer, None)])
def test_accumulation_flag(trainer, scaled):
    assert trainer.loss_is_scaled_for_ga is scaled


def test_rewards_are_gathered_rows_by_functions(tiny_dir, tmp_path):
    reward = Recorder()
    trainer = build("grpo", tiny_dir, tmp_path, reward=[reward, lambda completions, **_: [None] * len(completions)])
    rows = [dataset()[0]] * 4
    found = trainer._calculate_rewards(rows, [r["prompt"] for r in rows], [[{"content": "a"}]] * 4, [[5]] * 4)
    assert found.shape == (4, 2)
    assert found[:, 1].isnan().all()
