"""Nothing beside the weights can cost the weights: what was loaded is written back, what fails is told."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.models.saving import SaveError, distinct, refusal, save_model
from tests.batteries.runs import build


def odd_model(tiny_dir, folder, **settings):
    """The tiny model with these settings in its generation_config.json."""
    shutil.copytree(tiny_dir, folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return AutoModelForCausalLM.from_pretrained(folder)


class Stubborn:
    """A tokenizer that cannot be saved."""

    def __init__(self, tokenizer):
        self.real = tokenizer

    def __getattr__(self, name):
        return getattr(self.real, name)

    def save_pretrained(self, folder):
        raise TypeError("Object of type set is not JSON serializable")


CONTRADICTIONS = [
    {"do_sample": False, "temperature": 0.6, "top_p": 0.9},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"length_penalty": 2.0},
    {"output_scores": True},
]


@pytest.mark.parametrize("settings", CONTRADICTIONS, ids=lambda found: next(iter(found)))
def test_a_generation_config_that_upstream_refuses_is_written_as_it_was(settings, tiny_dir, tmp_path):
    model = odd_model(tiny_dir, tmp_path / "odd", **settings)
    model.generation_config.max_new_tokens = 5  # transformers 5.24 writes one that was only read
    assert refusal(model.generation_config) is not None
    save_model(model, tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert {name: written[name] for name in settings} == settings
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with pytest.raises(ValueError, match="invalid"):  # upstream's own check is back
        model.generation_config.save_pretrained(tmp_path / "other")


def test_a_config_that_upstream_refuses_is_written_as_it_was(tiny_dir, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_dir)
    model.config.no_repeat_ngram_size = 3
    assert "Generation parameters found" in refusal(model.config)
    save_model(model, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["no_repeat_ngram_size"] == 3
    assert (tmp_path / "saved" / "model.safetensors").exists()


@pytest.mark.parametrize("key", ["sft", "grpo"])
def test_checkpoints_and_the_end_of_a_run_are_written(key, tiny_dir, tmp_path):
    model = odd_model(tiny_dir, tmp_path / "odd", do_sample=False, temperature=0.6)
    extra = {"beta": 0.1} if key == "grpo" else {}  # the reference is saved before the first step
    trainer = build(key, tiny_dir, tmp_path / "run", model=model, max_steps=1, save_strategy="steps", **extra)
    trainer.args.save_steps = 1
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    for folder in (tmp_path / "run" / "checkpoint-1", tmp_path / "saved"):
        assert json.loads((folder / "generation_config.json").read_text())["temperature"] == 0.6
        assert (folder / "model.safetensors").exists() and (folder / "tokenizer_config.json").exists()


def test_a_tokenizer_that_cannot_be_saved_costs_nothing_else(tiny_dir, tmp_path, caplog):
    trainer = build("sft", tiny_dir, tmp_path / "run", max_steps=1, save_strategy="steps", save_steps=1)
    trainer.processing_class = Stubborn(trainer.processing_class)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert "the checkpoint lacks the tokenizer (TypeError: Object of type set" in caplog.text
    assert (tmp_path / "run" / "checkpoint-1" / "posttrain_complete.json").exists()
    with pytest.raises(SaveError, match=r"the weights are saved, but not the tokenizer \(TypeError"):
        trainer.save_model(str(tmp_path / "saved"))
    weights = load_file(tmp_path / "saved" / "model.safetensors")
    assert weights.keys() == distinct(trainer.model.state_dict()).keys()
    assert (tmp_path / "saved" / "config.json").exists() and (tmp_path / "saved" / "generation_config.json").exists()


def test_weights_are_saved_where_the_model_itself_cannot_be(tiny_dir, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_dir)
    model.config.odd = {1, 2}
    with pytest.raises(SaveError, match=r"not config.json \(TypeError"):
        save_model(model, tmp_path / "saved", tokenizer=AutoTokenizer.from_pretrained(tiny_dir))
    weights = load_file(tmp_path / "saved" / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in distinct(model.state_dict()).items())
    assert (tmp_path / "saved" / "tokenizer.json").exists()


def test_an_adapter_whose_settings_cannot_be_saved_is_saved(tiny_dir, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(tiny_dir)
    model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.peft_config["default"].revision = object()
    with pytest.raises(SaveError, match=r"not adapter_config.json \(TypeError"):
        save_model(model, tmp_path / "saved")
    assert load_file(tmp_path / "saved" / "adapter_model.safetensors")


def test_tied_weights_are_written_once():
    weight = torch.ones(3, 2)
    kept = distinct({"embedding": weight, "head": weight, "other": weight.clone()})
    assert list(kept) == ["embedding", "other"]


def test_no_room_is_still_told_as_such(tiny_dir, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((OSError, SaveError)):
        save_model(AutoModelForCausalLM.from_pretrained(tiny_dir), tmp_path / "file" / "model")
