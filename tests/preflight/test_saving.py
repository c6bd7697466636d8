"""`posttrain check` tries what the end of a run does: every file beside the weights, and the push."""

from __future__ import annotations

import json

import pytest

from posttrain import registry
from posttrain.config.loader import load
from posttrain.models.tiny import build_tiny
from posttrain.preflight.check import check
from tests.config.recipes import GRPO, SFT, changed, write


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("model"), hidden_size=8, num_layers=1, num_heads=1, intermediate_size=8)


def report(folder, values, *overrides):
    return check(load(write(folder, values), list(overrides)))


def with_settings(model, folder, **settings):
    import shutil

    shutil.copytree(model, folder)
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    return {"model.tiny": None, "model.path": str(folder)}


def test_settings_that_cannot_be_read_are_no_fault_of_the_weights(model, tmp_path):
    odd = with_settings(model, tmp_path / "odd", do_sample=False, num_return_sequences=3)
    (told,) = [str(error) for error in report(tmp_path, changed(SFT, odd)).errors]
    assert "generation_config.json of the model cannot be read" in told and "num_return_sequences" in told


def test_what_cannot_be_written_back_is_told(model, tmp_path):
    odd = with_settings(model, tmp_path / "odd", do_sample=False, temperature=0.6)
    found = report(tmp_path, changed(SFT, odd))
    (told,) = [str(w) for w in found.warnings if "would not write this generation config" in str(w)]
    assert "model.path" in told and "`temperature`" in told and "written back as it is" in told
    assert found.ok


def test_a_card_that_cannot_be_written_is_told_and_stops_nothing(tmp_path, monkeypatch):
    assert not [w for w in report(tmp_path, SFT).warnings if "model card" in str(w)]
    monkeypatch.setattr(registry.get("sft").load_trainer(), "paper", {"title": "half a pair \ud800", "id": "1"})
    found = report(tmp_path, SFT)
    (told,) = [
        str(w) for w in found.warnings if "the model card cannot be saved, so that there will be none" in str(w)
    ]
    assert "surrogates not allowed" in told and found.ok


def test_settings_of_the_model_that_are_not_used_are_told(model, tmp_path):
    odd = with_settings(model, tmp_path / "odd", no_repeat_ngram_size=2, eos_token_id=[2, 5])
    facts = report(tmp_path, changed(GRPO, odd)).facts
    assert any("not used of the model's own generation settings: no_repeat_ngram_size 2;" in line for line in facts)
    assert any("a completion ends at any of the tokens [2, 5]" in line for line in facts)


def test_a_damaged_generation_config_and_wrong_tokens_are_refused(model, tmp_path):
    odd = with_settings(model, tmp_path / "odd", eos_token_id="3")
    assert "eos_token_id of the model's generation config is no token id" in told_errors(tmp_path, changed(SFT, odd))
    (tmp_path / "odd" / "generation_config.json").write_text("{")
    assert "generation_config.json is no JSON" in told_errors(tmp_path, changed(SFT, odd))


def told_errors(folder, values, *overrides):
    return "\n".join(str(error) for error in report(folder, values, *overrides).errors)


@pytest.mark.parametrize(
    ("name", "is_folder"),
    [("model", False), ("run.json", True), ("metrics.jsonl", True), ("checkpoint-2", False), ("completions", False)],
)
def test_what_stands_where_the_run_will_write_is_refused(name, is_folder, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).mkdir() if is_folder else (tmp_path / "run" / name).write_text("")
    told = told_errors(tmp_path, changed(SFT, {"trainer.output_dir": str(tmp_path / "run")}))
    assert str(tmp_path / "run" / name) in told and ("there is a" in told)


@pytest.mark.parametrize("repo", ["--x", "owner/na..me"])
def test_a_repository_that_cannot_be_is_refused(repo, tmp_path):
    told = told_errors(tmp_path, changed(SFT, {"hub": {"push": True, "repo_id": repo}}))
    assert "hub.repo_id" in told and "owner/name" in told


def test_a_push_that_was_not_tried_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_placeholder")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = report(tmp_path, changed(SFT, {"hub": {"push": True, "repo_id": "me/mine"}}))
    assert any("the push was not tried" in str(warning) for warning in found.warnings)
