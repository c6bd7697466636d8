"""Files of a run folder: atomic writes, values in JSON's types, and `metrics.jsonl` read back.

Non-finite numbers are written as the strings "NaN", "Infinity" and "-Infinity": JSON has no such numbers, and a
diverged run must not read like a missing value. `null` is what was None.
"""

from __future__ import annotations

import json
import math
import numbers
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

START = "start"
LOG = "log"
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def write_atomic(path: str | Path, content: str | bytes) -> Path:
    """Write a file so that a reader, or a crash, finds the old content or the new one and nothing between.

    The content goes to a temporary file in the same folder (created if missing), which then takes the file's name.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Half of a surrogate pair, which a model may emit, has no UTF-8; its backslash form is valid in JSON.
    data = content.encode("utf-8", errors="backslashreplace") if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # Temporary files are private; a run folder has the permissions the user's umask gives.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


def write_json(path: str | Path, value: Any) -> Path:
    """`write_atomic` of indented JSON; see `json_value` for what becomes of values that JSON lacks."""
    return write_atomic(path, json.dumps(json_value(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[Any]) -> Path:
    """`write_atomic` of one JSON object a line."""
    lines = [json.dumps(json_value(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    return write_atomic(path, "".join(lines))


def json_value(value: Any) -> Any:
    """The value in JSON's types: tensors and arrays become numbers or lists, non-finite numbers and the rest text."""
    if isinstance(value, dict):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_value(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, numbers.Real):
        number = float(value)
        if math.isfinite(number):
            return number
        return "NaN" if math.isnan(number) else ("Infinity" if number > 0 else "-Infinity")
    if hasattr(value, "tolist"):
        return json_value(value.tolist())
    return str(value)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The log events of the run as it finally went, in order; empty if there is no file.

    Where an attempt logged beyond the step from which the next one went on, that is left out, should it still stand in
    the file, and so is a torn last line. Numbers come back as numbers, the non-finite ones too.

    Raises:
        ValueError: a line other than the last is not JSON.
    """
    events: list[dict[str, Any]] = []
    for attempt in _attempts(Path(path)):
        begin = attempt[0]["step"] if attempt[0]["event"] == START else 0
        events = [event for event in events if 0 < begin >= event["step"]]
        events += [event for event in attempt if event["event"] != START]
    return events


def evaluation_seconds(result: Mapping[str, Any]) -> float:
    """Seconds of an evaluation as it stands in eval.json, that of further tasks included."""
    return math.fsum([result["seconds"], *(task["seconds"] for task in result.get("tasks", {}).values())])


def training_seconds(path: str | Path) -> float:
    """Seconds spent in training, over all attempts: work that was lost to an interruption counts too."""
    return sum(_seconds(attempt) for attempt in _attempts(Path(path)))


def cut_after(path: Path, step: int) -> dict[str, Any]:
    """Take out of a metrics file what was logged beyond a step, for a run that goes on from there.

    A last line without a line end, which a crash left, goes too. The file is replaced as a whole.

    Returns:
        `cut_lines` and the seconds of training they took, `cut_seconds`; empty if nothing was beyond the step. A file
        that is no metrics file is moved away whole, to the name in `set_aside`.
    """
    if not path.exists():
        return {}
    written = _whole_lines(path)
    try:
        attempts = _parsed(written, path.name)
    except (ValueError, KeyError, AttributeError):  # not written by a run: kept, and not gone on with
        aside = path.with_name(f"{path.stem}.damaged{path.suffix}")
        path.replace(aside)
        return {"set_aside": aside.name}
    unread, kept, lines, seconds = iter(written), list[str](), 0, 0.0
    for attempt in attempts:
        own = [(event, next(unread)) for event in attempt]
        stay = [(event, line) for event, line in own if event["step"] <= step]
        lines += len(own) - len(stay)
        seconds += _seconds(event for event, _ in own) - _seconds(event for event, _ in stay)
        kept += [line for _, line in stay]
    write_atomic(path, "".join(line + "\n" for line in kept))
    return {"cut_lines": lines, "cut_seconds": round(seconds, 3)} if lines else {}


def _seconds(attempt: Iterable[Mapping[str, Any]]) -> float:
    """Seconds of one attempt, with those of lines that were cut before it."""
    events = list(attempt)
    cut = math.fsum(event.get("cut_seconds", 0.0) for event in events if event["event"] == START)
    return cut + max((event["elapsed_seconds"] for event in events), default=0.0)


def _attempts(path: Path) -> list[list[dict[str, Any]]]:
    return _parsed(_whole_lines(path), path.name) if path.exists() else []


def _whole_lines(path: Path) -> list[str]:
    """Lines of a file without a torn last one."""
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def _parsed(lines: list[str], name: str) -> list[list[dict[str, Any]]]:
    """Events by attempt. Raises ValueError for a line that is not JSON."""
    attempts: list[list[dict[str, Any]]] = []
    for number, line in enumerate(lines, start=1):
        try:
            event = {name: _number(value) for name, value in json.loads(line).items()}
        except json.JSONDecodeError as problem:
            raise ValueError(f"{name}:{number}: not a JSON object") from problem
        if event["event"] == START or not attempts:
            attempts.append([])
        attempts[-1].append(event)
    return attempts


def _number(value: Any) -> Any:
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
