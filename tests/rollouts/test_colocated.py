"""Training against a real vLLM engine in the same process, on the CPU."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel

from posttrain.registry import METHODS
from posttrain.rollouts.server import EngineError
from tests.batteries.runs import build, fresh_model, weights
from tests.rollouts.conftest import ENGINE

pytestmark = pytest.mark.vllm
COLOCATED = {**ENGINE, "vllm_mode": "colocate", "max_completion_length": 12, "logging_steps": 1}
POLICY_METHODS = [key for key, entry in METHODS.items() if entry.generates and "vllm" in entry.supports]
DIFFERENCE = "sampling/sampling_logp_difference/max"


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def engine_model(trainer):
    """vLLM's own module."""
    return trainer.vllm_generation.llm.llm_engine.model_executor.driver_worker.worker.model_runner.model


@pytest.fixture(scope="module")
def trainer(tied_dir, tmp_path_factory):
    """A GRPO trainer with an engine, before any synchronisation; the model's head is its embedding."""
    made = build("grpo", tied_dir, tmp_path_factory.mktemp("run"), max_steps=2, **COLOCATED)
    yield made
    made.close()


@pytest.mark.parametrize("key", POLICY_METHODS)
def test_every_policy_method_trains_from_the_engines_rollouts(key, engine_dir, tmp_path):
    made = build(key, engine_dir, tmp_path, max_steps=3, **COLOCATED)
    before = weights(made)
    try:
        made.train()
        differences = logged(made, DIFFERENCE)
        assert made.state.global_step == 3
        # Once for each generation; sasr's first two steps are supervised.
        assert made.engine.syncs == len(differences) == len(logged(made, "rollout/sync_seconds")) >= 1
        assert max(differences) <= 1e-4
        assert any(not torch.equal(before[name], value) for name, value in weights(made).items())
    finally:
        made.close()


def test_a_tensor_that_does_not_arrive_is_named(trainer):
    """Each tensor in turn is held back on its way into the engine, as a wrong name in a loader would."""
    names = [name for name, _ in trainer.vllm_generation._iter_named_params()]
    assert "model.embed_tokens.weight" in names and len(names) > 10
    model, missed = engine_model(trainer), []
    load = model.load_weights
    try:
        for held_back in names:
            with torch.no_grad():
                for value in trainer.model.parameters():
                    value.add_(0.01)
            model.load_weights = lambda pairs, held_back=held_back: load([p for p in pairs if p[0] != held_back])
            with pytest.raises(EngineError) as stopped:
                trainer.engine.sync()
            if held_back not in str(stopped.value):
                missed.append(held_back)
            assert "Nothing was generated with them" in str(stopped.value)
    finally:
        model.load_weights = load
    assert missed == []
    trainer.engine.sync()


def test_a_tied_head_that_keeps_the_old_weights_is_named(trainer):
    """What vLLM's layerwise reload does with oneDNN on: the embedding is new, the head a copy of the old one."""
    model = engine_model(trainer)
    tied = model.lm_head.weight
    assert tied is model.model.embed_tokens.weight, "this model's head is tied"
    model.lm_head.weight = torch.nn.Parameter(tied.detach().clone(), requires_grad=False)
    try:
        with torch.no_grad():
            trainer.model.get_input_embeddings().weight.add_(0.01)
        with pytest.raises(EngineError, match=r"model.embed_tokens.weight \(in lm_head.weight\)"):
            trainer.engine.sync()
    finally:
        model.lm_head.weight = tied
    trainer.engine.sync()


def test_weights_that_changed_outside_the_loop_are_sent_before_the_next_generation(trainer):
    prompt = trainer.processing_class("2+2=?")["input_ids"]

    def generate():
        return trainer.vllm_generation.generate(prompts=[prompt] * 4, images=None, num_generations=4)

    generate()
    syncs = trainer.engine.syncs
    generate()
    assert trainer.engine.syncs == syncs, "nothing changed, nothing is sent"
    # Written past autograd's version counters, as a loaded checkpoint is.
    trainer.model.lm_head.weight.data[3, 5] += 1.0
    _, ids, logps, _ = generate()
    assert trainer.engine.syncs == syncs + 1
    for row, of_engine in zip(ids, logps, strict=True):
        whole = torch.tensor([prompt + list(row)])
        with torch.no_grad():
            scores = trainer.model(whole).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        own = scores.gather(1, torch.tensor(list(row)).unsqueeze(1)).squeeze(1)
        assert torch.allclose(own, torch.tensor([entry[0] for entry in of_engine]), atol=1e-4)


def test_adapters_leave_the_base_as_it_was_over_three_hundred_synchronisations(engine_dir, tmp_path):
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights="gaussian")
    model = fresh_model(engine_dir).to(torch.bfloat16)
    made = build("grpo", engine_dir, tmp_path, model=model, trainer_kwargs={"peft_config": lora}, **COLOCATED)
    try:
        assert isinstance(made.model, PeftModel)
        for name, value in made.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(value, std=0.3)
        before = weights(made)
        plain = fresh_model(engine_dir).to(torch.bfloat16).state_dict()["model.layers.0.self_attn.q_proj.weight"]
        for _ in range(300):
            made.engine.sync()
        assert all(torch.equal(before[name], value) for name, value in weights(made).items())
        joined = dict(engine_model(made).named_parameters())["model.layers.0.self_attn.qkv_proj.weight"]
        assert not torch.equal(joined[:64], plain), "the engine has the adapter merged in"
    finally:
        made.close()


def test_a_resumed_run_ends_at_the_same_weights(engine_dir, tmp_path):
    """Sampling on a CPU draws from the process's generator, which a checkpoint holds."""
    settings = {**COLOCATED, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = build("grpo", engine_dir, tmp_path / "whole", **settings)
    whole.train()
    whole.close()
    resumed = build("grpo", engine_dir, tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    resumed.close()
    assert max(logged(resumed, DIFFERENCE)) <= 1e-4
    assert all(torch.equal(weights(whole)[name], value) for name, value in weights(resumed).items())


def test_how_far_an_engine_of_another_precision_is_off_is_logged(engine_dir, tmp_path):
    """bfloat16 rollouts of a float32 trainer: the mean difference is logged, and is not that of equal weights."""
    model = fresh_model(engine_dir).to(torch.bfloat16)
    made = build("grpo", engine_dir, tmp_path, model=model, max_steps=1, **COLOCATED)
    try:
        made.model.float()
        made.train()
        assert 1e-4 < logged(made, "sampling/sampling_logp_difference/mean")[0] < 0.1
    finally:
        made.close()
