"""LUFFY: the loss of a whole step against a literal reference, the union's advantages, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from posttrain.errors import DataError, SupportError
from posttrain.losses.upge import UPGE_PRESETS
from posttrain.methods.luffy.trainer import LUFFYTrainer
from posttrain.seam.policy.demonstrations import union_advantages
from tests.batteries.runs import REPLAY, build, dataset, fresh_model, gradients, never_right, relative_difference
from tests.methods.literal import gradient, recording, rows


def test_demonstration_enters_the_groups_mean_and_deviation():
    # Rewards 1, 0, 0 and the demonstration's 1: mean .5, sample deviation sqrt(1/3) = .5773503.
    config = UPGE_PRESETS["luffy_offline"]
    rollouts, demos = union_advantages(
        torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0]), config=config, num_generations=3
    )
    expected = 0.5 / (0.5773503 + 1e-6)
    torch.testing.assert_close(rollouts, torch.tensor([expected, -expected, -expected]))
    torch.testing.assert_close(demos, torch.tensor([expected]))


def test_group_without_demonstration_is_compared_within_itself():
    config = UPGE_PRESETS["luffy_offline"]
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    rollouts, demos = union_advantages(rewards, torch.tensor([torch.nan, 1.0]), config=config, num_generations=3)
    # mean 1/3, sample deviation .5773503; the second group is flat.
    torch.testing.assert_close(
        rollouts, torch.tensor([2 / 3, -1 / 3, -1 / 3, 0, 0, 0]) / torch.tensor(0.5773503 + 1e-6)
    )
    assert demos.tolist() == [0.0, 0.0]


def test_gradient_of_a_step_is_that_of_the_literal_loss(tiny_dir, tmp_path):
    """Mean over all tokens of - A * r on rollouts (r = 1) and - A * f(p), f(p) = p / (p + .1), on demonstrations."""
    trainer = build(
        "luffy", tiny_dir, tmp_path, trainer_class=recording(LUFFYTrainer), max_steps=1, max_grad_norm=0.0, **REPLAY
    )
    ours = gradients(trainer)
    model = fresh_model(tiny_dir)
    found = rows(trainer.seen, model)
    assert sum(row["is_demonstration"] for row in found) == 2 and len(found) == 10
    loss, tokens = torch.zeros(()), 0
    for row in found:
        for logp in row["logps"]:
            probability = logp.exp()
            on_policy = (logp - logp.detach()).exp()
            shaped = probability / (probability + 0.1)
            loss = loss - row["advantage"] * (shaped if row["is_demonstration"] else on_policy)
            tokens += 1
    assert relative_difference(ours, gradient(loss / tokens, model)) < 1e-5


def test_a_demonstration_among_failures_is_what_is_learnt(tiny_dir, tmp_path):
    """Where plain GRPO has no gradient at all, the union has one."""
    arguments = {**REPLAY, "reward": never_right, "max_steps": 1, "max_grad_norm": 0.0}
    plain = gradients(build("grpo", tiny_dir, tmp_path / "grpo", preset="grpo", **arguments))
    union = gradients(build("luffy", tiny_dir, tmp_path / "luffy", **arguments))
    assert not any(value.any() for value in plain.values())
    assert any(value.any() for value in union.values())


def test_every_prompt_counts_its_demonstration(tiny_dir, tmp_path):
    trainer = build("luffy", tiny_dir, tmp_path, max_steps=3, **REPLAY)
    trainer.train()
    last = trainer.state.log_history[-2]
    assert last["cost/prompts"] == last["cost/demonstrations"] == 6
    assert last["gate/sft_fraction"] == 1.0 and last["gate/missing_demonstration_fraction"] == 0.0


def test_prompt_without_demonstration_keeps_its_rollouts_and_is_counted(tiny_dir, tmp_path):
    data = dataset()
    texts = ["" if index % 3 == 0 else text for index, text in enumerate(data["solution"])]
    data = data.remove_columns("solution").add_column("solution", texts)
    trainer = build("luffy", tiny_dir, tmp_path, data=data, max_steps=3, **REPLAY)
    trainer.train()
    missing = [entry["gate/missing_demonstration_fraction"] for entry in trainer.state.log_history[:3]]
    assert sum(missing) == pytest.approx(1.0)  # rows 0 and 3 of the first six, two prompts a step


@pytest.mark.parametrize("key", ["luffy", "srft"])
def test_missing_column_is_refused(key, tiny_dir, tmp_path):
    with pytest.raises(DataError, match=r"demonstration column is missing .*worked"):
        build(key, tiny_dir, tmp_path, demonstration_column="worked")


@pytest.mark.parametrize("key", ["luffy", "srft"])
def test_another_temperature_is_refused(key, tiny_dir, tmp_path):
    with pytest.raises(SupportError, match=r"rollout.temperature.*sampling temperature"):
        build(key, tiny_dir, tmp_path, temperature=0.6)


def test_evaluation_does_not_write_into_the_training_log(tiny_dir, tmp_path):
    trainer = build(
        "luffy",
        tiny_dir,
        tmp_path,
        trainer_kwargs={**REPLAY["trainer_kwargs"], "eval_dataset": dataset(4)},
        reward=REPLAY["reward"],
        per_device_eval_batch_size=4,
        num_generations_eval=4,
        max_steps=1,
    )
    trainer.train()
    trainer._metrics["train"].clear()
    trainer.evaluate()
    assert not any(trainer._metrics["train"].values())


@pytest.mark.parametrize("key", ["hpt", "luffy", "srft"])
def test_a_failed_row_leaves_the_counts_of_the_loss(key, tiny_dir, tmp_path):
    """Of two prompts with two rollouts each, a reward failed on one rollout: the three others share the weight."""
    trainer = build(key, tiny_dir, tmp_path, num_generations=2, per_device_train_batch_size=4)
    trainer.args.gradient_accumulation_steps = 1
    window = {
        "completion_mask": torch.ones(4, 2),
        "trainable_mask": torch.tensor([[1, 1], [0, 0], [1, 1], [1, 1]]),
        "advantages": torch.ones(4),
        "is_demonstration": torch.zeros(4, dtype=torch.bool),
        "row_weight": torch.ones(4),
        "is_failed": torch.tensor([False, True, False, False]),
    }
    (weights,) = trainer.loss_weights([window])
    # hpt: 1 / (3 rows * 12 tokens); luffy: 1 / 6 tokens; srft: 1 / (3 rows + 2 prompts) over 2 tokens.
    expected = {"hpt": 1 / 36, "luffy": 1 / 6, "srft": 1 / 10}[key]
    torch.testing.assert_close(weights, window["trainable_mask"] * torch.tensor(expected))
