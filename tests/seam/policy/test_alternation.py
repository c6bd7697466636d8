"""`AlternatingTrainer`: the hook `choose_step`, and that each kind of step is that of its own trainer."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from transformers import AutoTokenizer

from posttrain.errors import DataError, SupportError
from posttrain.seam.policy.alternation import DEMONSTRATION_SEED, AlternatingTrainer, AlternationConfig
from tests.batteries.runs import (
    COMMON,
    POLICY,
    Recorder,
    build,
    costs,
    dataset,
    gradients,
    losses,
    relative_difference,
    weights,
)

S, P = "supervised", "policy"
PLAIN_SGD = {"optim": "sgd", "learning_rate": 0.1}


class Alternating(AlternatingTrainer):
    """Kinds as written down in `plan`, and what happened."""

    plan: tuple[str, ...] = ()

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.asked, self.kinds, self.generated, self.rates = [], [], [], []

    def choose_step(self, global_step):
        self.asked.append(global_step)
        return self.plan[global_step]

    def on_step_chosen(self, kind):
        self.kinds.append(kind)

    def _generate(self, prompts):
        self.generated.append(self.state.global_step)
        return super()._generate(prompts)

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        return norm


def alternating(tiny_dir, folder, plan, *, reward=None, model=None, data=None, trainer_kwargs=None, **overrides):
    """A trainer that takes the steps of `plan`, built beside those of the registry."""
    args = AlternationConfig(
        output_dir=str(folder), **{**COMMON, **POLICY, "preset": "grpo", "max_steps": len(plan), **overrides}
    )
    trainer = Alternating(
        model=str(tiny_dir) if model is None else model,
        args=args,
        reward_funcs=reward or Recorder(),
        train_dataset=dataset() if data is None else data,
        processing_class=AutoTokenizer.from_pretrained(tiny_dir),
        **(trainer_kwargs or {}),
    )
    trainer.plan = tuple(plan)
    return trainer


# ---- the hook ----


def test_the_kind_is_asked_once_per_optimizer_step_and_supervised_steps_generate_nothing(tiny_dir, tmp_path):
    plan = [S, P, S, S, P]
    trainer = alternating(tiny_dir, tmp_path, plan, gradient_accumulation_steps=4, sft_per_device_batch_size=3)
    trainer.train()
    assert trainer.asked == [0, 1, 2, 3, 4] and trainer.kinds == plan
    assert trainer.generated == [1, 4]
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [("sft/loss" in entry, "rl/loss" in entry) for entry in logs] == [(kind == S, kind == P) for kind in plan]
    # Three supervised steps of 3 rows x 4 micro-steps; two policy steps of 16 rollouts of 4 prompts.
    assert (costs(trainer)["cost/demonstrations"], costs(trainer)["cost/prompts"]) == (36, 8)


def test_a_kind_chosen_twice_for_one_step_is_refused(tiny_dir, tmp_path):
    trainer = alternating(tiny_dir, tmp_path, [P])
    trainer.train()
    trainer.state.global_step = 0
    with pytest.raises(SupportError, match="optimizer step 1: the kind of a step was chosen twice"):
        trainer._begin_step()


# ---- each kind is that of its own trainer ----


@pytest.mark.parametrize(
    "overrides",
    [{}, {"beta": 0.05}, {"num_iterations": 2}, {"steps_per_generation": 4}, {"entropy_coef": 0.01}],
    ids=str,
)
def test_policy_steps_alone_are_grpo_bit_for_bit(overrides, tiny_dir, tmp_path):
    """Nine steps are more than the six of an epoch."""
    ours, theirs = Recorder(), Recorder()
    trainer = alternating(tiny_dir, tmp_path / "a", [P] * 9, reward=ours, **overrides)
    trainer.train()
    grpo = build("grpo", tiny_dir, tmp_path / "b", reward=theirs, preset="grpo", max_steps=9, **overrides)
    grpo.train()
    assert ours.seen == theirs.seen and losses(trainer) == losses(grpo)
    for name, value in weights(grpo).items():
        assert torch.equal(value, weights(trainer)[name]), name


def test_supervised_steps_alone_are_the_supervised_trainer(tiny_dir, tmp_path):
    """Two epochs of the same order; AdamW's update of a gradient near 0 doubles rounding, hence SGD."""
    layout = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "max_steps": 4, **PLAIN_SGD}
    trainer = alternating(
        tiny_dir,
        tmp_path / "a",
        [S] * 4,
        **{**layout, "per_device_train_batch_size": 4, "sft_per_device_batch_size": 3},
    )
    trainer.train()
    sft = build("sft", tiny_dir, tmp_path / "b", data_seed=COMMON["seed"] + DEMONSTRATION_SEED, **layout)
    sft.train()
    assert losses(trainer) == pytest.approx(losses(sft), rel=1e-5)
    moved = weights(build("sft", tiny_dir, tmp_path / "c"))
    for name, value in weights(sft).items():
        assert float((value - weights(trainer)[name]).abs().max()) < 1e-6, name
    assert max(float((value - moved[name]).abs().max()) for name, value in weights(sft).items()) > 1e-3


@pytest.mark.parametrize("kind", [S, P])
def test_gradient_does_not_depend_on_the_split(kind, tiny_dir, tmp_path):
    found = []
    for rows, steps in ((8, 1), (4, 2), (2, 4)):
        layout = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": steps, "max_grad_norm": 0.0}
        trainer = alternating(tiny_dir, tmp_path / f"{rows}", [kind], **layout)
        found.append((gradients(trainer), trainer.last_grad_norm))
    for gradient, norm in found[1:]:
        assert relative_difference(gradient, found[0][0]) < 1e-5
        assert norm == pytest.approx(found[0][1], rel=1e-5)


def test_orders_of_prompts_and_demonstrations_are_independent(tiny_dir, tmp_path):
    """The prompts of policy steps are those of a run without supervised steps, and every one is used."""
    mixed, alone = Recorder(), Recorder()
    trainer = alternating(tiny_dir, tmp_path / "a", [S, P, S, S, P, P, P, P, P], reward=mixed)
    trainer.train()
    alternating(tiny_dir, tmp_path / "b", [P] * 6, reward=alone).train()
    assert [prompt for prompt, _ in mixed.seen] == [prompt for prompt, _ in alone.seen]
    assert len({prompt for prompt, _ in alone.seen}) == 12


# ---- stale rollouts, inference weights ----


def test_rollouts_in_flight_are_dropped_after_a_supervised_step(tiny_dir, tmp_path):
    trainer = alternating(tiny_dir, tmp_path, [P, S, P, P, P], steps_per_generation=4)
    trainer.train()
    assert trainer.generated == [0, 2, 4]
    dropped = [entry.get("rollout/discarded_fraction") for entry in trainer.state.log_history if "loss" in entry]
    assert [value for value in dropped if value is not None] == [0.5]


def test_rollouts_in_flight_may_stay(tiny_dir, tmp_path):
    trainer = alternating(
        tiny_dir, tmp_path, [P, S, P, P, P], steps_per_generation=4, allow_stale_rollouts=True, learning_rate=0.05
    )
    trainer.train()
    assert trainer.generated == [0, 3]
    ratios = [entry["policy/ratio_mean"] for entry in trainer.state.log_history if "policy/ratio_mean" in entry]
    assert float(ratios[0]) == pytest.approx(1.0, abs=1e-5)
    assert abs(float(ratios[1]) - 1.0) > 1e-3, "the ratio is to the policy that made the rollouts"


def test_inference_weights_are_marked_old_after_a_supervised_step(tiny_dir, tmp_path):
    trainer = alternating(tiny_dir, tmp_path, [P, S])
    trainer._last_loaded_step = 1
    trainer.train()
    assert trainer._last_loaded_step == -1


# ---- learning rates, adapters ----


def test_supervised_steps_may_have_a_rate_of_their_own(tiny_dir, tmp_path):
    trainer = alternating(
        tiny_dir, tmp_path, [S, P, S, P], learning_rate=1e-3, sft_learning_rate=4e-3, lr_scheduler_type="linear"
    )
    trainer.train()
    assert trainer.rates == pytest.approx([4e-3, 0.75e-3, 2e-3, 0.25e-3])


def test_only_adapters_are_trained_and_measured_with_lora(tiny_dir, tmp_path):
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = alternating(tiny_dir, tmp_path, [S, P, S], trainer_kwargs={"peft_config": lora}, max_grad_norm=0.0)
    before = weights(trainer)
    caught = gradients(trainer)
    assert caught and all("lora" in name for name in caught)
    norm = sum(float((value.double() ** 2).sum()) for value in caught.values()) ** 0.5
    assert trainer.last_grad_norm == pytest.approx(norm, rel=1e-5)
    changed = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert changed and all("lora" in name for name in changed)


# ---- resume, refusals ----


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("stale", [False, True])
def test_a_stopped_run_continues_bit_equal(stale, stop, tiny_dir, tmp_path):
    plan = [S, P, S, P, P, S, P, P]
    layout = {"steps_per_generation": 4, "allow_stale_rollouts": stale}
    saving = {**layout, "save_strategy": "steps", "save_steps": stop}
    whole = alternating(tiny_dir, tmp_path / "a", plan, **layout)
    whole.train()
    alternating(tiny_dir, tmp_path / "b", plan, **saving).train()
    rest = alternating(tiny_dir, tmp_path / "b", plan, **saving)
    torch.manual_seed(99)
    rest.train(resume_from_checkpoint=str(tmp_path / "b" / f"checkpoint-{stop}"))
    assert rest.kinds == plan[stop:]
    assert losses(rest) == losses(whole) and costs(rest) == costs(whole)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(rest)[name]), name


def test_fewer_demonstrations_than_a_step_are_refused(tiny_dir, tmp_path):
    with pytest.raises(DataError, match=r"data.train: fewer demonstrations than a supervised step takes.*at least 8"):
        alternating(tiny_dir, tmp_path, [S], data=dataset(6))


def test_rows_without_demonstration_are_left_out_and_counted(tiny_dir, tmp_path):
    rows = dataset().to_list()
    for row in rows[:3]:
        row["solution"] = ""
    data = dataset().from_list(rows)
    trainer = alternating(tiny_dir, tmp_path, [S, S, S], data=data)
    trainer.train()
    assert trainer.num_demonstrations == 9
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert float(log["sft/missing_demonstration_fraction"]) == pytest.approx(0.25)


def test_a_demonstration_too_long_for_a_completion(tiny_dir, tmp_path):
    rows = dataset().to_list()
    rows[5]["solution"] = "s" * 40
    data = dataset().from_list(rows)
    with pytest.raises(DataError, match="longer than a completion may be.*at most 12"):
        alternating(tiny_dir, tmp_path, [S] * 2, data=data, sft_per_device_batch_size=6).train()
    dropped = alternating(tiny_dir, tmp_path, [S], data=data, overlong_demonstration="drop")
    assert dropped.num_demonstrations == 11
    cut = alternating(tiny_dir, tmp_path, [S] * 2, data=data, overlong_demonstration="truncate")
    cut.train()
    assert cut.num_demonstrations == 12


def test_a_stream_is_refused(tiny_dir, tmp_path):
    with pytest.raises(DataError, match="draw rows by number, which a stream does not have"):
        alternating(tiny_dir, tmp_path, [S], data=dataset().to_iterable_dataset())


def test_a_schedule_that_changes_rates_in_place_is_refused_with_two_rates(tmp_path):
    with pytest.raises(SupportError, match=r"method.sft_learning_rate.*reduce_lr_on_plateau"):
        AlternationConfig(
            output_dir=str(tmp_path),
            sft_learning_rate=1e-3,
            lr_scheduler_type="reduce_lr_on_plateau",
            eval_strategy="steps",
        )
