"""Rows of a reasoning-gym task, with the entry its scorer needs.

The package numbers its rows from the seed on, so that its rows of seed 1 and seed 2 are the same but for one; here
every row has a seed of its own, and train and eval halves cannot share a question. The package has no worked
solutions: the demonstration is the answer alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from posttrain.data.tasks.rows import SPLITS, in_split
from posttrain.errors import ConfigError, DataError, SupportError, nearest
from posttrain.rewards.reasoning_gym import import_package, refuse_evaluating

_MAX_DRAWS = 200


def generate(
    name: str, size: int, *, seed: int, split: str = "train", options: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Rows of one reasoning-gym task.

    Args:
        name: of the task, such as "chain_sum".
        size: number of rows.
        seed: of the data set; row i depends only on the task, the seed, i and the options.
        split: "train", "eval" (disjoint from train for every seed) or "all".
        options: fields of the task's own configuration.

    Returns:
        Rows with prompt, answer, solution ("Answer: ..."; empty where the package knows no answer), group (the task),
        task and entry, all strings. A few tasks take up to a second a row.

    Raises:
        ConfigError: for an unknown task or split, or options the task refuses.
        DataError: if a row has no question in the split.
        SupportError: without the package, or for a task whose scorer evaluates answers or cannot be stored as text.
    """
    package = import_package()
    _check(package, name, split)
    given = dict(options or {})
    rows = []
    for index in range(size):
        original = _draw(package, name, given, f"{name}/{seed}/{index}", split)
        answer = original["answer"]
        answer = "" if answer is None else str(answer)
        entry = {"dataset": name, "options": given, "entry": original}
        rows.append(
            {
                "prompt": original["question"],
                "answer": answer,
                "solution": f"Answer: {answer}" if answer else "",
                "group": name,
                "task": f"reasoning_gym/{name}",
                "entry": _stored(name, entry),
            }
        )
    if rows:
        _check_stored(package, name, given, rows[0])
    return rows


def _check(package: Any, name: str, split: str) -> None:
    if name not in package.factory.DATASETS:
        fix = nearest(name, package.factory.DATASETS) or "reasoning_gym.factory.DATASETS lists them"
        raise ConfigError("unknown task", where="reasoning_gym", got=name, fix=fix)
    if split not in SPLITS:
        allowed = f"one of: {', '.join(SPLITS)}"
        raise ConfigError("unknown split", where="reasoning_gym.options.split", got=split, allowed=allowed)
    refuse_evaluating(name)


def _draw(package: Any, name: str, options: dict[str, Any], row: str, split: str) -> dict[str, Any]:
    """First entry of the row's own series of seeds whose question belongs to the split."""
    for attempt in range(_MAX_DRAWS):
        seed = int.from_bytes(hashlib.sha256(f"{row}/{attempt}".encode()).digest()[:4]) >> 1
        try:
            entry = package.create_dataset(name, size=1, seed=seed, **options)[0]
        except (TypeError, AssertionError, ValueError) as error:
            raise ConfigError(
                f"the task refuses its options: {error}", where="reasoning_gym.options", got=options
            ) from error
        if in_split(entry["question"], split):
            return entry
    raise DataError(f"no question of the {split} split was found", where=f"reasoning_gym task {name!r}, row {row}")


def _stored(name: str, entry: dict[str, Any]) -> str:
    try:
        return json.dumps(entry)
    except TypeError as error:
        raise SupportError(
            f"its rows cannot be stored as text: {error}", where=f"reasoning_gym task {name!r}"
        ) from error


def _check_stored(package: Any, name: str, options: dict[str, Any], row: dict[str, Any]) -> None:
    """Two tasks compare nested tuples, which come back from storage as lists; found by scoring the known answer."""
    if not row["answer"]:
        return
    scorer = package.create_dataset(name, size=1, seed=0, **options)
    entry = json.loads(row["entry"])["entry"]
    if scorer.score_answer(row["answer"], entry) < 1.0:
        raise SupportError(
            "its scorer refuses the task's own answer once the row was stored as text",
            where=f"reasoning_gym task {name!r}",
            fix="Choose another task",
        )
