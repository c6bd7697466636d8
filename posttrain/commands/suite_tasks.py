"""Which lm-eval tasks `--suite` names, and what a task file may do.

A task file can name Python functions, scripts of metrics and prompts of other files: all of it is code. A file or
folder given by --suite is read as data; what would run code is refused, and its templates are rendered in jinja2's
sandbox. A folder given by --include is trusted, and so are the tasks that come with lm-eval.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2.sandbox import ImmutableSandboxedEnvironment

from posttrain.errors import ConfigError, SupportError

# Keys of a task that take a function, a script, or another file that may hold one.
_CODE_KEYS = {
    "class",
    "custom_dataset",
    "hf_evaluate",
    "process_docs",
    "process_results",
    "trust_remote_code",
    "unsafe_code",
    "use_prompt",
}


@dataclass(frozen=True)
class SuiteTasks:
    """Tasks to run: names, the manager that knows them, and whether their templates must stay in the sandbox."""

    names: list[str]
    manager: Any  # lm_eval.tasks.TaskManager
    data_only: bool


def find_tasks(tasks: str, *, include: str | None = None) -> SuiteTasks:
    """Find the tasks of a suite.

    Args:
        tasks: names or patterns separated by commas, or a task file (.yaml), or a folder of them.
        include: folder whose tasks may be named too; Python code in it will run.

    Raises:
        ConfigError: unknown name, no such folder, no task in it. SupportError: code in a file that is not trusted.
    """
    from lm_eval.tasks import TaskManager

    folder = Path(include).expanduser() if include is not None else None
    if folder is not None and not folder.is_dir():
        raise ConfigError("no such folder", where="--include", got=include)
    place = Path(tasks).expanduser()
    if place.exists():
        root = (place if place.is_dir() else place.parent).resolve()
        trusted = folder is not None and root.is_relative_to(folder.resolve())
        files = sorted(place.rglob("*.yaml")) if place.is_dir() else [place]
        if not trusted:
            for file in files:
                refuse_code(file, below=root)
        manager = TaskManager(include_path=[str(root)], include_defaults=False)
        if not trusted:
            # The manager knows every task below the folder, and a group or a tag of the named file may ask for any.
            for file in sorted({path for entry in manager.task_index.values() if (path := _path(entry))}):
                refuse_code(file, below=root)
        wanted = {file.resolve() for file in files}
        names = [name for name, entry in manager.task_index.items() if _path(entry) in wanted]
        names = [name for name in names if name in manager.all_subtasks] or names
        if not names:
            raise ConfigError("no task here", where="--suite", got=tasks, allowed="a file or folder of lm-eval tasks")
        return SuiteTasks(sorted(names), manager, not trusted)
    if place.suffix in (".yaml", ".yml") or tasks.startswith((".", "/", "~")):
        raise ConfigError("no such file or folder", where="--suite", got=tasks)
    wanted_names = [name.strip() for name in tasks.split(",") if name.strip()]
    if folder is not None:
        manager = TaskManager(include_path=[str(folder)], include_defaults=False)
        if all(fnmatch.filter(manager.all_tasks, name) for name in wanted_names):
            return SuiteTasks(_matching(wanted_names, manager), manager, False)
    manager = TaskManager(include_path=[str(folder)] if folder else None)
    return SuiteTasks(_matching(wanted_names, manager), manager, False)


def _path(entry: Any) -> Path | None:
    return Path(entry.yaml_path).resolve() if entry.yaml_path else None


def _matching(wanted: list[str], manager: Any) -> list[str]:
    """Names, with patterns written out."""
    if not wanted:
        raise ConfigError("no task is named", where="--suite", allowed="names separated by commas")
    names: list[str] = []
    for name in wanted:
        found = fnmatch.filter(manager.all_tasks, name)
        if not found:
            close = difflib.get_close_matches(name, manager.all_tasks, n=3, cutoff=0.5)
            fix = f"Perhaps you mean {' or '.join(repr(item) for item in close)}" if close else None
            raise ConfigError(
                "unknown task",
                where="--suite",
                got=name,
                allowed=f"{len(manager.all_tasks)} tasks of lm-eval",
                fix=fix,
            )
        names += [item for item in sorted(found) if item not in names]
    return names


# ---- what they are ----


def tasks_sha256(tasks: SuiteTasks) -> str:
    """SHA-256 of the configurations of the tasks, includes and members of groups with them, and of the local files of
    data and functions that they name.
    """
    known, waiting = hashlib.sha256(), list(reversed(tasks.names))
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        entry = tasks.manager.task_index.get(name)
        if entry is None or name in seen:
            continue
        seen.add(name)
        config = entry.cfg or {}
        known.update(repr((name, config)).encode())
        members = config.get("task")
        named = members if isinstance(members, list) else []
        waiting += [str(item.get("task") or item.get("group")) if isinstance(item, dict) else item for item in named]
        if entry.yaml_path is None:
            waiting += sorted(entry.tags, reverse=True)
        for file in sorted({file for text in _texts(config) for file in _files(text)}):
            known.update(hashlib.sha256(Path(file).read_bytes()).digest())
    return known.hexdigest()


def _files(text: str) -> list[str]:
    """Local files that a value names: itself, or the module of a function, which reads "/folder/module.function"."""
    module = f"{text.rpartition('.')[0]}.py" if Path(text).is_absolute() else ""
    return [file for file in (text, module) if os.path.isfile(file)]


def _texts(values: Any) -> Iterator[str]:
    """Every text among nested values."""
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, list):
        for value in values:
            yield from _texts(value)
    elif isinstance(values, str):
        yield values


# ---- what is code ----


def refuse_code(file: Path, *, below: Path, seen: frozenset[Path] = frozenset()) -> None:
    """Refuse a task file that would run code, or includes a file that would.

    Args:
        file: YAML.
        below: folder that included files must lie in.
        seen: files that include this one.

    Raises:
        SupportError: names file and line or key. ConfigError: the file is not YAML.
    """
    file = file.resolve()
    try:
        text = file.read_text(encoding="utf-8")
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            tag = getattr(event, "tag", None)
            plain = tag in (None, "!") or re.fullmatch(r"tag:yaml\.org,2002:(?!python)\w+", str(tag))
            if not plain:
                raise _code(file, f"the tag {tag}", event.start_mark.line + 1 if event.start_mark else None)
        values = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        reason = " ".join(str(problem).split())[:200]
        raise ConfigError(f"the task file cannot be read: {reason}", where=str(file)) from None
    for key, value in _items(values):
        if key in _CODE_KEYS and value not in (None, False):
            raise _code(file, f"the key {key!r}")
        if key == "metric" and str(value) not in _known_metrics():
            raise _code(file, f"the metric {value!r}, which is not lm-eval's own and would be fetched as a script")
    for included in _included(values):
        target = (file.parent / included).resolve()
        if not target.is_relative_to(below) or target in seen | {file}:
            raise _code(file, f"the file {included!r}, which lies outside {below} or includes itself")
        refuse_code(target, below=below, seen=seen | {file})


def _code(file: Path, what: str, line: int | None = None) -> SupportError:
    return SupportError(
        f"the task file names code to run: {what}",
        where=f"{file}:{line}" if line else str(file),
        fix=f"Read it; if you trust it, add --include {file.parent}",
    )


def _items(values: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield str(key), value
            yield from _items(value)
    elif isinstance(values, list):
        for value in values:
            yield from _items(value)


def _included(values: Any) -> list[str]:
    named = values.get("include") if isinstance(values, dict) else None
    return [str(item) for item in (named if isinstance(named, list) else [named]) if item is not None]


def _known_metrics() -> set[str]:
    import lm_eval.api.metrics  # noqa: F401 - fills the registry
    from lm_eval.api.registry import metric_registry

    return set(metric_registry)


@contextmanager
def sandboxed(data_only: bool) -> Iterator[None]:
    """Render the templates of tasks in jinja2's sandbox; lm-eval 0.4.13 uses an environment that runs any code."""
    import lm_eval.utils

    if not data_only:
        yield
        return
    found = lm_eval.utils.env
    safe = ImmutableSandboxedEnvironment(
        loader=found.loader, undefined=found.undefined, keep_trailing_newline=found.keep_trailing_newline
    )
    safe.filters["regex_replace"] = found.filters["regex_replace"]
    lm_eval.utils.env = safe
    try:
        yield
    finally:
        lm_eval.utils.env = found
