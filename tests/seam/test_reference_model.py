"""The model that training starts from, read while another one is trained."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from posttrain.errors import ConfigError, ResumeError
from posttrain.seam.frozen import next_token_logps
from posttrain.seam.reference_model import ReferenceModel, frozen_copy
from tests.batteries.runs import build, fresh_model

LORA = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def batch_of(trainer):
    return trainer.data_collator([dict(trainer.train_dataset[i]) for i in range(4)])


def literal(tiny_dir, batch):
    with torch.no_grad():
        return next_token_logps(fresh_model(tiny_dir).eval(), batch).sum(dim=1)


@pytest.mark.parametrize("kind", ["copy", "adapter_off"])
def test_it_says_after_training_what_it_said_before(kind, tiny_dir, tmp_path):
    extra = {"peft_config": LORA} if kind == "adapter_off" else {}
    trainer = build("sft", tiny_dir, tmp_path, max_steps=2, learning_rate=0.05, trainer_kwargs=extra)
    frozen = frozen_copy(str(tiny_dir), trainer.args) if kind == "copy" else None
    reference = ReferenceModel(trainer, kind, frozen=frozen)
    batch = batch_of(trainer)
    wanted, rows = literal(tiny_dir, batch), torch.tensor([0, 2, 3])
    assert torch.allclose(reference.sums(batch, rows), wanted[rows], atol=1e-4)
    trainer.train()
    assert torch.allclose(reference.sums(batch, rows), wanted[rows], atol=1e-4)
    with torch.no_grad():
        now = next_token_logps(trainer.model, batch).sum(dim=1)
    assert (now - wanted).abs().max() > 0.01, "the trained model is another one by now"
    assert all(p.requires_grad for name, p in trainer.model.named_parameters() if kind == "copy" or "lora_" in name)


def test_what_is_measured_before_the_first_step_is_the_model_itself(tiny_dir, tmp_path):
    trainer = build("sft", tiny_dir, tmp_path, max_steps=1)
    batch = batch_of(trainer)
    found = ReferenceModel(trainer, "precomputed").sums(batch, torch.arange(4))
    assert torch.allclose(found, literal(tiny_dir, batch), atol=1e-4) and not found.requires_grad


def test_what_is_refused(tiny_dir, tmp_path):
    trainer = build("sft", tiny_dir, tmp_path, max_steps=1, learning_rate=0.1)
    with pytest.raises(ConfigError, match="has no adapter to switch off .*allowed: copy, precomputed"):
        ReferenceModel(trainer, "adapter_off")
    reference = ReferenceModel(trainer, "copy", frozen=frozen_copy(trainer.model, trainer.args))
    reference.refuse_other(reference.sha)
    with pytest.raises(ResumeError, match="not those it was begun with"):
        reference.refuse_other("0" * 16)
    before = frozen_copy(trainer.model, trainer.args)
    trainer.train()
    with pytest.raises(ConfigError, match="the copy is not the model that training starts from"):
        ReferenceModel(trainer, "copy", frozen=before)
    adapted = build("sft", tiny_dir, tmp_path / "b", max_steps=1, trainer_kwargs={"peft_config": LORA})
    with pytest.raises(ConfigError, match="a model with adapters has its reference in itself"):
        frozen_copy(adapted.model, adapted.args)
