"""Reinforcement mid-training: every bad input with its message."""

from __future__ import annotations

import pytest
from datasets import Dataset, IterableDataset

from posttrain.errors import ConfigError, DataError, SupportError
from posttrain.methods.rmt.config import RMTConfig
from tests.batteries.runs import build

TEXTS = Dataset.from_list([{"text": "one two three"}, {"text": "abcabcab"}])


def config(tmp_path, **overrides) -> RMTConfig:
    values = {"output_dir": str(tmp_path), "report_to": "none", "max_completion_length": 1600}
    return RMTConfig(**{**values, **overrides})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("token_budget_decay", 0.0, r"token_budget_decay.*got 0\.0; allowed: float > 0\.0 and < 1\.0"),
        ("token_budget_decay", 1.0, r"token_budget_decay.*got 1\.0"),
        ("token_budget_min", 0, r"token_budget_min.*got 0; allowed: int >= 1"),
        ("token_budget_min", 900, r"token_budget_initial: the budget begins below its least value \(got 800"),
        ("curriculum_probs_start", [0.6, 0.3, 0.2], r"curriculum_probs_start: not three chances that add up to 1"),
        ("curriculum_probs_end", [0.5, 0.5], r"curriculum_probs_end: not three chances"),
        ("curriculum_start", 0.7, r"curriculum_start: the curriculum ends before it begins"),
        ("length_reward_weight", 0.5, r"length_reward_weight: a wrong answer .* allowed: 0 <= w < 0\.5"),
        ("length_reward_weight", 1.5, r"length_reward_weight.*<= 1"),
        ("entropy_thresholds", [0.5, 0.4, 1.0], r"entropy_thresholds: not three rising numbers"),
        ("max_entropy", 0.4, r"max_entropy: no token lies between"),
        ("prompt_template", "Next?", r"prompt_template: the question does not show the text"),
        ("budget_prompt", "Think.", r"budget_prompt: the question does not name the budget"),
        ("match_reward", "suffix", r"match_reward.*prefix, first_token, exact_token"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(field, value, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, **{field: value})


def test_a_large_length_weight_can_be_forced_and_does_not_matter_without_budget(tmp_path):
    assert config(tmp_path, length_reward_weight=0.6, allow_large_length_weight=True).length_weight == 0.6
    assert config(tmp_path, length_reward_weight=0.6, use_token_budget=False).length_weight == 0.0


@pytest.mark.parametrize(("weight", "height"), [(0.2, 4.0), (0.2, 10.0), (0.34, 2.0)])
def test_a_high_length_reward_makes_a_smaller_weight_too_large(weight, height, tmp_path):
    """w * height against 1 - w: 0.8 and 0.8, 2.0 and 0.8, 0.68 and 0.66."""
    with pytest.raises(ConfigError, match=r"length_reward_weight: a wrong answer .*length_reward_max"):
        config(tmp_path, length_reward_weight=weight, length_reward_max=height)
    assert config(tmp_path, length_reward_weight=weight / 2, length_reward_max=height / 2).length_weight == weight / 2


def test_completions_shorter_than_twice_the_budget_are_warned_about(tmp_path):
    with pytest.warns(UserWarning, match=r"max_completion_length is 1000, below twice the first budget \(1600\)"):
        config(tmp_path, max_completion_length=1000)


def test_text_is_not_learnt_at_another_temperature(tmp_path):
    with pytest.raises(SupportError, match=r"rollout\.temperature.*got 0\.8; allowed: 1\.0 while method\.use_ntp"):
        config(tmp_path, temperature=0.8)
    assert config(tmp_path, temperature=0.8, variant="rpt").rule == "prefix"


def test_a_stream_is_refused(tiny_dir, tmp_path):
    stream = IterableDataset.from_generator(lambda: iter([{"text": "abc"}]))
    with pytest.raises(SupportError, match=r"the length of the run is not known.*got 'IterableDataset'.*max_steps"):
        build("rmt", tiny_dir, tmp_path, data=stream)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "a"}], r"there is no text.*allowed: a column text or prompt"),
        ([{"text": "a"}, {"text": ""}], r"no document has two tokens"),
        ([{"text": "abc", "entropy": [0.0, 1.0]}], r"entropy was made with another tokenizer.*2 numbers.*3 tokens"),
    ],
)
def test_rows_that_are_no_corpus_are_refused(rows, message, tiny_dir, tmp_path):
    with pytest.raises(DataError, match=message):
        build("rmt", tiny_dir, tmp_path, data=Dataset.from_list(rows))


def test_empty_tiers_are_refused(tiny_dir, tmp_path):
    with pytest.raises(DataError, match=r"entropy_thresholds: no token is uncertain enough: all tiers are empty"):
        build("rmt", tiny_dir, tmp_path, data=TEXTS, entropy_thresholds=[3.0, 3.5, 4.0])


def test_a_model_that_never_boxes_is_stopped_with_a_sample(tiny_dir, tmp_path):
    trainer = build("rmt", tiny_dir, tmp_path, data=TEXTS, max_steps=9, max_rollouts_without_answer=24)
    with pytest.raises(DataError, match=r"boxed_after_think: none of the first 24 rollouts .*got '"):
        trainer.train()


def test_a_question_that_does_not_fit_the_model_is_refused(tiny_dir, tmp_path):
    with pytest.raises(DataError, match=r"do not fit the model.*at most 512 positions"):
        build("rmt", tiny_dir, tmp_path, data=TEXTS, max_completion_length=500)


def test_a_scorer_with_another_vocabulary_is_refused(tiny_dir, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    other = tmp_path / "other"
    AutoModelForCausalLM.from_pretrained(tiny_dir).save_pretrained(other)
    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    tokenizer.add_tokens(["one"])
    tokenizer.save_pretrained(other)
    with pytest.raises(SupportError, match=r"entropy_model: the scorer cuts text into other tokens"):
        build("rmt", tiny_dir, tmp_path / "run", data=TEXTS, entropy_model=str(other))


def test_the_greedy_baseline_is_refused(tmp_path):
    with pytest.raises(SupportError, match=r"advantage_estimator.*got 'remax'"):
        config(tmp_path, advantage_estimator="remax")
