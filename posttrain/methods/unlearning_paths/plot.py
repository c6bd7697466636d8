"""Plots of unlearning: metrics by set for several models, as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from posttrain.reports.plots import COLOURS, Plot, legend_text

_HATCHES = ("", "//", "..", "xx", "\\\\", "++", "--")


def draw_metrics(models: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Plot:
    """One panel a model, one group of bars a set, one bar a metric; all metrics lie in [0, 1].

    Args:
        models: model -> set -> metric -> value; what is missing is left out.
    """
    names = list(dict.fromkeys(name for sets in models.values() for name in sets))
    metrics = list(dict.fromkeys(key for sets in models.values() for found in sets.values() for key in found))
    figure = Figure(figsize=(max(6.4, 1.6 * len(names) * len(models)), 3.8), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
    width = 0.8 / max(1, len(metrics))
    for axes, (model, sets) in zip(panels, models.items(), strict=True):
        for number, metric in enumerate(metrics):
            places = [place for place, name in enumerate(names) if metric in sets.get(name, {})]
            heights = [sets[names[place]][metric] for place in places]
            look: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "hatch": _HATCHES[number % len(_HATCHES)]}
            shifted = [place + (number - (len(metrics) - 1) / 2) * width for place in places]
            axes.bar(shifted, heights, width, label=legend_text(metric.replace("_", " ")), edgecolor="white", **look)
        axes.set_xticks(range(len(names)), [legend_text(name, limit=16) for name in names], fontsize=9)
        axes.set_title(legend_text(model), fontsize=11)
        axes.set_ylim(0, 1.03)
        axes.grid(alpha=0.3, axis="y")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("0 to 1", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    content = io.BytesIO()
    canvas.print_png(content, metadata={"Software": None})
    told = [
        f"{model}, {name}: " + ", ".join(f"{metric.replace('_', ' ')} {value:.2f}" for metric, value in found.items())
        for model, sets in models.items()
        for name, found in sets.items()
    ]
    return Plot(content.getvalue(), f"{'; '.join(told)}.")
