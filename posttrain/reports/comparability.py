"""What stands in the way of comparing runs, in words, and the settings in which variants differ."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

from posttrain.evaluation.results import missing_verdicts
from posttrain.reports.comparison import Comparison, run_costs
from posttrain.reports.markdown import MISSING, number, percent
from posttrain.reports.variants import SEEDS, Run, Variant

# Of the evaluation settings, those that change neither which completions are judged nor how.
HARMLESS_SETTINGS = {"batch_size", "at_start", "every_steps", "time_budget_seconds"}
MANY_TRUNCATED = 0.2
_NOT_SHOWN = {"stage"}


def warnings(comparison: Comparison) -> list[str]:
    """Everything a reader must know before believing a difference; empty if nothing was found."""
    variants = comparison.variants
    return [
        *_states(variants),
        *_pooled(variants),
        *_unequal(comparison),
        *_evaluations(comparison),
        *_health(variants),
    ]


def settings_table(variants: Sequence[Variant]) -> list[tuple[str, list[str]]]:
    """(setting, its value in each variant) for every recipe value that is not the same in all; seeds left out."""
    columns = [_settings(variant) for variant in variants]
    keys = dict.fromkeys(key for column in columns for key in column)
    rows = []
    for key in keys:
        # A variant without an earlier run lacks all of that run's settings: one line says so, see "start_from".
        if key.startswith("start_from.") and len({_shown(column[key]) for column in columns if key in column}) == 1:
            continue
        values = [_shown(column[key]) if key in column else "not set" for column in columns]
        if len(set(values)) > 1:
            rows.append((key, values))
    return rows


def _settings(variant: Variant) -> dict[str, Any]:
    return {key: value for key, value in variant.runs[0].recipe.items() if key not in _NOT_SHOWN}


def _states(variants: Sequence[Variant]) -> Iterator[str]:
    """Runs that do not count, and why."""
    for variant in variants:
        for run in variant.runs:
            name = _name(variant, run)
            if not run.record:
                yield f"{name}: run.json is missing, so its settings and data are unknown."
            if run.after is None:
                yield f"{name}: {run.state}. It is shown in the curves and counts in no final number."
            elif run not in variant.distinct:
                yield f"{name}: another run of this variant has the same seeds, so it is not counted."


def _pooled(variants: Sequence[Variant]) -> Iterator[str]:
    """Variants that were put together by name from recipes that differ."""
    for variant in variants:
        first = variant.runs[0].recipe
        keys = {
            key
            for run in variant.runs
            for key in run.recipe.keys() | first.keys()
            if run.recipe.get(key) != first.get(key)
        }
        if keys:
            yield f"{variant.name}: its runs differ in more than their seeds: {', '.join(sorted(keys))}."


def _unequal(comparison: Comparison) -> Iterator[str]:
    """Facts that should be the same in every run and are not."""
    variants = comparison.variants
    facts: list[tuple[str, Callable[[Run], Any]]] = [
        ("The evaluation data differ (SHA-256)", lambda run: _fingerprint(run, "eval")),
        ("The settings of the evaluation differ", _eval_settings),
        ("The verifiers differ", _verifier),
        ("The models at the start differ", _model),
        ("The training data differ (SHA-256)", _training_data(variants)),
        ("The numbers of optimizer steps differ", lambda run: run.steps if run.after is not None else None),
        ("The numbers of prompts drawn for generation differ", _prompts),
        ("The versions of libraries differ", lambda run: run.record.get("versions")),
        ("The commits of posttrain differ", lambda run: (run.record.get("git") or {}).get("commit")),
        ("The hardware differs, so seconds cannot be compared", lambda run: run.record.get("world")),
    ]  # fmt: skip
    for sentence, fact in facts:
        found = {(variant.name, place): fact(run) for variant in variants for place, run in enumerate(variant.runs)}
        known = {key: _frozen(value) for key, value in found.items() if value is not None}
        if len(set(known.values())) > 1:
            yield f"{sentence}: {_by_value(variants, found)}."
    dirty = [
        variant.name for variant in variants if any((run.record.get("git") or {}).get("dirty") for run in variant.runs)
    ]
    if dirty:
        which = "every variant" if len(dirty) == len(variants) else _and(dirty)
        yield f"posttrain's source had changes beyond its commit, which does not say all that ran: {which}."


def _evaluations(comparison: Comparison) -> Iterator[str]:
    """Results that are partial, cut off, or lack verdicts; rewards that failed in training."""
    for variant in comparison.variants:
        for run in variant.runs:
            name = _name(variant, run)
            for kind, item in (("before", run.before), ("after", run.after)):
                if item is None:
                    continue
                if item.get("partial"):
                    counted = f"{item['num_prompts']} of {item['num_requested']} prompts"
                    yield f"{name}, {kind}: partial evaluation, the time budget ended it after {counted}."
                if item.get("unscored"):
                    yield f"{name}, {kind}: {missing_verdicts(item)}"
                if (item.get("truncated_fraction") or 0) > MANY_TRUNCATED:
                    cut = percent(item["truncated_fraction"])
                    yield f"{name}, {kind}: {cut} of the completions were cut off at the token limit."
            failed = [
                value
                for event in run.events
                for key, value in event.items()
                if key.startswith("reward/") and key.endswith("/failed_fraction") and isinstance(value, int | float)
            ]
            if failed and max(failed) > 0:
                yield f"{name}: the reward function failed on up to {percent(max(failed))} of a step's completions."


def _health(variants: Sequence[Variant]) -> Iterator[str]:
    """Warnings that the runs themselves left."""
    for variant in variants:
        for run in variant.runs:
            for item in run.folder.read_health().get("warnings", []):
                yield f"{_name(variant, run)}, during training: {item['text']}"


def _by_value(variants: Sequence[Variant], found: dict[tuple[str, int], Any]) -> str:
    """ "200 in first; 200 and 180 in second": variants of one value together; only what differs of several parts."""
    parts = [value for value in found.values() if isinstance(value, dict)]
    if parts:
        keys = dict.fromkeys(key for part in parts for key in part)
        differing = [key for key in keys if len({_frozen(part[key]) for part in parts if key in part}) > 1]
        differing = differing or [key for key in keys if any(key not in part for part in parts)]
        found = {
            place: {key: value[key] for key in differing if key in value} if isinstance(value, dict) else value
            for place, value in found.items()
        }
    names: dict[str, list[str]] = {}
    for variant in variants:
        values = [found[variant.name, place] for place in range(len(variant.runs))]
        text = " and ".join(dict.fromkeys(_fact(value) for value in values if value is not None))
        if text:
            names.setdefault(text, []).append(variant.name)
    if len(names) == 1:
        return f"{next(iter(names))} within every variant"
    return "; ".join(f"{text} in {_and(which)}" for text, which in names.items())


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items()) or MISSING
    if isinstance(value, str):
        return value if len(value) < 40 else value[:12] + "…"
    return MISSING if value is None else number(value) if isinstance(value, int | float) else _shown(value)


def _fingerprint(run: Run, split: str) -> str | None:
    return (run.record.get("data", {}).get(split) or {}).get("sha256")


def _training_data(variants: Sequence[Variant]) -> Callable[[Run], str | None]:
    """Fingerprint of the training rows; with a seed of its own for them, repetitions are meant to differ in it."""
    meant = any(SEEDS["data.train.seed"] in variant.varying for variant in variants)
    return lambda run: None if meant else _fingerprint(run, "train")


def _eval_settings(run: Run) -> dict[str, Any] | None:
    settings = (run.after or run.before or {}).get("settings")
    return (
        None if settings is None else {key: value for key, value in settings.items() if key not in HARMLESS_SETTINGS}
    )


def _verifier(run: Run) -> str | None:
    named = run.settings.get("eval.verifier") or run.settings.get("rollout.verifier")
    rewards = run.settings.get("rollout.rewards")
    if named is None and isinstance(rewards, list) and rewards:
        named = rewards[0]["name"] if isinstance(rewards[0], dict) and "name" in rewards[0] else rewards[0]
    return None if named is None else str(named)


def _model(run: Run) -> dict[str, Any] | None:
    """Of a run that starts from an earlier stage: that stage's recipe. Of another: the model block."""
    recipe = run.recipe
    if "start_from" in recipe:
        return {key: value for key, value in recipe.items() if key.startswith("start_from")}
    own = {key: value for key, value in recipe.items() if key.startswith("model.")}
    return {"start_from": "no earlier run", **own} if own else None


def _prompts(run: Run) -> float | None:
    prompts = run_costs(run)["prompts"] if run.after is not None else math.nan
    # A method that generates nothing draws no prompts; that is the method and no mistake.
    return None if math.isnan(prompts) or prompts == 0 else prompts


def _name(variant: Variant, run: Run) -> str:
    return f"{variant.name}, {variant.label(run)}" if len(variant.runs) > 1 else variant.name


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _frozen(value: Any) -> Hashable:
    return json.dumps(value, sort_keys=True, ensure_ascii=False) if isinstance(value, dict | list) else value
