"""The stages of a path study: orders, what they share, what each trains, and every refusal by its message."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from posttrain.config.loader import parse
from posttrain.config.stages import resolve_stages
from posttrain.errors import ConfigError
from posttrain.methods.unlearning_paths.plan import PathPlan, path_stages
from tests.config.recipes import REMOVE, SFT, changed


def rows(name: str) -> dict[str, Any]:
    return {"task": "fictitious_authors", "size": 4, "seed": 1, "options": {"set": name}}


BLOCK: dict[str, Any] = {
    "preset": "unlearning_paths",
    "learn": [{"name": "inst", "train": rows("inst")}, {"name": "math", "train": rows("math")}],
    "forget": {"train": rows("forget"), "trainer": {"max_steps": 5}},
    "unlearn": {
        "algorithms": [{"name": "one", "method": {"name": "sft"}}, {"name": "two", "method": {"name": "sft"}}],
        "learning_rates": [1e-5, 0.001],
        "probe_every_steps": 3,
        "trainer": {"max_steps": 7},
    },
}
DATA = {"data": {"probes": {"forget": rows("forget")}, "eval": rows("retain"), "max_prompt_length": 64}}


def recipe(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    return changed(SFT, {**copy.deepcopy(DATA), "stages": copy.deepcopy(BLOCK), **(changes or {})})


def parents(values: dict[str, Any]) -> dict[str, str | None]:
    return {stage["name"]: stage.get("start_from") for stage in path_stages(values)}


def test_the_forget_set_at_every_place_and_shared_beginnings():
    found = parents(recipe())
    assert {name: parent for name, parent in found.items() if name.startswith("learn")} == {
        "learn-forget": None,
        "learn-forget-inst": "learn-forget",
        "learn-forget-inst-math": "learn-forget-inst",
        "learn-inst": None,
        "learn-inst-math": "learn-inst",
        "learn-inst-forget": "learn-inst",
        "learn-inst-forget-math": "learn-inst-forget",
        "learn-inst-math-forget": "learn-inst-math",
    }
    assert found["unlearn-one-1e-05-p1"] == "learn-forget-inst-math"
    assert found["unlearn-two-0.001-p3"] == "learn-inst-math-forget"
    assert len(found) == 8 + 2 * 2 * 3
    assert {path.retrained for path in PathPlan(recipe()).paths} == {"learn-inst-math"}


def test_all_orders_have_a_retrained_model_of_their_own():
    plan = PathPlan(recipe({"stages.paths": "all", "stages.positions": [3]}))
    assert [(path.name, path.position, path.retrained) for path in plan.paths] == [
        ("inst-math-forget", 3, "learn-inst-math"),
        ("math-inst-forget", 3, "learn-math-inst"),
    ]
    assert len(PathPlan(recipe({"stages.paths": "all"})).paths) == 6


def test_blocks_of_every_kind_of_stage():
    values = recipe({"stages.relearn": {"train": rows("forget"), "trainer": {"max_steps": 2}}, "stages.joint": True})
    stages = {stage["name"]: stage for stage in path_stages(values)}
    assert stages["learn-forget"]["trainer"]["max_steps"] == 5 and stages["learn-inst"]["trainer"]["max_steps"] == 2
    unlearn = stages["unlearn-one-1e-05-p2"]
    assert unlearn["trainer"]["learning_rate"] == 1e-5 and unlearn["trainer"]["max_steps"] == 7
    assert unlearn["data"]["train"] == rows("forget") and unlearn["eval"]["probe_every_steps"] == 3
    # Nothing but the start tells the unlearning of two paths apart.
    other = stages["unlearn-one-1e-05-p1"]
    assert all(unlearn[block] == other[block] for block in ("method", "data", "trainer", "eval"))
    joint = stages["learn-joint"]
    assert [entry["name"] for entry in joint["data"]["train"]["mixture"]] == ["inst", "math", "forget"]
    assert joint["trainer"]["max_steps"] == 9 and stages["learn-joint-inst-math"]["trainer"]["max_steps"] == 4
    assert stages["unlearn-one-1e-05-joint"]["start_from"] == "learn-joint"
    again = stages["relearn-one-1e-05-p2"]
    assert (again["start_from"], again["lineage"]["of"]) == ("unlearn-one-1e-05-p2",) * 2
    assert stages["relearn-retrained-inst-math"]["start_from"] == "learn-inst-math"
    assert stages["relearn-retrained-joint-inst-math"]["start_from"] == "learn-joint-inst-math"
    assert again["lineage"]["fraction"] == 0.9 and again["eval"]["probe_every_steps"] == 1


def test_a_base_comes_before_every_path_and_joint_training():
    found = parents(recipe({"stages.base": {"train": rows("spare")}, "stages.joint": True}))
    assert found["base"] is None
    firsts = ("learn-forget", "learn-inst", "learn-joint", "learn-joint-inst-math")
    assert [found[name] for name in firsts] == ["base"] * 4 and found["learn-inst-math"] == "learn-inst"


def test_they_are_ordinary_stages_of_an_ordinary_recipe():
    resolved = resolve_stages(parse(recipe()))
    assert len(resolved) == 8 + 12
    last = resolved[-1][2]
    assert last.method.name == "sft" and last.eval.probe_every_steps == 3 and last.stage.lineage["position"] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages.learn": []}, "stages.learn: the other stages of a path"),
        ({"stages.learn.0.name": "a-b"}, "stages.learn.0: not a name (got 'a-b'"),
        ({"stages.learn.0.name": "forget"}, "neither joint nor forget"),
        ({"stages.learn.1.name": "inst"}, "stages.learn.1: two stages have this name (got 'inst')"),
        ({"stages.learn.1.train": REMOVE}, "stages.learn.1: a stage needs rows"),
        ({"stages.learn.1.epochs": 2}, "stages.learn.1.epochs: unknown key"),
        ({"stages.forget": REMOVE}, "stages.forget: a stage needs rows (got None; allowed: a block with train"),
        ({"stages.forget.name": "x"}, "stages.forget.name: unknown key"),
        ({"stages.base": {"trainer": {}}}, "stages.base: a stage needs rows"),
        ({"stages.paths": "some"}, "stages.paths: unknown paths (got 'some'; allowed: positions or all)"),
        ({"stages.positions": [4]}, "stages.positions: no such places (got [4]; allowed: places 1 to 3, each once)"),
        ({"stages.unlearn": REMOVE}, "stages.unlearn: a block of keys is expected"),
        ({"stages.unlearn.algorithm": []}, "Perhaps you mean 'algorithms'"),
        ({"stages.unlearn.algorithms": []}, "stages.unlearn.algorithms: how to unlearn"),
        ({"stages.unlearn.algorithms.1.name": "one"}, "stages.unlearn.algorithms.1: not a name (got 'one'"),
        ({"stages.unlearn.algorithms.1.method": "npo"}, "an algorithm has a name and a method block"),
        (
            {"stages.unlearn.learning_rates": [1e-3, 0.001]},
            "learning_rates: two learning rates have the same",
        ),
        ({"stages.joint": "no_thanks"}, "stages.joint: yes or no (got 'no_thanks'"),
        ({"stages.unlearn.learning_rates": [0]}, "stages.unlearn.learning_rates: the learning rates of unlearning"),
        ({"stages.relearn": {"trainer": {}}}, "stages.relearn: rows to relearn from are missing"),
        (
            {"stages.relearn": {"train": rows("forget"), "fraction": 2}},
            "stages.relearn.fraction: the part of the lost",
        ),
        ({"data.probes": REMOVE}, "data.probes: the forget set is not measured (got []). Write data.probes"),
        ({"stages.joint": True, "trainer.max_steps": REMOVE}, "stages.joint: the stages have different numbers"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=re.escape(message)):
        path_stages(recipe(changes))
