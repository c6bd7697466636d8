"""CHORD: its schedule by hand, the loss of a whole step against a literal reference, its limits, what it refuses."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from posttrain.errors import ConfigError, SupportError
from posttrain.methods.chord.trainer import CHORDConfig, CHORDTrainer, supervised_share
from tests.batteries.runs import REPLAY, build, costs, dataset, fresh_model, gradients, relative_difference, weights
from tests.methods.literal import gradient, recording, rows


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("linear", 0, 0.9),
        ("linear", 25, 0.7),
        ("linear", 100, 0.1),
        ("linear", 500, 0.1),
        ("cosine", 0, 0.9),
        ("cosine", 50, 0.5),
        ("cosine", 25, 0.1 + 0.8 * (1 + 0.5**0.5) / 2),
        ("cosine", 101, 0.1),
    ],
)
def test_schedule_by_hand(schedule, step, expected):
    found = supervised_share(step, start=0.9, end=0.1, decay_steps=100, schedule=schedule)
    assert found == pytest.approx(expected, abs=1e-12)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="allowed: linear, cosine"):
        supervised_share(0, start=0.9, end=0.1, decay_steps=1, schedule="step")


@pytest.mark.parametrize("weight", ["none", "p_times_one_minus_p"])
@pytest.mark.parametrize("layout", [{}, {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}], ids=str)
def test_gradient_of_a_step_is_that_of_the_literal_loss(layout, weight, tiny_dir, tmp_path):
    trainer = build(
        "chord", tiny_dir, tmp_path, trainer_class=recording(CHORDTrainer), max_steps=1, max_grad_norm=0.0,
        mu_start=0.7, demonstration_weight=weight, **layout, **REPLAY,
    )  # fmt: skip
    ours = gradients(trainer)
    model = fresh_model(tiny_dir)
    found = rows(trainer.seen, model)
    rollouts = [row for row in found if not row["is_demonstration"]]
    demonstrations = [row for row in found if row["is_demonstration"]]
    assert (len(rollouts), len(demonstrations)) == (8, 2)
    supervised = torch.zeros(())
    for row in demonstrations:
        for logp in row["logps"]:
            p = float(logp.detach().exp())
            supervised = supervised - logp * (1.0 if weight == "none" else p * (1 - p))
    supervised = supervised / sum(len(row["logps"]) for row in demonstrations)
    policy = torch.zeros(())
    for row in rollouts:  # on-policy: the ratio is 1, and its gradient that of log pi
        policy = policy - row["advantage"] * row["logps"].sum() / len(row["logps"]) / len(rollouts)
    assert len({round(row["advantage"], 4) for row in rollouts}) > 1
    assert relative_difference(ours, gradient(0.3 * policy + 0.7 * supervised, model)) < 1e-5


def test_without_supervised_share_it_is_grpo(tiny_dir, tmp_path):
    layout = {"max_steps": 1, "max_grad_norm": 0.0, "preset": "grpo", **REPLAY}
    chord = gradients(build("chord", tiny_dir, tmp_path / "a", mu_start=0.0, mu_end=0.0, **layout))
    grpo = gradients(build("grpo", tiny_dir, tmp_path / "b", **layout))
    assert relative_difference(chord, grpo) < 1e-6
    assert any(value.any() for value in grpo.values())


def test_with_the_whole_share_it_is_supervised_training_on_the_prompts_demonstrations(tiny_dir, tmp_path):
    """Two prompts a step, in dataset order: rows 0 and 1."""
    chord = build(
        "chord", tiny_dir, tmp_path / "a", mu_start=1.0, mu_end=1.0, max_steps=1, max_grad_norm=0.0, **REPLAY
    )
    sft = build(
        "sft", tiny_dir, tmp_path / "b", data=dataset(2), max_steps=1, max_grad_norm=0.0,
        per_device_train_batch_size=2, gradient_accumulation_steps=1, train_sampling_strategy="sequential",
    )  # fmt: skip
    assert relative_difference(gradients(chord), gradients(sft)) < 1e-5


def test_the_entropy_bonus_shrinks_with_the_policys_share(tiny_dir, tmp_path):
    """What the bonus adds to the gradient at mu = 0.7 is 0.3 of what it adds at 0, and nothing at 1."""

    def added(share: float) -> dict[str, torch.Tensor]:
        layout = {"max_steps": 1, "max_grad_norm": 0.0, "mu_start": share, "mu_end": 0.0, **REPLAY}
        without, with_it = (
            gradients(build("chord", tiny_dir, tmp_path / f"{share}{coef}", entropy_coef=coef, **layout))
            for coef in (0.0, 1.0)
        )
        return {name: with_it[name] - value for name, value in without.items()}

    alone = added(0.0)
    assert any(value.abs().max() > 1e-4 for value in alone.values())
    assert relative_difference(added(0.7), {name: 0.3 * value for name, value in alone.items()}) < 1e-3
    assert not any(value.any() for value in added(1.0).values())


def test_the_share_decays_over_the_run(tiny_dir, tmp_path):
    trainer = build("chord", tiny_dir, tmp_path, max_steps=4, mu_start=0.8, mu_end=0.0, mu_schedule="linear")
    trainer.train()
    shares = [
        float(entry["chord/supervised_share"])
        for entry in trainer.state.log_history
        if "chord/supervised_share" in entry
    ]
    assert shares == pytest.approx([0.8, 0.6, 0.4, 0.2], rel=1e-3)
    assert costs(trainer)["cost/demonstrations"] == costs(trainer)["cost/prompts"] == 8


def test_a_prompt_without_demonstration_keeps_its_rollouts(tiny_dir, tmp_path):
    data = dataset().to_list()
    data[0]["solution"] = ""
    trainer = build(
        "chord", tiny_dir, tmp_path, data=dataset().from_list(data), trainer_class=recording(CHORDTrainer),
        max_steps=1, **REPLAY,
    )  # fmt: skip
    trainer.train()
    found = rows(trainer.seen, fresh_model(tiny_dir))
    assert (len(found), sum(row["is_demonstration"] for row in found)) == (9, 1)
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert float(log["gate/missing_demonstration_fraction"]) == 0.5
    assert float(log["gate/sft_fraction"]) == 0.5


def test_adapters_alone_are_trained_with_lora(tiny_dir, tmp_path):
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = build("chord", tiny_dir, tmp_path, max_steps=2, trainer_kwargs={"peft_config": lora})
    before = weights(trainer)
    trainer.train()
    changed = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert changed and all("lora" in name for name in changed)


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"mu_start": 0.1, "mu_end": 0.2}, ConfigError, r"mu_end: the supervised share would grow .*got 0.2.*0.1"),
        ({"mu_start": 1.5}, ConfigError, r"mu_start.*got 1.5"),
        ({"mu_decay_steps": 0}, ConfigError, r"mu_decay_steps.*got 0"),
        ({"mu_schedule": "step"}, ConfigError, r"mu_schedule.*got 'step'"),
        ({"demonstration_weight": "p"}, ConfigError, r"demonstration_weight.*got 'p'"),
        ({"temperature": 0.7}, SupportError, "learnt at the sampling temperature"),
    ],
    ids=str,
)
def test_settings_that_are_refused(settings, kind, message, tmp_path):
    with pytest.raises(kind, match=message):
        CHORDConfig(output_dir=str(tmp_path), **settings)
