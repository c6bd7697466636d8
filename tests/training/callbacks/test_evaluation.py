"""Evaluation in the course of training: at the right steps, and without a trace in the training."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from posttrain.evaluation.generate import EvalSettings, evaluate
from posttrain.training.callbacks.evaluation import PeriodicEvaluation

ROWS = [{"prompt": [{"role": "user", "content": str(i)}]} for i in range(6)]
SETTINGS = EvalSettings(max_new_tokens=6, temperature=1.0, num_generations=2)


def accepts_all(completions, **columns):
    return [1.0] * len(completions)


def train(tiny_dir, tokenizer, tmp_path, *, every):
    """Five steps with attention dropout; returns losses, weights and what was recorded."""
    torch.manual_seed(0)
    ids = torch.arange(12) % 7 + 4
    recorded = []
    callback = PeriodicEvaluation(
        every or 1,
        evaluate=lambda model: evaluate(model, tokenizer, ROWS, accepts_all, settings=SETTINGS),
        record=lambda step, result: recorded.append((step, result)),
    )  # fmt: skip
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_dir, attention_dropout=0.3),
        args=TrainingArguments(
            output_dir=str(tmp_path), max_steps=5, per_device_train_batch_size=2, logging_steps=1, learning_rate=1e-2,
            report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no", gradient_checkpointing=True,
        ),
        train_dataset=[{"input_ids": ids.roll(i), "labels": ids.roll(i)} for i in range(16)],
        callbacks=[callback] if every else [],
    )  # fmt: skip
    trainer.train()
    losses = [event["loss"] for event in trainer.state.log_history if "loss" in event]
    return losses, trainer.model.state_dict(), recorded


def test_evaluates_every_so_many_steps_and_leaves_the_last_to_the_caller(tiny_dir, tiny_tokenizer, tmp_path):
    for every, steps in ((1, [1, 2, 3, 4]), (2, [2, 4]), (5, []), (6, [])):
        recorded = train(tiny_dir, tiny_tokenizer, tmp_path, every=every)[2]
        assert [step for step, _ in recorded] == steps
    assert all(result.num_samples == 12 for _, result in recorded)


def test_training_is_bit_equal_with_and_without_it(tiny_dir, tiny_tokenizer, tmp_path):
    losses, weights, recorded = train(tiny_dir, tiny_tokenizer, tmp_path, every=1)
    plain_losses, plain_weights, nothing = train(tiny_dir, tiny_tokenizer, tmp_path, every=None)
    assert len(recorded) == 4 and nothing == []
    assert losses == plain_losses
    assert all(torch.equal(value, plain_weights[name]) for name, value in weights.items())
    first, last = recorded[0][1].samples, recorded[-1][1].samples
    assert [s["completion"] for s in first] != [s["completion"] for s in last]


def test_a_period_below_one_step_is_refused():
    with pytest.raises(ValueError, match="every_steps must be at least 1, got 0"):
        PeriodicEvaluation(0, evaluate=lambda model: None, record=lambda step, result: None)
