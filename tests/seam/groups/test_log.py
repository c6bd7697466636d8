"""Realised shares of a mixture: exact, independent of the split, and the same after a resume."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from posttrain.data.mixture import SOURCE_COLUMN, mix, token_counter
from tests.batteries.runs import Recorder, build, gradients, relative_difference, weights


def rows(name: str, count: int) -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"{name}{i}=?"}],
                "answer": str(i),
                "solution": "x" * (1 + i % 4) + name,
            }
            for i in range(count)
        ]
    )


@pytest.fixture
def mixture():
    parts = [{"name": "a", "repeat": 2}, {"name": "b"}, {"name": "c", "fraction": 0.5}]
    return mix({"a": rows("a", 4), "b": rows("b", 5), "c": rows("c", 6)}, parts)


def shown(trainer) -> dict[str, float]:
    """The last logged value of every number of the mixture."""
    return {k: v for entry in trainer.state.log_history for k, v in entry.items() if k.startswith("mixture/")}


def test_an_epoch_trains_what_the_mixture_says(mixture, tiny_dir, tmp_path):
    trainer = build("sft", tiny_dir, tmp_path, data=mixture.dataset, num_train_epochs=1, max_steps=-1)
    trainer.train()
    found = shown(trainer)
    assert {name: found[f"mixture/{name}_rows"] for name in "abc"} == {"a": 8, "b": 5, "c": 3}
    assert found["mixture/a_rows_fraction"] == pytest.approx(0.5)
    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    trained = dict.fromkeys("abc", 0)
    for row in mixture.dataset:
        prompt = token_counter(tokenizer, column="none")(row)
        trained[row[SOURCE_COLUMN]] += token_counter(tokenizer, column="solution")(row) - prompt
    assert {name: found[f"mixture/{name}_tokens"] for name in "abc"} == trained


def test_two_epochs_count_every_row_twice(mixture, tiny_dir, tmp_path):
    trainer = build("sft", tiny_dir, tmp_path, data=mixture.dataset, num_train_epochs=2, max_steps=-1)
    trainer.train()
    assert shown(trainer)["mixture/b_rows"] == 10


def test_gradient_and_shares_do_not_depend_on_the_split(mixture, tiny_dir, tmp_path):
    found, shares = [], []
    for size, steps in ((8, 1), (4, 2), (2, 4)):
        layout = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        trainer = build("sft", tiny_dir, tmp_path, data=mixture.dataset, max_steps=1, max_grad_norm=0.0, **layout)
        found.append(gradients(trainer))
        shares.append(shown(trainer))
    assert shares[1] == pytest.approx(shares[0], rel=1e-6)
    assert shares[2] == pytest.approx(shares[0], rel=1e-6)
    assert max(relative_difference(other, found[0]) for other in found[1:]) < 1e-5


def test_a_resumed_run_goes_on_counting(mixture, tiny_dir, tmp_path):
    layout = {"data": mixture.dataset, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = build("sft", tiny_dir, tmp_path, **layout)
    whole.train()
    rest = build("sft", tiny_dir, tmp_path, **layout)
    torch.manual_seed(9)
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert shown(rest) == shown(whole) != {}
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(rest).items())


def test_the_column_of_sources_does_not_change_what_is_learnt(mixture, tiny_dir, tmp_path):
    plain = mixture.dataset.remove_columns([SOURCE_COLUMN])
    found = [gradients(build("sft", tiny_dir, tmp_path, data=data, max_steps=1)) for data in (mixture.dataset, plain)]
    assert relative_difference(*found) == 0.0


def test_policy_methods_count_prompts_and_generated_tokens(mixture, tiny_dir, tmp_path):
    reward = Recorder()
    trainer = build("grpo", tiny_dir, tmp_path, data=mixture.dataset, reward=reward, max_steps=3)
    trainer.train()
    asked = Counter(prompt[0] for prompt, _ in reward.seen)
    found = shown(trainer)
    assert {name: found[f"mixture/{name}_rows"] for name in "abc"} == {name: asked[name] / 4 for name in "abc"}
    totals = [
        entry["cost/generated_tokens"] for entry in trainer.state.log_history if "cost/generated_tokens" in entry
    ]
    assert sum(found[f"mixture/{name}_tokens"] for name in "abc") == totals[-1]


def test_the_loss_of_a_source_is_that_of_its_tokens_since_the_last_line(mixture, tiny_dir, tmp_path):
    layout = {"max_steps": 2, "logging_steps": 2, "learning_rate": 1e-9, "per_device_train_batch_size": 8}
    trainer = build("sft", tiny_dir, tmp_path, data=mixture.dataset, gradient_accumulation_steps=1, **layout)
    trainer.train()
    expected: dict[str, list[float]] = {name: [] for name in "abc"}
    trainer.model.eval()
    for row in trainer.train_dataset:  # one epoch of 16 rows
        ids, labels = (torch.tensor(row[key])[None] for key in ("input_ids", "labels"))
        with torch.no_grad():
            log_probs = trainer.model(input_ids=ids).logits.log_softmax(-1)[0, :-1]
        learnt = labels[0, 1:] != -100
        expected[row[SOURCE_COLUMN]] += (-log_probs[learnt, labels[0, 1:][learnt]]).tolist()
    found = shown(trainer)
    for name, values in expected.items():
        assert found[f"mixture/{name}_loss"] == pytest.approx(sum(values) / len(values), rel=1e-5)
    assert sum(len(values) for values in expected.values()) / trainer.state.max_steps > 8


def test_a_resumed_run_logs_the_loss_of_the_whole_interval(mixture, tiny_dir, tmp_path):
    layout = {"data": mixture.dataset, "max_steps": 4, "logging_steps": 4, "save_strategy": "steps", "save_steps": 3}
    whole = build("sft", tiny_dir, tmp_path, **layout)
    whole.train()
    rest = build("sft", tiny_dir, tmp_path, **layout)
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert shown(rest)["mixture/a_loss"] == shown(whole)["mixture/a_loss"]


@pytest.mark.parametrize("strategy", ["bfd", "wrapped"])
def test_a_packed_row_holds_one_source(mixture, tiny_dir, tmp_path, strategy):
    packed = {"packing": True, "packing_strategy": strategy, "max_length": 64}
    trainer = build("sft", tiny_dir, tmp_path, data=mixture.dataset, num_train_epochs=1, max_steps=-1, **packed)
    tokens = dict.fromkeys("abc", 0)
    for row in trainer.train_dataset:
        text = trainer.tokenizer.decode(row["input_ids"])
        others = [
            name for name in "abc" if any(f"{name}{i}=?" in text for i in range(6)) and name != row[SOURCE_COLUMN]
        ]
        assert not others, text
        tokens[row[SOURCE_COLUMN]] += sum(label != -100 for label in row["labels"])
    assert len(trainer.train_dataset) < len(mixture.dataset)
    trainer.train()
    found = shown(trainer)
    # The first token of a packed row is no target.
    assert {name: found[f"mixture/{name}_tokens"] for name in "abc"} == pytest.approx(tokens, abs=2)
    assert all(found[f"mixture/{name}_loss"] > 0 for name in "abc")


def test_packed_sources_are_trained_like_loose_rows(mixture, tiny_dir, tmp_path):
    found = []
    for packed in ({}, {"packing": True, "max_length": 600}):
        layout = {"per_device_train_batch_size": 16, "gradient_accumulation_steps": 1, "max_steps": 1}
        trainer = build("sft", tiny_dir, tmp_path, data=mixture.dataset, max_grad_norm=0.0, **layout, **packed)
        found.append(gradients(trainer))
    assert relative_difference(found[1], found[0]) < 1e-5
