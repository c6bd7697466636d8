"""Rewards, one a file, and how a recipe's reward name becomes a function.

Every reward is called as `reward(prompts, completions, *, answer=..., entry=..., task=..., **kwargs)` with the data
set's columns as keywords, and returns one float or None (does not apply to this row) for each completion. A reward
that cannot do its work raises; `scorer.RewardScorer` turns that, a hang and a crash into failed rows.
"""

from __future__ import annotations

import hashlib
import math as numbers
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from posttrain.errors import ConfigError, RewardError, nearest

REWARDS: dict[str, str] = {
    "exact": "posttrain.rewards.exact:exact",
    "format": "posttrain.rewards.format:format",
    "math": "posttrain.rewards.math:math",
    "next_token": "posttrain.rewards.next_token:next_token",
    "one_of": "posttrain.rewards.one_of:one_of",
    "reasoning_gym": "posttrain.rewards.reasoning_gym:reasoning_gym",
}

Reward = Callable[..., list[float | None]]


def load_reward(name: str, base_dir: str | Path = ".") -> Reward:
    """Reward function of a name: a packaged one, or a user's own as "file.py:function".

    Args:
        name: a key of `REWARDS`, or a Python file and a function in it; the file is executed.
        base_dir: folder that a relative file path starts from.

    Returns:
        The function; its `__name__` is the reward's name in metrics.

    Raises:
        ConfigError: for an unknown name, a missing file or function, or a name that is not a function.
        RewardError: if the user's file cannot be executed.
    """
    place, function = locate_reward(name, base_dir)
    return getattr(import_module(place), function) if isinstance(place, str) else _from_file(place, function)


def locate_reward(name: str, base_dir: str | Path = ".") -> tuple[str | Path, str]:
    """Where a reward stands, without running anything: (module name or file, function name).

    Raises:
        ConfigError: for an unknown name or a missing file.
    """
    if name in REWARDS:
        module, function = REWARDS[name].split(":")
        return module, function
    file, separator, function = name.rpartition(":")
    if not separator or not file.endswith(".py"):
        raise ConfigError(
            "unknown reward",
            where="rollout.rewards",
            got=name,
            allowed=f"one of: {', '.join(REWARDS)}, or file.py:function",
            fix=nearest(name, REWARDS),
        )
    path = Path(base_dir) / file
    if not path.is_file():
        raise ConfigError("no such file", where="rollout.rewards", got=str(path))
    return path, function


def _from_file(path: Path, function: str) -> Reward:
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    loader = SourceFileLoader(f"posttrain_reward_{path.stem}_{digest}", str(path))
    module = ModuleType(loader.name)
    module.__file__ = str(path)
    # Dataclasses and pickling look a class's module up by name.
    sys.modules[loader.name] = module
    try:
        loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise RewardError(f"cannot be imported: {type(error).__name__}: {error}", where=str(path)) from error
    found = getattr(module, function, None)
    if not callable(found):
        names = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise ConfigError(
            "no such function", where=str(path), got=function, allowed=f"one of: {', '.join(names) or '(none)'}"
        )
    return found


def check_scores(scores: Any, *, name: str, count: int) -> list[float | None]:
    """The values a reward returned, as floats and None, or an error that says what is wrong with them.

    Args:
        scores: what the reward returned: a list, a tuple, or a one-dimensional array or tensor.
        name: of the reward, for the message.
        count: number of completions it was given.

    Returns:
        A list of `count` finite floats or None.

    Raises:
        RewardError: for a wrong number of values, or a value that is neither a finite number nor None.
    """
    where = f"reward {name!r}"
    scores = scores.tolist() if hasattr(scores, "tolist") else scores  # a numpy array or a tensor
    values = list(scores) if isinstance(scores, Sequence) and not isinstance(scores, str | bytes) else None
    if values is None:
        raise RewardError("must return a list", where=where, got=scores, allowed="one float or None per completion")
    if len(values) != count:
        raise RewardError("returned the wrong number of values", where=where, got=len(values), allowed=str(count))
    for index, value in enumerate(values):
        if value is None:
            continue
        if isinstance(value, str) or not hasattr(value, "__float__") or not numbers.isfinite(float(value)):
            fix = "Return None for a row without a score"
            raise RewardError(f"value {index} is not a finite number", where=where, got=value, fix=fix)
        values[index] = float(value)
    return values
