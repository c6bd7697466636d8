"""REPORT.md of a study and its plots: every number of the results, for a reader who was not there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from posttrain.reports import plots
from posttrain.reports.markdown import MISSING, duration, escape, number, percent, table
from posttrain.reports.records import write_atomic
from posttrain.reports.run_report import RunFolder
from posttrain.reproduce.decision import WORDS, scale_of, shown
from posttrain.reproduce.figures import forest, overlay, scale_for
from posttrain.reproduce.group_losses import PREFIX, losses_table
from posttrain.reproduce.plan import Plan
from posttrain.reproduce.results import ClaimResult, StudyResult, claim_of, source_remarks

READING = (
    "A number after ± is one standard error over seeds; in the table of seeds, over the prompts of one evaluation. "
    "A difference is taken seed by seed; its interval is a 95 % Student t interval over seeds. A claim is *held* if "
    "the interval against every baseline it names lies beyond its margin, *not held* if one interval lies wholly on "
    "the other side, and *undecided* otherwise: the seeds do not tell. No correction for several tests is applied: "
    "*held* needs all of its tests, so it needs none; *not held* needs one of them, and with many baselines chance "
    "alone gives it more often. Seconds are those of this machine, beside other jobs."
)


def write_report(plan: Plan, result: StudyResult) -> Path:
    """Write REPORT.md and its plots into the study's folder.

    Args:
        plan: where the runs are.
        result: what they gave.
    """
    paper = result.paper
    parts = [
        f"# Reproduction of {escape(plan.key)}, study {escape(result.study)}",
        "",
        f"- Paper: {escape(paper['title'])} ({paper['year']}), arXiv {escape(paper['arxiv'])}.",
        f"- It says: {escape(result.paper_claim)}",
        f"- Here: {escape(result.setting)}",
        "",
    ]
    remarks = source_remarks(result.environments)
    if remarks:
        parts += [f"**No single commit is the source that ran:** the results are {', '.join(remarks)}.", ""]
    if result.changed:
        parts += [f"**Run with changes, so not the shipped study:** {escape(', '.join(result.changed))}", ""]
    parts += ["## Claims", "", *[_claim_text(item) for item in result.claims]]
    images = {"differences": forest(result), **_curves(plan, result)}
    for name, content in images.items():
        write_atomic(plan.output / "plots" / f"{name}.png", content)
    parts += ["", "![paired differences](plots/differences.png)", ""]
    parts += [
        "## Variants",
        "",
        variants_table(result),
        "",
        *_unequal(result),
        losses_table(result) if result.metric.startswith(PREFIX) else _verdicts(result),
        "",
        "## Every seed",
        "",
        seeds_table(result),
        "",
    ]
    parts += ["## Every comparison", "", comparisons_table(result), ""]
    drawn = [name for name in images if name != "differences"]
    parts += ["## Curves", "", *[f"![{name}](plots/{name}.png)" for name in drawn], ""] if drawn else []
    parts += ["## How it was made", "", _provenance(result), "", "## How to read this", "", READING, ""]
    parts += [f"What the study cannot show: {escape(result.notes)}", ""] if result.notes else []
    return write_atomic(plan.output / "REPORT.md", "\n".join(parts))


# ---- tables ----


def _claim_text(item: ClaimResult) -> str:
    held = WORDS[item.decision.held]
    return f"- **{held}** – {escape(item.definition['statement'])} {escape(item.decision.sentence)}"


def variants_table(result: StudyResult) -> str:
    """One line a variant: the metric over seeds and what it cost, means over seeds."""
    header = ["variant", "method", result.metric, "lowest to highest", "steps", "prompts", "generated tokens"]
    header += ["demonstrations", "training time"]
    rows = []
    for variant in result.variants:
        spread = variant.spread
        low, high = _value(spread.min, None, result.metric), _value(spread.max, None, result.metric)
        row = [escape(variant.label), escape(" → ".join(stage.trainer for stage in variant.stages) or variant.trainer)]
        row += [_value(spread.mean, spread.stderr, result.metric), f"{low} to {high}"]
        row += [number(variant.steps), number(variant.prompts)]
        row += [number(_mean([getattr(seed, name) for seed in variant.seeds])) for name in _COUNTED]
        rows.append([*row, duration(_mean([seed.seconds for seed in variant.seeds]))])
    return table(header, rows)


_COUNTED = ("generated_tokens", "demonstrations")


def seeds_table(result: StudyResult) -> str:
    """The metric of every variant on every seed, with the error over prompts where there is one."""
    rows = []
    for variant in result.variants:
        row = [escape(variant.label)]
        for seed in variant.seeds:
            error = seed.accuracy_stderr if result.metric == "accuracy" else None
            row.append(_value(seed.values[result.metric], error, result.metric))
        rows.append(row)
    return table(["variant", *(f"seed {seed}" for seed in result.seeds)], rows)


def comparisons_table(result: StudyResult) -> str:
    """Every paired difference of every claim."""
    rows = []
    for item in result.claims:
        claim, labels = claim_of(item.definition), {variant.stage: variant.label for variant in result.variants}
        scale = scale_for(claim, result)
        for row in item.decision.comparisons:
            against = labels[row.baseline] if row.baseline else f"{claim.metric}, last minus first"
            interval = f"{shown(row.low, scale)} to {shown(row.high, scale)}"
            chance = MISSING if row.p_value is None else f"{row.p_value:.2g}"
            cells = [claim.name, against, shown(row.effect, scale), interval, chance, str(row.num_seeds)]
            rows.append([escape(cell) for cell in cells])
    return table(["claim", "against", "difference", "95 % interval", "p", "seeds"], rows)


def _unequal(result: StudyResult) -> list[str]:
    lines = [
        f"- {escape(variant.label)} is trained unlike the others "
        f"({variant.steps} steps, {number(variant.prompts)} prompts): "
        f"{escape(variant.unequal)}"
        for variant in result.variants
        if variant.unequal
    ]
    counted = {variant.label: _mean([seed.trained_prompts for seed in variant.seeds]) for variant in result.variants}
    lines += [
        f"- {escape(variant.label)} drew {number(count)} prompts as counted, {number(variant.prompts)} as planned."
        for variant, count in ((variant, counted[variant.label]) for variant in result.variants)
        if count is not None and not math.isclose(count, variant.prompts)
    ]
    return [*lines, ""] if lines else []


def _verdicts(result: StudyResult) -> str:
    """How many completions of the final evaluations no verdict was given on, by variant and seed."""
    found = [
        f"{escape(variant.label)}, seed {seed.seed}: {seed.unscored} ({seed.failed} because the verifier failed)"
        for variant in result.variants
        for seed in variant.seeds
        if seed.unscored
    ]
    if not found:
        return "Every completion of the final evaluations has a verdict."
    return f"Completions of the final evaluations without a verdict, left out of the numbers: {'; '.join(found)}."


def _provenance(result: StudyResult) -> str:
    minutes, hardware = result.minutes, result.hardware
    limit = "" if minutes.wall <= minutes.limit else f", more than the {minutes.limit} it should take"
    commits = {
        f"{item.git['commit'][:12]}{' with uncommitted changes' if item.git['dirty'] else ''}"
        if item.git
        else "unknown"
        for item in result.environments
    }
    facts = {
        "command": result.command,
        "date": result.date,
        "time": f"{minutes.wall:g} min, {minutes.jobs} at once ({minutes.summed:g} min one after the other){limit}",
        "hardware": f"{hardware['cpu']}, {hardware['cores']} cores, trained on {hardware['device']}",
        "seeds": f"{', '.join(map(str, result.seeds))}. {result.seeds_reach}",
        "shared preparation": ", ".join(f"{s.name} ({s.trainer}, {s.steps} steps)" for s in result.preparation),
        "posttrain commit": ", ".join(sorted(commits)),
        "versions": "; ".join(
            ", ".join(f"{name} {version}" for name, version in item.versions.items()) for item in result.environments
        ),
    }
    rows = [[escape(name), escape(value)] for name, value in facts.items() if value]
    return table(["", "every number: `RESULTS.json`"], rows).replace("---:", ":---")


def _value(value: float, stderr: float | None, metric: str) -> str:
    if scale_of(metric) == "points":
        return percent(value, stderr)
    return f"{value:.4g}" if stderr is None else f"{value:.4g} ± {stderr:.2g}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def _curves(plan: Plan, result: StudyResult) -> dict[str, bytes]:
    """Evaluations over steps, the accuracy of rollouts, and the metric of each change claim: mean over seeds."""
    trained = [variant for variant in result.variants if variant.stages]
    folders = {variant.label: [RunFolder(run.stage_folder(variant.stage)) for run in plan.runs] for variant in trained}

    def evaluated(folder: RunFolder) -> dict[float, float]:
        return {step: accuracy for step, accuracy, _ in folder.evaluation_points() if math.isfinite(accuracy)}

    def logged(metric: str) -> Callable[[RunFolder], dict[float, float]]:
        return lambda folder: dict(zip(*plots.series(folder.read_metrics(), metric), strict=True))

    wanted: dict[str, tuple[str, Callable[[RunFolder], dict[float, float]]]] = {
        "evaluation": ("accuracy on the evaluation prompts", evaluated),
        "rollouts": ("accuracy of the training rollouts", logged("rollout/accuracy")),
    }
    for item in result.claims:
        if item.definition["kind"] == "change":
            metric = item.definition["metric"]
            wanted[metric.replace("/", "_")] = (metric, logged(metric))
    drawn = {}
    for name, (label, read) in wanted.items():
        content = overlay({variant: [read(folder) for folder in found] for variant, found in folders.items()}, label)
        if content is not None:
            drawn[name] = content
    return drawn
