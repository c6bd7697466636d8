"""From the folders of finished runs to the results of a study."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from posttrain import registry
from posttrain.errors import DataError, ResumeError, nearest
from posttrain.hidden import without_secrets
from posttrain.reports.measure import Measure
from posttrain.reports.records import evaluation_seconds, json_value, training_seconds
from posttrain.reports.run_report import RunFolder
from posttrain.reproduce.claims import MAIN, ChangeClaim, Study
from posttrain.reproduce.decision import ends
from posttrain.reproduce.group_losses import flat, is_of_losses, losses_after
from posttrain.reproduce.plan import Plan, SeedRun, VariantPlan
from posttrain.reproduce.results import (
    ClaimResult,
    Ends,
    Environment,
    GroupScore,
    Minutes,
    SeedResult,
    StudyResult,
    VariantResult,
    decision_of,
    recipe_hash,
    spread_of,
)
from posttrain.reproduce.runner import Times, num_cores

_COSTS = {
    "trained_prompts": "cost/prompts",
    "generated_tokens": "cost/generated_tokens",
    "demonstrations": "cost/demonstrations",
    "demonstration_tokens": "cost/demonstration_tokens",
}


def collect(plan: Plan, *, jobs: int, device: str) -> StudyResult:
    """The results of a study whose runs are all finished.

    Args:
        plan: the study.
        jobs: seeds trained at once, for the record.
        device: what they ran on.

    Raises:
        DataError: an evaluation lacks a metric, is only a part of what was asked, or its verifier failed; a metric
            was never logged.
        ResumeError: a run in the folder was evaluated with other settings.
    """
    study = plan.study
    variants = [_variant(plan, variant) for variant in plan.variants]
    by_stage = {variant.stage: variant for variant in variants}
    paper = registry.get(plan.key).paper
    return StudyResult(
        study=study.name,
        paper={"title": paper.title, "arxiv": paper.arxiv, "year": paper.year},
        paper_claim=study.block.paper_claim,
        setting=study.block.setting,
        notes=study.block.notes,
        metric=study.block.metric,
        seeds=[run.seed for run in plan.runs],
        seeds_reach=plan.seeds_reach(),
        command=command_of(plan),
        changed=changes(plan),
        date=datetime.now(UTC).date().isoformat(),
        environments=_environments(plan),
        hardware={"cpu": cpu_model(), "cores": num_cores(), "device": device},
        minutes=_minutes(plan, jobs),
        recipe=study.recipe.name,
        recipe_sha256=recipe_hash(study.recipe),
        preparation=list(plan.preparation),
        variants=variants,
        claims=[
            ClaimResult(definition=claim.model_dump(), decision=decision_of(claim, by_stage, study.block.metric))
            for claim in study.claims
        ],
    )


def command_of(plan: Plan) -> str:
    """The command that repeats the study, from the root of the source tree."""
    parts = ["posttrain reproduce", plan.key]
    parts += ["--study", plan.study.name] if plan.study.name != MAIN else []
    seeds = [run.seed for run in plan.runs]
    parts += ["--seeds", ",".join(map(str, seeds))] if seeds != list(plan.study.block.seeds) else []
    return " ".join([*parts, *(without_secrets(text) for text in plan.overrides)])


def changes(plan: Plan) -> list[str]:
    """In what the runs differ from the shipped study; its results are then not those of the repository."""
    found = [text for text in plan.overrides if text.partition("=")[0].strip() != "trainer.resume"]
    seeds = [run.seed for run in plan.runs]
    return [*found, *([f"seeds {seeds}"] if seeds != list(plan.study.block.seeds) else [])]


def cpu_model() -> str:
    """Name of the processor; its architecture where the system does not tell."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    if platform.system() == "Darwin":
        asked = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        if asked.returncode == 0:
            return asked.stdout.strip()
    return platform.machine()


# ---- variants ----


def _variant(plan: Plan, variant: VariantPlan) -> VariantResult:
    seeds = [_seed(plan.study, run, variant) for run in plan.runs]
    return VariantResult(
        stage=variant.stage,
        label=variant.label,
        trainer=_method(plan.runs[0], variant.stage),
        stages=list(variant.own),
        steps=variant.steps,
        prompts=float(variant.amount[1]),
        unequal=plan.study.block.unequal.get(variant.stage),
        seeds=seeds,
        spread=spread_of(seeds, plan.study.block.metric),
    )


def _method(run: SeedRun, stage: str) -> str:
    return next(config.method.name for name, _, config in run.stages if name == stage)


def _seed(study: Study, run: SeedRun, variant: VariantPlan) -> SeedResult:
    folder = RunFolder(run.stage_folder(variant.stage))
    of_losses = is_of_losses(study)
    after = losses_after(folder) if of_losses else _after(folder, run, variant.stage)
    _refuse_changed(folder, run, variant.stage)
    own = [RunFolder(run.stage_folder(record.name)) for record in variant.own]
    return SeedResult(
        seed=run.seed,
        values={
            **(flat(after["mixing"]) if of_losses else {}),
            **{metric: metric_value(after, metric, folder) for metric in study.metrics()},
        },
        accuracy_stderr=after.get("accuracy_stderr"),
        num_prompts=after["num_prompts"],
        unscored=after["unscored"],
        failed=after["failed"],
        per_group={
            name: GroupScore(**{key: score.get(key) for key in GroupScore.model_fields})
            for name, score in (after.get("per_group") or {}).items()
        },
        changes={
            claim.name: _ends(claim, folder)
            for claim in study.claims
            if isinstance(claim, ChangeClaim) and claim.variant == variant.stage
        },
        **_costs([(record.trainer, folder) for record, folder in zip(variant.own, own, strict=True)]),
        seconds=round(math.fsum(training_seconds(stage.metrics_path) for stage in own), 1),
        run_sha256=hashlib.sha256(folder.run_path.read_bytes()).hexdigest(),
    )


def _after(folder: RunFolder, run: SeedRun, stage: str) -> dict[str, Any]:
    """The evaluation after training."""
    after = folder.read_evals().get("after")
    if after is None:
        raise DataError("the evaluation after training is missing", where=str(folder.path), fix="Delete the folder")
    if after["partial"]:
        what = f"only {after['num_prompts']} of {after['num_requested']} prompts were evaluated"
        raise DataError(what, where=str(folder.path), fix="Remove eval.time_budget_seconds, and delete the folder")
    if after["failed"]:
        # A verdict that is missing because the verifier broke is no property of the model: no mean may hide it.
        what = f"variant {stage}, seed {run.seed}: the verifier failed on {after['failed']} completions"
        fix = "completions/after.jsonl says why. Repair the verifier, delete the folder, and call the same command"
        raise DataError(what, where=str(folder.eval_path), fix=fix)
    return after


def _refuse_changed(folder: RunFolder, run: SeedRun, stage: str) -> None:
    """The settings that a run was evaluated with are those that the recipe has now."""
    config = next(config for name, _, config in run.stages if name == stage)
    recorded, wanted = folder.read_run()["config"], without_secrets(json_value(config.values))
    for block in ("eval", "data"):
        # The settings of an evaluation do not make it another run, so a finished one is not repeated for them.
        if recorded.get(block) != wanted.get(block):
            raise ResumeError(
                f"the {block} block was changed after this run was finished",
                where=str(folder.path),
                fix="Delete the folder, or choose another with --output",
            )


def metric_value(after: Mapping[str, Any], metric: str, folder: RunFolder) -> float:
    """A number of an evaluation as `Measure` reads it; a group's name may hold dots: "per_group.<group>.accuracy"."""
    number, _ = Measure(metric).read(after)
    if not math.isnan(number):
        return number
    value: Any = after
    first, _, rest = Measure(metric).path.partition(".")
    group, _, last = rest.rpartition(".")
    for key in [key for key in (first, group, last) if key]:
        if not isinstance(value, Mapping) or key not in value:
            known = list(value) if isinstance(value, Mapping) else []
            fix = nearest(key, known)
            allowed = ", ".join(known[:24])
            where = f"{folder.eval_path}: after"
            raise DataError(f"the evaluation has no {metric}", where=where, allowed=allowed, fix=fix)
        value = value[key]
    raise DataError(f"{metric} is no number", where=f"{folder.eval_path}: after", got=value)


def _ends(claim: ChangeClaim, folder: RunFolder) -> Ends:
    events = folder.read_metrics()
    counted = [event for event in events if event["step"] > claim.after_step or not claim.after_step]
    values = [event[claim.metric] for event in counted if isinstance(event.get(claim.metric), int | float)]
    values = [float(value) for value in values if math.isfinite(value)]
    if len(values) < 2:
        names = sorted({name for event in events for name in event})
        close = difflib.get_close_matches(claim.metric, names, n=1, cutoff=0.4)
        fix = f"Perhaps you mean {close[0]!r}" if close and close[0] != claim.metric else "Lower trainer.logging_steps"
        what = f"the claim {claim.name} needs two logged values of {claim.metric}, there are {len(values)}"
        what += f" after step {claim.after_step}" if claim.after_step else ""
        raise DataError(what, where=str(folder.metrics_path), fix=fix)
    first, last = ends(values, claim.first_fraction, claim.last_fraction)
    return Ends(first=first, last=last, num_values=len(values))


def _costs(stages: list[tuple[str, RunFolder]]) -> dict[str, float | None]:
    """Totals over a variant's stages, each with its method.

    None where a stage counted nothing at all. What a stage that counts did not log it did not spend.
    """
    logged = [_totals(method, folder) for method, folder in stages]
    if not all(logged):
        return dict.fromkeys(_COSTS)
    return {name: math.fsum(totals.get(metric, 0.0) for totals in logged) for name, metric in _COSTS.items()}


def _totals(method: str, folder: RunFolder) -> dict[str, float]:
    """The last logged value of every counter."""
    found: dict[str, float] = {}
    for event in folder.read_metrics():
        found |= {name: float(event[name]) for name in _COSTS.values() if isinstance(event.get(name), int | float)}
    if registry.get(method).learns_rows and _COSTS["demonstrations"] in found:
        # It generates nothing, so it counts no prompts for that: every row it trains on is one prompt with its answer.
        found[_COSTS["trained_prompts"]] = found[_COSTS["demonstrations"]]
    return found


# ---- how it was made ----


def _minutes(plan: Plan, jobs: int) -> Minutes:
    """Time over all calls. What children did after their parent was killed is taken from their own files."""
    times, seeds = Times(plan.output), []
    for run in plan.runs:
        folders = [RunFolder(run.stage_folder(name)) for name, _, _ in run.stages]
        known = [training_seconds(folder.metrics_path) for folder in folders]
        known += [evaluation_seconds(item) for folder in folders for item in folder.read_evals().values()]
        seeds.append(max(times.seeds.get(str(run.seed), 0.0), math.fsum(known)))
    summed = math.fsum(seeds)
    wall = max(times.wall, summed / jobs)
    limit = plan.study.block.minutes_limit
    return Minutes(wall=round(wall / 60, 2), summed=round(summed / 60, 2), limit=limit, jobs=jobs)


def _environments(plan: Plan) -> list[Environment]:
    """Versions and commits of every stage that a variant is made of, preparation included; each kind once.

    A stage that was stopped and continued counts for each environment it ran in.
    """
    found: dict[str, Environment] = {}
    stages = [
        record.name
        for records in (plan.preparation, *(variant.own for variant in plan.variants))
        for record in records
    ]
    for run in plan.runs:
        for stage in dict.fromkeys(stages):
            record = RunFolder(run.stage_folder(stage)).read_run()
            attempts = [*record.get("earlier_attempts", []), record]
            kinds = [{key: attempt[key] for key in ("versions", "git", "world")} for attempt in attempts]
            for name, facts in {json.dumps(facts, sort_keys=True): facts for facts in kinds}.items():
                count = found[name].num_runs if name in found else 0
                found[name] = Environment(**facts, num_runs=count + 1)
    return list(found.values())
