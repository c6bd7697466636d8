"""What a method's room of tests says about its smallest runs: `tests/methods/<key>/cases.py`, if it has one.

The batteries run over the registry and read this, so that they name no method. Every name in a `cases.py` is optional.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from datasets import Dataset

from posttrain.registry import METHODS
from tests.config.bases import GRPO, SFT


def _as_they_are(rows: Dataset) -> tuple[Dataset, dict[str, Any]]:
    return rows, {}


@dataclass(frozen=True)
class Case:
    """The smallest runs of one method.

    Attributes:
        recipe: RECIPE, a recipe that passes every check; default: the base of its kind with its name.
        settings: SETTINGS, arguments of its config class beside the batteries' own.
        inputs: function `inputs(rows)` -> (training rows made of the battery's, further arguments of the trainer).
        ranks: RANKS, name -> arguments of further runs that one and two processes make with equal gradients.
        engines: ENGINE_RUNS, the same under every engine; engine_resumes: ENGINE_RESUMES, runs that are stopped there.
        resume: RESUME, arguments of runs of several processes that are stopped and continued.
        least_prompts: LEAST_PROMPTS, fewest rows that an optimizer step of the batteries takes.
        without: WITHOUT, fields of the config class that the method refuses.
        may_not_generate: MAY_NOT_GENERATE, whether a few steps may go by without a rollout.
        learns_from_success_alone: LEARNS_FROM_SUCCESS_ALONE, whether a group that fails has a zero gradient.
        told: TOLD, recipe file -> parts of warnings of `check` that the recipe means to have.
        on_ranks: function (model, folder) -> facts of the method's own, made on every rank.
        expected_on_ranks: function of the number of processes -> these facts.
    """

    recipe: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Callable[[Dataset], tuple[Dataset, dict[str, Any]]] = _as_they_are
    ranks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    engines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    engine_resumes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    resume: Mapping[str, Any] = field(default_factory=dict)
    least_prompts: int = 1
    without: Sequence[str] = ()
    may_not_generate: bool = False
    learns_from_success_alone: bool = False
    told: Mapping[str, Sequence[str]] = field(default_factory=dict)
    on_ranks: Callable[..., Any] | None = None
    expected_on_ranks: Callable[[int], Any] | None = None


_NAMES = {
    **{name: name.upper() for name in ("recipe", "settings", "ranks", "resume", "least_prompts", "without", "told")},
    "engines": "ENGINE_RUNS",
    "engine_resumes": "ENGINE_RESUMES",
    "may_not_generate": "MAY_NOT_GENERATE",
    "learns_from_success_alone": "LEARNS_FROM_SUCCESS_ALONE",
    **{name: name for name in ("inputs", "on_ranks", "expected_on_ranks")},
}


def case_of(key: str) -> Case:
    """The case of a method, from its room of tests and the defaults."""
    base = GRPO if METHODS[key].generates else SFT
    default = {"recipe": {**base, "method": {"name": key}}}
    place = f"tests.methods.{key}"
    if find_spec(place) is None or find_spec(f"{place}.cases") is None:
        return Case(**default)
    room = import_module(f"{place}.cases")
    known = {*_NAMES.values()}
    public = {name for name in vars(room) if name.isupper() and not name.startswith("_")}
    unread = sorted(public - known - {"GRPO", "SFT", "SOURCE_COLUMN"})
    assert not unread, f"{place}.cases: no battery reads {unread}"
    return Case(**{**default, **{ours: getattr(room, name) for ours, name in _NAMES.items() if hasattr(room, name)}})
