"""Weight files that are not those of their model: missing, idle, mis-shaped and infinite tensors are refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from posttrain.errors import ConfigError
from posttrain.models.config_files import load_config
from posttrain.models.loading import load_model, load_with_adapter
from posttrain.models.tiny import build_tiny
from posttrain.models.weights import load_faults, tried


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_tiny(tmp_path / "model", hidden_size=8, num_layers=2, num_heads=2, intermediate_size=8)


def rewritten(folder: Path, change: Any, file: str = "model.safetensors") -> None:
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file, {"format": "pt"})


def keep_two(tensors: dict[str, Any]) -> None:
    for name in list(tensors)[2:]:
        del tensors[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (keep_two, r"lack 19 of the model's 21 weights \(model\.\S+, model\.\S+, model\.\S+ and 16 more\)"),
        (lambda t: t.update({"visual.a": torch.zeros(2)}), r"hold 1 tensors that .* does not have \(visual.a\)"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(9)}), r"1 tensors .* other shapes .*\[9\].*\[8\]"),
        (lambda t: t.update({"other." + n: t.pop(n) for n in list(t)}), "lack 21 of the model's 21 weights"),
        (lambda t: t["lm_head.weight"].view(-1)[-1:].fill_(math.nan), r"1 weights .* NaN .*\(lm_head.weight\)"),
        (lambda t: t["model.norm.weight"][:1].fill_(-math.inf), r"1 weights .* infinite .*\(model.norm.weight\)"),
    ],
    ids=["two left", "idle", "shape", "prefix", "nan", "inf"],
)
def test_weights_of_another_model_are_not_loaded(change: Any, message: str, folder: Path):
    rewritten(folder, change)
    with pytest.raises(ConfigError, match=message):
        load_model({"path": str(folder)}, path=folder)


def test_names_and_shapes_are_found_without_reading_tensors(folder: Path):
    rewritten(folder, keep_two)
    model, info = tried(str(folder), load_config(str(folder)))
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    (fault,) = load_faults(model, info)
    assert "lack 19 of the model's 21 weights" in str(fault)


def test_a_new_head_and_idle_weights_are_a_choice(folder: Path):
    def headless(tensors: dict[str, Any]) -> None:
        del tensors["lm_head.weight"]
        tensors["visual.a"] = torch.zeros(2)

    rewritten(folder, headless)
    block = {"path": str(folder), "new_head": True}
    with pytest.raises(ConfigError, match="visual.a"):
        load_model(block, path=folder)
    assert load_model({**block, "unused_weights": True}, path=folder).lm_head.weight.isfinite().all()
    with pytest.raises(ConfigError, match=r"lm_head.weight.*model.new_head: true"):
        load_model({"path": str(folder), "unused_weights": True}, path=folder)


def test_an_adapter_with_a_part_of_its_weights_is_not_loaded(folder: Path, tmp_path: Path):
    from peft import LoraConfig, get_peft_model

    base = load_model({"path": str(folder)}, path=folder)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    assert load_with_adapter({}, adapter=tmp_path / "adapter", base=str(folder))
    rewritten(tmp_path / "adapter", lambda tensors: tensors.popitem(), "adapter_model.safetensors")
    with pytest.raises(ConfigError, match="lacks 1 of its 4 weights"):
        load_with_adapter({}, adapter=tmp_path / "adapter", base=str(folder))
