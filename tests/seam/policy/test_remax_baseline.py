"""ReMax: every prompt's rollouts are compared with its greedy completion, which costs tokens and trains nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from posttrain.data.demonstrations import encode_prompt
from posttrain.errors import SupportError
from posttrain.seam.policy.remax_baseline import completed_rows
from posttrain.seam.policy.trainer import PolicyTrainer
from tests.batteries.runs import Recorder, build, checksum_verdict, costs, fresh_model, gradients, replay, weights

REMAX = {"preset": "rloo", "advantage_estimator": "remax"}


class Watching(PolicyTrainer):
    """Keeps every generation batch."""

    def prepare_rollouts(self, rollouts):
        self.__dict__.setdefault("batches", []).append(rollouts)
        return rollouts


@pytest.fixture(scope="module")
def stops_dir(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after a few supervised steps, so that completions end."""
    folder = tmp_path_factory.mktemp("stops")
    trainer = build("sft", tiny_dir, folder / "run", max_steps=40, learning_rate=1e-2, lr_scheduler_type="constant")
    trainer.train()
    trainer.save_model(str(folder / "model"))
    AutoTokenizer.from_pretrained(tiny_dir).save_pretrained(folder / "model")
    return folder / "model"


def greedy_text(model, tokenizer, prompt) -> tuple[str, int]:
    ids = torch.tensor([encode_prompt(tokenizer, prompt)])
    made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    return tokenizer.decode(made[0, ids.size(1) :], skip_special_tokens=True), made.size(1) - ids.size(1)


@pytest.mark.parametrize("rows", [4, 8])
def test_advantages_are_rewards_minus_that_of_the_greedy_completion(rows, stops_dir, tmp_path):
    trainer = build(
        "grpo",
        stops_dir,
        tmp_path,
        reward=checksum_verdict,
        trainer_class=Watching,
        per_device_train_batch_size=rows,
        max_steps=2,
        learning_rate=1e-30,
        **REMAX,
    )
    trainer.train()
    model, tokenizer, tokens, baselines = fresh_model(stops_dir), trainer.processing_class, 0, []
    for batch in trainer.batches:
        tokens += int(batch.tensors["completion_mask"].sum())
        expected = []
        for index, row in enumerate(batch.rows):
            text, length = greedy_text(model, tokenizer, row["prompt"])
            baseline = checksum_verdict([None], [[{"content": text}]])[0]
            expected.append(float(batch.rewards[index, 0]) - baseline)
            if index % 4 == 0:
                tokens, baselines = tokens + length, [*baselines, baseline]
        assert batch.tensors["advantages"].tolist() == expected
    assert {-1.0, 0.0, 1.0} >= set(expected)
    # The greedy completions are paid for, and no reward was logged for them.
    assert costs(trainer)["cost/generated_tokens"] == tokens
    assert costs(trainer)["cost/prompts"] == len(baselines)
    logged = [entry["rollout/greedy_reward_mean"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(logged) / len(logged) == pytest.approx(sum(baselines) / len(baselines))


def test_sampling_goes_on_as_without_it(stops_dir, tmp_path):
    """The same rollouts as rloo draws in its first batch: greedy decoding draws nothing."""
    seen = []
    for name, settings in (("remax", REMAX), ("rloo", {"preset": "rloo"})):
        reward = Recorder()
        trainer = build(
            "grpo", stops_dir, tmp_path / name, reward=reward, max_steps=2, learning_rate=1e-30, **settings
        )
        trainer.train()
        assert trainer.generation_config.do_sample and trainer.generation_kwargs["temperature"] == 1.0
        seen.append(reward.seen)
    size = 8  # rows of a generation batch, and its two greedy completions
    assert seen[0][:size] == seen[1][:size]
    assert seen[0][size + 2 : 2 * size + 2] == seen[1][size : 2 * size]


def test_nothing_moves_where_all_rewards_and_the_greedy_one_are_equal(stops_dir, tmp_path):
    def always(prompts, completions, **_):
        return [1.0] * len(completions)

    trainer = build("grpo", stops_dir, tmp_path, reward=always, max_steps=2, weight_decay=0.0, **REMAX)
    before = weights(trainer)
    trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())


def test_a_row_without_a_greedy_reward_has_no_gradient(stops_dir, tmp_path):
    calls = []

    def none_for_greedy(prompts, completions, **_):
        calls.append(len(completions))
        return [1.0] * len(completions) if len(calls) % 2 else [None] * len(completions)

    trainer = build("grpo", stops_dir, tmp_path, reward=none_for_greedy, max_steps=1, max_grad_norm=0.0, **REMAX)
    assert not any(value.any() for value in gradients(trainer).values())
    assert calls == [8, 2]


def test_what_rewards_log_of_greedy_completions_is_left_out(stops_dir, tmp_path):
    calls = []

    def logging_reward(prompts, completions, log_metric, log_extra, **_):
        calls.append(len(completions))
        log_metric("mine/rows", float(len(completions)))
        log_extra("mine", [len(calls)] * len(completions))
        return [1.0] * len(completions)

    trainer = build("grpo", stops_dir, tmp_path, reward=logging_reward, max_steps=3, **REMAX)
    trainer.train()
    assert set(calls) == {8, 2}
    rows = [entry["mine/rows"] for entry in trainer.state.log_history if "loss" in entry]
    assert rows == [8.0] * len(rows)
    assert set(trainer._logs["extra"]["mine"]) == {len(calls) - 1}, "of the last rollouts, scored last but one"
    assert not trainer._pending_metrics and not trainer._pending_extra_logs


def test_greedy_completions_are_parsed_as_the_rollouts_are(stops_dir, tmp_path):
    reward = Recorder()
    trainer = build("grpo", stops_dir, tmp_path, reward=reward, max_steps=1, **REMAX)
    trainer.processing_class.response_template = {
        "defaults": {"role": "assistant", "content": "parsed"},
        "start_anchor": "assistant",
        "fields": {"thinking": {"open_pattern": ".", "close_pattern": "$", "content": "text"}},
    }
    trainer.train()
    assert [text for _, text in reward.seen] == ["parsed"] * 10  # eight rollouts and two greedy completions


def test_a_stopped_run_goes_on_bit_for_bit(stops_dir, tmp_path):
    layout = {"max_steps": 5, "save_strategy": "steps", "save_steps": 3, "steps_per_generation": 4, **REMAX}
    whole = build("grpo", stops_dir, tmp_path, **layout)
    whole.train()
    rest = build("grpo", stops_dir, tmp_path, **layout)
    torch.manual_seed(9)
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert all(torch.equal(value, weights(rest)[name]) for name, value in weights(whole).items())
    assert costs(rest) == costs(whole)


@pytest.mark.parametrize(
    ("size", "world", "group"), [(8, 1, 4), (4, 2, 8), (6, 2, 4), (2, 3, 3), (10, 2, 4), (3, 4, 2)]
)
def test_every_rank_completes_its_prompts_and_equally_many(size, world, group):
    counts = set()
    for rank in range(world):
        rows, place_of = completed_rows(size, rank=rank, world=world, num_generations=group)
        counts.add(len(rows))
        assert all(0 <= row < size for row in rows)
        for row in range(size):
            stands_for = rank * size + rows[place_of[row]]
            assert stands_for // group == (rank * size + row) // group
        distinct = {(rank * size + row) // group for row in range(size)}
        assert len(set(place_of)) == len(distinct) <= len(rows)
    assert len(counts) == 1


def test_what_cannot_make_a_greedy_completion_is_refused(tiny_dir, tmp_path):
    with pytest.raises(SupportError, match=r"method.advantage_estimator.*cannot be made with a rollout_func"):
        build("grpo", tiny_dir, tmp_path, trainer_kwargs={"rollout_func": replay}, **REMAX)
    with pytest.raises(SupportError, match="in a way of its own, without a greedy completion"):
        build("hpt", tiny_dir, tmp_path, advantage_estimator="remax")
    with pytest.raises(SupportError, match="is made by transformers alone"):
        build("grpo", tiny_dir, tmp_path, use_vllm=True, vllm_mode="colocate", **REMAX)
