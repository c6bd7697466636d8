"""The tiny model: same bytes for the same arguments, exact text round trips, a template that SFT and RL can share."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.errors import ConfigError
from posttrain.models.tiny import ARCHITECTURES, CHARACTERS, build_tiny

SMALL = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " 47+38=?"},
    {"role": "assistant", "content": "Answer: 85 "},
]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request, tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp(request.param), architecture=request.param, **SMALL)


def test_same_arguments_give_the_same_bytes(tmp_path):
    first, second = (build_tiny(tmp_path / name, seed=3, **SMALL) for name in "ab")
    names = sorted(file.name for file in first.iterdir())
    assert names == sorted(file.name for file in second.iterdir())
    assert "model.safetensors" in names
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_another_seed_gives_other_weights_and_the_global_generator_is_left_alone(tmp_path):
    state = torch.get_rng_state()
    weights = [(build_tiny(tmp_path / str(s), seed=s, **SMALL) / "model.safetensors").read_bytes() for s in (0, 1)]
    assert weights[0] != weights[1]
    assert torch.equal(state, torch.get_rng_state())


def test_every_character_is_one_token_and_reads_back(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(CHARACTERS, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(CHARACTERS) == 96
    assert len(set(ids)) == 96
    text = "  don't  stop .\n\n a , b\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_other_characters_read_as_question_marks(tmp_path, architecture):
    tokenizer = AutoTokenizer.from_pretrained(build_tiny(tmp_path, architecture=architecture, **SMALL))
    assert tokenizer.decode(tokenizer("4²\té")["input_ids"]) == "4???"


def test_model_and_tokenizer_agree_on_size_and_special_tokens(folder):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == model.config.vocab_size == 100
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == ("<pad>", "<bos>", "<|im_end|>")
    for config in (model.config, model.generation_config):
        assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 3)


def test_template_keeps_every_prefix_and_marks_the_assistant_up_to_its_stop_token(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    whole = tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    prompt = tokenizer.apply_chat_template(CHAT[:2], add_generation_prompt=True, tokenize=True, return_dict=True)
    ids, start = whole["input_ids"], len(prompt["input_ids"])
    assert ids[:start] == prompt["input_ids"]
    assert whole["assistant_masks"] == [0] * start + [1] * (len(ids) - start)
    assert tokenizer.decode(ids[start:]) == "Answer: 85 <|im_end|>"
    # What is trained on equals the text followed by the stop token: demonstrations and samples end alike.
    assert ids[start:] == [*tokenizer("Answer: 85 ")["input_ids"], tokenizer.eos_token_id]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 30}, "model.tiny.hidden_size: must be a multiple of 2 * num_heads (got 30). Use 32"),
        ({"architecture": "gpt"}, "model.tiny.architecture: unknown architecture (got 'gpt'; allowed: one of: llama"),
        ({"num_layers": 0}, "model.tiny.num_layers: must be at least 1 (got 0)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tmp_path, arguments, message):
    with pytest.raises(ConfigError) as error:
        build_tiny(tmp_path, **arguments)
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())
