"""RFT-CPT: advantages by hand, the loss of a step against a literal reference, rejection sampling, and refusals."""

from __future__ import annotations

import pytest
import torch

from posttrain.errors import ConfigError
from posttrain.losses.upge import UPGE_PRESETS, group_advantages
from posttrain.methods.rft_cpt.trainer import RFTCPTConfig, RFTCPTTrainer
from tests.batteries.runs import REPLAY, build, fresh_model, gradients, never_right, relative_difference, weights
from tests.methods.literal import gradient, recording, rows


@pytest.mark.parametrize(
    ("right", "squares"), [(0, 0.0), (1, 0.875), (2, 1.5), (3, 1.875), (4, 2.0), (7, 0.875), (8, 0.0)]
)
def test_the_update_grows_with_the_variance_unless_it_is_divided_out(right: int, squares: float):
    """k of 8 right: sum of (r - mean)^2 = 8 * p * (1 - p); divided by the sample deviation it is 7 for every k."""
    rewards = torch.tensor([1.0] * right + [0.0] * (8 - right), dtype=torch.float64)
    mean = group_advantages(rewards, 8, config=UPGE_PRESETS["dr_grpo"])
    assert float((mean**2).sum()) == pytest.approx(squares)
    normed = group_advantages(rewards, 8, config=UPGE_PRESETS["grpo"])
    assert float((normed**2).sum()) == pytest.approx(7.0 if 0 < right < 8 else 0.0, rel=1e-4)


def test_rloo_of_one_right_answer_in_four():
    found = group_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), 4, config=UPGE_PRESETS["rloo"])
    torch.testing.assert_close(found, torch.tensor([1.0, -1 / 3, -1 / 3, -1 / 3]))


def test_the_default_loss_is_the_papers(tmp_path):
    upge = RFTCPTConfig(output_dir=str(tmp_path), report_to="none").upge
    assert (upge.epsilon_low, upge.epsilon_high, upge.epsilon_dual) == (0.2, 0.3, 3.0)
    assert (upge.stabilization_mask, upge.loss_aggregation) == ("dual_clip", "token_mean")
    assert upge.advantage_estimator == "group_norm"


def test_rejection_learns_right_rollouts_like_demonstrations(tiny_dir, tmp_path):
    """Mean negative log-likelihood over the tokens of the right rollouts of the step, and of nothing else."""
    built = {"trainer_class": recording(RFTCPTTrainer), "max_steps": 1, "max_grad_norm": 0.0, **REPLAY}
    trainer = build("rft_cpt", tiny_dir, tmp_path, update="rejection", **built)
    ours = gradients(trainer)
    model = fresh_model(tiny_dir)
    for tensors in trainer.seen:  # what the literal reference reads of methods with demonstrations
        ones = torch.ones_like(tensors["advantages"])
        tensors |= {"row_weight": ones, "is_demonstration": ones == 0}
    found = [row for row in rows(trainer.seen, model) if row["advantage"] == 1.0]
    assert 0 < len(found) < 8
    tokens = sum(len(row["logps"]) for row in found)
    loss = -sum(row["logps"].sum() for row in found) / tokens
    assert relative_difference(ours, gradient(loss, model)) < 1e-5


@pytest.mark.parametrize("update", ["policy_gradient", "rejection"])
def test_nothing_is_learnt_from_rollouts_that_are_all_wrong(tiny_dir, tmp_path, update):
    trainer = build("rft_cpt", tiny_dir, tmp_path, update=update, reward=never_right, max_steps=1, weight_decay=0.0)
    before = weights(trainer)
    trainer.train()
    assert all(torch.equal(before[name], value) for name, value in weights(trainer).items())


def test_rejection_compares_no_rewards(tmp_path):
    with pytest.raises(ConfigError, match="advantage_estimator: rejection sampling compares no rewards"):
        RFTCPTConfig(output_dir=str(tmp_path), update="rejection", advantage_estimator="rloo")
