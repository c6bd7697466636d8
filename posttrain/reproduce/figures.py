"""Plots of a study, as PNG bytes: paired differences with intervals, and curves averaged over seeds."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from posttrain.evaluation.results import mean_and_stderr
from posttrain.reports import plots
from posttrain.reproduce.claims import ChangeClaim, Claim
from posttrain.reproduce.decision import WORDS, Comparison, scale_of, verdict
from posttrain.reproduce.results import ClaimResult, StudyResult, claim_of


def scale_for(claim: Claim, result: StudyResult) -> str:
    """How the numbers of a claim are shown, see `decision.scale_of`."""
    return "" if isinstance(claim, ChangeClaim) else scale_of(claim.metric or result.metric)


def forest(result: StudyResult) -> bytes:
    """Paired differences with their intervals, a line each, coloured by what each says of its claim."""
    labels = {variant.stage: variant.label for variant in result.variants}
    rows: list[tuple[str, Comparison, ClaimResult, float]] = []
    for item in result.claims:
        claim = claim_of(item.definition)
        factor = 100.0 if scale_for(claim, result) == "points" else 1.0
        for row in item.decision.comparisons:
            if isinstance(claim, ChangeClaim):
                text = f"{labels[claim.variant]}: change of {claim.metric}"
            else:
                text = f"{labels[claim.treatment]} − {labels[str(row.baseline)]}"
            rows.append((text, row, item, factor))
    by_unit = {factor: [entry for entry in rows if entry[3] == factor] for factor in dict.fromkeys(r[3] for r in rows)}
    figure = Figure(figsize=(7.6, 0.9 * len(by_unit) + 0.34 * len(rows) + 0.6), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    heights = [len(entries) + 1.6 for entries in by_unit.values()]
    axes = figure.subplots(len(by_unit), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axis, (factor, entries) in zip(axes, by_unit.items(), strict=True):
        _forest_panel(axis, factor, entries)
    content = io.BytesIO()
    canvas.print_png(content, metadata={"Software": None})
    return content.getvalue()


def _forest_panel(axes: Axes, factor: float, entries: list[tuple[str, Comparison, ClaimResult, float]]) -> None:
    colours = {True: plots.COLOURS[2], False: plots.COLOURS[1], "undecided": "#666666"}
    for place, (_, row, item, _) in enumerate(entries):
        colour = colours[verdict(claim_of(item.definition), row)]
        bounds = (row.effect, row.effect) if row.low is None or row.high is None else (row.low, row.high)
        error = [[(row.effect - bounds[0]) * factor], [(bounds[1] - row.effect) * factor]]
        axes.errorbar([row.effect * factor], [place], xerr=error, fmt="o", color=colour, markersize=6, capsize=3)
        margin = item.definition["margin"] * factor
        if margin:
            signed = margin if item.definition["direction"] in ("greater", "rises") else -margin
            axes.plot([signed, signed], [place - 0.4, place + 0.4], color="black", linewidth=1, linestyle=":")
    axes.axvline(0, color="black", linewidth=0.8)
    names = [f"{text}  [{item.definition['name']}: {WORDS[item.decision.held]}]" for text, _, item, _ in entries]
    axes.set_yticks(range(len(entries)), names, fontsize=8)
    axes.set_ylim(len(entries) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    unit = "percentage points" if factor == 100.0 else "unit of the metric"
    axes.set_xlabel(f"difference ({unit}), 95 % interval; dotted: margin", fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)


def overlay(lines: Mapping[str, Sequence[Mapping[float, float]]], ylabel: str) -> bytes | None:
    """Mean over seeds of each variant's curve, with the range of the seeds as a band.

    Args:
        lines: variant -> one curve a seed, step -> value; steps that not every seed has are left out.
        ylabel: of the vertical axis.

    Returns:
        PNG bytes; None if no variant has two common steps.
    """
    figure = Figure(figsize=(7.6, 4.4), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    count = 0
    for index, (label, curves) in enumerate(lines.items()):
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        if len(steps) < 2:
            continue
        count += 1
        columns = [[curve[step] for curve in curves] for step in steps]
        window = math.ceil(len(steps) / 20) if len(steps) > plots.NOISY_POINTS else 1
        mean, low, high = (
            plots.running_mean([rule(values) for values in columns], window)
            for rule in (lambda values: mean_and_stderr(values)[0], min, max)
        )
        colour, style = plots.COLOURS[index % len(plots.COLOURS)], plots.STYLES[index // len(plots.COLOURS)]
        axes.plot(steps, mean, color=colour, linestyle=style, label=label, linewidth=1.6)
        axes.fill_between(steps, low, high, color=colour, alpha=0.08, linewidth=0)
    if not count:
        return None
    axes.set_xlabel("optimizer step of the variant's last stage")
    axes.set_ylabel(ylabel, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    note = "mean over seeds; band: lowest to highest"
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8, title=note, title_fontsize=8)
    content = io.BytesIO()
    canvas.print_png(content, metadata={"Software": None})
    return content.getvalue()
