"""Finding recorded runs and sorting them into variants: runs of one recipe that differ in nothing but their seeds."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from posttrain.errors import ConfigError, DataError
from posttrain.reports.run_report import AFTER, BEFORE, RunFolder

EXPECTED = "a run's folder (with run.json), a folder of stages, or a folder of runs; NAME=FOLDER to name it"
RUN_FILES = ("run.json", "metrics.jsonl", "eval.json")
# Folders inside a run that hold no run of their own, and what `trainer.resume: never` puts aside.
_SKIPPED = {"model", "merged", "initial", "plots", "completions"}
_SKIPPED_PREFIXES = ("checkpoint-", "replaced-", ".")
_DEPTH = 3  # a folder of repetitions, of stages, of runs
# The seeds of a recipe by the name a reader knows; repetitions of one recipe differ in these.
SEEDS = {
    "trainer.seed": "trainer",
    "trainer.data_seed": "data order",
    "model.tiny.seed": "model",
    "data.train.seed": "training data",
}
# What says where a run lives and how it is watched, not what it is.
_NOT_THE_RECIPE = {
    "trainer.output_dir",
    "trainer.resume",
    "trainer.report_to",
    "trainer.logging_steps",
    "trainer.save_strategy",
    "trainer.save_steps",
    "trainer.save_total_limit",
}
_OTHER_BLOCKS = ("hub", "job", "start_from")


@dataclass(frozen=True)
class Run:
    """The files of one run as they are now; it may be unfinished or without an evaluation.

    Args:
        folder: of the run.
        given_name: name of the variant it belongs to, if the caller gave one.
    """

    folder: RunFolder
    given_name: str | None = None

    @cached_property
    def record(self) -> dict[str, Any]:
        """`run.json`; empty if it is missing."""
        return self._read(self.folder.read_run, self.folder.run_path)

    @cached_property
    def evals(self) -> dict[str, dict[str, Any]]:
        """`eval.json`; empty if it is missing."""
        return self._read(self.folder.read_evals, self.folder.eval_path)

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """Log events of `metrics.jsonl`."""
        return self._read(self.folder.read_metrics, self.folder.metrics_path)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Every recipe value by its dotted path, those of the run it started from under `start_from.`."""
        config = self.record.get("config", {})
        found = flat({name: block for name, block in config.items() if name not in _OTHER_BLOCKS})
        parent = config.get("start_from") or {}
        if parent.get("model"):
            folder = Path(parent["model"]).parent
            earlier = Run(RunFolder(folder)).settings if (folder / "run.json").exists() else {}
            found["start_from"] = folder.name
            found |= {f"start_from.{key}": value for key, value in earlier.items()}
        return {key: value for key, value in found.items() if _bare(key) not in _NOT_THE_RECIPE}

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """`settings` without the seeds: equal for repetitions."""
        return {key: value for key, value in self.settings.items() if _bare(key) not in SEEDS}

    @cached_property
    def seeds(self) -> dict[str, Any]:
        """The run's own seeds by name; an unset data order follows the trainer's seed."""
        found = {name: self.settings[key] for key, name in SEEDS.items() if key in self.settings}
        recorded = self.record.get("seeds", {})
        named = {"trainer": "trainer", "data order": "data"}
        return found | {name: recorded[key] for name, key in named.items() if key in recorded}

    @property
    def before(self) -> dict[str, Any] | None:
        """The evaluation before training, or None."""
        return self.evals.get(BEFORE)

    @property
    def after(self) -> dict[str, Any] | None:
        """The evaluation after training, or None."""
        return self.evals.get(AFTER)

    @property
    def steps(self) -> int | None:
        """Optimizer steps of the last log; None before the first."""
        return self.events[-1]["step"] if self.events else None

    @property
    def state(self) -> str:
        """ "finished", or in words what is missing."""
        if self.after is not None:
            return "finished"
        planned = self.settings.get("trainer.max_steps")
        if self.steps is None:
            return "not trained yet"
        if isinstance(planned, int) and 0 < self.steps < planned:
            return f"unfinished, {self.steps} of {planned} steps"
        return "no evaluation after training"

    def _read(self, read: Any, path: Path) -> Any:
        try:
            return read()
        except (ValueError, KeyError, UnicodeDecodeError) as problem:
            raise DataError(
                "not readable", where=str(path), fix="Restore the file, or leave this run out"
            ) from problem


@dataclass(frozen=True)
class Variant:
    """What is compared: the runs of one recipe, one for each seed.

    Args:
        name: as tables and legends show it.
        runs: at least one; several with the same seeds count as one repetition, see `distinct`.
    """

    name: str
    runs: tuple[Run, ...]

    @classmethod
    def of(cls, name: str, *folders: RunFolder | str | Path) -> Variant:
        """A variant from folders."""
        found = [item if isinstance(item, RunFolder) else RunFolder(item) for item in folders]
        return cls(name, tuple(Run(item, name) for item in found))

    @cached_property
    def varying(self) -> list[str]:
        """Names of the seeds in which its runs differ."""
        names = dict.fromkeys(name for run in self.runs for name in run.seeds)
        return [name for name in names if len({run.seeds.get(name) for run in self.runs}) > 1]

    @cached_property
    def distinct(self) -> tuple[Run, ...]:
        """Finished runs, the first of those with the same seeds: a copy of a run is no further evidence."""
        found: dict[Hashable, Run] = {}
        for run in self.runs:
            if run.after is not None:
                found.setdefault(tuple(sorted(run.seeds.items())) if run.seeds else run.folder.path, run)
        return tuple(found.values())

    def label(self, run: Run) -> str:
        """A run's seeds in a few words: "seed 1", or by name where they differ from each other."""
        values = {name: run.seeds.get(name) for name in self.varying or ["trainer"] if name in run.seeds}
        if not values:
            return "seed unknown"
        if len(set(values.values())) == 1:
            return f"seed {next(iter(values.values()))}"
        return ", ".join(f"{name} seed {value}" for name, value in values.items())


def find_runs(arguments: Sequence[str]) -> list[Run]:
    """The runs that command line arguments name, in their order; below a folder, in the order of their start.

    Args:
        arguments: folders, or NAME=FOLDER.

    Returns:
        Every run below each folder, except stages whose recipe asks for no evaluation: those only prepare others. They
        are kept where nothing else was found.

    Raises:
        ConfigError: a folder does not exist, or holds no run.
        DataError: a file of a run cannot be read.
    """
    found: dict[Path, Run] = {}
    for argument in arguments:
        name, path = _split(argument)
        if not path.is_dir():
            problem = "not a folder" if path.exists() else "no such folder"
            raise ConfigError(problem, where=argument, allowed=EXPECTED)
        runs = [Run(RunFolder(folder), name) for folder in _run_folders(path, _DEPTH)]
        if not runs:
            raise ConfigError("no run in this folder", where=argument, allowed=EXPECTED)
        runs.sort(key=lambda run: (run.record.get("created", ""), str(run.folder.path)))
        evaluated = [run for run in runs if run.evals or _is_to_be_evaluated(run)]
        for run in evaluated or runs:
            found.setdefault(run.folder.path.resolve(), run)
    return list(found.values())


def sort_into_variants(runs: Sequence[Run], *, group: bool = True) -> list[Variant]:
    """Runs of one recipe together, in the order in which their first run was given.

    Args:
        runs: at least one. Those with a given name belong to the variant of that name; different recipes under one
            name that covers a whole folder become variants of their own, with the name in front.
        group: False makes a variant of every run without a given name.
    """
    groups: dict[Hashable, list[Run]] = {}
    for run in runs:
        key: Hashable = (run.given_name, run.settings.get("stage")) if run.given_name else None
        if not run.given_name:
            key = _frozen(run.recipe) if group and run.recipe else run.folder.path
        groups.setdefault(key, []).append(run)
    wanted = [_wanted_name(members, groups) for members in groups.values()]
    if not group:
        places = _places(runs)
        wanted = [
            name if members[0].given_name else places[members[0]]
            for name, members in zip(wanted, groups.values(), strict=True)
        ]
    names = _told_apart(wanted, list(groups.values()))
    return [Variant(name, tuple(members)) for name, members in zip(names, groups.values(), strict=True)]


def flat(values: Any, path: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, by dotted path; lists stay whole."""
    if not isinstance(values, Mapping) or (path and not values):
        return {path: values}
    return {
        name: item
        for key, value in values.items()
        for name, item in flat(value, f"{path}.{key}" if path else str(key)).items()
    }


def _split(argument: str) -> tuple[str | None, Path]:
    name, sign, path = argument.partition("=")
    if not sign or Path(argument).exists():
        return None, Path(argument).expanduser()
    return name.strip() or None, Path(path).expanduser()


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    if any((folder / name).is_file() for name in RUN_FILES):
        yield folder
        return
    if depth:
        for child in sorted(folder.iterdir()):
            skipped = child.name in _SKIPPED or child.name.startswith(_SKIPPED_PREFIXES)
            if child.is_dir() and not child.is_symlink() and not skipped:
                yield from _run_folders(child, depth - 1)


def _is_to_be_evaluated(run: Run) -> bool:
    config = run.record.get("config", {})
    has_data = (config.get("data") or {}).get("eval") is not None
    return has_data and (config.get("eval") is not None or config.get("rollout") is not None)


def _bare(key: str) -> str:
    return key.rpartition("start_from.")[2]


def _frozen(value: Any) -> Hashable:
    if isinstance(value, Mapping):
        return tuple(sorted((key, _frozen(item)) for key, item in value.items()))
    return repr(value)


def _wanted_name(members: Sequence[Run], groups: Mapping[Hashable, Sequence[Run]]) -> str:
    run = members[0]
    stage, method = run.settings.get("stage"), run.settings.get("method.name")
    own = str(stage if stage not in (None, "run") else method or run.folder.path.name)
    if run.given_name is None:
        return own
    same = [others for others in groups.values() if others[0].given_name == run.given_name]
    return run.given_name if len(same) == 1 else f"{run.given_name} {own}"


def _told_apart(wanted: Sequence[str], groups: Sequence[Sequence[Run]]) -> list[str]:
    """Names made different: by the settings in which recipes of one name differ, if they are few, or by the folder."""
    places = _places([run for members in groups for run in members])
    names = []
    for name, members in zip(wanted, groups, strict=True):
        rivals = [other[0] for rival, other in zip(wanted, groups, strict=True) if rival == name]
        if len(rivals) > 1:
            known = dict.fromkeys(key for other in rivals for key in other.recipe)
            keys = [key for key in known if len({repr(other.recipe.get(key)) for other in rivals}) > 1]
            # What a run starts from tells less than what it does itself.
            keys = [key for key in keys if not key.startswith("start_from.")] or keys
            shown = ", ".join(f"{_short(key)} {members[0].recipe.get(key, 'not set')}" for key in keys)
            name = f"{name} ({shown})" if 0 < len(keys) <= 2 and len(shown) <= 60 else f"{name} ({places[members[0]]})"
        names.append(name)
    return [name if names.count(name) == 1 else f"{name} [{place + 1}]" for place, name in enumerate(names)]


def _short(key: str) -> str:
    """The last part of a setting's path, with the run it belongs to if that is an earlier one."""
    last = key.rpartition(".")[2]
    return f"earlier {last}" if key.startswith("start_from.") else last


def _places(runs: Sequence[Run]) -> dict[Run, str]:
    """Each run's folder, without the part that all have in common."""
    paths = [str(run.folder.path.resolve()) for run in runs]
    root = os.path.commonpath(paths) if len(paths) > 1 else os.path.dirname(paths[0])
    return {run: os.path.relpath(path, root) for run, path in zip(runs, paths, strict=True)}
