"""Reading recipes: lines, variables, overrides, and YAML that is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.config.source import SourceMap, read_recipe
from posttrain.errors import ConfigError

TEXT = """\
method: {name: grpo}
trainer:
  learning_rate: 1e-6
  seed: 010
stages:
  - name: a
    trainer: {max_steps: 3}
"""


def read(tmp_path: Path, text: str, *overrides: str):
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return read_recipe(path, overrides)


def test_numbers_are_read_as_yaml_1_2(tmp_path: Path):
    values, _ = read(tmp_path, "a: 1e-6\nb: 010\nc: yes\nd: 0x10\ne: 2024-05-01\nf: '1e-6'\ng: ~\nh: 1e3\n")
    assert values == {"a": 1e-6, "b": 10, "c": "yes", "d": 16, "e": "2024-05-01", "f": "1e-6", "g": None, "h": 1000.0}


def test_every_value_knows_its_line(tmp_path: Path):
    _, source = read(tmp_path, TEXT)
    assert source.where(("trainer", "learning_rate")).endswith("r.yaml:3 trainer.learning_rate")
    assert source.where(("stages", 0, "trainer", "max_steps")).endswith("r.yaml:7 stages.0.trainer.max_steps")
    assert source.where(("trainer", "beta")).endswith("r.yaml:2 trainer.beta"), "a key not written: its block's line"
    assert source.where(("hub",)).endswith("r.yaml hub")


def test_overrides_reach_into_lists_and_new_blocks_and_are_named(tmp_path: Path):
    values, source = read(
        tmp_path,
        TEXT,
        "trainer.learning_rate=2e-6",
        "stages.0.trainer.max_steps=[1, {a: b}]",
        "hub.push=true",
        "eval=",
    )
    assert values["trainer"]["learning_rate"] == 2e-6
    assert values["stages"][0]["trainer"]["max_steps"] == [1, {"a": "b"}]
    assert values["hub"] == {"push": True} and values["eval"] is None
    assert source.where(("trainer", "learning_rate")) == "override trainer.learning_rate=2e-6"
    assert source.where(("hub", "push", "x")) == "override hub.push=true hub.push.x"


def test_a_variable_is_filled_in_as_if_it_had_been_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STEPS", "12")
    text = 'a: ${env:STEPS}\nb: "${env:STEPS}"\nc: runs/${env:STEPS}/x\n'
    values, _ = read(tmp_path, text, "d=${env:STEPS}")
    assert values == {"a": 12, "b": "12", "c": "runs/12/x", "d": 12}


def test_a_variable_cannot_bring_structure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EVIL", "{a: 1}\nb: 2")
    values, _ = read(tmp_path, "a: ${env:EVIL}\n")
    assert values == {"a": "{a: 1}\nb: 2"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the recipe is empty"),
        ("# only a comment\n", "the recipe is empty"),
        ("- a\n", "a recipe is a mapping of blocks"),
        ("a: 1\nb: 2\na: 3\n", "r.yaml:3 a: this key is written twice (first in line 1)"),
        ("a: {b: 1, b: 2}\n", "r.yaml:1 a.b: this key is written twice"),
        ("a: [1, 2\nb: 3\n", "not valid YAML"),
        ("\ta: 1\n", "r.yaml:1: not valid YAML"),
        ("a: 1\n---\nb: 2\n", "another document"),
        ("a: &x 1\nb: *x\n", "r.yaml:2 b: aliases are not used"),
        ("a: {<<: {b: 1}}\n", "a key is a plain word"),
        ("? [a]\n: 1\n", "a key is a plain word"),
        ("a: !!python/object:os.system {}\n", "YAML tags are not used"),
        ("a: !include x.yaml\n", "YAML tags are not used"),
        ("a: !!binary aGk=\n", "YAML tags are not used"),
        ("a: " + "[" * 60 + "]" * 60, "nested too deeply"),
        ("a: " + "[" * 1000 + "]" * 1000, "nested too deeply"),
        ("a: \x00", "not valid YAML"),
        ("a: ${env:NOT_SET_ANYWHERE}\n", "r.yaml:1 a: the environment variable NOT_SET_ANYWHERE is not set"),
        ("a: ${env:}\n", "not the name of an environment variable"),
        ("a: ${env:A B}\n", "not the name of an environment variable"),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, text: str, words: str):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("max_steps", "allowed: block.key=value"),
        ("=3", "allowed: block.key=value"),
        ("a..b=3", "allowed: block.key=value"),
        ("trainer.seed.x=3", "trainer.seed holds a single value"),
        ("stages.1.name=b", "stages is a list; no entry 1 (allowed: 0 to 0)"),
        ("stages.first.name=b", "no entry first"),
        ("trainer.seed=[1", "not valid YAML"),
        ("trainer.seed=!!python/object:os.system 1", "YAML tags are not used"),
    ],
)
def test_an_override_that_is_refused_is_repeated(tmp_path: Path, override: str, words: str):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, TEXT, override)
    assert words in str(caught.value) and f"override {override}" in str(caught.value)


def test_files_that_are_no_recipes(tmp_path: Path):
    (tmp_path / "grpo.yaml").write_text("a: 1")
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff\xfe")
    for name, words in (
        ("gpro.yaml", "no such recipe. Perhaps you mean"),
        ("", "a folder, not a recipe"),
        ("bytes.yaml", "not a UTF-8 text file"),
    ):
        with pytest.raises(ConfigError) as caught:
            read_recipe(tmp_path / name)
        assert words in str(caught.value)


def test_the_map_of_a_stage_points_to_the_stages_lines(tmp_path: Path):
    _, source = read(tmp_path, TEXT)
    stage = source.stage(0, {"trainer"})
    assert stage.where(("trainer", "max_steps")).endswith("r.yaml:7 stages.0.trainer.max_steps")
    assert stage.where(("method", "name")).endswith("r.yaml:1 method.name")
    assert ("trainer", "learning_rate") not in stage.lines
    assert isinstance(stage, SourceMap)
