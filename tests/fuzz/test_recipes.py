"""Recipes spoilt by rule: loading each of them, and checking a part of them whole, ends with a line for the user."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.loader import load
from posttrain.preflight.check import check
from tests.config.recipes import BASES, write
from tests.config.test_fuzz import places
from tests.config.test_stages import PLAN
from tests.fuzz.harness import survive, told

RECIPES = {**BASES, "plan": PLAN}
WORDS = [
    "",
    " ",
    "x",
    "null",
    "~nobody9/x",
    "/dev/zero",
    "a" * 300,
    "/" + "b/" * 3000,
    "\x00",
    "x\x00y",
    "²",
    "½",
    "é\n",
]
WORDS += [
    "../..",
    "file.py:f",
    "{}",
    "%s",
    "${env:HOME}",
    "\u202e",
    "1e999",
    "0x10",
    "-",
    "1_000",
    "on",
    "sft",
    "auto",
]


def value(chance: random.Random, depth: int = 0) -> Any:
    """Some value: of any type, size and nesting."""
    kind = chance.randrange(9 if depth < 3 else 6)
    if kind == 0:
        return chance.choice([1, -1]) * chance.choice([0, 1, 2, 7]) * 10 ** chance.randrange(40)
    if kind == 1:
        return chance.choice([float("nan"), float("inf"), -0.0, 10.0 ** chance.randrange(-320, 308), chance.random()])
    if kind in (2, 3):
        return chance.choice(WORDS)
    if kind in (4, 5):
        return chance.choice([None, True, False, [], {}])
    if kind == 6:
        return [value(chance, depth + 1) for _ in range(chance.randrange(4))]
    return {
        chance.choice([*WORDS, "name", "path", "size"]): value(chance, depth + 1) for _ in range(chance.randrange(4))
    }


def mutated(base: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """A copy with one or two places changed: replaced, removed, moved, or given a key of an odd name."""
    values = copy.deepcopy(base)
    for _ in range(chance.randint(1, 2)):
        known = places(values)
        if not known:
            break
        *above, last = chance.choice(known)
        target: Any = values
        for key in above:
            target = target[key]
        action = chance.random()
        if action < 0.7:
            target[last] = value(chance)
        elif action < 0.8:
            del target[last]
        elif isinstance(target, dict):
            target[chance.choice([*WORDS, str(chance.choice(known)[-1])])] = value(chance)
    return values


def spoilt_text(base: dict[str, Any], folder: Path, chance: random.Random) -> bytes:
    """The bytes of a recipe with some of them cut out, doubled, or replaced, or in another encoding."""
    raw = write(folder, base, "whole.yaml").read_bytes()
    place, size = chance.randrange(len(raw)), chance.randrange(1, 40)
    junk = bytes(chance.randrange(256) for _ in range(size))
    digits = b"9" * chance.choice([20, 400, 5000])
    ways = [raw[:place], raw[:place] + junk + raw[place:], raw[:place] + raw[place + size :], raw + raw[:place]]
    ways += [raw.decode().encode("utf-16"), b"\xef\xbb\xbf" + raw, raw[:place] + digits + raw[place:]]
    ways += [raw + b"\n" + b"".join(b"%d: 1\n" % n for n in range(chance.choice([10, 3000, 30000])))]
    ways += [raw[:place] + chance.choice([b"{", b"[" * 3000, b"&a ", b"*a ", b"!!x ", b"\t", b"? "]) + raw[place:]]
    return chance.choice(ways)


def tried(count: int, *, whole: int, seed: str, folder: Path) -> list[Any]:
    """Outcomes of `count` recipes; every `whole`-th is checked with its data and model, the others are loaded."""

    def attempt(name: str) -> Any:
        number, chance = int(name), random.Random(f"{seed} {name}")
        base = RECIPES[chance.choice(list(RECIPES))]
        path = folder / "recipe.yaml"
        if chance.random() < 0.15:
            path.write_bytes(spoilt_text(base, folder, chance))
        else:
            write(folder, mutated(base, chance))
        config = load(path)
        return check(config).errors if number % whole == 0 else []

    return survive([str(number) for number in range(count)], attempt)


def test_a_hundred_spoilt_recipes(tmp_path: Path):
    outcomes = tried(100, whole=20, seed="short", folder=tmp_path)
    assert not any(one.is_fault for one in outcomes), told(outcomes)
    assert sum(one.kind == "refused" for one in outcomes) > 50


@pytest.mark.slow
def test_spoilt_recipes(tmp_path: Path):
    outcomes = tried(2200, whole=12, seed="recipes", folder=tmp_path)
    print(told(outcomes))
    assert not any(one.is_fault for one in outcomes), told(outcomes)
    assert sum(one.kind == "refused" for one in outcomes) > 1000
