"""Mask tokens: found, added, refused, and left out of what is saved."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.errors import ConfigError
from posttrain.methods.masked_thought.mask_token import MaskToken, add_mask_token, find_mask_token, with_rows


@pytest.fixture
def pair(tiny_dir):
    return (
        AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32),
        AutoTokenizer.from_pretrained(tiny_dir),
    )


def test_a_token_of_the_tokenizer_is_found_and_a_new_one_is_planned(pair):
    _, tokenizer = pair
    assert find_mask_token(tokenizer, "~") == MaskToken("~", tokenizer.convert_tokens_to_ids("~"))
    # A text that the vocabulary spells in another way.
    assert find_mask_token(tokenizer, " ").id == tokenizer(" ", add_special_tokens=False)["input_ids"][0]
    assert find_mask_token(tokenizer, "<mask>") == MaskToken("<mask>", None)
    assert find_mask_token(tokenizer, "[GAP]") == MaskToken("[GAP]", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mask", "the tokenizer reads it as 4 tokens (got 'mask'"),
        ("<a b>", "the tokenizer reads it as 5 tokens"),
        ("", "the tokenizer reads it as 0 tokens"),
        ("<pad>", "it is the pad token"),
        ("<|im_end|>", "it is the eos token"),
        ("<bos>", "it is the bos token"),
    ],
)
def test_what_cannot_be_a_mask_is_refused(pair, text, message):
    with pytest.raises(ConfigError) as error:
        find_mask_token(pair[1], text)
    assert message in str(error.value) and "method.mask_token" in str(error.value)


def test_the_unknown_token_is_refused(pair):
    tokenizer = pair[1]
    tokenizer.unk_token = "?"
    with pytest.raises(ConfigError, match="unknown token"):
        find_mask_token(tokenizer, "?")


def test_a_new_token_gets_the_mean_row_and_the_others_keep_theirs(pair):
    model, tokenizer = pair
    before = [model.get_input_embeddings().weight.detach().clone(), model.get_output_embeddings().weight.detach()]
    before[1] = before[1].clone()
    state, known = torch.get_rng_state(), len(tokenizer)
    new = add_mask_token(model, tokenizer, "<mask>", init="mean", seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert new == known and tokenizer("a<mask>b", add_special_tokens=False)["input_ids"][1] == new
    assert model.config.vocab_size == known + 1
    for old, module in zip(before, (model.get_input_embeddings(), model.get_output_embeddings()), strict=True):
        assert torch.equal(module.weight[:known], old)
        torch.testing.assert_close(module.weight[new], old.mean(dim=0))


def test_the_default_initialisation_follows_its_seed(tiny_dir):
    rows = []
    for seed in (3, 3, 4):
        model = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
        new = add_mask_token(model, tokenizer, "<mask>", init="default", seed=seed)
        rows.append(model.get_input_embeddings().weight[new].detach().clone())
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


def test_a_model_is_saved_with_fewer_rows_and_goes_on_as_it_was(pair, tmp_path):
    model, tokenizer = pair
    plain = model.config.vocab_size
    original = {name: value.clone() for name, value in model.state_dict().items()}
    add_mask_token(model, tokenizer, "<mask>", init="mean", seed=0)
    grown = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = [id(parameter) for parameter in model.parameters()]
    with pytest.raises(RuntimeError, match="stop"), with_rows(model, plain):
        model.save_pretrained(tmp_path)
        raise RuntimeError("stop")
    assert [id(parameter) for parameter in model.parameters()] == parameters
    assert all(torch.equal(value, grown[name]) for name, value in model.state_dict().items())
    assert model.config.vocab_size == plain + 1
    saved = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert saved.config.vocab_size == plain
    assert all(torch.equal(value, original[name]) for name, value in saved.state_dict().items())
