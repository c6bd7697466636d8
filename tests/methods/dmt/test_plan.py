"""Strategies as stages: what each trains on, what they share, and every refusal by its message."""

from __future__ import annotations

import copy
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posttrain.config.loader import load, parse
from posttrain.config.presets import expand
from posttrain.config.stages import resolve_stages
from posttrain.errors import ConfigError
from posttrain.preflight.mixture import load_split
from posttrain.run import run
from tests.config.recipes import SFT, changed, write

SOURCES = [
    {"name": "math", "role": "specialized", "task": "arithmetic", "size": 40, "seed": 1, "options": {"digits": 1}},
    {"name": "code", "role": "specialized", "task": "modular_addition", "size": 24, "seed": 1},
    {
        "name": "general",
        "role": "general",
        "task": "string_rewriting",
        "size": 32,
        "seed": 1,
        "options": {"operations": "reverse"},
    },
]
ROOT = Path(__file__).parents[3]
NO_EVALUATION = {"data.eval": None, "eval": None}


def recipe(stages: dict[str, Any], changes: dict[str, Any] | None = None) -> dict[str, Any]:
    values = changed(SFT, {**NO_EVALUATION, "data.train": {"mixture": copy.deepcopy(SOURCES)}, **(changes or {})})
    return {**values, "stages": stages}


def plan(stages: dict[str, Any]) -> dict[str, tuple[str | None, dict[str, float | None]]]:
    """Stage -> (its parent, replayed fraction of every source)."""
    found = {}
    for name, parent, config in resolve_stages(parse(recipe(stages))):
        sources = config.data.train.mixture or []
        found[name] = (parent, {entry.name: entry.replay_fraction for entry in sources})
    return found


ALL = {"math": None, "code": None, "general": None}
SPECIAL = {"math": None, "code": None}


def test_each_strategy_is_the_papers():
    assert plan({"preset": "multitask"}) == {"multitask": (None, ALL)}
    assert plan({"preset": "mixed_sequential"}) == {
        "specialized": (None, SPECIAL),
        "mixed_sequential": ("specialized", {"general": None}),
    }
    assert plan({"preset": "dmt", "specialized_replay_fraction": 0.25}) == {
        "specialized": (None, SPECIAL),
        "dmt-0.25": ("specialized", {"math": 0.25, "code": 0.25, "general": None}),
    }
    assert plan({"preset": "sequential", "order": ["code", "math", "general"]}) == {
        "sequential-1-code": (None, {"code": None}),
        "sequential-2-math": ("sequential-1-code", {"math": None}),
        "sequential": ("sequential-2-math", {"general": None}),
    }
    assert list(plan({"preset": "single"})) == ["only_math", "only_code", "only_general"]


def test_the_papers_fraction_is_the_default():
    assert plan({"preset": "dmt"})["dmt-0.00390625"][1]["math"] == 1 / 256


def test_no_replay_is_mixed_sequential_to_the_letter():
    fields = {"preset": "dmt", "specialized_replay_fraction": 0}
    assert expand(recipe(fields)) == expand(recipe({"preset": "mixed_sequential"}))


def test_full_replay_is_not_multitask_because_stage_one_came_first():
    found = plan({"preset": "dmt", "specialized_replay_fraction": 1})
    assert found["dmt-1"] == ("specialized", {"math": 1.0, "code": 1.0, "general": None})


def test_a_composition_trains_the_first_stage_once_for_every_fraction():
    found = plan(
        {"preset": "composition", "specialized_replay_fractions": [0, 0.25, 1], "replay_measures": ["rows", "tokens"]}
    )
    second = ["mixed_sequential", "dmt-0.25", "dmt-1", "dmt-0.25-tokens", "dmt-1-tokens"]
    assert [name for name, (parent, _) in found.items() if parent == "specialized"] == second
    assert list(found).count("specialized") == 1 and len(found) == 3 + 1 + 3 + 1 + 5


def test_custom_is_what_is_written():
    stages = [
        {"name": "one", "sources": {"math": {"fraction": 0.5}}},
        {"name": "two", "sources": ["code"], "start_from": "one", "trainer": {"max_steps": 3}},
    ]
    config = parse(recipe({"preset": "custom", "plan": stages}))
    runs = {name: (parent, found) for name, parent, found in resolve_stages(config)}
    assert [entry.fraction for entry in runs["one"][1].data.train.mixture] == [0.5]
    assert runs["two"][0] == "one" and runs["two"][1].trainer.max_steps == 3


def test_steps_follow_from_the_rows_of_a_stage():
    changes = {"trainer": {"num_train_epochs": 3, "per_device_train_batch_size": 8, "learning_rate": 1e-3}}
    from posttrain.reproduce.plan import _records

    config = parse(recipe({"preset": "dmt", "specialized_replay_fraction": 0.25}, changes))
    steps = {record.name: record.steps for record in _records(resolve_stages(config))}
    assert steps == {"specialized": 3 * math.ceil(64 / 8), "dmt-0.25": 3 * math.ceil((32 + 10 + 6) / 8)}


def test_replayed_rows_are_rows_of_stage_one():
    config = parse(recipe({"preset": "dmt", "specialized_replay_fraction": 0.25}))
    first, second = (load_split(found, "train", None).dataset for _, _, found in resolve_stages(config))
    seen = {json.dumps(row["prompt"]) for row in first}
    replayed = [row for row in second if row["mixture_source"] != "general"]
    assert len(replayed) == 10 + 6 and all(json.dumps(row["prompt"]) in seen for row in replayed)


def test_dmt_without_replay_has_the_weights_of_mixed_sequential(tmp_path: Path):
    """Also: the second run does not train stage 1 again, since it is finished."""
    changes = {"trainer.max_steps": 3, "trainer.output_dir": str(tmp_path / "run"), "trainer.save_strategy": "no"}
    stages = {"preset": "composition", "strategies": ["mixed_sequential"]}
    values = recipe(stages, changes)
    values["trainer"].pop("save_steps", None)
    one = run(write(tmp_path, values, "a.yaml"))
    stamp = (one[0].folder / "finished.json").read_bytes()
    values["stages"] = {"preset": "dmt", "specialized_replay_fraction": 0}
    values["trainer"]["output_dir"] = str(tmp_path / "other")
    two = run(write(tmp_path, values, "b.yaml"))
    left, right = (load_file(found[-1].model / "model.safetensors") for found in (one, two))
    assert left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)

    values["stages"] = {"preset": "dmt", "specialized_replay_fraction": 0.25}
    values["trainer"]["output_dir"] = str(tmp_path / "run")
    swept = run(write(tmp_path, values, "c.yaml"))
    assert swept[0].folder == one[0].folder and (one[0].folder / "finished.json").read_bytes() == stamp
    assert swept[1].folder.name == "dmt-0.25"


REFUSED = [
    (
        {"preset": "dtm"},
        {},
        "stages.preset: a list of stages is expected, or a mapping that names a preset (got 'dtm'",
    ),
    (
        {"preset": "dmt", "replay": 1},
        {},
        "stages: preset dmt has no such option (got 'replay'; allowed: one of: speci",
    ),
    (
        {"preset": "multitask", "order": []},
        {},
        "stages: preset multitask has no such option (got 'order'; allowed: no",
    ),
    (
        {"preset": "dmt", "specialized_replay_fraction": 1.5},
        {},
        "stages.specialized_replay_fraction: the replayed part of the specialised rows (got 1.5; allowed: 0 to 1)",
    ),
    ({"preset": "dmt", "replay_measure": "words"}, {}, "stages.replay_measure: unknown measure (got 'words'"),
    ({"preset": "sequential", "order": ["math", "cod", "general"]}, {}, "no source has the name 'cod' (got ['math', "),
    ({"preset": "sequential", "order": ["math", "code"]}, {}, "stages.order: an order names every source once"),
    (
        {"preset": "dmt"},
        {"data.train": {"mixture": SOURCES[:2]}},
        "data.train.mixture: no source has the role 'general'",
    ),
    ({"preset": "dmt"}, {"data.train": {"mixture": SOURCES[2:]}}, "no source has the role 'specialized'"),
    (
        {"preset": "dmt"},
        {"data.train": {"mixture": [*SOURCES, {"name": "x", "task": "arithmetic", "size": 4}]}},
        "data.train.mixture: the source has no role (got 'x'; allowed: specialized or general)",
    ),
    (
        {"preset": "dmt"},
        {"data.train": {"mixture": [*SOURCES, {**SOURCES[1], "name": "math"}]}},
        "two sources have this name (got 'math')",
    ),
    ({"preset": "dmt"}, {"data.train": SOURCES[0]}, "stages.preset: the stages take their sources from a mixture"),
    (
        {"preset": "composition", "strategies": ["dmt", "dmt"]},
        {},
        "stages.strategies: a list of one or more different",
    ),
    (
        {"preset": "dmt"},
        {"data.train": {"mixture": [{**source, "weight": 1} for source in SOURCES], "mixing": "interleave_weighted"}},
        "data.train.mixing: weights would decide how often the repeated rows come",
    ),
    (
        {"preset": "dmt"},
        {"data.train": {"mixture": [{**SOURCES[0], "replay_fraction": 0.1}, *SOURCES[1:]]}},
        "stage 2 repeats rows of stage 1",
    ),
    ({"preset": "composition", "strategies": ["both"]}, {}, "stages.strategies: unknown value (got 'both'"),
    ({"preset": "custom"}, {}, "stages.plan: a custom plan lists its stages"),
    ({"preset": "custom", "plan": [{"name": "a"}]}, {}, "stages.plan.0: a stage names itself and its sources"),
    ({"preset": "custom", "plan": [{"name": "a", "sources": {"math": 3}}]}, {}, "stages.plan.0: a stage names itself"),
    ({"preset": "custom", "plan": [{"name": "a", "sources": ["x"]}]}, {}, "stages.plan.0.sources: no source has this"),
    (
        {"preset": "custom", "plan": [{"name": "a", "sources": ["math"], "model": {"path": "other"}}]},
        {},
        "stages.plan.0: tokenizer and data stay those of the recipe between stages (got 'model')",
    ),
]


@pytest.mark.parametrize(("stages", "changes", "message"), REFUSED, ids=[case[2][:50] for case in REFUSED])
def test_refusals(stages, changes, message, tmp_path: Path):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(write(tmp_path, recipe(stages, changes)))


def test_the_study_of_dmt_compares_what_its_notes_say(tmp_path: Path):
    """6 epochs of every stage's rows; whole orders of the three sources cost the same."""
    from posttrain.reproduce.plan import make_plan

    plan = make_plan("dmt", ROOT / "recipes" / "dmt" / "claims.yaml", seeds=[0, 1, 2], output=tmp_path)
    steps = {variant.stage: variant.steps for variant in plan.variants}
    whole = 6 * math.ceil((2048 + 1024 + 2048) / 64)
    assert steps["multitask"] == steps["sequential"] == steps["mixed_sequential"] == whole
    assert steps["dmt-0.25"] == 6 * math.ceil(3072 / 64) + 6 * math.ceil((2048 + 512 + 256) / 64)
    seeds = {
        (run.seed, config.trainer.seed, config.model.tiny.seed) for run in plan.runs for _, _, config in run.stages
    }
    assert seeds == {(0, 0, 0), (1, 1, 1), (2, 2, 2)}


def test_a_stopped_second_stage_goes_on_without_the_first_one_again(tmp_path: Path):
    changes = {"trainer.max_steps": 4, "trainer.save_steps": 2, "trainer.output_dir": str(tmp_path / "cut")}
    values = recipe({"preset": "dmt", "specialized_replay_fraction": 0.25}, changes)
    whole = run(write(tmp_path, {**values, "trainer": {**values["trainer"], "output_dir": str(tmp_path / "whole")}}))
    first, second = run(write(tmp_path, values))
    stamp = (first.folder / "finished.json").read_bytes()
    (second.folder / "finished.json").unlink()
    shutil.rmtree(second.folder / "model")
    shutil.rmtree(second.folder / "checkpoint-4")
    again = run(write(tmp_path, values))
    assert (first.folder / "finished.json").read_bytes() == stamp
    left, right = (load_file(found[-1].model / "model.safetensors") for found in (again, whole))
    assert all(torch.equal(left[name], right[name]) for name in left)
    last = [json.loads(line) for line in (second.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in last if line["event"] == "start"] == [0, 2]
