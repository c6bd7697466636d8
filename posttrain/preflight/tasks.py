"""Checks of further rows: tasks of `data.eval_tasks`, which a verifier can judge and training has not, and probes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from posttrain.config.run_config import RunConfig
from posttrain.config.verdict import verifier_name
from posttrain.data.sources import load_source
from posttrain.errors import DataError, PosttrainError
from posttrain.preflight import data as checks_data
from posttrain.preflight.data import Rows


def task_findings(
    cfg: RunConfig, train: Rows | None, *, loaded: dict[str, Any]
) -> Iterator[tuple[bool, PosttrainError]]:
    """(whether it stops the run, finding) about each further evaluation task.

    Args:
        cfg: one run, without stages.
        train: training rows to look for shared prompts in; None where they cannot be had.
        loaded: rows, or why there are none, by source; stages share it.
    """
    for name, source in (cfg.data.eval_tasks or {}).items():
        key = source.model_dump_json(exclude={"verifier"}) + repr(cfg.data.system_prompt)
        if key not in loaded:
            loaded[key] = _load(source, cfg.data.system_prompt)
        dataset = loaded[key]
        if isinstance(dataset, PosttrainError):
            yield True, _placed(cfg, name, dataset)
            continue
        rows = checks_data.as_rows(f"eval_tasks.{name}", dataset, demonstration_column="solution")
        faults = list(checks_data.prompt_findings(cfg, rows))
        verifier = source.verifier or verifier_name(cfg)
        graded = [verifier] if verifier in ("exact", "math") else []
        faults += checks_data.answer_findings(cfg, rows, graded=graded)
        yield from ((True, fault) for fault in faults)
        if train is not None and not faults:
            yield from ((False, finding) for finding in checks_data.shared_rows(cfg, train, rows))


def probe_findings(cfg: RunConfig, *, loaded: dict[str, Any]) -> Iterator[PosttrainError]:
    """What is wrong with the rows of `data.probes`: out of reach, or an answer that is empty or no text.

    Args:
        cfg: one run, without stages.
        loaded: rows, or why there are none, by source; stages share it.
    """
    for name, source in (cfg.data.probes or {}).items():
        key = source.model_dump_json() + repr(cfg.data.system_prompt)
        if key not in loaded:
            loaded[key] = _load(source, cfg.data.system_prompt)
        dataset = loaded[key]
        if isinstance(dataset, PosttrainError):
            yield _placed(cfg, name, dataset, block="probes")
            continue
        yield from checks_data.prompt_findings(
            cfg, checks_data.as_rows(f"probes.{name}", dataset, demonstration_column="solution")
        )
        uneven = [
            i
            for i, row in enumerate(dataset)
            if row.get("paraphrased_prompts") and len(row["paraphrased_prompts"]) != len(row.get("paraphrases") or ())
        ]
        if uneven:
            what = f"{checks_data.rows_text(uneven)} of {len(dataset)}: not as many paraphrased answers as questions"
            fix = "Give each paraphrased question its answer, or leave paraphrased_prompts out"
            yield DataError(what, where=cfg.where("data", "probes", name), fix=fix)
        empty = [i for i, row in enumerate(dataset) if not (row.get("solution") or row.get("answer") or "").strip()]
        if empty:
            what = f"{checks_data.rows_text(empty)} of {len(dataset)} have no answer to measure"
            fix = "Map it under columns: {solution: ...}, or drop the rows"
            yield DataError(what, where=cfg.where("data", "probes", name), fix=fix)


def further_rows(cfg: RunConfig, *, loaded: dict[str, Any]) -> Iterator[tuple[Rows, bool]]:
    """(rows, whether their answers are scored) of tasks and probes that could be had and have no faulty prompts.

    Args:
        cfg: one run, without stages.
        loaded: what `task_findings` and `probe_findings` have loaded.
    """
    for block, sources in (("eval_tasks", cfg.data.eval_tasks), ("probes", cfg.data.probes)):
        is_probe = block == "probes"
        for name, source in (sources or {}).items():
            shown = source.model_dump_json() if is_probe else source.model_dump_json(exclude={"verifier"})
            dataset = loaded.get(shown + repr(cfg.data.system_prompt))
            if dataset is None or isinstance(dataset, PosttrainError):
                continue
            rows = checks_data.as_rows(f"{block}.{name}", dataset, demonstration_column="solution")
            if not any(True for _ in checks_data.prompt_findings(cfg, rows)):
                yield rows, is_probe


def _load(source: Any, system_prompt: str | None) -> Any:
    try:
        return load_source(source, system_prompt=system_prompt)
    except PosttrainError as error:
        return error


def _placed(cfg: RunConfig, name: str, error: PosttrainError, *, block: str = "eval_tasks") -> PosttrainError:
    where = cfg.where("data", block, name)
    facts = {"got": error.got} if "(got " in str(error) else {}
    placed = type(error)(error.what, where=where, allowed=error.allowed, fix=error.fix, **facts)
    placed.__cause__ = error  # which may say that the Hub is out of reach
    return placed
