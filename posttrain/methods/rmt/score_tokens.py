"""`posttrain score-tokens RECIPE`: score the corpus of a recipe ahead of training, and write questions about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pydantic import ValidationError
from rich.table import Table
from ruamel.yaml import YAML, YAMLError

from posttrain import registry
from posttrain.config.build import build_args
from posttrain.config.loader import load
from posttrain.config.run_config import DataSource
from posttrain.config.stages import resolve_stages
from posttrain.data.sources import load_source
from posttrain.errors import ConfigError, DataError, SupportError
from posttrain.methods.rmt import corpus
from posttrain.methods.rmt.questions import TIERS, tier_counts
from posttrain.models.loading import load_model, load_tokenizer, resolve_model_path
from posttrain.training.stage import MODEL_FOLDER, Stage, merged

HISTOGRAM = "entropy.png"


def score_tokens(
    recipe: str | Path,
    overrides: list[str],
    *,
    stage: str | None = None,
    questions: str | Path | None = None,
    held_out: list[str] | None = None,
    per_tier: int = 100,
    nested: bool = False,
    console: Any,
) -> Path:
    """Make the token index of a recipe's training rows, or finish it; then say what it holds.

    Rows and model are those that training will have.

    Args:
        recipe, overrides: as for training.
        stage: of the recipe; None = the first that reads documents. The stage it starts from must have run.
        questions: folder for `reasoning.jsonl` and `next_token.jsonl`, rows for `data.eval`, and for the index of the
            documents they are about.
        held_out: "key=value" of `data.train` that are different there; training documents are left out of them.
        per_tier: questions from each tier, drawn with the trainer's seed.
        nested: tiers of the questions are "above the first, second, third threshold" instead of bands.
        console: rich console.

    Returns:
        Folder of the index.

    Raises:
        PosttrainError: as from training; SupportError: no stage reads documents; ConfigError: questions without
            documents of their own.
    """
    name, parent, config = _chosen(recipe, overrides, stage)
    source = _held_out(config, held_out or [], wanted=questions is not None)
    folder = Path(str(config.trainer.output_dir))
    args = build_args(config, output_dir=folder, changes={"report_to": "none", "push_to_hub": False})
    if parent is None:
        path = resolve_model_path(config.model, folder / "initial")
    elif (trained := folder.parent / parent / MODEL_FOLDER).is_dir():
        path = merged(trained, folder / "initial")
    else:
        fix = f"Train stage {parent!r} first"
        raise ConfigError(
            "the stage it starts from has no model yet", where=f"stage {name}", got=str(trained), fix=fix
        )
    tokenizer = load_tokenizer(config.model, path=path)
    run = Stage(config, name=name)
    data = {"train": run.trained_rows(config.data.train, tokenizer)}
    path = run.apply_steps(data, path)
    rows = run.trainable(data["train"], tokenizer)
    model = load_model(config.model, path=path)
    index = corpus.corpus_index(rows, args=args, tokenizer=tokenizer, model=model)
    targets = corpus.targets_of(index, args=args, tokenizer=tokenizer, is_main=False)
    _tell(index, targets, args, console)
    if source is not None:
        place = Path(str(questions))
        others = run.trainable(load_source(source), tokenizer)
        others = _without(others, set(corpus.documents_of(rows)[0]), console)
        about = corpus.corpus_index(others, args=args, tokenizer=tokenizer, model=model, folder=place / "token_index")
        asked = corpus.targets_of(about, args=args, tokenizer=tokenizer, is_main=False)
        made = corpus.rows_of(about, asked, args=args, tokenizer=tokenizer, budget_template=args.budget_prompt)
        _write_questions(place, made, asked, args, per_tier=per_tier, nested=nested, console=console)
    return Path(index.folder)


def _held_out(config: Any, changes: list[str], *, wanted: bool) -> Any:
    """Source of the documents that questions are about; None without questions."""
    if wanted != bool(changes):
        raise ConfigError(
            "questions need documents that are not trained, and such documents are for questions",
            where="--held-out" if wanted else "--questions",
            got=None,
            fix="Give both: --questions FOLDER --held-out split=test, or another key of data.train that differs",
        )
    if not wanted:
        return None
    values = config.data.train.model_dump(exclude_none=True, include=set(DataSource.model_fields))
    try:
        for key, _, text in (change.partition("=") for change in changes):
            values[key] = YAML(typ="safe", pure=True).load(text)
        return DataSource.model_validate(values)
    except (ValidationError, YAMLError) as problem:
        told = " ".join(str(problem).split())[:200]
        raise ConfigError("not a source of documents", where="--held-out", got=changes, allowed=told) from None


def _without(rows: Any, trained: set[str], console: Any) -> Any:
    """Rows whose document is not trained."""
    kept = [number for number, text in enumerate(rows["prompt"]) if text not in trained]
    if len(kept) < len(rows):
        console.print(f"left out of the questions: {len(rows) - len(kept)} of {len(rows)} documents that are trained")
    if not kept:
        raise DataError("every document for questions is a training document", where="--held-out", got=len(rows))
    return rows.select(kept)


def _chosen(recipe: str | Path, overrides: list[str], stage: str | None) -> tuple[str, str | None, Any]:
    runs = resolve_stages(load(recipe, overrides))
    readers = [run for run in runs if "documents" in registry.get(run[2].method.name).inputs]
    if not readers:
        raise SupportError("no stage of the recipe reads documents", where=str(recipe), fix="Use method rmt")
    found = [run for run in readers if stage in (None, run[0])]
    if not found:
        names = ", ".join(name for name, _, _ in readers)
        raise ConfigError("no such stage", where="--stage", got=stage, allowed=f"one of: {names}")
    return found[0]


def _tell(index: Any, targets: Any, args: Any, console: Any) -> None:
    """Table of tiers, what was left out, and a histogram beside the index."""
    edges = [*args.entropy_thresholds, args.max_entropy]
    table = Table("tier", "entropy, nats", "tokens", "share of all")
    for number, (tier, count) in enumerate(tier_counts(targets.tiers).items()):
        band = f"{edges[number]} to {edges[number + 1]}" if edges[number + 1] is not None else f"above {edges[number]}"
        table.add_row(tier, band, str(count), f"{count / len(index.tokens):.1%}")
    console.print(table)
    console.print(f"{index.num_documents} documents, {len(index.tokens)} tokens: {index.folder}")
    for reason, count in {**index.record["dropped_documents"], **targets.left_out}.items():
        console.print(f"left out: {count} ({reason})")
    console.print(f"plot: {_plot(index, args)}")


def _plot(index: Any, args: Any) -> Path:
    values = numpy.asarray(index.entropy)
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.hist(values[~numpy.isnan(values)], bins=60, color="#4477aa")
    for edge in args.entropy_thresholds:
        axes.axvline(edge, color="#cc6677", linewidth=1)
    axes.set(xlabel="entropy of the next token, nats", ylabel="tokens", title="Tiers begin at the lines")
    place = Path(index.folder) / HISTOGRAM
    figure.savefig(place, dpi=120)
    return place


def _write_questions(
    folder: Path, maker: Any, targets: Any, args: Any, *, per_tier: int, nested: bool, console: Any
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {"reasoning": [], "next_token": []}
    for tier, band in enumerate(TIERS):
        name = f"above {args.entropy_thresholds[tier]}" if nested else band
        pool = targets.positions[targets.tiers >= tier if nested else targets.tiers == tier]
        generator = numpy.random.default_rng([args.seed, tier])
        for position in generator.permutation(pool)[:per_tier].tolist():
            rows["reasoning"].append(maker.row(position, tier=name))
            rows["next_token"].append(maker.plain_row(position, tier=name))
    for name, made in rows.items():
        place = folder / f"{name}.jsonl"
        place.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")
        console.print(f"{len(made)} questions: {place}")
