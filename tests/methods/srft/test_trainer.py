"""SRFT: the loss of a whole step against a literal reference, its weights by hand, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from posttrain.errors import ConfigError, SupportError
from posttrain.methods.srft.trainer import SRFTConfig, SRFTTrainer
from posttrain.seam.policy.batches import PolicyBatch
from tests.batteries.runs import REPLAY, build, fresh_model, gradients, relative_difference
from tests.methods.literal import gradient, recording, rows


def test_values_of_three_rows_by_hand(tiny_dir, tmp_path):
    """Right rollout, wrong rollout, demonstration with advantage .5; entropies .2 and .6 in each: H = .4."""
    trainer = build("srft", tiny_dir, tmp_path)  # G = 4
    probability = torch.tensor([[0.5, 0.25]] * 3)
    batch = PolicyBatch(
        probability.log(),
        probability.log(),
        torch.ones(3, 2),
        torch.tensor([0.1, -1.0, 0.5]),
        entropies=torch.tensor([[0.2, 0.6]] * 3),
        extras={"is_demonstration": torch.tensor([False, False, True])},
    )
    values = trainer.policy_loss(batch).values
    grown = 0.1 * math.exp(0.4)
    torch.testing.assert_close(values[0], -grown * probability[0].log())
    torch.testing.assert_close(values[1], probability[1].log())
    # 0.5 e^-H NLL + (1/5) * (- A * p * log p), whose gradient is that of - A * p / 5
    expected = -(0.5 * math.exp(-0.4) + 0.5 * probability[2] / 5) * probability[2].log()
    torch.testing.assert_close(values[2], expected)


def test_gradient_of_a_step_is_that_of_the_literal_loss(tiny_dir, tmp_path):
    trainer = build(
        "srft", tiny_dir, tmp_path, trainer_class=recording(SRFTTrainer), max_steps=1, max_grad_norm=0.0, **REPLAY
    )
    ours = gradients(trainer)
    model = fresh_model(tiny_dir)
    found = rows(trainer.seen, model)
    prompts = {row["prompt"] for row in found}
    assert len(prompts) == 2 and len(found) == 10
    total = torch.zeros(())
    for prompt in prompts:
        group = [row for row in found if row["prompt"] == prompt]
        for row in group:
            size, entropy = len(row["logps"]), float(row["entropies"].mean())
            if row["is_demonstration"]:
                total = total - 0.5 * math.exp(-entropy) * row["logps"].sum() / size
                total = total - row["advantage"] * row["logps"].exp().sum() / size / len(group)
            else:
                coefficient = 0.1 * math.exp(entropy) if row["advantage"] > 0 else -1.0
                total = total - coefficient * row["logps"].sum() / size / len(group)
    coefficients = {round(row["advantage"], 6) for row in found if not row["is_demonstration"]}
    assert coefficients == {0.1, -1.0}
    assert relative_difference(ours, gradient(total / len(prompts), model)) < 1e-5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("advantage_estimator", "rloo"),
        ("loss_aggregation", "token_mean"),
        ("epsilon", 0.1),
        ("shaping_gamma", 0.2),
    ],
)
def test_parts_of_the_estimator_are_refused(field, value, tmp_path):
    with pytest.raises(SupportError, match=f"{field}.*SRFT fixes every part"):
        SRFTConfig(output_dir=str(tmp_path), **{field: value})


def test_another_preset_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"preset.*got 'dapo'; allowed: one of: srft_offline"):
        SRFTConfig(output_dir=str(tmp_path), preset="dapo")


def test_config_survives_a_copy(tmp_path):
    config = SRFTConfig(output_dir=str(tmp_path), report_to="none")
    assert replace(config, seed=3, generation_batch_size=None).upge == config.upge
