"""Reinforcement mid-training: budget, rewards and losses by hand, what it reduces to, and what it saves."""

from __future__ import annotations

import numpy
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from posttrain.losses.advantages import group_advantages
from posttrain.losses.upge import UPGE_PRESETS
from posttrain.methods.rmt.config import RMTConfig
from posttrain.methods.rmt.corpus import document_rows
from posttrain.methods.rmt.trainer import RMTTrainer, thought_tokens
from posttrain.rewards.length_budget import length_reward
from tests.batteries.runs import REPLAY, build, fresh_model, gradients, relative_difference, weights
from tests.methods.literal import gradient, recording


def config(tmp_path, **overrides) -> RMTConfig:
    values = {"output_dir": str(tmp_path), "report_to": "none", "max_completion_length": 1600}
    return RMTConfig(**{**values, **overrides})


@pytest.mark.parametrize(
    ("step", "budget"),
    [(0, 800), (100, 681), (300, 493), (500, 357), (700, 259), (900, 187), (1000, 160), (1200, 160)],
)
def test_budget_shrinks_as_in_the_paper(step, budget, tmp_path):
    assert config(tmp_path).budget_at(step, total_steps=1000) == budget


def test_budget_does_not_fall_below_its_least(tmp_path):
    settings = config(tmp_path, token_budget_initial=10, token_budget_min=4)
    assert [settings.budget_at(step, total_steps=10) for step in (0, 5, 10)] == [10, 4, 4]


def test_reward_and_advantages_of_four_rollouts():
    """w = .2, B = 100, match (1, 0, 1, 0), lengths (100, 100, 250, 0)."""
    match = torch.tensor([1.0, 0.0, 1.0, 0.0])
    bonus = torch.tensor([length_reward(length, 100) for length in (100, 100, 250, 0)])
    rewards = 0.8 * match + 0.2 * bonus
    torch.testing.assert_close(rewards, torch.tensor([1.0, 0.2, 0.8, 0.0]))
    found = group_advantages(rewards.double(), 4, config=UPGE_PRESETS["grpo"])
    expected = torch.tensor([1.050208, -0.630125, 0.630125, -1.050208]).double()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("<think>abc</think>d", 3), ("<think></think>", 0), ("<think>abc", None), ("abc</think>", None), ("", None)],
)
def test_thought_is_counted_in_tokens(text, expected, tiny_tokenizer):
    ids = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert thought_tokens(tiny_tokenizer, ids) == expected


def test_a_thought_that_the_prompt_opened_begins_with_the_completion(tiny_tokenizer):
    ids = tiny_tokenizer("abc</think>d", add_special_tokens=False)["input_ids"]
    assert thought_tokens(tiny_tokenizer, ids, is_open=True) == 3


# ---- a whole step ----

TEXTS = Dataset.from_list([{"text": "3+21=? and so on"}, {"text": "one two three"}, {"text": "abcabcab"}])


def thinking(prompts, trainer):
    """Rollouts that think the longer the later in their group, every other one right by `boxed`."""
    from posttrain.data.demonstrations import encode_prompt

    prompt_ids, completion_ids = [], []
    for row, prompt in enumerate(prompts):
        place = row % trainer.num_generations
        text = f"<think>{'t' * (2 * place)}</think>\\boxed{{{'ab'[place % 2]}}}"
        prompt_ids.append(encode_prompt(trainer.processing_class, prompt))
        ids = trainer.processing_class(text, add_special_tokens=False)["input_ids"]
        completion_ids.append([*ids, trainer.processing_class.eos_token_id])
    return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}


def boxed(prompts, completions, **_):
    """Right if the box holds an a."""
    return [float("\\boxed{a}" in completion[0]["content"]) for completion in completions]


THINKING = {
    "reward": boxed,
    "trainer_kwargs": {"rollout_func": thinking},
    "data": TEXTS,
    "max_completion_length": 40,
    "token_budget_initial": 4,
    "max_steps": 1,
    "max_grad_norm": 0.0,
}


def test_gradient_of_a_step_is_that_of_the_literal_loss(tiny_dir, tmp_path):
    trainer = build("rmt", tiny_dir, tmp_path, trainer_class=recording(RMTTrainer), ntp_loss_coef=0.3, **THINKING)
    ours = gradients(trainer)
    model, total = fresh_model(tiny_dir), torch.zeros(())
    tokens, text_loss, asked, documents = 0, torch.zeros(()), [], []
    rewards = [0.8 * (place % 2 == 0) + 0.2 * length_reward(2 * place, 4) for place in range(4)]
    mean = sum(rewards) / 4
    deviation = (sum((r - mean) ** 2 for r in rewards) / 3) ** 0.5
    rows = [(t, i) for t in trainer.seen for i in range(len(t["advantages"])) if t["row_weight"][i] > 0]
    for tensors, i in rows:
        prompt = tensors["prompt_ids"][i][tensors["prompt_mask"][i].bool()]
        completion = tensors["completion_ids"][i][tensors["completion_mask"][i].bool()]
        logits = model(torch.cat([prompt, completion]).unsqueeze(0)).logits[0, len(prompt) - 1 : -1]
        logps = logits.log_softmax(-1).gather(1, completion.unsqueeze(1)).squeeze(1)
        if tensors["is_demonstration"][i]:
            kept = tensors["trainable_mask"][i][: len(completion)].bool()
            documents.append(trainer.tokenizer.decode([*prompt.tolist(), *completion.tolist()]))
            asked.append(int((~kept).sum()))
            text_loss, tokens = text_loss - logps[kept].sum(), tokens + int(kept.sum())
        else:
            place = trainer.tokenizer.decode(completion.tolist()).count("t") // 2 - 1  # "think" twice has two
            advantage = (rewards[place] - mean) / (deviation + 1e-6)
            assert float(tensors["advantages"][i]) == pytest.approx(advantage, abs=1e-5)
            total = total - advantage * logps.mean() / 8
    assert set(documents) <= set(TEXTS["text"]) and len(set(documents)) == len(documents)
    assert sum(asked) == 2, "the two tokens asked for, and no other, are left out"
    assert tokens == sum(len(text) - 1 for text in documents) - 2
    assert relative_difference(ours, gradient(total + 0.3 * text_loss / tokens, model)) < 1e-5


def test_without_its_parts_it_is_rpt_and_that_is_grpo_on_the_same_questions(tiny_dir, tmp_path):
    parts = {"use_token_budget": False, "use_curriculum": False, "match_reward": "prefix"}
    found = [
        gradients(build("rmt", tiny_dir, tmp_path / name, **{**THINKING, **overrides}))
        for name, overrides in {
            "off": {**parts, "use_ntp": False},
            "zero": {**parts, "use_ntp": True, "ntp_loss_coef": 0.0},
            "no weight": {**parts, "use_ntp": False, "length_reward_weight": 0.0},
            "rpt": {"variant": "rpt"},
        }.items()
    ]
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in found[0])
    asked = build("rmt", tiny_dir, tmp_path / "asked", **{**THINKING, "variant": "rpt"})
    indices = next(iter(asked.get_train_dataloader()))
    rows = asked.prepare_prompts([dict(row) for row in indices])[::4]
    same = {**THINKING, "data": Dataset.from_list(rows), "shuffle_dataset": False, "preset": "grpo"}
    del same["token_budget_initial"]
    plain = gradients(build("grpo", tiny_dir, tmp_path / "grpo", **same))
    assert relative_difference(found[0], plain) < 1e-6


def test_equal_rollouts_leave_the_next_token_loss_alone(tiny_dir, tmp_path):
    """No advantage anywhere: the gradient is lambda times that of the text."""
    same = {**REPLAY, "reward": lambda prompts, completions, **_: [1.0] * len(completions)}
    kwargs = {"data": TEXTS, "max_steps": 1, "max_grad_norm": 0.0, "use_token_budget": False, **same}
    small = gradients(build("rmt", tiny_dir, tmp_path / "a", ntp_loss_coef=0.1, **kwargs))
    large = gradients(build("rmt", tiny_dir, tmp_path / "b", ntp_loss_coef=1.0, **kwargs))
    assert relative_difference({name: 10 * value for name, value in small.items()}, large) < 1e-5


class NothingAsked(RMTTrainer):
    """Learns every token of the step's documents, those asked for too, and remembers the documents."""

    def write_demonstration(self, rollouts, group, ids, *, untrained, prompt_ids, **kwargs):
        self.learnt = [*getattr(self, "learnt", []), self.tokenizer.decode([*prompt_ids, *ids])]
        super().write_demonstration(rollouts, group, ids, untrained=[], prompt_ids=prompt_ids, **kwargs)


def test_without_tokens_asked_for_it_is_sft_on_the_documents(tiny_dir, tmp_path):
    settings = {**THINKING, "reward": lambda prompts, completions, **_: [1.0] * len(completions)}
    settings |= {"use_token_budget": False, "ntp_loss_coef": 1.0, "per_device_train_batch_size": 16}
    trainer = build("rmt", tiny_dir, tmp_path / "rmt", trainer_class=NothingAsked, **settings)
    ours = gradients(trainer)
    assert len(trainer.learnt) > 1 and set(trainer.learnt) <= set(TEXTS["text"])
    sft = {
        "data": Dataset.from_list([{"prompt": text, "solution": ""} for text in trainer.learnt]),
        "demonstration_column": "prompt",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": 1,
        "max_grad_norm": 0.0,
    }
    assert relative_difference(ours, gradients(build("sft", tiny_dir, tmp_path / "sft", **sft))) < 1e-5


def test_a_document_asked_about_twice_is_learnt_once(tiny_dir, tmp_path):
    trainer = build("rmt", tiny_dir, tmp_path, data=TEXTS)
    assert document_rows(trainer.index, torch.tensor([3, 20, 5, 18])) == {0: [3, 5], 1: [20, 18]}


def test_generation_follows_the_budget(tiny_dir, tmp_path):
    limits = {}
    for limit in ("budget", "fixed"):
        trainer = build(
            "rmt",
            tiny_dir,
            tmp_path / limit,
            data=TEXTS,
            max_steps=5,
            token_budget_initial=4,
            max_completion_length=20,
            completion_limit=limit,
        )
        trainer.train()
        log = [entry for entry in trainer.state.log_history if "rmt/budget" in entry]
        limits[limit] = [entry["rmt/completion_limit"] for entry in log]
        assert [entry["rmt/budget"] for entry in log] == [4, 2, 2, 1, 1]
    assert limits == {"budget": [12, 8, 8, 6, 6], "fixed": [20] * 5}


@pytest.mark.parametrize("start", [0, None])
def test_dynamic_sampling_takes_flat_groups_out_of_the_mean(start, tiny_dir, tmp_path):
    """One of two groups has rewards that differ: without the other one the mean is over half of the rows."""

    def first_prompt(prompts, completions, **_):
        return [float(i == 0) for i in range(len(completions))]

    arguments = {**THINKING, "reward": first_prompt, "variant": "rpt", "dynamic_sampling_start_step": start}
    trainer = build("rmt", tiny_dir, tmp_path, trainer_class=recording(RMTTrainer), **arguments)
    trainer.train()
    kept = sum(int((tensors["row_weight"] > 0).sum()) for tensors in trainer.seen)
    assert kept == (4 if start == 0 else 8)


def test_a_longer_run_goes_on_with_the_budget_of_the_one_it_continues(tiny_dir, tmp_path):
    kwargs = {"data": TEXTS, "save_strategy": "steps", "save_steps": 2, "token_budget_initial": 100}
    build("rmt", tiny_dir, tmp_path, max_steps=4, **kwargs).train()
    longer = build("rmt", tiny_dir, tmp_path, max_steps=8, **kwargs)
    longer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    log = {entry["step"]: entry["rmt/budget"] for entry in longer.state.log_history if "rmt/budget" in entry}
    assert [log[step] for step in (3, 4, 5, 6, 8)] == [44, 29, 20, 20, 20]  # of T = 4, and then its last


def test_entropies_of_the_corpus_are_used_as_they_are(tiny_dir, tmp_path):
    data = Dataset.from_list([{"text": "abcd", "entropy": [0.0, 0.6, 0.1, 2.0]}] * 3)
    trainer = build("rmt", tiny_dir, tmp_path, data=data)
    assert trainer.targets.positions.tolist() == [1, 3, 5, 7, 9, 11]
    assert numpy.array_equal(trainer.targets.tiers, [0, 2] * 3)


def test_what_the_recipe_names_as_prompt_goes_before_a_column_text(tiny_dir, tmp_path):
    data = Dataset.from_list([{"prompt": "abcd", "text": "something else"}] * 3)
    ids = AutoTokenizer.from_pretrained(tiny_dir)("abcd")["input_ids"]
    assert build("rmt", tiny_dir, tmp_path, data=data).index.tokens.tolist() == ids * 3


def test_the_next_token_loss_is_logged_without_its_coefficient(tiny_dir, tmp_path):
    trainer = build("rmt", tiny_dir, tmp_path, ntp_loss_coef=0.25, **THINKING)
    trainer.train()
    (log,) = [entry for entry in trainer.state.log_history if "rmt/ntp_loss" in entry]
    assert log["rmt/ntp_loss"] == pytest.approx(4 * log["sft/loss"]) and log["rmt/ntp_loss"] > 1.0


def test_a_model_without_a_limit_of_positions_is_no_error(tiny_dir, tmp_path):
    model = fresh_model(tiny_dir)
    del model.config.max_position_embeddings
    assert build("rmt", tiny_dir, tmp_path, data=TEXTS, model=model).questions.rule == "exact_token"


def test_adapters_train_and_the_text_reaches_them(tiny_dir, tmp_path):
    from peft import LoraConfig

    extra = {**THINKING["trainer_kwargs"], "peft_config": LoraConfig(r=4, target_modules="all-linear")}
    trainer = build("rmt", tiny_dir, tmp_path, **{**THINKING, "trainer_kwargs": extra, "max_steps": 2})
    before = weights(trainer)
    trainer.train()
    moved = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert moved and all("lora" in name for name in moved)
