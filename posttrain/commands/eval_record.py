"""What is told about one evaluation: its warnings, how it compares with the run's own, its files and its table."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from posttrain.commands.eval_folder import (
    NAME,
    claim,
    compare_with_row,
    partial_text,
    recorded_row,
    settings_record,
    write_record,
    write_report,
)
from posttrain.config.verdict import recorded_variables, template_variables, verifier_name, verifier_sha256
from posttrain.errors import PosttrainError
from posttrain.hidden import without_secrets
from posttrain.models.loading import load_tokenizer
from posttrain.preflight.data import as_rows, shared_rows
from posttrain.preflight.mixture import load_split
from posttrain.reports.markdown import number, percent
from posttrain.reports.provenance import data_fingerprint, template_sha256, versions, world_layout
from posttrain.reports.run_report import RunFolder
from posttrain.reports.sections import pass_at_k_cells, pass_at_k_columns
from posttrain.training.saved_models import SavedModel


@dataclass(frozen=True)
class EvalRecord:
    """One evaluation and all that is told about it.

    Args:
        model: what was asked for.
        chain: (name, configuration) of the run it is evaluated with, after the stages before it.
        settings: `EvalSettings`.
        tokenizer, rows, accelerator: as used.
        dtype: of the weights.
    """

    model: SavedModel
    chain: list[tuple[str, Any]]
    settings: Any
    tokenizer: Any
    rows: Any
    accelerator: Any
    dtype: str

    @property
    def config(self) -> Any:
        return self.chain[-1][1]

    @property
    def title(self) -> str:
        """Recipe and stage."""
        name = self.chain[-1][0]
        return Path(self.config.source.file).stem + ("" if name == "run" else f"-{name}")

    @cached_property
    def data(self) -> dict[str, Any]:
        """Fingerprint of the evaluation rows."""
        return data_fingerprint(self.rows)

    @cached_property
    def files(self) -> dict[str, Any]:
        """What was loaded, with hashes."""
        return self.model.identity(self.config.model)

    def identity(self) -> dict[str, Any]:
        """All that the result depends on."""
        return {
            "model": [self.files["sha256"], self.files.get("base")],
            "data": self.data["sha256"],
            "settings": settings_record(self.settings),
            "verifier": verifier_name(self.config),
            "verifier_sha256": verifier_sha256(self.config),
            "success_threshold": getattr(self.config.method, "success_threshold", 1.0),
            "chat_template_sha256": template_sha256(self.tokenizer),
            "chat_template_kwargs": template_variables(self.config),
            "dtype": self.dtype,
            "mixed_precision": self.accelerator.mixed_precision,
        }

    def claim(self, output: str | Path | None) -> Path:
        """Where to write: beside the model in its run, else below runs/eval."""
        place = Path("runs", "eval", f"{self.model.label}-{self.title}")
        if self.model.run is not None:
            place = self.model.run / f"eval-{self.title}-{self.model.label}"
        return claim(output or place, self.identity(), chosen=output is not None)

    def warnings(self) -> list[str]:
        """What would make the numbers mean something else than they seem to."""
        run = self.run_record()
        found = [self.other_template(run), *self.shared_prompts()]
        trained = run.get("defaults", {}).get("dtype")
        if trained is not None and trained != self.dtype:
            found.append(f"the weights are held in {self.dtype} here, in {trained} when they were trained")
        return [note for note in found if note]

    def run_record(self) -> dict[str, Any]:
        """`run.json` of the run that the model lies in; empty for any other."""
        return RunFolder(self.model.run).read_run() if self.model.run is not None else {}

    def other_template(self, run: dict[str, Any]) -> str | None:
        """The prompts are rendered otherwise than in training."""
        here, trained = template_sha256(self.tokenizer), run.get("chat_template_sha256")
        source = "the run trained with"
        if trained is None:
            try:
                trained, source = template_sha256(load_tokenizer(self.config.model)), "of the recipe's model"
            except PosttrainError:
                return "the chat template could not be compared: the tokenizer of the recipe's model is out of reach"
        if here == trained:
            return None
        return (
            f"the model's chat template is not the one {source} (SHA-256 {str(here)[:12]} here, {str(trained)[:12]} "
            "there), so it sees other prompts than in training"
        )

    def shared_prompts(self) -> list[str]:
        """Evaluation prompts that are training prompts of this stage or one before it."""
        held_out = as_rows("eval", self.rows, demonstration_column="solution")
        notes = []
        for name, config in self.chain:
            of = "" if name == "run" else f", stage {name}"
            try:
                tokenizer = load_tokenizer(config.model) if config.data.train.mixture is not None else None
                loaded = load_split(config, "train", tokenizer)
            except PosttrainError as problem:
                notes.append(f"whether prompts overlap with the training rows{of} is not known: {problem}")
                continue
            if loaded.streams is not None:
                told = f"the first {len(loaded.dataset)} rows of the streams{of} alone were compared with the prompts"
                notes.append(f"whether others overlap with the evaluation is not known: {told}")
            train = as_rows("train", loaded.dataset, demonstration_column="solution")
            notes += [f"{finding.what}{of}" for finding in shared_rows(config, train, held_out)]
        return notes

    def comparison(self, result: Any) -> list[str]:
        """How the result compares with what the run recorded of these weights; empty without such a record."""
        run = self.run_record()
        row = recorded_row(RunFolder(self.model.run), self.model.step) if self.model.run is not None else None
        if self.model.run is None or row is None:
            return []
        folder = RunFolder(self.model.run)
        if run.get("data", {}).get("eval") != self.data:
            return [f"not compared with the run's {row!r} row, which is about other evaluation rows"]
        recorded = folder.read_evals()[row].get("settings", {})
        changes, environment = self.differences(run, recorded)
        if Path(self.model.path).name == "merged":
            environment.append("the adapter is merged into the weights, which rounds")
        return [compare_with_row(folder, row, result, changes=changes, environment=environment)]

    def differences(self, run: dict[str, Any], recorded: dict[str, Any]) -> tuple[list[str], list[str]]:
        """What differs from the run's evaluation: settings, which change what is asked for; and the surroundings."""
        config = run.get("config", {})
        asked = {f"eval.{name}": value for name, value in settings_record(self.settings).items()}
        before = {f"eval.{name}": recorded.get(name) for name in settings_record(self.settings)}
        asked |= {"verifier": verifier_name(self.config), "chat_template_kwargs": template_variables(self.config)}
        before |= {"verifier": recorded_verifier(config)}
        before["chat_template_kwargs"] = recorded_variables(config)
        asked["method.success_threshold"] = getattr(self.config.method, "success_threshold", 1.0)
        before["method.success_threshold"] = (config.get("method") or {}).get("success_threshold", 1.0)
        world = world_layout(self.accelerator)
        around = {**versions(), **world, "dtype": self.dtype, "eval.batch_size": asked.pop("eval.batch_size")}
        known = {**run.get("versions", {}), **run.get("world", {}), "dtype": run.get("defaults", {}).get("dtype")}
        known["eval.batch_size"] = before.pop("eval.batch_size")
        return _changed(before, asked), _changed(known, around)

    # ---- writing ----

    def write(self, folder: Path, result: Any, notes: list[str]) -> Path:
        """Write the files, print the table, and return the path of the report."""
        config = self.config
        files = RunFolder(folder)
        files.write_eval(NAME, result, step=self.model.step or 0, settings=self.settings)
        facts = {
            "model": {"given": self.model.given, **self.files},
            "recipe": str(config.source.file),
            "stage": self.chain[-1][0],
            "evaluation": self.identity(),
            "data": {"eval": self.data},
            "world": world_layout(self.accelerator),
            "config": config.values,
            "notes": notes,
        }
        write_record(folder, self.identity(), facts)
        shown = {
            "model": f"{self.model.path}{f' at {self.model.revision}' if self.model.revision else ''}",
            "weights": f"SHA-256 {self.files['sha256'][:16]}…, held in {self.dtype}",
            "recipe": f"{config.source.file}, {self.title}",
            "data": f"{self.data['rows']} rows, SHA-256 {self.data['sha256'][:16]}…",
            "verifier": verifier_name(config),
            "settings": ", ".join(f"{name} {value}" for name, value in asdict(self.settings).items()),
        }
        title = f"Evaluation of {self.model.label} with {self.title}"
        show(result, title=title)
        return write_report(folder, title=title, notes=notes, facts=without_secrets(shown))


def recorded_verifier(config: dict[str, Any]) -> str | None:
    """The verifier of a recorded recipe, as `evaluating.verifier_name` finds it in a recipe."""
    rollout = config.get("rollout") or {}
    first = (rollout.get("rewards") or [None])[0]
    named = first.get("name") if isinstance(first, dict) else first
    return (config.get("eval") or {}).get("verifier") or rollout.get("verifier") or named


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Lines "dtype: float32 -> bfloat16" for what was recorded and differs."""
    return [f"{name}: {before[name]} -> {now[name]}" for name in now if name in before and before[name] != now[name]]


def show(result: Any, *, title: str) -> None:
    """Print the result and its groups as a table."""
    item = result.to_dict(with_samples=False)
    scores = {"all": item, **(item["per_group"] if len(item["per_group"]) > 1 else {})}
    sizes = pass_at_k_columns(list(scores.values()))
    # Text: a name may hold signs that rich would read as markup.
    heading = Text(f"{title}; {partial_text(item)}" if item["partial"] else title)
    table = Table(title=heading, title_justify="left")
    for head in (
        "",
        "accuracy",
        *(f"pass@{k}" for k in sizes),
        "prompts",
        "length",
        "cut off",
        "not scored",
        "failed",
    ):
        table.add_column(head, justify="left" if not head else "right")
    for name, score in scores.items():
        table.add_row(
            Text(str(name)),
            percent(score["accuracy"], score["accuracy_stderr"]),
            *pass_at_k_cells(score, sizes),
            number(score["num_scored_prompts"]),
            number(score["mean_length"]),
            percent(score["truncated_fraction"]),
            number(score["unscored"]),
            number(score["failed"]),
        )
    # Off a terminal rich assumes 80 columns.
    (Console() if sys.stdout.isatty() else Console(width=160)).print(table)
