"""`posttrain score-tokens`: the index that training then opens, the questions it writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from posttrain.data.sources import load_source
from posttrain.errors import ConfigError, DataError, SupportError
from posttrain.rewards.next_token import next_token
from posttrain.run import run
from posttrain.score_tokens import HISTOGRAM, score_tokens
from tests.config.recipes import BASES, changed, write

CONSOLE = Console(quiet=True)


def recipe(folder: Path, **changes) -> Path:
    quiet = {"rollout.reward_workers": 0, "eval": None, "data.eval": None, "data.train.size": 8}
    own = {"trainer.use_cpu": True, "trainer.save_strategy": "no", "method.token_budget_initial": 8}
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
    score_tokens(recipe(tmp_path), [], questions=tmp_path / "q", per_tier=4, nested=nested, console=CONSOLE)
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


def test_a_recipe_without_text_is_refused(tmp_path):
    with pytest.raises(SupportError, match="no stage of the recipe reads documents"):
        score_tokens(write(tmp_path, BASES["grpo"]), [], console=CONSOLE)
    with pytest.raises(ConfigError, match="no such stage.*allowed: one of: run"):
        score_tokens(recipe(tmp_path), [], stage="late", console=CONSOLE)


def test_chats_are_no_documents(tmp_path):
    from posttrain.config.checks import check
    from posttrain.config.loader import load

    path = recipe(tmp_path, **{"data.train": {"task": "arithmetic", "size": 32, "seed": 1}})
    told = [str(error) for error in check(load(path)).errors]
    assert any("reads documents, not chats" in line and "format: text" in line for line in told), told
