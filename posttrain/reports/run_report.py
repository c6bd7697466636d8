"""The folder a run leaves behind, and the reports in it, for a reader who was not there.

    run.json             resolved config, versions, commit, data fingerprints, seeds, world layout, command
    metrics.jsonl        one line for each logging event (callbacks/metrics.py)
    eval.json            every evaluation by name: before, after, step-000100
    health.json          warnings of the health checks (callbacks/health.py)
    completions/         the prompts and completions of each evaluation, one JSON object a line
    plots/, REPORT.md    written from the files above, so they can be written again at any time

Every file but metrics.jsonl, which grows by whole lines, is replaced atomically. Only the main process may write.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from posttrain.errors import DataError
from posttrain.evaluation.results import EvalResult, EvalSettings, Sample
from posttrain.hidden import without_secrets
from posttrain.reports import plots, sections
from posttrain.reports.markdown import escape, table
from posttrain.reports.provenance import command_line, git_state, versions
from posttrain.reports.records import (
    evaluation_seconds,
    json_value,
    read_metrics,
    training_seconds,
    write_atomic,
    write_json,
    write_jsonl,
)

# What a run writes into its folder, beside the model it starts from.
RUN_FILES = (
    *("run.json", "metrics.jsonl", "eval.json", "health.json", "REPORT.md"),
    *("completions", "plots", "model", "merged"),
)
BEFORE = "before"
AFTER = "after"
# What every report reads of a completion.
_SAMPLE_KEYS = ("index", "prompt", "completion", "correct", "length", "truncated")
_ATTEMPT = ("created", "command", "versions", "git", "world", "resumed")


class RunFolder:
    """Paths, writing and reading of one run's files.

    Args:
        output_dir: the folder; created at the first write.
    """

    def __init__(self, output_dir: str | Path):
        self.path = Path(output_dir)
        self.run_path = self.path / "run.json"
        self.metrics_path = self.path / "metrics.jsonl"
        self.eval_path = self.path / "eval.json"
        self.health_path = self.path / "health.json"
        self.report_path = self.path / "REPORT.md"

    def write_run(
        self,
        config: Mapping[str, Any],
        *,
        data: Mapping[str, Any] | None = None,
        seeds: Mapping[str, Any] | None = None,
        world: Mapping[str, Any] | None = None,
        defaults: Mapping[str, Any] | None = None,
        chat_template_sha256: str | None = None,
        mixture: Mapping[str, Any] | None = None,
        lineage: Sequence[Mapping[str, Any]] | None = None,
        resumed: Mapping[str, Any] | None = None,
        rows: Mapping[str, Any] | None = None,
        argv: Sequence[str] | None = None,
    ) -> Path:
        """Write `run.json`. Versions, commit and time are added; secrets are hidden wherever they stand.

        Args:
            config: the resolved recipe.
            data: `data_fingerprint` of each dataset by name.
            seeds: every seed by what it decides.
            world: `world_layout(accelerator)`.
            defaults: values chosen by device rather than written in the recipe (dtype, checkpointing).
            chat_template_sha256: of the tokenizer that trained; an evaluation of the model compares it with its own.
            mixture: rows and tokens that training takes of each source of a mixture.
            lineage: of a stage, the stages its model went through, this one last.
            resumed: the checkpoint that training continues from, and what was changed since it was written.
            rows: of what is trained, how many there are and how many an epoch uses.
            argv: command line, default `sys.argv`.

        What was written by earlier attempts in this folder (before a resume) is kept under `earlier_attempts`.
        """
        earlier = self.read_run() if self.run_path.exists() else None
        record = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command_line(argv),
            "versions": versions(),
            "git": git_state(),
            "world": dict(world or {}),
            "seeds": dict(seeds or {}),
            "data": dict(data or {}),
            "defaults": dict(defaults or {}),
            "chat_template_sha256": chat_template_sha256,
            **({} if mixture is None else {"mixture": dict(mixture)}),
            **({} if lineage is None else {"lineage": list(lineage)}),
            "rows": dict(rows or {}),
            "resumed": None if resumed is None else dict(resumed),
            "config": dict(config),
            "earlier_attempts": [
                *(earlier.get("earlier_attempts", []) if earlier else []),
                *([{name: earlier.get(name) for name in _ATTEMPT}] if earlier else []),
            ],
        }
        return write_json(self.run_path, without_secrets(json_value(record)))

    def note_world(self, facts: Mapping[str, Any]) -> Path:
        """Add what is only known once training begins to the `world` block of `run.json`."""
        record = self.read_run()
        return write_json(self.run_path, {**record, "world": {**record["world"], **facts}})

    def write_eval(
        self,
        name: str,
        result: EvalResult,
        *,
        step: int,
        settings: EvalSettings | None = None,
        tasks: Mapping[str, EvalResult] | None = None,
    ) -> Path:
        """Add an evaluation to `eval.json` and write its completions; one of the same name is replaced.

        Args:
            name: "before", "after", or one of your own such as "step-000100".
            result: of `evaluate`.
            step: optimizer steps done by the model that was evaluated.
            settings: what it was asked for.
            tasks: results on further tasks by name; they stand under `tasks`, their completions in `<name>.<task>`.
        """
        if not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(f"an evaluation's name is also a file name: letters, digits, . _ -, got {name!r}")
        write_jsonl(self._samples_path(name), result.samples)
        entry: dict[str, Any] = {"step": step, **result.to_dict(with_samples=False)}
        if settings is not None:
            entry["settings"] = asdict(settings)
        entry["completions"] = self._samples_path(name).relative_to(self.path).as_posix()
        for task, found in (tasks or {}).items():
            write_jsonl(self._samples_path(f"{name}.{task}"), found.samples)
            place = self._samples_path(f"{name}.{task}").relative_to(self.path).as_posix()
            values = {**found.to_dict(with_samples=False), "completions": place}
            entry.setdefault("tasks", {})[task] = values
        return write_json(self.eval_path, {**self.read_evals(), name: entry})

    def read_run(self) -> dict[str, Any]:
        """`run.json`; empty if it was not written."""
        return _read_json(self.run_path)

    def read_evals(self) -> dict[str, dict[str, Any]]:
        """`eval.json`: evaluations by name, in the order in which they were first written; empty if there are none."""
        return _read_json(self.eval_path)

    def read_health(self) -> dict[str, Any]:
        """`health.json`: what the health checks of the training found; empty if they did not run.

        Raises:
            DataError: the file is damaged.
        """
        try:
            found = _read_json(self.health_path)
            for item in found["warnings"] if self.health_path.exists() else []:
                _ = item["step"], item["text"]
        except (ValueError, KeyError, TypeError) as problem:
            raise _damaged(str(self.health_path)) from problem
        return found

    def read_samples(self, name: str) -> list[Sample]:
        """Completions of the named evaluation; empty if there are none.

        Raises:
            DataError: a line is damaged; it is named.
        """
        path = self._samples_path(name)
        if not path.exists():
            return []
        samples = []
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
            try:
                samples += [_sample(line)] if line else []
            except (ValueError, KeyError, TypeError) as problem:
                raise _damaged(f"{path}:{number}") from problem
        return samples

    def read_metrics(self) -> list[dict[str, Any]]:
        """Log events, see `records.read_metrics`."""
        return read_metrics(self.metrics_path)

    def costs(self) -> dict[str, Any]:
        """Steps, tokens and time, as far as the files tell."""
        events, evals = self.read_metrics(), self.read_evals()

        def total(counter: str) -> float | None:
            """The last value of a cumulative number of the log."""
            values = [event[counter] for event in events if isinstance(event.get(counter), int | float)]
            return values[-1] if values else None

        found = {
            "optimizer steps": events[-1]["step"] if events else None,
            "prompts": total("cost/prompts"),
            "generated tokens": total("cost/generated_tokens"),
            "demonstrations": total("cost/demonstrations"),
            "tokens processed in training": total("num_tokens"),
            "training time": training_seconds(self.metrics_path) if events else None,
            "evaluation time": sum(map(evaluation_seconds, evals.values())) if evals else None,
        }
        return {name: value for name, value in found.items() if value is not None}

    def evaluation_points(self) -> list[plots.Point]:
        """(step, accuracy, standard error) of every evaluation, by step; NaN where unknown."""
        evals = sorted(self.read_evals().values(), key=lambda item: item["step"])
        return [(item["step"], _nan(item["accuracy"]), _nan(item["accuracy_stderr"])) for item in evals]

    def write_report(self, *, title: str | None = None, cost: Mapping[str, Any] | None = None) -> Path:
        """Write `REPORT.md` and its plots from the other files of the folder.

        Args:
            title: default: the folder's name.
            cost: further costs by name (rollouts, demonstrations); a name that ends in "time" is in seconds.
        """
        evals = self.read_evals()
        before, after = evals.get(BEFORE), evals.get(AFTER)
        samples = [(name, self.read_samples(name)) for name in (BEFORE, AFTER)]
        named = list(evals.items())
        parts = [f"# {escape(title or self.path.resolve().name)}", ""]
        parts += [sections.headline(before, after, sections.change(samples[0][1], samples[1][1])), ""]
        if named:
            parts += ["## Result", "", sections.result_table(named)]
            parts += _bullets(sections.remarks(named))
            parts += _section("By group", sections.group_table([item for item in named if item[0] in (BEFORE, AFTER)]))
        parts += _section("Cost", sections.cost_table([("", {**self.costs(), **(cost or {})})]))
        drawn = plots.curves({"": [self.read_metrics()]})
        evaluated = plots.evaluation_points({"": [self.evaluation_points()]})
        parts += _section("Warnings", _warnings(self.read_health(), self.read_run()))
        parts += _section("Curves", _images(self.path, drawn, evaluated))
        parts += _section("Completions", sections.completions_table(samples), _CHOICE)
        parts += _section("How it was made", _provenance_table(self.read_run()))
        parts += ["", "## How to read this", "", sections.READING]
        return write_atomic(self.report_path, "\n".join(parts).rstrip() + "\n")

    def _samples_path(self, name: str) -> Path:
        return self.path / "completions" / f"{name}.jsonl"


_CHOICE = (
    "Up to two prompts of each kind, the first in the order of the data: wrong then correct, correct then wrong, "
    "wrong both times, correct both times (in the first and the last column). All are in the run's folder "
    "`completions`."
)


def _section(title: str, body: str | None, intro: str | None = None) -> list[str]:
    return [] if body is None else ["", f"## {title}", "", *([intro, ""] if intro else []), body]


def _bullets(lines: Sequence[str]) -> list[str]:
    return ["", *[f"- {line}" for line in lines]] if lines else []


def _warnings(health: Mapping[str, Any], run: Mapping[str, Any]) -> str | None:
    """What the health checks of the training found, see `callbacks/health.py`, and whether the model's own code ran;
    None if there is nothing to tell from.
    """
    lines = [f"step {item['step']}: {item['text']}" for item in health.get("warnings", ())]
    if ((run.get("config") or {}).get("model") or {}).get("trust_remote_code"):
        lines.insert(0, "code that came with the model was run, since the recipe says model.trust_remote_code: true")
    if not health and not lines:
        return None
    return "\n".join(f"- {escape(line)}" for line in lines) if lines else "None."


def _images(folder: Path, drawn: Mapping[str, plots.Plot], evaluated: plots.Plot | None) -> str | None:
    """Write the plots and return the Markdown that shows them; None without any."""
    images = {**({"evaluation": evaluated} if evaluated is not None else {}), **drawn}
    lines = []
    for name, plot in images.items():
        write_atomic(folder / "plots" / f"{name}.png", plot.png)
        lines.append(f"![{escape(plot.alt)}](plots/{name}.png)")
    return "\n".join(lines) if lines else None


def _provenance_table(run: Mapping[str, Any]) -> str | None:
    """The few facts of `run.json` that a reader asks for first; None without the file."""
    if not run:
        return None
    git, world, config = run["git"], run["world"], run["config"]
    commit = (
        "not in a git tree" if git is None else git["commit"] + (" with uncommitted changes" if git["dirty"] else "")
    )
    facts = {
        "command": " ".join(run["command"]),
        "started": run["created"],
        **{name: _compact(config[name]) for name in ("method", "model") if config.get(name)},
        **{
            f"data, {name}": f"{item['rows']} rows, SHA-256 {item['sha256'][:16]}…"
            for name, item in run["data"].items()
        },
        "seeds": _compact(run["seeds"]),
        "hardware": _compact(world),
        "chosen by device": _compact(run["defaults"]),
        "versions": _compact(run["versions"]),
        "posttrain commit": commit,
    }
    rows = [[escape(name), escape(value)] for name, value in facts.items() if value]
    return table(["", "full record: `run.json`"], rows).replace("---:", ":---")


def _compact(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    shown = {
        name.replace("_", " "): item if isinstance(item, str) else json.dumps(item) for name, item in value.items()
    }
    return ", ".join(f"{name} {item}" for name, item in shown.items())


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _sample(line: bytes) -> Sample:
    sample = json.loads(line)
    for key in _SAMPLE_KEYS:
        _ = sample[key]
    return sample


def _damaged(where: str) -> DataError:
    return DataError("not readable", where=where, fix="Restore the file, or leave this run out")


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
