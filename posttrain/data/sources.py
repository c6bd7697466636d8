"""Rows for training and evaluation: packaged tasks, reasoning-gym tasks, local files and Hub datasets.

Whatever the source, the columns are `prompt` (chat messages, or text), `answer`, `solution`, `group`, `task`, `entry`.
A source may have the columns of `ANSWERS`, too: an answer, and questions, in other words. Several sources together are
`posttrain.data.mixture`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.data.files import looks_local, read_dataset
from posttrain.data.tasks import TASKS
from posttrain.errors import ConfigError, DataError

if TYPE_CHECKING:
    from datasets import Dataset

COLUMNS = ("prompt", "answer", "solution", "group", "task", "entry")
# What unlearning and its evaluation read: lists of texts, but for `alternate`, which is one text. Kept as they are.
ANSWERS = ("paraphrased_prompts", "paraphrases", "perturbed", "alternate")
_PROMPT_SYNONYMS = ("prompts", "question", "problem", "instruction", "query", "input", "messages")
_KINDS = ("task", "reasoning_gym", "path")
_ROLES = ("system", "user", "assistant", "tool")


def load_source(source: Any, *, system_prompt: str | None = None) -> Dataset:
    """Rows of one source with the columns of `COLUMNS`.

    Args:
        source: a mapping or an object with attributes; exactly one of `task`, `reasoning_gym` and `path`. The first
            two take `size`, `seed` and `options`; `path` (a Hub id, a .json, .jsonl, .csv or .parquet file, or a
            folder) takes `name`, `split`, `revision`, `limit`, `columns` (our name -> theirs, dots for nested fields)
            and `format`.
        system_prompt: put before every prompt that has no system message; not for format "text".

    Returns:
        Dataset. `prompt` is a list of {role, content}, or a string with format "text"; the others of `COLUMNS` are
        strings, "" where the source has none; further columns of a file or Hub data set come along as they are. From
        an answer with lines beginning "####" (GSM8K) only what follows the last one is kept.

    Raises:
        ConfigError: for a source that contradicts itself or options its generator does not know.
        DataError: for files that cannot be read, missing columns, and rows that cannot be used, with their number.
        SupportError: for a reasoning-gym task without the package.
    """
    kinds = [kind for kind in _KINDS if _get(source, kind) is not None]
    if len(kinds) != 1:
        raise ConfigError(
            "the source must name exactly one place", got=kinds or None, allowed=f"one of: {', '.join(_KINDS)}"
        )
    as_text = _get(source, "format") == "text"
    if as_text and system_prompt is not None:
        raise ConfigError("text has no system message", where="system_prompt", fix="Remove it, or remove format: text")
    if kinds == ["path"]:
        return _from_path(source, as_text=as_text, system_prompt=system_prompt)
    from datasets import Dataset

    rows = _generated(source, kinds[0])
    for index, row in enumerate(rows):
        row["prompt"] = _prompt(row["prompt"], as_text, system_prompt, where=f"row {index}")
    return Dataset.from_list(rows, features=_features(as_text, [name for name in ANSWERS if rows and name in rows[0]]))


def _get(source: Any, key: str, default: Any = None) -> Any:
    value = source.get(key) if isinstance(source, Mapping) else getattr(source, key, None)
    return default if value is None else value


# ---- generated rows ----


def _generated(source: Any, kind: str) -> list[dict[str, Any]]:
    name, size, seed = _get(source, kind), _get(source, "size"), _get(source, "seed", 0)
    options = dict(_get(source, "options", {}))
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ConfigError("generated rows need a number", where="size", got=size, allowed="int >= 1")
    if kind == "reasoning_gym":
        from posttrain.data.tasks.reasoning_gym import generate

        split = options.pop("split", "train")
        return generate(name, size, seed=seed, split=split, options=options)
    if name not in TASKS:
        raise ConfigError(
            "unknown task", where="task", got=name, allowed=f"one of: {', '.join(TASKS)}", fix=_nearest(name, TASKS)
        )
    module, function = TASKS[name].split(":")
    generator: Callable[..., list[dict[str, Any]]] = getattr(import_module(module), function)
    known = [key for key in inspect.signature(generator).parameters if key not in ("size", "seed")]
    for key in options:
        if key not in known:
            fix = _nearest(key, known)
            allowed = f"one of: {', '.join(known)}"
            raise ConfigError(f"task {name!r} has no such option", where="options", got=key, allowed=allowed, fix=fix)
    return generator(size, seed=seed, **options)


def _nearest(word: str, choices: Any) -> str | None:
    near = get_close_matches(str(word), list(choices), n=1)
    return f"Perhaps you mean {near[0]!r}" if near else None


# ---- rows that are read ----


def _from_path(source: Any, *, as_text: bool, system_prompt: str | None) -> Dataset:
    path = str(_get(source, "path"))
    from datasets import Features

    dataset = read_dataset(
        path, name=_get(source, "name"), split=_get(source, "split", "train"), revision=_get(source, "revision")
    )
    limit = _get(source, "limit")
    if limit is not None:
        dataset = dataset.select(range(min(limit, len(dataset))))
    columns = _columns(dict(_get(source, "columns", {})), dataset.column_names, path, as_text)
    renamed = {ours: dataset.features[theirs] for ours, theirs in columns.items() if ours in ANSWERS}
    # A user's own reward reads further columns by their names.
    used = {*COLUMNS, *renamed, *columns.values()}
    further = [name for name in dataset.column_names if name not in used]
    return dataset.map(
        partial(_rows, columns=columns, path=path, as_text=as_text, system_prompt=system_prompt),
        batched=True,
        batch_size=256,
        with_indices=True,
        remove_columns=[name for name in dataset.column_names if name not in further],
        features=Features({**{name: dataset.features[name] for name in further}, **renamed, **_features(as_text)}),
        # datasets names its cache after the function, not after the code that the function calls, and would write it
        # beside the user's files.
        load_from_cache_file=False,
        keep_in_memory=True,
    )


@dataclass(frozen=True)
class RowMaker:
    """Makes one row of a file or Hub data set into a row of ours, as `load_source` does with all of them."""

    columns: dict[str, str]
    present: tuple[str, ...]
    path: str
    as_text: bool
    system_prompt: str | None

    @classmethod
    def of(cls, source: Any, first: Mapping[str, Any], *, system_prompt: str | None = None) -> RowMaker:
        """From a source and its first raw row, whose columns are taken for those of all.

        Raises:
            ConfigError, DataError: as in `load_source`.
        """
        path, as_text, present = str(_get(source, "path")), _get(source, "format") == "text", list(first)
        columns = _columns(dict(_get(source, "columns", {})), present, path, as_text)
        return cls(columns, tuple(present), path, as_text, system_prompt)

    def row(self, raw: Mapping[str, Any], number: int) -> dict[str, Any]:
        """Row `number`; a column that it lacks counts as empty.

        Raises:
            DataError: it cannot be used.
        """
        batch = {name: [raw.get(name)] for name in self.present}
        made = _rows(
            batch,
            [number],
            columns=self.columns,
            path=self.path,
            as_text=self.as_text,
            system_prompt=self.system_prompt,
        )
        used = {*made, *self.columns.values()}
        further = {name: cells[0] for name, cells in batch.items() if name not in used}
        return {**further, **{name: cells[0] for name, cells in made.items()}}


def _columns(mapping: dict[str, str], present: list[str], path: str, as_text: bool) -> dict[str, str]:
    """Our column -> theirs, for the columns that exist; refuses a mapping to nothing and a missing prompt."""
    for ours, theirs in mapping.items():
        if ours not in COLUMNS + ANSWERS:
            allowed, fix = f"one of: {', '.join(COLUMNS + ANSWERS)}", _nearest(ours, COLUMNS + ANSWERS)
            raise ConfigError("unknown column of ours", where="columns", got=ours, allowed=allowed, fix=fix)
        if theirs not in present and (ours in ANSWERS or theirs.split(".")[0] not in present):
            raise _missing(
                theirs, path, present, f"columns.{ours} asks for it. {_nearest(theirs, present) or ''}".rstrip(". ")
            )
    found = {ours: ours for ours in COLUMNS if ours in present} | mapping
    if "prompt" not in found and as_text and "text" in present:
        found["prompt"] = "text"
    if "prompt" not in found:
        near = [column for column in present if column.lower() in _PROMPT_SYNONYMS]
        near = near or get_close_matches("prompt", present, n=1)
        wanted = near[0] if near else "<their column>"
        raise _missing("prompt", path, present, f"Name it in the source: columns: {{prompt: {wanted}}}")
    return found


def _missing(column: str, path: str, present: list[str], fix: str) -> DataError:
    return DataError("no such column", where=path, got=column, allowed=f"present: {', '.join(present)}", fix=fix)


def _rows(
    batch: Mapping[str, list[Any]],
    indices: list[int],
    *,
    columns: dict[str, str],
    path: str,
    as_text: bool,
    system_prompt: str | None,
) -> dict[str, list[Any]]:
    count = len(indices)
    result: dict[str, list[Any]] = {name: [""] * count for name in COLUMNS}
    # The name alone: the folder says where the run took place, not what the rows are.
    result["task"] = [Path(path).name if looks_local(path) or Path(path).exists() else path] * count
    for ours, theirs in columns.items():
        if ours in ANSWERS:
            result[ours] = list(batch[theirs])
            continue
        for position, cell in enumerate(_cells(batch, theirs)):
            where = f"{path}, row {indices[position]}, column {theirs!r}"
            if ours == "prompt":
                value = _prompt(cell, as_text, system_prompt, where=where)
            elif ours == "answer":
                value = _last_marked(_text(cell, where))
            else:
                value = _text(cell, where)
            result[ours][position] = value
    return result


def _cells(batch: Mapping[str, list[Any]], column: str) -> list[Any]:
    """Cells of a column; "a.b" reads field b of the mappings in column a."""
    if column in batch:
        return batch[column]
    first, *fields = column.split(".")
    cells = batch[first]
    for field in fields:
        cells = [cell.get(field) if isinstance(cell, Mapping) else None for cell in cells]
    return cells


def _prompt(value: Any, as_text: bool, system_prompt: str | None, *, where: str) -> Any:
    """A prompt cell as chat messages, or as text."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if as_text:
        if not isinstance(value, str) or not value.strip():
            raise DataError("the text is empty or no text", where=where, got=value, fix="Drop the row")
        return value
    if isinstance(value, str) and value.strip():
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise DataError("the prompt is empty or neither text nor messages", where=where, got=value, fix="Drop the row")
    messages = []
    for message in value:
        role = message.get("role") if isinstance(message, Mapping) else None
        content = message.get("content") if isinstance(message, Mapping) else None
        if role not in _ROLES or not isinstance(content, str):
            allowed = f"role ({', '.join(_ROLES)}) and content (text)"
            raise DataError("a message lacks role or content", where=where, got=message, allowed=allowed)
        messages.append({"role": role, "content": content})
    if system_prompt is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system_prompt})
    return messages


def _text(value: Any, where: str) -> str:
    """A cell as text: numbers are written out, nothing is "", a list of one assistant message is its content."""
    if value is None:
        return ""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping):
        value = value[0].get("content")
    if isinstance(value, (str, int, float)):
        return str(value)
    raise DataError("the cell is neither text nor a number", where=where, got=value, fix="Map another column")


def _last_marked(answer: str) -> str:
    """What follows the last "####" that begins a line, else the whole answer."""
    lines = [line.strip() for line in answer.split("\n") if line.strip().startswith("####")]
    return lines[-1].removeprefix("####").strip() if lines else answer


def _features(as_text: bool, answers: Sequence[str] = ()) -> Any:
    from datasets import Features, List, Value

    text = Value("string")
    prompt = text if as_text else [{"role": text, "content": text}]
    further = {name: text if name == "alternate" else List(text) for name in answers}
    return Features({"prompt": prompt, **dict.fromkeys(COLUMNS[1:], text), **further})
