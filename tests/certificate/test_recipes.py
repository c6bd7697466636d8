"""What of a user's recipe the battery keeps, and the small copy of its model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from posttrain.certificate.recipes import TRAINER, battery_recipe, stages_of, tiny_copy, trained_run
from posttrain.config.loader import parse
from posttrain.errors import ConfigError
from tests.config.recipes import GRPO, SFT, changed


def test_what_shapes_the_loss_stays_and_the_rest_is_the_batterys(tmp_path):
    changes = {
        "trainer.beta": 0.04,
        "trainer.epsilon": 0.1,
        "trainer.warmup_steps": 1,
        "trainer.max_grad_norm": 1.0,
        "method.preset": "dapo",
        "model.lora": {"rank": 4, "merge_on_save": True},
        "rollout.reward_timeout_seconds": 5.0,
        "rollout.temperature": 0.7,
    }
    (tmp_path / "model").mkdir()
    run = trained_run(parse(changed(GRPO, changes)))
    found = battery_recipe(run, model=tmp_path / "model", folder=tmp_path / "run", rows=2, splits=4).values
    assert found["method"] == {"name": "grpo", "preset": "dapo"}
    assert found["model"] == {
        "path": str(tmp_path / "model"),
        "dtype": "float32",
        "lora": {"rank": 4, "merge_on_save": False},
    }
    layout = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 2}
    kept = {"beta": 0.04, "epsilon": 0.1, "output_dir": str(tmp_path / "run")}
    assert found["trainer"] == {**TRAINER, **layout, **kept}
    assert found["rollout"]["temperature"] == 0.7 and found["rollout"]["reward_workers"] == 0
    assert [name.rpartition(":")[2] for name in found["rollout"]["rewards"]] == ["marked_right"]
    assert found["data"] == {key: GRPO["data"][key] for key in ("train", "max_prompt_length")}


def test_each_method_of_a_recipe_is_taken_from_its_last_stage():
    stages = [
        {"name": "one", "method": {"name": "sft"}},
        {"name": "two", "method": {"name": "sft", "loss_aggregation": "seq_mean_token_mean"}, "start_from": "one"},
    ]
    values = {key: value for key, value in SFT.items() if key != "method"}
    config = parse({**values, "stages": [{**stage, "trainer": SFT["trainer"]} for stage in stages], "trainer": {}})
    assert stages_of(config)["sft"].method.loss_aggregation == "seq_mean_token_mean"
    with pytest.raises(ConfigError, match="no stage of the recipe trains this method"):
        trained_run(config, "grpo")


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "gemma3_text", "mamba"])
def test_the_copy_is_of_the_models_own_architecture(kind, tiny_tokenizer, tmp_path):
    source = tmp_path / "source"
    AutoConfig.for_model(kind, vocab_size=len(tiny_tokenizer)).save_pretrained(source)  # and no weights
    tiny_tokenizer.save_pretrained(source)
    assert tiny_copy(SimpleNamespace(model=_Block(path=str(source))), tmp_path / "copy") is None
    copy = AutoModelForCausalLM.from_pretrained(tmp_path / "copy")
    assert copy.config.model_type == kind and sum(p.numel() for p in copy.parameters()) < 100_000
    assert copy.dtype == torch.float32
    assert len(AutoTokenizer.from_pretrained(tmp_path / "copy")) == copy.get_input_embeddings().num_embeddings


def test_an_architecture_that_cannot_be_made_small_is_told(tiny_tokenizer, tmp_path):
    source = tmp_path / "source"
    AutoConfig.for_model("deepseek_v3", vocab_size=len(tiny_tokenizer)).save_pretrained(source)
    tiny_tokenizer.save_pretrained(source)
    told = tiny_copy(SimpleNamespace(model=_Block(path=str(source))), tmp_path / "copy")
    assert told.startswith("a llama stands in, for the architecture could not be made small: ")
    assert AutoConfig.from_pretrained(tmp_path / "copy").model_type == "llama"


class _Block(dict):
    """A model block as recipes have it: keys, read as attributes where they are missing."""

    __getattr__ = dict.get
