"""The preset `mixing` and the stage block `mix`: which runs a variant needs, what is shared, and every refusal."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from posttrain.config.loader import parse
from posttrain.config.presets import expand
from posttrain.config.stages import resolve_stages
from posttrain.errors import ConfigError, DataError, PosttrainError
from posttrain.methods.aioli.fits import skill_graph
from posttrain.methods.aioli.plan import VARIANTS
from posttrain.methods.aioli.stage_step import StaticRun, found_by
from posttrain.run import run
from tests.config.recipes import BASES, changed, write

GROUPS = ["easy", "hardest"]


def recipe(stages, **changes) -> dict:
    values = changed(BASES["aioli"], {"trainer.output_dir": "runs/variants", "stages": stages, **changes})
    values["data"].pop("eval"), values.pop("eval")
    options = {"groups": list(GROUPS), "length": 16}
    values["data"]["train"]["options"] = options
    values["data"]["validation"]["options"] = {**options, "groups": list(GROUPS), "split": "eval"}
    return values


def preset(**options) -> dict:
    return {"preset": "mixing", "groups": GROUPS, "draws": 2, **options}


def names(**options) -> list[str]:
    return [stage["name"] for stage in expand(recipe(preset(**options)))]


def test_an_variant_brings_the_runs_it_needs_once():
    assert names(variants=["stratified"]) == ["stratified"]
    assert names(variants=["skillit"]) == ["stratified", "only_0", "only_1", "skillit"]
    swept = ["stratified", "only_0", "only_1", "draw_00", "draw_01"]
    assert names(variants=["dml"]) == [*swept, "dml"]
    assert names(variants=["dml"], corners=False) == ["stratified", "draw_00", "draw_01", "dml"]
    inner = expand(recipe(preset(variants=["dml", "skillit"], corners=False)))
    assert [s["mix"]["runs"] for s in inner if "mix" in s] == [
        ["stratified", "draw_00", "draw_01"],
        ["stratified", "only_0", "only_1"],
    ]
    assert names(variants=["grid", "dml", "regmix", "skillit"]) == [*swept, "grid", "dml", "regmix", "skillit"]
    assert names(variants=["doremi", "doge"]) == ["stratified", "doremi_search", "doremi", "doge_search", "doge"]
    every = names(prior=[0.5, 0.5], prior_steps=1)
    assert set(VARIANTS) <= set(every) and len(every) == len(set(every))


def test_stages_differ_in_what_decides_the_proportions_alone():
    options = {"variants": ["natural", "dml", "doremi", "aioli_ema", "aioli_prior"], "doremi_step_size": 0.3}
    own = {"method.eta": 0.7, "method.ema": 0.1, "method.controller": "aioli"}
    values = recipe(preset(**options, prior=[0.2, 0.8], prior_steps=2), **own)
    found = {name: config for name, _, config in resolve_stages(parse(values))}
    assert all(config.data == found["stratified"].data for config in found.values())
    assert all(config.method.groups == GROUPS for config in found.values())
    assert all((config.method.eta == 0.7) == (config.method.controller == "aioli") for config in found.values())
    assert found["only_1"].method.proportions == [0.0, 1.0]
    assert found["natural"].method.controller == "natural" and found["natural"].method.ema is None
    assert found["doremi_search"].method.step_size == 0.3
    assert found["doremi_search"].method.reference_model == "runs/variants/stratified/model"
    assert found["doremi"].method.proportions_from == "runs/variants/doremi_search/mixing.json"
    assert found["aioli_ema"].method.ema == 0.5 and found["aioli_prior"].method.ema == 0.1
    assert found["aioli_prior"].method.prior == [0.2, 0.8] and found["aioli_prior"].method.prior_steps == 2
    path = Path(found["dml"].method.proportions_from)
    assert path.parent == Path("runs/variants/dml") and re.fullmatch(r"dml_[0-9a-f]{8}\.json", path.name)


def test_another_sweep_is_another_setting():
    def path(draws: int) -> str:
        runs = resolve_stages(parse(recipe({**preset(variants=["dml"]), "draws": draws})))
        return runs[-1][2].method.proportions_from

    assert path(2) != path(3) and path(2) == path(2)


def test_the_plan_runs_and_what_is_found_is_used(tmp_path):
    steps = {"trainer.max_steps": 4, "trainer.save_strategy": "no", "trainer.learning_rate": 5e-3}
    values = recipe(
        preset(variants=["dml", "skillit", "doge"]), **{**steps, "trainer.output_dir": str(tmp_path / "out")}
    )
    done = {outcome.name: outcome.folder for outcome in run(write(tmp_path, values))}
    record = {name: json.loads((folder / "mixing.json").read_text()) for name, folder in done.items()}
    found = json.loads(next(done["dml"].glob("dml_*.json")).read_text())
    assert record["dml"]["proportions"] == pytest.approx(found["proportions"])
    assert len(found["runs"]) == 5 and len(found["r_squared"]) == 2
    assert record["doge"]["proportions"] == pytest.approx(record["doge_search"]["proportions"])
    graph = json.loads(next(done["skillit"].glob("skill_graph_*.json")).read_text())["skill_graph"]
    start, ends = record["stratified"]["records"][0]["losses"], []
    for name in ("only_0", "only_1"):
        ends.append(record[name]["records"][-1]["losses"])
    assert graph == pytest.approx(skill_graph(np.array(start), np.array(ends)))
    stamp = (done["dml"] / "finished.json").read_bytes()
    run(tmp_path / "recipe.yaml")
    assert (done["dml"] / "finished.json").read_bytes() == stamp, "nothing is trained twice"


def made_up(*runs: tuple[list[float], list[float]]) -> list[StaticRun]:
    return [StaticRun(f"r{i}", Path("x") / f"r{i}", tuple(p), (4.0, 4.0), tuple(e)) for i, (p, e) in enumerate(runs)]


def test_grid_is_the_best_run_and_a_graph_needs_its_groups_in_order():
    runs = made_up(([0.5, 0.5], [2, 2]), ([1, 0], [1, 4]), ([0, 1], [2, 1]))
    assert found_by("grid", runs) == {"proportions": (0, 1), "best": "r2"}
    assert found_by("skill_graph", runs)["skill_graph"] == pytest.approx(np.array([[0.75, 0], [0.5, 0.75]]))
    with pytest.raises(DataError, match=r"each group alone, in the order of the groups \(got \['r2', 'r1'\]"):
        found_by("skill_graph", [runs[0], runs[2], runs[1]])


# ---- what is refused ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": ["dml"]}, "stages.variant: unknown option of the preset mixing"),
        ({"variants": ["dml", "olmix"]}, "stages.variants: not a list of variants (got 'olmix'"),
        ({"variants": ["dml", "dml"]}, "stages.variants: not a list of variants"),
        ({"groups": ["easy"]}, "stages.groups: the groups must be known beforehand"),
        ({"corners": 1}, "stages.corners: out of range (got 1; allowed: true or false)"),
        ({"draws": -1}, "stages.draws: out of range (got -1; allowed: integer >= 0)"),
        ({"variants": ["aioli_prior"]}, "stages.prior: the variant aioli_prior and the options prior and prior_steps"),
        ({"variants": ["aioli"], "prior": [0.5, 0.5]}, "stages.prior: the variant aioli_prior"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        expand(recipe(preset(**options)))


def test_other_methods_are_refused():
    with pytest.raises(ConfigError, match=r"method\.name: only the method aioli mixes groups"):
        expand({**recipe(preset()), "method": {"name": "sft"}})


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({"find": "dml", "runs": ["later"]}, "not the name of an earlier stage (got 'later'; allowed: first"),
        ({"find": "proportions", "runs": ["first", "first"]}, "one run is enough"),
        ({"find": "magic", "runs": ["first"]}, "proportions, reference, grid, dml, regmix"),
        ({"find": "dml", "runs": []}, "mix.runs"),
    ],
)
def test_stages_that_cannot_be_read_from_are_refused(mix, message):
    method = {**BASES["aioli"]["method"], "controller": "static"}
    stages = [
        {"name": "first", "method": {**method, "controller": "stratified"}},
        {"name": "second", "method": method, "mix": mix},
    ]
    with pytest.raises(PosttrainError, match=re.escape(message)):
        parse(recipe(stages))


def test_a_setting_is_given_once():
    method = {**BASES["aioli"]["method"], "controller": "static", "proportions_from": "x.json"}
    first = {"name": "first", "method": {**method, "controller": "stratified"}}
    del first["method"]["proportions_from"]
    stages = [first, {"name": "second", "method": method, "mix": {"find": "grid", "runs": ["first"]}}]
    with pytest.raises(PosttrainError, match=r"decides method\.proportions_from, which the stage gives itself"):
        parse(recipe(stages))
