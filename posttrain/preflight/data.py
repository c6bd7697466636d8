"""Checks of the rows: empty and over-long ones, missing demonstrations, rows shared by training and evaluation."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from posttrain.config.run_config import RunConfig
from posttrain.data.names import name_findings
from posttrain.errors import DataError, PosttrainError
from posttrain.registry import Method
from posttrain.seam.groups.log import GroupStats, group_column
from posttrain.seam.groups.sampler import prompt_groups, prompt_shares

_SHOWN = 5
_ANSWERED = "the prompt ends with an assistant message"
_AS_JSON = json.JSONEncoder(sort_keys=True, default=str).encode


@dataclass
class Rows:
    """Rows of one split as lists, with what the checks learn about them on the way.

    `prompt_tokens[i]` and `solution_tokens[i]` are None where the text is surely short enough to need no count. With
    `streams` the rows are the first ones of each.
    """

    split: str
    prompts: list[Any]
    answers: list[Any]
    solutions: list[Any]
    columns: list[str]
    dataset: Any
    streams: Any = None
    dropped: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.prompts)


# Of data sets that several stages of a recipe read: their columns are made into lists, and what depends on them and
# a key alone is found, once.
_KEPT: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()


def kept(dataset: Any, key: Any, make: Callable[[], Any]) -> Any:
    """What `make` returned when it was first called for this data set and key."""
    found = _KEPT.setdefault(dataset, {})
    if key not in found:
        found[key] = make()
    return found[key]


def as_rows(split: str, dataset: Any, *, demonstration_column: str) -> Rows:
    """Columns of a data set as lists; a missing optional column gives empty texts."""
    columns = list(dataset.column_names)
    count = len(dataset)

    def column(name: str) -> list[Any]:
        if name not in columns:
            return [""] * count
        found: list[Any] = kept(dataset, ("column", name), lambda: _listed(dataset, name))
        return found

    return Rows(split, column("prompt"), column("answer"), column(demonstration_column), columns, dataset)


def _listed(dataset: Any, name: str) -> list[Any]:
    """All cells of a column, made as one: row by row takes ten times as long, and so does looking among them for what
    may be freed."""
    collects = gc.isenabled()
    gc.disable()
    try:
        return list(dataset[name][:])
    finally:
        if collects:
            gc.enable()


def uses_demonstrations(cfg: RunConfig, entry: Method) -> bool:
    """Whether the method trains on the demonstration column."""
    if entry.learns_rows:
        return True
    if not hasattr(cfg.method, "demonstration_column"):
        return False
    return getattr(cfg.method, "switch_gate", 0.0) >= 0 or getattr(cfg.method, "feedback_mode", "switch") == "soft"


def rows_text(indices: Iterable[int]) -> str:
    """ "rows 3, 8, 12 and 40 more"."""
    listed = sorted(indices)
    shown = ", ".join(str(index) for index in listed[:_SHOWN])
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return f"row{'s' * (len(listed) != 1)} {shown}{more}"


def prompt_text(prompt: Any) -> str:
    """All text of a prompt, chat messages joined."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(str(message.get("content") or "") for message in prompt if isinstance(message, dict))


def prompt_findings(cfg: RunConfig, rows: Rows) -> Iterator[PosttrainError]:
    """Prompts that are empty or no messages, messages that end with the assistant's turn, and names that are taken."""
    where = cfg.where("data", rows.split)
    if rows.split.startswith("eval") or (cfg.rollout is not None and not rows.split.startswith("probes")):
        source = getattr(cfg.data, rows.split, None)
        yield from name_findings(rows.columns, where, is_mixed=getattr(source, "mixture", None) is not None)
    if not len(rows):
        yield DataError("there are no rows", where=where, fix="Check split, limit and file")
        return
    faults: dict[str, list[int]] = {}
    for index, prompt in enumerate(rows.prompts):
        fault = _prompt_fault(prompt)
        if fault:
            faults.setdefault(fault, []).append(index)
    for fault, found in faults.items():
        yield DataError(
            f"{fault} in {len(found)} of {len(rows)} rows ({rows_text(found)})",
            where=where,
            got=rows.prompts[found[0]],
            fix="Write the last message into a column of its own, `solution`"
            if fault == _ANSWERED
            else "Fix or remove these rows",
        )


def _prompt_fault(prompt: Any) -> str | None:
    if isinstance(prompt, str):
        return None if prompt.strip() else "the prompt is empty"
    if not isinstance(prompt, list) or not prompt:
        return "the prompt is empty" if not prompt else "the prompt is neither text nor a list of messages"
    if not all(isinstance(message, dict) and {"role", "content"} <= set(message) for message in prompt):
        return "a message of the prompt lacks role or content"
    if not any(message["role"] == "user" and str(message["content"] or "").strip() for message in prompt):
        return "the prompt has no user message with text"
    if prompt[-1]["role"] == "assistant":
        return _ANSWERED
    return None


def answer_findings(cfg: RunConfig, rows: Rows, *, graded: list[str]) -> Iterator[PosttrainError]:
    """Rows without an answer although a packaged reward compares with it.

    Args:
        cfg: the run.
        rows: one split.
        graded: names of the rewards in use that compare with the column `answer`.
    """
    empty = [
        index for index, answer in enumerate(rows.answers) if not str(answer if answer is not None else "").strip()
    ]
    if not empty or not graded:
        return
    yield DataError(
        f"the answer is empty in {len(empty)} of {len(rows)} rows ({rows_text(empty)})",
        where=cfg.where("data", rows.split),
        fix=f"Reward {graded[0]!r} compares with it: map the column under data.{rows.split}.columns, or drop the rows",
    )


def demonstration_findings(cfg: RunConfig, entry: Method, rows: Rows) -> Iterator[tuple[bool, PosttrainError]]:
    """(whether it stops the run, finding) about the demonstration column and its empty rows."""
    column = str(cfg.method.demonstration_column)
    where = cfg.where("data", rows.split)
    if column not in rows.columns:
        yield (
            True,
            DataError(
                "the demonstration column is missing",
                where=where,
                got=column,
                allowed=f"columns: {', '.join(rows.columns)}",
                fix=f"Map it under data.{rows.split}.columns, or set method.demonstration_column",
            ),
        )
        return
    empty = [index for index, text in enumerate(rows.solutions) if not isinstance(text, str) or not text.strip()]
    if not empty or not len(rows):
        return
    told = f"the demonstration is empty in {len(empty)} of {len(rows)} rows ({rows_text(empty)})"
    if column == "prompt":
        told = f"{len(empty)} of {len(rows)} rows are chats, and method.demonstration_column: prompt learns documents"
        yield (
            True,
            DataError(
                told, where=where, fix=f"Set data.{rows.split}.format: text, or name the demonstrations' column"
            ),
        )
        return
    limit = cfg.data.max_empty_solution_fraction
    if entry.learns_rows:
        yield (
            True,
            DataError(told, where=where, fix=f"Map the column under data.{rows.split}.columns, or drop these rows"),
        )
    elif len(empty) / len(rows) > limit:
        yield (
            True,
            DataError(
                told,
                where=where,
                allowed=f"at most {limit:.0%} (data.max_empty_solution_fraction)",
                fix=f"Map the column under data.{rows.split}.columns, or use a method without demonstrations",
            ),
        )
    else:
        yield False, DataError(f"{told}; they stay with RL", where=where)


def supervised_step_findings(cfg: RunConfig, rows: Rows, *, world_size: int) -> Iterator[PosttrainError]:
    """Too few demonstrations for one supervised step of a method that alternates; nothing for the others."""
    if not hasattr(cfg.method, "sft_per_device_batch_size"):
        return
    each = cfg.method.sft_per_device_batch_size or cfg.trainer.per_device_train_batch_size
    needed = int(each) * int(cfg.trainer.gradient_accumulation_steps) * world_size
    usable = sum(
        isinstance(text, str) and bool(text.strip()) and index not in rows.dropped
        for index, text in enumerate(rows.solutions)
    )
    if usable < needed:
        yield DataError(
            f"a supervised step takes {needed} demonstrations, so none could be made",
            where=cfg.where("data", "train"),
            got=f"{usable} rows with a demonstration",
            fix="Add rows, or lower method.sft_per_device_batch_size",
        )


def long_prompts(
    cfg: RunConfig, rows: Rows, count: Callable[[int], int | None]
) -> Iterator[tuple[bool, PosttrainError]]:
    """(whether it stops the run, finding) about prompts over the limit; with overlong_prompts: drop they are noted in
    `rows.dropped`.

    Args:
        cfg: the run.
        rows: one split.
        count: tokens of a row's prompt, or None if it is surely within the limit.
    """
    limit = cfg.data.max_prompt_length
    counts = [count(index) for index in range(len(rows))]
    found = [index for index, length in enumerate(counts) if length is not None and length > limit]
    if not found:
        return
    longest = max(found, key=lambda index: counts[index] or 0)
    told = f"{len(found)} of {len(rows)} prompts are longer than {limit} tokens ({rows_text(found)})"
    where = cfg.where("data", rows.split)
    got = f"{counts[longest]} tokens in row {longest}"
    if cfg.data.overlong_prompts == "error":
        fix = "Raise data.max_prompt_length, or set data.overlong_prompts: drop"
        yield True, DataError(told, where=where, got=got, fix=fix)
        return
    rows.dropped |= set(found)
    stops = len(found) == len(rows)
    yield stops, DataError(f"{told}; they are dropped", where=where, got=got)


def long_demonstrations(
    cfg: RunConfig, entry: Method, rows: Rows, lengths: Callable[[int], tuple[int, int] | None]
) -> Iterator[tuple[bool, PosttrainError]]:
    """(whether it stops the run, finding) about demonstrations over the limit.

    Args:
        cfg: the run.
        entry: the method.
        rows: training rows.
        lengths: tokens of (prompt, demonstration) of a row, or None if surely within every limit.
    """
    supervised = entry.learns_rows
    limit = cfg.trainer.max_length if supervised else cfg.rollout.max_completion_length  # type: ignore[union-attr]
    if limit is None:
        return
    name = "trainer.max_length" if supervised else "rollout.max_completion_length"
    sizes: dict[int, int] = {}
    for index, text in enumerate(rows.solutions):
        both = lengths(index) if isinstance(text, str) and text.strip() and index not in rows.dropped else None
        if both is not None:
            size = both[0] + both[1] if supervised else both[1]
            if size > limit:
                sizes[index] = size
    if not sizes:
        return
    longest = max(sizes, key=lambda index: sizes[index])
    what = "prompt and demonstration together are" if supervised else "the demonstration is"
    told = f"{what} longer than {limit} tokens in {len(sizes)} of {len(rows)} rows ({rows_text(sizes)})"
    policy = "error" if supervised else cfg.method.overlong_demonstration
    outcome = {"drop": "; these prompts stay with RL", "truncate": "; they are cut and their end is not trained"}
    fix = f"Raise {name} or drop the rows" + ("" if supervised else ", or set method.overlong_demonstration")
    yield (
        policy == "error",
        DataError(
            told + outcome.get(policy, ""),
            where=cfg.where("data", rows.split),
            got=f"{sizes[longest]} tokens in row {longest}",
            allowed=f"at most {limit} ({name})",
            fix=fix if policy == "error" else None,
        ),
    )


def shared_rows(cfg: RunConfig, train: Rows, held_out: Rows) -> Iterator[PosttrainError]:
    """Prompts that are in training and in evaluation: the score would tell what was memorised."""
    known = set(_fingerprints(train))
    found = [index for index, text in enumerate(_fingerprints(held_out)) if text in known]
    if found:
        yield DataError(
            f"{len(found)} of {len(held_out)} evaluation prompts are training prompts too ({rows_text(found)})",
            where=cfg.where("data", held_out.split),
            fix="Use another split or seed, or remove them, if the score is to speak of new prompts",
        )


def _fingerprints(rows: Rows) -> list[str]:
    found: list[str] = kept(rows.dataset, "fingerprints", lambda: list(map(_fingerprint, rows.prompts)))
    return found


def _fingerprint(prompt: Any) -> str:
    """Text of the prompt without case and spacing; messages keep their roles."""
    if isinstance(prompt, str):
        text = prompt
    elif all(len(message) == 2 and type(message.get("content")) is str for message in prompt):
        text = "\0".join([f"{message.get('role')}\0{message['content']}" for message in prompt])
    else:
        text = _AS_JSON(prompt)
    return " ".join(text.split()).lower()


def share_findings(args: Any, rows: Any) -> Iterator[PosttrainError]:
    """Groups that prompts are drawn by and that are not there, and shares of other groups.

    Args:
        args: a `PolicyConfig` with `prompt_groups`. rows: the training rows.
    """
    log = GroupStats.of(rows, group_column(rows, args.prompt_groups))
    try:
        groups = prompt_groups(log, args)
        if not args.changing_shares:
            prompt_shares(groups, args)
    except PosttrainError as error:
        yield error
