"""Plots of a run or of several runs side by side, as PNG bytes.

Okabe-Ito colours, each with a line style and marker of its own, so that neither colour vision nor print matters.
Drawn through matplotlib's Agg canvas alone: no display, no global pyplot state.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from posttrain import registry
from posttrain.reports.markdown import visible

Events = Sequence[Mapping[str, Any]]
# (step or cost, value, standard error), the last NaN if unknown
Point = tuple[float, float, float]
Seed = tuple[Sequence[float], Sequence[float]]  # places on the horizontal axis, values
STEP = "optimizer step"

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# A curve with more points than this is drawn pale, with its running mean on top.
NOISY_POINTS = 40
LEGEND_WIDTH = 92  # letters of a legend's line, marks and gaps included


@dataclass(frozen=True)
class Panel:
    """One plot: the metrics drawn in it (those that exist), its words, and the limits of the vertical axis."""

    name: str
    title: str
    ylabel: str
    metrics: tuple[tuple[str, str], ...]  # (metric, legend)
    limits: tuple[float | None, float | None] = (None, None)


FRACTION = (-0.03, 1.03)


def own_panels() -> list[Panel]:
    """The plots of what methods declare of their own."""
    return [Panel(c.name, c.title, c.unit, ((c.metric, c.label),), c.limits) for c in registry.curves()]


PANELS = (
    Panel("accuracy", "Accuracy of the training rollouts", "fraction accepted (0 to 1)",
          (("rollout/accuracy", "accepted"),), FRACTION),
    Panel("reward", "Reward of the training rollouts", "mean reward of a step", (("reward", "reward"),)),
    Panel("loss", "Supervised training loss", "negative log-likelihood per token (nats)", (("loss", "loss"),)),
    Panel("gate", "Prompts trained on their demonstration", "fraction of prompts (0 to 1)",
          (("gate/sft_fraction", "demonstration"),), FRACTION),
    *own_panels(),
    Panel("groups", "Prompt groups by outcome", "fraction of groups (0 to 1)",
          (("groups/all_wrong", "all wrong"), ("groups/mixed", "mixed"), ("groups/all_correct", "all correct")),
          FRACTION),
    Panel("gradient", "Rows that carry gradient", "fraction of rows (0 to 1)",
          (("update/gradient_rows", "gradient rows"),), FRACTION),
    Panel("length", "Length of the training rollouts", "tokens per completion", (("completions/mean_length", "mean"),),
          (0, None)),
    Panel("truncated", "Rollouts cut off at the length limit", "fraction of completions (0 to 1)",
          (("rollout/truncated_fraction", "truncated"),), FRACTION),
    Panel("entropy", "Entropy of the next token in training", "nats per token", (("entropy", "entropy"),), (0, None)),
    Panel("grad_norm", "Gradient norm before clipping", "global L2 norm", (("grad_norm", "norm"),), (0, None)),
)  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """A drawn plot: PNG bytes, and in words what it shows for who cannot see it."""

    png: bytes
    alt: str


def curves(variants: Mapping[str, Sequence[Events]], panels: Sequence[Panel] = PANELS) -> dict[str, Plot]:
    """Draw every panel that has data.

    Args:
        variants: log events of each seed, by the name that the legend shows; a single variant is drawn without its
            name. Several seeds are drawn thin, with their mean as a line and their range as a band.
        panels: what to draw; with more than two variants, a panel of several metrics becomes one for each.

    Returns:
        Plots by panel name, in the order of the panels; a panel without a finite number is left out.
    """
    drawn = {}
    for panel in panels if len(variants) <= 2 else _split(panels):
        lines = []
        for number, (variant, runs) in enumerate(variants.items()):
            for place, (metric, legend) in enumerate(panel.metrics):
                found = [series(events, metric) for events in runs if not _says_nothing(metric, events)]
                found = [(steps, values) for steps, values in found if steps]
                if not found:
                    continue
                many = len(panel.metrics) > 1
                label = legend if len(variants) == 1 else f"{variant}: {legend}" if many else variant
                lines.append(_Line(label, found, _style(*_look(len(variants) == 1, not many, number, place))))
        if lines:
            drawn[panel.name] = _draw_curves(panel, lines, is_comparison=len(variants) > 1)
    return drawn


def _split(panels: Sequence[Panel]) -> list[Panel]:
    """One panel for each metric."""
    found: list[Panel] = []
    for panel in panels:
        several = len(panel.metrics) > 1
        for metric, legend in panel.metrics:
            name = f"{panel.name}_{legend.replace(' ', '_')}" if several else panel.name
            title = f"{panel.title}: {legend}" if several else panel.title
            found.append(replace(panel, name=name, title=title, metrics=((metric, legend),)))
    return found


def series(events: Events, metric: str) -> tuple[list[int], list[float]]:
    """Steps and values of a metric where it is a finite number."""
    points = [(event["step"], event[metric]) for event in events if _is_number(event.get(metric))]
    return [step for step, _ in points], [float(value) for _, value in points]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of each value and the up to `window - 1` before it."""
    means = []
    for end in range(1, len(values) + 1):
        part = values[max(0, end - window) : end]
        means.append(sum(part) / len(part))
    return means


def evaluation_points(
    variants: Mapping[str, Sequence[Sequence[Point]]],
    *,
    title: str = "Accuracy on the evaluation prompts",
    ylabel: str = "fraction solved",
    xlabel: str = STEP,
    is_fraction: bool = True,
) -> Plot | None:
    """A number of the evaluations over optimizer steps or over a cost.

    One seed has bars of one standard error over prompts; several are drawn thin, with their mean and range.

    Args:
        variants: (step or cost, value, standard error) of each evaluation of each seed, by the name that the legend
            shows.
        title: of the plot.
        ylabel: what the value is.
        xlabel: what the first number of a point is.
        is_fraction: whether the values lie in [0, 1], which the axis then does not leave.

    Returns:
        None if no variant has a finite value.
    """
    found = {
        name: [kept for points in runs if (kept := [point for point in points if math.isfinite(point[1])])]
        for name, runs in variants.items()
    }
    points = [point for runs in found.values() for run in runs for point in run]
    if not points:
        return None

    def draw(axes: Axes) -> None:
        widest = max(place for place, _, _ in points)
        for number, (name, runs) in enumerate(found.items()):
            # Variants that end at the same step would hide each other's bars.
            shift = (number - (len(found) - 1) / 2) * 0.012 * max(widest, 1) if xlabel == STEP else 0.0
            if len(runs) == 1:
                _draw_with_bars(axes, runs[0], shift, name, _style(number, number))
            elif runs:
                _draw_seeds(axes, [([p + shift for p, _, _ in run], [v for _, v, _ in run]) for run in runs],
                            name, _style(number, number), by_place=True)  # fmt: skip
        highest = max(value + (error if error > 0 else 0) for _, value, error in points)
        lowest = min(value for _, value, _ in points)
        if is_fraction:
            axes.set_ylim(FRACTION[0] * highest, min(FRACTION[1], highest * 1.15 + 0.01))
        elif lowest >= 0:
            axes.set_ylim(0, highest * 1.15 or 1)

    notes = ["bars: ± 1 standard error over prompts"] if any(len(runs) == 1 for runs in found.values()) else []
    notes += ["line: mean over seeds, band: their range"] if any(len(runs) > 1 for runs in found.values()) else []
    ends = [
        f"{name or 'it'} ends at {_mean([run[-1][1] for run in runs]):.3g}" for name, runs in found.items() if runs
    ]
    png = _figure(title, ylabel, draw, legend=any(found), xlabel=xlabel, note="; ".join(notes))
    return Plot(png, f"{title}, over {xlabel}: {'; '.join(ends)}.")


def legend_text(name: str, *, limit: int = 40) -> str:
    """A name as a plot can show it: on one line, shortened, without characters that a font or matplotlib reads."""
    text = " ".join(visible(name).split())
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    # matplotlib: a label that begins with _ is left out, and what stands between dollar signs is set as a formula.
    return (f" {text}" if text.startswith("_") else text).replace("$", r"\$")


def _says_nothing(metric: str, events: Events) -> bool:
    """The loss of a policy gradient, near zero by construction, and a reward that is the verdict and nothing else."""
    if metric == "loss":
        return any("reward" in event for event in events)
    return metric == "reward" and series(events, metric) == series(events, "rollout/accuracy")


@dataclass(frozen=True)
class _Line:
    label: str
    seeds: list[tuple[list[int], list[float]]]  # as `Seed`
    style: dict[str, Any]


def _draw_curves(panel: Panel, lines: list[_Line], *, is_comparison: bool) -> Plot:
    longest = max(len(values) for line in lines for _, values in line.seeds)
    window = math.ceil(longest / 20) if longest > NOISY_POINTS else 1

    def draw(axes: Axes) -> None:
        for line in lines:
            style = line.style if window == 1 else {**line.style, "marker": None}
            if window > 1 and len(line.seeds) == 1:
                axes.plot(*line.seeds[0], color=style["color"], alpha=0.25, linewidth=0.8)
            smooth = [(steps, running_mean(values, window)) for steps, values in line.seeds]
            if len(smooth) == 1:
                axes.plot(*smooth[0], label=legend_text(line.label), markersize=3, **style)
            else:
                _draw_seeds(axes, smooth, line.label, style, with_spread=len(panel.metrics) == 1)
        axes.set_ylim(*panel.limits)

    notes = [f"running mean of {window} logs"] if window > 1 else []
    if any(len(line.seeds) > 1 for line in lines):
        notes.append("line: mean over seeds" + (", band: their range" if len(panel.metrics) == 1 else ""))
    # One variant of several that has such a curve is named, too.
    legend = len(lines) > 1 or is_comparison or bool(notes)
    last = {line.label: _aligned(line.seeds)[1][-1:] for line in lines}
    ends = [f"{label} ends at {_mean(values[0]):.3g}" for label, values in last.items() if values]
    png = _figure(panel.title, panel.ylabel, draw, legend=legend, note="; ".join(notes) or None)
    return Plot(png, f"{panel.title}, over {STEP}: {'; '.join(ends)}.")


def _draw_seeds(
    axes: Axes,
    seeds: Sequence[Seed],
    label: str,
    style: dict[str, Any],
    *,
    with_spread: bool = True,
    by_place: bool = False,
) -> None:
    """Each seed thin, their mean as a line, their range as a band.

    Args:
        axes: to draw on.
        seeds: places on the horizontal axis and values of each.
        label: of the mean in the legend.
        style: colour, line and marker.
        with_spread: whether single seeds and their range are drawn; False where too many lines would overlap.
        by_place: seeds are matched by their position in the sequence, and the mean stands at the mean place (costs
            differ between seeds); otherwise by equal place, where places that one seed lacks are left out.
    """
    places, columns = _aligned(seeds, by_place=by_place)
    if with_spread:
        for steps, values in seeds:
            axes.plot(steps, values, color=style["color"], alpha=0.35, linewidth=0.7)
        lowest, highest = [min(column) for column in columns], [max(column) for column in columns]
        axes.fill_between(places, lowest, highest, color=style["color"], alpha=0.15, linewidth=0)
    axes.plot(places, [_mean(column) for column in columns], label=legend_text(label), markersize=3, **style)


def _aligned(seeds: Sequence[Seed], *, by_place: bool = False) -> tuple[list[float], list[list[float]]]:
    """Places and the values of all seeds at each, see `_draw_seeds`."""
    if by_place:
        count = min(len(values) for _, values in seeds)
        places = [_mean([steps[i] for steps, _ in seeds]) for i in range(count)]
        return places, [[values[i] for _, values in seeds] for i in range(count)]
    by_step = [dict(zip(steps, values, strict=True)) for steps, values in seeds]
    common = sorted(set.intersection(*[set(found) for found in by_step]))
    return list(common), [[found[place] for found in by_step] for place in common]


def _draw_with_bars(axes: Axes, points: Sequence[Point], shift: float, label: str, style: dict[str, Any]) -> None:
    axes.errorbar(
        [place + shift for place, _, _ in points],
        [value for _, value, _ in points],
        yerr=[0.0 if math.isnan(error) else error for _, _, error in points],
        label=legend_text(label),
        capsize=4,
        **style,
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _figure(
    title: str,
    ylabel: str,
    draw: Callable[[Axes], None],
    *,
    legend: bool,
    note: str | None = None,
    xlabel: str = STEP,
) -> bytes:
    figure = Figure(figsize=(6.4, 3.6), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw(axes)
    axes.set_title(legend_text(title, limit=80), fontsize=11)
    axes.set_xlabel(f"{xlabel}\n({note})" if note and not legend else xlabel)
    axes.set_ylabel(legend_text(ylabel, limit=80), fontsize=9)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        # Below the axes: inside them it would hide data.
        labels = axes.get_legend_handles_labels()[1]
        columns = max(1, min(3, LEGEND_WIDTH // (8 + max(map(len, labels)))))
        figure.set_figheight(3.6 + 0.2 * max(0, math.ceil(len(labels) / columns) - 2))
        figure.legend(
            loc="outside lower center", ncols=columns, frameon=False, fontsize=9, title=note, title_fontsize=8
        )
    content = io.BytesIO()
    canvas.print_png(content, metadata={"Software": None})
    return content.getvalue()


def _look(one_run: bool, one_metric: bool, run: int, place: int) -> tuple[int, int]:
    """Numbers of colour and line style: both tell the lines apart unless runs and metrics vary at once."""
    if one_run:
        return place, place
    return run, run if one_metric else place


def _style(colour: int, line: int) -> dict[str, Any]:
    return {
        "color": COLOURS[colour % len(COLOURS)],
        "linestyle": STYLES[line % len(STYLES)],
        "marker": MARKERS[colour % len(MARKERS)],
        "linewidth": 1.6,
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
