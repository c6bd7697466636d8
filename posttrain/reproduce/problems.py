"""Where a results file disagrees with its own numbers, with claims.yaml or with the recipe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from posttrain.errors import DataError, PosttrainError
from posttrain.reproduce.claims import Study, load_claims, study_file
from posttrain.reproduce.plan import make_plan
from posttrain.reproduce.results import StudyResult, derived, read_results, recipe_hash

# Recomputed numbers may differ from stored ones by the last digits of scipy's t distribution on another machine.
TOLERANCE = 1e-6


def problems(path: Path) -> list[str]:
    """Every way in which a results file disagrees with its own numbers, its claims file or its recipe; empty if none.

    Args:
        path: `recipes/<key>/RESULTS.json`.
    """
    try:
        whole = read_results(path)
    except DataError as error:
        return [str(error)]
    if whole is None:
        return [f"{path} does not exist"]
    found = [] if whole.key == path.parent.name else [f"key {whole.key!r} in the folder {path.parent.name!r}"]
    for name, result in whole.studies.items():
        lines = [*_differences(result.model_dump(), derived(result).model_dump(), ""), *_outdated(path, name, result)]
        lines += [] if name == result.study else [f"it calls itself {result.study!r}"]
        found += [f"study {name}: {line}" for line in lines]
    return found


def _outdated(path: Path, name: str, result: StudyResult) -> list[str]:
    """What changed in claims.yaml and the recipe since the study was run."""
    claims = path.parent / study_file(name)
    if not claims.exists():
        return [f"there is no {claims.name}"]
    try:
        study = load_claims(claims)
        recipe = recipe_hash(study.recipe)
    except PosttrainError as error:
        return [str(error)]
    found = _not_as_claimed(study, result)
    if recipe != result.recipe_sha256:
        # What follows from a recipe that changed need not be told in parts.
        found.append(f"{study.recipe.name} was changed after the study was run")
    else:
        found += _not_as_planned(path.parent.name, claims, result)
    if result.changed:
        found.append(f"it was run with changes: {', '.join(result.changed)}")
    for variant in result.variants:
        if [seed.seed for seed in variant.seeds] != result.seeds:
            found.append(f"variant {variant.stage} lacks seeds")
        if any(seed.failed for seed in variant.seeds):
            found.append(f"variant {variant.stage}: the verifier failed on completions, so there are no results")
    return found


def _not_as_claimed(study: Study, result: StudyResult) -> list[str]:
    """Fields that are written in claims.yaml otherwise."""
    block = study.block
    plain = ("metric", "paper_claim", "setting", "notes")
    written = {
        **{key: getattr(block, key) for key in plain},
        "recipe": study.recipe.name,
        "seeds": list(block.seeds),
        "claims": [claim.model_dump() for claim in study.claims],
        "variants": list(study.variants.items()),
        "unequal": [block.unequal.get(stage) for stage in study.variants],
        "minutes.limit": block.minutes_limit,
    }
    stored = {
        **{key: getattr(result, key) for key in (*plain, "recipe", "seeds")},
        "claims": [item.definition for item in result.claims],
        "variants": [(variant.stage, variant.label) for variant in result.variants],
        "unequal": [variant.unequal for variant in result.variants],
        "minutes.limit": result.minutes.limit,
    }
    return [f"{key} is not that of {study.path.name}" for key in written if written[key] != stored[key]]


def _not_as_planned(key: str, claims: Path, result: StudyResult) -> list[str]:
    """Stages and trainers that are not those of the recipe."""
    try:
        plan = make_plan(key, claims, seeds=result.seeds[:1] or None, output=Path("runs"))
    except PosttrainError as error:
        return [str(error)]
    found = []
    methods = {name: config.method.name for name, _, config in plan.runs[0].stages}
    planned = {variant.stage: (methods[variant.stage], list(variant.own)) for variant in plan.variants}
    for variant in result.variants:
        trainer, stages = planned.get(variant.stage, (variant.trainer, variant.stages))
        found += (
            [f"variants.{variant.stage}.trainer is not that of {result.recipe}"] if variant.trainer != trainer else []
        )
        found += (
            [f"variants.{variant.stage}.stages is not that of {result.recipe}"] if variant.stages != stages else []
        )
    if result.preparation != list(plan.preparation):
        found.append(f"preparation is not that of {result.recipe}")
    return found


def _differences(stored: Any, computed: Any, place: str) -> list[str]:
    if isinstance(stored, dict) and isinstance(computed, dict):
        keys = {**stored, **computed}
        return [line for key in keys for line in _differences(stored.get(key), computed.get(key), f"{place}.{key}")]
    if isinstance(stored, list) and isinstance(computed, list) and len(stored) == len(computed):
        pairs = enumerate(zip(stored, computed, strict=True))
        return [line for index, (old, new) in pairs for line in _differences(old, new, f"{place}.{index}")]
    numbers = [item for item in (stored, computed) if isinstance(item, int | float) and not isinstance(item, bool)]
    if len(numbers) == 2 and math.isclose(stored, computed, rel_tol=TOLERANCE, abs_tol=TOLERANCE**2):
        return []
    if type(stored) is type(computed) and stored == computed:
        return []
    return [f"{place.strip('.')} says {stored!r}, its per-seed values give {computed!r}"]
