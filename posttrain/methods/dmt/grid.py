"""The stages of a study of data composition: how much of each source, in which ratio, in which order.

Source: arXiv 2310.05492, research questions 1 to 4 (sections 3.1 to 3.4). A ratio is of the full sources: general 1
and specialised 1/4 means all general rows and a quarter of the specialised ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from posttrain.errors import ConfigError
from posttrain.methods.dmt.plan import STRATEGIES, Sources, composition_stages, replay_stage_name

QUESTIONS = {
    "amount": "one source alone, by amount (RQ1)",
    "mixed": "all sources together, by amount (RQ2)",
    "ratio": "general against specialised, by ratio (RQ3)",
    "strategy": "strategies, and the part k that stage 2 repeats (RQ4)",
}


@dataclass(frozen=True)
class Point:
    """One trained model of the study.

    `stage` is the last stage of its training; `fractions` the part of every source that it saw; `replay` k of stage 2.
    """

    question: str
    label: str
    stage: str
    fractions: dict[str, float] = field(default_factory=dict)
    replay: float | None = None


@dataclass(frozen=True)
class Grid:
    """Every stage of a study once, and the points that read them; several may read one stage."""

    stages: list[dict[str, Any]]
    points: list[Point]
    specialised: list[str]
    general: list[str]


def composition_grid(
    values: Mapping[str, Any],
    *,
    amounts: Sequence[float],
    replays: Sequence[float],
    questions: Sequence[str] = tuple(QUESTIONS),
) -> Grid:
    """Stages and points of a study.

    Args:
        values: a recipe with `data.train.mixture` and roles; its `stages` are not read.
        amounts: fractions of RQ1 to RQ3, in (0, 1]; 1 is always there.
        replays: k of RQ4, in [0, 1].
        questions: keys of `QUESTIONS`.

    Raises:
        ConfigError: no mixture, a role without sources, fractions out of range, an unknown question.
    """
    recipe = Sources({**values, "stages": {"preset": "composition"}})
    special, general = recipe.of("specialized", "the study"), recipe.of("general", "the study")
    _check_all(amounts, replays, questions)
    sizes = sorted({1.0, *map(float, amounts)}, reverse=True)
    stages: dict[str, dict[str, Any]] = {}
    points: list[Point] = []

    def add(question: str, label: str, name: str, fractions: dict[str, float]) -> None:
        changes = {source: _times(recipe, source, part) for source, part in fractions.items() if part < 1}
        stages.setdefault(name, recipe.stage(name, list(fractions), changes=changes))
        points.append(Point(question, label, name, fractions))

    if "amount" in questions:
        for source in recipe.names:
            for part in sizes:
                add("amount", f"{source} alone, {part:g}", _name(f"only_{source}", part), {source: part})
    if "mixed" in questions:
        for part in sizes:
            add("mixed", f"all, {part:g}", _name("multitask", part), dict.fromkeys(recipe.names, part))
    if "ratio" in questions:
        for question, label, name, fractions in _ratios(special, general, sizes):
            add(question, label, name, fractions)
    if "strategy" in questions:
        made, found = _strategies(values, replays)
        stages |= {stage["name"]: stage for stage in made if stage["name"] not in stages}
        points += found
    return Grid(list(stages.values()), points, special, general)


def conflict(points: Sequence[Point], scores: Mapping[str, Mapping[str, float]]) -> dict[float, dict[str, float]]:
    """Amount -> ability -> score trained together minus score trained alone, from the same part of the rows.

    Args:
        points: of a grid.
        scores: stage -> ability -> score; abilities are named like their sources.
    """
    alone = {(*p.fractions.items(),)[0]: p.stage for p in points if p.question == "amount"}
    found: dict[float, dict[str, float]] = {}
    for point in points:
        if point.question != "mixed":
            continue
        for source, part in point.fractions.items():
            if (source, part) in alone:
                difference = scores[point.stage][source] - scores[alone[source, part]][source]
                found.setdefault(part, {})[source] = difference
    return found


def pareto(scores: Mapping[float, tuple[float, float]]) -> list[float]:
    """The k whose (specialised, general) scores no other k beats in one without being behind in the other; ascending.

    Of several with the same scores the smallest k is kept.
    """
    kept: list[float] = []
    for k in sorted(scores):
        special, general = scores[k]
        beaten = any(
            (s >= special and g >= general and (s > special or g > general))
            or ((s, g) == (special, general) and o < k)
            for o, (s, g) in scores.items()
            if o != k
        )
        if not beaten:
            kept.append(k)
    return kept


def _name(stem: str, part: float) -> str:
    return stem if part == 1 else f"{stem}-{part:g}"


def _times(recipe: Sources, source: str, part: float) -> dict[str, Any]:
    """A part of what the recipe takes of a source."""
    entry = recipe.entries[recipe.names.index(source)]
    written, most = entry.get("fraction", 1.0), entry.get("max_rows")
    if isinstance(written, bool) or not isinstance(written, int | float):
        where = f"data.train.mixture, source {source!r}, fraction"
        raise ConfigError("a fraction is a part of the rows", where=where, got=written, allowed="0 to 1")
    found: dict[str, Any] = {"fraction": float(written) * part}
    if isinstance(most, int):
        found["max_rows"] = max(1, math.floor(most * part))
    return found


def _ratios(
    special: Sequence[str], general: Sequence[str], sizes: Sequence[float]
) -> Iterator[tuple[str, str, str, dict[str, float]]]:
    """General whole and specialised in parts; the other way round; general at its least and specialised in parts."""
    least = min(sizes)

    def both(left: float, right: float) -> dict[str, float]:
        return {**dict.fromkeys(special, left), **dict.fromkeys(general, right)}

    yield "ratio", "specialised 1, general 1", "multitask", both(1.0, 1.0)
    smaller = [part for part in sizes if part < 1]
    for part in smaller:
        yield "ratio", f"specialised {part:g}, general 1", _name("specialized_part", part), both(part, 1.0)
    for part in smaller:
        yield "ratio", f"specialised 1, general {part:g}", _name("general_part", part), both(1.0, part)
    for part in smaller[:-1]:
        yield "ratio", f"specialised {part:g}, general {least:g}", _name("scarce_general", part), both(part, least)


def _strategies(values: Mapping[str, Any], replays: Sequence[float]) -> tuple[list[dict[str, Any]], list[Point]]:
    wanted = [name for name in STRATEGIES if name != "single"]
    fractions = sorted(set(map(float, replays)))
    block = {"preset": "composition", "strategies": wanted, "specialized_replay_fractions": fractions}
    stages = composition_stages({**values, "stages": block})
    points = [Point("strategy", name.replace("_", " "), name) for name in ("multitask", "sequential")]
    points.append(Point("strategy", "mixed sequential (k = 0)", "mixed_sequential", replay=0.0))
    points += [
        Point("strategy", f"DMT, k = {k:g}", replay_stage_name(k, "rows"), replay=k) for k in fractions if k > 0
    ]
    return stages, points


def _check_all(amounts: Sequence[float], replays: Sequence[float], questions: Sequence[str]) -> None:
    for key, numbers, least in (("amounts", amounts, 0.0), ("replays", replays, -1.0)):
        for value in numbers:
            if not least < value <= 1 or value < 0:
                allowed = "above 0, at most 1" if key == "amounts" else "0 to 1"
                raise ConfigError("a part of the rows", where=key, got=value, allowed=allowed)
    for question in questions:
        if question not in QUESTIONS:
            allowed = f"one or more of: {', '.join(QUESTIONS)}"
            raise ConfigError("unknown question", where="questions", got=question, allowed=allowed)
    if not questions or ("strategy" in questions and not replays):
        raise ConfigError("nothing to study", where="questions" if not questions else "replays", got=[])
