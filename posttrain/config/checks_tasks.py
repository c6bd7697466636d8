"""Checks of `data.eval_tasks`: every further task has rows that its verifier can judge and that training has not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from posttrain.config import checks_data
from posttrain.config.checks_data import Rows
from posttrain.config.run_config import RunConfig
from posttrain.errors import PosttrainError


def task_findings(
    cfg: RunConfig, train: Rows | None, *, loaded: dict[str, Any]
) -> Iterator[tuple[bool, PosttrainError]]:
    """(whether it stops the run, finding) about each further evaluation task.

    Args:
        cfg: one run, without stages.
        train: training rows to look for shared prompts in; None where they cannot be had.
        loaded: rows, or why there are none, by source; stages share it.
    """
    from posttrain.evaluating import verifier_name

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


def _load(source: Any, system_prompt: str | None) -> Any:
    from posttrain.data.sources import load_source

    try:
        return load_source(source, system_prompt=system_prompt)
    except PosttrainError as error:
        return error


def _placed(cfg: RunConfig, name: str, error: PosttrainError) -> PosttrainError:
    where = cfg.where("data", "eval_tasks", name)
    facts = {"got": error.got} if "(got " in str(error) else {}
    placed = type(error)(error.what, where=where, allowed=error.allowed, fix=error.fix, **facts)
    placed.__cause__ = error  # which may say that the Hub is out of reach
    return placed
