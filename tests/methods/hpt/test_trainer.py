"""HPT: the paper's numbers, its reductions to Dr.GRPO and SFT, and what it refuses. Batteries hold the rest."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from trl import GRPOConfig, GRPOTrainer

from posttrain.losses.upge import surrogate_values
from posttrain.seam.policy.batches import PolicyBatch
from tests.batteries.runs import (
    COMMON,
    POLICY,
    REPLAY,
    build,
    dataset,
    fresh_model,
    gradients,
    marked_right,
    never_right,
    relative_difference,
    replay,
)

# ---- the loss of one step, by hand ----


def _step(tiny_dir, tmp_path, **overrides):
    """Two prompts, n = 2, L_max = 4. Prompt 1: rewards (1, 0), lengths 2 and 3. Prompt 2: all wrong; demonstration of
    three tokens with probabilities .5, .25, .1, in the third row."""
    trainer = build(
        "hpt",
        tiny_dir,
        tmp_path,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
        num_generations=2,
        max_completion_length=4,
        **overrides,
    )
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]])
    logps = torch.full((4, 4), math.log(0.3))
    logps[2, :3] = torch.tensor([0.5, 0.25, 0.1]).log()
    window = {
        "completion_mask": torch.ones_like(mask),
        "trainable_mask": mask,
        "advantages": torch.tensor([0.5, -0.5, 1.0, 0.0]),
        "is_demonstration": torch.tensor([False, False, True, False]),
        "row_weight": torch.tensor([1.0, 1.0, 1.0, 0.0]),
        "is_failed": torch.zeros(4, dtype=torch.bool),
    }
    return trainer, window, mask.float(), logps


def _value(trainer, micro_batches, mask, logps):
    weights = trainer.loss_weights(micro_batches)
    total, start = 0.0, 0
    for tensors, weight in zip(micro_batches, weights, strict=True):
        rows = slice(start, start + len(weight))
        start += len(weight)
        native = surrogate_values(
            logps[rows], logps[rows], tensors["advantages"], mask[rows], config=trainer.args.upge
        )
        likelihood = -logps[rows] * mask[rows]
        per_token = torch.where(tensors["is_demonstration"].unsqueeze(1), likelihood, native)
        total += float((per_token * weight).sum())
    return total


def test_value_of_the_paper_example(tiny_dir, tmp_path):
    trainer, window, mask, logps = _step(tiny_dir, tmp_path)
    # L_RL = -(1/(2*4)) * (.5*2 - .5*3) = .0625; L_SFT = -(ln .5 + ln .25 + ln .1)/3 = 1.4606755; L = their mean.
    assert _value(trainer, [window], mask, logps) == pytest.approx((0.0625 + 1.4606755) / 2, abs=1e-6)


def test_value_does_not_depend_on_the_split(tiny_dir, tmp_path):
    trainer, window, mask, logps = _step(tiny_dir, tmp_path)
    rows = [{key: value[i : i + 1] for key, value in window.items()} for i in range(4)]
    halves = [{key: value[i : i + 2] for key, value in window.items()} for i in (0, 2)]
    assert _value(trainer, rows, mask, logps) == pytest.approx(0.76158778, abs=1e-6)
    assert _value(trainer, halves, mask, logps) == pytest.approx(0.76158778, abs=1e-6)


def test_demonstration_weight_and_token_mean(tiny_dir, tmp_path):
    trainer, window, mask, logps = _step(tiny_dir, tmp_path, sft_loss_coef=0.3, offline_aggregation="token_mean")
    # One demonstration: its token mean is its sequence mean, and its share of the loss is 1 of Q = 2 prompts.
    assert _value(trainer, [window], mask, logps) == pytest.approx((0.0625 + 0.3 * 1.4606755) / 2, abs=1e-6)


def test_mixed_offline_loss_is_the_stated_sum(tiny_dir, tmp_path):
    trainer, window, mask, logps = _step(tiny_dir, tmp_path, offline_loss="mix")
    logps = logps.clone().requires_grad_()
    batch = PolicyBatch(logps, logps.detach(), mask, window["advantages"], extras=window)
    values = trainer.policy_loss(batch).values[2, :3]
    probability = torch.tensor([0.5, 0.25, 0.1])
    slope = 0.1 * probability / (probability + 0.1) ** 2  # f'(p) * p with gamma = .1
    expected = -(0.1 + 1.0 * slope) * probability.log()
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)


# ---- reductions ----


def test_gate_off_is_dr_grpo_bit_for_bit(tiny_dir, tmp_path):
    with pytest.warns(UserWarning, match="demonstrations are never used"):
        left = gradients(build("hpt", tiny_dir, tmp_path / "hpt", switch_gate=-1.0, max_steps=1, **REPLAY))
    right = gradients(build("grpo", tiny_dir, tmp_path / "grpo", preset="dr_grpo", max_steps=1, **REPLAY))
    assert all(torch.equal(left[name], right[name]) for name in right)
    assert any(value.any() for value in right.values())


@pytest.mark.parametrize("passes", [1, 2])
def test_gate_off_is_trls_dr_grpo(passes, tiny_dir, tmp_path):
    """The whole trainer against TRL's own, clipping included in the second pass over a batch."""
    steps = {"max_steps": passes, "num_iterations": passes, "learning_rate": 0.05}
    with pytest.warns(UserWarning, match="never used"):
        hybrid = build(
            "hpt", tiny_dir, tmp_path / "hpt", switch_gate=-1.0, epsilon=0.05, max_grad_norm=0.0, **steps, **REPLAY
        )
    hybrid.train()
    arguments = {**COMMON, **POLICY, **steps, "max_grad_norm": 0.0, "shuffle_dataset": False, "epsilon": 0.05}
    native = GRPOTrainer(
        model=fresh_model(tiny_dir),
        reward_funcs=marked_right,
        args=GRPOConfig(
            output_dir=str(tmp_path / "trl"),
            loss_type="dr_grpo",
            scale_rewards="none",
            bf16=False,
            gradient_checkpointing=False,
            **arguments,
        ),
        train_dataset=dataset(),
        processing_class=hybrid.processing_class,
        rollout_func=replay,
    )
    native.train()
    left, right = dict(hybrid.model.named_parameters()), dict(native.model.named_parameters())
    start = dict(fresh_model(tiny_dir).named_parameters())
    moved = {name: (value - start[name]).detach() for name, value in right.items()}
    ours = {name: (left[name] - start[name]).detach() for name in right}
    assert relative_difference(ours, moved) < 1e-3  # Adam divides by the gradient's size, which amplifies rounding
    assert sum(float((value**2).sum()) for value in moved.values()) > 0


@pytest.mark.parametrize("coefficient", [1.0, 0.3])
def test_all_rollouts_failing_is_sft(coefficient, tiny_dir, tmp_path):
    hybrid = build(
        "hpt",
        tiny_dir,
        tmp_path / "hpt",
        reward=never_right,
        offline_aggregation="token_mean",
        sft_loss_coef=coefficient,
        max_steps=1,
        max_grad_norm=0.0,
        shuffle_dataset=False,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=1,
    )
    supervised = build(
        "sft",
        tiny_dir,
        tmp_path / "sft",
        data=dataset().select(range(4)),
        max_steps=1,
        max_grad_norm=0.0,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
    )
    left, right = gradients(hybrid), gradients(supervised)
    right = {name: value * coefficient for name, value in right.items()}
    assert relative_difference(left, right) < 1e-6


def test_kept_prompts_do_not_depend_on_the_demonstrations(tiny_dir, tmp_path):
    """Only odd prompts, which the replayed rollouts sometimes solve: their demonstrations must not matter."""
    data = dataset().select([1, 3, 5, 7])
    other = data.map(lambda row: {"solution": "quite another text"})
    found = [
        gradients(
            build("hpt", tiny_dir, tmp_path / str(i), data=rows, max_steps=1, max_completion_length=20, **REPLAY)
        )
        for i, rows in enumerate((data, other))
    ]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("correction", [True, False])
def test_the_kl_term_leaves_demonstrations_alone(correction, tiny_dir, tmp_path):
    """At the first step policy and reference agree, so a KL term has no gradient on any row."""
    overrides = {"reward": never_right, "max_steps": 1, "max_grad_norm": 0.0, "use_bias_correction_kl": correction}
    found = [gradients(build("hpt", tiny_dir, tmp_path / str(beta), beta=beta, **overrides)) for beta in (0.0, 0.5)]
    assert relative_difference(found[1], found[0]) < 1e-6


@pytest.mark.parametrize("failed", [0, 1])
@pytest.mark.parametrize("aggregation", ["token_mean", "seq_mean_token_mean", "seq_mean_token_sum_norm"])
def test_each_prompt_has_its_share_of_the_loss(aggregation, failed, tiny_dir, tmp_path):
    """One kept prompt of four: its rollouts weigh a quarter, those alone that no reward failed on; the three
    demonstrations weigh three quarters."""
    trainer = build(
        "hpt",
        tiny_dir,
        tmp_path,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=1,
        loss_aggregation=aggregation,
        max_completion_length=5,
    )
    mask = torch.zeros(16, 5)
    mask[failed:4] = 1.0
    mask[[4, 8, 12]] = 1.0
    demonstrated = torch.zeros(16, dtype=torch.bool)
    demonstrated[[4, 8, 12]] = True
    window = {
        "completion_mask": torch.ones(16, 5),
        "trainable_mask": mask,
        "is_demonstration": demonstrated,
        "row_weight": torch.tensor([1.0] * 4 + [1.0, 0.0, 0.0, 0.0] * 3),
        "is_failed": torch.arange(16) < failed,
    }
    weights = trainer.loss_weights([window])[0]
    assert float(weights[:4].sum()) == pytest.approx(0.25)
    assert float(weights[4:].sum()) == pytest.approx(0.75)


def test_the_entropy_bonus_leaves_demonstrations_alone(tiny_dir, tmp_path):
    overrides = {"reward": never_right, "max_steps": 1, "max_grad_norm": 0.0}
    found = [gradients(build("hpt", tiny_dir, tmp_path / str(c), entropy_coef=c, **overrides)) for c in (0.0, 0.1)]
    assert relative_difference(found[1], found[0]) < 1e-6


def test_prompts_nobody_could_verify_stay_with_rl_in_soft_mode(tiny_dir, tmp_path):
    table = {
        "feedback_mode": "soft",
        "soft_alpha": [0.0, 0.25, 0.5, 0.75, 1.0],
        "soft_beta": [1.0, 0.75, 0.5, 0.25, 0.0],
    }
    trainer = build("hpt", tiny_dir, tmp_path, **table)
    alpha, beta = trainer._group_weights(torch.tensor([0, 0, 2, 2]), torch.tensor([4, 0, 4, 2]))
    assert alpha.tolist() == [0.0, 1.0, 0.5, 1.0]  # the last: two of two verified ones are right
    assert beta.tolist() == [1.0, 0.0, 0.5, 0.0]


def test_upstream_evaluation_has_a_loss(tiny_dir, tmp_path):
    trainer = build(
        "hpt",
        tiny_dir,
        tmp_path,
        per_device_eval_batch_size=4,
        num_generations_eval=4,
        trainer_kwargs={"rollout_func": replay, "eval_dataset": dataset(4)},
        reward=marked_right,
    )
    assert math.isfinite(trainer.evaluate()["eval_loss"])


# ---- rows ----


def _buffer(trainer):
    trainer.train()
    stored = trainer._buffered_inputs
    return {key: torch.cat([part[key] for part in stored]) for key in stored[0] if stored[0][key].ndim}


def test_a_failed_prompt_gives_its_first_row_to_the_demonstration(tiny_dir, tmp_path):
    trainer = build("hpt", tiny_dir, tmp_path, max_steps=1, data=dataset().select([2, 3]), **REPLAY)
    rows = _buffer(trainer)
    tokenizer = trainer.processing_class
    trained = (rows["completion_mask"] * rows["trainable_mask"]).bool()
    texts = [tokenizer.decode(ids[keep]) for ids, keep in zip(rows["completion_ids"], trained, strict=True)]
    demonstrated = rows["is_demonstration"]
    assert demonstrated.sum() == 1
    demonstration = dataset()[2]["solution"] + tokenizer.eos_token
    assert [t for t, d in zip(texts, demonstrated, strict=True) if d] == [demonstration]
    assert sum(t == "" for t in texts) == 3  # the failed prompt's other rollouts left the loss
    assert sum(t.startswith(("R", "w")) for t in texts) == 4  # the solved prompt keeps all of its rollouts
    logged = trainer.state.log_history[0]
    assert logged["gate/sft_fraction"] == 0.5
    assert logged["gate/rl_fraction"] == 0.5
    assert logged["gate/sft_tokens"] == len(demonstration.replace(tokenizer.eos_token, "$"))
    assert logged["update/gradient_rows"] == 5 / 8


class _HeadRows(TorchDispatchMode):
    """Rows of every (rows, vocabulary) block whose softmax is taken."""

    def __init__(self):
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._log_softmax.default:
            self.rows.append(args[0].shape[0])
        return func(*args, **(kwargs or {}))


def test_only_trained_tokens_are_scored_in_the_update(tiny_dir, tmp_path):
    trainer = build("hpt", tiny_dir, tmp_path, max_steps=1, data=dataset().select([2, 3]), **REPLAY)
    with _HeadRows() as seen:
        trainer.train()
    log = trainer.state.log_history[0]
    assert sum(seen.rows) == log["gate/rl_tokens"] + log["gate/sft_tokens"]


def test_soft_feedback_keeps_every_rollout_beside_the_demonstration(tiny_dir, tmp_path):
    table = {"soft_alpha": [0.5] * 5, "soft_beta": [0.5] * 5}
    trainer = build(
        "hpt", tiny_dir, tmp_path, max_steps=1, data=dataset().select([2, 3]), feedback_mode="soft", **table, **REPLAY
    )
    rows = _buffer(trainer)
    assert rows["is_demonstration"].sum() == 2
    assert ((rows["row_weight"] == 0.5) & ~rows["is_demonstration"]).sum() == 8
    assert trainer.state.log_history[0]["gate/sft_fraction"] == 1.0
    assert trainer.state.log_history[0]["gate/rl_fraction"] == 1.0


def test_prompts_without_demonstration_stay_with_rl_and_are_counted(tiny_dir, tmp_path):
    data = dataset().select([2, 3]).map(lambda row: {"solution": "" if row["answer"] == "16" else row["solution"]})
    trainer = build("hpt", tiny_dir, tmp_path, max_steps=1, data=data, **REPLAY)
    rows = _buffer(trainer)
    assert not rows["is_demonstration"].any()
    assert trainer.state.log_history[0]["gate/missing_demonstration_fraction"] == 0.5
    assert trainer.state.log_history[0]["gate/sft_fraction"] == 0.0


@pytest.mark.parametrize("mode", ["drop", "truncate"])
def test_overlong_demonstrations(mode, tiny_dir, tmp_path):
    data = dataset().select([2, 2]).map(lambda row: {"solution": "a" * 40})
    trainer = build("hpt", tiny_dir, tmp_path, max_steps=1, data=data, overlong_demonstration=mode, **REPLAY)
    rows = _buffer(trainer)
    assert rows["is_demonstration"].sum() == (0 if mode == "drop" else 2)
    assert rows["completion_ids"].size(1) <= 12


def test_a_truncated_rollout_is_not_solved(tiny_dir, tmp_path):
    """The verifier likes every completion, but none of the untrained model's ends."""
    trainer = build(
        "hpt",
        tiny_dir,
        tmp_path,
        reward=lambda completions, **_: [1.0] * len(completions),
        max_steps=1,
        generation_kwargs={"suppress_tokens": [3]},
    )
    assert trainer.processing_class.eos_token_id == 3
    trainer.train()
    assert trainer.state.log_history[0]["rollout/truncated_fraction"] == 1.0
    assert trainer.state.log_history[0]["gate/sft_fraction"] == 1.0


def test_an_update_with_too_large_a_gradient_is_left_out(tiny_dir, tmp_path):
    trainer = build("hpt", tiny_dir, tmp_path, max_steps=2, skip_update_grad_norm=1e-9, weight_decay=0.1, **REPLAY)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())
    assert [log["update/skipped"] for log in trainer.state.log_history[:2]] == [1.0, 1.0]


def test_lora_trains_the_adapter_only(tiny_dir, tmp_path):
    from peft import LoraConfig

    lora = {
        **REPLAY,
        "trainer_kwargs": {"rollout_func": replay, "peft_config": LoraConfig(target_modules="all-linear")},
    }
    trainer = build("hpt", tiny_dir, tmp_path, max_steps=1, max_grad_norm=0.0, **lora)
    found = gradients(trainer)
    assert found and all("lora_" in name for name in found)
    assert any(value.any() for value in found.values())
