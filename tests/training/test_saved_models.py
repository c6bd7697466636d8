"""What a user's word for a model stands for, and what is said when nothing is there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from posttrain.config.run_config import ModelBlock
from posttrain.errors import ConfigError, SupportError
from posttrain.training.saved_models import find_model
from tests.config.recipes import GRPO, REMOVE, changed, write

BLOCK = ModelBlock(dtype="float32")


@pytest.fixture
def run(tmp_path: Path, tiny_dir: Path) -> Path:
    """A run folder as training leaves it: model, checkpoint, start."""
    folder = tmp_path / "run"
    for name in ("model", "checkpoint-20", "initial/tiny"):
        shutil.copytree(tiny_dir, folder / name)
    (folder / "run.json").write_text("{}")
    return folder


@pytest.fixture
def adapter(run: Path) -> Path:
    """The same run with an adapter of random weights in place of its model."""
    shutil.rmtree(run / "model")
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(run / "initial" / "tiny")
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    model.save_pretrained(run / "model")
    return run / "model"


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(3, 23)[None]).logits


@pytest.mark.parametrize(("given", "step"), [("", None), ("model", None), ("checkpoint-20", 20)])
def test_run_model_and_checkpoint_folders_are_known_with_their_run(run: Path, given: str, step: int | None):
    found = find_model(str(run / given))
    assert (found.path, found.run, found.step) == (str(run / (given or "model")), run, step)
    assert found.base is None and found.label == (given or "model")


def test_a_folder_outside_a_run_belongs_to_none(tiny_dir: Path):
    found = find_model(str(tiny_dir))
    assert (found.run, found.step, found.revision) == (None, None, None)


def test_a_hub_id_keeps_its_revision():
    found = find_model("owner/name-1B", revision="v2")
    assert (found.path, found.revision, found.label) == ("owner/name-1B", "v2", "name-1B-v2")


def test_an_adapter_stays_beside_its_base(adapter: Path, run: Path):
    found = find_model(str(adapter))
    assert found.base == str(run / "initial" / "tiny")
    loaded = found.load(BLOCK)
    by_hand = AutoModelForCausalLM.from_pretrained(run / "initial" / "tiny")
    base = logits(by_hand)
    weights = load_file(adapter / "adapter_model.safetensors")
    with torch.no_grad():
        for name, module in by_hand.named_modules():
            key = f"base_model.model.{name}.lora_A.weight"
            if key in weights:  # W + alpha / r * B A
                module.weight += 8 / 4 * weights[key.replace("lora_A", "lora_B")] @ weights[key]
    torch.testing.assert_close(logits(loaded), logits(by_hand), rtol=1e-4, atol=1e-4)
    assert (logits(loaded) - base).abs().max() > 0.1
    assert found.tokenizer(BLOCK).chat_template  # of its base


def test_an_adapter_is_held_in_the_type_of_its_file(adapter: Path):
    file = adapter / "adapter_model.safetensors"
    block = ModelBlock(dtype="bfloat16")
    assert {p.dtype for n, p in find_model(str(adapter)).load(block).named_parameters() if "lora" in n} == {
        torch.float32
    }
    save_file({name: value.bfloat16() for name, value in load_file(file).items()}, file)
    kinds = {p.dtype for p in find_model(str(adapter)).load(block).parameters()}
    assert kinds == {torch.bfloat16}


def test_the_base_of_a_run_that_was_moved_is_found_in_it(adapter: Path, run: Path, tmp_path: Path):
    run.rename(tmp_path / "elsewhere")
    found = find_model(str(tmp_path / "elsewhere"))
    assert found.base == str(tmp_path / "elsewhere" / "initial" / "tiny")


def test_a_missing_base_is_told(adapter: Path, run: Path):
    shutil.rmtree(run / "initial")
    with pytest.raises(ConfigError, match="the model that the adapter was trained on is not there"):
        find_model(str(adapter))


def test_an_adapter_in_a_pickle_is_refused(adapter: Path):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ConfigError, match="no adapter_model.safetensors .*safetensors files only"):
        find_model(str(adapter)).load(BLOCK)


def test_code_in_a_model_folder_is_refused(run: Path):
    config = run / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(SupportError, match="names code to run"):
        find_model(str(run)).load(BLOCK)


def test_hashes_follow_the_weights(run: Path):
    first, same = (find_model(str(run / name)).identity() for name in ("model", "checkpoint-20"))
    assert first["sha256"] == same["sha256"] and list(first["files"]) == ["model.safetensors"]
    weights = load_file(run / "model" / "model.safetensors")
    save_file({**weights, "model.norm.weight": weights["model.norm.weight"] + 1e-3}, run / "model/model.safetensors")
    assert find_model(str(run)).identity()["sha256"] != first["sha256"]


def test_the_hashes_of_an_adapter_include_those_of_its_base(adapter: Path, run: Path):
    found = find_model(str(adapter)).identity()
    assert list(found["files"]) == ["adapter_model.safetensors"]
    assert found["base"]["files"] == find_model(str(run / "initial" / "tiny")).identity()["files"]


# ---- mistakes ----


def test_a_wrong_path_is_told_with_the_nearest(run: Path, monkeypatch):
    monkeypatch.chdir(run.parent)
    with pytest.raises(ConfigError, match=r"MODEL: no such model \(got 'run/modle'.*Perhaps you mean 'run/model'"):
        find_model("run/modle")
    for given in ("./gone", "/gone/model", "a b"):
        with pytest.raises(ConfigError, match=r"MODEL: no such model .*checkpoint-N folder.*Hub id"):
            find_model(given)


def test_a_file_is_no_model(run: Path):
    with pytest.raises(ConfigError, match="this is a file, not a model"):
        find_model(str(run / "model" / "config.json"))


def test_a_run_without_a_model_names_its_newest_checkpoint(run: Path):
    shutil.rmtree(run / "model")
    shutil.copytree(run / "checkpoint-20", run / "checkpoint-100")
    with pytest.raises(ConfigError, match="no model in this folder.*newest checkpoint is .*checkpoint-100"):
        find_model(str(run))


def test_a_plan_names_its_stages(run: Path):
    plan = run.parent / "plan"
    shutil.copytree(run, plan / "warm_up")
    with pytest.raises(ConfigError, match=f"Name one of the stages: {plan / 'warm_up'}"):
        find_model(str(plan))
    assert find_model(str(plan), stage="warm_up").path == str(plan / "warm_up" / "model")


def test_a_folder_has_no_revision(run: Path):
    with pytest.raises(ConfigError, match="a folder has no revisions"):
        find_model(str(run), revision="main")


@pytest.mark.slow
def test_a_hub_model_is_evaluated_at_its_revision(tiny_dir: Path, tmp_path: Path):
    """From a cache as the Hub's client lays it out, in a process of its own, which reads its place once."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "hub" / "models--owner--tiny"
    shutil.copytree(tiny_dir, cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "v1").write_text(commit)
    recipe = write(tmp_path, changed(GRPO, {"model.tiny": REMOVE, "model.path": str(tiny_dir)}))
    command = [sys.executable, "-m", "posttrain", "eval", "owner/tiny", "--recipe", str(recipe)]
    command += ["--output", str(tmp_path / "result"), "eval.max_new_tokens=4"]
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(
        [*command, "--revision", "v1"], env=environment, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr
    model = json.loads((tmp_path / "result" / "run.json").read_text())["model"]
    assert (model["path"], model["revision"], model["commit"]) == ("owner/tiny", "v1", commit)
    assert model["files"] == find_model(str(tiny_dir)).identity()["files"]
    missing = subprocess.run(
        [*command, "--revision", "v2"], env=environment, capture_output=True, text=True, check=False
    )
    assert missing.returncode == 2 and "Traceback" not in missing.stderr
    assert missing.stderr.startswith("error: model.path: no tokenizer could be loaded")
