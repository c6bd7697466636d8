"""`recipes/<key>/RESULTS.json`: what the studies of a method measured, and what follows from it.

Per variant and seed it holds what was measured. Means, differences, intervals and verdicts are derived from that by
`derived`; `posttrain.reproduce.problems` says where a file disagrees with them, with claims.yaml or with the recipe.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from posttrain.config.run_config import Block
from posttrain.config.source import read_recipe
from posttrain.errors import DataError
from posttrain.evaluation.results import mean_and_stderr
from posttrain.reports.records import write_json
from posttrain.reproduce.claims import ChangeClaim, Claim, DifferenceClaim
from posttrain.reproduce.decision import Decision, change, decide, difference, scale_of

SCHEMA_VERSION: Literal[1] = 1
FILE = "RESULTS.json"


class GroupScore(Block):
    """One group of evaluation prompts."""

    accuracy: float | None
    accuracy_stderr: float | None
    num_prompts: int


class Ends(Block):
    """Mean of a training metric at the beginning and at the end, for a change claim."""

    first: float
    last: float
    num_values: int


class SeedResult(Block):
    """What one variant did on one seed. Costs are those of the variant's own stages, without shared preparation."""

    seed: int
    values: dict[str, float] = Field(description="metric of the evaluation -> value")
    accuracy_stderr: float | None = Field(description="over prompts")
    num_prompts: int = Field(description="evaluation prompts")
    unscored: int = Field(description="completions of the evaluation without a verdict; not in the values")
    failed: int = Field(description="of the unscored, those on which the verifier failed; above 0 gives no results")
    per_group: dict[str, GroupScore]
    changes: dict[str, Ends] = Field(description="name of a change claim -> the two ends of its curve")
    trained_prompts: float | None = Field(description="prompts drawn in training, as counted; null = not counted")
    generated_tokens: float | None = Field(description="tokens sampled in training; null = not counted")
    demonstrations: float | None = Field(description="demonstrations trained on; null = not counted")
    demonstration_tokens: float | None
    seconds: float = Field(description="in training, on this machine, beside other jobs")
    run_sha256: str = Field(description="of the file run.json of the variant's last stage, as stored")


class StageRecord(Block):
    """One stage of a variant."""

    name: str
    trainer: str = Field(description="key in the registry")
    steps: int
    prompts_per_step: float


class Spread(Block):
    """A metric over seeds."""

    mean: float
    stderr: float | None
    min: float
    max: float


class VariantResult(Block):
    """One variant on all seeds. `spread` is that of the study's metric."""

    stage: str
    label: str
    trainer: str
    stages: list[StageRecord] = Field(description="its own, without shared preparation")
    steps: int
    prompts: float
    unequal: str | None = Field(description="why its steps or prompts differ from the others'")
    seeds: list[SeedResult]
    spread: Spread


class ClaimResult(Block):
    """A claim as it was written, and what became of it."""

    definition: dict[str, Any]
    decision: Decision


class Environment(Block):
    """Versions and commit under which some of the stages were trained."""

    versions: dict[str, str | None]
    git: dict[str, Any] | None
    world: dict[str, Any]
    num_runs: int = Field(description="stages that ran in it, each seed's counted, also where only a part did")


def source_remarks(environments: Sequence[Environment]) -> list[str]:
    """What keeps the commit from saying which source ran: changes beyond it, or several of them."""
    known = [item.git for item in environments if item.git]
    commits = {git["commit"] for git in known}
    remarks = ["from a tree with uncommitted changes"] if any(git["dirty"] for git in known) else []
    return remarks + ([f"of {len(commits)} commits"] if len(commits) > 1 else [])


class Minutes(Block):
    """`wall`: as a user waits, interruptions left out; `summed`: over seeds, as if done one after the other."""

    wall: float
    summed: float
    limit: int
    jobs: int


class StudyResult(Block):
    """One study."""

    study: str
    paper: dict[str, Any]
    paper_claim: str
    setting: str
    notes: str | None
    metric: str
    seeds: list[int]
    seeds_reach: str
    command: str
    changed: list[str] = Field(description="what differs from the shipped study; empty in the repository")
    date: str
    environments: list[Environment]
    hardware: dict[str, Any]
    minutes: Minutes
    recipe: str
    recipe_sha256: str = Field(description="of the recipe's values, comments left out")
    preparation: list[StageRecord] = Field(description="stages that all variants share")
    variants: list[VariantResult]
    claims: list[ClaimResult]


class ResultsFile(Block):
    """The whole file."""

    schema_version: Literal[1]
    key: str
    studies: dict[str, StudyResult]


def read_results(path: str | Path) -> ResultsFile | None:
    """A results file; None if there is none.

    Raises:
        DataError: the file is not JSON, or violates the schema; the first place is named.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        return ResultsFile.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        fix = "Run `posttrain reproduce` again; the file is not written by hand"
        raise DataError(f"{place}: {first['msg'].lower()}", where=str(path), fix=fix) from None


def write_results(path: str | Path, key: str, result: StudyResult) -> Path:
    """Put one study into a method's results file; its other studies stay as they are."""
    before = read_results(path)
    studies = {**(before.studies if before else {}), result.study: result}
    whole = ResultsFile(schema_version=SCHEMA_VERSION, key=key, studies=studies)
    return write_json(path, whole.model_dump())


def recipe_hash(path: str | Path) -> str:
    """SHA-256 of a recipe's values: equal for two files that differ in comments and layout only."""
    values, _ = read_recipe(path)
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


# ---- what follows from the measured numbers ----


def spread_of(seeds: list[SeedResult], metric: str) -> Spread:
    """Mean, standard error over seeds and range of a metric."""
    values = [seed.values[metric] for seed in seeds]
    mean, stderr = mean_and_stderr(values)
    return Spread(mean=mean, stderr=stderr if math.isfinite(stderr) else None, min=min(values), max=max(values))


def decision_of(claim: Claim, variants: Mapping[str, VariantResult], metric: str) -> Decision:
    """Decide a claim from the values of its variants.

    Args:
        claim: as written in claims.yaml.
        variants: by stage.
        metric: the study's; a claim about a difference may name its own.
    """
    labels = {name: variant.label for name, variant in variants.items()}
    if isinstance(claim, ChangeClaim):
        ends = [seed.changes[claim.name] for seed in variants[claim.variant].seeds]
        rows = [change([pair.last - pair.first for pair in ends])]
        return decide(claim, rows, scale="", labels=labels)
    metric = claim.metric or metric

    def values(variant: str) -> dict[int, float]:
        return {seed.seed: seed.values[metric] for seed in variants[variant].seeds}

    rows = [difference(baseline, values(baseline), values(claim.treatment)) for baseline in claim.baselines]
    return decide(claim, rows, scale=scale_of(metric), labels=labels)


def claim_of(definition: Mapping[str, Any]) -> Claim:
    """The claim of a results file as it was written."""
    kind = ChangeClaim if definition.get("kind") == "change" else DifferenceClaim
    return kind.model_validate(dict(definition))


def derived(result: StudyResult) -> StudyResult:
    """The same study with every derived number computed anew from its per-seed values."""
    variants = [
        variant.model_copy(
            update={
                "steps": sum(stage.steps for stage in variant.stages),
                "prompts": math.fsum(stage.steps * stage.prompts_per_step for stage in variant.stages),
                "spread": spread_of(variant.seeds, result.metric),
            }
        )
        for variant in result.variants
    ]
    by_stage = {variant.stage: variant for variant in variants}
    claims = [
        item.model_copy(update={"decision": decision_of(claim_of(item.definition), by_stage, result.metric)})
        for item in result.claims
    ]
    return result.model_copy(update={"variants": variants, "claims": claims})
