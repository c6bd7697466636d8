"""Loading: dtype, overrides and adapters take effect; code, pickles and misspelt targets are refused by name."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from posttrain.errors import ConfigError, DataError, SupportError
from posttrain.models.loading import (
    load_model,
    load_tokenizer,
    peft_config,
    require_chat_template,
    resolve_model_path,
)

TINY = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 16}


@pytest.fixture
def copy(tiny_dir, tmp_path):
    """A copy of the tiny model that a test may damage."""
    return shutil.copytree(tiny_dir, tmp_path / "copy")


def edit(folder, file, **changes):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_path_is_loaded_as_it_is_in_float32_on_a_cpu(tiny_dir):
    block = {"path": str(tiny_dir)}
    model = load_model(block, path=resolve_model_path(block, "unused"))
    stored = load_file(tiny_dir / "model.safetensors")
    assert model.dtype == torch.float32
    assert {name: weight.dtype for name, weight in stored.items()} == {
        name: weight.dtype for name, weight in model.state_dict().items()
    }
    assert all(torch.equal(stored[name], weight) for name, weight in model.state_dict().items())


def test_dtype_attention_and_overrides_take_effect(tiny_dir):
    block = {
        "path": str(tiny_dir),
        "dtype": "bfloat16",
        "attn_implementation": "eager",
        "config_overrides": {"rope_theta": 40000.0, "max_position_embeddings": 2048},
    }
    model = load_model(block, path=tiny_dir)
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert model.config.max_position_embeddings == 2048
    assert model.config.rope_parameters["rope_theta"] == 40000.0
    plain = load_model({"path": str(tiny_dir)}, path=tiny_dir)
    # The rotary base is not only written down: the rotation itself is the one of base 40000.
    wide = 40000.0 ** -(torch.arange(0, 16, 2) / 16)
    assert torch.allclose(model.model.rotary_emb.inv_freq.float(), wide, rtol=1e-5)
    assert not torch.allclose(plain.model.rotary_emb.inv_freq, wide, rtol=1e-2)


def test_a_tiny_model_is_made_once_and_again_when_its_settings_change(tmp_path):
    first = resolve_model_path({"tiny": {**TINY, "seed": 1}}, tmp_path)
    weights = (tmp_path / "tiny" / "model.safetensors").read_bytes()
    stamp = (tmp_path / "tiny" / "model.safetensors").stat().st_mtime_ns
    assert resolve_model_path({"tiny": {**TINY, "seed": 1}}, tmp_path) == first
    assert (tmp_path / "tiny" / "model.safetensors").stat().st_mtime_ns == stamp
    assert resolve_model_path({"tiny": {**TINY, "seed": 2}}, tmp_path) == first
    assert (tmp_path / "tiny" / "model.safetensors").read_bytes() != weights


def test_the_tokenizer_of_a_model_not_yet_made_is_that_of_the_made_one(tmp_path):
    block = {"tiny": {**TINY, "max_position_embeddings": 99}}
    before = load_tokenizer(block)
    after = load_tokenizer(block, path=resolve_model_path(block, tmp_path))
    assert before.get_vocab() == after.get_vocab()
    assert before.chat_template == after.chat_template
    assert before.model_max_length == after.model_max_length == 99
    assert before.padding_side == after.padding_side == "left"


@pytest.mark.parametrize(
    ("file", "changes", "key"),
    [
        ("config.json", {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}}, "auto_map"),
        ("config.json", {"_attn_implementation_internal": "someone/kernel"}, "_attn_implementation_internal"),
        ("config.json", {"attn_implementation": "someone/kernel"}, "attn_implementation"),
        ("config.json", {"text_config": {"auto_map": {"AutoConfig": "a.B"}}}, "auto_map"),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["a.B", None]}}, "auto_map"),
    ],
)
def test_configs_that_name_code_are_refused_with_file_and_key(copy, file, changes, key):
    edit(copy, file, **changes)
    for load in (lambda block: load_model(block, path=copy), load_tokenizer):
        with pytest.raises(SupportError) as error:
            load({"path": str(copy)})
        assert f"{file} names code to run, under the key {key!r}" in str(error.value)
        assert "model.trust_remote_code: true" in str(error.value)


def test_an_attention_kernel_from_the_hub_is_refused(tiny_dir):
    with pytest.raises(SupportError, match="a kernel from the Hub is code"):
        load_model({"path": str(tiny_dir), "attn_implementation": "someone/kernel"}, path=tiny_dir)


def test_pickled_weights_are_refused(copy):
    model = AutoModelForCausalLM.from_pretrained(copy)
    (copy / "model.safetensors").unlink()
    torch.save(model.state_dict(), copy / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors files only"):
        load_model({"path": str(copy)}, path=copy)


def test_an_index_that_leads_out_of_the_folder_is_refused(copy, tiny_dir):
    names = list(load_file(copy / "model.safetensors"))
    (copy / "model.safetensors").unlink()
    outside = f"../{tiny_dir.name}/model.safetensors"
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, outside)}))
    with pytest.raises(ConfigError, match="could not be loaded: .* which is no file of the folder"):
        load_model({"path": str(copy)}, path=str(copy))


def test_four_bits_without_cuda_are_refused(tiny_dir):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(SupportError, match="model.load_in_4bit: weights in 4 bits need a CUDA device"):
        load_model({"path": str(tiny_dir), "load_in_4bit": True}, path=tiny_dir)


@pytest.mark.parametrize("block", [{}, {"path": "a", "package": "smollm2-135m-instruct"}])
def test_none_or_two_places_are_refused(block, tmp_path):
    with pytest.raises(ConfigError, match="exactly one of: path, tiny, package"):
        resolve_model_path(block, tmp_path)


def test_a_missing_model_is_one_line(tmp_path):
    for load in (lambda block: load_model(block, path=block["path"]), load_tokenizer):
        with pytest.raises(ConfigError) as error:
            load({"path": str(tmp_path / "nothing")})
        assert "\n" not in str(error.value)


def test_an_override_the_model_does_not_have_is_refused(tiny_dir):
    with pytest.raises(ConfigError, match="no such key"):
        load_model({"path": str(tiny_dir), "config_overrides": {"rope_thetta": 1.0}}, path=tiny_dir)


def test_lora_settings_reach_peft_and_train_only_the_named_layers(tiny_dir):
    lora = {"rank": 3, "alpha": 6, "dropout": 0.0, "targets": ["q_proj", "v_proj"]}
    block = {"path": str(tiny_dir), "lora": lora}
    model = get_peft_model(load_model(block, path=tiny_dir), peft_config(block))
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert len(trained) == 2 * 2 * 2  # layers, targets, A and B
    assert all(".q_proj." in name or ".v_proj." in name for name in trained)
    scalings = [module.scaling["default"] for module in model.modules() if hasattr(module, "lora_A")]
    assert scalings == [2.0] * 4
    assert peft_config({"path": str(tiny_dir)}) is None


def test_misspelt_lora_targets_are_refused_with_the_layers_there_are(tiny_dir):
    block = {"path": str(tiny_dir), "lora": {"targets": ["q_proj", "query"]}}
    with pytest.raises(ConfigError) as error:
        load_model(block, path=tiny_dir)
    assert "got 'query'" in str(error.value)
    assert "q_proj, up_proj, v_proj" in str(error.value)


def test_an_adapter_folder_is_loaded_as_its_merged_model(tiny_dir, tmp_path):
    block = {"path": str(tiny_dir), "lora": {"rank": 2, "targets": "all-linear"}}
    adapted = get_peft_model(load_model(block, path=tiny_dir), peft_config(block))
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    ids = torch.arange(4, 24)[None]
    loaded = load_model(block, path=tmp_path / "adapter")
    assert not isinstance(loaded, PeftModel)
    base = load_model({"path": str(tiny_dir)}, path=tiny_dir)
    # Merged and separate products round differently, and the normalisation of small activations magnifies it.
    assert torch.allclose(loaded(ids).logits, adapted(ids).logits, atol=2e-4)
    assert (loaded(ids).logits - base(ids).logits).abs().max() > 1e-2


@pytest.mark.parametrize("limit", ["many", True, 0, -1, [512]])
def test_a_limit_of_the_tokenizer_that_is_no_number_is_named(copy, limit):
    edit(copy, "tokenizer_config.json", model_max_length=limit)
    with pytest.raises(ConfigError, match=r"model_max_length of the tokenizer is no number of tokens \(got"):
        load_tokenizer({"path": str(copy)})


def test_a_tokenizer_without_end_token_or_template_is_refused(copy):
    edit(copy, "tokenizer_config.json", eos_token=None)
    with pytest.raises(DataError, match="no end token"):
        load_tokenizer({"path": str(copy)})
    edit(copy, "tokenizer_config.json", eos_token="<|im_end|>")
    (copy / "chat_template.jinja").unlink()
    tokenizer = load_tokenizer({"path": str(copy)})
    with pytest.raises(DataError, match="no chat template, but the prompts are chat messages.*format: text"):
        require_chat_template(tokenizer, name="m")
