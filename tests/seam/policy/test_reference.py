"""A reference model other than the one a policy run starts from."""

from __future__ import annotations

import pytest
import torch

from posttrain.errors import ConfigError, SupportError
from posttrain.seam.policy.reference import set_reference
from tests.batteries.runs import build, fresh_model


def shifted(tiny_dir):
    """The tiny model with every weight a little larger."""
    model = fresh_model(tiny_dir)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05)
    return model


def test_the_divergence_is_measured_from_the_given_model(tiny_dir, tmp_path):
    trainer = build("grpo", tiny_dir, tmp_path, beta=0.1, max_steps=1)
    other = shifted(tiny_dir)
    set_reference(trainer, other)
    reference = trainer.accelerator.unwrap_model(trainer.ref_model).state_dict()
    assert all(torch.equal(reference[name], value) for name, value in other.state_dict().items())
    trainer.train()
    # Against its own start the divergence of the first step is 0.
    logged = next(entry["kl"] for entry in trainer.state.log_history if "kl" in entry)
    assert logged > 1e-4
    assert all(torch.equal(reference[name], value) for name, value in other.state_dict().items()), "it stays"


def test_without_a_reference_model_or_with_another_architecture_it_is_refused(tiny_dir, tmp_path):
    with pytest.raises(SupportError, match="this run has no reference model"):
        set_reference(build("grpo", tiny_dir, tmp_path / "none", max_steps=1), fresh_model(tiny_dir))
    trainer = build("grpo", tiny_dir, tmp_path / "other", beta=0.1, max_steps=1)
    other = fresh_model(tiny_dir)
    other.resize_token_embeddings(other.config.vocab_size + 8)
    with pytest.raises(ConfigError, match="the reference is another architecture"):
        set_reference(trainer, other)
