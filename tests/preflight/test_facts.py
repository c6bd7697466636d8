"""Files that disagree: tokenizer and embeddings, rows and positions, configuration and weights; values as resolved."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from posttrain.errors import ConfigError, DataError, SupportError
from posttrain.models.tiny import build_tiny, character_tokenizer
from tests.config.recipes import REMOVE, checked, numbered, rows_file, told

SMALL = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16}
NO_EVAL = {"data.eval": REMOVE, "eval": REMOVE}


def folder(tmp_path: Path, **sizes: Any) -> Path:
    return build_tiny(tmp_path / "model", **{**SMALL, **sizes})


def of_kind(tmp_path: Path, kind: str, **sizes: Any) -> dict[str, Any]:
    """A random model of an architecture with the character tokenizer, as a model block."""
    place, tokenizer = tmp_path / kind, character_tokenizer()
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **sizes, **ids)
    AutoModelForCausalLM.from_config(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return {"path": str(place)}


def edit(place: Path, file: str, **values: Any) -> None:
    path = place / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# ---- tokens and embeddings ----


def with_tools(tmp_path: Path, **tokens: Any) -> dict[str, Any]:
    place = folder(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(place)
    tokenizer.add_special_tokens(tokens)
    tokenizer.save_pretrained(place)
    return {"path": str(place)}


@pytest.mark.parametrize("base", ["sft", "hpt"])
def test_rows_with_tokens_that_the_model_lacks_are_named(tmp_path: Path, base: str):
    model = with_tools(tmp_path, additional_special_tokens=["<|im_start|>", "<tool>"])
    rows = [*numbered(8), {"prompt": "3+4=", "answer": "7", "solution": "<tool>7"}]
    report = checked(tmp_path, base, {"model": model, "data.train": {"path": rows_file(tmp_path, rows)}, **NO_EVAL})
    message = told(report, DataError)
    assert "the tokenizer has 101 tokens, the model 100 rows of embeddings" in message
    assert "1 of 9 rows use '<tool>' (id 100) (row 8)" in message


def test_tokens_that_no_row_uses_are_a_warning(tmp_path: Path):
    model = with_tools(tmp_path, additional_special_tokens=["<|im_start|>", "<tool>"])
    report = checked(
        tmp_path, "sft", {"model": model, "data.train": {"path": rows_file(tmp_path, numbered(9))}, **NO_EVAL}
    )
    assert report.ok and "no row of training that was looked at uses '<tool>'" in told(report, warning=True)


def test_padding_that_the_model_lacks_stops_a_run(tmp_path: Path):
    message = told(checked(tmp_path, "grpo", {"model": with_tools(tmp_path, pad_token="<nothing>")}))
    assert "the tokenizer's pad_token '<nothing>' has no row in the model's embeddings" in message


def test_an_end_token_that_differs_from_the_models_is_told(tmp_path: Path):
    place = folder(tmp_path)
    edit(place, "config.json", eos_token_id=2)
    message = told(checked(tmp_path, "grpo", {"model": {"path": str(place)}}), warning=True)
    assert "ends at '<|im_start|>' (id 2), the tokenizer at '<|im_end|>' (id 3)" in message


# ---- rows and positions ----

LONG = [{"prompt": "x" * 60, "solution": "y" * 60, "answer": "y"}] * 8


@pytest.mark.parametrize("length", [REMOVE, None])
def test_rows_beyond_the_positions_are_refused_whatever_the_length_that_is_written(tmp_path: Path, length: Any):
    changes = {
        "model.tiny.max_position_embeddings": 100,
        "data.train": {"path": rows_file(tmp_path, [*numbered(4), *LONG])},
        **({} if length is REMOVE else {"trainer.max_length": length}),
        **NO_EVAL,
    }
    message = told(checked(tmp_path, "sft", changes), DataError)
    assert "8 of 12 rows do not fit the model's 100 positions (rows 4, 5, 6, 7, 8 and 3 more)" in message
    assert "it would go on at positions it never saw" in message and "tokens in row 4" in message


def test_learned_positions_end(tmp_path: Path):
    model = of_kind(tmp_path, "gpt2", n_embd=16, n_layer=1, n_head=2, n_positions=64)
    changes = {"model": model, "data.train": {"path": rows_file(tmp_path, LONG)}, **NO_EVAL}
    assert "and the model cannot read further" in told(checked(tmp_path, "sft", changes), DataError)


def test_completions_of_an_evaluation_beyond_the_positions(tmp_path: Path):
    changes = {"model.tiny.max_position_embeddings": 64, "eval.max_new_tokens": 60}
    report = checked(tmp_path, "sft", changes)
    assert "8 of 8 rows with 60 sampled tokens do not fit the model's 64 positions" in told(
        report, DataError, warning=True
    )


def test_further_tasks_and_probes_fit_the_model_too(tmp_path: Path):
    tools = [{"prompt": "3+4=", "answer": "7", "solution": "<tool>7"}]
    changes = {
        "model": with_tools(tmp_path, additional_special_tokens=["<|im_start|>", "<tool>"]),
        "data.eval_tasks": {
            "long": {"path": rows_file(tmp_path, [{"prompt": "x" * 500, "answer": "y"}], "task.jsonl")}
        },
        "data.probes": {"tools": {"path": rows_file(tmp_path, tools, "probe.jsonl")}},
        "eval.probe_every_steps": 1,
        "model.config_overrides": {"max_position_embeddings": 256},
    }
    report = checked(tmp_path, "sft", changes)
    assert "1 of 1 rows use '<tool>' (id 100) (row 0)" in told(report, DataError)
    assert any("do not fit the model's 256 positions (row 0)" in str(warning) for warning in report.warnings)


def test_wrapped_rows_beyond_the_positions(tmp_path: Path):
    changes = {"trainer.packing": True, "trainer.packing_strategy": "wrapped", **NO_EVAL}
    report = checked(tmp_path, "masked_thought", changes)  # the class's own length is 1024
    assert "wrapped rows of 1024 tokens do not fit the model's 512 positions" in told(report)
    assert "its tokens see those before them" in told(report, warning=True)


# ---- batches ----


def test_packing_is_refused_where_sequences_mix(tmp_path: Path):
    model = of_kind(tmp_path, "mamba", hidden_size=16, num_hidden_layers=1, state_size=4)
    report = checked(tmp_path, "masked_thought", {"model": model, "trainer.packing": True})
    message = told(report, SupportError)
    assert "trainer.packing: a packed row is scored differently from its sequences alone" in message
    assert checked(tmp_path, "masked_thought", {"model": model}).ok


# ---- configuration and weights ----


def test_weights_of_another_shape_or_missing_ones_are_found_before_they_are_loaded(tmp_path: Path):
    place = folder(tmp_path)
    weights = load_file(place / "model.safetensors")
    edit(place, "config.json", intermediate_size=32)
    message = told(checked(tmp_path, "sft", {"model": {"path": str(place)}}))
    assert "3 tensors of the weight files have other shapes than config.json gives" in message
    edit(place, "config.json", intermediate_size=16)
    del weights["lm_head.weight"]
    save_file(weights, place / "model.safetensors", {"format": "pt"})
    message = told(checked(tmp_path, "sft", {"model": {"path": str(place)}}))
    assert "the weight files lack 1 of the model's 12 weights (lm_head.weight)" in message
    edit(place, "config.json", tie_word_embeddings=True)
    assert checked(tmp_path, "sft", {"model": {"path": str(place)}}).ok


def test_dtype_auto_is_what_it_loads(tmp_path: Path):
    place = folder(tmp_path)
    AutoModelForCausalLM.from_pretrained(place, dtype=torch.bfloat16).save_pretrained(place)
    changes = {"model": {"path": str(place), "dtype": "auto"}, "trainer.learning_rate": 1e-5}
    message = told(checked(tmp_path, "sft", changes), ConfigError, warning=True)
    assert "all weights are trained in bfloat16 at learning rate 1e-05" in message


def test_rows_that_can_leave_the_first_range_of_longrope_are_refused(tmp_path: Path):
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16}
    ranges = {"original_max_position_embeddings": 64, "max_position_embeddings": 512}
    model = of_kind(tmp_path, "phi3", num_hidden_layers=1, rope_parameters=rope, **sizes, **ranges)
    message = told(checked(tmp_path, "sft", {"model": model, "trainer.max_length": 100, **NO_EVAL}), SupportError)
    assert "a padded row is scored differently" in message and "Keep rows within 64 tokens" in message
    assert checked(tmp_path, "sft", {"model": model, "trainer.max_length": 64, **NO_EVAL}).ok


# ---- files that hold something odd ----


@pytest.mark.parametrize(
    ("file", "values", "text"),
    [
        ("config.json", {"num_attention_heads": "2"}, "configuration cannot be read: .*expected int, got str"),
        ("config.json", {"rope_parameters": [1]}, "configuration cannot be read: "),
        ("config.json", {"dtype": "float99"}, "configuration cannot be read: .*float99"),
        (
            "config.json",
            {"rope_parameters": {"rope_type": "other"}},
            "no causal language model of this configuration: KeyError: 'other'",
        ),
        ("tokenizer_config.json", {"eos_token": 5}, "no tokenizer could be loaded: .*eos_token"),
        ("config.json", "{", "config.json is no JSON"),
        ("config.json", "", "config.json is empty"),
        ("config.json", "\ufeff{}", "config.json begins with a byte order mark"),
        ("config.json", '{"a": 1, "b": {"c": 1, "c": 2}}', "config.json gives 'c' two values"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 1, "a": 2}}}', "tokenizer.json gives 'a' two values"),
        ("config.json", {"num_attention_heads": 0}, "config.json: num_attention_heads cannot be this .got 0"),
        ("config.json", {"num_hidden_layers": 10**9}, "config.json: num_hidden_layers cannot be this"),
        ("config.json", {"vocab_size": 10**20}, "config.json: vocab_size cannot be this"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json holds no mapping"),
        ("tokenizer.json", "{", "tokenizer.json is no JSON"),
    ],
    ids=str,
)
def test_a_file_of_the_model_that_upstream_cannot_read_is_one_line(file: str, values: Any, text: str, tmp_path: Path):
    place = folder(tmp_path)
    if isinstance(values, str):
        (place / file).write_text(values)
    else:
        edit(place, file, **values)
    message = told(checked(tmp_path, "sft", {"model": {"path": str(place)}}))
    assert re.search(text, message) and "\n" not in message


def test_quantised_weights_are_told_and_train_by_adapters_alone(tmp_path: Path):
    place = folder(tmp_path)
    block = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    edit(place, "config.json", quantization_config=block, intermediate_size=32)  # shapes that say nothing then
    report = checked(tmp_path, "sft", {"model": {"path": str(place)}})
    assert "transformers refuses to train them" in told(report, SupportError)
    report = checked(tmp_path, "sft", {"model": {"path": str(place), "lora": {"rank": 2}}})
    assert report.ok and any("quantised (bitsandbytes)" in str(warning) for warning in report.warnings)
    edit(place, "config.json", quantization_config={"quant_method": "other"})
    assert "quantization_config cannot be read" in told(checked(tmp_path, "sft", {"model": {"path": str(place)}}))
