"""Rollouts and evaluations follow the recipe, whatever the model's own generation config holds."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from posttrain.errors import ConfigError
from posttrain.evaluation.generate import evaluate
from posttrain.evaluation.results import EvalSettings
from posttrain.models.generation_settings import (
    check_generation_kwargs,
    described,
    narrowed,
    open_settings,
    plain_generation,
    read_generation_config,
    tell_once,
    told,
)
from posttrain.registry import METHODS
from tests.batteries.runs import Recorder, build, checksum_verdict, dataset

SETTINGS = {
    "suppress_tokens": [10, 11, 12, 13, 14, 15, 16],
    "begin_suppress_tokens": [20, 21],
    "bad_words_ids": [[30], [31, 32]],
    "sequence_bias": [[[40], 5.0]],
    "no_repeat_ngram_size": 1,
    "repetition_penalty": 1.7,
    "typical_p": 0.5,
    "epsilon_cutoff": 0.02,
    "eta_cutoff": 0.02,
    "min_p": 0.2,
    "top_p": 0.5,
    "top_k": 3,
    "exponential_decay_length_penalty": [2, 3.0],
    "forced_eos_token_id": 44,
    "forced_bos_token_id": 45,
    "num_beams": 3,
    "min_new_tokens": 9,
    "max_time": 1e-9,
    "stop_strings": ["1"],
    "guidance_scale": 3.0,
    "renormalize_logits": True,
    "use_cache": False,
    "return_dict_in_generate": True,
    "cache_implementation": "static",
    "temperature": 0.2,
}


def loaded_with(tiny_dir, **settings):
    model = AutoModelForCausalLM.from_pretrained(tiny_dir)
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return model


def seen(tiny_dir, folder, model, **overrides):
    reward = Recorder()
    torch.manual_seed(0)
    build("grpo", tiny_dir, folder, reward=reward, model=model, max_steps=1, **overrides).train()
    return reward.seen


def test_rollouts_are_drawn_as_without_the_models_settings(tiny_dir, tmp_path, caplog):
    plain = seen(tiny_dir, tmp_path / "plain", loaded_with(tiny_dir))
    model = loaded_with(tiny_dir, **SETTINGS)
    with caplog.at_level(logging.WARNING):
        assert seen(tiny_dir, tmp_path / "full", model) == plain
    for name in SETTINGS:  # back in place, so that they are saved with the model
        assert getattr(model.generation_config, name) == SETTINGS[name]
    (line,) = [record.message for record in caplog.records if "not used of the model's own" in record.message]
    assert "no_repeat_ngram_size 1" in line and "suppress_tokens [10, 11, 12, ...] (7 entries)" in line


def test_the_greedy_baseline_is_drawn_alike(tiny_dir, tmp_path):
    remax = {"advantage_estimator": "remax"}
    plain = seen(tiny_dir, tmp_path / "plain", loaded_with(tiny_dir), **remax)
    assert seen(tiny_dir, tmp_path / "full", loaded_with(tiny_dir, **SETTINGS), **remax) == plain


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_evaluation_is_the_same(temperature, tiny_dir):
    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    settings = EvalSettings(max_new_tokens=8, temperature=temperature, num_prompts=4, num_generations=1)

    def completions(model):
        found = evaluate(model, tokenizer, dataset(4), checksum_verdict, settings=settings)
        return [sample["completion"] for sample in found.samples]

    assert completions(loaded_with(tiny_dir, **SETTINGS)) == completions(loaded_with(tiny_dir))


def test_special_tokens_stay_and_adapters_are_reached(tiny_dir):
    from peft import LoraConfig, get_peft_model

    model = loaded_with(tiny_dir, eos_token_id=[2, 7], no_repeat_ngram_size=2)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    before = model.generation_config
    with plain_generation(wrapped):
        assert wrapped.generation_config.no_repeat_ngram_size is None
        assert wrapped.generation_config.eos_token_id == [2, 7]
    assert model.generation_config is before


def test_only_what_changes_the_draw_is_told():
    quiet = {"do_sample": True, "max_length": 99, "top_p": 1.0, "repetition_penalty": 1.0, "eos_token_id": [1, 2]}
    assert told(open_settings(GenerationConfig(**quiet, pad_token_id=0, num_beams=1))) is None
    loud = open_settings(GenerationConfig(top_k=20, use_cache=False, a_new_field="x"))
    assert described(loud) == "use_cache False, top_k 20, a_new_field x"


def test_it_is_told_once(caplog):
    config = GenerationConfig(no_repeat_ngram_size=17)
    with caplog.at_level(logging.WARNING):
        tell_once(config)
        tell_once(config)
    assert [record.message for record in caplog.records] == [told({"no_repeat_ngram_size": 17})]


@pytest.mark.parametrize("text", ['{"temperature": 0.6,', "[1, 2]"])
def test_a_generation_config_that_cannot_be_read_is_told(text, tiny_dir, tmp_path):
    import shutil

    shutil.copytree(tiny_dir, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"generation_config.json of the model cannot be read"):
        read_generation_config(str(tmp_path / "model"))
    (tmp_path / "model" / "generation_config.json").unlink()
    assert read_generation_config(str(tmp_path / "model")) is not None


@pytest.mark.parametrize(
    ("given", "told_of"),
    [
        ({"max_new_tokens": 3}, "Use rollout.max_completion_length"),
        ({"temperature": 0.5}, "Use rollout.temperature"),
        ({"eos_token_id": 5}, "the model's tokenizer"),
        ({"no_repeat_ngram": 2}, "knows no such generation setting"),
    ],
)
def test_generation_kwargs_that_would_not_count_are_refused(given, told_of, tmp_path):
    config = METHODS["grpo"].load_config()
    with pytest.raises(ConfigError, match=told_of):
        config(output_dir=str(tmp_path), report_to="none", generation_kwargs=given)
    check_generation_kwargs({"seed": 3}, is_vllm=True)


def test_settings_of_the_recipe_that_narrow_the_draw_are_told(tmp_path):
    config = METHODS["grpo"].load_config()
    with pytest.warns(
        UserWarning, match=r"another distribution .*: rollout.top_p 0.9, rollout.generation_kwargs.num_beams 2"
    ):
        config(output_dir=str(tmp_path), report_to="none", top_p=0.9, generation_kwargs={"num_beams": 2})
    assert narrowed(config(output_dir=str(tmp_path), report_to="none", temperature=0.7)) is None
