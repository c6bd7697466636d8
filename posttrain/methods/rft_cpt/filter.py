"""Filtering training rows by rollouts of a model: as a step of a stage (`rif`), and as `posttrain filter`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from posttrain.config.build import reward_scorer
from posttrain.config.loader import load_stage
from posttrain.config.run_config import RunConfig
from posttrain.config.steps import StageStep
from posttrain.config.verdict import evaluation_settings, template_variables, verifier_name, verifier_sha256
from posttrain.console import is_main_process, quiet_libraries, say
from posttrain.errors import ConfigError, PosttrainError, SupportError
from posttrain.evaluation.generate import EvalSettings, evaluate
from posttrain.evaluation.progress import EvaluationProgress
from posttrain.methods.rft_cpt.choose import Filtered, checked_cache, select_rows
from posttrain.methods.rft_cpt.rif_block import RifBlock
from posttrain.preflight.mixture import load_split
from posttrain.reports.provenance import data_fingerprint
from posttrain.reports.records import write_json, write_jsonl
from posttrain.training.evaluator import precision
from posttrain.training.saved_models import find_model

FOLDER = "rif"
_SAMPLING = ("num_rollouts", "temperature", "seed")


class FilterStep(StageStep):
    """`rif` of a stage: trains on the rows that the model which it starts from can solve.

    Counts are taken from the stage's folder where they are there; the kept rows are the same on every rank.
    """

    block = RifBlock

    def rule_findings(self, run: RunConfig) -> Iterator[PosttrainError]:
        block: RifBlock = self.settings
        where = run.where("rif")
        if verifier_name(run) is None:
            yield ConfigError("no reward tells which completion is right", where=where, fix="Write eval.verifier")
        most = block.max_correct if block.max_correct is not None else block.num_rollouts
        if not block.min_correct <= most <= block.num_rollouts:
            allowed = f"min_correct <= max_correct <= num_rollouts ({block.num_rollouts})"
            yield ConfigError("no row could be kept", where=where, got=[block.min_correct, most], allowed=allowed)
        if run.data.train.streaming:
            what = "rows of a stream cannot be chosen before they are read"
            yield SupportError(what, where=where, fix="Remove it")

    def rows(self, run: RunConfig, rows: Any, *, model: str, folder: Path) -> tuple[Any, Mapping[str, Any]]:
        fresh = run.trainer.resume == "never"
        kept = filter_rows(
            run, rows=rows, model=find_model(model), block=self.settings, folder=folder / FOLDER, fresh=fresh
        )
        if is_main_process():
            say(f"{folder.name}: {kept.sentence()}")
        return rows.select(kept.indices), kept.record()


def filter_rows(config: Any, *, rows: Any, model: Any, block: Any, folder: Path, fresh: bool = False) -> Filtered:
    """Complete every row `block.num_rollouts` times, count what the verifier accepts, and choose.

    Args:
        config: one run, without stages; verifier, its limits, template variables and device are its own.
        rows: training rows.
        model: a `SavedModel`.
        block: a `RifBlock`.
        folder: holds `counts.json` and the completions; equal identity there means that nothing is generated again.
        fresh: take no notice of what is there.

    Raises:
        ResumeError: what is there was made with another checkpoint, other rows or settings. DataError: none kept.
    """
    path, tokens = folder / "counts.json", 0
    accelerator = Accelerator(**precision(config))
    identity = _identity(config, rows, model, block)
    if path.exists() and not fresh:
        kept = json.loads(path.read_text(encoding="utf-8"))
        counts, tokens = checked_cache(kept, identity, where=str(path)), int(kept["generated_tokens"])
    else:
        result = _rollouts(config, rows, model, block, accelerator)
        counts, tokens = _counts(result.samples, len(rows)), result.num_tokens
        if is_main_process():
            write_jsonl(folder / "completions.jsonl", result.samples)
            write_json(path, {"identity": identity, "counts": counts, "generated_tokens": tokens})
    accelerator.wait_for_everyone()
    chosen = block.model_dump(include={"num_rollouts", "min_correct", "max_correct", "max_examples", "choose", "seed"})
    return Filtered(select_rows(counts, **chosen), counts, block.num_rollouts, block.choose, tokens)


def _identity(config: Any, rows: Any, model: Any, block: Any) -> dict[str, Any]:
    found = model.identity(config.model)
    settings = {**block.model_dump(include=set(_SAMPLING)), "max_new_tokens": _length(config, block)}
    settings["success_threshold"] = getattr(config.method, "success_threshold", 1.0)
    return {
        "model": [found["sha256"], found.get("base", {}).get("files")],
        "data": data_fingerprint(rows)["sha256"],
        "verifier": [verifier_name(config), verifier_sha256(config)],
        "settings": settings,
        "chat_template": template_variables(config),
    }


def _length(config: Any, block: Any) -> int:
    return int(block.max_new_tokens or evaluation_settings(config)["max_new_tokens"])


def _rollouts(config: Any, rows: Any, model: Any, block: Any, accelerator: Any) -> Any:
    """`EvalResult` of N completions for every row."""
    name = verifier_name(config)
    if name is None:
        where = config.where("eval", "verifier")
        raise ConfigError("no reward tells which completion is right", where=where, fix="Set it, e.g. exact")
    settings = EvalSettings(
        num_prompts=None,
        num_generations=block.num_rollouts,
        temperature=block.temperature,
        max_new_tokens=_length(config, block),
        batch_size=max(block.batch_size, block.num_rollouts),
        seed=block.seed,
    )
    weights = model.load(config.model).to(accelerator.device)
    with EvaluationProgress() as progress, accelerator.autocast():
        return evaluate(
            weights,
            model.tokenizer(config.model),
            rows,
            reward_scorer(config, name, evaluation=True),
            settings=settings,
            progress=progress,
            accelerator=accelerator,
            success_threshold=getattr(config.method, "success_threshold", 1.0),
            chat_template_kwargs=template_variables(config),
        )


def _counts(samples: Sequence[dict[str, Any]], num_rows: int) -> list[int | None]:
    """Right completions of every row; None where none has a verdict."""
    counts: list[int | None] = [None] * num_rows
    for sample in samples:
        if sample["correct"] is not None:
            counts[sample["index"]] = (counts[sample["index"]] or 0) + int(bool(sample["correct"]))
    return counts


# ---- the verb ----


def filter_model(
    model: str,
    *,
    recipe: str | Path,
    overrides: Sequence[str] = (),
    stage: str | None = None,
    output: str | Path | None = None,
    options: dict[str, Any] | None = None,
) -> Filtered:
    """Filter the training rows of a recipe with a saved model, and write those that are kept.

    Args:
        model: model, run, checkpoint or adapter folder, or Hub id.
        recipe: path of the YAML file.
        overrides: as for training.
        stage: of a recipe with stages; None = the last.
        output: folder of `counts.json`, `completions.jsonl` and `kept.jsonl`; None = runs/filter/<model>-<recipe>.
        options: keys of a stage's `rif` block in place of the recipe's.

    Raises:
        PosttrainError: anything a user can cause.
    """
    name, config = load_stage(recipe, overrides, stage)[-1]
    quiet_libraries()
    step = None if config.stage is None else config.stage.added.get("rif")
    written = {} if step is None else step.settings.model_dump()
    block = RifBlock(**{**written, **(options or {})})
    most = block.num_rollouts if block.max_correct is None else block.max_correct
    if not block.min_correct <= most <= block.num_rollouts:
        allowed = f"min-correct <= max-correct <= num-rollouts ({block.num_rollouts})"
        raise ConfigError("no row could be kept", where="filter", got=[block.min_correct, most], allowed=allowed)
    found = find_model(model, stage=name)
    loaded = load_split(config, "train", found.tokenizer(config.model))
    if loaded.streams is not None:
        raise SupportError(
            "rows of a stream are not there to choose from",
            where=config.where("data", "train", "streaming"),
            fix="Set data.train.streaming=false, or filter the files",
        )
    rows = loaded.dataset
    title = Path(config.source.file).stem + ("" if name == "run" else f"-{name}")
    folder = Path(output) if output is not None else Path("runs", "filter", f"{found.label}-{title}")
    kept = filter_rows(config, rows=rows, model=found, block=block, folder=folder)
    if is_main_process():
        write_jsonl(folder / "kept.jsonl", (dict(rows[index]) for index in kept.indices))
        say(f"{kept.sentence()}\n{folder / 'kept.jsonl'}")
    return kept
