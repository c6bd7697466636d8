"""RESULTS.json: what is derived from the per-seed values, and every way in which a file can disagree with itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import DataError
from posttrain.reproduce.problems import problems
from posttrain.reproduce.results import derived, read_results, recipe_hash, write_results
from tests.config.recipes import changed
from tests.reproduce.studies import CLAIMS, RECIPE, made_up_result, study_folder

VALUES = {"grpo": [0.40, 0.50, 0.60], "hpt": [0.50, 0.61, 0.72]}
ENDS = [(0.30, 0.10), (0.31, 0.10), (0.32, 0.10)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A results file that agrees with everything."""
    claims = study_folder(tmp_path)
    return write_results(claims.with_name("RESULTS.json"), "hpt", made_up_result(claims, VALUES, ENDS))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> list[str]:
    """The problems after a change of the study by hand."""
    whole = json.loads(path.read_text())
    change(whole["studies"]["main"])
    path.write_text(json.dumps(whole))
    return problems(path)


def test_numbers_follow_from_the_seeds(file):
    study = read_results(file).studies["main"]
    spread = study.variants[1].spread
    assert spread.mean == pytest.approx(0.61) and (spread.min, spread.max) == (0.50, 0.72)
    assert spread.stderr == pytest.approx(0.11 / 3**0.5)  # values 0.11 apart
    decision = study.claims[0].decision
    assert decision.held is True and decision.decided_by.effect == pytest.approx(0.11)
    assert study.claims[1].decision.decided_by.effect == pytest.approx(-0.21)
    assert derived(study) == study and problems(file) == []


def test_other_studies_of_the_file_stay(file):
    claims = file.with_name("claims_small.yaml")
    claims.write_text(file.with_name("claims.yaml").read_text())
    before = read_results(file).studies["main"]
    other = made_up_result(claims, VALUES, ENDS).model_copy(update={"study": "small"})
    write_results(file, "hpt", other)
    assert read_results(file).studies == {"main": before, "small": other}
    assert problems(file) == []


def first_claim(study: dict[str, Any]) -> dict[str, Any]:
    return study["claims"][0]["decision"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: s["variants"][0]["spread"].update(mean=0.55), "variants.0.spread.mean says 0.55, its per-seed"),
        (lambda s: s["variants"][0]["seeds"][1]["values"].update(accuracy=0.2), "variants.0.spread.mean says 0.5"),
        (lambda s: s["variants"][0].update(steps=7), "variants.0.steps says 7, its per-seed values give 2"),
        (lambda s: first_claim(s).update(held=False), "held says False, its per-seed values give True"),
        (lambda s: first_claim(s).update(held="undecided"), "claims.0.decision.held says 'undecided'"),
        (lambda s: first_claim(s).update(sentence="Held by far."), "claims.0.decision.sentence says 'Held by far.'"),
        (lambda s: first_claim(s)["decided_by"].update(effect=0.5), "claims.0.decision.decided_by.effect says 0.5"),
        (lambda s: first_claim(s)["comparisons"][0].update(low=0.1), "claims.0.decision.comparisons.0.low says 0.1"),
        (lambda s: first_claim(s)["comparisons"][0].update(p_value=None), "p_value says None"),
        (lambda s: s["claims"][0]["definition"].update(margin=-1.0), "claims is not that of claims.yaml"),
        (lambda s: s["claims"].pop(), "claims is not that of claims.yaml"),
        (lambda s: s["variants"][1].update(label="the best"), "variants is not that of claims.yaml"),
        (lambda s: s.update(paper_claim="Something else."), "paper_claim is not that of claims.yaml"),
        (lambda s: s.update(recipe="other.yaml"), "recipe is not that of claims.yaml"),
        (lambda s: s.update(study="small"), "study main: it calls itself 'small'"),
        (lambda s: s["minutes"].update(limit=900), "minutes.limit is not that of claims.yaml"),
        (lambda s: s["variants"][0].update(unequal="It is."), "unequal is not that of claims.yaml"),
        (lambda s: s["variants"][0].update(trainer="hpt"), "variants.grpo.trainer is not that of reproduce.yaml"),
        (lambda s: s["variants"][0]["stages"][0].update(name="x"), "variants.grpo.stages is not that of"),
        (lambda s: s["preparation"].clear(), "preparation is not that of reproduce.yaml"),
        (lambda s: s.update(seeds=[0, 1]), "seeds is not that of claims.yaml"),
        (lambda s: s["variants"][1]["seeds"].pop(), "variant hpt lacks seeds"),
        (lambda s: s["variants"][1]["seeds"][0].update(failed=1), "variant hpt: the verifier failed on completions"),
        (lambda s: s.update(changed=["trainer.max_steps=9"]), "it was run with changes: trainer.max_steps=9"),
        (lambda s: s["minutes"].pop("wall"), "studies.main.minutes.wall: field required"),
        (lambda s: s.update(extra=1), "studies.main.extra: extra inputs are not permitted"),
        (lambda s: first_claim(s).update(held="probably"), "decision.held"),
    ],
)  # fmt: skip
def test_a_file_edited_by_hand_is_found_out(file, change, expected):
    assert any(expected in line for line in edit(file, change)), edit(file, lambda study: None)


def test_last_digits_may_differ(file):
    """Another version of scipy may round its t distribution otherwise."""

    def nudge(study: dict[str, Any]) -> None:
        row = first_claim(study)["comparisons"][0]
        row["low"] *= 1 + 1e-9

    assert edit(file, nudge) == []


def test_a_recipe_changed_afterwards_is_found_out(file, tmp_path):
    before = recipe_hash(file.with_name("reproduce.yaml"))
    recipe = file.with_name("reproduce.yaml")
    recipe.write_text("# a comment changes nothing\n" + recipe.read_text())
    assert recipe_hash(recipe) == before and problems(file) == []
    study_folder(tmp_path, recipe=changed(RECIPE, {"trainer.max_steps": 3}))
    assert problems(file) == ["study main: reproduce.yaml was changed after the study was run"]


def test_a_claim_changed_afterwards_is_found_out(file, tmp_path):
    study_folder(tmp_path, claims=changed(CLAIMS, {"claims.0.statement": "HPT solves much more."}))
    assert problems(file) == ["study main: claims is not that of claims.yaml"]
    file.with_name("claims.yaml").unlink()
    assert problems(file) == ["study main: there is no claims.yaml"]


def test_a_file_that_is_no_results_file_is_refused(tmp_path):
    path = tmp_path / "RESULTS.json"
    assert read_results(path) is None
    path.write_text('{"schema_version": 2, "key": "hpt", "studies": {}}')
    with pytest.raises(DataError, match=r"RESULTS.json: schema_version: input should be 1. Run `posttrain reproduce`"):
        read_results(path)
    path.write_text("not json")
    with pytest.raises(DataError, match="invalid json"):
        read_results(path)
