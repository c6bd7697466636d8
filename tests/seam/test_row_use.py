"""Rows that an epoch cannot use are counted and told: by the check, by the trainers, in `run.json`."""

from __future__ import annotations

import logging

import pytest

from posttrain import console
from posttrain.config.loader import load
from posttrain.errors import DataError
from posttrain.preflight.check import check
from posttrain.seam.row_use import batch_use, demonstration_use, prompt_use
from tests.batteries.runs import Recorder, build, dataset
from tests.config.recipes import GRPO, SFT, changed, write

SMALL = {"trainer.per_device_train_batch_size": 4, "trainer.gradient_accumulation_steps": 1, "trainer.max_steps": 1}
PAIRS = {**SMALL, "rollout.num_generations": 2}


@pytest.fixture(autouse=True)
def unread(monkeypatch):
    """Every test reads its sentences anew."""
    monkeypatch.setattr(console, "_TOLD", set())


def test_what_is_left_over_is_said_in_numbers():
    use = prompt_use(14, prompts=4, num_generations=8, is_shuffled=True)
    assert (use.used, use.rows) == (12, 14)
    assert use.sentence == (
        "an epoch uses 12 of 14 training rows: a generation batch takes 4 prompts of 8 completions each, and the 2 "
        "left over are others in every epoch"
    )
    assert prompt_use(12, prompts=4, num_generations=8, is_shuffled=True).sentence is None
    assert "the last 1 is never used" in demonstration_use(7, size=3, is_shuffled=False).sentence
    assert batch_use(7, size=2, drops_last=False, is_shuffled=True).sentence is None
    assert batch_use(7, size=2, drops_last=True, is_shuffled=True).used == 6


@pytest.mark.parametrize("rows", [6, 7])
def test_a_policy_trainer_trains_what_it_says(rows, tiny_dir, tmp_path, caplog):
    """A generation batch is 4 x 2 rows of 4 completions, so 2 prompts."""
    reward = Recorder()
    trainer = build("grpo", tiny_dir, tmp_path, reward=reward, data=dataset(rows), num_train_epochs=1)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    (use,) = trainer.row_use()
    assert len({prompt for prompt, _ in reward.seen}) == use.used == 6
    assert ("an epoch uses 6 of 7 training rows" in caplog.text) == (rows == 7)


def test_a_supervised_trainer_trains_what_it_says(tiny_dir, tmp_path, caplog):
    trainer = build("sft", tiny_dir, tmp_path, data=dataset(7), num_train_epochs=1, dataloader_drop_last=True)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer._costs["cost/demonstrations"] == trainer.row_use()[0].used == 6
    assert "an epoch uses 6 of 7 training rows: trainer.dataloader_drop_last" in caplog.text


def test_demonstrations_of_an_alternating_method_are_counted_apart(tiny_dir, tmp_path):
    prompts, demonstrations = build("sasr", tiny_dir, tmp_path, data=dataset(9), max_steps=1).row_use()
    assert (prompts.used, demonstrations.rows, demonstrations.used) == (8, 9, 8)


def test_shares_of_groups_leave_no_row_over_and_say_nothing(tiny_dir, tmp_path):
    from tests.batteries.runs import as_groups

    shares = {"prompt_proportions": {"group0": 0.5, "group1": 0.25, "group2": 0.25}}
    assert build("grpo", tiny_dir, tmp_path, data=as_groups(dataset(9)), max_steps=1, **shares).row_use() == []


def test_rows_without_a_trained_token_are_counted_and_none_left_is_refused(tiny_dir, tmp_path, caplog):
    """TRL cuts rows of its own format at max_length and drops those whose completion is gone."""
    from datasets import Dataset

    rows = Dataset.from_list([{"prompt": "p" * size, "completion": "yes"} for size in (3, 40, 50)])
    with caplog.at_level(logging.WARNING):
        build("sft", tiny_dir, tmp_path, data=rows, max_steps=1, max_length=20)
    assert "left out 2 of 3 train rows: none of their tokens would be trained" in caplog.text
    trainer = build("sft", tiny_dir, tmp_path, data=rows.select([1, 2]), max_steps=1, max_length=20)
    with pytest.raises(DataError, match="no training row is left"):
        trainer.train()


@pytest.mark.parametrize(
    ("base", "changes", "told"),
    [
        (GRPO, {"data.train.size": 9}, "an epoch uses 8 of 9 training rows"),
        (GRPO, {"data.train.size": 9, "trainer.shuffle_dataset": False}, "the last 1 is never used"),
        (SFT, {"data.train.size": 9, "trainer.dataloader_drop_last": True}, "of 9 training rows"),
        (SFT, {"data.train.size": 64, "trainer.max_steps": 1}, "the run ends within its first pass: about"),
        (SFT, {**SMALL, "data.train.size": 5}, "first pass: about 4 rows are used"),
        (GRPO, {**PAIRS, "data.train.size": 5}, "first pass: about 2 rows are used"),
        (
            GRPO,
            {**PAIRS, "data.train.size": 9, "trainer.num_iterations": 2, "trainer.max_steps": 3},
            "first pass: about 4 rows are used",
        ),
    ],
)
def test_the_check_says_it_before_the_run(base, changes, told, tmp_path):
    facts = check(load(write(tmp_path, changed(base, changes)))).facts
    assert any(told in line for line in facts), facts
