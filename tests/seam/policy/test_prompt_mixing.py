"""Policy methods draw prompts by the shares of their groups: the shares are used, logged, resumed, and refused."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

from posttrain.errors import ConfigError, DataError
from tests.batteries.runs import Recorder, as_groups, build, dataset, weights

SHARES = {"group0": 0.5, "group1": 0.0, "group2": 0.5}
LAYOUT = {"max_steps": 6, "steps_per_generation": 2}


def run(key, model, folder, data=None, **overrides):
    reward = Recorder()
    data = as_groups(dataset()) if data is None else data
    overrides = {"prompt_proportions": SHARES, **LAYOUT, **overrides}
    return build(key, model, folder, reward=reward, data=data, **overrides), reward


def group_of(prompt: str) -> int:
    return int(prompt.split("+")[0]) % 3


@pytest.mark.parametrize("key", ["grpo", "hpt", "sasr"])
def test_prompts_come_in_the_shares_of_their_groups(key, tiny_dir, tmp_path):
    own = {"switch_controller": "sequential", "warmup_sft_steps": 0} if key == "sasr" else {}
    trainer, reward = run(key, tiny_dir, tmp_path, **own)
    trainer.train()
    asked = Counter(group_of(prompt) for prompt, _ in reward.seen)
    assert asked[1] == 0 and asked[0] == asked[2] == len(reward.seen) / 2 > 0
    logged = [entry for entry in trainer.state.log_history if "mixture/group0_rows_fraction" in entry]
    assert logged[-1]["mixture/group0_rows_fraction"] == 0.5


def test_a_resumed_run_asks_what_the_uninterrupted_one_does(tiny_dir, tmp_path):
    layout = {"save_strategy": "steps", "save_steps": 4}
    whole, asked = run("grpo", tiny_dir, tmp_path, **layout)
    whole.train()
    rest, again = run("grpo", tiny_dir, tmp_path, **layout)
    torch.manual_seed(3)
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert again.seen == asked.seen[-len(again.seen) :]
    assert all(torch.equal(value, weights(rest)[name]) for name, value in weights(whole).items())


def test_shares_of_a_file(tiny_dir, tmp_path):
    path = tmp_path / "mixing.json"
    path.write_text(json.dumps({"groups": list(SHARES), "proportions": list(SHARES.values())}))
    trainer, reward = run(
        "grpo", tiny_dir, tmp_path, prompt_proportions=None, prompt_proportions_from=str(path), max_steps=1
    )
    trainer.train()
    assert {group_of(prompt) for prompt, _ in reward.seen} == {0, 2}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"prompt_proportions": {"group0": 1.0}},
            ConfigError,
            "not the groups of the prompts.*group0, group1, group2",
        ),
        ({"prompt_proportions": {**SHARES, "group1": 0.3}}, ConfigError, r"method\.prompt_proportions: .*of sum 1"),
        ({"prompt_proportions_from": "x.json"}, ConfigError, "the shares of the prompts are given once"),
        ({"prompt_group_column": "level"}, DataError, "the prompts have no group"),
    ],
)
def test_shares_that_cannot_be_kept_are_refused(changes, error, message, tiny_dir, tmp_path):
    with pytest.raises(error, match=message):
        run("grpo", tiny_dir, tmp_path, **changes)[0].train()
