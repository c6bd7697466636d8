"""What HPT refuses, by message."""

from __future__ import annotations

import pytest

from posttrain.errors import ConfigError, DataError, PosttrainError, RewardError, SupportError
from posttrain.methods.hpt.trainer import HPTConfig
from tests.batteries.runs import COMMON, POLICY, REPLAY, Recorder, build, dataset, fresh_model


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"switch_gate": 1.0}, r"HPTConfig\.switch_gate.*got 1\.0"),
        ({"switch_gate": -0.5}, r"method\.switch_gate: not a success rate \(got -0\.5; allowed: 0 <= gate < 1, or -1"),
        ({"num_generations": 1}, r"num_generations"),
        ({"feedback_mode": "soft"}, r"method\.soft_alpha.*soft needs it"),
        ({"soft_alpha": [0.1] * 5}, r"method\.soft_alpha.*belongs to feedback_mode soft"),
        (
            {"feedback_mode": "soft", "soft_alpha": [0.0, 1.0], "soft_beta": [1.0, 0.0]},
            r"method\.soft_alpha.*got '2 numbers'; allowed: num_generations \+ 1 = 5 numbers",
        ),
        ({"offline_loss": "dpo"}, r"HPTConfig\.offline_loss.*got 'dpo'.*sft, off_policy, mix"),
        ({"sft_loss_coef": -1.0}, r"HPTConfig\.sft_loss_coef"),
        ({"skip_update_grad_norm": 0.0}, r"HPTConfig\.skip_update_grad_norm"),
        ({"loss_type": "sapo"}, r"trainer\.loss_type.*Use method\.preset"),
        ({"loss_type": "dapo"}, r"trainer\.loss_type.*Use method\.preset"),
        ({"scale_rewards": "group"}, r"trainer\.scale_rewards.*Use method\.advantage_estimator"),
        ({"delta": 2.0}, r"trainer\.delta.*dual_clip"),
        ({"advantage_group": "all"}, r"method\.advantage_group.*would change nothing"),
        ({"temperature": 0.6}, r"rollout\.temperature.*allowed: 1\.0 while demonstrations are used"),
        ({"steps_per_generation": 3}, r"trainer\.steps_per_generation.*multiple of trainer\.gradient_accumulation"),
    ],
)
def test_config_refusals(overrides, message, tmp_path):
    with pytest.raises((PosttrainError, ValueError), match=message):
        HPTConfig(output_dir=str(tmp_path), **{**COMMON, **POLICY, **overrides})


def test_falling_soft_table_warns(tmp_path):
    tables = {"soft_alpha": [1.0, 0.5, 0.0, 0.0, 0.0], "soft_beta": [1.0, 0.5, 0.0, 0.0, 0.0]}
    with pytest.warns(UserWarning, match="soft_alpha does not rise"):
        HPTConfig(output_dir=str(tmp_path), feedback_mode="soft", **tables, **COMMON, **POLICY)


def test_missing_demonstration_column_is_named(tiny_dir, tmp_path):
    with pytest.raises(DataError, match=r"demonstration column is missing.*allowed: a column 'solution'"):
        build("hpt", tiny_dir, tmp_path, data=dataset().remove_columns("solution"))


def test_overlong_demonstration_is_refused_by_default(tiny_dir, tmp_path):
    data = dataset().select([2, 2]).map(lambda row: {"solution": "a" * 40})
    trainer = build("hpt", tiny_dir, tmp_path, max_steps=1, data=data, **REPLAY)
    with pytest.raises(DataError, match=r"'41 tokens'; allowed: at most 12 \(rollout\.max_completion_length\)"):
        trainer.train()


@pytest.mark.parametrize("value", [1.5, -0.1])
def test_a_verifier_outside_its_range_is_refused(value, tiny_dir, tmp_path):
    trainer = build("hpt", tiny_dir, tmp_path, reward=Recorder(lambda p, c, **_: [value] * len(c)), max_steps=1)
    with pytest.raises(RewardError, match=r"must return values in \[0, 1\]"):
        trainer.train()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_no_verdict(value, tiny_dir, tmp_path):
    trainer = build("hpt", tiny_dir, tmp_path, reward=Recorder(lambda p, c, **_: [value] * len(c)), max_steps=1)
    with pytest.raises(RewardError, match=r"not a finite number.*Return None for a row without a score"):
        trainer.train()


def test_mostly_empty_demonstrations_are_refused(tiny_dir, tmp_path):
    data = dataset().map(lambda row: {"solution": "" if row["answer"] > "2" else row["solution"]})
    with pytest.raises(DataError, match="more than half of the rows have no demonstration"):
        build("hpt", tiny_dir, tmp_path, data=data)


def test_demonstrations_that_are_messages_are_refused_and_not_passed_over(tiny_dir, tmp_path):
    data = dataset().map(lambda row: {"solution": [{"role": "assistant", "content": "1"}]}, remove_columns="solution")
    with pytest.raises(DataError, match="train row 0, column 'solution': a demonstration is text"):
        build("hpt", tiny_dir, tmp_path, data=data)


def test_external_advantages_are_refused(tiny_dir, tmp_path):
    with pytest.raises(SupportError, match="advantages come from the caller"):
        build("hpt", tiny_dir, tmp_path, preset="ppo")


def test_prompt_tuning_is_refused(tiny_dir, tmp_path):
    from peft import PromptTuningConfig, get_peft_model

    settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(SupportError, match="prompt-learning adapters"):
        build("hpt", tiny_dir, tmp_path / "a", trainer_kwargs={"peft_config": settings})
    with pytest.raises(SupportError, match="prompt-learning adapters"):
        build("hpt", tiny_dir, tmp_path / "b", model=get_peft_model(fresh_model(tiny_dir), settings))


def test_too_few_prompts_are_refused_at_construction(tiny_dir, tmp_path):
    with pytest.raises(
        ConfigError, match=r"fewer prompts than one generation batch needs \(got 1; allowed: at least 2"
    ):
        build("hpt", tiny_dir, tmp_path, data=dataset(1))
