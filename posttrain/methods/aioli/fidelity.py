"""`posttrain mix fidelity`: how near the matrix that a run measured is to one measured apart from it.

The run's own matrix comes from blocks that follow each other. The one it is compared with, A*, comes from branches:
short runs that all begin with the model as it was at the start of the round, one for each group's mixture.

Source: arXiv 2411.05735, section 4 (similarity of a method's matrix to the true one). Its details of the branches are
not in the specification; ours: the steps of a round each, a new optimizer, and the mean learning rate of the round,
held constant. A new optimizer has no second moments of the run, which makes the first steps larger.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.errors import ConfigError, DataError, SupportError
from posttrain.methods.aioli.laws import egd_update, normalize_matrix, probe_mixtures, similarity, solve_mixing_matrix
from posttrain.methods.aioli.page import Found, write
from posttrain.methods.aioli.plot import draw_matrices
from posttrain.methods.aioli.sweep import MixRecipe
from posttrain.methods.aioli.trainer import RECORD
from posttrain.reports.run_report import RunFolder

BRANCHES = "fidelity"


def fidelity(recipe: MixRecipe, *, number: int | None = None, steps: int | None = None, repeats: int = 1) -> Found:
    """Compare the matrix of a round of a finished run of this recipe with one from branches.

    Args:
        recipe: of the controller aioli, and trained.
        number: round, from 0; None = the last whose first model is there. Round 0 begins with the recipe's model, a
            later one with the checkpoint of its first step.
        steps: optimizer steps of a branch; None = those of a round.
        repeats: branches of each group, with rows in different orders; the drops are averaged.

    Raises:
        ConfigError: no aioli run, adapters, or a round without a checkpoint. DataError: the run is not there.
    """
    method = recipe.config.method
    _check(recipe.config, repeats)
    record = _record(recipe.root)
    groups = list(record["groups"])
    updates = [entry for entry in record["records"] if entry["event"] == "update" and "matrix" in entry]
    number = _newest(recipe, len(updates)) if number is None else number
    if not 0 <= number < len(updates):
        allowed = f"0 to {len(updates) - 1}"
        raise ConfigError("the run has no matrix of this round", where="--round", got=number, allowed=allowed)
    measured = np.array(updates[number]["matrix"])
    mixtures, drops = _branches(recipe, groups, number, steps or int(method.mixing_rounds_every), repeats)
    raw = solve_mixing_matrix(mixtures, drops, diagonal=bool(method.diagonal))
    reference = normalize_matrix(raw) if method.normalize_matrix else raw
    found = similarity(measured, reference)
    sums = measured.sum(axis=0), reference.sum(axis=0)
    leads = [egd_update(np.ones(len(groups)), values, eta=float(method.eta)) for values in sums]
    numbers = {
        "similarity": found,
        "round": number,
        "steps": steps or int(method.mixing_rounds_every),
        "repeats": repeats,
        "measured": measured,
        "reference": reference,
        "reference_before_normal_form": raw,
        "mixtures": mixtures,
        "drops": drops,
    }
    rows = [
        [name, *(f"{values[place]:.4f}" for pair in zip(sums, leads, strict=True) for values in pair)]
        for place, name in enumerate(groups)
    ]
    result = Found(
        "fidelity",
        tuple(groups),
        leads[1],
        numbers,
        ["group", "measured: column sum", "measured: p", "branches: column sum", "branches: p"],
        rows,
        [f"Similarity {found:.4f}: half the cosine and half Spearman's correlation of the column sums, at most 1."],
    )
    return _write(recipe.root, result, measured, reference, found)


def _write(root: Path, result: Found, measured: np.ndarray, reference: np.ndarray, found: float) -> Found:
    matrices = {"measured in the run": measured, f"from branches (similarity {found:.3f})": reference}
    return write(
        root,
        result,
        title=f"Fidelity of the matrix of round {result.numbers['round']}",
        explained=f"A[i, j] is the drop in the loss of group i by training on group j. The run measured it on blocks "
        f"that follow each other; the branches are {result.numbers['steps']} steps each, from one model, with a new "
        f"optimizer, {result.numbers['repeats']} for each group. p is one update from equal proportions.",
        plot=draw_matrices(result.groups, matrices, rows="evaluated", columns="trained"),
        alt="The two matrices as heat maps",
    )


def _record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if not path.exists():
        raise DataError("the run that is to be judged is not there", where=str(folder), fix="Train the recipe first")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _first_step(recipe: MixRecipe, number: int) -> int:
    """Optimizer steps before a round."""
    method = recipe.config.method
    return int(method.prior_steps) + number * int(method.mixing_rounds_every)


def _newest(recipe: MixRecipe, rounds: int) -> int:
    """The last round that begins with a checkpoint, or 0."""
    there = [n for n in range(rounds) if (recipe.root / f"checkpoint-{_first_step(recipe, n)}").is_dir()]
    return max(there, default=0)


def _start(recipe: MixRecipe, number: int) -> list[str]:
    """Overrides that give a branch the model at the start of the round."""
    first = _first_step(recipe, number)
    if first == 0:
        return []
    folder = recipe.root / f"checkpoint-{first}"
    if not folder.is_dir():
        raise ConfigError(
            "there is no checkpoint of the step that the round begins with",
            where="--round",
            got=number,
            allowed=str(folder),
            fix="Train with trainer.save_steps equal to method.mixing_rounds_every, and keep the checkpoints",
        )
    return ["model.tiny=null", "model.package=null", "model.revision=null", f"model.path={folder.as_posix()}"]


def _learning_rate(recipe: MixRecipe, number: int) -> float:
    """Mean of the learning rates logged in the round; the recipe's own if none was."""
    first = _first_step(recipe, number)
    last = first + int(recipe.config.method.mixing_rounds_every)
    events = RunFolder(recipe.root).read_metrics()
    rates = [float(e["learning_rate"]) for e in events if "learning_rate" in e and first < e["step"] <= last]
    return float(np.mean(rates)) if rates else float(recipe.config.trainer.learning_rate)


def _check(config: Any, repeats: int) -> None:
    controller = config.method.controller
    if controller != "aioli":
        raise ConfigError("only the controller aioli measures a matrix", where="method.controller", got=controller)
    if config.model.lora is not None:
        raise ConfigError(
            "a branch would start without the run's adapter", where="model.lora", fix="Train all weights"
        )
    if repeats > 1 and config.data.train.streaming:
        raise SupportError(
            "every branch would train the same rows: those of a stream come in one order",
            where="--repeats",
            got=repeats,
            allowed="1 with data.train.streaming",
        )


def _branches(
    recipe: MixRecipe, groups: list[str], number: int, steps: int, repeats: int
) -> tuple[np.ndarray, np.ndarray]:
    """(realised mixtures (m, m), mean drops (m, m)) of the branches."""
    m, own = len(groups), recipe.config
    mixtures = probe_mixtures(m, float(own.method.one_hot_factor))
    rate = _learning_rate(recipe, number)
    changes = [
        *_start(recipe, number),
        f"trainer.max_steps={steps}",
        f"trainer.learning_rate={json.dumps(rate)}",
        "trainer.lr_scheduler_type=constant",
        "trainer.warmup_steps=0",
        "trainer.logging_steps=1",
        "trainer.save_strategy=no",
    ]
    seed = own.method.mixing_seed if own.method.mixing_seed is not None else own.trainer.seed
    realised, drops = np.zeros((m, m)), np.zeros((m, m))
    for group in range(m):
        for repeat in range(repeats):
            name = f"{BRANCHES}/round_{number}_steps_{steps}/group_{group}_{repeat}"
            order = f"method.mixing_seed={int(seed) + repeat}"
            run = recipe.static(name, mixtures[group].tolist(), changes=[*changes, order])
            drops[:, group] += (np.array(run.start) - np.array(run.end)) / repeats
            realised[group] += _rows(run.folder, groups) / repeats
    return realised, drops


def _rows(folder: Path, groups: list[str]) -> np.ndarray:
    """(m,) shares of the rows that a run has trained on."""
    events = [event for event in RunFolder(folder).read_metrics() if f"mixture/{groups[0]}_rows" in event]
    if not events:
        raise DataError("the run logged no rows of its groups", where=str(folder))
    rows = np.array([float(events[-1][f"mixture/{name}_rows"]) for name in groups])
    return rows / rows.sum()
