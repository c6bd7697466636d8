"""`posttrain mix`: sweeps that train nothing twice, laws fitted on them, files that a later run reads; refusals."""

from __future__ import annotations

import json
import re
from math import exp
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from posttrain.cli import app
from posttrain.errors import ConfigError, DataError, ResumeError
from posttrain.methods.aioli import verbs
from posttrain.methods.aioli.fits import LogLinearLaw, fit_linear_law
from posttrain.methods.aioli.stage_step import StaticRun
from posttrain.methods.aioli.sweep import MixRecipe, Sweep, drawn
from tests.config.recipes import BASES, changed, write

TEXT = {"task": "markov_text", "format": "text"}
GROUPS = ["easy", "hardest"]


def recipe_in(folder: Path, **changes) -> Path:
    values = {
        "data.train": {**TEXT, "size": 64, "seed": 1, "options": {"groups": [*GROUPS], "length": 16}},
        "data.validation": {
            **TEXT,
            "size": 16,
            "seed": 2,
            "options": {"groups": [*GROUPS], "length": 16, "split": "eval"},
        },
        "trainer.output_dir": str(folder / "mix"),
        "trainer.learning_rate": 5e-3,
        "trainer.max_steps": 6,
        "trainer.save_strategy": "no",
        "trainer.save_steps": 100,
    }
    base = changed(BASES["aioli"], {**values, **changes})
    base["data"].pop("eval"), base.pop("eval")
    folder.mkdir(exist_ok=True)
    return write(folder, base)


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> tuple[Path, Path]:
    """(recipe, folder) after `mix grid` with one random mixture."""
    folder = tmp_path_factory.mktemp("swept")
    recipe = recipe_in(folder)
    verbs.grid(MixRecipe(recipe), draws=1, seed=0)
    return recipe, folder / "mix"


def test_a_sweep_is_equal_corners_and_draws_and_tells_the_best(swept):
    _, root = swept
    found = json.loads((root / "grid.json").read_text())
    assert [run["name"] for run in found["runs"]] == [
        "sweep/equal",
        "sweep/only_0",
        "sweep/only_1",
        "sweep/draw_0_00",
    ]
    assert [run["proportions"] for run in found["runs"]][:3] == [[0.5, 0.5], [1, 0], [0, 1]]
    for run in found["runs"]:
        record = json.loads((Path(run["folder"]) / "mixing.json").read_text())
        assert run["end"] == record["records"][-1]["losses"] and record["records"][-1]["step"] == 6
        assert run["mean_loss"] == pytest.approx(np.mean(run["end"]))
    best = min(found["runs"], key=lambda run: run["mean_loss"])
    assert found["best"] == best["name"] and found["proportions"] == best["proportions"]
    by_name = {run["name"]: run["end"] for run in found["runs"]}
    assert by_name["sweep/only_0"][0] < by_name["sweep/only_1"][0], "the proportions were used"
    assert by_name["sweep/only_1"][1] < by_name["sweep/only_0"][1]
    page = (root / "GRID.md").read_text()
    assert f"{sum(map(exp, best['end'])) / 2:.3f}" in page and "(best)" in page
    assert (root / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_trained_twice_and_a_larger_sweep_contains_the_smaller(swept):
    recipe, root = swept
    stamps = {path: path.read_bytes() for path in root.glob("sweep/*/finished.json")}
    assert len(stamps) == 4
    verbs.grid(MixRecipe(recipe), draws=2, seed=0)
    assert all(path.read_bytes() == stamp for path, stamp in stamps.items())
    assert len(list(root.glob("sweep/*/finished.json"))) == 5
    assert list(drawn(3, draws=2, seed=4)) == list(drawn(3, draws=5, seed=4))[:2]


def test_dml_proposes_and_a_run_reads_its_proportions(swept):
    recipe, root = swept
    found = verbs.dml(MixRecipe(recipe), draws=2, seed=0, final=True)
    told = json.loads((root / "dml.json").read_text())
    law = LogLinearLaw(**{name: np.array(told["law"][name]) for name in ("offset", "scale", "matrix")})
    observed = np.array([run["end"] for run in told["runs"]])
    predicted = law.predict(np.array([run["proportions"] for run in told["runs"]]))
    assert told["predicted"] == pytest.approx(predicted)
    spread = ((observed - observed.mean(axis=0)) ** 2).sum(axis=0)
    assert told["r_squared"] == pytest.approx(1 - ((observed - predicted) ** 2).sum(axis=0) / spread)
    assert all(value > 0.9 for value in told["r_squared"])
    line = np.linspace(0, 1, 2001)
    grid = law.predict(np.stack([line, 1 - line], axis=1)).mean(axis=1)
    assert np.mean(told["expected"]) <= grid.min() + 1e-9, "no mixture is better by the law"
    assert told["final"]["proportions"] == pytest.approx(found.proportions.tolist())
    assert "goes through all" not in (root / "DML.md").read_text()

    chosen = [f"method.proportions_from={root / 'proportions_dml.json'}", "method.controller=static"]
    folder = f"trainer.output_dir={root.parent / 'later'}"
    result = CliRunner().invoke(app, ["train", str(recipe), *chosen, folder])
    assert result.exit_code == 0, result.output
    used = json.loads((root.parent / "later" / "mixing.json").read_text())
    assert used["proportions"] == pytest.approx(found.proportions.tolist())


def test_regmix_reports_its_linear_law(swept):
    recipe, root = swept
    found = verbs.regmix(MixRecipe(recipe, train=False), draws=2, seed=0, simulated=500, best=10)
    told = json.loads((root / "regmix.json").read_text())
    shares, ends = (np.array([run[key] for run in told["runs"]]) for key in ("proportions", "end"))
    assert told["law"]["weights"] == pytest.approx(fit_linear_law(shares, ends).weights)
    assert "final" not in told and found.proportions.sum() == pytest.approx(1)
    assert "mean of the 10 mixtures of 500" in (root / "REGMIX.md").read_text()


def test_skill_graph_is_what_the_runs_on_one_group_did_and_skillit_reads_it(swept):
    recipe, root = swept
    verbs.skill_graph(MixRecipe(recipe, train=False))
    told = json.loads((root / "skill_graph.json").read_text())
    start = told["runs"][0]["start"]
    for trained, run in enumerate(told["runs"]):
        assert run["start"] == start, "the same model, the same validation rows"
        assert told["skill_graph"][trained] == pytest.approx(
            [1 - e / s for s, e in zip(start, run["end"], strict=True)]
        )
    assert told["skill_graph"][0][0] > told["skill_graph"][1][0]
    raised = np.exp(0.2 * np.array(told["skill_graph"]).sum(axis=1))
    assert told["proportions"] == pytest.approx((raised / raised.sum()).tolist())

    changes = ["method.controller=skillit", f"method.skill_graph={root / 'skill_graph.json'}"]
    folder = f"trainer.output_dir={root.parent / 'skillit'}"
    result = CliRunner().invoke(app, ["train", str(recipe), *changes, folder])
    assert result.exit_code == 0, result.output
    used = json.loads((root.parent / "skillit" / "mixing.json").read_text())
    assert used["history"][0][1] == pytest.approx(told["proportions"])


def test_the_command_line_shows_table_and_page(swept):
    recipe, root = swept
    result = CliRunner().invoke(app, ["mix", "grid", str(recipe), "--draws", "1", "--report-only"])
    assert result.exit_code == 0, result.output
    assert f"report: {root / 'GRID.md'}" in result.output and "draw_0_00" in result.output


def test_a_report_is_not_made_of_runs_with_other_settings(swept):
    recipe, _ = swept
    with pytest.raises(ResumeError, match="a run with other settings, .*, was finished here"):
        verbs.grid(MixRecipe(recipe, ["trainer.learning_rate=0.5"], train=False), draws=1, seed=0)


def test_best_is_the_least_mean_loss_and_the_first_of_equal_ones():
    runs = [StaticRun(name, Path(name), (0.5, 0.5), (9, 9), end) for name, end in (("a", (3, 1)), ("b", (2, 2)))]
    assert Sweep(("x", "y"), tuple(runs)).best.name == "a"


# ---- what is refused ----


def test_what_is_not_trained_yet_is_told_by_folder(tmp_path):
    with pytest.raises(DataError, match=r"sweep/equal: the run is not finished.*--report-only"):
        verbs.grid(MixRecipe(recipe_in(tmp_path), train=False), draws=1, seed=0)


def test_a_folder_of_another_sweep_is_not_taken_for_this_one(swept):
    recipe, root = swept
    path = root / "sweep" / "only_1" / "mixing.json"
    content = path.read_text()
    path.write_text(json.dumps({**json.loads(content), "proportions": [0.5, 0.5]}))
    try:
        with pytest.raises(DataError, match=r"only_1: this run has other proportions"):
            verbs.skill_graph(MixRecipe(recipe, train=False))
    finally:
        path.write_text(content)


def test_too_few_mixtures_fit_no_law(swept):
    runs = tuple(StaticRun("a", Path("a"), (0.5, 0.5), (9, 9), (1, 1)) for _ in range(4))
    with pytest.raises(DataError, match="too few mixtures"):
        fit_linear_law(Sweep(("x", "y"), runs).proportions, Sweep(("x", "y"), runs).losses)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": {"name": "sft", "demonstration_column": "prompt"}}, "only the method aioli mixes groups"),
        ({"stages": [{"name": "a"}]}, "a recipe of one run is needed"),
    ],
)
def test_recipes_that_have_no_groups_to_mix_are_refused(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(message)):
        MixRecipe(recipe_in(tmp_path, **changes))


def test_a_recipe_without_validation_rows_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"validation losses.*Write data\.validation"):
        MixRecipe(recipe_in(tmp_path), ["data.validation=null"])


def test_regmix_cannot_average_more_than_it_simulates():
    result = CliRunner().invoke(app, ["mix", "regmix", "x.yaml", "--simulated", "5", "--best", "6"])
    assert result.exit_code == 2 and "--best is at most --simulated" in result.output
