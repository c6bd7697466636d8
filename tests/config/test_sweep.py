"""Every field of every registered method: a misspelt name, each wrong type, a value out of range gives one ConfigError
that names the field; nothing of it passes, nothing else is raised."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

import pytest

from posttrain import registry
from posttrain.config.loader import parse
from posttrain.errors import ConfigError, PosttrainError
from posttrain.seam.arguments import FieldSpec, field_specs
from tests.config.recipes import BASES, changed

# One value of each kind that YAML can write.
SAMPLES: dict[str, Any] = {
    "null": None,
    "bool": True,
    "int": 3,
    "float": 2.5,
    "text": "certainly not a value",
    "list": [{"a": 1}],
    "mapping": {1.5: "x"},
}
KINDS = {bool: {"bool"}, int: {"int"}, float: {"int", "float"}, str: {"text"}, type(None): {"null"}}
# Whole-number or not, any value means something: a list of weights is checked entry by entry elsewhere.
WITHOUT_RANGE = {"reward_weights", "local_rank", "is_truncation"}


@cache
def specs_of(key: str) -> dict[str, FieldSpec]:
    return field_specs(registry.METHODS[key].load_config())


def written(key: str) -> list[FieldSpec]:
    """Fields of a method that a recipe may write itself."""
    return [spec for spec in specs_of(key).values() if not spec.set_by]


def kinds_of(annotation: Any) -> set[str]:
    """Kinds of YAML value that an annotation takes; written apart from the code under test."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return set().union(*(kinds_of(arg) for arg in get_args(annotation)))
    if origin is Literal:
        return set().union(*(KINDS[type(value)] for value in get_args(annotation)))
    if origin in (list, tuple) or annotation in (list, tuple):
        return {"list"}
    if origin is dict or annotation is dict:
        return {"mapping"}
    return KINDS.get(annotation, set())


def recipe(key: str, path: str, value: Any) -> dict[str, Any]:
    values = changed(BASES[key], {})
    block, name = path.split(".")
    values.setdefault(block, {})[name] = value
    return values


def refusal(key: str, path: str, value: Any) -> PosttrainError:
    with pytest.raises(ConfigError) as caught:
        parse(recipe(key, path, value))
    return caught.value


@pytest.mark.parametrize("key", registry.trained())
def test_a_wrong_type_is_refused_by_the_name_of_the_field(key: str):
    for spec in written(key):
        allowed = kinds_of(spec.annotation) - ({"null"} if None in spec.never else set())
        assert allowed, f"the test does not know the annotation {spec.annotation} of {spec.name}"
        for kind, value in SAMPLES.items():
            if kind not in allowed:
                assert f"{spec.block}.{spec.name}" in str(refusal(key, f"{spec.block}.{spec.name}", value)), kind


@pytest.mark.parametrize("key", registry.trained())
def test_a_misspelt_name_is_refused_with_the_name_as_written(key: str):
    for spec in written(key):
        for wrong in (f"{spec.name}x", spec.name.replace(spec.name[1], "", 1) + "q"):
            assert wrong not in specs_of(key)
            error = str(refusal(key, f"{spec.block}.{wrong}", spec.default))
            assert wrong in error and "unknown key" in error


def outside(spec: FieldSpec) -> Iterator[Any]:
    """Values just beyond each limit, and a name that is no choice."""
    as_list = not {"int", "float"} & kinds_of(spec.annotation)
    integer = "float" not in kinds_of(spec.annotation) and not as_list
    step = 1 if integer else 1e-3
    beyond = []
    beyond += [spec.ge - step] if spec.ge is not None else []
    beyond += [spec.gt] if spec.gt is not None else []
    beyond += [spec.le + step] if spec.le is not None else []
    beyond += [spec.lt] if spec.lt is not None else []
    beyond += [value for value in spec.never if value is not None]
    yield from ([value] if as_list else int(value) if integer else value for value in beyond)
    if spec.choices is not None and "text" in kinds_of(spec.annotation):
        yield "no_such_name"
    if not integer and not as_list and beyond:
        yield from (float("nan"), float("inf"))


@pytest.mark.parametrize("key", registry.trained())
def test_a_value_out_of_range_is_refused_by_the_name_of_the_field(key: str):
    for spec in written(key):
        for value in outside(spec):
            assert f"{spec.block}.{spec.name}" in str(refusal(key, f"{spec.block}.{spec.name}", value)), value


@pytest.mark.parametrize("key", registry.trained())
def test_every_number_has_a_range(key: str):
    for name, spec in specs_of(key).items():
        if {"int", "float"} & kinds_of(spec.annotation) and name not in WITHOUT_RANGE:
            assert list(outside(spec)), f"{name}: give it a range in seam/upstream_fields.py or option(...)"


@pytest.mark.parametrize("key", registry.trained())
def test_what_another_key_decides_is_refused_with_that_key(key: str):
    for spec in specs_of(key).values():
        if spec.set_by and not (spec.block == "rollout" and key == "sft"):
            error = str(refusal(key, f"{spec.block}.{spec.name}", spec.default))
            assert spec.name in error and spec.set_by.replace("nothing", "not a setting of a recipe") in error


@pytest.mark.parametrize("key", registry.trained())
def test_every_default_is_accepted_when_written(key: str):
    values = changed(BASES[key], {})
    for name, spec in specs_of(key).items():
        skip = name in ("num_train_epochs", "max_steps", "output_dir") or name.startswith(("vllm_", "engine_"))
        if not spec.set_by and not skip and name not in values[spec.block]:
            values[spec.block][name] = spec.default
    cfg = parse(values)
    assert cfg.trainer.fields["adam_beta2"] == specs_of(key)["adam_beta2"].default


@pytest.mark.parametrize("key", registry.trained())
def test_the_config_class_itself_refuses_a_wrong_type(key: str):
    for spec in specs_of(key).values():
        allowed = kinds_of(spec.annotation)
        for kind, value in SAMPLES.items():
            if kind not in allowed and allowed and value is not None:
                with pytest.raises(ConfigError, match=spec.name):
                    registry.METHODS[key].load_config()(**{"output_dir": "x", spec.name: value})


def test_the_oracle_knows_the_kinds():
    assert kinds_of(float | None) == {"int", "float", "null"}
    assert kinds_of(Literal["a", 2] | list[str]) == {"text", "int", "list"}
    assert kinds_of(typing.Optional[dict[str, int]]) == {"mapping", "null"}  # noqa: UP045
