"""Plots of a run or of several runs side by side, as PNG bytes.

Okabe-Ito colours, each with a line style and marker of its own, so that neither colour vision nor print matters.
Drawn through matplotlib's Agg canvas alone: no display, no global pyplot state.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Events = Sequence[Mapping[str, Any]]
# (step, accuracy, standard error), the last NaN if unknown
Point = tuple[int, float, float]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# A curve with more points than this is drawn pale, with its running mean on top.
NOISY_POINTS = 40


@dataclass(frozen=True)
class Panel:
    """One plot: the metrics drawn in it (those that exist), its words, and the limits of the vertical axis."""

    name: str
    title: str
    ylabel: str
    metrics: tuple[tuple[str, str], ...]  # (metric, legend)
    limits: tuple[float | None, float | None] = (None, None)


FRACTION = (-0.03, 1.03)
PANELS = (
    Panel("accuracy", "Accuracy of the training rollouts", "fraction accepted (0 to 1)",
          (("rollout/accuracy", "accepted"),), FRACTION),
    Panel("reward", "Reward of the training rollouts", "mean reward of a step", (("reward", "reward"),)),
    Panel("loss", "Supervised training loss", "negative log-likelihood per token (nats)", (("loss", "loss"),)),
    Panel("gate", "Prompts trained on their demonstration", "fraction of prompts (0 to 1)",
          (("gate/sft_fraction", "demonstration"),), FRACTION),
    Panel("groups", "Prompt groups by outcome", "fraction of groups (0 to 1)",
          (("groups/all_wrong", "all wrong"), ("groups/mixed", "mixed"), ("groups/all_correct", "all correct")),
          FRACTION),
    Panel("gradient", "Rows that carry gradient", "fraction of rows (0 to 1)",
          (("update/gradient_rows", "gradient rows"),), FRACTION),
    Panel("length", "Length of the training rollouts", "tokens per completion", (("completions/mean_length", "mean"),),
          (0, None)),
    Panel("truncated", "Rollouts cut off at the length limit", "fraction of completions (0 to 1)",
          (("rollout/truncated_fraction", "truncated"),), FRACTION),
    Panel("grad_norm", "Gradient norm before clipping", "global L2 norm", (("grad_norm", "norm"),), (0, None)),
)  # fmt: skip


def curves(runs: Mapping[str, Events], panels: Sequence[Panel] = PANELS) -> dict[str, bytes]:
    """Draw every panel that has data.

    Args:
        runs: log events by the name that the legend shows; one run is drawn without its name.
        panels: what to draw.

    Returns:
        PNG bytes by panel name, in the order of the panels; a panel without a finite number is left out.
    """
    drawn = {}
    for panel in panels:
        lines = []
        for number, (run, events) in enumerate(runs.items()):
            for place, (metric, legend) in enumerate(panel.metrics):
                steps, values = series(events, metric)
                if not steps or _says_nothing(metric, events):
                    continue
                many = len(panel.metrics) > 1
                label = legend if len(runs) == 1 else f"{run}: {legend}" if many else run
                lines.append((label, steps, values, _style(*_look(len(runs) == 1, not many, number, place))))
        if lines:
            drawn[panel.name] = _draw_curves(panel, lines)
    return drawn


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


def evaluation_points(runs: Mapping[str, Sequence[Point]]) -> bytes | None:
    """Accuracy of the evaluations over optimizer steps, with bars of one standard error.

    Args:
        runs: (step, accuracy, standard error) of each evaluation, by the name that the legend shows.

    Returns:
        PNG bytes; None if no run has a finite accuracy.
    """
    runs = {name: [point for point in points if math.isfinite(point[1])] for name, points in runs.items()}
    if not any(runs.values()):
        return None

    def draw(axes: Axes) -> None:
        widest = max(step for points in runs.values() for step, _, _ in points)
        for number, (name, points) in enumerate(runs.items()):
            # Arms that end at the same step would hide each other's bars.
            shift = (number - (len(runs) - 1) / 2) * 0.012 * max(widest, 1)
            axes.errorbar(
                [step + shift for step, _, _ in points],
                [accuracy for _, accuracy, _ in points],
                yerr=[0.0 if math.isnan(error) else error for _, _, error in points],
                label=name,
                capsize=4,
                **_style(number, number),
            )
        highest = max(
            accuracy + (error if error > 0 else 0) for points in runs.values() for _, accuracy, error in points
        )
        axes.set_ylim(FRACTION[0] * highest, min(FRACTION[1], highest * 1.15 + 0.01))

    label = "fraction solved ± 1 standard error"
    return _figure("Accuracy on the evaluation prompts", label, draw, legend=len(runs) > 1)


def _says_nothing(metric: str, events: Events) -> bool:
    """The loss of a policy gradient, near zero by construction, and a reward that is the verdict and nothing else."""
    if metric == "loss":
        return any("reward" in event for event in events)
    return metric == "reward" and series(events, metric) == series(events, "rollout/accuracy")


def _draw_curves(panel: Panel, lines: list[tuple[str, list[int], list[float], dict[str, Any]]]) -> bytes:
    longest = max(len(values) for _, _, values, _ in lines)
    window = math.ceil(longest / 20) if longest > NOISY_POINTS else 1

    def draw(axes: Axes) -> None:
        for label, steps, values, style in lines:
            if window > 1:
                axes.plot(steps, values, color=style["color"], alpha=0.25, linewidth=0.8)
                axes.plot(steps, running_mean(values, window), label=label, **{**style, "marker": None})
            else:
                axes.plot(steps, values, label=label, markersize=3, **style)
        axes.set_ylim(*panel.limits)

    note = f"running mean of {window} logs" if window > 1 else None
    return _figure(panel.title, panel.ylabel, draw, legend=len(lines) > 1 or window > 1, note=note)


def _figure(title: str, ylabel: str, draw: Callable[[Axes], None], *, legend: bool, note: str | None = None) -> bytes:
    figure = Figure(figsize=(6.4, 3.6), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw(axes)
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(ylabel, fontsize=9)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        # Below the axes: inside them it would hide data.
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9, title=note, title_fontsize=8)
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
