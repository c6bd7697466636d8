"""`posttrain study composition`: trains, reuses, reports; and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from posttrain.errors import ConfigError, DataError
from posttrain.methods.dmt.study import parse_fractions, parse_models, study_composition
from tests.config.recipes import SFT, changed, write

OPERATIONS = {"sort": "specialized", "reverse": "general"}
SOURCES = [
    {"name": name, "role": role, "task": "string_rewriting", "size": 16, "seed": 1, "options": {"operations": name}}
    for name, role in OPERATIONS.items()
]
EVAL = {"task": "string_rewriting", "size": 4, "seed": 2, "options": {"operations": list(OPERATIONS), "split": "eval"}}


def base(folder: Path, **changes) -> Path:
    trainer = {"max_steps": 1, "per_device_train_batch_size": 8, "save_strategy": "no", "use_cpu": True}
    values = changed(SFT, {"data.train": {"mixture": SOURCES}, "data.eval": EVAL, "trainer": trainer, **changes})
    values["trainer"] |= {"learning_rate": 1e-3, "output_dir": str(folder / "study")}
    values["eval"] |= {"max_new_tokens": 4, "at_start": False}
    return write(folder, values)


def test_a_study_reports_every_point_and_trains_nothing_twice(tmp_path: Path):
    recipe, asked = base(tmp_path), {"amounts": [1.0], "replays": [0.0], "questions": ["mixed", "strategy"]}
    studies, page = study_composition(recipe, **asked)
    root = tmp_path / "study"
    stamps = {path: path.read_bytes() for path in root.glob("model/*/finished.json")}
    assert {path.parent.name for path in stamps} == {
        "multitask",
        "sequential-1-sort",
        "sequential",
        "specialized",
        "mixed_sequential",
    }
    found = json.loads((root / "composition.json").read_text())["models"][0]
    assert [point["stage"] for point in found["points"]] == [
        "multitask",
        "multitask",
        "sequential",
        "mixed_sequential",
    ]
    assert [point["rows_of_the_last_stage"] for point in found["points"]] == [32, 32, 16, 16]
    assert found["pareto_k"] == [0.0] and set(found["points"][0]["scores"]) == set(OPERATIONS)
    text = page.read_text()
    assert "| training | model | question | rows | sort | reverse |" in text and "k that no other beats" in text
    assert (root / "composition.png").read_bytes().startswith(b"\x89PNG")

    more = {**asked, "replays": [0.0, 0.25]}
    studies, _ = study_composition(recipe, **more)
    assert all(path.read_bytes() == stamp for path, stamp in stamps.items())
    assert [point.stage for point in studies[0].grid.points][-1] == "dmt-0.25"
    with pytest.raises(DataError, match="the stage has no evaluation"):
        study_composition(recipe, **{**asked, "replays": [0.5]}, train=False)


def test_models_and_fractions_are_read_as_they_are_meant():
    assert parse_fractions("1, 1/4,0.0625", option="--amounts") == [1.0, 0.25, 0.0625]
    assert parse_models(["small: model.tiny.hidden_size=32 a.b=1", "large: a.b=2"]) == {
        "small": ["model.tiny.hidden_size=32", "a.b=1"],
        "large": ["a.b=2"],
    }
    assert parse_models([]) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: parse_fractions("1,x", option="--amounts"), "--amounts: not a list of numbers (got 'x'"),
        (lambda: parse_models(["small"]), "--model: not a model (got 'small'"),
        (lambda: parse_models(["a: b=1", "a: b=2"]), "--model: two models have this name (got 'a'). Rename one"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        call()


def test_an_evaluation_that_does_not_tell_an_ability_is_refused(tmp_path: Path):
    other = {**EVAL, "options": {"operations": ["sort"], "split": "eval"}}
    asked = {"amounts": [1.0], "replays": [0.0], "questions": ["mixed"]}
    with pytest.raises(
        DataError, match=r"no score of the source's name \(got 'reverse'; allowed: groups and tasks: sort"
    ):
        study_composition(base(tmp_path, **{"data.eval": other}), **asked)
