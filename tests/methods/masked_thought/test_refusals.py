"""Masked thought: the mask token from start to saved model, and everything that is refused."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.errors import ConfigError, DataError, SupportError
from posttrain.methods.masked_thought.trainer import MaskedThoughtConfig, MaskedThoughtTrainer
from tests.batteries.runs import build, weights
from tests.config.recipes import checked, told

KEY = "masked_thought"
LORA = {"peft_config": LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")}


def size_of(folder) -> tuple[int, bool]:
    """Rows of a saved model's embeddings, and whether its tokenizer has the mask token."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == model.get_input_embeddings().weight.size(0)
    return model.config.vocab_size, "<mask>" in tokenizer.get_vocab()


def test_an_added_token_is_in_checkpoints_and_not_in_the_saved_model(tiny_dir, tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "mask_schedule": "constant"}
    plain, _ = size_of(tiny_dir)
    trainer = build(KEY, tiny_dir, tmp_path, **settings)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    assert size_of(tmp_path / "model") == (plain, False)
    assert size_of(tmp_path / "checkpoint-2") == (plain + 1, True)
    assert trainer.model.config.vocab_size == plain + 1 and "<mask>" in trainer.processing_class.get_vocab()
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).state_dict()
    for name, value in weights(trainer).items():
        assert torch.equal(value[:plain] if "embed" in name or "lm_head" in name else value, saved[name]), name
    again = build(KEY, tiny_dir, tmp_path, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert all(torch.equal(value, weights(trainer)[name]) for name, value in weights(again).items())


def test_the_added_token_can_stay(tiny_dir, tmp_path):
    trainer = build(KEY, tiny_dir, tmp_path, max_steps=1, strip_mask_token_on_save=False)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    assert size_of(tmp_path / "model") == (size_of(tiny_dir)[0] + 1, True)


@pytest.mark.parametrize(
    "settings", [{"noise_type": "random_token"}, {"mask_token": "~"}, {"mask_ratio": 0.0}], ids=str
)
def test_nothing_is_added_where_nothing_is_missing(settings, tiny_dir, tmp_path):
    trainer = build(KEY, tiny_dir, tmp_path, max_steps=1, **settings)
    assert trainer.model.config.vocab_size == size_of(tiny_dir)[0]
    assert "<mask>" not in trainer.processing_class.get_vocab()


@pytest.mark.parametrize("settings", [{"noise_type": "random_token"}, {"mask_token": "~"}], ids=str)
def test_adapters_train_with_tokens_that_exist(settings, tiny_dir, tmp_path):
    trainer = build(KEY, tiny_dir, tmp_path, max_steps=2, mask_schedule="constant", trainer_kwargs=LORA, **settings)
    before = weights(trainer)
    trainer.train()
    changed = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert changed and all("lora" in name for name in changed)


def test_an_adapter_with_a_new_token_is_refused(tiny_dir, tmp_path):
    with pytest.raises(SupportError, match=r"method.mask_token: an adapter leaves the embeddings.*random_token"):
        build(KEY, tiny_dir, tmp_path, trainer_kwargs=LORA)
    report = checked(tmp_path, KEY, {"model.lora": {"rank": 2}})
    assert "a new token would never be trained" in told(report, SupportError)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"mask_ratio": -0.1}, "mask_ratio"),
        ({"mask_warmup_ratio": 1.5}, "mask_warmup_ratio"),
        ({"mask_schedule": "cosine"}, "mask_schedule"),
        ({"random_token_prob": 0.3}, "mixed noise needs a part of each kind"),
        ({"noise_type": "mixed"}, "mixed noise needs a part of each kind"),
        ({"noise_type": "mixed", "random_token_prob": 1.0}, "mixed noise needs a part of each kind"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        MaskedThoughtConfig(output_dir=str(tmp_path), **settings)


def test_blocked_attention_needs_padded_rows(tmp_path):
    for setting in ({"packing": True, "max_length": 64}, {"padding_free": True}):
        with pytest.raises(SupportError, match="no attention mask to hide a position in"):
            MaskedThoughtConfig(output_dir=str(tmp_path), block_attention_to_masked=True, **setting)


@pytest.mark.parametrize(
    ("token", "message"),
    [("two words", "reads it as 9 tokens"), ("<pad>", "it is the pad token"), ("<|im_end|>", "it is the eos token")],
)
def test_a_check_refuses_a_bad_mask_token_with_its_place(token, message, tmp_path):
    report = checked(tmp_path, KEY, {"method.mask_token": token})
    assert message in told(report) and "method.mask_token" in told(report)


def test_a_batch_without_completion_tokens_names_the_template(tiny_dir, tmp_path):
    data = Dataset.from_list([{"input_ids": [5, 6, 7], "labels": [-100, -100, -100]}] * 4)
    trainer = build(KEY, tiny_dir, tmp_path, data=data, max_steps=1, max_length=None)
    with pytest.raises(DataError, match=r"no token of a batch is a completion token.*chat template.*generation"):
        trainer.train()


def test_a_mask_token_that_the_data_has_is_refused(tiny_dir, tmp_path):
    trainer = build(KEY, tiny_dir, tmp_path, max_steps=1, mask_token="A", mask_schedule="constant")
    with pytest.raises(DataError, match="the mask token is part of a demonstration"):
        trainer.train()


def test_streams_are_refused(tiny_dir, tmp_path):
    stream = IterableDataset.from_generator(lambda: iter([{"input_ids": [5, 6], "labels": [5, 6]}]))
    with pytest.raises(SupportError, match="the rows of a stream have no numbers"):
        build(KEY, tiny_dir, tmp_path, data=stream, max_steps=1)


def test_an_encoder_decoder_model_is_refused(tiny_dir, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_dir)
    model.config.is_encoder_decoder = True
    with pytest.raises(SupportError, match="an encoder-decoder model"):
        build(KEY, tiny_dir, tmp_path, model=model, max_steps=1)


def test_the_recipe_block_is_checked_like_any_other(tmp_path):
    assert not checked(tmp_path, KEY, {"method.mask_ratio": 0.2, "method.noise_type": "random_token"}).errors
    with pytest.raises(ConfigError, match="mask_ratio"):
        checked(tmp_path, KEY, {"method.mask_ratio": 1.0})


def test_the_trainer_is_the_registered_one(tiny_dir, tmp_path):
    trainer = build(KEY, tiny_dir, tmp_path, max_steps=1)
    assert type(trainer) is MaskedThoughtTrainer
    trainer.train()
    json.dumps(trainer.state.log_history)
