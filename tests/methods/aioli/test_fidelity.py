"""`posttrain mix fidelity`: the matrix of branches, compared with the one that the run measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from posttrain.errors import ConfigError, DataError
from posttrain.methods.aioli.fidelity import fidelity
from posttrain.methods.aioli.laws import normalize_matrix, similarity, solve_mixing_matrix
from posttrain.methods.aioli.sweep import MixRecipe
from posttrain.run import run
from tests.methods.aioli.test_verbs import GROUPS, recipe_in

ROUNDS = {
    "method.controller": "aioli",
    "method.learn_sweeps": 1,
    "method.learn_steps": 1,
    "method.mixing_rounds_every": 5,
    "method.one_hot_factor": 0.75,
    "trainer.max_steps": 10,
    "trainer.save_strategy": "steps",
    "trainer.save_steps": 5,
    "trainer.logging_steps": 1,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("fidelity")
    recipe = recipe_in(folder, **ROUNDS)
    run(recipe)
    return recipe, folder / "mix"


@pytest.mark.parametrize(("number", "first"), [(None, 5), (0, 0)])
def test_similarity_is_that_of_the_run_to_its_branches(trained, number, first):
    recipe, root = trained
    found = fidelity(MixRecipe(recipe), number=number, repeats=2)
    told = json.loads((root / "fidelity.json").read_text())
    assert told["round"] == first // 5 and told["steps"] == 5
    updates = [e for e in json.loads((root / "mixing.json").read_text())["records"] if e["event"] == "update"]
    assert told["measured"] == updates[told["round"]]["matrix"]

    drops, shares = np.zeros((2, 2)), np.zeros((2, 2))
    for group in range(2):
        for repeat in range(2):
            branch = root / "fidelity" / f"round_{told['round']}_steps_5" / f"group_{group}_{repeat}"
            losses = [e["losses"] for e in json.loads((branch / "mixing.json").read_text())["records"]]
            drops[:, group] += (np.array(losses[0]) - np.array(losses[-1])) / 2
            events = [json.loads(line) for line in (branch / "metrics.jsonl").read_text().splitlines()]
            rows = [[e[f"mixture/{name}_rows"] for name in GROUPS] for e in events if "mixture/easy_rows" in e][-1]
            assert rows[group] == 30 and sum(rows) == 40, "three quarters of 5 steps of 8 rows"
            shares[group] += np.array(rows) / 80
            model = json.loads((branch / "run.json").read_text())["config"]["model"]
            assert model.get("path") == (f"{root}/checkpoint-5" if first else None)
    reference = normalize_matrix(solve_mixing_matrix(shares, drops))
    assert told["reference"] == pytest.approx(reference)
    assert told["similarity"] == pytest.approx(similarity(np.array(told["measured"]), reference))
    assert f"Similarity {told['similarity']:.4f}" in found.page.read_text()


def test_branches_begin_where_the_round_began(trained):
    """Their first losses are those that the run measured at the end of the round before."""
    recipe, root = trained
    fidelity(MixRecipe(recipe), repeats=1)
    records = json.loads((root / "mixing.json").read_text())["records"]
    at_five = next(e["losses"] for e in records if e["step"] == 5 and "losses" in e)
    branch = json.loads((root / "fidelity" / "round_1_steps_5" / "group_0_0" / "mixing.json").read_text())
    assert branch["records"][0]["losses"] == pytest.approx(at_five, rel=1e-5)


def test_the_learning_rate_of_a_branch_is_the_mean_of_the_round(trained):
    recipe, root = trained
    events = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    rates = [e["learning_rate"] for e in events if "learning_rate" in e and 5 < e["step"] <= 10]
    assert len(rates) == 5
    branch = json.loads((root / "fidelity" / "round_1_steps_5" / "group_0_0" / "run.json").read_text())["config"]
    assert branch["trainer"]["learning_rate"] == pytest.approx(np.mean(rates))
    assert branch["trainer"]["lr_scheduler_type"] == "constant"


# ---- what is refused ----


def test_what_cannot_be_compared_is_refused(trained, tmp_path):
    recipe, _ = trained
    with pytest.raises(
        ConfigError, match=re.escape("--round: the run has no matrix of this round (got 2; allowed: 0 to 1)")
    ):
        fidelity(MixRecipe(recipe), number=2)
    with pytest.raises(ConfigError, match="only the controller aioli measures a matrix"):
        fidelity(MixRecipe(recipe, ["method.controller=stratified"]))
    with pytest.raises(ConfigError, match="a branch would start without the run's adapter"):
        fidelity(MixRecipe(recipe, ["model.lora={}"]))
    with pytest.raises(DataError, match="the run that is to be judged is not there"):
        fidelity(MixRecipe(recipe_in(tmp_path, **ROUNDS)))


def test_a_round_without_a_checkpoint_is_refused(trained):
    recipe, root = trained
    folder = root / "checkpoint-5"
    folder.rename(root / "elsewhere")
    try:
        with pytest.raises(ConfigError, match=r"no checkpoint of the step.*trainer\.save_steps"):
            fidelity(MixRecipe(recipe), number=1)
    finally:
        (root / "elsewhere").rename(folder)
