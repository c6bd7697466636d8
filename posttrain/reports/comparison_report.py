"""The report of a comparison: the answer in words, then everything it rests on, as `REPORT.md` and `report.html`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.errors import ConfigError
from posttrain.evaluation.results import Sample
from posttrain.reports import plots, sections
from posttrain.reports.comparability import settings_table, warnings
from posttrain.reports.comparison import COSTS, Comparison, PairedTest, accuracy_against
from posttrain.reports.document import Cell, Document, Image, Section, Table
from posttrain.reports.markdown import MISSING, duration, number
from posttrain.reports.variants import Variant

NOT_RECORDED = "not recorded"
_OTHER_FOLDER = "Name another folder for the comparison with --output"
READING = (
    "Accuracy is the share of evaluation prompts that the verifier accepts. With several completions per prompt, "
    "their mean is taken first. Only the verdict right or wrong counts, no other reward.",
    "A seed decides the random choices of a run. Runs of one recipe with different seeds show how much of a "
    "difference is luck; only several seeds can tell whether a method is better.",
    "“± … over 3 seeds” is the standard error of the mean over seeds, s / √n. “± … over 300 prompts” is the standard "
    "error over the prompts of one run: it says how exactly that one model was measured, not what another seed would "
    "give.",
    "The paired test takes the difference on the same seed (or, with one seed, on the same prompt) and asks whether "
    "its mean could be 0: a two-sided t-test. The 95 % interval holds the true difference in 95 of 100 such studies. "
    "A p-value is the chance of a difference at least this large if there were none.",
    "Where several are tested, one of them may look different by chance alone. The p-values adjusted by Holm’s "
    "method allow for it; the intervals do not.",
    "In plots of several seeds the thin lines are single seeds, the thick line is their mean, and the band reaches "
    "from the lowest to the highest.",
)


def write_comparison(output_dir: str | Path, comparison: Comparison, *, title: str | None = None) -> Path:
    """Write `REPORT.md`, `report.html` and `plots/` into a folder; returns the path of the page.

    Args:
        output_dir: folder of the report; the variants' folders may lie anywhere.
        comparison: what is compared.
        title: default "Comparison of <names>".
    """
    return write_document(describe(comparison, title=title), output_dir)


def write_document(document: Document, output_dir: str | Path) -> Path:
    """`Document.write`, unless the folder is that of a run, whose own report would be lost."""
    if (Path(output_dir) / "run.json").exists():
        raise ConfigError("this folder is a run and has a report of its own", where=str(output_dir), fix=_OTHER_FOLDER)
    return document.write(output_dir)


def describe(comparison: Comparison, *, title: str | None = None) -> Document:
    """The whole report as data."""
    concerns = warnings(comparison)
    parts = [
        Section("Warnings", points=concerns or ["None found."], is_warning=bool(concerns)),
        _result(comparison),
        _tests(comparison),
        _evaluation_curves(comparison),
        _training_curves(comparison),
        _costs(comparison),
        _differences(comparison.variants),
        _examples(comparison),
        Section("How to read this", points=READING),
        _provenance(comparison.variants),
    ]
    names = _and([variant.name for variant in comparison.variants])
    return Document(
        title or f"Comparison of {names if len(names) <= 60 else f'{len(comparison.variants)} variants'}",
        answer(comparison, concerns=len(concerns)),
        lead=(_what_was_compared(comparison),),
        sections=[part for part in parts if part is not None],
    )


def answer(comparison: Comparison, *, concerns: int = 0) -> str:
    """The outcome in a few sentences."""
    ranked = comparison.ranked()
    if not ranked:
        return "No variant has an evaluation after training yet, so there is no result to compare."
    best = ranked[0]
    text = f"{best.name} ended {_superlative(comparison, len(ranked))}{_value(comparison, best)}"
    if len(ranked) == 1:
        return f"{text}. No other variant has a final result, so there is nothing to compare it with."
    others = [f"{_value(comparison, variant)} for {variant.name}" for variant in ranked[1:4]]
    more = f", {len(ranked) - 4} more below" if len(ranked) > 4 else ""
    text += f", against {_and(others)}{more}{_means(comparison, ranked)}."
    rival = best if best.name != comparison.baseline.name else ranked[1]
    test = next((item for item in comparison.tests if item.variant == rival.name), None)
    text += " " + verdict(comparison, test) if test is not None else ""
    if concerns:
        text += f" Read the {concerns} warnings below first." if concerns > 1 else " Read the warning below first."
    return text


def verdict(comparison: Comparison, test: PairedTest) -> str:
    """What a paired test says, in words, with the test named."""
    if test.interval is None:
        return f"{test.variant} and {test.baseline} could not be tested against each other: {test.note}."
    interval, count = test.interval, len(comparison.tests)
    show = comparison.measure.show_difference
    text = (
        f"{test.variant} minus {test.baseline}: {show(interval.mean)} {comparison.measure.unit}, 95 % interval "
        f"{show(interval.low)} to {show(interval.high)} (paired t-test over {interval.num_values} {test.over}, "
        f"{_p(interval.p_value)}{f', {_p(test.adjusted_p)} adjusted for {count} tests' if count > 1 else ''})."
    )
    if interval.stderr == 0:
        return text + " All pairs differ by the same amount, so the test says more than so few can."
    if not test.excludes_zero:
        return text + " The interval includes 0: these runs do not show that one is better than the other."
    if count > 1 and test.adjusted_p > 1 - interval.confidence:
        return text + " The interval excludes 0, but among so many tests that may be chance."
    if test.over == "prompts":
        return text + " The interval excludes 0 for these two models; one seed does not say what another would give."
    return text + " The interval excludes 0."


def _what_was_compared(comparison: Comparison) -> str:
    variants = [f"{variant.name} ({_seeds(variant)})" for variant in comparison.variants]
    finals = [run.after for variant in comparison.variants for run in variant.distinct if run.after is not None]
    text = f"Compared by {comparison.measure.name}: {_and(variants)}."
    if finals:
        settings = finals[0].get("settings") or {}
        greedy = settings.get("temperature") == 0
        how = "greedy decoding" if greedy else f"sampling at temperature {settings.get('temperature')}"
        asked = {item["num_scored_prompts"] for item in finals}
        counts = f"{min(asked)}" if len(asked) == 1 else f"{min(asked)} to {max(asked)}"
        text += f" Each run was evaluated after training on {counts} prompts"
        text += f", by {how}." if settings else "."
    base = comparison.baseline.name
    return text + (f" Differences are taken to {base}." if len(comparison.variants) > 1 else "")


def _result(comparison: Comparison) -> Section:
    show = comparison.measure.show
    rows: list[list[str | Cell]] = []
    for variant in comparison.variants:
        before, final, change = (
            comparison.before[variant.name],
            comparison.final[variant.name],
            comparison.changes[variant.name],
        )
        several = final.num_seeds > 1
        rows.append(
            [
                variant.name,
                f"{final.num_seeds} of {len(variant.runs)}"
                if final.num_seeds < len(variant.runs)
                else str(final.num_seeds),
                show(before.mean, before.stderr),
                show(final.mean, final.stderr),
                final.over or _state(variant),
                f"{show(final.low)} to {show(final.high)}" if several else MISSING,
                comparison.measure.show_difference(*change),
            ]
        )
    unit = "points" if comparison.measure.is_fraction else comparison.measure.unit
    header = ["", "seeds", "before", "after", "± is over", "lowest to highest seed", f"change ({unit})"]
    each = _each_seed(comparison)
    return Section(f"Result: {comparison.measure.name}", table=Table(header, rows), remark=each)


def _each_seed(comparison: Comparison) -> str:
    """The single results behind the means."""
    lines = []
    for variant in comparison.variants:
        if len(variant.runs) > 1:
            shown = [
                f"{variant.label(run)}: {comparison.measure.show(*comparison.measure.read(run.after))}"
                if run.after is not None
                else f"{variant.label(run)}: {run.state}"
                for run in variant.runs
            ]
            lines.append(f"{variant.name}: {'; '.join(shown)}.")
    return " ".join(["Each seed, ± over its prompts.", *lines]) if lines else ""


def _tests(comparison: Comparison) -> Section | None:
    if len(comparison.variants) < 2:
        return None
    show = comparison.measure.show_difference
    rows: list[list[str | Cell]] = []
    for test in comparison.tests:
        found = test.interval
        numbers = [MISSING] * 4
        if found is not None:
            numbers = [
                show(found.mean, found.stderr),
                f"{show(found.low)} to {show(found.high)}",
                _p(found.p_value, short=True),
                _p(test.adjusted_p, short=True),
            ]
        paired = f"{found.num_values} {test.over}" if found is not None else "not tested"
        rows.append([test.variant, *numbers[: 4 if _several_tests(comparison) else 3], paired])
    unit = "points" if comparison.measure.is_fraction else comparison.measure.unit
    header = ["", f"difference ({unit})", "95 % interval", "p", "p, adjusted (Holm)", "pairs"]
    if not _several_tests(comparison):
        header.remove("p, adjusted (Holm)")
    remarks = [f"Each variant minus {comparison.baseline.name}; two-sided paired t-test of a mean difference of 0."]
    if _several_tests(comparison):
        remarks.append(f"{len(comparison.tests)} tests at once.")
    if any(test.over == "seeds" and test.interval and test.interval.num_values < 4 for test in comparison.tests):
        remarks.append("With so few seeds the interval is wide, and rests on differences being normally distributed.")
    if any(test.over == "prompts" for test in comparison.tests):
        remarks.append("Over prompts: about these two trained models, not about the methods.")
    remarks += [f"{test.variant}: {test.note}." for test in comparison.tests if test.note]
    return Section(f"Test against {comparison.baseline.name}", table=Table(header, rows), remark=" ".join(remarks))


def _evaluation_curves(comparison: Comparison) -> Section | None:
    drawn = _against(comparison, None, plots.STEP)
    return Section("Evaluation during training", images=[Image("evaluation", drawn.png, drawn.alt)]) if drawn else None


def _training_curves(comparison: Comparison) -> Section | None:
    drawn = plots.curves(
        {variant.name: [run.events for run in variant.runs if run.events] for variant in comparison.variants}
    )
    images = [Image(name, plot.png, plot.alt) for name, plot in drawn.items()]
    return Section("Training", images=images) if images else None


def _costs(comparison: Comparison) -> Section:
    def show(name: str, value: float) -> str:
        if math.isnan(value):
            return NOT_RECORDED
        return duration(value) if name.endswith("time") else number(round(value))

    rows: list[list[str | Cell]] = [
        [name, *[show(name, comparison.costs[variant.name][name]) for variant in comparison.variants]]
        for name in COSTS
    ]
    drawn = _against(comparison, "cost/generated_tokens", "tokens generated in training")
    parents = [
        run.settings["start_from"]
        for variant in comparison.variants
        for run in variant.runs
        if "start_from" in run.settings
    ]
    remark = (
        "Mean over the seeds of a variant. " if any(len(variant.runs) > 1 for variant in comparison.variants) else ""
    )
    if parents:
        remark += f"What came before ({', '.join(dict.fromkeys(parents))}) is not counted. "
    remark += (
        "Prompts are those drawn for generation; demonstrations count every time one is trained on; training time "
        "includes generation and the evaluations during training."
    )
    if drawn is None:
        remark += f" {comparison.measure.name.capitalize()} over generated tokens: {NOT_RECORDED}."
    images = [Image("cost", drawn.png, drawn.alt)] if drawn else []
    return Section(
        "Cost",
        table=Table(["", *[variant.name for variant in comparison.variants]], rows),
        images=images,
        remark=remark,
    )


def _against(comparison: Comparison, counter: str | None, xlabel: str) -> plots.Plot | None:
    measure = comparison.measure
    runs = {
        variant.name: [accuracy_against(run, measure, counter) for run in variant.runs]
        for variant in comparison.variants
    }
    if counter is not None and not any(point[0] > 0 for found in runs.values() for run in found for point in run):
        return None
    title = f"{measure.name.capitalize()} on the evaluation prompts"
    ylabel = "fraction solved" if measure.name == "accuracy" else measure.name
    return plots.evaluation_points(runs, title=title, ylabel=ylabel, xlabel=xlabel, is_fraction=measure.is_fraction)


def _differences(variants: Sequence[Variant]) -> Section | None:
    if len(variants) < 2:
        return None
    rows = [[key, *values] for key, values in settings_table(variants)]
    if not rows:
        return Section("Settings that differ", paragraphs=["None: the recipes of the variants are the same."])
    table = Table(["setting", *[variant.name for variant in variants]], rows, is_text=True)
    return Section(
        "Settings that differ",
        table=table,
        remark="All other settings of the recipes are the same; seeds are not compared.",
    )


def _examples(comparison: Comparison) -> Section | None:
    """The same prompts with the completions of every variant."""
    shown = comparison.example_runs()
    found = [(variant.name, run.folder.read_samples("after")) for variant, run in shown]
    if shown:
        found.insert(0, ("before", shown[0][1].folder.read_samples("before")))
    columns = [
        (name, {(item["index"], item["sample"]): item for item in samples}) for name, samples in found if samples
    ]
    if not columns:
        return None
    rows = []
    for key in sections.examples(columns[0][1], columns[-1][1]):
        first = columns[0][1][key]
        asked = sections.prompt_text(first["prompt"])
        if first.get("answer") not in (None, ""):
            asked += f"\nexpected: {first['answer']}"
        rows.append([Cell(asked), *[_completion(samples.get(key)) for _, samples in columns]])
    header = ["prompt", *[name if name == "before" else f"after, {name}" for name, _ in columns]]
    runs = "; ".join(f"{variant.name}: {variant.label(run)}" for variant, run in shown)
    choice = (
        f"One run of each variant ({runs}; “before” is the first one’s). Up to two prompts a kind, the first in the "
        "order of the data: wrong then correct, correct then wrong, wrong both times, correct both times (first and "
        "last column). All are in the folder “completions” of each run."
    )
    return Section("Completions", paragraphs=[choice], table=Table(header, rows, is_text=True))


def _completion(sample: Sample | None) -> str | Cell:
    if sample is None:
        return MISSING
    tone = {True: "good", False: "bad", None: ""}[sample["correct"]]
    return Cell(sample["completion"], sections.verdict(sample), tone)


def _provenance(variants: Sequence[Variant]) -> Section:
    rows: list[list[str | Cell]] = []
    for variant in variants:
        for run in variant.runs:
            git = run.record.get("git") or {}
            commit = (git.get("commit") or NOT_RECORDED)[:12] + (" with changes" if git.get("dirty") else "")
            command = " ".join(run.record.get("command", [])) or NOT_RECORDED
            started = str(run.record.get("created", NOT_RECORDED)).replace("T", " ")[:16]
            name = f"{variant.name}, {variant.label(run)}"
            rows.append([name, run.state, str(run.folder.path), started, commit, command])
    header = ["run", "state", "folder", "started (UTC)", "posttrain commit", "command"]
    versions: dict[str, Any] = next(
        (run.record["versions"] for variant in variants for run in variant.runs if "versions" in run.record), {}
    )
    shown = ", ".join(f"{name} {value}" for name, value in versions.items() if value)
    remark = f"Versions of the first run: {shown}. " if shown else ""
    remark += "The full record of a run is its run.json, every logged number its metrics.jsonl."
    return Section("How the runs were made", table=Table(header, rows, is_text=True), remark=remark)


def _superlative(comparison: Comparison, count: int) -> str:
    if count == 1:
        return "with " if comparison.measure.name != "accuracy" else "solving "
    return "highest, at " if comparison.measure.name != "accuracy" else "highest, solving "


def _value(comparison: Comparison, variant: Variant) -> str:
    shown = comparison.measure.show(comparison.final[variant.name].mean)
    return (
        f"{shown} of the evaluation prompts"
        if comparison.measure.name == "accuracy" and variant is comparison.ranked()[0]
        else shown
    )


def _means(comparison: Comparison, variants: Sequence[Variant]) -> str:
    counts = {comparison.final[variant.name].num_seeds for variant in variants}
    if counts == {1}:
        return " (one seed each)"
    return f" (means over {counts.pop()} seeds)" if len(counts) == 1 else " (means over the seeds of each)"


def _several_tests(comparison: Comparison) -> bool:
    return len(comparison.tests) > 1


def _seeds(variant: Variant) -> str:
    if len(variant.runs) == 1:
        return variant.label(variant.runs[0])
    return f"{len(variant.runs)} runs: {', '.join(variant.label(run) for run in variant.runs)}"


def _state(variant: Variant) -> str:
    return "; ".join(dict.fromkeys(run.state for run in variant.runs))


def _p(value: float, *, short: bool = False) -> str:
    if math.isnan(value):
        return MISSING
    shown = "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"
    return shown if short else f"p {shown}" if shown.startswith("<") else f"p = {shown}"


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
