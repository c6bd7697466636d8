"""Weights that leave the trainer come back bit for bit."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM

from posttrain.seam.weights import materialised, preserved_base_weights

CYCLES = 300


def _adapted(tiny_dir):
    base = AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.bfloat16)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=32, target_modules="all-linear", init_lora_weights=False))
    return model.to(torch.bfloat16)


def _base(model):
    return [m.get_base_layer().weight.detach().clone() for m in model.modules() if isinstance(m, BaseTunerLayer)]


def _push(model):
    """What trl 1.16 does around a weight transfer."""
    model.merge_adapter()
    model.unmerge_adapter()


def test_merging_drifts_in_bf16_and_the_wrapper_stops_it(tiny_dir):
    plain, kept = _adapted(tiny_dir), _adapted(tiny_dir)
    before_plain, before_kept = _base(plain), _base(kept)
    for _ in range(CYCLES):
        _push(plain)
        with preserved_base_weights(kept):
            _push(kept)
    assert max((a - b).abs().max().item() for a, b in zip(_base(plain), before_plain, strict=True)) > 1e-3
    assert all(torch.equal(a, b) for a, b in zip(_base(kept), before_kept, strict=True))


def test_base_weights_come_back_when_the_push_fails(tiny_dir):
    model = _adapted(tiny_dir)
    before = _base(model)

    with pytest.raises(ConnectionError, match="engine gone"), preserved_base_weights(model):
        model.merge_adapter()
        raise ConnectionError("engine gone")
    assert all(torch.equal(a, b) for a, b in zip(_base(model), before, strict=True))


def test_a_model_changed_in_memory_is_found_by_its_name(tiny_dir, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_dir)
    torch.nn.init.constant_(model.model.norm.weight, 3.0)
    with materialised(model, tmp_path / "now", is_main=True, barrier=lambda: None):
        reloaded = AutoModelForCausalLM.from_pretrained(model.config._name_or_path)
    assert torch.equal(reloaded.model.norm.weight, model.model.norm.weight)
    assert model.config._name_or_path == str(tiny_dir)
