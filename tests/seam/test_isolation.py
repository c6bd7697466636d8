"""A row in a batch is scored as the row alone, or the architecture is refused with the figure."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.errors import DataError, SupportError
from posttrain.models.copies import small_copy
from posttrain.models.tiny import character_tokenizer
from posttrain.seam.isolation import isolation_findings, measure, refuse_padded_prompts, without_dropout
from posttrain.seam.policy.trainer import PolicyConfig, PolicyTrainer
from posttrain.seam.supervised.trainer import SupervisedConfig, SupervisedTrainer

FORMS = ("alone", "causal", "left", "right", "packed", "generated")
# Forms in which rows are mixed up; all others are exact (transformers 5.17, trl 1.16, on a CPU).
MIXED = {
    "llama": set(),
    "gemma2": set(),  # sliding windows, capped logits
    "gpt2": set(),  # learned positions, dropout
    "mixtral": set(),
    "opt": {"packed"},  # its attention does not part sequences by positions
    "bloom": {"packed"},  # positions are distances in the row
    "mamba": {"packed"},
    "qwen3_5_text": {"packed"},  # linear attention
    "rwkv": {"left", "packed", "generated"},  # reads no mask
}


@pytest.mark.parametrize("kind", MIXED)
def test_what_mixes_rows_up_is_measured(kind: str):
    found = measure(small_copy(AutoConfig.for_model(kind)).model, FORMS)
    # A form that the model itself refuses (transformers 5.24: linear attention without its kernels) mixes nothing up.
    refused = {form: difference.reason for form, difference in found.items() if difference.reason}
    assert all(form in MIXED[kind] and "packed sequences" in reason for form, reason in refused.items())
    assert {form for form, difference in found.items() if not difference.is_fine} == MIXED[kind]
    for form, difference in found.items():
        if form not in refused:
            assert difference.logp < 1e-5 if form not in MIXED[kind] else difference.logp > 1e-2


def test_a_model_that_sees_what_comes_after_is_refused():
    ((stops, error),) = isolation_findings(AutoConfig.for_model("xlnet"), ("causal",))
    assert stops and "depends on the tokens after it" in str(error) and "nats" in str(error)


def test_a_head_that_misses_what_happens_to_the_logits_is_refused():
    ((stops, error),) = isolation_findings(AutoConfig.for_model("recurrent_gemma"), ("alone",))
    assert stops and "the trainers' head scores rows differently from the model's own" in str(error)


def test_an_evaluation_whose_padded_prompts_mix_is_refused():
    model = small_copy(AutoConfig.for_model("rwkv")).model
    with pytest.raises(SupportError, match=r"completed differently.* \(got 16\). Set it to 4"):
        refuse_padded_prompts(model, SimpleNamespace(num_generations=4, batch_size=16))
    refuse_padded_prompts(model, SimpleNamespace(num_generations=4, batch_size=7))  # one prompt at a time
    refuse_padded_prompts(
        small_copy(AutoConfig.for_model("llama")).model, SimpleNamespace(num_generations=1, batch_size=16)
    )


def test_a_copy_keeps_each_kind_of_layer_and_the_random_state():
    kinds = ["linear_attention", "linear_attention", "linear_attention", "full_attention"] * 6
    state = torch.get_rng_state()
    copy = small_copy(AutoConfig.for_model("qwen3_5_text", num_hidden_layers=24, layer_types=kinds))
    assert copy.model.config.layer_types == ["linear_attention", "full_attention"] and not copy.is_whole
    assert sum(weight.numel() for weight in copy.model.parameters()) < 200_000
    assert torch.equal(state, torch.get_rng_state())


def tiny(kind: str, **sizes: int):
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=100, **sizes), dtype=torch.float32)


def test_a_policy_is_scored_without_dropout():
    model = tiny("gpt2", n_embd=32, n_layer=2, n_head=2, n_positions=64)
    args = PolicyConfig("unused", per_device_train_batch_size=2, num_generations=2, use_cpu=True, report_to="none")
    rows = Dataset.from_list([{"prompt": "x"}] * 4)
    trainer = PolicyTrainer(
        model, lambda prompts, **_: [0.0] * len(prompts), args, rows, processing_class=character_tokenizer()
    )
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        eval_mode_no_grad, in_training = (trainer.model.train(mode)(ids).logits for mode in (False, True))
    assert torch.equal(eval_mode_no_grad, in_training)


def test_dropout_of_adapters_stays():
    model = torch.nn.ModuleDict({"lora_dropout": torch.nn.Dropout(0.1), "inner": torch.nn.Dropout(0.2)})
    without_dropout(model)
    assert (model["lora_dropout"].p, model["inner"].p) == (0.1, 0.0)


def trained(model, **settings):
    args = SupervisedConfig("unused", max_length=64, use_cpu=True, report_to="none", **settings)
    rows = Dataset.from_list([{"prompt": "x", "solution": "y"}] * 4)
    return SupervisedTrainer(model, args, rows, processing_class=character_tokenizer())


def test_a_trainer_refuses_packing_where_sequences_mix():
    with pytest.raises(SupportError, match=r"trainer.packing: a packed row .* nats, the gradient by .*mamba"):
        trained(tiny("mamba", hidden_size=32, num_hidden_layers=1, state_size=8), packing=True)


def test_a_trainer_refuses_tokens_that_the_model_does_not_have():
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("llama", vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(DataError, match=r"train row 0: a row has a token beyond the model's 60 rows .*got 'id 9"):
        trained(model)


@pytest.mark.parametrize("packing", [False, True])
def test_a_trainer_refuses_rows_beyond_the_positions_of_the_model(packing):
    model = tiny("llama", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=2)
    with pytest.raises(
        DataError, match=r"train row 0: a row is longer than the model's 2 positions .*got '\d+ tokens"
    ):
        trained(model, packing=packing)


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("x" * 23, r"do not fit the model's 30 positions \(got '2\d \+ 8 tokens'"),
        ("<call>", r"prompt of a rollout: a row has a token beyond the model's 100 rows of embeddings \(got 'id 100'"),
    ],
)
def test_a_policy_refuses_prompts_that_the_model_cannot_read(prompt, told):
    model = tiny("llama", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=30)
    sizes = {"per_device_train_batch_size": 2, "num_generations": 2, "max_completion_length": 8}
    args = PolicyConfig("unused", **sizes, use_cpu=True, report_to="none", max_steps=1)
    tokenizer = character_tokenizer()
    tokenizer.add_tokens(["<call>"])
    rows = Dataset.from_list([{"prompt": prompt}] * 4)
    trainer = PolicyTrainer(model, lambda prompts, **_: [0.0] * len(prompts), args, rows, processing_class=tokenizer)
    with pytest.raises(DataError, match=told):
        trainer.train()
