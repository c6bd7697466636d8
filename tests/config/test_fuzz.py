"""Whatever stands in a recipe, loading it ends with a `RunConfig` or a `PosttrainError` that says where."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest

from posttrain.config.loader import build_args, parse, resolve_stages
from posttrain.errors import PosttrainError
from tests.config.recipes import BASES
from tests.config.test_stages import PLAN

JUNK: list[Any] = [
    None,
    True,
    0,
    -1,
    3,
    2.5,
    "",
    "text",
    "hpt",
    [],
    [None],
    ["a", 1],
    {},
    {"name": "sft"},
    {"a": {"b": 1}},
]
JUNK += [10**30, float("nan"), float("inf"), "x" * 5000, [[[[]]]], {"": None}, "file.py:f", "../..", "\x00", "é\n"]


def places(values: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Path of every value in a nested recipe."""
    children = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [above] * bool(above) + [path for key, value in children for path in places(value, (*above, key))]


def spoilt(values: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """A copy with one to three values replaced, taken out, or put under a key of another place."""
    values = copy.deepcopy(values)
    for _ in range(chance.randint(1, 3)):
        *above, last = chance.choice(places(values))
        target: Any = values
        for key in above:
            target = target[key]
        action = chance.random()
        if action < 0.7:
            target[last] = copy.deepcopy(chance.choice(JUNK))
        elif action < 0.85:
            del target[last]
        elif isinstance(target, dict):
            target[str(chance.choice(places(values))[-1])] = target.pop(last)
        if not values:
            break
    return values


@pytest.mark.parametrize("name", [*BASES, "plan"])
def test_a_spoilt_recipe_never_raises_anything_else(name: str, tmp_path):
    base = PLAN if name == "plan" else BASES[name]
    chance, refused = random.Random(name), 0
    for _ in range(400):
        values = spoilt(base, chance)
        try:
            for _, _, run in resolve_stages(parse(values)):
                build_args(run, output_dir=tmp_path)
        except PosttrainError as error:
            refused += 1
            assert all(str(one).startswith("recipe") for one in getattr(error, "errors", [error])), str(error)
    assert refused > 200
