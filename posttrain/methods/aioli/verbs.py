"""`posttrain mix grid | dml | regmix | skill-graph`: proportions from whole runs of a recipe with static ones.

All share one sweep below `trainer.output_dir`: what one verb has trained, the next one only reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from posttrain.methods.aioli import fits
from posttrain.methods.aioli import plot as mixing_plot
from posttrain.methods.aioli.laws import egd_update
from posttrain.methods.aioli.page import Found, records, sweep_header, sweep_row, sweep_rows, write
from posttrain.methods.aioli.plot import draw_fit, draw_matrices
from posttrain.methods.aioli.sweep import MixRecipe, Sweep

NOISE = "One seed a run, so small differences are noise."


def grid(recipe: MixRecipe, *, draws: int, seed: int, corners: bool = True) -> Found:
    """The best of some static mixtures by the mean of the groups' losses (grid search)."""
    sweep = recipe.sweep(draws=draws, seed=seed, corners=corners)
    best = sweep.best
    found = Found(
        "grid",
        sweep.groups,
        np.array(best.proportions),
        {"runs": records(sweep.runs), "best": best.name},
        sweep_header(sweep.groups),
        sweep_rows(sweep),
        [f"Best: {best.name}, mean loss {best.mean_loss:.4f}; equal proportions: {sweep.runs[0].mean_loss:.4f}."],
    )
    return write(
        recipe.root,
        found,
        title="Sweep of static mixtures",
        explained=f"Validation losses in nats a token at the end of each run, and their mean over groups. {NOISE}",
        plot=draw_sweep(sweep),
        alt="Proportions of each run, and its mean loss",
    )


def draw_sweep(sweep: Sweep) -> bytes:
    """Plot of a sweep's runs."""
    names = [run.name.rpartition("/")[2] for run in sweep.runs]
    return mixing_plot.draw_sweep(sweep.groups, names, sweep.proportions, sweep.losses)


def dml(recipe: MixRecipe, *, draws: int, seed: int, corners: bool = True, final: bool = False) -> Found:
    """The mixture of the least mean loss by a log-linear law that is fitted on a sweep (DML)."""
    sweep = recipe.sweep(draws=draws, seed=seed, corners=corners)
    law = fits.fit_static_law(sweep.proportions, sweep.losses)
    needed = len(sweep.groups) + 2
    few = (
        f"{len(sweep.runs)} runs are fewer than the {needed} numbers of the law for a group: it goes through all of "
        "them, and how well it fits says nothing. Raise --draws."
    )
    fit = Fitted(
        verb="dml",
        title="DML: a log-linear law of the losses",
        explained="L_i = c_i + b_i exp(-sum_j A_ij p_j), by least squares for each group; the proposal has its least "
        "mean.",
        law=law,
        proposed=fits.best_by_law(law, len(sweep.groups)),
        numbers={"offset": law.offset, "scale": law.scale, "matrix": law.matrix},
        lines=(few,) if len(sweep.runs) < needed else (),
    )
    return _report(recipe, sweep, fit, final=final)


def regmix(
    recipe: MixRecipe,
    *,
    draws: int,
    seed: int,
    simulated: int,
    best: int,
    corners: bool = True,
    final: bool = False,
) -> Found:
    """The mean of the best of many simulated mixtures by a linear law that is fitted on a sweep (RegMix)."""
    sweep = recipe.sweep(draws=draws, seed=seed, corners=corners)
    law = fits.fit_linear_law(sweep.proportions, sweep.losses)
    fit = Fitted(
        verb="regmix",
        title="RegMix: a linear law of the losses",
        explained=f"L_i = sum_j W_ij p_j by least squares; the proposal is the mean of the {best} mixtures of "
        f"{simulated} simulated ones with the least predicted mean loss. Linear regression alone: no boosted trees "
        "are fitted.",
        law=law,
        proposed=fits.best_by_simulation(law, len(sweep.groups), seed=seed, simulated=simulated, best=best),
        numbers={"weights": law.weights, "simulated": simulated, "averaged": best},
    )
    return _report(recipe, sweep, fit, final=final)


@dataclass(frozen=True)
class Fitted:
    """A law, what it proposes, and the words of its page."""

    verb: str
    title: str
    explained: str
    law: fits.Law
    proposed: np.ndarray
    numbers: Mapping[str, Any]
    lines: tuple[str, ...] = ()


def _report(recipe: MixRecipe, sweep: Sweep, fit: Fitted, *, final: bool) -> Found:
    """Report on a law, its fit and its proposal; train a run with the proposal if that is wanted."""
    predicted, expected = fit.law.predict(sweep.proportions), fit.law.predict(fit.proposed)[0]
    quality = fits.r_squared(sweep.losses, predicted), fits.mean_squared_errors(sweep.losses, predicted)
    rows = [*sweep_rows(sweep), sweep_row("proposed, by the law", fit.proposed.tolist(), expected.tolist())]
    told = ", ".join(f"{name} {value:.4f}" for name, value in zip(sweep.groups, quality[0], strict=True))
    lines = [
        f"Fit over the {len(sweep.runs)} runs: mean R^2 {quality[0].mean():.4f} ({told}), mean squared error "
        f"{quality[1].mean():.3g}.",
        *fit.lines,
    ]
    numbers = {
        "runs": records(sweep.runs),
        "law": fit.numbers,
        "r_squared": quality[0],
        "mean_squared_error": quality[1],
        "predicted": predicted,
        "expected": expected,
    }
    if final:
        run = recipe.static(f"{fit.verb}_final", fit.proposed.tolist())
        numbers["final"] = run.record()
        rows.append(sweep_row("proposed, trained", run.proportions, run.end))
        lines.append(
            f"A run with the proposal has mean loss {run.mean_loss:.4f}, by the law {expected.mean():.4f}; the best "
            f"run of the sweep has {sweep.best.mean_loss:.4f}."
        )
    found = Found(fit.verb, sweep.groups, fit.proposed, numbers, sweep_header(sweep.groups), rows, lines)
    return write(
        recipe.root,
        found,
        title=fit.title,
        explained=f"{fit.explained} {NOISE}",
        plot=draw_fit(sweep.groups, sweep.losses, predicted, title=f"{fit.title}, mean R^2 {quality[0].mean():.3f}"),
        alt="Losses by the law against those of the runs",
    )


def skill_graph(recipe: MixRecipe) -> Found:
    """What training on each group alone does for every group, as the controller skillit reads it."""
    runs = recipe.corners()
    start, ends = np.array(runs[0].start), np.array([run.end for run in runs])
    graph = fits.skill_graph(start, ends)
    eta = float(recipe.config.method.eta)
    first = egd_update(np.ones(len(graph)), graph.sum(axis=1), eta=eta)
    rows = [[name, *(f"{value:.4f}" for value in row)] for name, row in zip(recipe.groups, graph, strict=True)]
    found = Found(
        "skill_graph",
        recipe.groups,
        first,
        {"skill_graph": graph, "start": start, "ends": ends, "runs": records(runs)},
        ["trained on", *recipe.groups],
        rows,
        [f"Skill-It starts with the proportions below (eta {eta:g}). Its controller reads skill_graph.json itself."],
    )
    return write(
        recipe.root,
        found,
        title="Skill graph",
        explained="Relative drop of each group's validation loss, (start - end) / start, by a run on one group alone. "
        f"{NOISE}",
        plot=draw_matrices(recipe.groups, {"relative drop of the loss": graph}, rows="trained on", columns="group"),
        alt="Heat map of the skill graph",
    )
