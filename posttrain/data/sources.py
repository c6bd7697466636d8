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

import pyarrow.compute as pc
from datasets import Dataset, Features, Json, List, ReadInstruction, Value, concatenate_datasets

from posttrain.data.answers import answer_text, with_messages
from posttrain.data.cells import written
from posttrain.data.files import find_rows, looks_local, unreadable
from posttrain.data.readers import separator_hint
from posttrain.data.references import GSM8K, after_mark, cut_references
from posttrain.data.rendering import ASSISTANT_MESSAGES, without_none
from posttrain.data.tables import Table, told_nulls
from posttrain.data.tasks import TASKS
from posttrain.data.tasks.reasoning_gym import generate
from posttrain.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from datasets import Dataset, Features
from posttrain.registry import METHODS

COLUMNS = ("prompt", "answer", "solution", "group", "task", "entry")
# What unlearning and its evaluation read: lists of texts, but for `alternate`, which is one text. Kept as they are.
ANSWERS = ("paraphrased_prompts", "paraphrases", "perturbed", "alternate")
_PROMPT_SYNONYMS = ("prompts", "question", "problem", "instruction", "query", "input", "messages")
_PLAIN = ("answer", "group", "task", "entry")  # compared and counted, never rendered
_OTHER_CELLS = "Write the cells as text or as lists of messages"
_KINDS = ("task", "reasoning_gym", "path")
_ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython", "observation")


def load_source(
    source: Any,
    *,
    system_prompt: str | None = None,
    texts: Sequence[str] = (),
    notes: list[str] | None = None,
) -> Dataset:
    """Rows of one source with the columns of `COLUMNS`.

    Args:
        source: a mapping or an object with attributes; exactly one of `task`, `reasoning_gym` and `path`. The first
            two take `size`, `seed` and `options`; `path` (a Hub id, a .json, .jsonl, .csv or .parquet file, or a
            folder) takes `name`, `split`, `revision`, `limit`, `columns` (our name -> theirs, dots for nested fields),
            `answer_after` and `format`.
        system_prompt: put before every prompt that has no system message; not for format "text".
        texts: further columns of a file or Hub data set that are read as text, too (see `text_columns`).
        notes: takes sentences about what was made of the cells.

    Returns:
        Dataset. `prompt` is a list of {role, content} and what further fields the messages have (`tool_calls`,
        `reasoning_content`, ...; those that are None are left out), or a string with format "text"; the others of
        `COLUMNS` are strings as they stand in the source (`posttrain.data.cells` says how numbers are written), ""
        where it has none; further columns of a file or Hub data set come along with the type that loses nothing. Of an
        answer only what follows `answer_after` is kept, or the number if all answers are GSM8K's
        (`posttrain.data.references`). A demonstration may be a message, or a list of one; what it has beside its
        content is kept in `assistant_messages` (`posttrain.data.answers`).

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
        return _from_path(source, as_text=as_text, system_prompt=system_prompt, texts=texts, notes=notes)

    rows = _generated(source, kinds[0])
    for index, row in enumerate(rows):
        row["prompt"] = _prompt(row["prompt"], as_text, system_prompt, where=f"row {index}")
    further = [name for name in (rows[0] if rows else ()) if name not in COLUMNS]  # those of a task are texts
    return Dataset.from_list(rows, features=_features(as_text, further))


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
    return nearest(word, choices)


# ---- rows that are read ----


def _from_path(
    source: Any, *, as_text: bool, system_prompt: str | None, texts: Sequence[str], notes: list[str] | None
) -> Dataset:
    path, limit = str(_get(source, "path")), _get(source, "limit")
    split = str(_get(source, "split", "train"))
    nulls: list[str] = []
    stored = find_rows(path, name=_get(source, "name"), split=split, revision=_get(source, "revision"))

    def table() -> Table:
        return Table(
            path,
            choose=lambda present: _columns(dict(_get(source, "columns", {})), present, path, as_text, texts),
            make=partial(_rows, path=path, as_text=as_text, system_prompt=system_prompt),
            features=partial(_features, as_text),
            nulls=nulls,
        )

    if isinstance(stored, Dataset):
        made = table().read_dataset(stored, limit)
    elif stored.parts is None:
        made = table().read(stored.batches(), limit)
    else:
        wholes = {name: table().read(part.batches()) for name, part in stored.parts.items()}
        try:
            parts = ReadInstruction.from_spec(split).to_absolute({name: len(rows) for name, rows in wholes.items()})
        except (ValueError, AssertionError) as error:
            raise unreadable(error, path) from error
        made = concatenate_datasets([wholes[part.splitname].select(range(part.from_, part.to)) for part in parts])
        made = made if limit is None else made.select(range(min(limit, len(made))))
    if notes is not None:
        notes += [*([] if isinstance(stored, Dataset) else stored.notes()), *told_nulls(nulls)]
    return _cut(made, _get(source, "answer_after"), notes)


def _cut(rows: Dataset, mark: str | None, notes: list[str] | None) -> Dataset:
    """The rows with what `cut_references` leaves of their answers."""
    if not pc.any(pc.match_substring(rows.data.column("answer"), GSM8K if mark is None else mark)).as_py():
        if mark is not None and notes is not None:
            notes.append(cut_references(rows["answer"][:], mark)[1] or "")
        return rows
    answers, note = cut_references(rows["answer"][:], mark)
    if note is not None and notes is not None:
        notes.append(note)
    if note is None:
        return rows
    kind, order = rows.features["answer"], rows.column_names
    return rows.remove_columns("answer").add_column("answer", answers, feature=kind).select_columns(order)


@dataclass(frozen=True)
class RowMaker:
    """Makes one row of a file or Hub data set into a row of ours, as `load_source` does with all of them."""

    columns: dict[str, str]
    present: tuple[str, ...]
    path: str
    as_text: bool
    system_prompt: str | None
    answer_after: str | None = None

    @classmethod
    def of(
        cls, source: Any, first: Mapping[str, Any], *, system_prompt: str | None = None, texts: Sequence[str] = ()
    ) -> RowMaker:
        """From a source and its first raw row, whose columns are taken for those of all.

        Raises:
            ConfigError, DataError: as in `load_source`.
        """
        path, as_text, present = str(_get(source, "path")), _get(source, "format") == "text", list(first)
        columns = _columns(dict(_get(source, "columns", {})), present, path, as_text, texts)
        return cls(columns, tuple(present), path, as_text, system_prompt, _get(source, "answer_after"))

    def row(self, raw: Mapping[str, Any], number: int) -> dict[str, Any]:
        """Row `number`; a column that it lacks counts as empty.

        Raises:
            DataError: it cannot be used.
        """
        late = [name for name in COLUMNS if name in raw and name not in self.present and name not in self.columns]
        if late:
            where, fix = f"{self.path}, row {number}", "Give the first row all columns, with null where it has nothing"
            raise DataError("the row has a column that the first one lacks", where=where, got=late[0], fix=fix)
        batch = {name: [raw.get(name)] for name in self.present}
        made = _rows(
            batch,
            [number],
            columns=self.columns,
            path=self.path,
            label=self.path,
            as_text=self.as_text,
            system_prompt=self.system_prompt,
        )
        if self.answer_after is not None:
            made["answer"] = [after_mark(made["answer"][0], self.answer_after)]
        used = {*made, *self.columns.values()}
        further = {name: cells[0] for name, cells in batch.items() if name not in used}
        return {**further, **{name: cells[0] for name, cells in made.items()}}


def text_columns(method: Any) -> list[str]:
    """Columns that a method reads as texts: those that its settings name, and those of further answers."""
    found = [getattr(method, name, None) for name in ("demonstration_column", "alternate_column")]
    found += further_answers(method)
    return [str(name) for name in found if name not in (None, *COLUMNS)]


def further_answers(method: Any) -> tuple[str, ...]:
    """Columns with further answers to a row's prompt, which some supervised methods learn beside the demonstration."""
    declared = METHODS.get(str(getattr(method, "name", None)))
    if declared is None or not declared.learns_rows:
        return ()
    return tuple(getattr(declared.load_config(), "answer_columns", ()))


def _columns(
    mapping: dict[str, str], present: list[str], path: str, as_text: bool, texts: Sequence[str] = ()
) -> dict[str, str]:
    """Our column -> theirs, for the columns that exist; refuses a mapping to nothing and a missing prompt."""
    for ours, theirs in mapping.items():
        if ours not in COLUMNS + ANSWERS:
            allowed, fix = f"one of: {', '.join(COLUMNS + ANSWERS)}", _nearest(ours, COLUMNS + ANSWERS)
            raise ConfigError("unknown column of ours", where="columns", got=ours, allowed=allowed, fix=fix)
        if theirs not in present and (ours in ANSWERS or theirs.split(".")[0] not in present):
            hint = separator_hint(present) or _nearest(theirs, present) or ""
            raise _missing(theirs, path, present, f"columns.{ours} asks for it. {hint}".rstrip(". "))
    if ASSISTANT_MESSAGES in present:
        fix = "Rename it; a demonstration that is a message stands in its own column"
        raise DataError("the name of the column is taken", where=path, got=ASSISTANT_MESSAGES, fix=fix)
    found = {ours: ours for ours in (*COLUMNS, *texts) if ours in present} | mapping
    if "prompt" not in found and as_text and "text" in present:
        found["prompt"] = "text"
    if "prompt" not in found:
        if (cells := separator_hint(present)) is not None:
            raise _missing("prompt", path, present, cells)
        if "text" in present and not as_text:
            raise _missing("prompt", path, present, "If the texts are documents, set format: text in the source")
        near = [column for column in present if column.lower() in _PROMPT_SYNONYMS]
        near = near or get_close_matches("prompt", present, n=1)
        wanted = near[0] if near else "<their column>"
        raise _missing("prompt", path, present, f"Name it in the source: columns: {{prompt: {wanted}}}")
    return found


def _missing(column: str, path: str, present: list[str], fix: str) -> DataError:
    return DataError("no such column", where=path, got=column, allowed=f"present: {', '.join(present)}", fix=fix)


def _rows(
    batch: Mapping[str, list[Any]],
    indices: Sequence[int],
    *,
    columns: dict[str, str],
    path: str,
    label: str,
    as_text: bool,
    system_prompt: str | None,
) -> dict[str, list[Any]]:
    count = len(indices)
    result: dict[str, list[Any]] = {name: [""] * count for name in COLUMNS}
    # The name alone: the folder says where the run took place, not what the rows are.
    result["task"] = [Path(path).name if looks_local(path) or Path(path).exists() else path] * count
    for ours, theirs in columns.items():

        def place(position: int, name: str = theirs) -> str:
            return f"{label}, row {indices[position]}, column {name!r}"

        cells = _cells(batch, theirs)
        if ours == "prompt":
            before = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
            result[ours] = [
                (cell if as_text else [*before, {"role": "user", "content": cell}])
                if type(cell) is str and cell.strip()
                else _prompt(cell, as_text, system_prompt, where=place(n))
                for n, cell in enumerate(cells)
            ]
        elif ours in ANSWERS:
            result[ours] = [_texts(cell, place(n), is_list=ours != "alternate") for n, cell in enumerate(cells)]
        else:
            keeps = ours not in _PLAIN and not as_text
            result[ours] = [
                cell if type(cell) is str else answer_text(cell, place(n), keeps=keeps) for n, cell in enumerate(cells)
            ]
            if keeps and (messages := with_messages(result.get(ASSISTANT_MESSAGES), cells, place)) is not None:
                result[ASSISTANT_MESSAGES] = messages
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
    cell, fix = value, "Drop the row" if value is None or isinstance(value, str | list) else _OTHER_CELLS
    if not isinstance(value, str | list):
        value = written(value)
    if as_text:
        if not isinstance(value, str) or not value.strip():
            raise DataError("the text is empty or no text", where=where, got=cell, fix=fix)
        return value
    if isinstance(value, str) and value.strip():
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise DataError("the prompt is empty or neither text nor messages", where=where, got=cell, fix=fix)
    messages = []
    for message in value:
        found = without_none(message) if isinstance(message, Mapping) else {}
        # A turn that thinks or calls tools only has no text.
        content = written(found.get("content", "" if len(found) > 1 else None))
        if found.get("role") not in _ROLES or not isinstance(content, str):
            allowed = f"role ({', '.join(_ROLES)}) and content (text)"
            raise DataError("a message lacks role or content", where=where, got=message, allowed=allowed)
        messages.append({**found, "content": content})
    if system_prompt is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system_prompt})
    return messages


def with_one_kind_of_messages(sources: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """The data sets with their messages as one type, where those of any have more fields than role and content."""
    wanted, kinds = List(Json()), [rows.features.get("prompt") for rows in sources.values()]
    if wanted not in kinds or any(hasattr(kind, "dtype") for kind in kinds):
        return dict(sources)
    return {name: rows.cast_column("prompt", wanted) for name, rows in sources.items()}


def _texts(value: Any, where: str, *, is_list: bool) -> Any:
    """A cell of a column of `ANSWERS`; nothing stays nothing, and one text where a list may stand is a list of one."""
    if value is None or (is_list and value == ""):
        return None
    if not is_list:
        return answer_text(value, where)
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        fix = "Write [...], or map another column"
        raise DataError("the cell is no list of texts", where=where, got=value, fix=fix)
    return [None if item is None else answer_text(item, where) for item in value]


def _features(as_text: bool, answers: Sequence[str] = (), *, is_open: bool = False) -> Features:
    """Types of our columns; messages that are `is_open` may have fields of any kind."""
    text = Value("string")
    messages = List(Json()) if is_open else [{"role": text, "content": text}]
    prompt = text if as_text else messages
    lists = {name for name in ANSWERS if name != "alternate"}
    further = {name: List(text) if name in lists else text for name in answers}
    return Features({"prompt": prompt, **dict.fromkeys(COLUMNS[1:], text), **further})
