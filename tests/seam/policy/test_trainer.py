"""`PolicyTrainer`: what it refuses, its hooks, and its gradient beside plain TRL's."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, SFTConfig

from posttrain.errors import ConfigError, RewardError, SupportError
from posttrain.losses.reductions import LossOutput
from posttrain.seam.policy.trainer import PolicyConfig, PolicyTrainer
from posttrain.seam.sampling import EpochRepeatSampler
from tests.batteries.runs import (
    COMMON,
    POLICY,
    REPLAY,
    Recorder,
    build,
    dataset,
    fresh_model,
    gradients,
    marked_right,
    never_right,
    relative_difference,
    replay,
    weights,
)

LAYOUTS = [{}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}]


# ---- refusals ----


def test_other_arguments_are_refused(tiny_dir, tmp_path):
    with pytest.raises(ConfigError, match=r"args: wrong class of arguments \(got 'GRPOConfig'; allowed: PolicyConfig"):
        PolicyTrainer(str(tiny_dir), marked_right, GRPOConfig(output_dir=str(tmp_path), bf16=False), dataset())
    with pytest.raises(ConfigError, match="SFTConfig"):
        PolicyTrainer(str(tiny_dir), marked_right, SFTConfig(output_dir=str(tmp_path), bf16=False), dataset())


def test_a_trainer_without_args_uses_the_defaults(tiny_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = PolicyTrainer(str(tiny_dir), marked_right, train_dataset=dataset())
    assert type(trainer.args) is PolicyConfig and trainer.args.output_dir == "Policy"
    assert trainer.args.bf16 is False and trainer.args.gradient_checkpointing is False


def test_advantages_from_nobody_are_refused(tiny_dir, tmp_path):
    with pytest.raises(SupportError, match=r"method.advantage_estimator.*got 'external'.*gives_advantages"):
        build("grpo", tiny_dir, tmp_path, advantage_estimator="external")


def test_a_verifier_must_be_one_of_the_rewards(tiny_dir, tmp_path):
    with pytest.raises(ConfigError, match=r"method.verifier: no reward function has this name \(got 'exact'.*never"):
        build("grpo", tiny_dir, tmp_path, reward=[marked_right, never_right], verifier="exact")
    trainer = build("grpo", tiny_dir, tmp_path, reward=[marked_right, never_right], verifier="never_right")
    assert trainer.verifier_index == 1


def test_too_few_prompts_are_refused(tiny_dir, tmp_path):
    with pytest.raises(ConfigError, match=r"data.train: fewer prompts.*got 1; allowed: at least 2"):
        build("grpo", tiny_dir, tmp_path, data=dataset(1))


@pytest.mark.parametrize("value", [1.5, -0.5])
def test_a_verdict_outside_its_range_stops_the_run(value, tiny_dir, tmp_path):
    def odd(completions, **_):
        return [0.0, value] + [None] * (len(completions) - 2)

    with pytest.raises(RewardError, match=r"rollout 1 of the generation batch: reward 'odd' is the verifier"):
        build("grpo", tiny_dir, tmp_path, reward=odd, max_steps=1).train()


def test_two_ways_to_name_an_optimizer_are_refused(tiny_dir, tmp_path):
    model = fresh_model(tiny_dir)
    both = {
        "optimizers": (torch.optim.SGD(model.parameters(), lr=1.0), None),
        "optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 1.0}),
    }
    with pytest.raises(ConfigError, match="two optimizers"):
        build("grpo", tiny_dir, tmp_path, model=model, trainer_kwargs=both)


# ---- optimizer ----


class Halving(torch.optim.Optimizer):
    """Moves nothing by gradients: every step halves the weights."""

    def __init__(self, params, lr=1.0, factor=0.5):
        super().__init__(params, {"lr": lr, "factor": factor})

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.mul_(group["factor"])


class HalvingFactory:
    """What transformers calls a factory: it is shown the model, so that it may treat parameters by their name."""

    def __call__(self, model, **kwargs):
        return Halving([parameter for _, parameter in model.named_parameters()], **kwargs)


@pytest.mark.parametrize("made_by", [Halving, HalvingFactory], ids=["class", "factory"])
def test_the_given_optimizer_makes_the_step(made_by, tiny_dir, tmp_path):
    route = {"optimizer_cls_and_kwargs": (made_by, {"lr": 1.0, "factor": 0.25})}
    trainer = build("grpo", tiny_dir, tmp_path, max_steps=2, trainer_kwargs=route)
    before = weights(trainer)
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] / 16)


# ---- hooks ----


def tokens_of(trainer, completion):
    """Rewards read special tokens as text, of several letters each."""
    return len(trainer.processing_class(completion, add_special_tokens=False)["input_ids"])


class Shorter(PolicyTrainer):
    """Completions may have three tokens in the second step."""

    asked: list[int]

    def completion_budget(self, global_step):
        self.asked = [*getattr(self, "asked", []), global_step]
        return 3 if global_step == 1 else self.args.max_completion_length

    def policy_loss(self, batch):
        self.widths = [*getattr(self, "widths", []), batch.logps.size(1)]
        self.log_metric("budget/width", batch.logps.size(1))
        return super().policy_loss(batch)

    def loss_weights(self, window):
        found = super().loss_weights(window)
        self.largest = [*getattr(self, "largest", []), max(float(weight.max()) for weight in found)]
        return found


def test_the_budget_shortens_the_next_generation_and_leaves_the_normaliser(tiny_dir, tmp_path):
    reward = Recorder()
    trainer = build(
        "grpo",
        tiny_dir,
        tmp_path,
        reward=reward,
        trainer_class=Shorter,
        max_steps=3,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=1,
        drop_zero_advantage_rows=False,
        per_device_eval_batch_size=8,
        trainer_kwargs={"eval_dataset": dataset(2)},
    )
    trainer.train()
    assert trainer.asked == [0, 1, 2]
    assert trainer.widths == [12, 3, 12]  # the untrained model does not stop by itself
    lengths = [max(tokens_of(trainer, completion) for _, completion in reward.seen[i : i + 8]) for i in (0, 8, 16)]
    assert lengths[1] <= 3 < min(lengths[0], lengths[2])
    # Dr.GRPO divides by rows times the configured length, whatever the budget was.
    assert trainer.largest == pytest.approx([1 / (8 * 12)] * 3)


def test_an_evaluation_has_the_whole_budget(tiny_dir, tmp_path):
    class AlwaysShort(PolicyTrainer):
        def completion_budget(self, global_step):
            return 2

    reward = Recorder()
    trainer = build(
        "grpo",
        tiny_dir,
        tmp_path,
        reward=reward,
        trainer_class=AlwaysShort,
        max_steps=1,
        per_device_eval_batch_size=8,
        trainer_kwargs={"eval_dataset": dataset(2)},
    )
    trainer.train()
    assert max(tokens_of(trainer, completion) for _, completion in reward.seen) <= 2
    reward.seen.clear()
    metrics = trainer.evaluate()
    assert max(len(completion) for _, completion in reward.seen) > 2
    assert math.isfinite(metrics["eval_loss"])


def test_recorded_numbers_are_averaged_and_nan_left_out(tiny_dir, tmp_path):
    class Recording(PolicyTrainer):
        def policy_loss(self, batch):
            for name, value in (("mine/steps", self.state.global_step), ("mine/rare", float("nan")), ("mine/odd", 1)):
                self.log_metric(name, value)
            self.log_metric("mine/odd", float("nan"))
            return super().policy_loss(batch)

    trainer = build("grpo", tiny_dir, tmp_path, trainer_class=Recording, max_steps=2, logging_steps=2)
    trainer.train()
    (logged,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logged["mine/steps"] == 0.5 and logged["mine/odd"] == 1.0
    assert logged["mine/rare"] is None


def test_a_replaced_loss_is_the_one_that_is_trained(tiny_dir, tmp_path):
    """The gradient of a loss that is the negative log-likelihood, against autograd on the buffered rows."""

    class Likelihood(PolicyTrainer):
        def policy_loss(self, batch):
            return LossOutput(-batch.logps, "token_mean", {"mine/nll": (-batch.logps.detach() * batch.mask).sum()})

        def contributes(self, tensors):
            return tensors["loss_weights"].sum(dim=1) > 0

    trainer = build(
        "grpo",
        tiny_dir,
        tmp_path,
        trainer_class=Likelihood,
        max_steps=1,
        max_grad_norm=0.0,
        loss_aggregation="token_mean",
        **REPLAY,
    )
    caught = gradients(trainer)
    model, total, tokens = fresh_model(tiny_dir), 0.0, 0.0
    for part in trainer._buffered_inputs:
        ids = torch.cat([part["prompt_ids"], part["completion_ids"]], dim=1)
        attended = torch.cat([part["prompt_mask"], part["completion_mask"]], dim=1)
        logps = model(input_ids=ids, attention_mask=attended).logits[:, :-1].log_softmax(-1)
        width = part["completion_ids"].size(1)
        picked = logps.gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)[:, -width:]
        total, tokens = total - (picked * part["completion_mask"]).sum(), tokens + part["completion_mask"].sum()
    (total / tokens).backward()
    native = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert relative_difference({name: caught[name] for name in native}, native) < 1e-5


# ---- rows without a gradient ----


@pytest.mark.parametrize("layout", LAYOUTS, ids=["4x2", "2x4"])
def test_a_batch_without_any_gradient_makes_a_step_of_exactly_zero(layout, tiny_dir, tmp_path):
    trainer = build("grpo", tiny_dir, tmp_path, reward=never_right, max_steps=2, weight_decay=0.0, **layout)
    before = weights(trainer)
    caught = gradients(trainer)
    assert trainer.state.global_step == 2
    assert caught and all(value.abs().max() == 0.0 for value in caught.values())
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["update/gradient_rows"] for entry in logged] == [0.0, 0.0]
    assert [entry["groups/all_wrong"] for entry in logged] == [1.0, 1.0]
    assert [entry["loss"] for entry in logged] == [0.0, 0.0]


def test_rows_with_a_kl_term_are_never_left_out(tiny_dir, tmp_path):
    trainer = build("grpo", tiny_dir, tmp_path, reward=never_right, max_steps=1, beta=0.1)
    trainer.train()
    (logged,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logged["update/gradient_rows"] == 1.0


def test_the_sampler_is_ours_and_the_data_seed_its_seed(tiny_dir, tmp_path):
    trainer = build("grpo", tiny_dir, tmp_path, data_seed=77)
    sampler = trainer._get_train_sampler()
    assert type(sampler) is EpochRepeatSampler and sampler.seed == 77
    assert build("grpo", tiny_dir, tmp_path)._get_train_sampler().seed == COMMON["seed"]


# ---- two routes to a loss ----


class Injected(GRPOTrainer):
    """Plain TRL whose advantages are replaced by (B, T) ones once per generation batch, and nothing else."""

    inject = None

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        batch["advantages"] = self.inject(batch["completion_ids"].size(0), batch["completion_ids"].size(1))
        return batch

    def _get_grad_norm(self, model, grad_norm=None):
        self.caught = {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}
        return super()._get_grad_norm(model, grad_norm)


class External(PolicyTrainer):
    """The same advantages through the seam."""

    gives_advantages = True

    inject = None

    def prepare_rollouts(self, rollouts):
        ids = rollouts.tensors["completion_ids"]
        rollouts.tensors["advantages"] = self.inject(ids.size(0), ids.size(1))
        return rollouts


def per_token(rows: int, width: int) -> torch.Tensor:
    """Advantages that differ from token to token, some rows without any."""
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(3))
    values[1::3] = 0.0
    return values


def per_row(rows: int, width: int) -> torch.Tensor:
    return per_token(rows, width)[:, 0]


@pytest.mark.parametrize("inject", [per_token, per_row])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["4x2", "2x4"])
def test_injected_advantages_and_the_policy_loss_give_one_gradient(layout, inject, tiny_dir, tmp_path, monkeypatch):
    """Valid while the ratio is 1: one pass over rollouts of the current policy."""
    monkeypatch.setattr(Injected, "inject", staticmethod(inject))
    monkeypatch.setattr(External, "inject", staticmethod(inject))
    common = {**COMMON, **POLICY, **layout, "max_steps": 1, "max_grad_norm": 0.0, "shuffle_dataset": False}
    native = Injected(
        model=fresh_model(tiny_dir),
        reward_funcs=marked_right,
        args=GRPOConfig(
            output_dir=str(tmp_path / "trl"), loss_type="dr_grpo", bf16=False, gradient_checkpointing=False, **common
        ),
        train_dataset=dataset(),
        processing_class=AutoTokenizer.from_pretrained(tiny_dir),
        rollout_func=replay,
    )
    native.train()
    ours = build(
        "grpo",
        tiny_dir,
        tmp_path / "ours",
        trainer_class=External,
        advantage_estimator="external",
        max_steps=1,
        max_grad_norm=0.0,
        **layout,
        **REPLAY,
    )
    caught = gradients(ours)
    assert sum(float((value**2).sum()) for value in native.caught.values()) > 0
    assert relative_difference({name: caught[name] for name in native.caught}, native.caught) < 1e-5
