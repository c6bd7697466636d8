"""What a verb of `posttrain mix` leaves: numbers as JSON, a page, a plot, and proportions for a later run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import exp
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.methods.aioli.stage_step import StaticRun
from posttrain.methods.aioli.sweep import Sweep
from posttrain.reports.markdown import escape, table
from posttrain.reports.records import write_atomic, write_json


@dataclass(frozen=True)
class Found:
    """Result of a verb.

    Attributes:
        verb: that found it. groups: m. proportions: (m,) for a later run, None where there are none.
        numbers: for the JSON file. header, rows: the table of the page. lines: sentences under it.
        page: path of the page, once written.
    """

    verb: str
    groups: tuple[str, ...]
    proportions: np.ndarray | None
    numbers: Mapping[str, Any]
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    lines: Sequence[str]
    page: Path = field(default=Path())


def write(root: Path, found: Found, *, title: str, explained: str, plot: bytes, alt: str) -> Found:
    """Write `<verb>.json`, `<VERB>.md`, `<verb>.png` and `proportions_<verb>.json` into a folder.

    The proportions stand in both JSON files; `method.proportions_from` reads either.
    """
    chosen = {"groups": list(found.groups)}
    if found.proportions is not None:
        chosen |= {"proportions": found.proportions.tolist()}
        write_json(root / f"proportions_{found.verb}.json", chosen)
    write_json(root / f"{found.verb}.json", {**chosen, **found.numbers})
    write_atomic(root / f"{found.verb}.png", plot)
    parts = [f"# {title}", explained]
    cells = [[escape(name), *numbers] for name, *numbers in found.rows]  # numbers need no escape
    parts.append(table([escape(name) for name in found.header], cells))
    parts += [escape(line) for line in found.lines]
    if found.proportions is not None:
        shares = ", ".join(
            f"{name} {value:.4f}" for name, value in zip(found.groups, chosen["proportions"], strict=True)
        )
        file = escape((root / f"proportions_{found.verb}.json").as_posix())
        parts.append(
            f"Proportions: {escape(shares)}. A run uses them with `method.controller: static` and "
            f"`method.proportions_from` set to {file}."
        )
    parts.append(f"![{escape(alt)}]({found.verb}.png)")
    page = root / f"{found.verb.upper()}.md"
    write_atomic(page, "\n\n".join(parts) + "\n")
    return replace(found, page=page)


def sweep_header(groups: Sequence[str]) -> list[str]:
    """Columns of a table of runs."""
    return ["run", *(f"p {name}" for name in groups), *(f"loss {name}" for name in groups), "mean loss", "mean ppl"]


def sweep_row(name: str, proportions: Sequence[float], losses: Sequence[float]) -> list[str]:
    """Cells of a run, or of what a law says of one."""
    mean, perplexity = sum(losses) / len(losses), sum(map(exp, losses)) / len(losses)
    shown = [f"{value:.3f}" for value in proportions] + [f"{value:.4f}" for value in losses]
    return [name, *shown, f"{mean:.4f}", f"{perplexity:.3f}"]


def sweep_rows(sweep: Sweep) -> list[list[str]]:
    """Cells of all runs, in the order of the sweep; the best one is marked."""
    rows = [sweep_row(Path(run.name).name, run.proportions, run.end) for run in sweep.runs]
    rows[sweep.runs.index(sweep.best)][0] += " (best)"
    return rows


def records(runs: Sequence[StaticRun]) -> list[dict[str, Any]]:
    """Runs for the JSON file."""
    return [run.record() for run in runs]
