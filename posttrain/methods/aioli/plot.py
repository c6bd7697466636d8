"""Plots of proportions of groups, as PNG bytes: a sweep, how well a law fits it, matrices beside each other."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from posttrain.reports.plots import COLOURS, MARKERS, legend_text

_HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo")


def draw_sweep(groups: Sequence[str], names: Sequence[str], proportions: np.ndarray, losses: np.ndarray) -> bytes:
    """Runs from best to worst: what each was made of, and the mean of its losses.

    Args:
        groups: m. names: n runs. proportions, losses: (n, m).
    """
    means = losses.mean(axis=1)
    order = np.argsort(-means, kind="stable")  # the best on top
    figure, (left, right) = _figure(2, height=1.6 + 0.3 * len(names))
    places = np.arange(len(names))
    ends = np.cumsum(proportions[order], axis=1)
    for group, name in enumerate(groups):
        own = proportions[order, group]
        look: dict[str, Any] = {"color": COLOURS[group % len(COLOURS)], "hatch": _HATCHES[group % len(_HATCHES)]}
        left.barh(places, own, left=ends[:, group] - own, label=legend_text(name), edgecolor="white", **look)
    left.set_yticks(places, [legend_text(names[place]) for place in order])
    left.set(title="proportions", xlabel="share of the rows", xlim=(0, 1))
    left.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4, frameon=False)
    right.plot(means[order], places, linestyle="none", marker=MARKERS[0], color=COLOURS[0])
    right.set_yticks(places, [])
    right.set(title="mean validation loss", xlabel="nats a token, mean over groups")
    right.grid(alpha=0.3)
    return _png(figure)


def draw_fit(groups: Sequence[str], observed: np.ndarray, predicted: np.ndarray, *, title: str) -> bytes:
    """Losses that a law gives against those of the runs (n, m), a colour a group, with the line of equality."""
    figure, (axes,) = _figure(1, height=4.4)
    for group, name in enumerate(groups):
        look: dict[str, Any] = {"color": COLOURS[group % len(COLOURS)], "marker": MARKERS[group % len(MARKERS)]}
        axes.plot(observed[:, group], predicted[:, group], linestyle="none", label=legend_text(name), **look)
    ends = [min(observed.min(), predicted.min()), max(observed.max(), predicted.max())]
    axes.plot(ends, ends, color="#888888", linewidth=1, zorder=0)
    axes.set(title=legend_text(title, limit=80), xlabel="loss of the run (nats)", ylabel="loss by the law (nats)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _png(figure)


def draw_matrices(groups: Sequence[str], matrices: Mapping[str, np.ndarray], *, rows: str, columns: str) -> bytes:
    """Heat maps with their numbers, each on a scale of its own around 0.

    Args:
        groups: m. matrices: title -> (m, m). rows, columns: what they stand for.
    """
    figure, panels = _figure(len(matrices), height=1.8 + 0.55 * len(groups))
    names = [legend_text(name, limit=14) for name in groups]
    for axes, (title, matrix) in zip(panels, matrices.items(), strict=True):
        largest = float(np.abs(matrix).max()) or 1.0
        axes.imshow(matrix, cmap="RdBu", vmin=-largest, vmax=largest)
        for i, j in np.ndindex(*matrix.shape):
            colour = "white" if abs(matrix[i, j]) > 0.6 * largest else "black"
            axes.text(j, i, f"{matrix[i, j]:.2g}", ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set(title=legend_text(title, limit=60), xlabel=columns, ylabel=rows)
    return _png(figure)


def _figure(panels: int, *, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(5.2 * panels, max(height, 3.0)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()
