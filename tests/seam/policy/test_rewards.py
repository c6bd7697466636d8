"""Rows on which a reward fails are as if never generated, on every rank alike, and the user is told why."""

from __future__ import annotations

import inspect
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from posttrain.data.demonstrations import encode_prompt
from posttrain.errors import RewardError
from posttrain.rewards.scorer import RewardScorer
from posttrain.seam.policy.trainer import PolicyTrainer
from tests.batteries.runs import (
    build,
    dataset,
    fresh_model,
    gradients,
    losses,
    marked_right,
    never_right,
    relative_difference,
    replay,
)

ROOT = Path(__file__).parents[3]
ODD = [1, 3, 5, 7]  # prompts of `replay` of which about half of the rollouts are right


def longest_fails(prompts, completions, **_):
    """Raises on the longest kind of replayed completion; elsewhere its length is the reward."""
    return [1 / (not text[0]["content"].endswith("2")) * len(text[0]["content"]) / 8 for text in completions]


def trainer_of(tiny_dir, tmp_path, reward, *, trainer_class=None, **overrides):
    settings = {
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": 1,
        "max_grad_norm": 0.0,
        "max_failed_fraction": 0.5,
        "shuffle_dataset": False,
        **overrides,
    }
    return build(
        "grpo",
        tiny_dir,
        tmp_path,
        reward=reward,
        data=dataset().select(ODD),
        trainer_kwargs={"rollout_func": replay},
        trainer_class=trainer_class,
        **settings,
    )


class Capturing(PolicyTrainer):
    """Keeps the rollouts it was given."""

    def prepare_rollouts(self, rollouts):
        self.seen = rollouts
        return rollouts


def literal_gradient(tiny_dir, tokenizer, rows, *, max_length, entropy_coef):
    """Gradient of -(1 / (rows * max_length)) * sum of advantage * log pi, minus the mean entropy, row by row.

    rows: (prompt, completion ids, advantage) of the rows that count.
    """
    model = fresh_model(tiny_dir)
    policy, entropy, tokens = 0.0, 0.0, 0
    for prompt, completion, advantage in rows:
        ids = torch.tensor([encode_prompt(tokenizer, prompt) + completion])
        logps = model(ids).logits[0, -len(completion) - 1 : -1].log_softmax(-1)
        policy = policy - advantage * logps[range(len(completion)), completion].sum()
        entropy = entropy - (logps.exp() * logps).sum()
        tokens += len(completion)
    (policy / (len(rows) * max_length) - entropy_coef * entropy / tokens).backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("estimator", ["group_mean", "group_norm"])
@pytest.mark.parametrize("in_worker", [False, True])
def test_failed_rows_leave_baseline_loss_and_counts(estimator, in_worker, tiny_dir, tiny_tokenizer, tmp_path):
    """The gradient is that of the other rows, with advantages worked out by hand from their rewards alone."""
    reward = longest_fails
    if in_worker:
        (tmp_path / "mine.py").write_text(inspect.getsource(longest_fails))
        reward = RewardScorer("mine.py:longest_fails", base_dir=tmp_path)
    trainer = trainer_of(
        tiny_dir,
        tmp_path,
        reward,
        trainer_class=Capturing,
        entropy_coef=0.05,
        advantage_estimator=estimator,
        max_completion_length=12,
    )
    found = gradients(trainer)
    rollouts = trainer.seen
    texts = [tiny_tokenizer.decode(ids[mask.bool()], skip_special_tokens=True) for ids, mask in completions(rollouts)]
    fails = [text.endswith("2") for text in texts]
    assert rollouts.tensors["is_failed"].tolist() == fails and sum(fails) == 2
    assert rollouts.rewards.isnan().all(dim=1).tolist() == fails
    rows = []
    for first in (0, 4):
        kept = [row for row in range(first, first + 4) if not fails[row]]
        values = torch.tensor([len(texts[row]) / 8 for row in kept])
        advantages = values - values.mean()
        if estimator == "group_norm":
            advantages = advantages / (values.std() + 1e-6)
        for row, advantage in zip(kept, advantages.tolist(), strict=True):
            ids, mask = completions(rollouts)[row]
            rows.append((rollouts.rows[row]["prompt"], ids[mask.bool()].tolist(), advantage))
    expected = literal_gradient(tiny_dir, tiny_tokenizer, rows, max_length=12, entropy_coef=0.05)
    # float32, padded batches here and single rows there.
    assert relative_difference(found, expected) < 2e-5
    logged = trainer.state.log_history[0]
    name = "reward/longest_fails"
    assert logged[f"{name}/failed_fraction"] == 0.25 and logged[f"{name}/not_applicable_fraction"] == 0.0
    assert logged[f"{name}/seconds"] >= logged[f"{name}/seconds_p95"] >= 0.0


def completions(rollouts):
    tensors = rollouts.tensors
    return list(zip(tensors["completion_ids"], tensors["completion_mask"], strict=True))


def test_a_reward_that_does_not_apply_leaves_the_sum_of_the_others(tiny_dir, tmp_path):
    def sometimes(prompts, completions, **_):
        return [1.0 if text[0]["content"].startswith("R") else None for text in completions]

    trainer = trainer_of(tiny_dir, tmp_path, [marked_right, sometimes], trainer_class=Capturing)
    trainer.train()
    rewards, failed = trainer.seen.rewards, trainer.seen.tensors["is_failed"]
    assert not failed.any() and rewards[:, 1].isnan().any()
    assert trainer.total_rewards(rewards).tolist() == [2.0 * value for value in rewards[:, 0].tolist()]
    assert trainer.state.log_history[0]["reward/sometimes/not_applicable_fraction"] == 0.5


def test_the_verdict_stays_apart_from_a_shaping_reward_that_fails(tiny_dir, tmp_path):
    both = trainer_of(tiny_dir, tmp_path / "a", [marked_right, longest_fails], trainer_class=Capturing)
    both.train()
    alone = trainer_of(tiny_dir, tmp_path / "b", marked_right, trainer_class=Capturing)
    alone.train()
    assert both.seen.tensors["is_failed"].any()
    assert both.verdicts(both.seen).tolist() == alone.verdicts(alone.seen).tolist()
    assert both.state.log_history[0]["rollout/accuracy"] == alone.state.log_history[0]["rollout/accuracy"]
    failing = trainer_of(tiny_dir, tmp_path / "c", longest_fails, trainer_class=Capturing)
    failing.train()
    assert failing.verdicts(failing.seen).isnan().tolist() == failing.seen.tensors["is_failed"].tolist()


async def waiting(prompts, completions, **columns):
    return longest_fails(prompts, completions, **columns)


class Callable:
    """A reward that is an object; its isolated calls must not record per-batch columns again."""

    def __call__(self, prompts, completions, log_extra, trainer_state, **_):
        assert trainer_state is not None
        log_extra("length", [len(text[0]["content"]) for text in completions])
        return longest_fails(prompts, completions)


@pytest.mark.parametrize("reward", [waiting, Callable()], ids=["async", "object"])
def test_functions_of_every_kind_have_the_same_outcome(reward, tiny_dir, tmp_path):
    trainer = trainer_of(tiny_dir, tmp_path, reward, trainer_class=Capturing)
    trainer.train()
    assert trainer.seen.tensors["is_failed"].sum() == 2


def test_too_many_failed_rows_stop_the_run_with_names_counts_reasons_and_a_way_out(tiny_dir, tmp_path):
    def unlucky(prompts, completions, **_):
        raise ConnectionError("no route to the judge")

    trainer = trainer_of(tiny_dir, tmp_path, [marked_right, longest_fails, unlucky], max_failed_fraction=0.3)
    with pytest.raises(RewardError) as error:
        trainer.train()
    message = str(error.value)
    assert message.startswith("rollout.rewards: rewards failed on 8 of 8 rows of a generation batch: ")
    assert "'longest_fails' failed on 2 (ZeroDivisionError 2x), first: ZeroDivisionError: division by zero" in message
    assert "'unlucky' failed on 8 (ConnectionError 8x), first: ConnectionError: no route to the judge" in message
    assert "at most 30% of the rows (rollout.max_failed_fraction)" in message and "Repair the reward" in message


def test_exactly_the_accepted_fraction_goes_on_and_one_row_more_stops(tiny_dir, tmp_path):
    trainer_of(tiny_dir, tmp_path / "a", longest_fails, max_failed_fraction=0.25).train()
    with pytest.raises(RewardError, match="failed on 2 of 8 rows"):
        trainer_of(tiny_dir, tmp_path / "b", longest_fails, max_failed_fraction=0.24).train()


def test_a_whole_batch_of_failed_rows_changes_nothing_if_that_is_accepted(tiny_dir, tmp_path):
    def broken(prompts, completions, **_):
        raise RuntimeError

    trainer = trainer_of(tiny_dir, tmp_path, broken, max_failed_fraction=1.0, entropy_coef=0.1)
    assert not any(value.any() for value in gradients(trainer).values())
    assert losses(trainer) == [0.0]


def test_each_kind_of_reason_is_said_once_and_counted(tiny_dir, tmp_path, caplog):
    trainer = trainer_of(tiny_dir, tmp_path, longest_fails, max_steps=2)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert not [record for record in caplog.records if "All reward functions returned None" in str(record.msg)]
    told = [record.getMessage() for record in caplog.records if record.name == "posttrain.seam.policy.rewards"]
    assert told == [
        "reward 'longest_fails' failed on 2 of 8 rows of this generation batch; they leave the loss. "
        "First reason: ZeroDivisionError: division by zero. So far: ZeroDivisionError 2x"
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1.0"])
def test_a_value_that_is_no_number_stops_the_run_by_name(value, tiny_dir, tmp_path):
    def odd(completions, **_):
        return [0.0, value] + [None] * (len(completions) - 2)

    with pytest.raises(RewardError, match=r"reward 'odd': value 1 is not a finite number \(got"):
        trainer_of(tiny_dir, tmp_path, odd).train()


def test_a_list_of_the_wrong_length_stops_the_run_by_name(tiny_dir, tmp_path):
    def short(completions, **_):
        return [0.0]

    with pytest.raises(
        RewardError, match=r"reward 'short': returned the wrong number of values \(got 1; allowed: 8\)"
    ):
        trainer_of(tiny_dir, tmp_path, [marked_right, short]).train()


def test_reward_models_and_names_pass_through(tiny_dir, tmp_path):
    from posttrain.seam.policy.rewards import RewardRecorder

    model = torch.nn.Linear(1, 1)
    assert RewardRecorder(model, max_failed_fraction=0.1).functions is model
    recorder = RewardRecorder(["name/of-a-model", model, never_right], max_failed_fraction=0.1)
    assert recorder.functions[:2] == ["name/of-a-model", model]
    assert recorder.functions[2].__name__ == "never_right"


def test_the_loss_of_upstreams_evaluation_leaves_failed_rows_out(tiny_dir, tmp_path):
    trainer = trainer_of(
        tiny_dir, tmp_path, longest_fails, eval_strategy="no", per_device_eval_batch_size=8, num_generations_eval=4
    )
    result = trainer.evaluate(dataset().select(ODD[:2]))
    assert result["eval_reward/longest_fails/failed_fraction"] == 0.25
    assert result["eval_loss"] == result["eval_loss"]


# ---- two processes ----


@pytest.fixture(scope="module")
def two_ranks(tiny_dir, tmp_path_factory) -> dict[str, list]:
    """What each of two ranks got to see, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += ["--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:0", "-m", "tests.seam.policy.reward_ranks"]
    done = subprocess.run(
        [*command, str(tiny_dir), str(folder)], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    return {case: [rank[case] for rank in ranks] for case in ranks[0]}


def test_a_mistake_that_shows_on_one_rank_stops_all_with_the_same_words(two_ranks):
    first, second = two_ranks["contract"]
    assert first == second
    assert first == "rank 1: reward 'short': returned the wrong number of values (got 1; allowed: 4)."


def test_the_failed_fraction_is_taken_over_all_ranks(two_ranks):
    assert two_ranks["accepted"] == [0.25, 0.25]
    first, second = two_ranks["refused"]
    assert first == second and "failed on 2 of 8 rows" in first
