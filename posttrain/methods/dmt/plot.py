"""The plot of a study of data composition, as PNG bytes: scores by amount, and general against specialised ones."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from posttrain.reports.markdown import visible
from posttrain.reports.plots import COLOURS, MARKERS, STYLES


@dataclass(frozen=True)
class ModelCurves:
    """What is drawn of one model; scores from 0 to 1.

    `alone` and `together`: ability -> (amount, score) ascending. `strategies`: label -> (general, specialised) mean
    scores; those of the k sweep stand in `sweep` as (k, general, specialised), ascending.
    """

    name: str
    alone: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    together: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    strategies: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    sweep: Sequence[tuple[float, float, float]] = ()


def draw_composition(models: Sequence[ModelCurves]) -> bytes:
    """One line of panels for each model: by amount on the left, the trade-off over k on the right."""
    figure = Figure(figsize=(10, 4 * len(models)), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(len(models), 2, squeeze=False)
    for (left, right), model in zip(axes, models, strict=True):
        _draw_amounts(left, model)
        _draw_trade(right, model)
    data = io.BytesIO()
    canvas.print_png(data)
    return data.getvalue()


def _draw_amounts(axes: Axes, model: ModelCurves) -> None:
    for place, ability in enumerate(dict.fromkeys([*model.alone, *model.together])):
        look: dict[str, Any] = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
        for style, how, curves in (("-", "alone", model.alone), ("--", "with the others", model.together)):
            if ability in curves:
                amounts, scores = zip(*curves[ability], strict=True)
                label = f"{visible(ability)}, {how}"
                axes.plot(amounts, scores, linestyle=style, label=label, **look)
    axes.set_xscale("log", base=2)
    axes.set(title=f"{visible(model.name)}: amount", xlabel="part of the rows", ylabel="accuracy", ylim=(-0.03, 1.03))
    _finish(axes)


def _draw_trade(axes: Axes, model: ModelCurves) -> None:
    if model.sweep:
        _, general, special = zip(*model.sweep, strict=True)
        axes.plot(general, special, STYLES[0], color=COLOURS[0], marker=MARKERS[0], label="stage 2 repeats k")
        for k, x, y in model.sweep:
            axes.annotate(f"k = {k:g}", (x, y), textcoords="offset points", xytext=(5, 5), fontsize=8)
    for place, (label, (x, y)) in enumerate(model.strategies.items(), start=1):
        look: dict[str, Any] = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
        axes.plot([x], [y], linestyle="none", label=visible(label), **look)
    title = f"{visible(model.name)}: strategies"
    axes.set(title=title, xlabel="accuracy, general", ylabel="accuracy, specialised", ylim=(-0.03, 1.03))
    _finish(axes)


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
