"""`posttrain score-tokens`: the index that training then opens, the questions it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from ruamel.yaml import YAML

from posttrain.data.sources import load_source
from posttrain.errors import ConfigError, DataError, SupportError
from posttrain.methods.rmt.score_tokens import HISTOGRAM, score_tokens
from posttrain.rewards.next_token import next_token
from posttrain.run import run
from tests.config.recipes import BASES, changed, write

CONSOLE = Console(quiet=True)


def recipe(folder: Path, **changes) -> Path:
    quiet = {"rollout.reward_workers": 0, "eval": None, "data.eval": None, "data.train.size": 8}
    own = {"trainer.use_cpu": True, "trainer.save_strategy": "no", "method.token_budget_initial": 8}
    if "data.train" in changes:
        del quiet["data.train.size"]
    values = changed(BASES["rmt"], {**quiet, **own, **changes})
    del values["trainer"]["save_steps"]
    return write(folder, values)


def test_training_opens_the_index_that_was_made_ahead(tmp_path):
    path = recipe(tmp_path, **{"method.token_index": str(tmp_path / "index")})
    folder = score_tokens(path, [], console=CONSOLE)
    assert folder == tmp_path / "index" and (folder / HISTOGRAM).stat().st_size > 1000
    before = (folder / "index.json").stat().st_mtime_ns
    run(path, ["trainer.max_steps=1"])
    assert (folder / "index.json").stat().st_mtime_ns == before
    assert not (tmp_path / "run" / "token_index").exists()
    with pytest.raises(DataError, match="another corpus"):
        run(path, ["data.train.seed=5", f"trainer.output_dir={tmp_path / 'other'}"])
    with pytest.raises(DataError, match="another scoring model"):
        score_tokens(path, ["model.tiny.seed=1", f"trainer.output_dir={tmp_path / 'third'}"], console=CONSOLE)


@pytest.mark.parametrize("nested", [False, True])
def test_questions_can_be_evaluated_in_both_modes(nested, tmp_path):
    own = {"questions": tmp_path / "q", "held_out": ["options={split: eval}"]}
    score_tokens(recipe(tmp_path), [], **own, per_tier=4, nested=nested, console=CONSOLE)
    groups = {}
    for name, extra in (("reasoning", {}), ("next_token", {"format": "text"})):
        rows = load_source({"path": str(tmp_path / "q" / f"{name}.jsonl"), **extra})
        groups[name] = set(rows["group"])
        answers = [f"<think></think>\\boxed{{{a}}}" if name == "reasoning" else a for a in rows["answer"]]
        ids = [[json.loads(entry)["target_id"]] for entry in rows["entry"]]
        right = next_token(rows["prompt"], answers, entry=rows["entry"], completion_ids=ids)
        assert right == [1.0] * len(rows) and len(rows) in (4, 12)
        assert not any(next_token(rows["prompt"], ["?"] * len(rows), entry=rows["entry"]))
    # The untrained model is uncertain about everything: above every threshold.
    expected = {"above 0.5", "above 1.0", "above 1.5"} if nested else {"hard"}
    assert groups == {"reasoning": expected, "next_token": expected}


def test_questions_are_about_documents_that_are_not_trained(tmp_path):
    """Two of three held-out documents are trained ones; the question is about the third."""
    trained = [{"text": "abcabcabcabc"}, {"text": "hello world"}]
    train, other = tmp_path / "train.jsonl", tmp_path / "other.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in trained))
    other.write_text("".join(json.dumps(row) + "\n" for row in [*trained, {"text": "zzyyxxzz"}]))
    path = recipe(tmp_path, **{"data.train": {"path": str(train), "format": "text"}})
    score_tokens(path, [], questions=tmp_path / "q", held_out=[f"path={other}"], console=CONSOLE)
    prompts = load_source({"path": str(tmp_path / "q" / "next_token.jsonl"), "format": "text"})["prompt"]
    assert len(prompts) == 7 and all("zzyyxxzz".startswith(prompt) for prompt in prompts)
    with pytest.raises(DataError, match="every document for questions is a training document"):
        score_tokens(path, [], questions=tmp_path / "p", held_out=["format=text"], console=CONSOLE)
    with pytest.raises(ConfigError, match="questions need documents that are not trained.*--held-out split=test"):
        score_tokens(path, [], questions=tmp_path / "p", console=CONSOLE)
    with pytest.raises(ConfigError, match="not a source of documents.*columns"):
        score_tokens(path, [], questions=tmp_path / "p", held_out=["columns=7"], console=CONSOLE)


def test_a_mixture_is_scored_as_it_is_trained(tmp_path):
    of_text = {"task": "woven_text", "size": 8, "format": "text"}
    few, none = {"name": "few", "seed": 1, **of_text}, {"name": "none", "seed": 2, "fraction": 0.0, **of_text}
    train = {"mixture": [few, none]}
    path = recipe(tmp_path, **{"data.train": train, "method.token_index": str(tmp_path / "index")})
    score_tokens(path, [], console=CONSOLE)
    before = (tmp_path / "index" / "index.json").stat().st_mtime_ns
    run(path, ["trainer.max_steps=1"])
    assert (tmp_path / "index" / "index.json").stat().st_mtime_ns == before


def test_a_parent_that_trained_adapters_scores_as_it_will_train(tmp_path, tiny_dir):
    """The base model is in bfloat16 and is held in float32: merging there gives other weights than merging here."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny_dir, dtype=torch.bfloat16).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_dir).save_pretrained(base)
    model = {"path": str(base), "dtype": "float32"}
    sft = {"name": "before", "method": {"name": "sft"}, "model": {**model, "lora": {"rank": 4}}, "eval": None}
    sft |= {"data": {"train": {"task": "arithmetic", "size": 8, "seed": 1}, "max_prompt_length": 200}}
    sft |= {"trainer": {"max_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 0.1, "use_cpu": True}}
    path = recipe(tmp_path, **{"method.token_index": str(tmp_path / "index"), "model": model, "trainer.max_steps": 1})
    values = YAML(typ="safe", pure=True).load(path.read_text())
    path = write(tmp_path, {**values, "stages": [sft, {"name": "text", "start_from": "before"}]})
    run(path, [])
    assert (tmp_path / "index" / "index.json").is_file()
    score_tokens(path, [], console=CONSOLE)


def test_a_scorer_with_other_tokens_is_told_before_training(tmp_path, tiny_dir):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from posttrain.config.loader import load
    from posttrain.preflight.check import check

    AutoModelForCausalLM.from_pretrained(tiny_dir).save_pretrained(tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    tokenizer.save_pretrained(tmp_path / "other")
    path = recipe(tmp_path, **{"method.entropy_model": str(tmp_path / "other")})
    assert not check(load(path)).errors
    tokenizer.add_tokens(["one"])
    tokenizer.save_pretrained(tmp_path / "other")
    (told,) = [str(error) for error in check(load(path)).errors]
    assert "method.entropy_model: the scorer cuts text into other tokens" in told and "recipe.yaml:" in told


def test_a_recipe_without_text_is_refused(tmp_path):
    with pytest.raises(SupportError, match="no stage of the recipe reads documents"):
        score_tokens(write(tmp_path, BASES["grpo"]), [], console=CONSOLE)
    with pytest.raises(ConfigError, match="no such stage.*allowed: one of: run"):
        score_tokens(recipe(tmp_path), [], stage="late", console=CONSOLE)


def test_chats_are_no_documents(tmp_path):
    from posttrain.config.loader import load
    from posttrain.preflight.check import check

    path = recipe(tmp_path, **{"data.train": {"task": "arithmetic", "size": 32, "seed": 1}})
    told = [str(error) for error in check(load(path)).errors]
    assert any("reads documents, not chats" in line and "format: text" in line for line in told), told
